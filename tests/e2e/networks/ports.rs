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
