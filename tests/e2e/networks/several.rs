//! A container on several networks: a port that is published on any of them works from anywhere, since
//! what answers by an address leaves by that address's interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::process::{Signal, kill_process};

use super::{Member, Place};
use crate::lab::namespace::Namespace;
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{connect_and_echo, echo_datagram};
use crate::lab::{HOST_V4, HOST_V6, Lab, any};

/// Where each network's ports are on the host. TCP leads to port 80, UDP to another one, so that it is
/// known by which network a server that names no address is to answer.
const PORTS: [u16; 2] = [18080, 18081];
const TCP: u16 = 80;
const UDP: [u16; 2] = [1080, 1081];

fn options(n: usize) -> String {
    let (host, udp) = (PORTS[n], UDP[n]);
    format!("-p {host}:{TCP} -p {host}:{udp}/udp")
}

/// A second place for a container that is on one network.
fn join_also(place: &Place<'_>, network: &str, member: &Member, options: &str) -> Member {
    let name = &member.name;
    let pid = member.pid();
    let attach = format!("attach --json --network {network} --name {name} {options} {pid}");
    Member::read(&place.json(&attach), None, member.namespace.clone())
}

fn rules(namespace: &Namespace) -> String {
    namespace.ip("-4 rule show") + &namespace.ip("-6 rule show")
}

/// From another host and the host's loopback, both families and protocols.
fn serve_everyone(lab: &Lab, container: &Namespace, ports: &[u16]) {
    let hosts: [(&Namespace, IpAddr); 4] = [
        (&lab.remote, HOST_V4.into()),
        (&lab.remote, HOST_V6.into()),
        (&lab.host, Ipv4Addr::LOCALHOST.into()),
        (&lab.host, Ipv6Addr::LOCALHOST.into()),
    ];
    for family in [HOST_V4.into(), HOST_V6.into()] {
        let _tcp = TcpServer::echo(container, any(family, TCP));
        let _udp = UDP.map(|port| UdpServer::echo(container, any(family, port)));
        for (from, host) in hosts
            .iter()
            .filter(|(_, h)| h.is_ipv4() == family.is_ipv4())
        {
            for &port in ports {
                let at = SocketAddr::new(*host, port);
                let echoed = connect_and_echo(from, at, b"from anywhere");
                echoed.unwrap_or_else(|error| panic!("TCP to {at}: {error}"));
                let echoed = echo_datagram(from, at, 100);
                echoed.unwrap_or_else(|error| panic!("UDP to {at}: {error}"));
            }
        }
    }
}

/// A neighbour on the second network reaches the container there, and gets its answers from there.
fn serves_neighbours(container: &Namespace, address: IpAddr, neighbour: &Namespace) {
    let _tcp = TcpServer::echo(container, any(address, TCP));
    let _udp = UDP.map(|port| UdpServer::echo(container, any(address, port)));
    let at = SocketAddr::new(address, TCP);
    connect_and_echo(neighbour, at, b"next door").unwrap_or_else(|e| panic!("TCP to {at}: {e}"));
    for port in UDP {
        let at = SocketAddr::new(address, port);
        echo_datagram(neighbour, at, 100).unwrap_or_else(|e| panic!("UDP to {at}: {e}"));
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_port_published_on_any_network_works_from_anywhere() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    place.done("network create second");
    let web = place.join("cnet", "web", &options(0));
    let before = rules(&web.namespace);
    // As some distributions have it: a packet whose answer would leave elsewhere is dropped.
    web.namespace.sysctl("ipv4/conf/default/rp_filter", "1");
    web.namespace.sysctl("ipv4/conf/all/rp_filter", "1");
    let second = join_also(&place, "second", &web, &options(1));
    serve_everyone(&lab, &web.namespace, &PORTS);
    let neighbour = place.join("second", "neighbour", "");
    for address in second.addresses() {
        serves_neighbours(&web.namespace, address, &neighbour.namespace);
    }

    // The next process finds them again, and what is published then is followed.
    let made = rules(&web.namespace);
    assert!(made.contains("ipproto udp sport 1081"), "{made}");
    let process = place.process("second").expect("a network process");
    kill_process(process, Signal::KILL).expect("a process to kill");
    place.done("ps");
    assert_eq!(rules(&web.namespace), made);
    place.done("unpublish --network second web 18081:1081/udp");
    assert!(!rules(&web.namespace).contains("sport 1081"));
    place.done("publish --network second web 18081:1081/udp");
    assert_eq!(rules(&web.namespace), made);
    serve_everyone(&lab, &web.namespace, &PORTS);

    place.done("detach --network second web");
    assert_eq!(rules(&web.namespace), before, "rules are left");
    serve_everyone(&lab, &web.namespace, &PORTS[..1]);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_with_rules_of_its_own_keeps_them_alone() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    place.done("network create second");
    let web = place.join("cnet", "web", "");
    web.namespace.ip("-4 rule add from 203.0.113.7 lookup 77");
    web.namespace.ip("-6 rule add from 2001:db8::7 lookup 77");
    let own = rules(&web.namespace);
    let _second = join_also(&place, "second", &web, "-p 18081:80");
    assert_eq!(rules(&web.namespace), own);
    place.done("detach --network second web");
    assert_eq!(rules(&web.namespace), own);
}
