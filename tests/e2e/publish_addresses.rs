//! Published ports on hosts with several addresses and both families: where answers come from, and
//! which family of the container serves whom.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::lab::container::wait_for_ipv6;
use crate::lab::namespace::Namespace;
use crate::lab::run::{self, Held};
use crate::lab::servers::UdpServer;
use crate::lab::{HOST_V4, HOST_V6, Lab, REMOTE_V4, REMOTE_V6, any};

/// The published port, which is the container's as well.
const PORT: u16 = 8080;

/// How long a datagram may take.
const LIMIT: Duration = Duration::from_secs(3);

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn published(lab: &Lab, arguments: &str) -> Held {
    let held = Held::start(lab, &run::Options::with(arguments));
    wait_for_ipv6(&held.namespace);
    held
}

/// Asks `host` from `from`, and gives who answered.
fn who_answers(from: &Namespace, host: IpAddr) -> SocketAddr {
    let socket = from.udp(any(host, 0), LIMIT);
    let at = SocketAddr::new(host, PORT);
    socket.send_to(b"who?", at).expect("it is sent");
    let (_, from) = socket.recv_from(&mut [0; 16]).expect("an answer");
    from
}

fn second_addresses(lab: &Lab) -> [IpAddr; 2] {
    lab.host.ip("addr add 192.0.2.9/24 dev eth0");
    lab.host.ip("addr add 2001:db8:1::9/64 dev eth0 nodad");
    [address("192.0.2.9"), address("2001:db8:1::9")]
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_udp_answer_comes_from_the_address_that_was_asked() {
    let lab = Lab::direct();
    let [second_v4, second_v6] = second_addresses(&lab);
    let held = published(&lab, &format!("-p {PORT}:{PORT}/udp"));
    // It serves IPv4 as well.
    let _server = UdpServer::echo(&held.namespace, any(HOST_V6.into(), PORT));
    for host in [HOST_V4.into(), second_v4, HOST_V6.into(), second_v6] {
        let at = SocketAddr::new(host, PORT);
        assert_eq!(who_answers(&lab.remote, host), at);
    }
    for host in [
        "127.0.0.1",
        "127.0.0.2",
        "::1",
        "192.0.2.9",
        "2001:db8:1::9",
    ] {
        let host = address(host);
        assert_eq!(who_answers(&lab.host, host), SocketAddr::new(host, PORT));
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_published_udp_port_is_the_source_when_the_container_speaks_first() {
    let lab = Lab::direct();
    let held = published(&lab, &format!("-p {PORT}:{PORT}/udp"));
    for (host, remote) in [
        (IpAddr::V4(HOST_V4), IpAddr::V4(REMOTE_V4)),
        (IpAddr::V6(HOST_V6), IpAddr::V6(REMOTE_V6)),
    ] {
        let far = lab.remote.udp(any(remote, 7000), LIMIT);
        let inside = held.namespace.udp(any(remote, PORT), LIMIT);
        let send = |socket: &UdpSocket, to| socket.send_to(b"x", to).expect("it is sent");
        send(&inside, SocketAddr::new(remote, 7000));
        let (_, from) = far.recv_from(&mut [0; 4]).expect("the first word");
        assert_eq!(from, SocketAddr::new(host, PORT));
        send(&far, from);
        let (_, from) = inside.recv_from(&mut [0; 4]).expect("the answer");
        assert_eq!(from, SocketAddr::new(remote, 7000));
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_client_on_a_link_local_address_is_served() {
    let lab = Lab::direct();
    let held = published(&lab, &format!("-p {PORT}:{PORT}/udp"));
    let _server = UdpServer::echo(&held.namespace, any(HOST_V6.into(), PORT));
    let shown = lab.host.ip("-6 -o addr show dev eth0 scope link");
    let host = shown
        .split_whitespace()
        .find(|word| word.starts_with("fe80"));
    let host = host
        .and_then(|word| word.split('/').next())
        .expect("a link-local address");
    let client = lab.remote.udp(any(HOST_V6.into(), 0), LIMIT);
    let at = lab.remote.enter(|| {
        use std::net::ToSocketAddrs;
        let mut found = (format!("{host}%eth0"), PORT)
            .to_socket_addrs()
            .expect("an address");
        found.next().expect("an address")
    });
    client.send_to(b"who?", at).expect("it is sent");
    let (_, from) = client.recv_from(&mut [0; 16]).expect("an answer");
    assert_eq!(from, at);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ten_thousand_udp_ports_leave_the_command_its_own_udp() {
    let lab = Lab::direct();
    let _far = UdpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 7000));
    let held = Held::start(&lab, &run::Options::with("-p 20000-29999:20000-29999/udp"));
    for _ in 0..50 {
        let socket = held.namespace.udp(any(REMOTE_V4.into(), 0), LIMIT);
        socket.send_to(b"x", (REMOTE_V4, 7000)).expect("it is sent");
        socket.recv_from(&mut [0; 4]).expect("an answer");
    }
    let _server = UdpServer::echo(&held.namespace, any(HOST_V4.into(), 29_999));
    let client = lab.remote.udp(any(HOST_V4.into(), 0), LIMIT);
    client.send_to(b"x", (HOST_V4, 29_999)).expect("it is sent");
    client
        .recv_from(&mut [0; 4])
        .expect("the last port's server");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn more_ports_than_descriptors_are_refused_at_once() {
    let lab = Lab::direct();
    let run = run::Options::with("-p 20000-29999:20000-29999/udp").command(&lab, &["true"]);
    let done = run.descriptors(4000).run(run::SHORT);
    assert!(!done.success(), "{done}");
    assert!(done.stderr.contains("cannot publish 10000 ports"), "{done}");
    assert!(done.stderr.contains("ulimit -n"), "{done}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_takes_an_ipv6_prefix_that_the_host_does_not_use() {
    let lab = Lab::direct();
    let prefix = || {
        let held = published(&lab, "");
        let shown = held.namespace.ip("-6 -o addr show dev eth0 scope global");
        let address = shown.split_whitespace().find(|word| word.ends_with("/64"));
        let address = address.expect("an address").to_owned();
        assert!(address.starts_with("fd"), "{address}");
        address
    };
    let first = prefix();
    assert_ne!(first, prefix(), "it is random");
}
