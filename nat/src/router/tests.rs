//! What the router itself decides: rounds of busy sockets, and how clients are shown.

use std::net::SocketAddr;

use cnet_wire::VnetHeader;

use super::*;
use crate::datagram::testing::{FakeHost, IP, LINK, Wire, frame_from, udp_datagram};
use crate::datagram::{DatagramConfig, UdpForward};
use crate::fake_stations::FakeStations;
use crate::forward::{self, ClientPath};
use crate::gateway::{GatewayConfig, Ipv4Gateway, Ipv6Gateway, Lease, Quirks};
use crate::tcp::TcpConfig;
use cnet_wire::conversation::Direction;
use cnet_wire::headers::FRAME_BUFFER_LEN;

const NOW: Instant = Instant::from_millis(1000);
const CONTAINER: &str = "10.0.2.100:53";

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn config() -> RouterConfig {
    RouterConfig {
        mtu: 1500,
        gateway: GatewayConfig {
            mac: LINK.gateway_mac,
            mtu: 1500,
            v4: Some(Ipv4Gateway {
                address: [10, 0, 2, 2].into(),
                prefix_len: 24,
                dns: None,
            }),
            v6: Some(Ipv6Gateway {
                address: "fd00::2".parse().unwrap(),
                prefix_len: 64,
                dns: None,
                advertise_default_route: true,
            }),
            search: Vec::new(),
            dhcp_range: None,
            quirks: Quirks::default(),
        },
        policy: Policy::default(),
        tcp: TcpConfig::default(),
        datagram: DatagramConfig::default(),
    }
}

/// A router with a container that has a lease, whose MAC address is known by it.
fn router() -> (Router, FakeStations) {
    router_of(config(), Some(LINK.container_mac))
}

fn router_of(config: RouterConfig, mac: Option<MacAddr>) -> (Router, FakeStations) {
    let mut router = Router::new(config, [7; 32], NOW);
    let address = addr(CONTAINER).ip();
    let IpAddr::V4(v4) = address else {
        panic!("an IPv4 address")
    };
    router.add_lease(Lease {
        port: LINK.port,
        v4: Some(v4),
        v6: None,
        hostname: None,
    });
    let stations = FakeStations::of([LINK.port]);
    stations.lease(address, LINK.port, mac);
    (router, stations)
}

/// A published UDP port that leads to `container`.
fn published(container: &str) -> UdpForward {
    UdpForward {
        bound: addr("0.0.0.0:53"),
        both_families: false,
        container: addr(container).into(),
    }
}

#[test]
fn a_flooded_socket_has_one_turn_a_round_however_many_events_it_has() {
    let (mut router, stations) = router();
    let (mut wire, mut host) = (Wire::default(), FakeHost::default());
    let mut buf = vec![0; FRAME_BUFFER_LEN];
    let token = Token::new(TokenKind::Forward, 0, 1);
    let socket = host.bind(token, false);
    router
        .publish_udp(NOW, token, socket, published(CONTAINER), &stations)
        .unwrap();
    for _ in 0..1000 {
        host.deliver(socket, "192.0.2.1:9", None, b"x");
    }
    let ready = Readiness {
        readable: true,
        ..Readiness::default()
    };
    let mut io = Io::new(&mut wire, &mut host, &mut buf);
    router.handle_socket(NOW, token, ready, &stations, &mut io);
    let turn = io.sink.frames.len();
    assert!((1..250).contains(&turn), "{turn}");
    router.handle_socket(NOW, token, ready, &stations, &mut io);
    router.handle_socket(NOW, token, ready, &stations, &mut io);
    assert_eq!(io.sink.frames.len(), 3 * turn);
    assert_eq!(router.poll_timeout(), Some(Instant::ZERO));
    router.handle_timeout(NOW, &stations, &mut io);
    assert_eq!(io.sink.frames.len(), 4 * turn, "three events, one turn");
    for _ in 0..1000 / turn {
        router.handle_timeout(NOW, &stations, &mut io);
    }
    assert_eq!(io.sink.frames.len(), 1000);
    assert_ne!(router.poll_timeout(), Some(Instant::ZERO));
}

#[test]
fn of_many_flooded_sockets_a_round_serves_few_and_each_in_its_turn() {
    const SOCKETS: u32 = 10;
    let (mut router, stations) = router();
    let (mut wire, mut host) = (Wire::default(), FakeHost::default());
    let mut buf = vec![0; FRAME_BUFFER_LEN];
    let tokens = (0..SOCKETS).map(|n| Token::new(TokenKind::Forward, n, 1));
    let tokens: Vec<Token> = tokens.collect();
    let ready = Readiness {
        readable: true,
        ..Readiness::default()
    };
    let mut sockets = Vec::new();
    for &token in &tokens {
        let socket = host.bind(token, false);
        router
            .publish_udp(NOW, token, socket, published(CONTAINER), &stations)
            .unwrap();
        for _ in 0..1000 {
            host.deliver(socket, "192.0.2.1:9", None, b"x");
        }
        router.backlog.push(token, ready);
        sockets.push(socket);
    }
    let mut left: Vec<usize> = vec![1000; sockets.len()];
    let mut served = Vec::new();
    for _ in 0..5 {
        let mut io = Io::new(&mut wire, &mut host, &mut buf);
        router.handle_timeout(NOW, &stations, &mut io);
        assert_eq!(router.poll_timeout(), Some(Instant::ZERO));
        for (i, socket) in sockets.iter().enumerate() {
            let now = host.socket(*socket).inbox.len();
            if std::mem::replace(&mut left[i], now) != now {
                served.push(i);
            }
        }
    }
    let round = |sockets: &[usize]| sockets.to_vec();
    let rounds: Vec<Vec<usize>> = served.chunks(4).map(round).collect();
    assert_eq!(rounds[0], [0, 1, 2, 3]);
    assert_eq!(rounds[1], [4, 5, 6, 7]);
    assert_eq!(rounds[2], [0, 1, 8, 9], "the first come after the last");
    assert_eq!((rounds.len(), served.len()), (5, 20));
}

#[test]
fn a_client_is_shown_so_that_the_container_can_answer_it() {
    let (router, _) = router();
    let container_v6 = "[fd00::100]:80";
    for (peer, container, shown) in [
        ("192.0.2.1:9", CONTAINER, "192.0.2.1:9"),
        ("127.0.0.1:9", CONTAINER, "10.0.2.2:9"),
        // A host that has the container's subnet too, or even its address.
        ("10.0.2.15:9", CONTAINER, "10.0.2.2:9"),
        ("10.0.2.100:9", CONTAINER, "10.0.2.2:9"),
        ("[2001:db8::1]:9", CONTAINER, "10.0.2.2:9"),
        ("[2001:db8::1]:9", container_v6, "[2001:db8::1]:9"),
        ("[::1]:9", container_v6, "[fd00::2]:9"),
        ("[fe80::1]:9", container_v6, "[fd00::2]:9"),
        ("192.0.2.1:9", container_v6, "[fd00::2]:9"),
    ] {
        let seen = forward::shown_as(&router.forwarded(addr(peer), addr(container)));
        assert_eq!(seen, Some(addr(shown)), "{peer} to {container}");
    }
}

/// Hands in a frame as the switch does.
fn handle(
    router: &mut Router,
    bytes: &[u8],
    stations: &FakeStations,
    io: &mut Io<'_, (Wire, FakeHost)>,
) -> Result<(), DropReason> {
    router.handle_frame(NOW, LINK.port, &Frame::parse(bytes, 1500)?, stations, io)
}

/// A UDP packet of the container to `to`.
fn udp_frame(to: &str) -> Vec<u8> {
    let (from, to) = (addr("10.0.2.100:53"), addr(to));
    let l4 = udp_datagram(from, to, b"payload");
    frame_from(VnetHeader::default(), (from.ip(), to.ip()), IP, 17, &l4)
}

#[test]
fn a_port_that_goes_leaves_nothing_and_another_may_have_its_place() {
    let (mut router, stations) = router();
    let (mut wire, mut host) = (Wire::default(), FakeHost::default());
    let mut buf = vec![0; FRAME_BUFFER_LEN];
    let token = Token::new(TokenKind::Forward, 0, 1);
    let socket = host.bind(token, false);
    // Where it speaks from is not published: that has a mapping.
    let forward = published("10.0.2.100:6");
    router
        .publish_udp(NOW, token, socket, forward, &stations)
        .unwrap();
    host.deliver(socket, "192.0.2.1:9", None, b"x");
    let ready = Readiness {
        readable: true,
        ..Readiness::default()
    };
    let mut io = Io::new(&mut wire, &mut host, &mut buf);
    router.handle_socket(NOW, token, ready, &stations, &mut io);
    handle(
        &mut router,
        &udp_frame("198.51.100.1:7"),
        &stations,
        &mut io,
    )
    .unwrap();
    assert_eq!(router.udp.clients(), 1);
    let flows = PortFlows {
        udp: 1,
        ..PortFlows::default()
    };
    assert_eq!(router.port_flows(LINK.port), flows);
    // The datagram is staged still: it goes nowhere.
    router.remove_port(NOW, LINK.port, &mut io);
    router.end_batch(NOW, &mut io);
    assert!(io.hosts.sent.is_empty());
    assert_eq!(io.hosts.only_socket(), socket);
    assert_eq!((router.flows(), router.udp.clients()), (0, 0));
    assert_eq!(router.port_flows(LINK.port), PortFlows::default());

    handle(
        &mut router,
        &udp_frame("198.51.100.1:7"),
        &stations,
        &mut io,
    )
    .unwrap();
    router.end_batch(NOW, &mut io);
    assert_eq!(io.hosts.sent.len(), 1);
}

#[test]
fn a_client_that_waits_for_a_container_goes_with_its_port() {
    // A VM's MAC address, say, is not known before it speaks.
    let (mut router, stations) = router_of(config(), None);
    let (mut wire, mut host) = (Wire::default(), FakeHost::default());
    let mut buf = vec![0; FRAME_BUFFER_LEN];
    let client = host.accept();
    let mut io = Io::new(&mut wire, &mut host, &mut buf);
    let (container, peer) = (addr(CONTAINER), addr("192.0.2.1:9"));
    router.handle_accept(NOW, container, peer, client, &stations, &mut io);
    assert_eq!((router.flows(), router.solicited.len()), (1, 1));
    router.remove_port(NOW, LINK.port, &mut io);
    assert_eq!((router.flows(), router.solicited.len()), (0, 0));
    assert!(io.hosts.sockets.is_empty());
}

#[test]
fn a_client_that_policy_refuses_is_reset_and_counted() {
    use crate::policy::{PeerFilter, Prefix, Rule};
    use cnet_wire::conversation::Refusal;
    let mut config = config();
    let refuse = Rule::all(Direction::Inwards, Some(Refusal::Prohibited));
    // A client of the host's loopback is shown, and so refused, as the gateway.
    let gateway = Prefix {
        address: addr("10.0.2.2:0").ip(),
        len: 32,
    };
    config.policy.rules = vec![
        Rule {
            service: Some(80..=80),
            ..refuse.clone()
        },
        Rule {
            service: Some(82..=82),
            remote: Some(gateway),
            port: Some(LINK.port),
            ..refuse
        },
    ];
    // The container has not spoken, but its lease names its port.
    let (mut router, stations) = router_of(config, None);
    let (loopback, refused, allowed) = (
        addr("127.0.0.1:9"),
        addr("10.0.2.100:80"),
        addr("10.0.2.100:81"),
    );
    let path = |peer, to| router.client_path(NOW, peer, to, true, &stations);
    let (splice, frames) = (ClientPath::Splice, ClientPath::Frames);
    assert_eq!(path(loopback, allowed), splice);
    assert_eq!(path(loopback, refused), frames);
    let as_gateway = addr("10.0.2.100:82");
    assert_eq!(path(loopback, as_gateway), frames);
    let refuses = |router: &Router, container, peer, shown| {
        router.refuses_client(NOW, container, (addr(peer), addr(shown)), &stations)
    };
    let remote = "192.0.2.1:9";
    assert!(refuses(&router, as_gateway, "127.0.0.1:9", "10.0.2.2:9"));
    assert!(!refuses(&router, allowed, remote, remote));
    assert!(refuses(&router, refused, remote, remote));
    // A filter is asked about the client itself, whatever the container is shown.
    let peer = "[2001:db8::1]:9";
    assert!(!refuses(&router, allowed, peer, "10.0.2.2:9"));
    let denied = PeerFilter {
        deny: vec![Prefix {
            address: addr(peer).ip(),
            len: 32,
        }],
        ..PeerFilter::default()
    };
    router.policy_mut().set_port_filter(LINK.port, denied);
    assert!(refuses(&router, allowed, peer, "10.0.2.2:9"));
}

#[test]
fn what_is_for_a_containers_address_does_not_leave_through_the_host() {
    let mut config = config();
    config.policy.host_loopback = vec![addr("10.0.2.2:0").ip()];
    let (mut router, stations) = router_of(config, Some(LINK.container_mac));
    let (mut wire, mut host) = (Wire::default(), FakeHost::default());
    let mut buf = vec![0; FRAME_BUFFER_LEN];
    let mut io = Io::new(&mut wire, &mut host, &mut buf);
    for (n, to) in ["10.0.2.7:7", "10.0.2.101:53"].into_iter().enumerate() {
        let taken = handle(&mut router, &udp_frame(to), &stations, &mut io);
        assert_eq!(taken, Err(DropReason::MartianDestination), "{to}");
        router.end_batch(NOW, &mut io);
        assert!(io.hosts.sent.is_empty() && router.flows() == 0);
        // Destination unreachable: host (RFC 792).
        assert_eq!(io.sink.frames.len(), n + 1);
        let error = &io.sink.frames[n][10 + 14 + 20..];
        assert_eq!(error[..2], [3, 1]);
    }
    // The host's loopback behind the gateway's address, and what is not on the link, is reached.
    for to in ["10.0.2.2:9", "10.0.3.7:7"] {
        handle(&mut router, &udp_frame(to), &stations, &mut io).unwrap();
        router.end_batch(NOW, &mut io);
    }
    assert_eq!(io.hosts.sent.len(), 2);
}

#[test]
fn on_the_hosts_own_subnets_neighbours_and_the_hosts_router_are_reached_through_the_host() {
    let mut config = config();
    config.gateway.quirks = Quirks::host_subnets();
    let alias = (addr("169.254.1.2:0").ip(), addr(CONTAINER).ip());
    config.policy.host_own = vec![alias];
    let (mut router, stations) = router_of(config, Some(LINK.container_mac));
    let (mut wire, mut host) = (Wire::default(), FakeHost::default());
    let mut buf = vec![0; FRAME_BUFFER_LEN];
    let mut io = Io::new(&mut wire, &mut host, &mut buf);
    // A neighbour; the host's router, its DNS too; the host itself under another address.
    for to in ["10.0.2.7:7", "10.0.2.2:9", "10.0.2.2:53", "169.254.1.2:7"] {
        let taken = handle(&mut router, &udp_frame(to), &stations, &mut io);
        assert_eq!(taken, Ok(()), "{to}");
        router.end_batch(NOW, &mut io);
    }
    assert_eq!(io.hosts.sent.len(), 4);
    // The subnet's broadcast address is not sent on.
    let broadcast = handle(&mut router, &udp_frame("10.0.2.255:7"), &stations, &mut io);
    assert!(broadcast.is_err());
    for (peer, shown) in [
        ("10.0.2.7:9", "10.0.2.7:9"),
        // The host under its own address, which is the container's too.
        ("10.0.2.100:9", "169.254.1.2:9"),
        ("127.0.0.1:9", "10.0.2.2:9"),
    ] {
        let seen = forward::shown_as(&router.forwarded(addr(peer), addr(CONTAINER)));
        assert_eq!(seen, Some(addr(shown)), "{peer}");
    }
}
