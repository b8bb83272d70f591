//! Fragments from containers, put together to whole packets.
//!
//! Theory of operation. Each fragment's data goes straight to its place in a buffer that has room
//! for a frame's headers in front, and the ranges that have arrived are kept beside it, sorted and
//! merged. When they have become one range up to the known end, the headers are written and the
//! buffer *is* the frame: a packet that was never fragmented, with IPv4 options and IPv6 extension
//! headers before the fragment header left out.
//!
//! Invariants.
//! - Overlap discards the datagram, and what else comes of it until its time is over (RFC 5722; for
//!   IPv4 we are as strict). An exact repetition is not an overlap (RFC 8200 section 4.5).
//! - A datagram never ends behind its known end, nor makes a packet of more than 65,535 bytes, the
//!   IPv6 header not counted in (RFC 8200 section 4.5).
//! - Memory is bounded: [`MAX_BYTES`] and [`MAX_DATAGRAMS`] in all, [`MAX_BYTES_PER_PORT`] and
//!   [`MAX_DATAGRAMS_PER_PORT`] for one port, [`MAX_FRAGMENTS`] a datagram. A port is what counts as
//!   one source: addresses inside a container are the container's to invent. The oldest datagram of
//!   the port (or of all) gives way: honest fragments come in one burst, so what is old will hardly
//!   be completed.
//! - All datagrams live [`LIFETIME`] from their first fragment on, hence the queue is in the order
//!   of deadlines. It is short, and searched linearly.
//!
//! RFC 791, RFC 815, RFC 8200 section 4.5, RFC 3168 section 5.3 (ECN). Tiny first fragments
//! (RFC 1858), header chains that go on in a later fragment (RFC 7112), fragmented neighbour
//! discovery (RFC 6980) and atomic fragments (RFC 6946) are [`Frame::parse`]'s and do not get here.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::Range;

use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropCounters, DropReason, Frame, IpHeader, L3, PortId, VnetHeader};

use super::emit::{IP_OFFSET, set_ipv4_fragment};
use cnet_wire::headers::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpOut, Link, MAX_IPV6_PACKET, l4_offset, max_packet,
    write_headers,
};

/// How long a datagram may take to complete (RFC 791 says 15 s at least, RFC 8200 60 s at most).
pub const LIFETIME: Duration = Duration::from_secs(30);
/// Datagrams that may be incomplete at a time.
pub const MAX_DATAGRAMS: usize = 256;
/// Datagrams of one port that may be incomplete at a time.
pub const MAX_DATAGRAMS_PER_PORT: usize = 64;
/// Bytes of buffers in all.
pub const MAX_BYTES: usize = 8 << 20;
/// Bytes of buffers for one port.
pub const MAX_BYTES_PER_PORT: usize = 2 << 20;
/// Fragments a datagram; 64 KiB at an MTU of 576 take 119.
pub const MAX_FRAGMENTS: usize = 256;
/// Longest part of an incomplete packet that is quoted when its time is over.
const QUOTE_LEN: usize = 1280;

/// What fragments of one datagram have in common. IPv6 leaves out the protocol, which only the
/// first fragment tells (RFC 8200 section 4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    port: PortId,
    src: IpAddr,
    dst: IpAddr,
    protocol: Option<u8>,
    id: u32,
}

/// What only the fragment at offset 0 says.
#[derive(Clone, Copy, Debug)]
struct First {
    protocol: u8,
    hop_limit: u8,
    tos: u8,
}

#[derive(Debug)]
struct Datagram {
    key: Key,
    link: Link,
    deadline: Instant,
    /// Room for headers, then for data. Empty once `discarded`.
    buf: Vec<u8>,
    /// Ranges of data that are there, sorted, none touching another.
    have: Vec<Range<usize>>,
    fragments: usize,
    total: Option<usize>,
    first: Option<First>,
    /// One bit for each ECN codepoint seen.
    ecn: u8,
    /// Overlapped: kept to swallow the rest.
    discarded: bool,
}

/// A packet that came in fragments, as one frame.
#[derive(Debug)]
pub struct ReassembledFrame {
    bytes: Vec<u8>,
}

impl ReassembledFrame {
    /// The frame, virtio-net header first.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Checks and describes the frame. Unlike any other IPv6 packet this one may be fragmented on
    /// its further way: its sender did so already, and it cannot be done for him now.
    pub fn parse(&self) -> Result<Frame<'_>, DropReason> {
        let mut frame = Frame::parse(&self.bytes, MAX_IPV6_PACKET)?;
        if let L3::Ip(ip) = &mut frame.l3 {
            ip.dont_fragment = false;
        }
        Ok(frame)
    }
}

/// A datagram whose time was over before it was whole, for an ICMP error to its sender.
#[derive(Clone, Copy, Debug)]
pub struct Expired<'a> {
    /// The way back to the sender.
    pub link: Link,
    /// The sender.
    pub src: IpAddr,
    /// Where the datagram was sent to.
    pub dst: IpAddr,
    /// Start of the packet, IP header first.
    pub quote: &'a [u8],
}

/// The table of incomplete datagrams.
#[derive(Debug, Default)]
pub struct Reassembly {
    datagrams: VecDeque<Datagram>,
    drops: DropCounters,
}

impl Reassembly {
    /// An empty table.
    pub fn new() -> Reassembly {
        Reassembly::default()
    }

    /// Takes in a fragment: `ip` is `frame`'s header. Returns the whole packet if this completed it.
    ///
    /// # Errors
    /// The reason why the fragment, and with [`DropReason::BadFragment`] its datagram, is dropped.
    pub fn handle_fragment(
        &mut self,
        now: Instant,
        port: PortId,
        frame: &Frame<'_>,
        ip: &IpHeader,
    ) -> Result<Option<ReassembledFrame>, DropReason> {
        let fragment = ip.fragment.ok_or(DropReason::BadFragment)?;
        let data = frame.l4(ip);
        let v6 = ip.src.is_ipv6();
        let key = Key {
            port,
            src: ip.src,
            dst: ip.dst,
            protocol: (!v6).then_some(ip.protocol),
            id: fragment.id,
        };
        let start = fragment.offset as usize;
        let range = start..start + data.len();
        let limit = max_packet(v6) - if v6 { IPV6_HEADER_LEN } else { IPV4_HEADER_LEN };
        let odd = fragment.more && !data.len().is_multiple_of(8) || !start.is_multiple_of(8);
        if data.is_empty() || odd || range.end > limit {
            self.discard(&key);
            return Err(DropReason::BadFragment);
        }
        let i = self.find_or_start(now, key, frame)?;
        let Some(grow) = self.datagrams[i].growth(range.end, limit) else {
            return Err(DropReason::BadFragment);
        };
        let i = self.make_room(i, grow);
        let d = &mut self.datagrams[i];
        if start == 0 {
            d.first.get_or_insert(First {
                protocol: ip.protocol,
                hop_limit: ip.hop_limit,
                tos: ip.tos,
            });
        }
        d.ecn |= 1 << (ip.tos & 3);
        d.take(range, data, fragment.more, grow)?;
        if !d.is_complete() {
            return Ok(None);
        }
        let whole = self.datagrams.remove(i).and_then(Datagram::finish);
        whole.map(Some).ok_or(DropReason::BadFragment)
    }

    /// When [`Reassembly::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.datagrams.front().map(|d| d.deadline)
    }

    /// Gives up datagrams whose time is over. `report` hears of those whose start had arrived
    /// (RFC 792, RFC 8200 section 4.5: time exceeded, reassembly).
    pub fn handle_timeout(&mut self, now: Instant, mut report: impl FnMut(Expired<'_>)) {
        while self.datagrams.front().is_some_and(|d| d.deadline <= now) {
            self.drops.count(DropReason::ReassemblyLimit);
            if let Some(d) = self.datagrams.pop_front() {
                d.report(&mut report);
            }
        }
    }

    /// Forgets what `port` sent.
    pub fn remove_port(&mut self, port: PortId) {
        self.datagrams.retain(|d| d.key.port != port);
    }

    /// Datagrams given up: for want of room, or because their time was over.
    pub fn counters(&self) -> &DropCounters {
        &self.drops
    }

    /// Incomplete datagrams.
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// No datagram is incomplete.
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Bytes of all buffers.
    pub fn memory(&self) -> usize {
        self.datagrams.iter().map(|d| d.buf.len()).sum()
    }

    fn position(&self, key: &Key) -> Option<usize> {
        self.datagrams.iter().position(|d| d.key == *key)
    }

    /// Lets go of a datagram's data and swallows its rest.
    fn discard(&mut self, key: &Key) {
        if let Some(i) = self.position(key) {
            self.datagrams[i].discard();
        }
    }

    /// The datagram of `key`, a new one if need be.
    fn find_or_start(
        &mut self,
        now: Instant,
        key: Key,
        frame: &Frame<'_>,
    ) -> Result<usize, DropReason> {
        if let Some(i) = self.position(&key) {
            let d = &self.datagrams[i];
            if d.deadline > now {
                let refused = d.discarded || d.fragments >= MAX_FRAGMENTS;
                return if refused {
                    Err(DropReason::BadFragment)
                } else {
                    Ok(i)
                };
            }
            self.give_up(i);
        }
        let of_port = |d: &Datagram| d.key.port == key.port;
        if self.datagrams.iter().filter(|d| of_port(d)).count() >= MAX_DATAGRAMS_PER_PORT {
            let oldest = self.datagrams.iter().position(of_port);
            self.give_up(oldest.unwrap_or(0));
        } else if self.datagrams.len() >= MAX_DATAGRAMS {
            self.give_up(0);
        }
        self.datagrams.push_back(Datagram {
            key,
            link: Link {
                port: key.port,
                gateway_mac: frame.dst,
                container_mac: frame.src,
            },
            deadline: now + LIFETIME,
            buf: Vec::new(),
            have: Vec::new(),
            fragments: 0,
            total: None,
            first: None,
            ecn: 0,
            discarded: false,
        });
        Ok(self.datagrams.len() - 1)
    }

    fn give_up(&mut self, i: usize) {
        self.datagrams.remove(i);
        self.drops.count(DropReason::ReassemblyLimit);
    }

    /// Makes room for `grow` more bytes in datagram `i`; returns where it is then.
    fn make_room(&mut self, mut i: usize, grow: usize) -> usize {
        let port = self.datagrams[i].key.port;
        if grow == 0 {
            return i;
        }
        loop {
            let of_port = self.datagrams.iter().filter(|d| d.key.port == port);
            let mine: usize = of_port.map(|d| d.buf.len()).sum();
            let over_port = mine + grow > MAX_BYTES_PER_PORT;
            if !over_port && self.memory() + grow <= MAX_BYTES {
                return i;
            }
            let mut others = self.datagrams.iter().enumerate();
            let victim = others.position(|(j, d)| {
                j != i && !d.buf.is_empty() && (d.key.port == port || !over_port)
            });
            // One datagram alone is below every limit.
            let Some(victim) = victim else { return i };
            self.give_up(victim);
            if victim < i {
                i -= 1;
            }
        }
    }
}

impl Datagram {
    fn headroom(&self) -> usize {
        l4_offset(self.key.src.is_ipv6())
    }

    /// Bytes the buffer must grow by to hold data up to `end`: to twice the need, so that a long
    /// datagram is not copied at every fragment. `None` if the datagram ends before.
    fn growth(&mut self, end: usize, limit: usize) -> Option<usize> {
        if self.total.is_some_and(|total| end > total) {
            self.discard();
            return None;
        }
        if self.headroom() + end <= self.buf.len() {
            return Some(0);
        }
        Some(self.headroom() + (2 * end).min(limit) - self.buf.len())
    }

    /// Puts a fragment's data in its place.
    fn take(
        &mut self,
        range: Range<usize>,
        data: &[u8],
        more: bool,
        grow: usize,
    ) -> Result<(), DropReason> {
        let head = self.headroom();
        if !more {
            let behind = self.have.last().is_some_and(|r| r.end > range.end);
            if behind || self.total.is_some_and(|total| total != range.end) {
                self.discard();
                return Err(DropReason::BadFragment);
            }
        }
        let i = self.have.partition_point(|r| r.end <= range.start);
        if self.have.get(i).is_some_and(|r| r.start < range.end) {
            let r = &self.have[i];
            let inside = r.start <= range.start && range.end <= r.end;
            if inside && self.buf[head + range.start..head + range.end] == *data {
                return Ok(());
            }
            self.discard();
            return Err(DropReason::BadFragment);
        }
        if !more {
            self.total = Some(range.end);
        }
        if grow > 0 {
            let mut larger = vec![0; self.buf.len() + grow];
            larger[..self.buf.len()].copy_from_slice(&self.buf);
            self.buf = larger;
        }
        self.buf[head + range.start..head + range.end].copy_from_slice(data);
        self.fragments += 1;
        self.enter(i, range);
        Ok(())
    }

    /// Enters `range` before `have[i]`, merged with what it touches.
    fn enter(&mut self, i: usize, mut range: Range<usize>) {
        if self.have.get(i).is_some_and(|r| r.start == range.end) {
            range.end = self.have.remove(i).end;
        }
        match i.checked_sub(1) {
            Some(before) if self.have[before].end == range.start => {
                self.have[before].end = range.end;
            }
            _ => self.have.insert(i, range),
        }
    }

    fn is_complete(&self) -> bool {
        let total = self.total;
        total.is_some_and(|end| matches!(self.have[..], [Range { start: 0, end: e }] if e == end))
    }

    fn discard(&mut self) {
        self.discarded = true;
        self.buf = Vec::new();
        self.have = Vec::new();
        self.first = None;
    }

    /// Writes the headers before the first `len` bytes of data.
    fn write_headers(&mut self, first: First, len: usize) {
        // This frame goes from the container to the gateway.
        let link = Link {
            port: self.link.port,
            gateway_mac: self.link.container_mac,
            container_mac: self.link.gateway_mac,
        };
        let ip = IpOut {
            src: self.key.src,
            dst: self.key.dst,
            protocol: first.protocol,
            hop_limit: first.hop_limit,
            tos: first.tos,
        };
        write_headers(&mut self.buf, VnetHeader::default(), &link, &ip, len);
        if self.key.src.is_ipv4() {
            set_ipv4_fragment(&mut self.buf[IP_OFFSET..], self.key.id as u16, 0, false);
        }
    }

    /// The whole packet; `None` if its fragments' marks contradict each other.
    fn finish(mut self) -> Option<ReassembledFrame> {
        let (mut first, total) = (self.first?, self.total?);
        // RFC 3168 section 5.3: a mark on one fragment is a mark on the packet, and a packet that
        // is both marked and not capable of marks is invalid.
        const NOT_ECT: u8 = 1 << 0;
        const CE: u8 = 1 << 3;
        if self.ecn & CE != 0 {
            if self.ecn & NOT_ECT != 0 {
                return None;
            }
            first.tos |= 3;
        }
        self.write_headers(first, total);
        self.buf.truncate(self.headroom() + total);
        Some(ReassembledFrame { bytes: self.buf })
    }

    fn report(mut self, report: &mut impl FnMut(Expired<'_>)) {
        let (Some(first), Some(Range { start: 0, end })) = (self.first, self.have.first().cloned())
        else {
            return;
        };
        self.write_headers(first, end);
        let quote = &self.buf[IP_OFFSET..self.headroom() + end];
        report(Expired {
            link: self.link,
            src: self.key.src,
            dst: self.key.dst,
            quote: &quote[..quote.len().min(QUOTE_LEN)],
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datagram::testing::{LINK, Wire, udp_datagram};
    use crate::fragment::emit_ip_payload;
    use cnet_wire::headers::FRAME_BUFFER_LEN;
    use cnet_wire::vnet::VNET_HDR_LEN;
    use etherparse::{
        EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader,
        Ipv6Header, NetSlice, SlicedPacket,
    };
    use proptest::prelude::*;
    use std::net::SocketAddr;

    const NOW: Instant = Instant::from_millis(1000);

    fn addresses(v6: bool) -> (IpAddr, IpAddr) {
        let (src, dst) = match v6 {
            true => ("fd00::100", "2001:db8::1"),
            false => ("10.0.2.100", "192.0.2.1"),
        };
        (src.parse().unwrap(), dst.parse().unwrap())
    }

    /// One fragment, as etherparse writes it.
    fn fragment(v6: bool, id: u32, offset: usize, more: bool, data: &[u8]) -> Vec<u8> {
        let mut b = vec![0; VNET_HDR_LEN];
        let ethernet = Ethernet2Header {
            source: LINK.container_mac.0,
            destination: LINK.gateway_mac.0,
            ether_type: if v6 { EtherType::IPV6 } else { EtherType::IPV4 },
        };
        ethernet.write(&mut b).unwrap();
        let fragment_offset = IpFragOffset::try_new((offset / 8) as u16).unwrap();
        match addresses(v6) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let len = data.len() as u16;
                let (src, dst) = (src.octets(), dst.octets());
                let mut h = Ipv4Header::new(len, 64, IpNumber::UDP, src, dst).unwrap();
                h.identification = id as u16;
                h.dont_fragment = false;
                h.more_fragments = more;
                h.fragment_offset = fragment_offset;
                h.header_checksum = h.calc_header_checksum();
                h.write(&mut b).unwrap();
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let h = Ipv6Header {
                    payload_length: (8 + data.len()) as u16,
                    next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
                    hop_limit: 64,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                };
                h.write(&mut b).unwrap();
                let f = Ipv6FragmentHeader::new(IpNumber::UDP, fragment_offset, more, id);
                f.write(&mut b).unwrap();
            }
            _ => unreachable!("one family"),
        }
        b.extend_from_slice(data);
        b
    }

    fn handle_at(
        r: &mut Reassembly,
        now: Instant,
        port: u32,
        bytes: &[u8],
    ) -> Result<Option<ReassembledFrame>, DropReason> {
        let frame = Frame::parse(bytes, MAX_IPV6_PACKET)?;
        let L3::Ip(ip) = frame.l3 else {
            unreachable!("IP")
        };
        r.handle_fragment(now, PortId(port), &frame, &ip)
    }

    fn handle(r: &mut Reassembly, bytes: &[u8]) -> Result<Option<ReassembledFrame>, DropReason> {
        handle_at(r, NOW, 3, bytes)
    }

    /// Checks with both parsers that `whole` carries `payload` from the container, unfragmented.
    fn assert_carries(v6: bool, whole: &ReassembledFrame, payload: &[u8]) {
        let frame = whole.parse().unwrap();
        let L3::Ip(ip) = frame.l3 else {
            panic!("not IP")
        };
        assert_eq!((ip.src, ip.dst), addresses(v6));
        assert_eq!(
            (ip.protocol, ip.fragment, ip.dont_fragment),
            (17, None, false)
        );
        assert_eq!(frame.l4(&ip), payload);
        assert_eq!(frame.src, LINK.container_mac);
        assert_eq!(frame.dst, LINK.gateway_mac);
        let packet = SlicedPacket::from_ethernet(&whole.bytes()[VNET_HDR_LEN..]).unwrap();
        match packet.net.unwrap() {
            NetSlice::Ipv4(p) => {
                let h = p.header().to_header();
                assert_eq!(h.calc_header_checksum(), h.header_checksum);
                assert!(!h.dont_fragment && !h.more_fragments);
                assert_eq!(p.payload().payload, payload);
            }
            NetSlice::Ipv6(p) => assert_eq!(p.payload().payload, payload),
            NetSlice::Arp(_) => panic!("not IP"),
        }
    }

    /// A UDP datagram of `len` bytes with a right checksum.
    fn udp(v6: bool, len: usize) -> Vec<u8> {
        let payload: Vec<u8> = (8..len).map(|i| (i * 31 + i / 256) as u8).collect();
        let (src, dst) = addresses(v6);
        udp_datagram(
            SocketAddr::new(src, 5000),
            SocketAddr::new(dst, 53),
            &payload,
        )
    }

    #[test]
    fn a_64_kib_datagram_arrives_whole() {
        for (v6, len) in [(false, 65515), (true, 65495)] {
            let payload = udp(v6, len);
            for mtu in [576, 1500, 65520] {
                let mut wire = Wire::default();
                let mut buf = vec![0; FRAME_BUFFER_LEN];
                let (src, dst) = addresses(v6);
                let ip = IpOut {
                    src,
                    dst,
                    protocol: 17,
                    hop_limit: 64,
                    tos: 0,
                };
                let swapped = Link {
                    gateway_mac: LINK.container_mac,
                    container_mac: LINK.gateway_mac,
                    ..LINK
                };
                emit_ip_payload(&mut wire, &mut buf, &swapped, &ip, mtu, 77, &payload).unwrap();
                let mut r = Reassembly::new();
                let (last, first) = wire.frames.split_last().unwrap();
                for f in first {
                    assert!(handle(&mut r, f).unwrap().is_none());
                }
                let whole = handle(&mut r, last).unwrap().unwrap();
                assert_carries(v6, &whole, &payload);
                let frame = whole.parse().unwrap();
                let L3::Ip(ip) = frame.l3 else {
                    panic!("not IP")
                };
                assert!(frame.l4_checksum_ok(&ip));
                assert!(r.is_empty());
            }
        }
    }

    #[test]
    fn overlap_discards_the_datagram_and_its_rest() {
        for v6 in [false, true] {
            let mut r = Reassembly::new();
            let data = udp(v6, 64);
            assert!(
                handle(&mut r, &fragment(v6, 1, 0, true, &data[..32]))
                    .unwrap()
                    .is_none()
            );
            // The same bytes again are no overlap.
            let again = handle(&mut r, &fragment(v6, 1, 8, true, &data[8..24]));
            assert!(again.unwrap().is_none());
            let other = handle(&mut r, &fragment(v6, 1, 24, true, &[0xee; 16]));
            assert_eq!(other.unwrap_err(), DropReason::BadFragment);
            for (at, more) in [(0, true), (32, false)] {
                let rest = handle(&mut r, &fragment(v6, 1, at, more, &data[at..at + 32]));
                assert_eq!(rest.unwrap_err(), DropReason::BadFragment);
            }
            // Another identification is another datagram.
            assert!(
                handle(&mut r, &fragment(v6, 2, 32, false, &data[32..]))
                    .unwrap()
                    .is_none()
            );
            let whole = handle(&mut r, &fragment(v6, 2, 0, true, &data[..32])).unwrap();
            assert_carries(v6, &whole.unwrap(), &data);
        }
    }

    #[test]
    fn contradicting_ends_discard_the_datagram() {
        let cases: [&[(usize, bool, usize)]; 3] = [
            &[(32, false, 8), (48, true, 8)],
            &[(32, true, 8), (16, false, 8)],
            &[(32, false, 8), (48, false, 8)],
        ];
        for v6 in [false, true] {
            for case in cases {
                let mut r = Reassembly::new();
                let (last, first) = case.split_last().unwrap();
                for &(at, more, len) in first {
                    let f = fragment(v6, 1, at, more, &vec![1; len]);
                    assert!(handle(&mut r, &f).unwrap().is_none());
                }
                let f = fragment(v6, 1, last.0, last.1, &vec![1; last.2]);
                assert_eq!(handle(&mut r, &f).unwrap_err(), DropReason::BadFragment);
                assert_eq!(r.memory(), 0);
            }
        }
    }

    #[test]
    fn cve_2019_14378_first_fragment_larger_than_the_rest_says() {
        // An oversized first fragment, then a last one that claims the datagram ends inside it.
        for v6 in [false, true] {
            let mut r = Reassembly::new();
            let f = fragment(v6, 1, 0, true, &[0x41; 60000]);
            assert!(handle(&mut r, &f).unwrap().is_none());
            let f = fragment(v6, 1, 8, false, &[0x42; 16]);
            assert_eq!(handle(&mut r, &f).unwrap_err(), DropReason::BadFragment);
            assert_eq!(r.memory(), 0);
        }
    }

    #[test]
    fn cve_2020_1983_and_cve_2019_15890_state_is_not_used_after_it_ended() {
        // A datagram is completed, or discarded, and its fragments go on coming.
        for v6 in [false, true] {
            let mut r = Reassembly::new();
            let data = udp(v6, 48);
            let parts = [
                fragment(v6, 1, 0, true, &data[..16]),
                fragment(v6, 1, 16, true, &data[16..32]),
                fragment(v6, 1, 32, false, &data[32..]),
            ];
            for _ in 0..3 {
                assert!(handle(&mut r, &parts[1]).unwrap().is_none());
                assert!(handle(&mut r, &parts[2]).unwrap().is_none());
                let whole = handle(&mut r, &parts[0]).unwrap().unwrap();
                assert_carries(v6, &whole, &data);
                assert!(r.is_empty());
            }
            // An offset behind the end, after the end was known, then everything again.
            assert!(handle(&mut r, &parts[2]).unwrap().is_none());
            let f = fragment(v6, 1, 48, true, &[0; 8]);
            assert_eq!(handle(&mut r, &f).unwrap_err(), DropReason::BadFragment);
            for f in &parts {
                assert_eq!(handle(&mut r, f).unwrap_err(), DropReason::BadFragment);
            }
        }
    }

    #[test]
    fn fragments_behind_65535_are_refused() {
        for (v6, room) in [(false, 65535 - 20), (true, 65535)] {
            let mut r = Reassembly::new();
            let last = |len: usize| fragment(v6, 1, 65504, false, &vec![0; len]);
            assert!(handle(&mut r, &last(room - 65504)).unwrap().is_none());
            let mut r = Reassembly::new();
            let f = last(room - 65504 + 1);
            assert_eq!(handle(&mut r, &f).unwrap_err(), DropReason::BadFragment);
            assert!(r.is_empty());
        }
    }

    fn assert_bounded(r: &Reassembly, port: PortId) {
        assert!(r.memory() <= MAX_BYTES && r.len() <= MAX_DATAGRAMS);
        let mine = || r.datagrams.iter().filter(|d| d.key.port == port);
        assert!(mine().map(|d| d.buf.len()).sum::<usize>() <= MAX_BYTES_PER_PORT);
        assert!(mine().count() <= MAX_DATAGRAMS_PER_PORT);
    }

    #[test]
    fn a_hundred_thousand_datagrams_that_never_complete_stay_in_bounds() {
        for v6 in [false, true] {
            let mut r = Reassembly::new();
            for id in 0..100_000u32 {
                // Far offsets take the most memory for the fewest bytes.
                let f = fragment(v6, id, 65400, true, &[0; 8]);
                let port = id % 16;
                assert!(handle_at(&mut r, NOW, port, &f).unwrap().is_none());
                if id % 61 == 0 {
                    assert_bounded(&r, PortId(port));
                }
            }
            // An honest datagram gets through all the same.
            let data = udp(v6, 4000);
            assert!(
                handle(&mut r, &fragment(v6, 0, 0, true, &data[..1480]))
                    .unwrap()
                    .is_none()
            );
            assert!(
                handle(&mut r, &fragment(v6, 0, 1480, true, &data[1480..2960]))
                    .unwrap()
                    .is_none()
            );
            let whole = handle(&mut r, &fragment(v6, 0, 2960, false, &data[2960..])).unwrap();
            assert_carries(v6, &whole.unwrap(), &data);
            let live = r.len() as u64;
            assert_eq!(
                r.counters().get(DropReason::ReassemblyLimit) + live,
                100_000
            );
        }
    }

    #[test]
    fn one_port_cannot_crowd_out_another() {
        let mut r = Reassembly::new();
        let data = udp(false, 64);
        let first = fragment(false, 1, 0, true, &data[..32]);
        assert!(handle_at(&mut r, NOW, 1, &first).unwrap().is_none());
        for id in 0..1000 {
            let f = fragment(false, id, 65400, true, &[0; 8]);
            assert!(handle_at(&mut r, NOW, 2, &f).unwrap().is_none());
        }
        let last = fragment(false, 1, 32, false, &data[32..]);
        assert!(handle_at(&mut r, NOW, 1, &last).unwrap().is_some());
    }

    #[test]
    fn a_datagram_has_thirty_seconds() {
        for v6 in [false, true] {
            let mut r = Reassembly::new();
            assert_eq!(r.poll_timeout(), None);
            let data = udp(v6, 64);
            let f = fragment(v6, 1, 0, true, &data[..32]);
            assert!(handle(&mut r, &f).unwrap().is_none());
            let at = NOW + LIFETIME;
            assert_eq!(r.poll_timeout(), Some(at));
            r.handle_timeout(NOW, |_| panic!("too early"));
            let mut heard = 0;
            r.handle_timeout(at, |e| {
                heard += 1;
                assert_eq!((e.src, e.dst), addresses(v6));
                assert_eq!(
                    (e.link.port, e.link.container_mac),
                    (PortId(3), LINK.container_mac)
                );
                assert!(e.quote.ends_with(&data[..32]));
            });
            assert_eq!((heard, r.len()), (1, 0));
            // Without its start there is nothing to tell its sender about.
            let f = fragment(v6, 1, 32, false, &data[32..]);
            assert!(handle(&mut r, &f).unwrap().is_none());
            r.handle_timeout(at, |_| panic!("no start"));
            assert!(r.is_empty());
            // A fragment that comes late begins anew, also if the timeout was not acted on.
            assert!(handle(&mut r, &f).unwrap().is_none());
            let f = fragment(v6, 1, 0, true, &data[..32]);
            assert!(handle_at(&mut r, at, 3, &f).unwrap().is_none());
            assert_eq!(r.len(), 1);
        }
    }

    #[test]
    fn marked_fragments_mark_the_packet() {
        let data = udp(false, 32);
        let tos = |mut f: Vec<u8>, tos: u8| {
            f[IP_OFFSET + 1] = tos;
            let (offset, more) = (f[IP_OFFSET + 7], f[IP_OFFSET + 6] & 0x20 != 0);
            set_ipv4_fragment(&mut f[IP_OFFSET..], 1, usize::from(offset) * 8, more);
            f
        };
        let first = fragment(false, 1, 0, true, &data[..16]);
        let last = fragment(false, 1, 16, false, &data[16..]);
        for (a, b, want) in [
            (2, 3, Some(3)),
            (3, 2, Some(3)),
            (2, 2, Some(2)),
            (0, 3, None),
        ] {
            let mut r = Reassembly::new();
            assert!(handle(&mut r, &tos(first.clone(), a)).unwrap().is_none());
            let whole = handle(&mut r, &tos(last.clone(), b));
            let got = whole.ok().flatten().map(|w| {
                let L3::Ip(ip) = w.parse().unwrap().l3 else {
                    panic!("not IP")
                };
                ip.tos
            });
            assert_eq!(got, want);
        }
    }

    proptest! {
        #[test]
        fn any_split_in_any_order_arrives_whole(
            v6 in any::<bool>(),
            blocks in proptest::collection::vec(1usize..40, 1..60),
            tail in 1usize..9,
            order in any::<u64>(),
        ) {
            let total = blocks.iter().sum::<usize>() * 8 + tail;
            let data = udp(v6, total.max(8));
            let mut parts = Vec::new();
            let mut at = 0;
            for n in blocks {
                parts.push(fragment(v6, 9, at, true, &data[at..at + 8 * n]));
                at += 8 * n;
            }
            parts.push(fragment(v6, 9, at, false, &data[at..]));
            let mut x = order | 1;
            for i in (1..parts.len()).rev() {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                parts.swap(i, (x >> 33) as usize % (i + 1));
            }
            let mut r = Reassembly::new();
            let (last, first) = parts.split_last().unwrap();
            for f in first {
                prop_assert!(handle(&mut r, f).unwrap().is_none());
            }
            assert_carries(v6, &handle(&mut r, last).unwrap().unwrap(), &data);
            prop_assert!(r.is_empty());
        }

        #[test]
        fn no_fragments_break_the_bounds(
            v6 in any::<bool>(),
            parts in proptest::collection::vec((0u32..3, 0usize..200, any::<bool>(), 1usize..80), 1..200),
        ) {
            let mut r = Reassembly::new();
            for (id, block, more, len) in parts {
                let len = if more { (len / 8 + 1) * 8 } else { len };
                if let Ok(Some(whole)) = handle(&mut r, &fragment(v6, id, block * 8, more, &vec![7; len])) {
                    prop_assert!(whole.bytes()[l4_offset(v6)..].iter().all(|&b| b == 7));
                }
                assert_bounded(&r, PortId(3));
            }
        }
    }
}
