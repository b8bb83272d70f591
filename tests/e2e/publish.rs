//! A server in the container, published on the host: reached from the second host over both
//! families by TCP and UDP, it sees the client's own address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;

use crate::api::request;
use crate::lab::container::{CONTAINER_V4, Options, Slirp, wait_for_ipv6};
use crate::lab::namespace::Namespace;
use crate::lab::run::{self, Held};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{CONNECT, Payload, connect_and_echo, echo_datagram};
use crate::lab::{HOST_V4, HOST_V6, Lab, REMOTE_V4, REMOTE_V6, any};

/// The published port on the host, and the one that the container's server has.
const HOST_PORT: u16 = 8080;
const PORT: u16 = 80;

/// The host's and the remote's addresses of one family.
const PAIRS: [(IpAddr, IpAddr); 2] = [
    (IpAddr::V4(HOST_V4), IpAddr::V4(REMOTE_V4)),
    (IpAddr::V6(HOST_V6), IpAddr::V6(REMOTE_V6)),
];

fn tcp_is_published(lab: &Lab, container: &Namespace, (host, remote): (IpAddr, IpAddr)) {
    let server = TcpServer::echo(container, any(host, PORT));
    let at = SocketAddr::new(host, HOST_PORT);
    for _ in 0..3 {
        connect_and_echo(&lab.remote, at, b"from outside").expect("the published server");
    }
    assert_eq!(server.log.peers(), [remote; 3]);
}

fn udp_is_published(lab: &Lab, container: &Namespace, (host, remote): (IpAddr, IpAddr)) {
    let server = UdpServer::echo(container, any(host, PORT));
    let at = SocketAddr::new(host, HOST_PORT);
    for length in [1, 1400, 9000] {
        // The client's socket is connected: an answer from any other address is not taken.
        echo_datagram(&lab.remote, at, length).expect("the published server");
    }
    let peers = server.log.peers();
    assert!(peers.iter().all(|peer| *peer == remote), "{peers:?}");
}

/// Publishes by the API, with the addresses given.
fn add_hostfwd(slirp: &Slirp, proto: &str, host: IpAddr, guest: IpAddr) -> u64 {
    let answer = request(
        slirp,
        &json!({"execute": "add_hostfwd", "arguments": {
            "proto": proto, "host_addr": host, "host_port": HOST_PORT,
            "guest_addr": guest, "guest_port": PORT,
        }}),
    );
    let id = answer["return"]["id"].as_u64();
    id.unwrap_or_else(|| panic!("{answer}"))
}

fn with_api() -> Options {
    Options {
        api: true,
        ..Options::default()
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_publishes_tcp_and_udp_over_ipv4() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &with_api());
    let guest = CONTAINER_V4.into();
    for proto in ["tcp", "udp"] {
        add_hostfwd(&slirp, proto, Ipv4Addr::UNSPECIFIED.into(), guest);
    }
    tcp_is_published(&lab, slirp.namespace(), PAIRS[0]);
    udp_is_published(&lab, slirp.namespace(), PAIRS[0]);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_publishes_tcp_and_udp_over_ipv6() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &with_api());
    let guest = wait_for_ipv6(slirp.namespace()).into();
    for proto in ["tcp", "udp"] {
        add_hostfwd(&slirp, proto, HOST_V6.into(), guest);
    }
    tcp_is_published(&lab, slirp.namespace(), PAIRS[1]);
    udp_is_published(&lab, slirp.namespace(), PAIRS[1]);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_publishes_as_an_ordinary_user() {
    let lab = Lab::direct();
    let options = Options {
        api: true,
        ..Options::ordinary_user()
    };
    let slirp = Slirp::start(&lab, &options);
    let guest = CONTAINER_V4.into();
    add_hostfwd(&slirp, "tcp", Ipv4Addr::UNSPECIFIED.into(), guest);
    tcp_is_published(&lab, slirp.namespace(), PAIRS[0]);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_stops_publishing_what_is_removed() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &with_api());
    let (any, guest) = (Ipv4Addr::UNSPECIFIED, CONTAINER_V4);
    let id = add_hostfwd(&slirp, "tcp", any.into(), guest.into());
    tcp_is_published(&lab, slirp.namespace(), PAIRS[0]);
    let removal = json!({"execute": "remove_hostfwd", "arguments": {"id": id}});
    assert_eq!(request(&slirp, &removal), json!({"return": {}}));
    let at = SocketAddr::new(HOST_V4.into(), HOST_PORT);
    let refused = lab.remote.connect(at, CONNECT);
    assert!(refused.is_err(), "the port still accepts");
    // The port is free for the next.
    add_hostfwd(&slirp, "tcp", any.into(), guest.into());
    tcp_is_published(&lab, slirp.namespace(), PAIRS[0]);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bulk_passes_a_published_port_both_ways() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &with_api());
    let (any_v4, guest) = (Ipv4Addr::UNSPECIFIED, CONTAINER_V4);
    add_hostfwd(&slirp, "tcp", any_v4.into(), guest.into());
    let payload = Payload::new(32 << 20, 3);
    let at = SocketAddr::new(HOST_V4.into(), HOST_PORT);
    let server = TcpServer::digest(slirp.namespace(), any(HOST_V4.into(), PORT));
    payload.upload(&lab.remote, at).expect("upload");
    drop(server);
    let _server = TcpServer::source(slirp.namespace(), any(HOST_V4.into(), PORT), &payload);
    payload.download(&lab.remote, at).expect("download");
}

/// A published port behind which nothing listens does not accept and then stay silent.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_published_port_without_a_server_ends_the_connection() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &with_api());
    let (any, guest) = (Ipv4Addr::UNSPECIFIED, CONTAINER_V4);
    add_hostfwd(&slirp, "tcp", any.into(), guest.into());
    let at = SocketAddr::new(HOST_V4.into(), HOST_PORT);
    if let Ok(mut stream) = lab.remote.connect(at, CONNECT) {
        let limit = Some(Duration::from_secs(2));
        stream.set_read_timeout(limit).expect("a limit");
        match std::io::Read::read(&mut stream, &mut [0]) {
            Ok(read) => assert_eq!(read, 0, "nobody sends"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_publishes_tcp_and_udp_over_both_families() {
    let lab = Lab::direct();
    for user in [run::Options::default(), run::Options::ordinary_user()] {
        let options = run::Options {
            arguments: format!("-p {HOST_PORT}:{PORT} -p {HOST_PORT}:{PORT}/udp"),
            ..user
        };
        let held = Held::start(&lab, &options);
        wait_for_ipv6(&held.namespace);
        for pair in PAIRS {
            tcp_is_published(&lab, &held.namespace, pair);
            udp_is_published(&lab, &held.namespace, pair);
        }
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_publishes_on_the_address_asked_for_alone() {
    let lab = Lab::direct();
    for (host, other) in [PAIRS, [PAIRS[1], PAIRS[0]]].map(|[pair, other]| (pair, other.0)) {
        let shown = SocketAddr::new(host.0, HOST_PORT);
        let options = run::Options::with(&format!("-p {shown}:{PORT}"));
        let held = Held::start(&lab, &options);
        wait_for_ipv6(&held.namespace);
        tcp_is_published(&lab, &held.namespace, host);
        let hidden = SocketAddr::new(other, HOST_PORT);
        let refused = lab.remote.connect(hidden, CONNECT);
        assert!(refused.is_err(), "also accepted on {hidden}");
    }
}

/// From the host's own loopback, where a person tries it first.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_publishes_to_the_hosts_loopback() {
    let lab = Lab::direct();
    let options = run::Options::with(&format!("-p {HOST_PORT}:{PORT}"));
    let held = Held::start(&lab, &options);
    wait_for_ipv6(&held.namespace);
    for loopback in ["127.0.0.1", "::1"].map(|address| address.parse::<IpAddr>().expect("valid")) {
        let _server = TcpServer::echo(&held.namespace, any(loopback, PORT));
        let at = SocketAddr::new(loopback, HOST_PORT);
        connect_and_echo(&lab.host, at, b"from the host").expect("the published server");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_refuses_a_port_that_is_taken_and_names_it() {
    let lab = Lab::direct();
    let _taken = TcpServer::echo(&lab.host, any(HOST_V4.into(), HOST_PORT));
    let options = run::Options::with(&format!("-p {HOST_PORT}:{PORT}"));
    let done = options.command(&lab, &["true"]).run(run::SHORT);
    assert!(!done.success(), "{done}");
    assert!(done.stderr.contains(&HOST_PORT.to_string()), "{done}");
    lab.assert_nothing_left(&[], Duration::from_secs(1));
}
