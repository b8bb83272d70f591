//! A hostile end of a tunnel: datagrams made by hand, from a peer's address and from another one.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use cnet_wire::vxlan::{self, PORT};
use cnet_wire::{DropReason, Vni};

use crate::frames::changed;
use crate::lab::place::{Member, Place};
use crate::lab::raw::{self, BROADCAST, Mac};
use crate::lab::station::Station;
use crate::lab::{GATEWAY_V4, HOST_V4, Lab, REMOTE_V4, wait_until};

const VNI: u32 = 42;
/// A station behind the peer.
const THEIRS: (Mac, [u8; 4]) = ([2, 0, 0, 0, 7, 7], [10, 77, 0, 200]);

/// A network with a container, whose one peer is what the test makes of it.
struct Tunnel<'a> {
    place: Place<'a>,
    member: Member,
    /// At the peer's address, and at another of the same host.
    peer: UdpSocket,
    other: UdpSocket,
}

impl<'a> Tunnel<'a> {
    fn start(lab: &'a Lab) -> Self {
        let place = Place::root(lab);
        place.done(&format!(
            "network create --driver overlay --vni {VNI} --subnet 10.77.0.0/24 --ip-range 10.77.0.32/27 --subnet fd77::/64 --ip-range fd77::1:0/112 --peer {REMOTE_V4} wide"
        ));
        let member = place.join("wide", "web", "");
        // So that it knows its gateway.
        member.assert_pings(lab, &member.gateway.to_string());
        let socket = |at: IpAddr| {
            let socket = lab
                .remote
                .udp(SocketAddr::new(at, PORT), Duration::from_millis(200));
            let to: SocketAddr = (HOST_V4, PORT).into();
            socket
                .connect(to)
                .map(|()| socket)
                .expect("a route to the host")
        };
        Self {
            place,
            member,
            peer: socket(REMOTE_V4.into()),
            other: socket(GATEWAY_V4.into()),
        }
    }

    fn uplink(&self) -> serde_json::Value {
        self.place.inspect("wide")["Cnet"]["Uplinks"][0].take()
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.uplink()["drops"][reason.name()].as_u64().unwrap_or(0)
    }

    /// Each of `datagrams` is dropped for `reason`.
    #[track_caller]
    fn assert_dropped(&self, from: &UdpSocket, reason: DropReason, datagrams: &[Vec<u8>]) {
        let before = self.drops(reason);
        for datagram in datagrams {
            from.send(datagram).expect("a datagram");
        }
        let expected = before + datagrams.len() as u64;
        wait_until(reason.name(), Duration::from_secs(5), || {
            match self.drops(reason) {
                counted if counted == expected => Ok(()),
                counted => Err(format!("{counted} for {expected}: {}", self.uplink())),
            }
        });
    }
}

fn in_tunnel(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&vxlan::header(Vni::new(vni).expect("24 bits"))[..], frame].concat()
}

/// A frame of the peer's own station to the container.
fn honest(own: &Station, payload: &[u8]) -> Vec<u8> {
    let (mac, address) = THEIRS;
    raw::udp((mac, address.into(), 9), (own.mac, own.v4, 9), payload)
}

/// The peer speaks for others' addresses, and to what is not behind this host.
fn claims_what_is_not_its_own(
    tunnel: &Tunnel<'_>,
    (own, gateway): (&Station, &Station),
    frame: &[u8],
) {
    let (peer, mac) = (&tunnel.peer, THEIRS.0);
    // For addresses that it does not own.
    let forged = [own.mac, gateway.mac]
        .map(|mac| in_tunnel(VNI, &changed(frame, |f| f[6..12].copy_from_slice(&mac))));
    tunnel.assert_dropped(peer, DropReason::Spoofed, &forged);
    let claims = [own.v4, gateway.v4].map(|claimed| {
        in_tunnel(
            VNI,
            &raw::arp(BROADCAST, 2, (mac, claimed), (own.mac, own.v4)),
        )
    });
    tunnel.assert_dropped(peer, DropReason::Spoofed, &claims);
    // For the router here, and for a station behind the same peer: it would go round.
    let elsewhere = [gateway.mac, [2, 0, 0, 0, 8, 8]]
        .map(|to| in_tunnel(VNI, &changed(frame, |f| f[..6].copy_from_slice(&to))));
    let sent = tunnel.uplink()["peers"][0]["frames_sent"].clone();
    tunnel.assert_dropped(peer, DropReason::NoSuchPort, &elsewhere);
    assert_eq!(
        tunnel.uplink()["peers"][0]["frames_sent"],
        sent,
        "nothing went back"
    );
    let tagged = changed(frame, |f| {
        f.splice(12..12, [0x81, 0, 0, 5]);
    });
    tunnel.assert_dropped(peer, DropReason::VlanTag, &[in_tunnel(VNI, &tagged)]);
    let long = honest(own, &[0; 4000]);
    tunnel.assert_dropped(peer, DropReason::FrameTooLong, &[in_tunnel(VNI, &long)]);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_no_peer_sends_is_dropped_by_its_reason() {
    let lab = Lab::direct();
    let tunnel = Tunnel::start(&lab);
    let (peer, other) = (&tunnel.peer, &tunnel.other);
    let (own, gateway) = (
        Station::of(&tunnel.member),
        Station::gateway(&tunnel.member),
    );
    let frame = honest(&own, b"payload");
    let whole = in_tunnel(VNI, &frame);

    let short: Vec<Vec<u8>> = (0..22).map(|len| whole[..len].to_vec()).collect();
    tunnel.assert_dropped(peer, DropReason::BadVxlanHeader, &short);
    let bits = [0, 1, 2, 3, 5, 6, 7, 8, 31, 56, 63];
    let flags = bits.map(|bit| changed(&whole, |d| d[bit / 8] ^= 0x80 >> (bit % 8)));
    tunnel.assert_dropped(peer, DropReason::BadVxlanHeader, &flags);
    let networks = [0, 41, 43, 0x00ff_ffff].map(|vni| in_tunnel(vni, &frame));
    tunnel.assert_dropped(peer, DropReason::UnknownVni, &networks);
    tunnel.assert_dropped(other, DropReason::UnknownPeer, &vec![whole.clone(); 9]);

    let (mac, address) = THEIRS;
    let inner = raw::udp((mac, address.into(), 9), (own.mac, own.v4, PORT), &whole);
    tunnel.assert_dropped(peer, DropReason::NestedTunnel, &[in_tunnel(VNI, &inner)]);

    claims_what_is_not_its_own(&tunnel, (&own, &gateway), &frame);

    // What is right among all that still arrives.
    let receiver = tunnel
        .member
        .namespace
        .udp(SocketAddr::new(own.v4, 9), Duration::from_secs(5));
    peer.send(&in_tunnel(VNI, &honest(&own, b"right")))
        .expect("a datagram");
    let mut buf = [0; 100];
    let (length, from) = receiver.recv_from(&mut buf).expect("the right one");
    assert_eq!(
        (&buf[..length], from.ip()),
        (&b"right"[..], IpAddr::from(address))
    );
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn floods_by_a_tunnel_and_into_it_are_bounded() {
    let lab = Lab::direct();
    let tunnel = Tunnel::start(&lab);
    let own = Station::of(&tunnel.member);
    let gateway = tunnel.member.gateway.to_string();
    let (mac, address) = THEIRS;
    let asks = raw::arp(
        BROADCAST,
        1,
        (mac, address.into()),
        ([0; 6], [10, 77, 0, 9].into()),
    );
    for _ in 0..20_000 {
        // One that finds the host's queue full is lost.
        let _ = tunnel.peer.send(&in_tunnel(VNI, &asks));
    }
    tunnel.member.assert_pings(&lab, &gateway);

    // A container's broadcasts go to all hosts, so there is a bound to them.
    let wire = raw::Wire::open(&tunnel.member.namespace, &tunnel.member.interface);
    let asks = raw::arp(
        BROADCAST,
        1,
        (own.mac, own.v4),
        ([0; 6], [10, 77, 0, 9].into()),
    );
    let sent = |tunnel: &Tunnel<'_>| tunnel.uplink()["peers"][0]["frames_sent"].as_u64();
    let before = sent(&tunnel).expect("a number");
    (0..10_000).for_each(|_| wire.send(&asks));
    sleep(Duration::from_millis(300));
    let left = sent(&tunnel).expect("a number") - before;
    assert!((500..6000).contains(&left), "{left} of 10,000 left");
    assert!(tunnel.drops(DropReason::RateLimit) > 1000);
    tunnel.member.assert_pings(&lab, &gateway);
}
