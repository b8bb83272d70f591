//! From which of the host's ports a container's packets come: its own one's number where that is free.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::lab::namespace::Namespace;
use crate::lab::place::Place;
use crate::lab::run::{Held, Options};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::{HOST_V4, Lab, REMOTES, any, wait_until};

const LIMIT: Duration = Duration::from_secs(2);

/// Asks each of `servers` from `socket`, and gives the port that all of them saw.
fn seen_by(servers: &[UdpServer; 2], socket: &UdpSocket) -> u16 {
    let ports = servers.each_ref().map(|server| {
        socket.send_to(b"x", server.address).expect("sent");
        let (_, from) = socket.recv_from(&mut [0; 9]).expect("the echo");
        assert_eq!(from, server.address);
        server.log.sockets().last().expect("one was heard").port()
    });
    assert_eq!(ports[0], ports[1], "a mapping is one for all destinations");
    ports[0]
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_udp_mapping_has_the_containers_port_where_no_service_of_the_host_could_want_it() {
    let lab = Lab::direct();
    lab.host.sysctl("ipv4/ip_local_reserved_ports", "40003");
    let held = Held::start(&lab, &Options::default());
    let other = Held::start(&lab, &Options::default());
    for remote in REMOTES {
        let at = SocketAddr::new(remote, 0);
        let servers = [
            UdpServer::echo(&lab.remote, at),
            UdpServer::echo(&lab.remote, at),
        ];
        let from = |container: &Namespace, port| container.udp(any(remote, port), LIMIT);
        let kept = from(&held.namespace, 40_001);
        assert_eq!(seen_by(&servers, &kept), 40_001, "{remote}");
        let _of_the_host = lab.host.udp(any(remote, 40_002), LIMIT);
        for (container, port) in [
            // Another mapping's, a program's, an administrator's, and a port for services.
            (&other, 40_001),
            (&held, 40_002),
            (&held, 40_003),
            (&held, 5353),
        ] {
            let socket = from(&container.namespace, port);
            assert_ne!(seen_by(&servers, &socket), port, "{remote}");
        }
        assert_eq!(seen_by(&servers, &kept), 40_001, "{remote}");
    }
}

/// A port that a mapping took is there for a container that publishes it.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_mapping_gives_its_port_to_a_container_that_publishes_it() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    place.done("network create one");
    let speaks = place.join("one", "speaks", "");
    let serves = place.join("one", "serves", "");
    let sockets = speaks.addresses().into_iter();
    let sockets = sockets.map(|own| speaks.namespace.udp(SocketAddr::new(own, 40_001), LIMIT));
    let sockets: Vec<UdpSocket> = sockets.collect();
    assert_eq!(sockets.len(), REMOTES.len());
    let servers = REMOTES.map(|remote| {
        let at = SocketAddr::new(remote, 0);
        [
            UdpServer::echo(&lab.remote, at),
            UdpServer::echo(&lab.remote, at),
        ]
    });
    for (servers, socket) in servers.iter().zip(&sockets) {
        assert_eq!(seen_by(servers, socket), 40_001);
    }
    let published = SocketAddr::new(HOST_V4.into(), 40_001);
    let server = UdpServer::echo(&serves.namespace, any(HOST_V4.into(), 53));
    place.done("publish serves 40001:53/udp");
    let client = lab.remote.udp(any(HOST_V4.into(), 0), LIMIT);
    client.send_to(b"x", published).expect("sent");
    client.recv(&mut [0; 9]).expect("the container's answer");
    assert_eq!(server.log.sockets().len(), 1);
    for (servers, socket) in servers.iter().zip(&sockets) {
        assert_ne!(seen_by(servers, socket), 40_001);
    }
}

/// Connects from `port` of the calling thread's namespace.
fn connect_from(port: u16, to: SocketAddr) -> TcpStream {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket(family, SocketType::STREAM, None).expect("a socket");
    set_socket_reuseaddr(&socket, true).expect("an option");
    bind(&socket, &any(to.ip(), port)).expect("the port");
    connect(&socket, &to).expect("connected");
    socket.into()
}

/// The ports that `server` has been connected to from.
fn ports(server: &TcpServer, number: usize) -> Vec<u16> {
    wait_until("the connections", LIMIT, || {
        let ports: Vec<u16> = server.log.sockets().iter().map(SocketAddr::port).collect();
        match ports.len() {
            n if n == number => Ok(ports),
            n => Err(format!("{n} of {number}")),
        }
    })
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn tcp_connections_come_from_the_containers_port_where_that_is_asked_for() {
    let lab = Lab::direct();
    let keeps = Held::start(&lab, &Options::with("--keep-ports"));
    let usual = Held::start(&lab, &Options::default());
    for remote in REMOTES {
        let at = SocketAddr::new(remote, 0);
        let [first, second] = [0; 2].map(|_| TcpServer::hold(&lab.remote, at));
        let _listens = lab.host.listen(any(remote, 45_002));
        let open = |from: &Namespace, port, to: &TcpServer| {
            let to = to.address;
            from.enter(move || connect_from(port, to))
        };
        let _kept = [&first, &second].map(|server| open(&keeps.namespace, 45_001, server));
        assert_eq!(ports(&first, 1), [45_001]);
        assert_eq!(ports(&second, 1), [45_001]);
        // A connection of the host's own between these ends, a listener, and what is not asked for.
        let _of_the_host = open(&lab.host, 45_003, &first);
        let _others = [
            open(&keeps.namespace, 45_003, &first),
            open(&keeps.namespace, 45_002, &first),
            open(&usual.namespace, 45_004, &first),
        ];
        let ports = ports(&first, 5);
        assert_eq!(ports[..2], [45_001, 45_003]);
        assert_ne!(ports[2..], [45_003, 45_002, 45_004]);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_networks_definition_has_its_tcp_ports_kept() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    place.done("network create --keep-ports one");
    let member = place.join("one", "member", "");
    let server = TcpServer::hold(&lab.remote, SocketAddr::new(REMOTES[0], 0));
    let _kept = member
        .namespace
        .enter(|| connect_from(45_001, server.address));
    assert_eq!(ports(&server, 1), [45_001]);
}
