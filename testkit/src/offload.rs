//! What a kernel's offloads do on either side of the TAP, in software.
//!
//! [`cut`] is the way into the container: it checks a frame the switch emitted as strictly as the
//! kernel that has to make sense of it (`virtio_net_hdr_to_skb` in `include/linux/virtio_net.h`,
//! and the checks of `tcp_gso_segment`), and more strictly where a sloppy header would only cost
//! speed. It cuts super-frames into segments and completes checksums: the oracle for what the core
//! sends. [`join`] is the way out: runs of segments become one super-frame with a partial checksum,
//! as a container's kernel with segmentation offload hands them to the TAP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cnet_wire::checksum;
use cnet_wire::vnet::{self, VNET_HDR_LEN, VnetHeader};

use crate::rng::Rng;

const ETH: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where things are in a frame without virtio-net header.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Transport protocol number.
    pub protocol: u8,
    /// Transport header.
    pub l4: usize,
    /// Transport payload; equal to `l4` where the protocol has no header we know.
    pub payload: usize,
    /// End of the IP packet.
    pub end: usize,
    /// Part of a packet.
    pub fragment: bool,
}

fn be16(b: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([b[at], b[at + 1]]))
}

fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// Finds the IP packet in `frame`. `Ok(None)` for other EtherTypes.
pub fn ip_at(frame: &[u8]) -> Result<Option<At>, String> {
    if frame.len() < ETH {
        return Err(format!("a frame of {} bytes", frame.len()));
    }
    let mut at = match be16(frame, 12) {
        0x0800 => ipv4_at(frame)?,
        0x86dd => ipv6_at(frame)?,
        _ => return Ok(None),
    };
    at.payload = match at.protocol {
        _ if at.fragment => at.l4,
        TCP if at.end - at.l4 < 20 => return Err("TCP header cut short".into()),
        TCP => at.l4 + usize::from(frame[at.l4 + 12] >> 4) * 4,
        UDP if at.end - at.l4 < 8 => return Err("UDP header cut short".into()),
        UDP => at.l4 + 8,
        1 | 58 if at.end - at.l4 < 8 => return Err("ICMP header cut short".into()),
        _ => at.l4,
    };
    if at.payload > at.end {
        return Err("data offset past the packet".into());
    }
    Ok(Some(at))
}

fn ipv4_at(frame: &[u8]) -> Result<At, String> {
    let ip = &frame[ETH..];
    if ip.len() < 20 || ip[0] != 0x45 {
        return Err("IPv4 header short, or with options".into());
    }
    let total = be16(ip, 2);
    if total < 20 || total > ip.len() {
        return Err(format!("IPv4 total length {total} of {}", ip.len()));
    }
    if checksum::finish(0, &ip[..20]) != 0 {
        return Err("IPv4 header checksum wrong".into());
    }
    if ip[8] == 0 {
        return Err("TTL 0".into());
    }
    let address = |at: usize| IpAddr::V4(Ipv4Addr::from(be32(ip, at)));
    Ok(At {
        src: address(12),
        dst: address(16),
        protocol: ip[9],
        l4: ETH + 20,
        payload: 0,
        end: ETH + total,
        fragment: be16(ip, 6) & 0x3fff != 0,
    })
}

fn ipv6_at(frame: &[u8]) -> Result<At, String> {
    let ip = &frame[ETH..];
    if ip.len() < 40 || ip[0] >> 4 != 6 {
        return Err("IPv6 header short or wrong".into());
    }
    let total = 40 + be16(ip, 4);
    if total > ip.len() {
        return Err(format!("IPv6 packet length {total} of {}", ip.len()));
    }
    if ip[7] == 0 {
        return Err("hop limit 0".into());
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&ip[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    // Of extension headers, only the fragment header is ever sent by the core.
    let fragment = ip[6] == 44;
    if fragment && total < 48 {
        return Err("fragment header cut short".into());
    }
    Ok(At {
        src: address(8),
        dst: address(24),
        protocol: if fragment { ip[40] } else { ip[6] },
        l4: ETH + if fragment { 48 } else { 40 },
        payload: 0,
        end: ETH + total,
        fragment,
    })
}

/// Finds the TCP segment in `frame`.
pub fn tcp_at(frame: &[u8]) -> Result<At, String> {
    match ip_at(frame)? {
        Some(at) if at.protocol == TCP && !at.fragment => Ok(at),
        _ => Err("not TCP".into()),
    }
}

/// The checksum field's offset in the transport header.
fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        1 | 58 => Some(2),
        _ => None,
    }
}

fn pseudo(at: &At) -> u64 {
    if at.protocol == 1 {
        return 0;
    }
    checksum::pseudo_header(at.src, at.dst, at.protocol, (at.end - at.l4) as u32)
}

/// Checks a frame from the core and returns it as the packets of at most `mtu` bytes that it stands
/// for, complete and without virtio-net header.
pub fn cut(with_header: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, String> {
    let header = VnetHeader::decode(with_header).ok_or("shorter than a virtio-net header")?;
    let frame = &with_header[VNET_HDR_LEN..];
    let Some(at) = ip_at(frame)? else {
        if header.needs_csum() || header.gso_type != vnet::GSO_NONE || frame.len() > ETH + mtu {
            return Err(format!(
                "offload asked for a frame that is not IP: {header:?}"
            ));
        }
        return Ok(vec![frame.to_vec()]);
    };
    if at.end != frame.len() && frame.len() > 60 {
        return Err(format!("{} bytes behind the packet", frame.len() - at.end));
    }
    let mut frame = frame[..at.end].to_vec();
    check_checksum(&header, &frame, &at)?;
    if header.gso_type == vnet::GSO_NONE {
        if at.end - ETH > mtu {
            return Err(format!("{} bytes on a link of {mtu}", at.end - ETH));
        }
        if header.needs_csum() {
            complete(&mut frame, &at);
        }
        return Ok(vec![frame]);
    }
    segments(&header, &frame, &at, mtu)
}

fn check_checksum(header: &VnetHeader, frame: &[u8], at: &At) -> Result<(), String> {
    let field = checksum_offset(at.protocol);
    if !header.needs_csum() {
        let skip = at.fragment || field.is_none();
        // UDP over IPv4 may go without (RFC 768).
        let none = at.protocol == UDP && at.src.is_ipv4() && be16(frame, at.l4 + 6) == 0;
        if !skip && !none && checksum::finish(pseudo(at), &frame[at.l4..at.end]) != 0 {
            return Err(format!("transport checksum wrong: {at:?}"));
        }
        return Ok(());
    }
    let (start, offset) = (header.csum_start.into(), header.csum_offset.into());
    if (start, Some(offset)) != (at.l4, field) || at.fragment {
        return Err(format!("checksum to be put at {start}+{offset}: {at:?}"));
    }
    let partial = checksum::fold(pseudo(at));
    if be16(frame, at.l4 + offset) != usize::from(partial) {
        return Err("partial checksum is not the pseudo-header's".into());
    }
    if usize::from(header.hdr_len) != at.payload {
        return Err(format!(
            "hdr_len {} for headers of {}",
            header.hdr_len, at.payload
        ));
    }
    Ok(())
}

/// Computes the transport checksum of a plain frame, if it is a packet of a known protocol.
pub fn complete_checksum(frame: &mut [u8]) {
    if let Ok(Some(at)) = ip_at(frame)
        && !at.fragment
    {
        complete(frame, &at);
    }
}

/// Computes the transport checksum, whose field may hold anything.
fn complete(frame: &mut [u8], at: &At) {
    let Some(offset) = checksum_offset(at.protocol) else {
        return;
    };
    let field = at.l4 + offset;
    frame[field..field + 2].fill(0);
    let mut sum = checksum::finish(pseudo(at), &frame[at.l4..at.end]);
    if sum == 0 && at.protocol == UDP {
        sum = 0xffff;
    }
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

fn segments(
    header: &VnetHeader,
    frame: &[u8],
    at: &At,
    mtu: usize,
) -> Result<Vec<Vec<u8>>, String> {
    let expected = match (at.protocol, at.src.is_ipv4()) {
        (TCP, true) => vnet::GSO_TCPV4,
        (TCP, false) => vnet::GSO_TCPV6,
        (UDP, _) => vnet::GSO_UDP_L4,
        _ => return Err(format!("segmentation of protocol {}", at.protocol)),
    };
    let size = usize::from(header.gso_size);
    let payload = at.end - at.payload;
    if header.gso() != expected || !header.needs_csum() {
        return Err(format!("a super-frame with {header:?}"));
    }
    if size == 0 || at.payload - ETH + size > mtu {
        return Err(format!("segments of {size} on a link of {mtu}"));
    }
    if payload <= size {
        return Err(format!("a super-frame of one segment: {payload} of {size}"));
    }
    if at.protocol == TCP && frame[at.l4 + 13] & 0x06 != 0 {
        return Err("SYN or RST on a super-frame".into());
    }
    let mut out = Vec::new();
    for (n, part) in frame[at.payload..at.end].chunks(size).enumerate() {
        let last = (n + 1) * size >= payload;
        out.push(segment(frame, at, part, n, n * size, last));
    }
    Ok(out)
}

/// The `n`th packet of a super-frame, carrying `part` from `offset` on.
fn segment(frame: &[u8], at: &At, part: &[u8], n: usize, offset: usize, last: bool) -> Vec<u8> {
    let mut s = frame[..at.payload].to_vec();
    s.extend_from_slice(part);
    let len = s.len() - ETH;
    if at.src.is_ipv4() {
        s[ETH + 2..ETH + 4].copy_from_slice(&(len as u16).to_be_bytes());
        let id = (be16(frame, ETH + 4) as u16).wrapping_add(n as u16);
        s[ETH + 4..ETH + 6].copy_from_slice(&id.to_be_bytes());
        s[ETH + 10..ETH + 12].fill(0);
        let sum = checksum::finish(0, &s[ETH..ETH + 20]);
        s[ETH + 10..ETH + 12].copy_from_slice(&sum.to_be_bytes());
    } else {
        s[ETH + 4..ETH + 6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
    }
    if at.protocol == TCP {
        let seq = be32(frame, at.l4 + 4).wrapping_add(offset as u32);
        s[at.l4 + 4..at.l4 + 8].copy_from_slice(&seq.to_be_bytes());
        let flags = &mut s[at.l4 + 13];
        if !last {
            *flags &= !0x09; // FIN, PSH
        }
        if n > 0 {
            *flags &= !0x80; // CWR
        }
    } else {
        s[at.l4 + 4..at.l4 + 6].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
    }
    let at = At {
        end: s.len(),
        ..*at
    };
    complete(&mut s, &at);
    s
}

/// How a container's kernel hands frames to the TAP.
#[derive(Clone, Copy, Debug)]
pub struct Offloads {
    /// Leaves transport checksums to the receiver.
    pub checksum: bool,
    /// Makes super-frames of runs of segments. Implies `checksum`.
    pub segmentation: bool,
}

/// Turns a burst of plain frames into what comes out of the TAP.
pub fn join(frames: Vec<Vec<u8>>, offloads: Offloads, rng: &mut Rng) -> Vec<Vec<u8>> {
    let mut out: Vec<(Vec<u8>, Option<At>, usize)> = Vec::new();
    for frame in frames {
        let at = tcp_at(&frame).ok();
        if let (true, Some(at), Some((run, Some(head), size))) =
            (offloads.segmentation, &at, out.last_mut())
            && continues(run, head, *size, &frame, at)
            // A run ends somewhere: it was a send of its own.
            && !rng.chance(100)
        {
            run.extend_from_slice(&frame[at.payload..at.end]);
            run[head.l4 + 13] |= frame[at.l4 + 13] & 0x09;
            head.end = run.len();
            continue;
        }
        let size = at.map_or(0, |a| a.end - a.payload);
        out.push((frame, at, size));
    }
    out.into_iter()
        .map(|(frame, at, size)| with_header(frame, at, size, offloads))
        .collect()
}

/// Whether `frame` is the next segment of the run, as GSO would have cut it.
fn continues(run: &[u8], head: &At, size: usize, frame: &[u8], at: &At) -> bool {
    let len = head.end - head.payload;
    let next = be32(run, head.l4 + 4).wrapping_add(len as u32);
    let part = at.end - at.payload;
    let same = |from: usize, to: usize| {
        run[head.l4 + from..head.l4 + to] == frame[at.l4 + from..at.l4 + to]
    };
    run.len() == head.end
        && (head.src, head.dst, head.payload) == (at.src, at.dst, at.payload)
        && same(0, 4)
        && same(8, 13)
        && same(14, 16)
        && run[head.l4 + 20..head.payload] == frame[at.l4 + 20..at.payload]
        && be32(frame, at.l4 + 4) == next
        && part > 0
        && part <= size
        && len.is_multiple_of(size)
        && run[head.l4 + 13] & 0x2f == 0 // neither FIN, SYN, RST, PSH nor URG so far
        && frame[at.l4 + 13] & 0x26 == 0
        && head.end - ETH + part <= 65535
}

fn with_header(mut frame: Vec<u8>, at: Option<At>, size: usize, offloads: Offloads) -> Vec<u8> {
    let mut header = VnetHeader::default();
    if let Some(at) = at.filter(|_| offloads.checksum || offloads.segmentation) {
        frame.truncate(at.end);
        header.flags = vnet::F_NEEDS_CSUM;
        header.hdr_len = at.payload as u16;
        header.csum_start = at.l4 as u16;
        header.csum_offset = 16;
        let len = at.end - ETH;
        if at.src.is_ipv4() {
            frame[ETH + 2..ETH + 4].copy_from_slice(&(len as u16).to_be_bytes());
            frame[ETH + 10..ETH + 12].fill(0);
            let sum = checksum::finish(0, &frame[ETH..ETH + 20]);
            frame[ETH + 10..ETH + 12].copy_from_slice(&sum.to_be_bytes());
        } else {
            frame[ETH + 4..ETH + 6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
        let partial = checksum::fold(pseudo(&at));
        frame[at.l4 + 16..at.l4 + 18].copy_from_slice(&partial.to_be_bytes());
        if at.end - at.payload > size {
            header.gso_size = size as u16;
            header.gso_type = if at.src.is_ipv4() {
                vnet::GSO_TCPV4
            } else {
                vnet::GSO_TCPV6
            };
        }
    }
    let mut out = header.encode().to_vec();
    out.append(&mut frame);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{IpAddress, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

    /// Plain segments of a stream, over IPv4 or IPv6.
    fn stream(v6: bool, sizes: &[usize], fin: bool) -> Vec<Vec<u8>> {
        // Longer than 60 lines: one header after the other, by hand.
        let mut seq = u32::MAX - 1000;
        let mut out = Vec::new();
        for (n, &size) in sizes.iter().enumerate() {
            let data: Vec<u8> = (0..size).map(|i| (i + n) as u8).collect();
            let (src, dst): (IpAddress, IpAddress) = if v6 {
                (
                    IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, 1),
                    IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, 2),
                )
            } else {
                (IpAddress::v4(10, 0, 0, 1), IpAddress::v4(10, 0, 0, 2))
            };
            let last = n + 1 == sizes.len();
            let repr = TcpRepr {
                src_port: 1000,
                dst_port: 80,
                control: if last && fin {
                    TcpControl::Fin
                } else {
                    TcpControl::None
                },
                seq_number: TcpSeqNumber(seq as i32),
                ack_number: Some(TcpSeqNumber(7)),
                window_len: 512,
                window_scale: None,
                max_seg_size: None,
                sack_permitted: false,
                sack_ranges: [None; 3],
                timestamp: None,
                payload: &data,
            };
            let mut frame = vec![2; 12];
            let len = repr.buffer_len();
            if v6 {
                frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend_from_slice(&(len as u16).to_be_bytes());
                frame.extend_from_slice(&[6, 64]);
            } else {
                frame.extend_from_slice(&[8, 0, 0x45, 0]);
                frame.extend_from_slice(&((20 + len) as u16).to_be_bytes());
                frame.extend_from_slice(&[0, n as u8, 0x40, 0, 64, 6, 0, 0]);
            }
            for a in [src, dst] {
                match a {
                    IpAddress::Ipv4(a) => frame.extend_from_slice(&a.octets()),
                    IpAddress::Ipv6(a) => frame.extend_from_slice(&a.octets()),
                }
            }
            if !v6 {
                let sum = checksum::finish(0, &frame[14..34]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            let l4 = frame.len();
            frame.resize(l4 + len, 0);
            let caps = smoltcp::phy::ChecksumCapabilities::default();
            repr.emit(
                &mut TcpPacket::new_unchecked(&mut frame[l4..]),
                &src,
                &dst,
                &caps,
            );
            out.push(frame);
            seq = seq.wrapping_add(size as u32);
        }
        out
    }

    #[test]
    fn what_is_joined_is_cut_into_the_same_segments() {
        for v6 in [false, true] {
            for fin in [false, true] {
                let frames = stream(v6, &[1400, 1400, 1400, 100, 1400, 0], fin);
                let all = Offloads {
                    checksum: true,
                    segmentation: true,
                };
                let mut rng = Rng::new(1);
                let joined = join(frames.clone(), all, &mut rng);
                assert!(joined.len() < frames.len());
                let again: Vec<_> = joined.iter().flat_map(|f| cut(f, 1500).unwrap()).collect();
                assert_eq!(again, frames);
            }
        }
    }

    #[test]
    fn lies_are_found() {
        let all = Offloads {
            checksum: true,
            segmentation: true,
        };
        let good = join(stream(false, &[1000, 1000], false), all, &mut Rng::new(1)).remove(0);
        assert_eq!(cut(&good, 1500).unwrap().len(), 2);
        let spoil = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bad = good.clone();
            change(&mut bad);
            cut(&bad, 1500).unwrap_err()
        };
        let changed = |change: &dyn Fn(&mut VnetHeader)| {
            spoil(&|b| {
                let mut h = VnetHeader::decode(b).unwrap();
                change(&mut h);
                b[..VNET_HDR_LEN].copy_from_slice(&h.encode());
            })
        };
        assert!(changed(&|h| h.hdr_len += 1).contains("hdr_len"));
        assert!(changed(&|h| h.gso_size = 0).contains("segments of 0"));
        assert!(changed(&|h| h.gso_size = 1480).contains("segments of 1480"));
        assert!(changed(&|h| h.gso_type = vnet::GSO_TCPV6).contains("super-frame"));
        assert!(changed(&|h| h.flags = 0).contains("checksum wrong"));
        assert!(changed(&|h| h.csum_start = 20).contains("to be put"));
        assert!(spoil(&|b| b[VNET_HDR_LEN + 50] ^= 1).contains("partial"));
        assert!(spoil(&|b| b[VNET_HDR_LEN + 22] ^= 1).contains("IPv4 header"));
        assert!(cut(&good, 900).is_err());
    }
}
