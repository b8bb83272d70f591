//! Builds frames byte by byte for the tests, right or deliberately wrong, with sums computed the
//! slow way.

use std::net::{Ipv4Addr, Ipv6Addr};

use cnet_wire::vnet::{VNET_HDR_LEN, VnetHeader};
use cnet_wire::{DropReason, Frame, IpHeader, L3, MacAddr};

/// Bytes of an Ethernet header.
pub const ETH: usize = 14;
/// The IP MTU of the tests' link, in bytes.
pub const MTU: usize = 1500;
/// The MAC address of station A.
pub const MAC_A: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0xa]);
/// The MAC address of station B.
pub const MAC_B: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0xb]);
/// The IPv4 address of station A.
pub const A4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// The IPv4 address of station B.
pub const B4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// The IPv6 address of station A.
pub const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xa);
/// The IPv6 address of station B.
pub const B6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xb);

/// A frame with an empty virtio-net header in front.
pub fn frame(dst: MacAddr, src: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut f = vec![0; VNET_HDR_LEN];
    f.extend(dst.0);
    f.extend(src.0);
    f.extend(ethertype.to_be_bytes());
    f.extend(payload);
    f
}

/// An Ethernet frame from A to B with the IP packet's own EtherType.
pub fn ip_frame(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    frame(MAC_B, MAC_A, ethertype, packet)
}

/// `frame` with `vnet` in the place of its virtio-net header.
pub fn with_vnet(mut frame: Vec<u8>, vnet: VnetHeader) -> Vec<u8> {
    frame[..VNET_HDR_LEN].copy_from_slice(&vnet.encode());
    frame
}

/// The complemented ones' complement sum of 16-bit words, the slow way.
pub fn sum(data: &[u8]) -> [u8; 2] {
    let mut s = 0u32;
    for c in data.chunks(2) {
        s += u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]));
        s = (s & 0xffff) + (s >> 16);
    }
    (!(s as u16)).to_be_bytes()
}

/// An IPv4 packet with `options` (a multiple of four bytes) and the flags-and-offset word.
pub fn v4_with(
    protocol: u8,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    options: &[u8],
    flags: u16,
    data: &[u8],
) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut p = vec![0x40 | (header_len / 4) as u8, 0];
    p.extend(((header_len + data.len()) as u16).to_be_bytes());
    p.extend(0x1234u16.to_be_bytes());
    p.extend(flags.to_be_bytes());
    p.extend([64, protocol, 0, 0]);
    p.extend(src.octets());
    p.extend(dst.octets());
    p.extend(options);
    p.extend(data);
    fix_v4(&mut p);
    p
}

/// An IPv4 packet from A to B that carries `data`.
pub fn v4(protocol: u8, data: &[u8]) -> Vec<u8> {
    v4_with(protocol, A4, B4, &[], 0, data)
}

/// Sets the header checksum right after a change.
pub fn fix_v4(p: &mut [u8]) {
    let header_len = (usize::from(p[0] & 15) * 4).min(p.len());
    p[10..12].fill(0);
    let s = sum(&p[..header_len]);
    p[10..12].copy_from_slice(&s);
}

/// An IPv6 packet with these ends, whose first header is `next`.
pub fn v6_with(next: u8, src: Ipv6Addr, dst: Ipv6Addr, data: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0];
    p.extend((data.len() as u16).to_be_bytes());
    p.extend([next, 64]);
    p.extend(src.octets());
    p.extend(dst.octets());
    p.extend(data);
    p
}

/// An IPv6 packet from A to B, whose first header is `next`.
pub fn v6(next: u8, data: &[u8]) -> Vec<u8> {
    v6_with(next, A6, B6, data)
}

/// An extension header of `units` * 8 bytes, filled by one PadN option, with `data` behind it.
pub fn extension(next: u8, units: u8, data: &[u8]) -> Vec<u8> {
    let mut e = vec![0; usize::from(units) * 8];
    e[0] = next;
    e[1] = units - 1;
    e[2] = 1;
    e[3] = units * 8 - 4;
    e.extend(data);
    e
}

/// A fragment header with `data` behind it; `offset` in bytes.
pub fn fragment6(next: u8, offset: u16, more: bool, data: &[u8]) -> Vec<u8> {
    let mut e = vec![next, 0];
    e.extend((offset | u16::from(more)).to_be_bytes());
    e.extend(0xdead_beef_u32.to_be_bytes());
    e.extend(data);
    e
}

/// A UDP datagram without checksum.
pub fn udp(src: u16, dst: u16, payload: &[u8]) -> Vec<u8> {
    let mut d = Vec::new();
    d.extend(src.to_be_bytes());
    d.extend(dst.to_be_bytes());
    d.extend(((8 + payload.len()) as u16).to_be_bytes());
    d.extend([0, 0]);
    d.extend(payload);
    d
}

/// A TCP segment of 20 header bytes without checksum.
pub fn tcp(payload: &[u8]) -> Vec<u8> {
    let mut s = vec![0; 20];
    s[0..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
    s[12] = 5 << 4;
    s[13] = 0x10;
    s.extend(payload);
    s
}

/// An ICMP or ICMPv6 message with its sum still zero.
pub fn icmp(kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut m = vec![kind, code, 0, 0];
    m.extend(body);
    m
}

/// An ARP body with these fields.
pub fn arp(
    operation: u16,
    sender_mac: MacAddr,
    sender_ip: Ipv4Addr,
    target_mac: MacAddr,
    target_ip: Ipv4Addr,
) -> Vec<u8> {
    let mut b = vec![0, 1, 8, 0, 6, 4];
    b.extend(operation.to_be_bytes());
    b.extend(sender_mac.0);
    b.extend(sender_ip.octets());
    b.extend(target_mac.0);
    b.extend(target_ip.octets());
    b
}

/// Why the frame is dropped; panics if it is not.
pub fn refused(buf: &[u8]) -> DropReason {
    match Frame::parse(buf, MTU) {
        Err(reason) => reason,
        Ok(f) => panic!("accepted: {f:?}"),
    }
}

/// The frame's IP header; panics if it is dropped or is not IP.
pub fn header(buf: &[u8]) -> IpHeader {
    match Frame::parse(buf, MTU) {
        Ok(Frame { l3: L3::Ip(ip), .. }) => ip,
        other => panic!("not an IP frame: {other:?}"),
    }
}
