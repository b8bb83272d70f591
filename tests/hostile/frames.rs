//! Frames that were right before something in them was changed.

use std::net::IpAddr;

use cnet_wire::checksum;

use crate::lab::raw::{self, Mac, octets};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Where the IPv4 header's checksum is in a frame.
const IPV4_CHECKSUM: usize = ETHERNET + 10;

/// A station's hardware address and one of its IP addresses.
pub type End = (Mac, IpAddr);

/// `frame` after `change`, with the checksum of its IPv4 header as it ought to be then.
pub fn changed(frame: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = frame.to_vec();
    change(&mut frame);
    complete(&mut frame);
    frame
}

/// Completes the checksum of an IPv4 header, as long as it says, if the frame has one.
fn complete(frame: &mut [u8]) {
    let is_ipv4 = frame.get(12..14) == Some(&[8, 0]);
    let Some(first) = frame.get(ETHERNET).filter(|_| is_ipv4) else {
        return;
    };
    let end = ETHERNET + usize::from(first & 15).max(5) * 4;
    if frame.len() < end {
        return;
    }
    frame[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].fill(0);
    let sum = checksum::finish(0, &frame[ETHERNET..end]);
    frame[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
}

/// An IPv4 packet: `fragment` is the word of flags and offset.
pub fn ipv4(from: End, to: End, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    with_options(from, to, protocol, (7, fragment), &[], payload)
}

/// An IPv4 packet with options, and its identification and word of flags and offset.
pub fn with_options(
    (from_mac, from): End,
    (to_mac, to): End,
    protocol: u8,
    (id, fragment): (u16, u16),
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0, "options fill words");
    let words = 5 + options.len() / 4;
    let length = u16::try_from(words * 4 + payload.len()).expect("a packet");
    let mut packet = vec![0x40 | u8::try_from(words).expect("a header"), 0];
    for field in [length, id, fragment] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend([64, protocol, 0, 0]);
    packet.extend([octets(from), octets(to)].concat());
    packet.extend(options);
    packet.extend(payload);
    changed(&raw::ethernet(from_mac, to_mac, 0x0800, &packet), |_| {})
}

/// An IPv6 packet whose first header behind the fixed one is `next`.
pub fn ipv6((from_mac, from): End, (to_mac, to): End, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a packet");
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([next, 64]);
    packet.extend([octets(from), octets(to)].concat());
    packet.extend(payload);
    raw::ethernet(from_mac, to_mac, 0x86dd, &packet)
}

/// An IPv6 fragment header (RFC 8200 section 4.5): offset in units of 8 bytes.
pub fn fragment_header(next: u8, offset: u16, more: bool, id: u32) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend((offset << 3 | u16::from(more)).to_be_bytes());
    header.extend(id.to_be_bytes());
    header
}

/// The transport part of a packet that `raw` has made: what is behind its IP header.
pub fn transport(frame: &[u8]) -> Vec<u8> {
    let header = if frame[12..14] == [8, 0] { 20 } else { 40 };
    frame[ETHERNET + header..].to_vec()
}

/// A TCP segment with these flags and options, from port `ports.0` to `ports.1`.
pub fn tcp(
    from: End,
    to: End,
    ports: (u16, u16),
    (seq, ack): (u32, u32),
    flags: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let words = u8::try_from(5 + options.len().div_ceil(4)).expect("a header");
    let mut segment = Vec::new();
    segment.extend([ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat());
    segment.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
    segment.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    segment.resize(usize::from(words) * 4, 0);
    segment.extend(payload);
    raw::ip(from, to, 6, 16, &segment)
}
