//! Frames as a container's kernel writes them to a TAP with virtio-net headers: transport checksums
//! left open (NEEDS_CSUM), bulk in super-frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cnet_wire::arp::OP_REQUEST;
use cnet_wire::frame::{
    ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, protocol,
};
use cnet_wire::vnet::{
    F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VNET_HDR_LEN, VnetHeader,
};
use cnet_wire::{MacAddr, checksum};

/// MTU of the links.
pub const MTU: usize = 1500;
/// What the container's kernel puts into one segment over IPv4.
pub const MSS: usize = MTU - 40;
/// Payload of the largest TCP super-frame: whole segments, as Linux makes them.
pub const SUPER_PAYLOAD: usize = 44 * MSS;
/// The same over IPv6.
pub const SUPER_PAYLOAD_V6: usize = 44 * (MSS - 20);
/// Bytes of each datagram of a UDP super-frame.
pub const DATAGRAM: usize = 1400;
/// How many datagrams there are in a UDP super-frame.
pub const DATAGRAMS: usize = 40;

/// The gateway's MAC address.
pub const GATEWAY_MAC: MacAddr = MacAddr([0x52, 0x55, 10, 0, 0, 1]);
/// The gateway's IPv4 address.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

pub use crate::frames::flag::{ACK, FIN, RST, SYN};

/// Where the IPv4 header stands in a frame with its virtio-net header.
const IP: usize = VNET_HDR_LEN + ETHERNET_HEADER_LEN;
/// Where the transport header stands behind an IPv4 header.
const L4: usize = IP + 20;

/// Whether `frame` is IPv6.
pub fn is_v6(frame: &[u8]) -> bool {
    frame[IP] >> 4 == 6
}

/// Where the transport header of `frame` stands.
pub fn l4(frame: &[u8]) -> usize {
    if is_v6(frame) { IP + 40 } else { L4 }
}

/// The station behind switch port `n`.
#[derive(Clone, Copy, Debug)]
pub struct Station {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// The station of switch port `n`, which is at least 1.
pub fn station(n: u32) -> Station {
    let [_, a, b, c] = n.to_be_bytes();
    Station {
        mac: MacAddr([2, 0, 0, a, b, c]),
        v4: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 1, 0)) + n),
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 1, (n >> 16) as u16, n as u16),
    }
}

/// A frame that is made once and sent again and again with other ports, addresses and sequence
/// numbers.
#[derive(Clone, Debug)]
pub struct Template(Vec<u8>);

impl Template {
    /// The frame with its virtio-net header.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// Sets both ends; the MAC source goes with the station. `to` is of the frame's family.
    pub fn set_ends(&mut self, from: &Station, src: u16, to: impl Into<IpAddr>, dst: u16) {
        self.0[VNET_HDR_LEN + 6..VNET_HDR_LEN + 12].copy_from_slice(&from.mac.0);
        let l4 = l4(&self.0);
        match to.into() {
            IpAddr::V4(to) => {
                self.0[IP + 12..IP + 16].copy_from_slice(&from.v4.octets());
                self.0[IP + 16..IP + 20].copy_from_slice(&to.octets());
                self.put16(IP + 10, 0);
                let sum = checksum::finish(0, &self.0[IP..L4]);
                self.put16(IP + 10, sum);
            }
            IpAddr::V6(to) => {
                self.0[IP + 8..IP + 24].copy_from_slice(&from.v6.octets());
                self.0[IP + 24..IP + 40].copy_from_slice(&to.octets());
            }
        }
        self.put16(l4, src);
        self.put16(l4 + 2, dst);
    }

    /// Sets TCP's numbers.
    pub fn set_tcp(&mut self, seq: u32, ack: u32) {
        let l4 = l4(&self.0);
        self.0[l4 + 4..l4 + 8].copy_from_slice(&seq.to_be_bytes());
        self.0[l4 + 8..l4 + 12].copy_from_slice(&ack.to_be_bytes());
    }

    /// Sets who asks in an ARP request.
    pub fn set_arp_sender(&mut self, from: &Station) {
        self.0[VNET_HDR_LEN + 6..VNET_HDR_LEN + 12].copy_from_slice(&from.mac.0);
        self.0[IP + 8..IP + 14].copy_from_slice(&from.mac.0);
        self.0[IP + 14..IP + 18].copy_from_slice(&from.v4.octets());
    }

    /// Sets the identifier of an echo request.
    pub fn set_echo_id(&mut self, id: u16) {
        self.put16(L4 + 4, id);
    }
}

fn ethernet(to: MacAddr, from: MacAddr, ethertype: u16, vnet: VnetHeader) -> Vec<u8> {
    let mut frame = vnet.encode().to_vec();
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&from.0);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame
}

/// An IP packet to the gateway's MAC address. The checksum at `csum_offset` in `l4` holds the
/// pseudo-header's sum; `segment` makes it a super-frame.
pub fn ip_frame(
    (src, dst): (IpAddr, IpAddr),
    to: MacAddr,
    protocol: u8,
    mut l4: Vec<u8>,
    header: usize,
    segment: Option<usize>,
) -> Vec<u8> {
    // Longer than 60 lines: one header after the other, by hand.
    let v6 = src.is_ipv6();
    let start = ETHERNET_HEADER_LEN + if v6 { 40 } else { 20 };
    let csum_offset: usize = match protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => 2,
    };
    if protocol != protocol::ICMP {
        let sum = checksum::pseudo_header(src, dst, protocol, l4.len() as u32);
        l4[csum_offset..csum_offset + 2].copy_from_slice(&checksum::fold(sum).to_be_bytes());
    }
    let vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: match (segment, protocol, v6) {
            (None, ..) => GSO_NONE,
            (Some(_), protocol::UDP, _) => GSO_UDP_L4,
            (Some(_), _, false) => GSO_TCPV4,
            (Some(_), _, true) => GSO_TCPV6,
        },
        hdr_len: (start + header) as u16,
        gso_size: segment.unwrap_or(0) as u16,
        csum_start: start as u16,
        csum_offset: csum_offset as u16,
    };
    let from = station(1).mac;
    let mut frame = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut frame = ethernet(to, from, ETHERTYPE_IPV4, vnet);
            let mut ip = [0; 20];
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&((20 + l4.len()) as u16).to_be_bytes());
            ip[6..10].copy_from_slice(&[0x40, 0, 64, protocol]);
            ip[12..16].copy_from_slice(&src.octets());
            ip[16..20].copy_from_slice(&dst.octets());
            let sum = checksum::finish(0, &ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend_from_slice(&ip);
            frame
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut frame = ethernet(to, from, ETHERTYPE_IPV6, vnet);
            frame.extend_from_slice(&[0x60, 0, 0, 0]);
            frame.extend_from_slice(&(l4.len() as u16).to_be_bytes());
            frame.extend_from_slice(&[protocol, 64]);
            frame.extend_from_slice(&src.octets());
            frame.extend_from_slice(&dst.octets());
            frame
        }
        _ => unreachable!("addresses of two families"),
    };
    frame.extend_from_slice(&l4);
    frame
}

fn v4_ends() -> (SocketAddr, SocketAddr) {
    (
        (station(1).v4, 40_000).into(),
        (Ipv4Addr::new(198, 18, 0, 1), 443).into(),
    )
}

fn v6_ends() -> (SocketAddr, SocketAddr) {
    (
        "[fd00::100]:40000".parse().expect("an address"),
        "[2001:db8::1]:443".parse().expect("an address"),
    )
}

fn tcp(ends: (SocketAddr, SocketAddr), flags: u8, options: &[u8], payload: usize) -> Template {
    let mut l4 = Vec::new();
    l4.extend_from_slice(&ends.0.port().to_be_bytes());
    l4.extend_from_slice(&ends.1.port().to_be_bytes());
    l4.extend_from_slice(&[0; 8]);
    l4.push((((20 + options.len()) / 4) << 4) as u8);
    l4.push(flags);
    l4.extend_from_slice(&u16::MAX.to_be_bytes());
    l4.extend_from_slice(&[0; 4]);
    l4.extend_from_slice(options);
    l4.resize(l4.len() + payload, 0x5a);
    let mss = if ends.0.is_ipv6() { MSS - 20 } else { MSS };
    let segment = (payload > mss).then_some(mss);
    let addresses = (ends.0.ip(), ends.1.ip());
    let header = 20 + options.len();
    Template(ip_frame(
        addresses,
        GATEWAY_MAC,
        protocol::TCP,
        l4,
        header,
        segment,
    ))
}

/// Data in one super-frame of 64 KiB.
pub fn tcp_data() -> Template {
    tcp(v4_ends(), ACK, &[], SUPER_PAYLOAD)
}

/// The same over IPv6.
pub fn tcp_data_v6() -> Template {
    tcp(v6_ends(), ACK, &[], SUPER_PAYLOAD_V6)
}

/// An acknowledgement without data.
pub fn tcp_ack() -> Template {
    tcp(v4_ends(), ACK, &[], 0)
}

/// The same over IPv6.
pub fn tcp_ack_v6() -> Template {
    tcp(v6_ends(), ACK, &[], 0)
}

/// A SYN with the options of Linux: MSS, SACK permitted, timestamps, window scale 7.
pub fn tcp_syn() -> Template {
    syn(v4_ends())
}

/// The same over IPv6.
pub fn tcp_syn_v6() -> Template {
    syn(v6_ends())
}

fn syn(ends: (SocketAddr, SocketAddr)) -> Template {
    let mut options = vec![2, 4];
    options.extend_from_slice(&(MSS as u16).to_be_bytes());
    options.extend_from_slice(&[4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7]);
    tcp(ends, SYN, &options, 0)
}

/// A reset.
pub fn tcp_rst() -> Template {
    tcp(v4_ends(), RST, &[], 0)
}

/// The same over IPv6.
pub fn tcp_rst_v6() -> Template {
    tcp(v6_ends(), RST, &[], 0)
}

fn udp(to: (MacAddr, SocketAddr), payload: usize, segment: Option<usize>) -> Template {
    let from = if to.1.is_ipv6() {
        v6_ends().0
    } else {
        v4_ends().0
    };
    let mut l4 = Vec::new();
    l4.extend_from_slice(&from.port().to_be_bytes());
    l4.extend_from_slice(&to.1.port().to_be_bytes());
    l4.extend_from_slice(&((8 + payload) as u16).to_be_bytes());
    l4.extend_from_slice(&[0, 0]);
    l4.resize(8 + payload, 0x5a);
    let addresses = (from.ip(), to.1.ip());
    Template(ip_frame(addresses, to.0, protocol::UDP, l4, 8, segment))
}

/// A datagram of 64 bytes.
pub fn udp_small() -> Template {
    udp((GATEWAY_MAC, v4_ends().1), 64, None)
}

/// The same over IPv6.
pub fn udp_small_v6() -> Template {
    udp((GATEWAY_MAC, v6_ends().1), 64, None)
}

/// A super-frame of [`DATAGRAMS`] datagrams.
pub fn udp_super() -> Template {
    let segment = Some(DATAGRAM);
    udp((GATEWAY_MAC, v4_ends().1), DATAGRAM * DATAGRAMS, segment)
}

/// The same over IPv6.
pub fn udp_super_v6() -> Template {
    let segment = Some(DATAGRAM);
    udp((GATEWAY_MAC, v6_ends().1), DATAGRAM * DATAGRAMS, segment)
}

/// A datagram to everybody on the link, and to no service of the gateway.
pub fn broadcast() -> Template {
    let to = (Ipv4Addr::BROADCAST, 5678).into();
    udp((MacAddr::BROADCAST, to), 64, None)
}

/// A datagram of 64 bytes to another station's MAC address.
pub fn unicast(to: MacAddr) -> Template {
    udp((to, v4_ends().1), 64, None)
}

/// A DNS query for the address of `name`, to the gateway.
pub fn dns_query(name: &str) -> Template {
    let message = dns_message(name);
    let mut query = udp((GATEWAY_MAC, (GATEWAY_V4, 53).into()), message.len(), None);
    query.0[L4 + 8..].copy_from_slice(&message);
    query
}

/// The message in it: one question, and an OPT record as resolvers send it (RFC 6891).
pub fn dns_message(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message.extend_from_slice(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
    message
}

/// An echo request of 56 bytes.
pub fn ping() -> Template {
    let (from, to) = v4_ends();
    let mut l4 = vec![8, 0, 0, 0, 0, 1, 0, 1];
    l4.resize(64, 0x5a);
    let addresses = (from.ip(), to.ip());
    Template(ip_frame(
        addresses,
        GATEWAY_MAC,
        protocol::ICMP,
        l4,
        8,
        None,
    ))
}

/// Station 1 asks who has the address `target`.
pub fn arp(target: Ipv4Addr) -> Template {
    let from = station(1);
    let mut frame = ethernet(
        MacAddr::BROADCAST,
        from.mac,
        ETHERTYPE_ARP,
        VnetHeader::default(),
    );
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4]);
    frame.extend_from_slice(&OP_REQUEST.to_be_bytes());
    frame.extend_from_slice(&from.mac.0);
    frame.extend_from_slice(&from.v4.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&target.octets());
    Template(frame)
}
