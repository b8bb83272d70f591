//! Networks across hosts (`--driver overlay`): with the kernel's VXLAN device at the other end, and
//! between two hosts of ours.

use std::net::{IpAddr, SocketAddr};

use crate::lab::namespace::Namespace;
use crate::lab::place::{Member, Place};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{Payload, connect_and_echo, ping};
use crate::lab::{GATEWAY_V4, GATEWAY_V6, HOST_V4, HOST_V6, Lab, REMOTE_V4, any, cable};

/// What both ends agree on.
const COMMON: &str = "--driver overlay --vni 42 --subnet 10.77.0.0/24 --subnet fd77::/64";
/// The kernel's station.
const FAR: [&str; 2] = ["10.77.0.200", "fd77::c8"];

/// A network of `place` whose one peer is `peer`. Its containers' addresses are of the `n`th part.
fn overlay(place: &Place<'_>, peer: impl Into<IpAddr>, n: u8) {
    let ranges = format!(
        "--ip-range 10.77.0.{}/27 --ip-range fd77::{n}:0/112",
        32 * n
    );
    let peer = peer.into();
    place.done(&format!(
        "network create {COMMON} {ranges} --peer {peer} wide"
    ));
}

/// A kernel's end of the tunnel in the remote namespace, behind a kernel's bridge with a station on it.
fn kernel_end(lab: &Lab, local: IpAddr, remote: IpAddr) -> Namespace {
    let station = Namespace::create();
    let end = &lab.remote;
    end.ip(&format!(
        "link add vx0 type vxlan id 42 dstport 4789 local {local} remote {remote}"
    ));
    end.ip("link add br0 type bridge");
    end.ip("link set vx0 master br0");
    cable(end, "far", &station, "eth0");
    end.ip("link set far master br0");
    for link in ["vx0", "br0"] {
        end.ip(&format!("link set {link} up"));
    }
    station.ip("link set eth0 mtu 1450");
    station.ip(&format!("addr add {}/24 dev eth0", FAR[0]));
    station.ip(&format!("addr add {}/64 dev eth0 nodad", FAR[1]));
    station
}

/// Bytes each way between `ours` and `theirs`, over both families, with equal digests.
fn carry(ours: (&Namespace, &[IpAddr]), theirs: (&Namespace, &[IpAddr])) {
    let payload = Payload::new(8 << 20, 5);
    for (&own, &far) in ours.1.iter().zip(theirs.1) {
        let sink = TcpServer::digest(theirs.0, any(far, 0));
        let to = SocketAddr::new(far, sink.address.port());
        payload
            .upload(ours.0, to)
            .unwrap_or_else(|e| panic!("to {far}: {e}"));
        let source = TcpServer::source(theirs.0, any(far, 0), &payload);
        let from = SocketAddr::new(far, source.address.port());
        payload
            .download(ours.0, from)
            .unwrap_or_else(|e| panic!("from {far}: {e}"));
        let echo = TcpServer::echo(ours.0, any(own, 0));
        let to = SocketAddr::new(own, echo.address.port());
        connect_and_echo(theirs.0, to, b"hello").unwrap_or_else(|e| panic!("to {own}: {e}"));
    }
}

fn with_the_kernel(peers: [IpAddr; 2]) -> String {
    let lab = Lab::direct();
    let station = kernel_end(&lab, peers[1], peers[0]);
    let place = Place::root(&lab);
    overlay(&place, peers[1], 1);
    let member = place.join("wide", "web", "");
    let far: [IpAddr; 2] = FAR.map(|address| address.parse().unwrap());
    for address in far {
        // To the MTU's end, and not cut on its way.
        let size = if address.is_ipv4() { 28 } else { 48 };
        let mtu = place.inspect("wide")["Cnet"]["MTU"].as_u64().unwrap();
        ping(&member.namespace, address, mtu as usize - size);
    }
    let own = member.addresses();
    carry((&member.namespace, &own), (&station, &far));
    place.inspect("wide").to_string()
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_kernels_vxlan_is_a_peer() {
    let shown = with_the_kernel([HOST_V4.into(), GATEWAY_V4.into()]);
    assert!(shown.contains("\"MTU\":1450"), "{shown}");
    for part in ["192.0.2.254:4789", FAR[0], FAR[1], "\"vni\":42"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_kernels_vxlan_is_a_peer_over_ipv6() {
    let shown = with_the_kernel([HOST_V6.into(), GATEWAY_V6.into()]);
    assert!(shown.contains("\"MTU\":1430"), "{shown}");
}

/// Two hosts, each with a container.
fn two_hosts(lab: &Lab) -> [(Place<'_>, Member); 2] {
    let hosts = [
        // The address that the remote has a route to the host with.
        (&lab.host, "one", REMOTE_V4, 1),
        (&lab.remote, "two", HOST_V4, 2),
    ];
    hosts.map(|(host, name, peer, n)| {
        let place = Place::at(lab, host, name);
        overlay(&place, peer, n);
        let member = place.join("wide", name, "--publish 0.0.0.0:8080:80");
        (place, member)
    })
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn two_hosts_have_one_network() {
    let lab = Lab::direct();
    let [(here, one), (_there, two)] = two_hosts(&lab);
    for (from, to) in [(&one, &two), (&two, &one)] {
        for address in to.addresses() {
            from.assert_pings(&lab, &address.to_string());
        }
        // Each has its own host's gateway.
        from.assert_pings(&lab, &from.gateway.to_string());
    }
    carry(
        (&one.namespace, &one.addresses()),
        (&two.namespace, &two.addresses()),
    );
    // Its own host publishes a container's port, and takes it to the world.
    let server = TcpServer::echo(&two.namespace, any(two.v4, 80));
    let published = SocketAddr::new(GATEWAY_V4.into(), 8080);
    connect_and_echo(&lab.host, published, b"by the other host").unwrap();
    let outside = TcpServer::echo(&lab.remote, any(two.v4, 0));
    let outside = SocketAddr::new(GATEWAY_V4.into(), outside.address.port());
    connect_and_echo(&one.namespace, outside, b"out by the own host").unwrap();
    drop(server);
    let shown = here.inspect("wide");
    let peer = &shown["Cnet"]["Uplinks"][0]["peers"][0];
    assert!(
        peer["stations"].to_string().contains(&two.v4.to_string()),
        "{shown}"
    );
    let lost = peer["frames_lost"].as_u64();
    assert_eq!(lost, Some(0), "{shown}");
}
