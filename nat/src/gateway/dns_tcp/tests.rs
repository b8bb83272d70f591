//! DNS over TCP against smoltcp's client side, and against hand-made segments.

use std::net::SocketAddr;

use cnet_wire::frame::protocol;
use cnet_wire::vnet::{F_NEEDS_CSUM, VnetHeader};
use cnet_wire::{DropReason, MacAddr, checksum};
use etherparse::PacketBuilder;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{IpAddress, TcpPacket};

use super::*;
use crate::gateway::testing::*;
use crate::host::{DnsQuery, Transport};

fn query(id: u16, len: usize) -> Vec<u8> {
    let mut m = vec![0; len];
    m[..2].copy_from_slice(&id.to_be_bytes());
    m
}

fn prefixed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

/// A client on port A or B with the addresses that go with it.
struct Client {
    bench: Bench,
    station: Station,
}

impl Client {
    fn new() -> Client {
        let addresses = [
            IpCidr::new(IpAddress::from(A4), 24),
            IpCidr::new(IpAddress::from(A6), 64),
        ];
        Client {
            bench: Bench::new(),
            station: Station::new(A, MAC_A, &addresses),
        }
    }

    fn open(&mut self, v6: bool, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 100_000]);
        let handle = self.station.sockets.add(Socket::new(buffer(), buffer()));
        let server = if v6 {
            IpAddr::V6(DNS6)
        } else {
            IpAddr::V4(DNS4)
        };
        let socket = self.station.sockets.get_mut::<Socket>(handle);
        let cx = self.station.iface.context();
        socket
            .connect(cx, (IpAddress::from(server), PORT), port)
            .unwrap();
        self.talk();
        handle
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.station.sockets.get_mut::<Socket>(handle)
    }

    fn talk(&mut self) {
        self.station.talk(&mut self.bench);
    }

    fn send(&mut self, handle: SocketHandle, data: &[u8]) {
        assert_eq!(self.socket(handle).send_slice(data), Ok(data.len()));
        self.talk();
    }

    fn take(&mut self) -> Option<DnsQuery> {
        self.bench.take_query()
    }

    fn answer(&mut self, q: &DnsQuery, message: &[u8]) {
        self.bench.answer(q.id, message);
        self.talk();
    }

    /// Lets time pass, waking the gateway only when it asked for it. Returns how often it did.
    fn pass(&mut self, time: Duration) -> usize {
        let end = self.bench.now + time;
        let mut calls = 0;
        while self.bench.now < end {
            let next = self.bench.gw.poll_timeout().unwrap_or(end).min(end);
            let step = self.bench.now + Duration::from_millis(200);
            self.bench.now = next.min(step).max(self.bench.now + Duration::from_nanos(1));
            let now = self.bench.now;
            if self.bench.gw.poll_timeout().is_some_and(|t| t <= now) {
                let gw = &mut self.bench.gw;
                with_io(&mut self.bench.wire, |io| gw.handle_timeout(now, io));
                calls += 1;
            }
            self.talk();
        }
        calls
    }

    fn received(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut data = vec![0; 200_000];
        let n = self.socket(handle).recv_slice(&mut data).unwrap_or(0);
        data.truncate(n);
        data
    }

    fn connections(&self) -> usize {
        self.bench.gw.dns_tcp.connections.len()
    }

    /// Nothing is left: no connection, no socket, no deadline.
    fn assert_at_rest(&self) {
        assert_eq!(self.connections(), 0);
        let dns_tcp = &self.bench.gw.dns_tcp;
        assert!(dns_tcp.by_ends.is_empty() && dns_tcp.by_port.is_empty());
        assert_eq!(self.bench.gw.poll_timeout(), None);
    }
}

#[test]
fn a_query_is_answered_over_both_families_and_nothing_is_left() {
    for v6 in [false, true] {
        let mut c = Client::new();
        let handle = c.open(v6, 4000);
        c.send(handle, &prefixed(&query(1, 40)));
        let q = c.take().unwrap();
        let client = if v6 {
            SocketAddr::from((A6, 4000))
        } else {
            SocketAddr::from((A4, 4000))
        };
        assert_eq!((q.transport, q.client, q.port), (Transport::Tcp, client, A));
        assert_eq!(q.message, query(1, 40));
        let answer = query(1, 200);
        c.answer(&q, &answer);
        assert_eq!(c.received(handle), prefixed(&answer));
        c.socket(handle).close();
        c.pass(Duration::from_secs(1));
        assert_eq!(c.socket(handle).state(), State::TimeWait);
        c.assert_at_rest();
        // The same port again.
        c.socket(handle).abort();
        let handle = c.open(v6, 4000);
        c.send(handle, &prefixed(&query(2, 12)));
        assert_eq!(c.take().unwrap().message, query(2, 12));
        let counters = c.bench.gw.counters();
        assert_eq!((counters.dns_tcp.queries, counters.dns_tcp.answers), (2, 1));
        assert_eq!(counters.dns_tcp.aborts, 0);
    }
}

#[test]
fn pipelined_queries_are_answered_in_any_order() {
    let mut c = Client::new();
    let handle = c.open(false, 4000);
    let all: Vec<u8> = (0..5).flat_map(|i| prefixed(&query(i, 30))).collect();
    // In pieces that fit no message.
    for piece in all.chunks(7) {
        c.send(handle, piece);
    }
    let mut queries: Vec<_> = std::iter::from_fn(|| c.take()).collect();
    assert_eq!(queries.len(), 5);
    queries.reverse();
    let mut want = Vec::new();
    for q in &queries {
        let answer = [&q.message[..], b"answer"].concat();
        want.extend(prefixed(&answer));
        c.answer(q, &answer);
    }
    assert_eq!(c.received(handle), want);
}

#[test]
fn more_queries_than_may_be_outstanding_wait_in_the_window() {
    let mut c = Client::new();
    let handle = c.open(false, 4000);
    let many = 3 * MAX_PIPELINE as u16;
    let all: Vec<u8> = (0..many).flat_map(|i| prefixed(&query(i, 500))).collect();
    c.send(handle, &all);
    let mut answered = 0;
    while let Some(q) = c.take() {
        assert_eq!(q.message, query(answered, 500));
        assert!(c.bench.wire.2.queries.len() < MAX_PIPELINE as usize);
        answered += 1;
        c.answer(&q, &query(0, 12));
        c.pass(Duration::from_millis(50));
    }
    assert_eq!(answered, many);
}

#[test]
fn the_largest_messages_pass_both_ways() {
    let mut c = Client::new();
    let handle = c.open(true, 4000);
    let large = query(1, 65_535);
    c.send(handle, &prefixed(&large));
    c.pass(Duration::from_secs(2));
    let q = c.take().unwrap();
    assert_eq!(q.message, large);
    c.answer(&q, &large);
    c.pass(Duration::from_secs(2));
    assert_eq!(c.received(handle), prefixed(&large));
}

#[test]
fn a_client_that_closes_its_side_still_gets_its_answer() {
    let mut c = Client::new();
    let handle = c.open(false, 4000);
    c.send(handle, &prefixed(&query(1, 20)));
    c.socket(handle).close();
    c.talk();
    let q = c.take().unwrap();
    c.pass(Duration::from_secs(2));
    c.answer(&q, &query(1, 50));
    assert_eq!(c.received(handle), prefixed(&query(1, 50)));
    c.pass(Duration::from_secs(1));
    assert_eq!(c.socket(handle).state(), State::TimeWait);
    c.assert_at_rest();
}

#[test]
fn cve_2026_35406_a_truncated_query_and_then_a_reset_leaves_nothing() {
    let mut c = Client::new();
    for i in 0..100 {
        let handle = c.open(i % 2 == 0, 4000 + i);
        c.send(handle, &prefixed(&query(1, 300))[..20]);
        c.socket(handle).abort();
        c.talk();
        c.station.sockets.remove(handle);
        c.assert_at_rest();
        // smoltcp asks for one neighbour a second.
        c.pass(Duration::from_secs(1));
    }
    assert_eq!(c.take(), None);
}

#[test]
fn a_truncated_query_and_then_a_fin_leaves_nothing() {
    let mut c = Client::new();
    let handle = c.open(false, 4000);
    c.send(handle, &prefixed(&query(1, 300))[..20]);
    c.socket(handle).close();
    c.pass(Duration::from_secs(1));
    c.assert_at_rest();
    assert_eq!(c.take(), None);
}

#[test]
fn cve_2024_8418_idle_clients_neither_stay_nor_keep_others_out() {
    let mut c = Client::new();
    let mut idle = Vec::new();
    for i in 0..40 {
        idle.push(c.open(false, 4000 + i));
        // The acknowledgement of our SYN is a delayed one.
        c.pass(Duration::from_millis(20));
    }
    assert_eq!(c.connections(), 40);
    let handle = c.open(false, 5000);
    c.send(handle, &prefixed(&query(1, 20)));
    let q = c.take().unwrap();
    c.answer(&q, &query(1, 20));
    assert_eq!(c.received(handle), prefixed(&query(1, 20)));
    let calls = c.pass(IDLE + IDLE + Duration::from_secs(1));
    assert!(calls < 200, "woken {calls} times");
    for handle in idle {
        c.socket(handle).close();
    }
    c.pass(Duration::from_secs(1));
    c.assert_at_rest();
}

/// Opens a connection with hand-made segments.
fn open_by_hand(bench: &mut Bench, source: u16) {
    let syn = segment(MAC_A, source, 5, true, None, b"");
    bench.send(A, &syn).unwrap();
    let reply = bench.reply(A);
    let seq = TcpPacket::new_checked(&reply[34..]).unwrap().seq_number();
    let ack = Some((seq.0 as u32).wrapping_add(1));
    let ack = segment(MAC_A, source, 6, false, ack, b"");
    bench.send(A, &ack).unwrap();
}

#[test]
fn a_hundred_clients_at_once_are_answered_beside_a_thousand_idle_ones() {
    let mut c = Client::new();
    for i in 0..1_000 {
        open_by_hand(&mut c.bench, 10_000 + i);
    }
    assert_eq!(c.connections(), 1_000);
    let handles: Vec<_> = (0..100).map(|i| c.open(false, 4000 + i)).collect();
    for (i, &handle) in handles.iter().enumerate() {
        c.send(handle, &prefixed(&query(i as u16, 40)));
    }
    while let Some(q) = c.take() {
        let message = q.message.clone();
        c.answer(&q, &message);
    }
    for (i, &handle) in handles.iter().enumerate() {
        assert_eq!(c.received(handle), prefixed(&query(i as u16, 40)));
    }
    assert_eq!(c.connections(), 1_100);
    assert_eq!(c.bench.gw.counters().dns_tcp.aborts, 0);
}

#[test]
fn a_full_table_takes_the_next_client_in_place_of_the_ports_oldest_idle_one() {
    let mut c = Client::new();
    let busy = c.open(false, 4000);
    c.send(busy, &prefixed(&query(1, 40)));
    let asked = c.take().unwrap();
    for i in 0..MAX_CONNECTIONS as u16 {
        open_by_hand(&mut c.bench, 10_000 + i);
    }
    assert_eq!(c.connections(), MAX_CONNECTIONS);
    let late = c.open(false, 4001);
    c.send(late, &prefixed(&query(2, 40)));
    let q = c.take().unwrap();
    for (handle, q) in [(busy, asked), (late, q)] {
        c.answer(&q, &q.message);
        assert_eq!(c.received(handle), prefixed(&q.message));
    }
    assert_eq!(c.bench.gw.counters().dns_tcp.aborts, 2);
    // A client that had to make room learns of it when it speaks.
    let speaks = segment(MAC_A, 10_000, 6, false, Some(7), b"x");
    c.bench.send(A, &speaks).unwrap();
    let reply = c.bench.reply(A);
    assert!(TcpPacket::new_checked(&reply[34..]).unwrap().rst());
}

#[test]
fn a_stuck_query_or_answer_ends_the_connection() {
    let mut c = Client::new();
    let partial = c.open(false, 4000);
    c.send(partial, &[0, 100, 1, 2, 3]);
    c.pass(IDLE + Duration::from_secs(1));
    assert_eq!(c.socket(partial).state(), State::Closed);
    c.assert_at_rest();
    // The query is not answered.
    let waiting = c.open(false, 4001);
    c.send(waiting, &prefixed(&query(1, 20)));
    c.pass(ANSWER_WAIT - Duration::from_secs(1));
    assert_eq!(c.connections(), 1);
    c.pass(Duration::from_secs(2));
    assert_eq!(c.socket(waiting).state(), State::Closed);
    c.assert_at_rest();
    let late = c.take().unwrap();
    c.answer(&late, &query(1, 20));
    assert_eq!(c.bench.gw.counters().dns_tcp.answers, 0);
    assert_eq!(c.bench.gw.counters().dns_tcp.aborts, 2);
}

#[test]
fn what_is_no_query_ends_the_connection() {
    for message in [vec![0; 11], vec![], vec![0x80; 12]] {
        let mut c = Client::new();
        let handle = c.open(false, 4000);
        c.send(handle, &prefixed(&message));
        assert_eq!(c.socket(handle).state(), State::Closed);
        c.assert_at_rest();
        assert_eq!(c.take(), None);
    }
}

#[test]
fn a_port_that_goes_takes_its_connections_along() {
    let mut c = Client::new();
    let handle = c.open(false, 4000);
    c.send(handle, &prefixed(&query(1, 20)));
    let q = c.take().unwrap();
    c.bench.gw.remove_port(A);
    c.answer(&q, &query(1, 20));
    assert_eq!(c.connections(), 0);
    let now = c.bench.now;
    let gw = &mut c.bench.gw;
    with_io(&mut c.bench.wire, |io| gw.handle_timeout(now, io));
    c.assert_at_rest();
}

/// A segment from A's address and the given port.
fn segment(
    mac: MacAddr,
    source: u16,
    seq: u32,
    syn: bool,
    ack: Option<u32>,
    data: &[u8],
) -> Vec<u8> {
    let mut b = PacketBuilder::ethernet2(mac.0, GATEWAY.0)
        .ipv4(A4.octets(), DNS4.octets(), 64)
        .tcp(source, PORT, seq, 60_000);
    if syn {
        b = b.syn();
    }
    if let Some(n) = ack {
        b = b.ack(n);
    }
    let mut frame = Vec::new();
    b.write(&mut frame, data).unwrap();
    frame
}

#[test]
fn a_syn_flood_takes_no_more_than_the_connections_there_are() {
    let mut bench = Bench::new();
    for i in 0..10_000 {
        let source = 1024 + i as u16;
        assert_eq!(
            bench.send(A, &segment(MAC_A, source, i, true, None, b"")),
            Ok(())
        );
        assert!(bench.gw.dns_tcp.connections.len() <= MAX_CONNECTIONS);
        bench.wire.0.clear();
    }
    // Another port gets through all the same.
    let mut other = segment(MAC_B, 7, 1, true, None, b"");
    other[26..30].copy_from_slice(&B4.octets());
    fix_checksums(&mut other);
    assert_eq!(bench.send(B, &other), Ok(()));
    let reply = bench.reply(B);
    assert!(checksum_ok(&reply));
    let tcp = TcpPacket::new_checked(&reply[34..]).unwrap();
    assert!(tcp.syn() && tcp.ack());
    // A flood from elsewhere does not push it out again.
    for i in 0..100 {
        bench
            .send(A, &segment(MAC_A, 1024 + i, 1, true, None, b""))
            .unwrap();
    }
    let of_b = |b: &Bench| {
        b.gw.dns_tcp
            .connections
            .iter()
            .filter(|(_, c)| c.link.port == B)
            .count()
    };
    assert_eq!(of_b(&bench), 1);
    let mut calls = 0;
    while let Some(t) = bench.gw.poll_timeout() {
        assert!(t >= bench.now);
        bench.now = t;
        let gw = &mut bench.gw;
        with_io(&mut bench.wire, |io| gw.handle_timeout(t, io));
        calls += 1;
        assert!(calls < 1_000, "deadlines without end");
    }
    assert!(bench.gw.dns_tcp.connections.is_empty());
}

fn fix_checksums(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = checksum::finish(0, &frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[50..52].fill(0);
    let ends = [26, 30].map(|i| IpAddr::from(<[u8; 4]>::try_from(&frame[i..i + 4]).unwrap()));
    let len = (frame.len() - 34) as u32;
    let pseudo = checksum::pseudo_header(ends[0], ends[1], protocol::TCP, len);
    let sum = checksum::finish(pseudo, &frame[34..]);
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn segments_of_no_connection_are_reset_and_keep_nothing() {
    let mut bench = Bench::new();
    for (data, syn, ack) in [(&b"x"[..], false, Some(9)), (b"", true, Some(9))] {
        assert_eq!(
            bench.send(A, &segment(MAC_A, 4000, 5, syn, ack, data)),
            Ok(())
        );
        let reply = bench.reply(A);
        assert!(checksum_ok(&reply));
        assert_eq!(reply[..6], MAC_A.0);
        assert!(TcpPacket::new_checked(&reply[34..]).unwrap().rst());
    }
    let mut syn_fin = segment(MAC_A, 4000, 5, true, None, b"");
    syn_fin[47] |= 1;
    fix_checksums(&mut syn_fin);
    let _ = bench.send(A, &syn_fin);
    let mut null = segment(MAC_A, 4000, 5, false, None, b"");
    fix_checksums(&mut null);
    let _ = bench.send(A, &null);
    assert_eq!(bench.gw.dns_tcp.connections.len(), 0);
    assert_eq!(bench.gw.poll_timeout(), None);
    let mut short = segment(MAC_A, 4000, 5, true, None, b"");
    short[46] = 0x40;
    fix_checksums(&mut short);
    assert_eq!(bench.send(A, &short), Err(DropReason::BadTcpHeader));
}

#[test]
fn a_connection_belongs_to_the_port_that_opened_it() {
    let mut bench = Bench::new();
    bench
        .send(A, &segment(MAC_A, 4000, 5, true, None, b""))
        .unwrap();
    bench.reply(A);
    let intruder = segment(MAC_B, 4000, 6, false, Some(1), b"");
    assert_eq!(bench.send(B, &intruder), Err(DropReason::Spoofed));
    bench.assert_silent();
}

#[test]
fn a_checksum_left_to_the_device_is_trusted_and_a_wrong_one_is_not() {
    let mut bench = Bench::new();
    let mut frame = segment(MAC_A, 4000, 5, true, None, b"");
    frame[50] ^= 0x55;
    assert_eq!(bench.send(A, &frame), Err(DropReason::BadChecksum));
    bench.assert_silent();
    let vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..VnetHeader::default()
    };
    assert_eq!(bench.send_vnet(A, vnet, &frame), Ok(()));
    assert!(checksum_ok(&bench.reply(A)));
}
