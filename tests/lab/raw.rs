//! Frames made by hand, sent from inside a namespace by a packet socket (packet(7)): what a
//! container does that minds no rules.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use cnet_wire::checksum;
use rustix::net::{SendFlags, send};

use super::namespace::Namespace;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Every station.
pub const BROADCAST: Mac = [0xff; 6];

/// An interface that takes any frame.
pub struct Wire(OwnedFd);

impl Wire {
    /// That of `interface` in `namespace`.
    pub fn open(namespace: &Namespace, interface: &str) -> Self {
        namespace.enter(|| {
            let index = cnet_tap::netif::index_of(interface).expect("an interface");
            let socket = cnet_tap::device::raw::sender(index);
            let socket = socket.expect("a packet socket as root");
            Self(socket)
        })
    }

    /// Sends a frame; waits where the interface's queue is full.
    pub fn send(&self, frame: &[u8]) {
        let sent = send(&self.0, frame, SendFlags::empty());
        assert_eq!(sent, Ok(frame.len()), "{frame:02x?}");
    }
}

/// An Ethernet frame.
pub fn ethernet(from: Mac, to: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

/// An ARP packet in its frame (RFC 826): `operation` 1 asks, 2 answers; sender and target by
/// hardware and IPv4 address.
pub fn arp(to: Mac, operation: u8, sender: (Mac, IpAddr), target: (Mac, IpAddr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    for (mac, address) in [sender, target] {
        packet.extend(mac);
        packet.extend(octets(address));
    }
    ethernet(sender.0, to, 0x0806, &packet)
}

/// An IP packet in its frame; `hop_limit` 255 is what neighbour discovery wants. The checksum of
/// `l4`, which is at `checksum_at` and 0, is completed.
pub fn ip(
    (from_mac, from): (Mac, IpAddr),
    (to_mac, to): (Mac, IpAddr),
    protocol: u8,
    checksum_at: usize,
    l4: &[u8],
) -> Vec<u8> {
    const HOP_LIMIT: u8 = 255;
    const ICMP: u8 = 1;
    let mut l4 = l4.to_vec();
    let length = u16::try_from(l4.len()).expect("a packet");
    let mut sum = Vec::new();
    if protocol != ICMP {
        // The pseudo-header (RFC 768, RFC 8200 section 8.1).
        sum.extend([octets(from), octets(to)].concat());
        sum.extend(length.to_be_bytes());
        sum.extend([0, protocol]);
    }
    // Last, since it may be of odd length.
    sum.extend(&l4);
    let sum = checksum::finish(0, &sum);
    l4[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    let mut packet = Vec::new();
    if from.is_ipv4() {
        packet.extend([0x45, 0]);
        packet.extend((length + 20).to_be_bytes());
        packet.extend([0, 1, 0, 0, HOP_LIMIT, protocol, 0, 0]);
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([protocol, HOP_LIMIT]);
    }
    packet.extend([octets(from), octets(to)].concat());
    if from.is_ipv4() {
        let sum = checksum::finish(0, &packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet.extend(l4);
    let ethertype = if from.is_ipv4() { 0x0800 } else { 0x86dd };
    ethernet(from_mac, to_mac, ethertype, &packet)
}

/// A UDP datagram in its frame.
pub fn udp(from: (Mac, IpAddr, u16), to: (Mac, IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a datagram");
    let mut l4 = Vec::new();
    for field in [from.2, to.2, length, 0] {
        l4.extend(field.to_be_bytes());
    }
    l4.extend(payload);
    ip((from.0, from.1), (to.0, to.1), 17, 6, &l4)
}

/// The bytes of an address.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
