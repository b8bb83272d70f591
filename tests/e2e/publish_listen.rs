//! A published TCP port listens while the container does and is held otherwise; and either family of
//! the container serves clients of the other.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::lab::container::wait_for_ipv6;
use crate::lab::namespace::Namespace;
use crate::lab::place::Place;
use crate::lab::run::{self, Held};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{CONNECT, connect_and_echo, echo_datagram};
use crate::lab::{HOST_V4, HOST_V6, Lab, any, wait_until};

const PORT: u16 = 8080;

/// The first ten seconds a container is asked every tenth of a second.
const SOON: Duration = Duration::from_secs(3);

fn served(from: &Namespace, at: SocketAddr) {
    wait_until("the published port is served", SOON, || {
        connect_and_echo(from, at, b"hello").map_err(|error| error.to_string())
    });
}

fn refused(from: &Namespace, at: SocketAddr) {
    wait_until("the published port refuses", SOON, || {
        match from.connect_once(at, CONNECT).map_err(|error| error.kind()) {
            Err(ErrorKind::ConnectionRefused) => Ok(()),
            other => Err(format!("{:?}", other.map(drop))),
        }
    });
}

/// Each of 30 clients, as people see it that start a proxy before its server.
fn refuses_each(from: &Namespace, at: SocketAddr) {
    for n in 0..30 {
        let error = from.connect_once(at, CONNECT).expect_err("no one listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "client {n}");
    }
}

fn hosts() -> [SocketAddr; 2] {
    [HOST_V4.into(), HOST_V6.into()].map(|host: IpAddr| SocketAddr::new(host, PORT))
}

fn loopbacks() -> [SocketAddr; 2] {
    ["127.0.0.1", "::1"].map(|host| SocketAddr::new(host.parse().expect("an address"), PORT))
}

fn follows_the_container(lab: &Lab, container: &Namespace) {
    let [v4, v6] = hosts();
    for _ in 0..2 {
        for at in [v4, v6] {
            refuses_each(&lab.remote, at);
        }
        let taken = lab.host.enter(|| std::net::TcpListener::bind(v4));
        assert!(taken.is_err(), "held while the container does not listen");
        let server = TcpServer::echo(container, any(v4.ip(), PORT));
        served(&lab.remote, v4);
        served(&lab.host, loopbacks()[0]);
        drop(server);
        for at in [v4, v6] {
            refused(&lab.remote, at);
        }
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_port_of_run_listens_while_the_command_does() {
    let lab = Lab::direct();
    for user in [run::Options::default(), run::Options::ordinary_user()] {
        let options = run::Options {
            arguments: format!("-p {PORT}:{PORT}"),
            ..user
        };
        let held = Held::start(&lab, &options);
        wait_for_ipv6(&held.namespace);
        follows_the_container(&lab, &held.namespace);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_port_on_a_network_listens_while_the_container_does() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    let options = format!("-p {PORT}:{PORT}");
    let attached = place.join("cnet", "web", &options);
    follows_the_container(&lab, &attached.namespace);
    place.done("detach web");
    let ran = place.run("cnet", "web", &options);
    follows_the_container(&lab, &ran.namespace);
}

fn either_family_serves(lab: &Lab, container: &Namespace, v6: IpAddr) {
    let families: [IpAddr; 2] = [HOST_V4.into(), HOST_V6.into()];
    for family in families {
        let only = match family {
            IpAddr::V4(_) => any(family, PORT),
            // The wildcard would serve IPv4 as well.
            IpAddr::V6(_) => SocketAddr::new(v6, PORT),
        };
        let tcp = TcpServer::echo(container, only);
        for at in hosts() {
            served(&lab.remote, at);
        }
        for at in loopbacks() {
            served(&lab.host, at);
        }
        drop(tcp);
        let _udp = UdpServer::echo(container, only);
        for at in hosts() {
            echo_datagram(&lab.remote, at, 100).unwrap_or_else(|e| panic!("{only} by {at}: {e}"));
        }
        for at in loopbacks() {
            echo_datagram(&lab.host, at, 100).unwrap_or_else(|e| panic!("{only} by {at}: {e}"));
        }
        for at in hosts() {
            refused(&lab.remote, at);
        }
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn either_family_serves_the_other() {
    let lab = Lab::direct();
    let options = format!("-p {PORT}:{PORT} -p {PORT}:{PORT}/udp");
    let alone = run::Options {
        arguments: options.clone(),
        ..run::Options::ordinary_user()
    };
    let held = Held::start(&lab, &alone);
    wait_for_ipv6(&held.namespace);
    let shown = held.namespace.ip("-6 -o addr show dev eth0 scope global");
    let mut words = shown.split_whitespace();
    let v6 = words.find_map(|word| word.strip_suffix("/64"));
    let v6 = v6.expect("an address").parse().expect("an address");
    either_family_serves(&lab, &held.namespace, v6);
    drop(held);
    let place = Place::ordinary(&lab);
    let ran = place.run("cnet", "web", &options);
    either_family_serves(&lab, &ran.namespace, ran.v6.expect("IPv6"));
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_without_ipv6_serves_its_clients() {
    let lab = Lab::direct();
    let options = format!("--no-ipv6 -p {PORT}:{PORT} -p {PORT}:{PORT}/udp -p [::1]:81:{PORT}");
    let held = Held::start(&lab, &run::Options::with(&options));
    let _tcp = TcpServer::echo(&held.namespace, any(HOST_V4.into(), PORT));
    let _udp = UdpServer::echo(&held.namespace, any(HOST_V4.into(), PORT));
    for at in hosts() {
        served(&lab.remote, at);
        echo_datagram(&lab.remote, at, 100).expect("the UDP server");
    }
    let mut at = loopbacks()[1];
    at.set_port(81);
    served(&lab.host, at);
}
