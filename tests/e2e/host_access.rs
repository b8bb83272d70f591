//! `--host-access`: ports of the host's loopback behind `host.containers.internal`, for those that they
//! were opened to.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::lab::container::wait_for_ipv6;
use crate::lab::namespace::Namespace;
use crate::lab::place::Place;
use crate::lab::run::{self, Held};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{CONNECT, connect_and_echo, echo_datagram};
use crate::lab::{HOST_V4, Lab, any};

const OPEN: u16 = 5432;
const CLOSED: u16 = 5433;
const LOOPBACKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Servers at both ports of the host's loopback, and nowhere else.
fn services(lab: &Lab) -> (Vec<TcpServer>, Vec<UdpServer>) {
    let at = || {
        let loopbacks = LOOPBACKS.into_iter();
        loopbacks.flat_map(|ip| [OPEN, CLOSED].map(|port| SocketAddr::new(ip, port)))
    };
    let tcp = at().map(|at| TcpServer::echo(&lab.host, at));
    let udp = at().map(|at| UdpServer::echo(&lab.host, at));
    (tcp.collect(), udp.collect())
}

/// Where the container's default routes lead.
fn gateways(container: &Namespace) -> Vec<IpAddr> {
    let routes = container.ip("-4 route show default") + &container.ip("-6 route show default");
    let words: Vec<&str> = routes.split_whitespace().collect();
    let via = words.windows(2).filter(|pair| pair[0] == "via");
    via.filter_map(|pair| pair[1].parse().ok()).collect()
}

fn reaches(container: &Namespace, port: u16) {
    let gateways = gateways(container);
    assert_eq!(gateways.len(), 2, "{gateways:?}");
    for gateway in gateways {
        let at = SocketAddr::new(gateway, port);
        connect_and_echo(container, at, b"hello").unwrap_or_else(|e| panic!("TCP to {at}: {e}"));
        echo_datagram(container, at, 100).unwrap_or_else(|e| panic!("UDP to {at}: {e}"));
    }
}

/// Refused at once: on `cnet run` as slirp4netns does it, on networks as a host without such a server.
fn is_kept_from(container: &Namespace, port: u16) {
    let at_once = [ErrorKind::ConnectionRefused, ErrorKind::NetworkUnreachable];
    for gateway in gateways(container) {
        let at = SocketAddr::new(gateway, port);
        let error = container.connect_once(at, CONNECT).expect_err("closed");
        assert!(at_once.contains(&error.kind()), "{at}: {error}");
        let socket = container.udp(any(gateway, 0), Duration::from_millis(100));
        socket.connect(at).expect("a route");
        socket.send(b"hello").expect("room for one datagram");
        socket.recv(&mut [0; 8]).expect_err("closed");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_reaches_the_ports_that_were_opened_alone() {
    let lab = Lab::direct();
    let _services = services(&lab);
    for no_host in ["", "--no-host --allow 198.51.100.0/24"] {
        let options = run::Options {
            arguments: format!("--host-access={OPEN} {no_host}"),
            ..run::Options::ordinary_user()
        };
        let held = Held::start(&lab, &options);
        wait_for_ipv6(&held.namespace);
        reaches(&held.namespace, OPEN);
        is_kept_from(&held.namespace, CLOSED);
    }
    let script = "getent ahosts host.containers.internal; ip route show default";
    let done = run::Options::with("--host-access=5432 --subnet 10.7.0.0/24").shell(&lab, script);
    let done = done.run(run::SHORT);
    assert!(done.stdout.contains("10.7.0.2"), "{done}");
    assert!(!done.stdout.contains(&HOST_V4.to_string()), "{done}");
    let denied = run::Options::with("--host-access --deny 127.0.0.0/8");
    let held = Held::start(&lab, &denied);
    let at = SocketAddr::new(gateways(&held.namespace)[0], OPEN);
    held.namespace
        .connect_once(at, CONNECT)
        .expect_err("denied");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn on_a_network_a_containers_right_is_its_own() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    let _services = services(&lab);
    let web = place.join("cnet", "web", &format!("--host-access={OPEN}"));
    let other = place.join("cnet", "other", "--no-host");
    let ran = place.run("cnet", "ran", "--host-access");
    wait_for_ipv6(&ran.namespace);
    reaches(&web.namespace, OPEN);
    is_kept_from(&web.namespace, CLOSED);
    is_kept_from(&other.namespace, OPEN);
    reaches(&ran.namespace, OPEN);
    reaches(&ran.namespace, CLOSED);
    // The name leads each where it may go.
    let found = |member: &crate::lab::place::Member| {
        let asked = member.program(&lab, "getent");
        let done = asked.args(["ahostsv4", "host.docker.internal"]);
        done.run(run::SHORT).stdout
    };
    assert!(found(&web).contains(&web.gateway.to_string()));
    assert_eq!(found(&other), "");
    // The next container at that port has no right of the last one's.
    place.done("detach web");
    let next = place.join("cnet", "web", "");
    is_kept_from(&next.namespace, OPEN);
    assert!(found(&next).contains(&HOST_V4.to_string()));

    place.done(&format!("network create --host-access={OPEN} open"));
    let member = place.join("open", "web", "");
    reaches(&member.namespace, OPEN);
    is_kept_from(&member.namespace, CLOSED);
    let refused = place.refused("network create --internal --host-access shut");
    assert!(refused.contains("leads nowhere"), "{refused}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn several_workers_agree_on_what_is_open() {
    let lab = Lab::direct();
    let _server = TcpServer::echo(&lab.host, any(HOST_V4.into(), OPEN));
    let options = run::Options::with(&format!("--workers 2 --host-access={OPEN}"));
    let held = Held::start(&lab, &options);
    let at = SocketAddr::new(gateways(&held.namespace)[0], OPEN);
    for _ in 0..20 {
        connect_and_echo(&held.namespace, at, b"hello").expect("either worker");
    }
}
