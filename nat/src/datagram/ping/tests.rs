//! Tests of the echo engine between a wire and a host that do as they are told.

use super::*;
use crate::datagram::SocketOutcome;
use crate::datagram::testing::{
    FakeHost, IP, Ip, LINK, Packet as Got, Wire, frame_from, reassemble,
};
use crate::flow::Handle;
use crate::host::{Readiness, SendOptions, SocketId, TokenKind};
use cnet_wire::checksum;
use cnet_wire::headers::{FRAME_BUFFER_LEN, IPV4_HEADER_LEN, IPV6_HEADER_LEN};
use cnet_wire::time::Duration;
use cnet_wire::{Frame, L3, VnetHeader};
use proptest::prelude::*;
use std::net::IpAddr;

const READABLE: Readiness = Readiness {
    readable: true,
    writable: false,
    read_closed: false,
    error: false,
};
const ERROR: Readiness = Readiness {
    readable: false,
    error: true,
    ..READABLE
};

struct Family {
    container: &'static str,
    remote: &'static str,
    hop: &'static str,
    gateway: &'static str,
    protocol: u8,
    request: u8,
    reply: u8,
}

const V4: Family = Family {
    container: "10.0.2.100",
    remote: "192.0.2.1",
    hop: "203.0.113.1",
    gateway: "10.0.2.2",
    protocol: 1,
    request: 8,
    reply: 0,
};
const V6: Family = Family {
    container: "fd00::100",
    remote: "2001:db8::1",
    hop: "2001:db8:ffff::1",
    gateway: "fd00::2",
    protocol: 58,
    request: 128,
    reply: 129,
};

fn addr(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// An ICMP message with a right checksum.
fn icmp(src: &str, dst: &str, protocol: u8, head: [u8; 2], rest: &[u8]) -> Vec<u8> {
    let mut m = [&head[..], &[0, 0], rest].concat();
    let pseudo = match protocol {
        1 => 0,
        p => checksum::pseudo_header(addr(src), addr(dst), p, m.len() as u32),
    };
    let sum = checksum::finish(pseudo, &m);
    m[2..4].copy_from_slice(&sum.to_be_bytes());
    m
}

fn echo(identifier: u16, sequence: u16, data: &[u8]) -> Vec<u8> {
    [&identifier.to_be_bytes()[..], &sequence.to_be_bytes(), data].concat()
}

struct Bench {
    ping: PingSessions,
    host: FakeHost,
    wire: Wire,
    buf: Vec<u8>,
    policy: Policy,
    now: Instant,
}

impl Bench {
    fn new() -> Bench {
        let config = DatagramConfig {
            host_alias_v4: Some("10.0.2.2".parse().unwrap()),
            gateway_v4: Some("10.0.2.2".parse().unwrap()),
            gateway_v6: Some("fd00::2".parse().unwrap()),
            ..DatagramConfig::default()
        };
        Bench {
            ping: PingSessions::new(Instant::ZERO, config, 7),
            host: FakeHost::default(),
            wire: Wire::default(),
            buf: vec![0x5a; FRAME_BUFFER_LEN],
            policy: Policy::default(),
            now: Instant::from_millis(1),
        }
    }

    fn handle_frame(&mut self, bytes: &[u8], owns: bool) -> Result<(), DropReason> {
        let frame = Frame::parse(bytes, cnet_wire::headers::MAX_IPV6_PACKET)?;
        let L3::Ip(ip) = frame.l3 else { panic!("ARP") };
        let mut io = Io::new(&mut self.wire, &mut self.host, &mut self.buf);
        let owns = |_: &Quote| owns;
        self.ping.handle_packet(
            &Packet::new(self.now, LINK.port, &frame, &ip),
            &LINK,
            &self.policy,
            owns,
            &mut io,
        )
    }

    fn send(&mut self, f: &Family, to: &str, ip: Ip, l4: &[u8]) -> Result<(), DropReason> {
        let ends = (addr(f.container), addr(to));
        let frame = frame_from(VnetHeader::default(), ends, ip, f.protocol, l4);
        self.handle_frame(&frame, false)
    }

    fn request(&mut self, f: &Family, identifier: u16, data: &[u8]) -> Result<(), DropReason> {
        let rest = echo(identifier, 1, data);
        let l4 = icmp(f.container, f.remote, f.protocol, [f.request, 0], &rest);
        self.send(f, f.remote, IP, &l4)
    }

    fn ready(&mut self, socket: SocketId, readiness: Readiness) -> SocketOutcome {
        let token = self.host.socket(socket).token.unwrap();
        assert_eq!(token.kind(), TokenKind::Ping);
        let handle = Handle {
            index: token.index(),
            generation: token.generation(),
        };
        let mut io = Io::new(&mut self.wire, &mut self.host, &mut self.buf);
        self.ping
            .handle_socket(self.now, handle, readiness, &mut io)
    }

    /// A reply as the host's kernel delivers it, to an identifier of its own.
    fn reply(&mut self, f: &Family, socket: SocketId, data: &[u8]) {
        let rest = echo(0xbeef, 1, data);
        let l4 = icmp(f.remote, "198.18.0.1", 1, [f.reply, 0], &rest);
        let from = SocketAddr::new(addr(f.remote), 0).to_string();
        self.host.deliver(socket, &from, None, &l4);
        self.ready(socket, READABLE);
    }

    fn got(&mut self) -> Got {
        let frames = std::mem::take(&mut self.wire.frames);
        reassemble(&frames)
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 + i / 256) as u8).collect()
}

#[test]
fn an_echo_comes_back_under_the_containers_identifier() {
    for f in [V4, V6] {
        for len in [0, 1, 56, 20_000, 65_507] {
            let mut b = Bench::new();
            let data = bytes(len);
            b.request(&f, 0x1234, &data).unwrap();
            let socket = b.host.only_socket();
            let (_, options, sent) = b.host.sent.pop().unwrap();
            let want = SendOptions {
                to: SocketAddr::new(addr(f.remote), 0),
                segment: None,
                hop_limit: 63,
                tos: 0,
                dont_fragment: true,
                source: None,
            };
            assert_eq!(options, want);
            assert_eq!((sent[0], &sent[8..]), (f.request, &data[..]));

            b.reply(&f, socket, &data);
            let got = b.got();
            assert_eq!((got.src, got.dst), (addr(f.remote), addr(f.container)));
            assert_eq!(
                (got.protocol, got.l4[0], got.l4[1]),
                (f.protocol, f.reply, 0)
            );
            assert_eq!(got.l4[4..], echo(0x1234, 1, &data));
        }
    }
}

#[test]
fn an_identifier_has_one_socket() {
    for f in [V4, V6] {
        let mut b = Bench::new();
        b.request(&f, 1, b"x").unwrap();
        let rest = echo(1, 2, b"x");
        let l4 = icmp(f.container, f.hop, f.protocol, [f.request, 0], &rest);
        b.send(&f, f.hop, IP, &l4).unwrap();
        assert_eq!(b.host.sockets.len(), 1);
        b.request(&f, 2, b"x").unwrap();
        assert_eq!((b.host.sockets.len(), b.ping.len()), (2, 2));
        b.now += MIN_PING_TIMEOUT - Duration::from_secs(1);
        b.request(&f, 2, b"x").unwrap();
        b.now += Duration::from_secs(1);
        let mut io = Io::new(&mut b.wire, &mut b.host, &mut b.buf);
        b.ping.handle_timeout(b.now, &mut io);
        assert_eq!((b.host.sockets.len(), b.ping.len()), (1, 1));
        let mut io = Io::new(&mut b.wire, &mut b.host, &mut b.buf);
        b.ping.remove_port(LINK.port, &mut io);
        assert!(b.host.sockets.is_empty() && b.ping.is_empty());
        assert_eq!(b.ping.poll_timeout(), None);
    }
}

#[test]
fn hops_and_unreachable_hosts_are_told_with_the_original_quote() {
    for (f, kinds) in [(V4, [(11, 0), (3, 1)]), (V6, [(3, 0), (1, 3)])] {
        for (icmp_type, code) in kinds {
            let mut b = Bench::new();
            b.request(&f, 0x1234, b"probe").unwrap();
            let socket = b.host.only_socket();
            // The kernel quotes the request with the identifier it sent it with.
            let rest = echo(0xbeef, 1, b"probe");
            let quote = icmp(f.container, f.remote, f.protocol, [f.request, 0], &rest);
            let destination = SocketAddr::new(addr(f.remote), 0).to_string();
            let error = (icmp_type, code, 0);
            b.host
                .fail(socket, &destination, Some(f.hop), error, &quote);
            b.ready(socket, ERROR);
            let got = b.got();
            assert_eq!((got.src, got.dst), (addr(f.hop), addr(f.container)));
            let (kind, quote) = got.error();
            assert_eq!(kind, error);
            let rest = echo(0x1234, 1, b"probe");
            let original = icmp(f.container, f.remote, f.protocol, [f.request, 0], &rest);
            assert_eq!(quote[quote.len() - original.len()..], original);
            let header = match f.protocol {
                1 => IPV4_HEADER_LEN,
                _ => IPV6_HEADER_LEN,
            };
            assert_eq!(quote.len(), header + original.len());

            // A quote too short to know the request by is not passed on.
            b.host
                .fail(socket, &destination, Some(f.hop), error, &original[..7]);
            b.ready(socket, ERROR);
            assert!(b.wire.frames.is_empty());
        }
    }
}

#[test]
fn a_dead_network_is_told_by_the_gateway() {
    for (f, kind) in [(V4, (3, 0, 0)), (V6, (1, 0, 0))] {
        let mut b = Bench::new();
        b.host.send_results = vec![Err(HostError::NetUnreachable); 2].into();
        assert_eq!(b.request(&f, 1, b"x"), Err(DropReason::HostRefused));
        let got = b.got();
        assert_eq!(got.src, addr(f.gateway));
        let (error, quote) = got.error();
        assert_eq!(error, kind);
        assert!(quote.ends_with(&echo(1, 1, b"x")));
    }
}

#[test]
fn a_request_over_the_path_mtu_is_answered_with_that_mtu() {
    for (f, kind) in [(V4, (3, 4, 1328)), (V6, (2, 0, 1328))] {
        let mut b = Bench::new();
        b.host.path_payload = Some(1300);
        assert_eq!(b.request(&f, 1, &bytes(1400)), Err(DropReason::HostRefused));
        assert_eq!(b.got().error().0, kind);
    }
}

#[test]
fn a_host_without_ping_sockets_is_reported_once() {
    for why in [HostError::Prohibited, HostError::Unsupported] {
        for (f, kind) in [(V4, (3, 13, 0)), (V6, (1, 1, 0))] {
            let mut b = Bench::new();
            assert_eq!(b.ping.unavailable(), None);
            b.host.open_error = Some(why);
            for _ in 0..2 {
                assert_eq!(b.request(&f, 1, b"x"), Err(DropReason::HostRefused));
                assert_eq!(b.got().error().0, kind);
            }
            assert_eq!(b.ping.unavailable(), Some(why));
            assert!(b.ping.is_empty());
        }
    }
}

#[test]
fn policy_is_asked_first() {
    let mut b = Bench::new();
    let l4 = |to: &str| icmp(V4.container, to, 1, [8, 0], &echo(1, 1, b"x"));
    for (to, reason) in [
        ("127.0.0.1", DropReason::Policy),
        ("169.254.169.254", DropReason::Policy),
        ("224.0.0.1", DropReason::MartianDestination),
    ] {
        assert_eq!(b.send(&V4, to, IP, &l4(to)), Err(reason));
    }
    assert!(b.host.sockets.is_empty());
    b.policy.host_loopback = vec![addr("10.0.2.3")];
    b.send(&V4, "10.0.2.3", IP, &l4("10.0.2.3")).unwrap();
    assert_eq!(b.host.sent[0].1.to.ip(), addr("127.0.0.1"));
    b.wire.frames.clear();
    let socket = b.host.only_socket();
    let reply = icmp("127.0.0.1", "127.0.0.1", 1, [0, 0], &echo(9, 1, b"x"));
    b.host.deliver(socket, "127.0.0.1:0", None, &reply);
    b.ready(socket, READABLE);
    assert_eq!(b.got().src, addr("10.0.2.3"));
}

#[test]
fn cve_2020_10756_an_echo_shorter_than_its_header_is_dropped() {
    for f in [V4, V6] {
        for len in 0..8 {
            let mut b = Bench::new();
            let whole = icmp(f.container, f.remote, f.protocol, [f.request, 0], &[0; 4]);
            let result = b.send(&f, f.remote, IP, &whole[..len.min(whole.len())]);
            assert!(result.is_err(), "{len}");
            assert!(b.host.sent.is_empty() && b.host.sockets.is_empty());

            // Nor does a short reply get filled up with what lies in the buffer.
            b.request(&f, 1, b"x").unwrap();
            let socket = b.host.only_socket();
            let from = SocketAddr::new(addr(f.remote), 0).to_string();
            b.host.deliver(
                socket,
                &from,
                None,
                &[f.reply, 0, 0, 0, 0, 0, 0][..len.min(7)],
            );
            b.ready(socket, READABLE);
            assert!(b.wire.frames.is_empty());
            assert_eq!(b.ping.counters().get(DropReason::BadIcmp), 1);
        }
    }
}

#[test]
fn only_echo_requests_leave() {
    for (f, types) in [
        (V4, &[0, 5, 9, 10, 13, 14, 15, 17, 18, 40][..]),
        (V6, &[129, 130, 135, 137, 139, 200][..]),
    ] {
        for &t in types {
            let mut b = Bench::new();
            let l4 = icmp(f.container, f.remote, f.protocol, [t, 0], &echo(1, 1, b"x"));
            assert_eq!(
                b.send(&f, f.remote, IP, &l4),
                Err(DropReason::NotServed),
                "{t}"
            );
            assert!(b.host.sockets.is_empty());
        }
        let mut b = Bench::new();
        let mut l4 = icmp(
            f.container,
            f.remote,
            f.protocol,
            [f.request, 0],
            &echo(1, 1, b"x"),
        );
        l4[8] ^= 1;
        assert_eq!(b.send(&f, f.remote, IP, &l4), Err(DropReason::BadChecksum));
    }
}

#[test]
fn forged_quotes_are_told_from_honest_ones() {
    for (f, unreachable) in [(V4, 3), (V6, 1)] {
        let mut b = Bench::new();
        b.request(&f, 0x1234, b"x").unwrap();
        b.host.sent.clear();
        let mut error = |dst: &str, l4_protocol: u8, l4: &[u8], cut: usize, owns: bool| {
            let ends = (addr(f.remote), addr(dst));
            let quoted = frame_from(VnetHeader::default(), ends, IP, l4_protocol, l4);
            let quoted = &quoted[24..quoted.len() - cut];
            let rest = [&[0; 4][..], quoted].concat();
            let l4 = icmp(f.container, f.remote, f.protocol, [unreachable, 3], &rest);
            let ends = (addr(f.container), addr(f.remote));
            let frame = frame_from(VnetHeader::default(), ends, IP, f.protocol, &l4);
            b.handle_frame(&frame, owns).unwrap_err()
        };
        let (honest, forged) = (DropReason::NotServed, DropReason::ForgedQuote);
        let udp = [0, 53, 0x13, 0x88, 0, 8, 0, 0];
        assert_eq!(error(f.container, 17, &udp, 0, true), honest);
        assert_eq!(error(f.container, 17, &udp, 0, false), forged);
        assert_eq!(error(f.container, 17, &udp, 1, true), forged);
        assert_eq!(error(f.container, 17, &udp, 20, true), forged);
        assert_eq!(error(f.hop, 17, &udp, 0, true), forged);
        assert_eq!(error(f.container, 99, &udp, 0, true), forged);
        let reply = |id| {
            icmp(
                f.remote,
                f.container,
                f.protocol,
                [f.reply, 0],
                &echo(id, 1, b""),
            )
        };
        assert_eq!(
            error(f.container, f.protocol, &reply(0x1234), 0, false),
            honest
        );
        assert_eq!(
            error(f.container, f.protocol, &reply(0x1235), 0, false),
            forged
        );
        assert!(b.host.sent.is_empty() && b.wire.frames.is_empty());
    }
}

proptest! {
    /// Whatever a container sends as ICMP, nothing panics and only well-formed requests leave.
    #[test]
    fn any_message_does_no_harm(
        v6 in any::<bool>(),
        head in any::<[u8; 2]>(),
        rest in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let f = if v6 { V6 } else { V4 };
        let mut b = Bench::new();
        let l4 = icmp(f.container, f.remote, f.protocol, head, &rest);
        let sent = b.send(&f, f.remote, IP, &l4).is_ok();
        prop_assert_eq!(sent, head == [f.request, 0] && rest.len() >= 4);
        prop_assert_eq!(b.host.sent.len(), usize::from(sent));
    }

    /// Whatever a socket delivers, nothing panics and only replies arrive, with no byte added.
    #[test]
    fn any_delivery_does_no_harm(
        v6 in any::<bool>(),
        data in proptest::collection::vec(any::<u8>(), 0..120),
        reply in any::<bool>(),
    ) {
        let f = if v6 { V6 } else { V4 };
        let mut b = Bench::new();
        b.request(&f, 1, b"x").unwrap();
        let socket = b.host.only_socket();
        let mut data = data;
        if let (true, [t, code, ..]) = (reply, &mut data[..]) {
            (*t, *code) = (f.reply, 0);
        }
        let from = SocketAddr::new(addr(f.remote), 0).to_string();
        b.host.deliver(socket, &from, None, &data);
        b.ready(socket, READABLE);
        let valid = data.len() >= 8 && data[..2] == [f.reply, 0];
        prop_assert_eq!(b.wire.frames.len(), usize::from(valid));
        if valid {
            prop_assert_eq!(&b.got().l4[6..], &data[6..]);
        }
    }
}
