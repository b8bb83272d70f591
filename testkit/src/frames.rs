//! Frames made by hand, as a container would send them: virtio-net header first, to the gateway.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cnet_wire::MacAddr;
use cnet_wire::checksum;
use cnet_wire::vnet::VNET_HDR_LEN;

use crate::addresses::{GATEWAY_MAC, MAC};
use crate::offload;

/// TCP control bits.
pub mod flag {
    /// No more data from sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset the connection.
    pub const RST: u8 = 4;
    /// Push function.
    pub const PSH: u8 = 8;
    /// The acknowledgement number is meant.
    pub const ACK: u8 = 16;
    /// The urgent pointer is meant.
    pub const URG: u8 = 32;
}

/// A frame of any kind.
pub fn ethernet(to: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; VNET_HDR_LEN];
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&MAC.0);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// An IP packet to the gateway's MAC address, without extension headers; checksums are completed.
pub fn ip(src: IpAddr, dst: IpAddr, protocol: u8, hop_limit: u8, l4: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let ethertype = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            packet.extend_from_slice(&[0x45, 0]);
            packet.extend_from_slice(&((20 + l4.len()) as u16).to_be_bytes());
            packet.extend_from_slice(&[0, 1, 0, 0, hop_limit, protocol, 0, 0]);
            packet.extend_from_slice(&src.octets());
            packet.extend_from_slice(&dst.octets());
            let sum = checksum::finish(0, &packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            0x0800
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            packet.extend_from_slice(&[0x60, 0, 0, 0]);
            packet.extend_from_slice(&(l4.len() as u16).to_be_bytes());
            packet.extend_from_slice(&[protocol, hop_limit]);
            packet.extend_from_slice(&src.octets());
            packet.extend_from_slice(&dst.octets());
            0x86dd
        }
        _ => unreachable!("addresses of two families"),
    };
    packet.extend_from_slice(l4);
    let mut frame = ethernet(GATEWAY_MAC, ethertype, &packet);
    offload::complete_checksum(&mut frame[VNET_HDR_LEN..]);
    frame
}

/// A TCP segment.
#[derive(Clone, Debug)]
pub struct Tcp<'a> {
    /// The sender.
    pub from: SocketAddr,
    /// The destination.
    pub to: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Control bits, of [`flag`].
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Padded to a multiple of four by the caller.
    pub options: &'a [u8],
    /// The data.
    pub payload: &'a [u8],
}

impl Tcp<'_> {
    /// The whole frame, checksums completed.
    pub fn frame(&self) -> Vec<u8> {
        let mut l4 = Vec::new();
        l4.extend_from_slice(&self.from.port().to_be_bytes());
        l4.extend_from_slice(&self.to.port().to_be_bytes());
        l4.extend_from_slice(&self.seq.to_be_bytes());
        l4.extend_from_slice(&self.ack.to_be_bytes());
        l4.push((((20 + self.options.len()) / 4) << 4) as u8);
        l4.push(self.flags);
        l4.extend_from_slice(&self.window.to_be_bytes());
        l4.extend_from_slice(&[0, 0]);
        l4.extend_from_slice(&self.urgent.to_be_bytes());
        l4.extend_from_slice(self.options);
        l4.extend_from_slice(self.payload);
        ip(self.from.ip(), self.to.ip(), 6, 64, &l4)
    }
}

/// A UDP datagram.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend_from_slice(&from.port().to_be_bytes());
    l4.extend_from_slice(&to.port().to_be_bytes());
    l4.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    l4.extend_from_slice(&[0, 0]);
    l4.extend_from_slice(payload);
    ip(from.ip(), to.ip(), 17, 64, &l4)
}

/// An ICMP or ICMPv6 message; `body` starts with type and code, the checksum after them is
/// completed.
pub fn icmp(from: IpAddr, to: IpAddr, hop_limit: u8, body: &[u8]) -> Vec<u8> {
    ip(
        from,
        to,
        if from.is_ipv4() { 1 } else { 58 },
        hop_limit,
        body,
    )
}

/// An ARP packet for IPv4: `operation` 1 asks, 2 answers.
pub fn arp(operation: u8, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut b = vec![0, 1, 8, 0, 6, 4, 0, operation];
    b.extend_from_slice(&MAC.0);
    b.extend_from_slice(&sender.octets());
    b.extend_from_slice(&[0; 6]);
    b.extend_from_slice(&target.octets());
    ethernet(MacAddr::BROADCAST, 0x0806, &b)
}

/// Cuts the packet in `frame` into fragments with `size` bytes of data each, a multiple of eight.
pub fn fragments(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let ip = VNET_HDR_LEN + 14;
    let v4 = frame[ip] >> 4 == 4;
    let header = ip + if v4 { 20 } else { 40 };
    let data = &frame[header..];
    let pieces = data.chunks(size).enumerate().map(|(n, piece)| {
        let more = (n + 1) * size < data.len();
        let offset = (n * size) as u16;
        let mut f = frame[..header].to_vec();
        if v4 {
            f[ip + 2..ip + 4].copy_from_slice(&((20 + piece.len()) as u16).to_be_bytes());
            let field = (offset / 8) | if more { 0x2000 } else { 0 };
            f[ip + 6..ip + 8].copy_from_slice(&field.to_be_bytes());
            complete_ip(&mut f);
        } else {
            f[ip + 4..ip + 6].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
            let next = std::mem::replace(&mut f[ip + 6], 44);
            f.extend_from_slice(&[next, 0]);
            f.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
            f.extend_from_slice(&[0, 0, 0, 7]);
        }
        f.extend_from_slice(piece);
        f
    });
    pieces.collect()
}

/// Computes the checksum of an IPv4 header of any length, if there is one.
pub fn complete_ip(frame: &mut [u8]) {
    let Some(ip) = frame.get_mut(VNET_HDR_LEN + 14..) else {
        return;
    };
    let len = ip.first().map_or(0, |b| usize::from(b & 15) * 4);
    if ip.len() >= len && len >= 20 && ip[0] >> 4 == 4 {
        ip[10..12].fill(0);
        let sum = checksum::finish(0, &ip[..len]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}
