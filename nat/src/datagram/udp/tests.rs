//! Tests of the UDP engine between a wire and a host that do as they are told.
//!
//! Longer than 1200 lines: one bench, with its wire and its host, serves mappings and published ports,
//! and a test is found by the name of what it shows.

mod limits;

use super::*;
use crate::datagram::testing::{
    FakeHost, IP, Ip, LINK, Packet as Got, Wire, frame_from, reassemble, udp_datagram,
};
use crate::forward::{ContainerEnd, ForwardedClient, shown_as};
use crate::host::TokenKind;
use cnet_wire::headers::{FRAME_BUFFER_LEN, IpOut};
use cnet_wire::time::Duration;
use cnet_wire::vnet::{F_NEEDS_CSUM, VNET_HDR_LEN};
use cnet_wire::{Frame, L3, VnetHeader};
use proptest::prelude::*;

const SEED: u64 = 7;
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

/// Container, remote host, gateway and the host's loopback of a family.
struct Addresses {
    container: &'static str,
    remote: &'static str,
    other: &'static str,
    gateway: &'static str,
    loopback: &'static str,
}

const V4: Addresses = Addresses {
    container: "10.0.2.100:5000",
    remote: "192.0.2.1:53",
    other: "198.51.100.9:3478",
    gateway: "10.0.2.2:53",
    loopback: "127.0.0.1:53",
};
const V6: Addresses = Addresses {
    container: "[fd00::100]:5000",
    remote: "[2001:db8::1]:53",
    other: "[2001:db8:1::9]:3478",
    gateway: "[fd00::2]:53",
    loopback: "[::1]:53",
};

fn addr(s: &str) -> SocketAddr {
    s.parse().unwrap()
}

struct Bench {
    udp: UdpSessions,
    host: FakeHost,
    wire: Wire,
    buf: Vec<u8>,
    policy: Policy,
    now: Instant,
}

/// Clients of a container that is behind this link, if it is known.
struct KnownClients(Option<Link>);

impl Clients for KnownClients {
    fn link_to(&self, _container: IpAddr) -> Option<Link> {
        self.0
    }

    fn shown_as(&self, client: SocketAddr, container: SocketAddr) -> Option<SocketAddr> {
        let of_family = |v4: &str, v6: &str| addr(if container.is_ipv4() { v4 } else { v6 }).ip();
        shown_as(&ForwardedClient {
            address: client,
            container,
            gateway: Some(of_family(V4.gateway, V6.gateway)),
            is_on_link: matches!(client.ip(), IpAddr::V6(a) if a.is_unicast_link_local()),
        })
    }
}

impl Bench {
    fn new(change: impl FnOnce(&mut DatagramConfig)) -> Bench {
        let mut config = DatagramConfig {
            host_alias_v4: Some("10.0.2.2".parse().unwrap()),
            host_alias_v6: Some("fd00::2".parse().unwrap()),
            gateway_v4: Some("10.0.2.2".parse().unwrap()),
            gateway_v6: Some("fd00::2".parse().unwrap()),
            ..DatagramConfig::default()
        };
        change(&mut config);
        Bench {
            udp: UdpSessions::new(Instant::ZERO, config, SEED),
            host: FakeHost::default(),
            wire: Wire::default(),
            buf: vec![0xaa; FRAME_BUFFER_LEN],
            policy: Policy::default(),
            now: Instant::from_millis(1),
        }
    }

    fn io<'a>(
        (wire, host, buf): (&'a mut Wire, &'a mut FakeHost, &'a mut Vec<u8>),
    ) -> Io<'a, (Wire, FakeHost)> {
        Io::new(wire, host, buf)
    }

    fn handle_frame(&mut self, link: &Link, bytes: &[u8]) -> Result<(), DropReason> {
        let frame = Frame::parse(bytes, 1500)?;
        let L3::Ip(ip) = frame.l3 else { panic!("ARP") };
        let mut io = Self::io((&mut self.wire, &mut self.host, &mut self.buf));
        self.udp.handle_packet(
            &Packet::new(self.now, link.port, &frame, &ip),
            link,
            &self.policy,
            &mut io,
        )
    }

    fn stage_with(
        &mut self,
        ip: Ip,
        src: &str,
        dst: &str,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let (src, dst) = (addr(src), addr(dst));
        let l4 = udp_datagram(src, dst, payload);
        let vnet = VnetHeader::default();
        self.handle_frame(&LINK, &frame_from(vnet, (src.ip(), dst.ip()), ip, 17, &l4))
    }

    fn stage(&mut self, src: &str, dst: &str, payload: &[u8]) -> Result<(), DropReason> {
        self.stage_with(IP, src, dst, payload)
    }

    fn flush(&mut self) {
        let mut io = Self::io((&mut self.wire, &mut self.host, &mut self.buf));
        self.udp.flush(self.now, &mut io);
    }

    fn send(&mut self, src: &str, dst: &str, payload: &[u8]) -> Result<(), DropReason> {
        let result = self.stage(src, dst, payload);
        self.flush();
        result
    }

    fn ready(&mut self, socket: SocketId, readiness: Readiness) -> SocketOutcome {
        let token = self.host.socket(socket).token.unwrap();
        assert_eq!(token.kind(), TokenKind::Udp);
        let handle = Handle {
            index: token.index(),
            generation: token.generation(),
        };
        let mut io = Self::io((&mut self.wire, &mut self.host, &mut self.buf));
        self.udp.handle_socket(self.now, handle, readiness, &mut io)
    }

    fn forward_ready(
        &mut self,
        socket: SocketId,
        readiness: Readiness,
        link: Option<Link>,
    ) -> SocketOutcome {
        let token = self.host.socket(socket).token.unwrap();
        let mut io = Self::io((&mut self.wire, &mut self.host, &mut self.buf));
        let clients = KnownClients(link);
        self.udp
            .handle_forward(self.now, token, readiness, &clients, &self.policy, &mut io)
    }

    fn publish(&mut self, n: u32, container: &str, v6: bool) -> SocketId {
        self.publish_end(n, addr(container).into(), v6)
    }

    fn publish_end(&mut self, n: u32, container: ContainerEnd, v6: bool) -> SocketId {
        let token = Token::new(TokenKind::Forward, n, 1);
        let socket = self.host.bind(token, v6);
        let forward = UdpForward {
            bound: addr(if v6 { "[::]:5000" } else { "0.0.0.0:5000" }),
            both_families: v6,
            container,
        };
        let published = self.udp.publish_udp(token, socket, forward, None);
        published.unwrap();
        socket
    }

    fn advance(&mut self, d: Duration) {
        self.now += d;
        let mut io = Self::io((&mut self.wire, &mut self.host, &mut self.buf));
        self.udp.handle_timeout(self.now, &mut io);
    }

    fn got(&mut self) -> Got {
        let frame = self.wire.frames.pop().expect("a frame");
        assert!(self.wire.frames.is_empty(), "one frame");
        Got::read(&frame)
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 + i / 256) as u8).collect()
}

#[test]
fn a_datagram_goes_out_and_its_answer_comes_back() {
    for a in [V4, V6] {
        let mut b = Bench::new(|_| ());
        let ip = Ip {
            hop_limit: 9,
            tos: 0xb9,
            dont_fragment: true,
        };
        b.stage_with(ip, a.container, a.remote, b"query").unwrap();
        assert!(b.host.sent.is_empty());
        b.flush();
        let socket = b.host.only_socket();
        let options = SendOptions {
            to: addr(a.remote),
            segment: None,
            hop_limit: 8,
            tos: 0xb9,
            dont_fragment: true,
            source: None,
        };
        assert_eq!(b.host.sent, [(socket, options, b"query".to_vec())]);

        b.host.deliver(socket, a.remote, None, b"answer");
        assert_eq!(b.ready(socket, READABLE), SocketOutcome::default());
        let got = b.got();
        assert_eq!(got.ends(), (addr(a.remote), addr(a.container)));
        assert_eq!(
            (&got.l4[8..], got.tos, got.hop_limit),
            (&b"answer"[..], 2, 59)
        );
    }
}

#[test]
fn an_ipv4_packet_without_df_may_be_fragmented_by_the_host() {
    let mut b = Bench::new(|_| ());
    let ip = Ip {
        dont_fragment: false,
        ..IP
    };
    b.stage_with(ip, V4.container, V4.remote, b"x").unwrap();
    b.flush();
    assert!(!b.host.sent[0].1.dont_fragment);
}

#[test]
fn empty_datagrams_pass_both_ways() {
    for a in [V4, V6] {
        let mut b = Bench::new(|_| ());
        b.send(a.container, a.remote, b"").unwrap();
        let socket = b.host.only_socket();
        assert_eq!(b.host.sent[0].2, b"");
        b.host.deliver(socket, a.remote, None, b"");
        b.ready(socket, READABLE);
        assert_eq!(b.got().l4.len(), 8);
    }
}

#[test]
fn mapping_and_filtering_are_endpoint_independent() {
    for a in [V4, V6] {
        let mut b = Bench::new(|_| ());
        b.send(a.container, a.remote, b"1").unwrap();
        b.send(a.container, a.other, b"2").unwrap();
        let socket = b.host.only_socket();
        // An end that the container never sent to.
        let stranger = a.other.replace("3478", "9");
        b.host.deliver(socket, &stranger, None, b"hello");
        b.ready(socket, READABLE);
        assert_eq!(b.got().ends().0, addr(&stranger));
        // Another port of the container, and its port on another link, are others.
        b.send(&a.container.replace("5000", "5001"), a.remote, b"3")
            .unwrap();
        let (src, dst) = (addr(a.container), addr(a.remote));
        let l4 = udp_datagram(src, dst, b"4");
        let frame = frame_from(VnetHeader::default(), (src.ip(), dst.ip()), IP, 17, &l4);
        let elsewhere = Link {
            port: PortId(4),
            ..LINK
        };
        b.handle_frame(&elsewhere, &frame).unwrap();
        b.flush();
        assert_eq!((b.host.sockets.len(), b.udp.len()), (3, 3));
    }
}

#[test]
fn equal_datagrams_leave_in_one_send() {
    for a in [V4, V6] {
        let mut b = Bench::new(|_| ());
        let data = bytes(1200 * 100);
        for one in data[..1200 * 9 + 500].chunks(1200) {
            b.stage(a.container, a.remote, one).unwrap();
        }
        b.flush();
        let socket = b.host.only_socket();
        assert_eq!(b.host.sent.len(), 1);
        let (_, options, payload) = b.host.sent.pop().unwrap();
        assert_eq!(
            (options.segment, &payload[..]),
            (Some(1200), &data[..1200 * 9 + 500])
        );

        // Nothing follows a shorter one; 64 KiB and 64 datagrams are the most.
        for one in [300, 100, 300, 300] {
            b.stage(a.container, a.remote, &data[..one]).unwrap();
        }
        for one in data.chunks(1200).chain(data.chunks(100).take(130)) {
            b.stage(a.container, a.remote, one).unwrap();
        }
        b.flush();
        let sent: Vec<_> = b
            .host
            .sent
            .iter()
            .map(|s| (s.0, s.1.segment, s.2.len()))
            .collect();
        let want = [
            (Some(300), 400),
            (Some(300), 600),
            (Some(1200), 64800),
            // The first of the shorter ones still fits in as the last.
            (Some(1200), 55300),
            (Some(100), 6400),
            (Some(100), 6400),
            (None, 100),
        ];
        assert_eq!(sent, want.map(|(segment, len)| (socket, segment, len)));
    }
}

#[test]
fn what_differs_ends_a_run() {
    let mut b = Bench::new(|_| ());
    let other = V4.container.replace("5000", "5001");
    let ip = |change: fn(&mut Ip)| {
        let mut ip = IP;
        change(&mut ip);
        ip
    };
    let cases = [
        (IP, V4.container, V4.remote),
        (ip(|ip| ip.tos = 1), V4.container, V4.remote),
        (ip(|ip| ip.hop_limit = 63), V4.container, V4.remote),
        (ip(|ip| ip.dont_fragment = false), V4.container, V4.remote),
        (IP, V4.container, V4.other),
        (IP, &other, V4.remote),
    ];
    for (ip, src, dst) in cases {
        b.stage_with(IP, V4.container, V4.remote, b"first").unwrap();
        b.stage_with(ip, src, dst, b"other").unwrap();
        b.flush();
        let sent = std::mem::take(&mut b.host.sent);
        let same = (ip.tos, ip.hop_limit, ip.dont_fragment) == (0, 64, true)
            && (src, dst) == (V4.container, V4.remote);
        assert_eq!(sent.len(), if same { 1 } else { 2 });
    }
}

/// A UDP super-frame from the container.
fn super_frame(a: &Addresses, size: u16, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (addr(a.container), addr(a.remote));
    let l4 = udp_datagram(src, dst, payload);
    let csum_start = if src.is_ipv4() { 34 } else { 54 };
    let vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: csum_start + 8,
        gso_size: size,
        csum_start,
        csum_offset: 6,
    };
    frame_from(vnet, (src.ip(), dst.ip()), IP, 17, &l4)
}

#[test]
fn a_super_frame_leaves_in_one_send() {
    for a in [V4, V6] {
        let mut b = Bench::new(|_| ());
        let data = bytes(60000);
        b.stage(a.container, a.remote, b"before").unwrap();
        b.handle_frame(&LINK, &super_frame(&a, 1200, &data))
            .unwrap();
        b.handle_frame(&LINK, &super_frame(&a, 1200, &data[..1200]))
            .unwrap();
        b.handle_frame(&LINK, &super_frame(&a, 100, &data[..10000]))
            .unwrap();
        let sent: Vec<_> = b
            .host
            .sent
            .iter()
            .map(|s| (s.1.segment, s.2.len()))
            .collect();
        let want = [
            (None, 6),
            (Some(1200), 60000),
            (None, 1200),
            (Some(100), 6400),
            (Some(100), 3600),
        ];
        assert_eq!(sent, want);
        assert_eq!(b.host.sent[1].2, data);
    }
}

#[test]
fn without_segmentation_datagrams_go_one_by_one() {
    let mut b = Bench::new(|_| ());
    b.host.no_segmentation = true;
    let data = bytes(3400);
    for one in data.chunks(1000) {
        b.stage(V4.container, V4.remote, one).unwrap();
    }
    b.flush();
    let sent: Vec<_> = b.host.sent.drain(..).map(|s| (s.1.segment, s.2)).collect();
    let want: Vec<_> = data.chunks(1000).map(|c| (None, c.to_vec())).collect();
    assert_eq!(sent, want);
    // It is not tried again, and nothing waits for a batch any more.
    b.stage(V4.container, V4.remote, &data[..10]).unwrap();
    assert_eq!(b.host.sent.len(), 1);
}

#[test]
fn a_segment_over_the_path_mtu_is_sent_alone_from_then_on() {
    let mut b = Bench::new(|_| ());
    b.host.path_payload = Some(1000);
    let data = bytes(8000);
    let ip = Ip {
        dont_fragment: false,
        ..IP
    };
    for _ in 0..2 {
        for one in data.chunks(1200) {
            b.stage_with(ip, V4.container, V4.remote, one).unwrap();
        }
        b.flush();
        let sent: Vec<_> = b.host.sent.drain(..).map(|s| s.2).collect();
        assert_eq!(sent.concat(), data);
        assert_eq!(sent.len(), 7);
    }
    for one in data.chunks(900) {
        b.stage_with(ip, V4.container, V4.remote, one).unwrap();
    }
    b.flush();
    assert_eq!(b.host.sent.len(), 1);
}

#[test]
fn a_datagram_over_the_path_mtu_is_answered_with_that_mtu() {
    for (a, icmp, mtu) in [(V4, (3, 4), 1328), (V6, (2, 0), 1328)] {
        let mut b = Bench::new(|_| ());
        b.host.path_payload = Some(1300);
        for _ in 0..5 {
            b.stage(a.container, a.remote, &bytes(1400)).unwrap();
        }
        b.flush();
        assert!(b.host.sent.is_empty());
        assert_eq!(b.udp.counters().get(DropReason::HostRefused), 5);
        let got = b.got();
        assert_eq!(got.src, addr(a.gateway).ip());
        let ((icmp_type, code, info), quote) = got.error();
        assert_eq!(((icmp_type, code), info), (icmp, mtu));
        let (src, dst) = (addr(a.container), addr(a.remote));
        let l4 = udp_datagram(src, dst, &bytes(1400));
        let original = frame_from(VnetHeader::default(), (src.ip(), dst.ip()), IP, 17, &l4);
        let ip = VNET_HDR_LEN + 14;
        let udp = l4_offset(src.is_ipv6()) - ip;
        assert_eq!(quote[..2], original[ip..ip + 2]);
        assert_eq!(quote[udp..udp + 6], l4[..6]);
        assert_eq!(quote[udp + 8..], l4[8..8 + quote.len() - udp - 8]);
        let total = if src.is_ipv4() { 2..4 } else { 4..6 };
        assert_eq!(
            quote[total.clone()],
            original[ip + total.start..ip + total.end]
        );
    }
}

#[test]
fn an_mtu_below_the_minimum_is_raised() {
    for (a, least) in [(V4, 68), (V6, 1280)] {
        let mut b = Bench::new(|_| ());
        b.send(a.container, a.remote, b"x").unwrap();
        let socket = b.host.only_socket();
        let icmp = if a.remote.starts_with('[') {
            (2, 0, 10)
        } else {
            (3, 4, 10)
        };
        b.host.fail(
            socket,
            a.remote,
            Some(&addr(a.other).ip().to_string()),
            icmp,
            b"x",
        );
        b.ready(socket, ERROR);
        assert_eq!(b.got().error().0.2, least);
    }
}

#[test]
fn a_batch_becomes_a_super_frame_where_ports_take_such() {
    for a in [V4, V6] {
        let mut b = Bench::new(|c| c.uso = true);
        b.send(a.container, a.remote, b"x").unwrap();
        let socket = b.host.only_socket();
        let data = bytes(50_100);
        b.host.deliver(socket, a.remote, Some(1400), &data);
        b.ready(socket, READABLE);
        assert_eq!(b.wire.frames.len(), 1);
        let frame = b.wire.frames.pop().unwrap();
        let vnet = VnetHeader::decode(&frame).unwrap();
        let l4 = (l4_offset(addr(a.remote).is_ipv6()) - VNET_HDR_LEN) as u16;
        let want = VnetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_UDP_L4,
            hdr_len: l4 + 8,
            gso_size: 1400,
            csum_start: l4,
            csum_offset: 6,
        };
        assert_eq!(vnet, want);
        // The checksum field holds the pseudo-header's sum: filled in, it is right for the whole.
        assert_eq!(Got::read(&frame).l4[8..], data);
        // A batch of one is no super-frame.
        b.host.deliver(socket, a.remote, Some(1400), &data[..1400]);
        b.ready(socket, READABLE);
        let frame = b.wire.frames.pop().unwrap();
        assert_eq!(VnetHeader::decode(&frame).unwrap().gso_type, GSO_NONE);
    }
}

#[test]
fn a_batch_is_cut_where_ports_take_no_super_frames() {
    for a in [V4, V6] {
        for (size, mtu) in [(1400, 1500), (1, 1500), (1470, 1280), (9000, 1500)] {
            let mut b = Bench::new(|c| {
                // Segments over the MTU are cut into fragments all the same.
                c.uso = size > 1472;
                c.mtu = mtu;
            });
            b.send(a.container, a.remote, b"x").unwrap();
            let socket = b.host.only_socket();
            let data = bytes(usize::from(size) * 5 + usize::from(size) / 2);
            b.host.deliver(socket, a.remote, Some(size), &data);
            b.ready(socket, READABLE);
            let mut frames = &b.wire.frames[..];
            for one in data.chunks(usize::from(size)) {
                let is_last = |f: &Vec<u8>| {
                    let frame = Frame::parse(f, 65535).unwrap();
                    let L3::Ip(ip) = frame.l3 else { panic!("ARP") };
                    assert!(ip.end - 14 <= mtu);
                    ip.fragment.is_none_or(|f| !f.more)
                };
                let n = frames.iter().position(is_last).unwrap() + 1;
                let got = reassemble(&frames[..n]);
                assert_eq!(got.ends(), (addr(a.remote), addr(a.container)));
                assert_eq!(got.l4[8..], *one);
                frames = &frames[n..];
            }
            assert!(frames.is_empty());
        }
    }
}

#[test]
fn a_60000_byte_datagram_passes_both_ways() {
    for (a, most) in [(V4, 65507), (V6, 65527)] {
        for len in [60_000, most] {
            let mut b = Bench::new(|_| ());
            b.send(a.container, a.remote, b"x").unwrap();
            let socket = b.host.only_socket();
            let data = bytes(len);
            b.host.deliver(socket, a.remote, None, &data);
            b.ready(socket, READABLE);
            let frames = std::mem::take(&mut b.wire.frames);
            assert!(frames.len() > 40);
            let got = reassemble(&frames);
            assert_eq!(got.l4[8..], data);

            // And the way out, as the container's kernel would cut it.
            let (src, dst) = (addr(a.container), addr(a.remote));
            let mut wire = Wire::default();
            let ip = IpOut {
                src: src.ip(),
                dst: dst.ip(),
                protocol: 17,
                hop_limit: 64,
                tos: 0,
            };
            let l4 = udp_datagram(src, dst, &data);
            crate::fragment::emit_ip_payload(&mut wire, &mut b.buf, &LINK, &ip, 1500, 5, &l4)
                .unwrap();
            let mut reassembly = crate::fragment::Reassembly::new();
            let mut whole = None;
            for f in &wire.frames {
                let frame = Frame::parse(f, 1500).unwrap();
                let L3::Ip(ip) = frame.l3 else { panic!("ARP") };
                whole = reassembly
                    .handle_fragment(b.now, LINK.port, &frame, &ip)
                    .unwrap();
            }
            let whole = whole.unwrap();
            let frame = whole.parse().unwrap();
            let L3::Ip(ip) = frame.l3 else { panic!("ARP") };
            let mut io = Bench::io((&mut b.wire, &mut b.host, &mut b.buf));
            b.udp
                .handle_packet(
                    &Packet::new(b.now, LINK.port, &frame, &ip),
                    &LINK,
                    &b.policy,
                    &mut io,
                )
                .unwrap();
            let (_, options, payload) = b.host.sent.pop().unwrap();
            assert_eq!((payload, options.dont_fragment), (data, false));
        }
    }
}

#[test]
fn an_ipv6_datagram_longer_than_a_packet_is_dropped() {
    let mut b = Bench::new(|_| ());
    b.send(V6.container, V6.remote, b"x").unwrap();
    let socket = b.host.only_socket();
    b.host.deliver(socket, V6.remote, None, &bytes(65_528));
    b.ready(socket, READABLE);
    assert!(b.wire.frames.is_empty());
    assert_eq!(b.udp.counters().get(DropReason::FrameTooLong), 1);
}

#[test]
fn loopback_is_shown_as_the_gateway() {
    for a in [V4, V6] {
        let mut b = Bench::new(|_| ());
        let second = a.gateway.replace("2:53", "3:53").replace("::2]", "::3]");
        b.policy.host_loopback = vec![addr(a.gateway).ip(), addr(&second).ip()];
        for gateway in [a.gateway, &second] {
            b.send(a.container, gateway, b"q").unwrap();
            assert_eq!(b.host.sent.pop().unwrap().1.to, addr(a.loopback));
            let socket = b.host.only_socket();
            b.host.deliver(socket, a.loopback, None, b"a");
            b.ready(socket, READABLE);
            assert_eq!(b.got().ends().0, addr(gateway));
            // The host's own refusal comes from there as well.
            let icmp = if a.remote.starts_with('[') {
                (1, 4, 0)
            } else {
                (3, 3, 0)
            };
            let offender = addr(a.loopback).ip().to_string();
            b.host.fail(socket, a.loopback, Some(&offender), icmp, b"q");
            b.ready(socket, ERROR);
            let got = b.got();
            assert_eq!(got.src, addr(gateway).ip());
            assert_eq!(got.error().0, icmp);
        }
        // A program of the host that speaks first.
        let other = a.container.replace("5000", "5001");
        b.send(&other, a.remote, b"q").unwrap();
        let socket = b.host.sent.pop().unwrap().0;
        b.host
            .deliver(socket, &a.loopback.replace("53", "9"), None, b"a");
        b.ready(socket, READABLE);
        assert_eq!(b.got().ends().0, addr(&a.gateway.replace("53", "9")));
    }
}

#[test]
fn what_cannot_be_shown_is_dropped() {
    let mut b = Bench::new(|c| (c.host_alias_v4, c.host_alias_v6) = (None, None));
    b.send(V4.container, V4.remote, b"q").unwrap();
    let v4 = b.host.only_socket();
    b.send(V6.container, V6.remote, b"q").unwrap();
    let v6 = b.host.sent[1].0;
    b.host.deliver(v4, "127.0.0.1:1", None, b"a");
    b.host.deliver(v6, "[::1]:1", None, b"a");
    b.host.deliver(v6, "[fe80::1]:1", None, b"a");
    b.host.deliver(v6, "[::ffff:127.0.0.1]:1", None, b"a");
    b.host.deliver(v6, "[::ffff:192.0.2.1]:1", None, b"a");
    b.ready(v4, READABLE);
    b.ready(v6, READABLE);
    assert!(b.wire.frames.is_empty());
    assert_eq!(b.udp.counters().get(DropReason::MartianSource), 4);
    assert_eq!(b.udp.counters().get(DropReason::NotServed), 1);
}

#[test]
fn policy_is_asked_first() {
    let cases = [
        (V4.container, "127.0.0.1:53", (3, 0)),
        (V4.container, "10.0.2.2:53", (3, 13)),
        (V6.container, "[::1]:53", (1, 0)),
        (V6.container, "[fe80::a9fe:a9fe]:80", (1, 1)),
    ];
    for (src, dst, icmp) in cases {
        let mut b = Bench::new(|_| ());
        b.policy.filter.no_host = true;
        b.policy.host_addresses = vec!["10.0.2.2".parse().unwrap()];
        assert_eq!(b.send(src, dst, b"x"), Err(DropReason::Policy));
        let ((icmp_type, code, _), _) = b.got().error();
        assert_eq!((icmp_type, code), icmp);
        assert!(b.host.sockets.is_empty() && b.host.sent.is_empty());
    }
}

#[test]
fn groups_and_broadcasts_are_not_routed() {
    let cases = [
        (V4.container, "224.0.0.251:5353"),
        (V4.container, "255.255.255.255:67"),
        (V6.container, "[ff02::fb]:5353"),
        (V6.container, "[fe80::1]:1"),
        (V6.container, "[::ffff:192.0.2.1]:1"),
    ];
    for (src, dst) in cases {
        let mut b = Bench::new(|_| ());
        assert_eq!(
            b.send(src, dst, b"x"),
            Err(DropReason::MartianDestination),
            "{dst}"
        );
        assert!(b.host.sockets.is_empty() && b.wire.frames.is_empty());
    }
    let mut b = Bench::new(|_| ());
    let (src, dst) = (addr(V4.container), addr("10.0.2.255:138"));
    let l4 = udp_datagram(src, dst, b"x");
    let mut frame = frame_from(VnetHeader::default(), (src.ip(), dst.ip()), IP, 17, &l4);
    frame[VNET_HDR_LEN..VNET_HDR_LEN + 6].fill(0xff);
    assert_eq!(
        b.handle_frame(&LINK, &frame),
        Err(DropReason::MartianDestination)
    );
}

#[test]
fn malformed_packets_are_dropped_by_reason() {
    for a in [V4, V6] {
        let (src, dst) = (addr(a.container), addr(a.remote));
        let good = udp_datagram(src, dst, b"payload");
        let change = |f: fn(&mut Vec<u8>)| {
            let mut l4 = good.clone();
            f(&mut l4);
            l4
        };
        let no_checksum = if src.is_ipv4() {
            Ok(())
        } else {
            Err(DropReason::BadChecksum)
        };
        let cases = [
            (change(|l4| l4[9] ^= 1), Err(DropReason::BadChecksum)),
            (change(|l4| l4[..2].fill(0)), Err(DropReason::PortZero)),
            (change(|l4| l4[4..6].fill(0)), Err(DropReason::BadUdpHeader)),
            (change(|l4| l4[5] = 7), Err(DropReason::BadUdpHeader)),
            (change(|l4| l4[5] += 1), Err(DropReason::BadUdpHeader)),
            (change(|l4| l4.truncate(7)), Err(DropReason::BadUdpHeader)),
            (change(|l4| l4.truncate(0)), Err(DropReason::BadUdpHeader)),
            (change(|l4| l4[6..8].fill(0)), no_checksum),
            (change(|l4| l4.extend(b"surplus")), Ok(())),
        ];
        for (i, (l4, want)) in cases.iter().enumerate() {
            let mut b = Bench::new(|_| ());
            let frame = frame_from(VnetHeader::default(), (src.ip(), dst.ip()), IP, 17, l4);
            assert_eq!(b.handle_frame(&LINK, &frame), *want, "case {i}");
            b.flush();
            let sent: Vec<_> = b.host.sent.iter().map(|s| &s.2[..]).collect();
            assert_eq!(sent, vec![b"payload"; usize::from(want.is_ok())]);
        }
    }
}

#[test]
fn a_host_without_descriptors_is_told_of_at_a_bounded_rate() {
    let mut b = Bench::new(|_| ());
    b.host.open_error = Some(HostError::Exhausted);
    for _ in 0..10_000 {
        let result = b.send(V4.container, V4.remote, b"x");
        assert_eq!(result, Err(DropReason::HostResource));
    }
    let errors = std::mem::take(&mut b.wire.frames);
    assert!((1..500).contains(&errors.len()));
    assert_eq!(Got::read(&errors[0]).error().0, (3, 1, 0));
    assert!(b.udp.is_empty());
    b.host.open_error = None;
    b.send(V4.container, V4.remote, b"x").unwrap();
}

#[test]
fn a_stale_event_is_harmless() {
    let mut b = Bench::new(|_| ());
    b.send(V4.container, V4.remote, b"x").unwrap();
    let socket = b.host.only_socket();
    let token = b.host.socket(socket).token.unwrap();
    let handle = Handle {
        index: token.index(),
        generation: token.generation(),
    };
    let mut io = Bench::io((&mut b.wire, &mut b.host, &mut b.buf));
    b.udp.remove_port(LINK.port, &mut io);
    b.send(V4.container, V4.remote, b"x").unwrap();
    let mut io = Bench::io((&mut b.wire, &mut b.host, &mut b.buf));
    let outcome = b.udp.handle_socket(b.now, handle, READABLE, &mut io);
    assert_eq!(outcome, SocketOutcome::default());
}

#[test]
fn errors_come_back_with_the_original_quote() {
    let cases: [(Addresses, &[(u8, u8)]); 2] = [
        (V4, &[(3, 0), (3, 1), (3, 3), (3, 13), (11, 0), (12, 0)]),
        (V6, &[(1, 0), (1, 3), (1, 4), (3, 0), (4, 1)]),
    ];
    for (a, kinds) in cases {
        let hop = addr(a.other).ip();
        let mut b = Bench::new(|_| ());
        b.send(a.container, a.remote, b"probe").unwrap();
        let socket = b.host.only_socket();
        for &(icmp_type, code) in kinds {
            let icmp = (icmp_type, code, 0);
            b.host
                .fail(socket, a.remote, Some(&hop.to_string()), icmp, b"probe");
            assert_eq!(b.ready(socket, ERROR), SocketOutcome::default());
            let got = b.got();
            assert_eq!((got.src, got.dst), (hop, addr(a.container).ip()));
            let (kind, quote) = got.error();
            assert_eq!(kind, icmp);
            let udp = quote.len() - 13;
            assert_eq!(
                quote[udp..udp + 4],
                [5000u16.to_be_bytes(), 53u16.to_be_bytes()].concat()
            );
            assert_eq!(quote[udp + 8..], *b"probe");
        }
        // Redirects, and what is not an error, stay outside.
        b.host.fail(
            socket,
            a.remote,
            Some(&hop.to_string()),
            (5, 0, 0),
            b"probe",
        );
        b.host.fail(
            socket,
            a.remote,
            Some(&hop.to_string()),
            (137, 0, 0),
            b"probe",
        );
        b.ready(socket, ERROR);
        assert!(b.wire.frames.is_empty());
    }
}

#[test]
fn an_earlier_error_does_not_cost_the_next_datagram() {
    let mut b = Bench::new(|_| ());
    b.send(V4.container, V4.remote, b"1").unwrap();
    let socket = b.host.only_socket();
    b.host.fail(socket, V4.remote, None, (3, 3, 0), b"1");
    b.host.send_results.push_back(Err(HostError::Refused));
    b.send(V4.container, V4.other, b"2").unwrap();
    assert_eq!(b.host.sent.last().unwrap().2, b"2");
    let got = b.got();
    assert_eq!(got.error().0, (3, 3, 0));
    // The same of a run, and of a receive.
    b.host
        .send_results
        .push_back(Err(HostError::HostUnreachable));
    b.stage(V4.container, V4.other, b"3").unwrap();
    b.stage(V4.container, V4.other, b"4").unwrap();
    b.flush();
    assert_eq!(b.host.sent.len(), 4);
    b.host
        .socket(socket)
        .inbox
        .push_back(Err(HostError::Refused));
    b.host.deliver(socket, V4.remote, None, b"5");
    b.ready(socket, READABLE);
    assert_eq!(b.got().l4[8..], *b"5");
}

#[test]
fn an_unreachable_network_is_told_once_a_run() {
    for (a, icmp) in [(V4, (3, 0, 0)), (V6, (1, 0, 0))] {
        let mut b = Bench::new(|_| ());
        b.host.send_results = vec![Err(HostError::NetUnreachable); 3].into();
        for _ in 0..20 {
            b.stage(a.container, a.remote, b"x").unwrap();
        }
        b.flush();
        assert_eq!(b.got().error().0, icmp);
        assert_eq!(b.udp.counters().get(DropReason::HostRefused), 20);
    }
}

#[test]
fn a_full_socket_or_port_loses_datagrams_quietly() {
    let mut b = Bench::new(|_| ());
    b.host.send_results.push_back(Err(HostError::WouldBlock));
    b.stage(V4.container, V4.remote, b"1").unwrap();
    b.stage(V4.container, V4.remote, b"2").unwrap();
    b.flush();
    assert_eq!(b.udp.counters().get(DropReason::HostResource), 2);
    let socket = b.host.only_socket();
    b.wire.room = Some(1);
    b.host.deliver(socket, V4.remote, Some(10), &bytes(25));
    b.ready(socket, READABLE);
    assert_eq!(b.wire.frames.len(), 1);
    // The sink counts what the port did not take.
    assert_eq!(b.udp.counters().total(), 2);
}

#[test]
fn one_busy_socket_does_not_starve_others() {
    let mut b = Bench::new(|_| ());
    b.send(V4.container, V4.remote, b"x").unwrap();
    let socket = b.host.only_socket();
    for _ in 0..200 {
        b.host.deliver(socket, V4.remote, None, b"x");
        b.host.fail(socket, V4.remote, None, (3, 3, 0), b"x");
    }
    let (mut rounds, mut left) = (
        0,
        Readiness {
            readable: true,
            ..ERROR
        },
    );
    while left != Readiness::default() {
        left = b.ready(socket, left).left;
        rounds += 1;
        assert!(rounds < 20);
    }
    assert!(rounds > 2);
    let inbox = &b.host.socket(socket).inbox;
    assert!(inbox.is_empty());
}

#[test]
fn published_ports_answer_through_the_socket_they_were_spoken_to() {
    for a in [V4, V6] {
        let v6 = addr(a.remote).is_ipv6();
        let mut b = Bench::new(|_| ());
        let first = b.publish(0, a.container, v6);
        let second = b.publish(1, a.container, v6);
        let (one, two) = (a.remote, a.other);
        b.host.deliver(first, one, None, b"1");
        b.host.deliver(second, two, None, b"2");
        b.forward_ready(first, READABLE, Some(LINK));
        assert_eq!(b.got().ends(), (addr(one), addr(a.container)));
        b.forward_ready(second, READABLE, Some(LINK));
        assert_eq!(b.got().ends(), (addr(two), addr(a.container)));
        assert_eq!((b.udp.len(), b.udp.clients()), (0, 2));

        b.send(a.container, one, b"to 1").unwrap();
        b.send(a.container, two, b"to 2").unwrap();
        let stranger = a.other.replace("3478", "9");
        b.send(a.container, &stranger, b"to 3").unwrap();
        let sent: Vec<_> = b.host.sent.drain(..).map(|s| (s.0, s.1.to)).collect();
        assert_eq!(sent[..2], [(first, addr(one)), (second, addr(two))]);
        assert!(sent[2].0 != first && sent[2].0 != second);
        assert_eq!(b.udp.len(), 1);

        // A client that speaks to the other published port as well is another one there.
        b.host.deliver(second, one, None, b"1");
        b.forward_ready(second, READABLE, Some(LINK));
        let mut again = addr(one);
        again.set_port(again.port() + 1);
        assert_eq!(b.got().ends(), (again, addr(a.container)));
        b.send(a.container, one, b"to 1").unwrap();
        b.send(a.container, &again.to_string(), b"to 1").unwrap();
        let sent_again: Vec<_> = b.host.sent.drain(..).map(|s| (s.0, s.1.to)).collect();
        assert_eq!(sent_again, [(first, addr(one)), (second, addr(one))]);

        // Errors for answers come to the container; unpublished, its mapping serves the client.
        let icmp = if v6 { (1, 4, 0) } else { (3, 3, 0) };
        b.host.fail(first, one, None, icmp, b"to 1");
        b.forward_ready(first, ERROR, Some(LINK));
        assert_eq!(b.got().error().0, icmp);
        let token = b.host.socket(first).token.unwrap();
        let mut io = Bench::io((&mut b.wire, &mut b.host, &mut b.buf));
        assert!(b.udp.unpublish_udp(token, &mut io));
        assert!(!b.udp.unpublish_udp(token, &mut io));
        b.send(a.container, one, b"to 1").unwrap();
        assert_eq!(b.host.sent.pop().unwrap().0, sent[2].0);
    }
}

#[test]
fn cve_2021_20199_clients_of_published_ports_keep_their_address() {
    for a in [V4, V6] {
        let mut b = Bench::new(|_| ());
        let v6 = addr(a.remote).is_ipv6();
        let socket = b.publish(0, a.container, v6);
        let local = a.loopback.replace("53", "40000");
        b.host.deliver(socket, a.remote, None, b"far");
        b.host.deliver(socket, &local, None, b"near");
        b.forward_ready(socket, READABLE, Some(LINK));
        let far = Got::read(&b.wire.frames[0]);
        let near = Got::read(&b.wire.frames[1]);
        b.wire.frames.clear();
        assert_eq!(far.ends().0, addr(a.remote));
        let alias = a.gateway.replace("53", "40000");
        assert_eq!(near.ends().0, addr(&alias));
        // Policy does not let the container reach loopback, but it may answer.
        b.send(a.container, &alias, b"hello").unwrap();
        assert_eq!(b.host.sent.pop().unwrap().1.to, addr(&local));
        b.advance(Duration::from_secs(301));
        assert_eq!(b.udp.clients(), 0);
    }
}

#[test]
fn a_published_socket_of_both_families_knows_clients_by_their_ipv4_address() {
    let mut b = Bench::new(|_| ());
    let socket = b.publish(0, V4.container, true);
    b.host.deliver(socket, "[::ffff:192.0.2.1]:7", None, b"4");
    b.host.deliver(socket, "[2001:db8::7]:7", None, b"6");
    b.host.deliver(socket, "[fe80::7%3]:7", None, b"l");
    b.forward_ready(socket, READABLE, Some(LINK));
    let clients = b
        .wire
        .frames
        .drain(..)
        .map(|frame| Got::read(&frame).ends().0);
    let clients: Vec<String> = clients.map(|client| client.to_string()).collect();
    // Who has no address that the container could answer looks like the gateway.
    assert_eq!(clients, ["192.0.2.1:7", "10.0.2.2:7", "10.0.2.2:8"]);
    for client in clients {
        b.send(V4.container, &client, b"a").unwrap();
    }
    let to: Vec<String> = b
        .host
        .sent
        .iter()
        .map(|sent| sent.1.to.to_string())
        .collect();
    assert_eq!(
        to,
        ["[::ffff:192.0.2.1]:7", "[2001:db8::7]:7", "[fe80::7%3]:7"]
    );
}

#[test]
fn an_answer_comes_from_the_address_that_was_asked() {
    for a in [V4, V6] {
        let mut b = Bench::new(|_| ());
        let socket = b.publish(0, a.container, addr(a.remote).is_ipv6());
        let locals = [None, Some(addr(a.other).ip()), Some(addr(a.gateway).ip())];
        for local in locals {
            b.host.deliver(socket, a.remote, None, b"x");
            let inbox = &mut b.host.socket(socket).inbox;
            if let Some(Ok((received, _))) = inbox.back_mut() {
                received.local = local;
            }
        }
        b.forward_ready(socket, READABLE, Some(LINK));
        let frames: Vec<_> = b.wire.frames.drain(..).collect();
        for (frame, local) in frames.iter().zip(locals) {
            let (client, container) = Got::read(frame).ends();
            b.send(&container.to_string(), &client.to_string(), b"y")
                .unwrap();
            let (by, options, _) = b.host.sent.pop().unwrap();
            assert_eq!((by, options.to), (socket, addr(a.remote)));
            assert_eq!(options.source, local);
        }
    }
}

#[test]
fn a_published_port_is_the_source_also_when_the_container_speaks_first() {
    let mut b = Bench::new(|_| ());
    let token = Token::new(TokenKind::Forward, 0, 1);
    let socket = b.host.bind(token, false);
    let forward = UdpForward {
        bound: addr("0.0.0.0:5000"),
        both_families: false,
        container: addr(V4.container).into(),
    };
    let published = b.udp.publish_udp(token, socket, forward, Some(LINK.port));
    published.unwrap();
    b.send(V4.container, V4.remote, b"hello").unwrap();
    let (by, options, _) = b.host.sent.pop().unwrap();
    assert_eq!((by, options.to, b.udp.len()), (socket, addr(V4.remote), 0));
    // What comes back is the remote's, from where the container sent to.
    b.host.deliver(socket, V4.remote, None, b"x");
    b.forward_ready(socket, READABLE, Some(LINK));
    assert_eq!(b.got().ends().0, addr(V4.remote));
    // Policy is asked all the same, and another port of the container has a mapping.
    assert!(b.send(V4.container, "169.254.169.254:80", b"x").is_err());
    b.send("10.0.2.100:5001", V4.remote, b"hello").unwrap();
    assert!(b.host.sent.pop().unwrap().0 != socket && b.udp.len() == 1);
}

#[test]
fn a_client_is_brought_to_the_family_that_is_served() {
    let mut b = Bench::new(|_| ());
    let end = ContainerEnd {
        ipv4: Some([10, 0, 2, 100].into()),
        ipv6: Some("fd00::100".parse().unwrap()),
        port: 5000,
    };
    let socket = b.publish_end(0, end, true);
    let ask = |b: &mut Bench, bound: &str, client: &str| {
        b.host.bound = Some(addr(bound));
        b.host.deliver(socket, client, None, b"question");
        b.forward_ready(socket, READABLE, Some(LINK));
        let (from, to) = b.got().ends();
        b.send(&to.to_string(), &from.to_string(), b"answer")
            .unwrap();
        let (by, options, _) = b.host.sent.pop().unwrap();
        assert_eq!((by, options.to), (socket, addr(client)));
        (from.to_string(), to.to_string())
    };
    let at = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    let mapped = "[::ffff:192.0.2.1]:7";
    let (v4, v6) = (V4.container, V6.container);
    assert_eq!(ask(&mut b, v4, mapped), at("192.0.2.1:7", v4));
    assert_eq!(ask(&mut b, v4, "[2001:db8::1]:7"), at("10.0.2.2:7", v4));
    assert_eq!(
        ask(&mut b, v6, "[2001:db8::1]:8"),
        at("[2001:db8::1]:8", v6)
    );
    assert_eq!(
        ask(&mut b, v6, "[::ffff:192.0.2.1]:8"),
        at("[fd00::2]:8", v6)
    );
    // One that is answered stays where it is.
    assert_eq!(ask(&mut b, v6, mapped), at("192.0.2.1:7", v4));
}

#[test]
fn a_container_without_a_link_is_named() {
    let mut b = Bench::new(|_| ());
    let socket = b.publish(0, V4.container, false);
    b.host.deliver(socket, V4.remote, None, b"1");
    let outcome = b.forward_ready(socket, READABLE, None);
    assert_eq!(outcome.unresolved, Some(addr(V4.container).ip()));
    assert_eq!((b.udp.clients(), b.wire.frames.len()), (0, 0));
    let again = b.udp.publish_udp(
        b.host.socket(socket).token.unwrap(),
        socket,
        UdpForward {
            bound: addr("0.0.0.0:1"),
            both_families: false,
            container: addr(V4.container).into(),
        },
        None,
    );
    assert_eq!(again, Err(PublishError::AlreadyPublished));
}

#[test]
fn quotes_are_owned_by_mappings_and_clients() {
    let mut b = Bench::new(|_| ());
    b.send(V4.container, V4.remote, b"1").unwrap();
    let socket = b.publish(0, "10.0.2.100:80", false);
    b.host.deliver(socket, V4.other, None, b"1");
    b.forward_ready(socket, READABLE, Some(LINK));
    let quote = |source: &str, destination: &str| Quote {
        protocol: 17,
        source: addr(source),
        destination: addr(destination),
    };
    assert!(b.udp.owns(LINK.port, &quote(V4.other, V4.container)));
    assert!(b.udp.owns(LINK.port, &quote(V4.other, "10.0.2.100:80")));
    assert!(!b.udp.owns(LINK.port, &quote(V4.remote, "10.0.2.100:80")));
    assert!(!b.udp.owns(PortId(9), &quote(V4.other, V4.container)));
    let tcp = Quote {
        protocol: 6,
        ..quote(V4.other, V4.container)
    };
    assert!(!b.udp.owns(LINK.port, &tcp));
}

proptest! {
    /// Whatever is sent in whatever order arrives datagram by datagram, per flow in order.
    #[test]
    fn batches_lose_and_merge_nothing(
        v6 in any::<bool>(),
        segmentation in any::<bool>(),
        packets in proptest::collection::vec((0u8..2, 0u8..2, 0usize..6, any::<bool>()), 1..300),
    ) {
        let a = if v6 { V6 } else { V4 };
        let mut b = Bench::new(|_| ());
        b.host.no_segmentation = !segmentation;
        let mut want: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
        for (i, (source, to, size, flush)) in packets.into_iter().enumerate() {
            let src = a.container.replace("5000", if source == 0 { "5000" } else { "5001" });
            let dst = if to == 0 { a.remote } else { a.other };
            let payload = vec![i as u8; [0, 1, 100, 100, 1200, 1400][size]];
            b.stage(&src, dst, &payload).unwrap();
            want.push((addr(dst), payload));
            if flush {
                b.flush();
            }
        }
        b.flush();
        let mut got = Vec::new();
        for (_, options, payload) in &b.host.sent {
            prop_assert!(payload.len() <= MAX_RUN);
            match options.segment {
                Some(n) => {
                    prop_assert!(payload.len().div_ceil(usize::from(n)) <= MAX_SEGMENTS);
                    got.extend(payload.chunks(usize::from(n)).map(|c| (options.to, c.to_vec())));
                }
                None => got.push((options.to, payload.clone())),
            }
        }
        prop_assert_eq!(got, want);
    }

    /// Whatever a container sends, nothing panics and what is sent on was in the packet.
    #[test]
    fn mutated_frames_do_no_harm(
        v6 in any::<bool>(),
        gso in any::<bool>(),
        changes in proptest::collection::vec((0usize..120, any::<u8>()), 0..6),
    ) {
        let a = if v6 { V6 } else { V4 };
        let mut frame = super_frame(&a, if gso { 16 } else { 200 }, &bytes(100));
        for (at, byte) in changes {
            if let Some(b) = frame.get_mut(at) {
                *b = byte;
            }
        }
        let mut b = Bench::new(|_| ());
        let _ = b.handle_frame(&LINK, &frame);
        b.flush();
        let sent: usize = b.host.sent.iter().map(|s| s.2.len()).sum();
        prop_assert!(sent <= frame.len());
    }
}
