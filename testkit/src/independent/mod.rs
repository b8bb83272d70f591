//! Frames built and read by etherparse, an implementation that is not the core's: a mistake of the
//! core's own code about a format is not made twice.
//!
//! [`segment`] does the same for TCP.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::headers::Link;
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{PortId, VnetHeader, checksum};

use crate::addresses::{GATEWAY_MAC, MAC};

pub mod segment;

/// The link of the one container.
pub const LINK: Link = Link {
    port: PortId(3),
    gateway_mac: GATEWAY_MAC,
    container_mac: MAC,
};

/// A UDP datagram with a right checksum, by an independent implementation.
pub fn udp_datagram(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let header = etherparse::UdpHeader {
        source_port: src.port(),
        destination_port: dst.port(),
        length: 8 + payload.len() as u16,
        checksum: 0,
    };
    let sum = match (src.ip(), dst.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            header.calc_checksum_ipv4_raw(s.octets(), d.octets(), payload)
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            header.calc_checksum_ipv6_raw(s.octets(), d.octets(), payload)
        }
        _ => panic!("two families"),
    };
    let header = etherparse::UdpHeader {
        checksum: sum.unwrap(),
        ..header
    };
    [&header.to_bytes()[..], payload].concat()
}

/// IP header fields that tests vary.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// The DF bit of IPv4.
    pub dont_fragment: bool,
}

/// Those of an ordinary packet.
pub const IP: Ip = Ip {
    hop_limit: 64,
    tos: 0,
    dont_fragment: true,
};

/// A frame from the container, virtio-net header first, by an independent implementation.
pub fn frame_from(
    vnet: VnetHeader,
    (src, dst): (IpAddr, IpAddr),
    ip: Ip,
    protocol: u8,
    l4: &[u8],
) -> Vec<u8> {
    use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header};
    let mut b = vnet.encode().to_vec();
    let ethernet = |ether_type| Ethernet2Header {
        source: LINK.container_mac.0,
        destination: LINK.gateway_mac.0,
        ether_type,
    };
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ethernet(EtherType::IPV4).write(&mut b).unwrap();
            let (len, protocol) = (l4.len() as u16, IpNumber(protocol));
            let (src, dst) = (src.octets(), dst.octets());
            let mut h = Ipv4Header::new(len, ip.hop_limit, protocol, src, dst).unwrap();
            h.dont_fragment = ip.dont_fragment;
            h.dscp = etherparse::IpDscp::try_new(ip.tos >> 2).unwrap();
            h.ecn = etherparse::IpEcn::try_new(ip.tos & 3).unwrap();
            h.header_checksum = h.calc_header_checksum();
            h.write(&mut b).unwrap();
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ethernet(EtherType::IPV6).write(&mut b).unwrap();
            let h = Ipv6Header {
                traffic_class: ip.tos,
                payload_length: l4.len() as u16,
                next_header: IpNumber(protocol),
                hop_limit: ip.hop_limit,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv6Header::default()
            };
            h.write(&mut b).unwrap();
        }
        _ => panic!("two families"),
    }
    b.extend_from_slice(l4);
    b
}

/// An IP packet to the container, as an independent implementation reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Transport protocol number.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Transport header and payload.
    pub l4: Vec<u8>,
}

impl Packet {
    /// Reads a frame to the container that is no fragment, and checks its checksums. A checksum
    /// left to the receiver is filled in first.
    pub fn read(frame: &[u8]) -> Packet {
        use etherparse::{NetSlice, SlicedPacket};
        let vnet = VnetHeader::decode(frame).unwrap();
        let mut bytes = frame[VNET_HDR_LEN..].to_vec();
        assert_eq!(bytes[..6], LINK.container_mac.0);
        assert_eq!(bytes[6..12], LINK.gateway_mac.0);
        if vnet.needs_csum() {
            let start = usize::from(vnet.csum_start);
            let sum = checksum::finish(0, &bytes[start..]);
            let field = start + usize::from(vnet.csum_offset);
            bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let sliced = SlicedPacket::from_ethernet(&bytes).unwrap();
        let packet = match sliced.net.unwrap() {
            NetSlice::Ipv4(p) => {
                let h = p.header();
                assert_eq!(h.to_header().calc_header_checksum(), h.header_checksum());
                assert!(!h.is_fragmenting_payload());
                Packet {
                    src: h.source_addr().into(),
                    dst: h.destination_addr().into(),
                    protocol: h.protocol().0,
                    hop_limit: h.ttl(),
                    tos: h.dcp().value() << 2 | h.ecn().value(),
                    l4: p.payload().payload.to_vec(),
                }
            }
            NetSlice::Ipv6(p) => {
                let h = p.header();
                Packet {
                    src: h.source_addr().into(),
                    dst: h.destination_addr().into(),
                    protocol: h.next_header().0,
                    hop_limit: h.hop_limit(),
                    tos: h.traffic_class(),
                    l4: p.payload().payload.to_vec(),
                }
            }
            NetSlice::Arp(_) => panic!("ARP"),
        };
        let pseudo = match packet.protocol {
            1 => 0,
            p => checksum::pseudo_header(packet.src, packet.dst, p, packet.l4.len() as u32),
        };
        assert_eq!(checksum::finish(pseudo, &packet.l4), 0, "checksum");
        packet
    }

    /// The end points of a UDP packet.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        assert_eq!(self.protocol, 17);
        let port = |i: usize| u16::from_be_bytes([self.l4[i], self.l4[i + 1]]);
        (
            SocketAddr::new(self.src, port(0)),
            SocketAddr::new(self.dst, port(2)),
        )
    }

    /// Type, code and info of an ICMP error, and the packet it quotes from its IP header on.
    pub fn error(&self) -> ((u8, u8, u32), &[u8]) {
        assert!(matches!(self.protocol, 1 | 58));
        let info = u32::from_be_bytes([self.l4[4], self.l4[5], self.l4[6], self.l4[7]]);
        ((self.l4[0], self.l4[1], info), &self.l4[8..])
    }
}
