//! What of the host a container must not reach, and what `cnet-slirp` shows as slirp4netns does.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::lab::container::{GATEWAY_V4, GATEWAY_V6, Options, Slirp, wait_for_ipv6};
use crate::lab::namespace::Namespace;
use crate::lab::run::{self, Held};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{connect_and_echo, echo_datagram};
use crate::lab::{Lab, any};

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Servers on the host's loopback and on the instance metadata address, on one port.
struct Secrets {
    servers: Vec<(TcpServer, UdpServer)>,
    port: u16,
}

impl Secrets {
    fn start(lab: &Lab) -> Self {
        lab.host.ip("addr add 169.254.169.254/32 dev lo");
        lab.host.ip("addr add fd00:ec2::254/128 dev lo nodad");
        let port = 8775;
        let everywhere = [any(address("127.0.0.1"), port), any(address("::1"), port)];
        // The IPv6 wildcard takes IPv4 too where it may, so each listens on its own.
        let [v4, _] = everywhere;
        let places = [
            v4,
            SocketAddr::new(address("::1"), port),
            SocketAddr::new(address("fd00:ec2::254"), port),
        ];
        let servers = places.map(|place| {
            (
                TcpServer::echo(&lab.host, place),
                UdpServer::echo(&lab.host, place),
            )
        });
        Self {
            servers: servers.into(),
            port,
        }
    }

    fn seen(&self) -> Vec<SocketAddr> {
        let logs = self
            .servers
            .iter()
            .flat_map(|(tcp, udp)| [&tcp.log, &udp.log]);
        logs.flat_map(|log| log.sockets()).collect()
    }

    /// Tries every address; none may lead to a server.
    fn assert_hidden(&self, from: &Namespace, addresses: &[&str]) {
        for target in addresses {
            let target = SocketAddr::new(address(target), self.port);
            let connected = from.connect(target, Duration::from_secs(1));
            assert!(connected.is_err(), "{target} accepts");
            let socket = from.udp(any(target.ip(), 0), Duration::from_millis(200));
            // Refused at once is as good as lost.
            let _ = socket.send_to(b"anybody there?", target);
            assert!(socket.recv(&mut [0; 64]).is_err(), "{target} answers");
        }
        assert_eq!(self.seen(), [], "a server was reached");
    }
}

const METADATA: &[&str] = &["169.254.169.254"];

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_hides_the_hosts_loopback_and_the_metadata_service() {
    let lab = Lab::direct();
    let secrets = Secrets::start(&lab);
    let held = Held::start(&lab, &run::Options::default());
    wait_for_ipv6(&held.namespace);
    let loopback = [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:0.0.0.0",
        "64:ff9b::7f00:1",
        "10.0.2.2",
        "10.0.2.3",
    ];
    secrets.assert_hidden(&held.namespace, &loopback);
    let routes = held.namespace.ip("-6 route show default");
    let mut words = routes.split_whitespace();
    let gateway = words.find(|word| word.contains("::")).expect("a gateway");
    let resolver = gateway.replace("::2", "::3");
    secrets.assert_hidden(&held.namespace, &[gateway, &resolver]);
    secrets.assert_hidden(&held.namespace, METADATA);
}

/// The container's own routing keeps 127.0.0.0/8 inside; with a route of its own making it sends
/// there all the same.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_hides_the_hosts_loopback_from_a_container_that_routes_there() {
    let lab = Lab::direct();
    let secrets = Secrets::start(&lab);
    let held = Held::start(&lab, &run::Options::default());
    let namespace = &held.namespace;
    let interface = namespace.ip("-4 route show default");
    let interface = interface
        .split_whitespace()
        .skip_while(|word| *word != "dev")
        .nth(1);
    let interface = interface.expect("a default route").to_owned();
    namespace.sysctl(&format!("ipv4/conf/{interface}/route_localnet"), "1");
    namespace.ip("-4 route del local 127.0.0.0/8 dev lo table local");
    namespace.ip("-4 route del local 127.0.0.1 dev lo table local");
    namespace.ip(&format!(
        "-4 route add 127.0.0.0/8 via 10.0.2.2 dev {interface}"
    ));
    secrets.assert_hidden(namespace, &["127.0.0.1", "127.0.0.53"]);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_shows_the_hosts_loopback_at_its_gateway() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for (loopback, gateway) in [
        (address("127.0.0.1"), IpAddr::V4(GATEWAY_V4)),
        (address("::1"), IpAddr::V6(GATEWAY_V6)),
    ] {
        let tcp = TcpServer::echo(&lab.host, SocketAddr::new(loopback, 0));
        let at = SocketAddr::new(gateway, tcp.address.port());
        connect_and_echo(slirp.namespace(), at, b"loopback").expect("TCP to the host");
        let udp = UdpServer::echo(&lab.host, SocketAddr::new(loopback, 0));
        let at = SocketAddr::new(gateway, udp.address.port());
        echo_datagram(slirp.namespace(), at, 100).expect("UDP to the host");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_hides_the_hosts_loopback_when_told() {
    let lab = Lab::direct();
    for option in ["--disable-host-loopback", "--no-host-loopback"] {
        let slirp = Slirp::start(&lab, &Options::with(option));
        for (loopback, gateway) in [
            (address("127.0.0.1"), IpAddr::V4(GATEWAY_V4)),
            (address("::1"), IpAddr::V6(GATEWAY_V6)),
        ] {
            let server = TcpServer::echo(&lab.host, SocketAddr::new(loopback, 0));
            let at = SocketAddr::new(gateway, server.address.port());
            let started = Instant::now();
            let refused = slirp.namespace().connect(at, Duration::from_secs(3));
            let error = refused.expect_err("the host's loopback is hidden");
            let errno = Errno::from_io_error(&error);
            assert_eq!(errno, Some(Errno::NETUNREACH), "{at}: {error}");
            assert!(started.elapsed() < Duration::from_secs(1), "{at}");
            assert!(server.log.peers().is_empty(), "{at}");
        }
    }
}
