//! The way to a container on its link, and the headers of every frame sent there.
//!
//! A frame is built in one buffer: virtio-net header, Ethernet, IP, transport, payload. The payload
//! usually stands in place already (peeked from a socket to [`l4_offset`] plus the transport
//! header), and the headers are written in front of it.

use std::net::IpAddr;

use cnet_vswitch::checksum;
use cnet_vswitch::frame::{ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use cnet_vswitch::vnet::{VNET_HDR_LEN, VnetHeader};
use cnet_vswitch::{FrameSink, MacAddr, PortId};

use crate::host::HostSockets;

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER_LEN: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_HEADER_LEN: usize = 40;
/// Largest IPv4 packet, and the largest super-frame we send in either family.
pub const MAX_IP_PACKET: usize = 65535;
/// Bytes a buffer needs to hold any frame we build.
pub const FRAME_BUFFER_LEN: usize = VNET_HDR_LEN + ETHERNET_HEADER_LEN + MAX_IP_PACKET + 1;

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

/// The effects of the core, in one bundle: where frames go, the host's sockets, and a buffer of at
/// least [`FRAME_BUFFER_LEN`] bytes in which outgoing frames are built.
pub struct Io<'a, S, H> {
    /// Frames to ports.
    pub sink: &'a mut S,
    /// Socket operations.
    pub hosts: &'a mut H,
    /// Scratch space for one frame; its contents mean nothing between calls.
    pub buf: &'a mut [u8],
}

impl<S: FrameSink, H: HostSockets> Io<'_, S, H> {
    /// A shorter borrow of the same bundle, to hand down.
    pub fn reborrow(&mut self) -> Io<'_, S, H> {
        Io {
            sink: self.sink,
            hosts: self.hosts,
            buf: self.buf,
        }
    }
}

/// Where the transport header stands in a frame buffer, the virtio-net header counted in.
pub const fn l4_offset(v6: bool) -> usize {
    VNET_HDR_LEN + ETHERNET_HEADER_LEN + if v6 { IPV6_HEADER_LEN } else { IPV4_HEADER_LEN }
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
    buf[..VNET_HDR_LEN].copy_from_slice(&vnet.encode());
    let eth = &mut buf[VNET_HDR_LEN..];
    eth[0..6].copy_from_slice(&link.container_mac.0);
    eth[6..12].copy_from_slice(&link.gateway_mac.0);
    let b = &mut eth[ETHERNET_HEADER_LEN..];
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
            b[0] = 0x45;
            b[1] = ip.tos;
            b[2..4].copy_from_slice(&((IPV4_HEADER_LEN + l4_len) as u16).to_be_bytes());
            b[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
            b[8] = ip.hop_limit;
            b[9] = ip.protocol;
            b[10..12].copy_from_slice(&[0, 0]);
            if let (IpAddr::V4(src), IpAddr::V4(dst)) = (src, dst) {
                b[12..16].copy_from_slice(&src.octets());
                b[16..20].copy_from_slice(&dst.octets());
            }
            let sum = checksum::finish(0, &b[..IPV4_HEADER_LEN]);
            b[10..12].copy_from_slice(&sum.to_be_bytes());
            ETHERTYPE_IPV4
        }
    };
    eth[12..14].copy_from_slice(&ethertype.to_be_bytes());
    l4_offset(ip.src.is_ipv6()) + l4_len
}
