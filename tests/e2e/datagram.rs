//! UDP and ICMP beyond one small packet: large datagrams, one mapping for every destination,
//! errors that come back, and traceroute.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cnet_tap::socket::set_dont_fragment;
use rustix::io::Errno;

use crate::lab::container::{Options, Slirp};
use crate::lab::namespace::Namespace;
use crate::lab::run::{Held, Options as RunOptions};
use crate::lab::servers::UdpServer;
use crate::lab::traffic::{echo_datagram, ping};
use crate::lab::{GATEWAY_V4, GATEWAY_V6, Lab, REMOTES, any, wait_until};

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn udp_datagrams_of_every_length_are_echoed_whole_at_mtu_1500() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::with("-m 1500"));
    for remote in REMOTES {
        let server = UdpServer::echo(&lab.remote, SocketAddr::new(remote, 0));
        // The longest packets but jumbograms: IPv6 does not count its header.
        let longest = if remote.is_ipv4() { 65_507 } else { 65_527 };
        for length in [0, 1, 1472, 1473, 9000, 60_000, longest] {
            let echoed = echo_datagram(slirp.namespace(), server.address, length);
            echoed.unwrap_or_else(|error| panic!("{length} bytes to {remote}: {error}"));
        }
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ping_of_20000_bytes_is_answered_by_a_remote() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for remote in REMOTES {
        ping(slirp.namespace(), remote, 20_000);
    }
}

/// RFC 4787, section 4.1: endpoint-independent mapping.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn two_remotes_see_a_udp_socket_at_one_address_and_port() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for remote in REMOTES {
        let at = SocketAddr::new(remote, 0);
        let servers = [
            UdpServer::echo(&lab.remote, at),
            UdpServer::echo(&lab.remote, at),
        ];
        let socket = slirp
            .namespace()
            .udp(any(remote, 0), Duration::from_secs(5));
        for server in &servers {
            socket.send_to(b"who am I", server.address).expect("sent");
            let mut buffer = [0; 64];
            let (_, from) = socket.recv_from(&mut buffer).expect("the echo");
            assert_eq!(from, server.address);
        }
        let [first, second] = servers.each_ref().map(|server| server.log.sockets()[0]);
        assert_eq!(first, second, "seen from two servers on {remote}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_closed_udp_port_is_reported_as_refused() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for remote in REMOTES {
        let socket = slirp
            .namespace()
            .udp(any(remote, 0), Duration::from_secs(2));
        let closed = SocketAddr::new(remote, 9);
        socket.connect(closed).expect("connect of a UDP socket");
        socket.send(b"anybody there?").expect("sent");
        let error = socket.recv(&mut [0; 64]).expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{remote}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn traceroute_shows_the_hop_by_udp() {
    traceroute_shows_the_hop(&[]);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn traceroute_shows_the_hop_by_echo() {
    traceroute_shows_the_hop(&["-I"]);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn traceroute_shows_the_hop_by_tcp() {
    traceroute_shows_the_hop(&["-T"]);
}

/// The container's link is as wide as the host's, and the path is narrower.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_mtu_of_the_hosts_route_is_the_default_and_a_narrower_path_is_told() {
    for (link, path) in [(1450, 1400), (9000, 2000)] {
        let lab = Lab::routed();
        lab.router().ip(&format!("link set host mtu {link}"));
        lab.host.ip(&format!("link set eth0 mtu {link}"));
        lab.router().ip(&format!("link set remote mtu {path}"));
        lab.remote.ip(&format!("link set eth0 mtu {path}"));
        let held = Held::start(&lab, &RunOptions::default());
        let shown = held.namespace.ip("link show up");
        assert!(shown.contains(&format!("mtu {link}")), "{shown}");
        for remote in REMOTES {
            for (size, told) in [(link + 50, link), (path - 10, path)] {
                let done = held
                    .namespace
                    .command("ping")
                    .args(["-n", "-c", "1", "-W", "2", "-M", "do", "-s"])
                    .args([size.to_string(), remote.to_string()])
                    .run(Duration::from_secs(10));
                let told = done.to_string().contains(&told.to_string());
                assert!(!done.success() && told, "{done}");
            }
            assert_udp_learns(&held.namespace, remote, path);
        }
    }
}

/// Datagrams that may not be fragmented and are longer than `path` are refused, once that is known.
fn assert_udp_learns(container: &Namespace, remote: IpAddr, path: usize) {
    let socket = container.udp(any(remote, 0), Duration::from_secs(1));
    set_dont_fragment(&socket, remote.is_ipv6(), true).expect("an option");
    socket.connect((remote, 9)).expect("connected");
    let header = if remote.is_ipv4() { 28 } else { 48 };
    wait_until("the path's MTU", Duration::from_secs(2), || {
        match socket.send(&vec![0; path - header + 1]) {
            Err(error) if error.raw_os_error() == Some(Errno::MSGSIZE.raw_os_error()) => Ok(()),
            sent => Err(format!("{remote}: {sent:?}")),
        }
    });
    let sent = socket.send(&vec![0; path - header]);
    assert_eq!(sent.expect("it fits"), path - header);
}

fn traceroute_shows_the_hop(method: &[&str]) {
    let lab = Lab::routed();
    let slirp = Slirp::start(&lab, &Options::default());
    let hops: [IpAddr; 2] = [GATEWAY_V4.into(), GATEWAY_V6.into()];
    for (remote, hop) in REMOTES.into_iter().zip(hops) {
        let family = if remote.is_ipv4() { "-4" } else { "-6" };
        let done = slirp
            .namespace()
            .command("traceroute")
            .args([family, "-n", "-q", "2", "-w", "2", "-m", "5"])
            .args(method)
            .arg(remote.to_string())
            .run(Duration::from_secs(40));
        let shown = |address: IpAddr| {
            // The heading names the destination too.
            let mut lines = done.stdout.lines().skip(1);
            lines.any(|line| {
                line.split_whitespace()
                    .any(|word| word == address.to_string())
            })
        };
        assert!(done.success() && shown(hop) && shown(remote), "{done}");
    }
}
