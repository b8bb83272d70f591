//! Ports of the host that lead to a container on a network.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{Member, Place};
use crate::lab::namespace::Namespace;
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{connect_and_echo, echo_datagram};
use crate::lab::{HOST_V4, HOST_V6, Lab, REMOTES, any, wait_until};

const HOST_PORT: u16 = 18080;
const PORT: u16 = 80;
const OPTIONS: &str = "-p 18080:80 -p 18080:80/udp";

/// From where, to which of the host's addresses, and the client as the container sees it, if that
/// is to be its own.
fn ways(lab: &Lab) -> [(&Namespace, IpAddr, Option<IpAddr>); 4] {
    [
        (&lab.remote, HOST_V4.into(), Some(REMOTES[0])),
        (&lab.remote, HOST_V6.into(), Some(REMOTES[1])),
        (&lab.host, Ipv4Addr::LOCALHOST.into(), None),
        (&lab.host, Ipv6Addr::LOCALHOST.into(), None),
    ]
}

fn are_open(lab: &Lab, member: &Member) {
    for (from, host, seen) in ways(lab) {
        let tcp = TcpServer::echo(&member.namespace, any(host, PORT));
        let udp = UdpServer::echo(&member.namespace, any(host, PORT));
        let at = SocketAddr::new(host, HOST_PORT);
        let echoed = connect_and_echo(from, at, b"from outside");
        echoed.unwrap_or_else(|error| panic!("TCP to {at}: {error}"));
        let echoed = echo_datagram(from, at, 1000);
        echoed.unwrap_or_else(|error| panic!("UDP to {at}: {error}"));
        for log in [&tcp.log, &udp.log] {
            let peers = log.peers();
            assert!(!peers.is_empty(), "{at}");
            assert!(peers.iter().all(|peer| !peer.is_loopback()), "{peers:?}");
            if let Some(seen) = seen {
                assert!(peers.iter().all(|peer| *peer == seen), "{at}: {peers:?}");
            }
        }
    }
}

fn are_closed(lab: &Lab) {
    for (from, host, _) in ways(lab) {
        let at = SocketAddr::new(host, HOST_PORT);
        wait_until("a closed port", Duration::from_secs(2), || {
            match from.connect(at, Duration::from_secs(1)) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                other => Err(format!("{at}: {other:?}")),
            }
        });
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_published_port_leads_to_its_container_until_that_leaves() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        let joined = place.join("cnet", "web", OPTIONS);
        let _other = place.join("cnet", "other", "");
        are_open(&lab, &joined);
        let listed = place.done("ps").stdout;
        assert!(listed.contains("0.0.0.0:18080->80/tcp"), "{listed}");
        place.done("detach web");
        are_closed(&lab);
        // With `cnet run`, until the command ends.
        let ran = place.run("cnet", "web", OPTIONS);
        are_open(&lab, &ran);
        drop(ran);
        are_closed(&lab);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ports_are_opened_and_closed_while_the_container_runs() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    let joined = place.join("cnet", "web", "");
    let opened = place.done("publish web 18080:80 127.0.0.1::81/udp").stdout;
    assert!(opened.contains("80/tcp -> 0.0.0.0:18080"), "{opened}");
    assert!(opened.contains("80/tcp -> [::]:18080"), "{opened}");
    assert!(opened.contains("81/udp -> 127.0.0.1:"), "{opened}");
    assert_eq!(place.done("port web").stdout, opened);
    let _server = TcpServer::echo(&joined.namespace, any(HOST_V4.into(), PORT));
    let at = SocketAddr::new(HOST_V4.into(), HOST_PORT);
    connect_and_echo(&lab.remote, at, b"hello").expect("the published port");
    // All or none, and the port that is taken is named.
    let refused = place.refused("publish web 18081:81 18080:82");
    assert!(refused.contains("18080"), "{refused}");
    assert_eq!(place.done("port web").stdout, opened);
    place.done("unpublish web 80 81/udp");
    assert_eq!(place.done("port web").stdout, "");
    are_closed(&lab);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_route_that_comes_later_is_told() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    place.done("network create --subnet 10.44.0.0/24 v");
    lab.host.ip("route add 10.44.0.0/24 dev eth0");
    let _web = place.run("v", "web", "");
    let told = "10.44.0.0/24 on eth0";
    let listed = place.done("ps");
    assert!(listed.stderr.contains(told), "{listed}");
    assert!(listed.stdout.starts_with("NAME"), "{listed}");
    let inspected = place.inspect("v")["Cnet"]["Warnings"].to_string();
    assert!(inspected.contains(told), "{inspected}");
    let log = std::fs::read_to_string(place.runtime.join("cnet/v/log")).expect("the log");
    assert!(log.contains(told), "{log}");
}
