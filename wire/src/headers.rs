//! The way to a container on its link, and the headers of every frame sent there.
//!
//! A frame is built in one buffer: virtio-net header, Ethernet, IP, transport, payload. The payload
//! usually stands in place already (peeked from a socket to [`l4_offset`] plus the transport
//! header), and the headers are written in front of it.

use std::net::IpAddr;

use crate::checksum;
use crate::ethernet::{ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::vnet::{VNET_HDR_LEN, VnetHeader};
use crate::{MacAddr, PortId};

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER_LEN: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_HEADER_LEN: usize = 40;
/// Largest IPv4 packet, and the largest super-frame we send in either family.
pub const MAX_IP_PACKET: usize = 65535;
/// Largest IPv6 packet that is no jumbogram: its length field does not count its header.
pub const MAX_IPV6_PACKET: usize = IPV6_HEADER_LEN + u16::MAX as usize;
/// Bytes a buffer needs to hold any frame we build.
pub const FRAME_BUFFER_LEN: usize = VNET_HDR_LEN + ETHERNET_HEADER_LEN + MAX_IPV6_PACKET + 1;

/// Bytes of the largest packet of a family that can be sent, in fragments if need be.
pub const fn max_packet(v6: bool) -> usize {
    if v6 { MAX_IPV6_PACKET } else { MAX_IP_PACKET }
}

/// Where a container is on the switch, and the addresses of the frames to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// The switch port.
    pub port: PortId,
    /// Our address on it.
    pub gateway_mac: MacAddr,
    /// The container's.
    pub container_mac: MacAddr,
}

/// The IP header of a packet to a container. Both addresses are of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpOut {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Transport protocol.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN bits.
    pub tos: u8,
}

/// Where the transport header stands in a frame buffer, the virtio-net header counted in.
pub const fn l4_offset(v6: bool) -> usize {
    VNET_HDR_LEN + ETHERNET_HEADER_LEN + if v6 { IPV6_HEADER_LEN } else { IPV4_HEADER_LEN }
}

/// Writes `vnet` and the Ethernet header of a frame to `link` at the start of `buf`, and returns
/// where its payload starts.
#[inline]
pub fn write_link_header(buf: &mut [u8], vnet: VnetHeader, link: &Link, ethertype: u16) -> usize {
    let (head, eth) = buf.split_at_mut(VNET_HDR_LEN);
    head.copy_from_slice(&vnet.encode());
    eth[0..6].copy_from_slice(&link.container_mac.0);
    eth[6..12].copy_from_slice(&link.gateway_mac.0);
    eth[12..14].copy_from_slice(&ethertype.to_be_bytes());
    VNET_HDR_LEN + ETHERNET_HEADER_LEN
}

/// Writes Ethernet and IP headers for a transport packet of `l4_len` bytes, and `vnet` before them.
/// IPv4 goes out with DF set and identification 0 (RFC 6864). `buf` starts with the virtio-net
/// header. Returns where the frame ends.
pub fn write_headers(
    buf: &mut [u8],
    vnet: VnetHeader,
    link: &Link,
    ip: &IpOut,
    l4_len: usize,
) -> usize {
    let b = &mut buf[VNET_HDR_LEN + ETHERNET_HEADER_LEN..];
    let ethertype = match (ip.src, ip.dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            b[0] = 0x60 | ip.tos >> 4;
            b[1] = ip.tos << 4;
            b[2] = 0;
            b[3] = 0;
            b[4..6].copy_from_slice(&(l4_len as u16).to_be_bytes());
            b[6] = ip.protocol;
            b[7] = ip.hop_limit;
            b[8..24].copy_from_slice(&src.octets());
            b[24..40].copy_from_slice(&dst.octets());
            ETHERTYPE_IPV6
        }
        (src, dst) => {
            let header = ipv4_header(ip, v4_bits(src), v4_bits(dst), IPV4_HEADER_LEN + l4_len);
            b[..IPV4_HEADER_LEN].copy_from_slice(&header);
            ETHERTYPE_IPV4
        }
    };
    write_link_header(buf, vnet, link, ethertype);
    l4_offset(ip.src.is_ipv6()) + l4_len
}

fn v4_bits(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(a) => a.to_bits(),
        IpAddr::V6(_) => 0,
    }
}

/// An IPv4 header of a packet of `len` bytes. Its checksum is made from what is in registers: to
/// read back in words what has just been written in bytes costs more than all the rest.
fn ipv4_header(ip: &IpOut, src: u32, dst: u32, len: usize) -> [u8; IPV4_HEADER_LEN] {
    let mut words = [
        0x4500_0000 | u32::from(ip.tos) << 16 | len as u32 & 0xffff,
        0x0000_4000,
        u32::from(ip.hop_limit) << 24 | u32::from(ip.protocol) << 16,
        src,
        dst,
    ];
    let sum: u64 = words.iter().map(|&word| u64::from(word)).sum();
    words[2] |= u32::from(!checksum::fold(sum));
    let mut header = [0; IPV4_HEADER_LEN];
    for (bytes, word) in header.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smoltcp::wire::Ipv4Packet;

    proptest! {
        #[test]
        fn an_ipv4_header_says_what_it_was_given(
            (src, dst) in any::<([u8; 4], [u8; 4])>(),
            (protocol, hop_limit, tos) in any::<(u8, u8, u8)>(),
            l4_len in 0..=MAX_IP_PACKET - IPV4_HEADER_LEN,
        ) {
            let link = Link {
                port: PortId(1),
                gateway_mac: MacAddr([2, 0, 0, 0, 0, 1]),
                container_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            };
            let ip = IpOut { src: src.into(), dst: dst.into(), protocol, hop_limit, tos };
            let mut buf = vec![0xff; FRAME_BUFFER_LEN];
            let end = write_headers(&mut buf, VnetHeader::default(), &link, &ip, l4_len);
            let packet = &buf[VNET_HDR_LEN + ETHERNET_HEADER_LEN..end];
            let packet = Ipv4Packet::new_checked(packet).unwrap();
            prop_assert!(packet.verify_checksum());
            prop_assert_eq!((packet.src_addr(), packet.dst_addr()), (src.into(), dst.into()));
            prop_assert_eq!(u8::from(packet.next_header()), protocol);
            prop_assert_eq!(packet.hop_limit(), hop_limit);
            prop_assert_eq!((packet.dscp() << 2) | packet.ecn(), tos);
            prop_assert_eq!(packet.header_len() as usize, IPV4_HEADER_LEN);
            prop_assert_eq!(usize::from(packet.total_len()), IPV4_HEADER_LEN + l4_len);
            prop_assert!(packet.dont_frag() && !packet.more_frags() && packet.frag_offset() == 0);
        }
    }
}
