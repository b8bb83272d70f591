//! DHCP, neighbour discovery, and services that only the gateway offers.

use std::net::{IpAddr, Ipv4Addr};

use cnet_wire::DropReason;

use crate::arena::Arena;
use crate::frames::{End, ipv6};
use crate::lab::raw::{self, BROADCAST, octets};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A DHCP message (RFC 2131) of an operation, without options.
fn bootp(operation: u8, mac: raw::Mac) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[operation, 1, 6, 0]);
    message[28..34].copy_from_slice(&mac);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message
}

/// Addresses and routes that a container offers its neighbours never reach them.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn cve_2020_13401_and_2020_10749_router_advertisements_and_redirects() {
    let arena = Arena::start();
    let (own, victim) = (arena.own, arena.of_victim);
    let nodes: End = ([0x33, 0x33, 0, 0, 0, 1], address("ff02::1"));
    let mut router = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    router.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
    router.extend(octets(address("2001:db8:666::")));
    let mut redirect_v6 = vec![137, 0, 0, 0, 0, 0, 0, 0];
    redirect_v6.extend(octets(own.v6));
    redirect_v6.extend(octets(address("2001:db8:2::2")));
    let mut redirect = [&[5, 1, 0, 0][..], &octets(own.v4)].concat();
    redirect.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    redirect.extend([octets(victim.v4), vec![198, 51, 100, 2], vec![0; 8]].concat());
    let mut offer = bootp(2, victim.mac);
    offer.extend([53, 1, 2, 255]);
    let link_local = (own.mac, address("fe80::666"));
    let to_victim = ((victim.mac, victim.v4), (victim.mac, victim.v6));
    let everyone = (BROADCAST, IpAddr::V4(Ipv4Addr::BROADCAST), 68);
    let frames = [
        raw::ip(link_local, nodes, ICMPV6, 2, &router),
        raw::ip(arena.v6(), to_victim.1, ICMPV6, 2, &router),
        raw::ip(arena.v6(), to_victim.1, ICMPV6, 2, &redirect_v6),
        raw::ip(arena.v4(), to_victim.0, ICMP, 2, &redirect),
        raw::udp((own.mac, own.v4, 67), everyone, &offer),
        raw::udp(
            (own.mac, own.v6, 547),
            (victim.mac, victim.v6, 546),
            &[2, 0, 0, 1],
        ),
    ];
    let settings = |namespace: &crate::lab::namespace::Namespace| {
        ["-o -6 route show table main", "-o -4 route show table main"].map(|what| {
            let shown = namespace.ip(what);
            let lines = shown.lines().map(|line| {
                let words = line.split_whitespace();
                words
                    .filter(|word| !word.ends_with("sec"))
                    .collect::<Vec<_>>()
                    .join(" ")
            });
            lines.collect::<Vec<String>>()
        })
    };
    let before = settings(&arena.victim.namespace);
    arena.assert_dropped("services of the gateway", DropReason::RogueService, &frames);
    assert_eq!(settings(&arena.victim.namespace), before);
    arena.assert_undisturbed();
}

/// BOOTP messages that end too early, and options that run past the end.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn cve_2021_3592_to_3595_short_bootp_and_options_past_the_end() {
    let arena = Arena::start();
    let own = arena.own;
    let unset = (own.mac, IpAddr::V4(Ipv4Addr::UNSPECIFIED), 68);
    let servers = (BROADCAST, IpAddr::V4(Ipv4Addr::BROADCAST), 67);
    let request = |message: &[u8]| raw::udp(unset, servers, message);
    let whole = bootp(1, own.mac);
    let mut frames: Vec<Vec<u8>> = [0, 1, 28, 44, 100, 235, 236, 239]
        .map(|length| request(&whole[..length]))
        .into();
    for options in [
        &[53, 200, 1][..],
        &[53],
        &[53, 2, 1, 255],
        &[53, 1, 1, 50, 4, 10, 0],
    ] {
        frames.push(request(&[&whole[..], options].concat()));
    }
    let mut wrong = whole.clone();
    wrong[236..].copy_from_slice(&[1, 2, 3, 4]);
    frames.push(request(&wrong));
    let v6 = (own.mac, address("fe80::5"), 546);
    let servers = ([0x33, 0x33, 0, 1, 0, 2], address("ff02::1:2"), 547);
    for message in [
        &[][..],
        &[1],
        &[1, 0, 0],
        &[1, 0, 0, 1, 0, 1, 0, 200, 1],
        &[1, 0, 0, 1, 0],
    ] {
        frames.push(raw::udp(v6, servers, message));
    }
    arena.assert_dropped("DHCP", DropReason::BadDhcp, &frames);
    arena.assert_undisturbed();
}

/// Whatever hardware addresses and client ids it asks with, a port has one lease.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn dhcp_starvation_takes_one_lease_a_port() {
    let arena = Arena::start();
    let own = arena.own;
    let unset = (own.mac, IpAddr::V4(Ipv4Addr::UNSPECIFIED), 68);
    let servers = (BROADCAST, IpAddr::V4(Ipv4Addr::BROADCAST), 67);
    let frames: Vec<Vec<u8>> = (0..2000u16)
        .map(|number| {
            let [a, b] = number.to_be_bytes();
            let mut message = bootp(1, [2, 6, 6, 6, a, b]);
            // A request for an address, by an id of its own.
            message.extend([53, 1, 3, 61, 3, 0, a, b, 50, 4, 10, 0, 2, b, 255]);
            raw::udp(unset, servers, &message)
        })
        .collect();
    arena.send(&frames);
    // The neighbours' addresses are theirs, and the next container has its own.
    let late = arena.network.join(9);
    crate::arena::reaches(&late, arena.victim.v4);
    arena.assert_undisturbed();
}

/// Neighbour discovery from afar, with options of no length, and cut off (RFC 4861 section 7.1).
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn neighbour_discovery_that_is_not_valid_is_dropped() {
    let arena = Arena::start();
    let (own, gateway) = (arena.own, arena.gateway);
    let to = (gateway.mac, gateway.v6);
    let solicitation = [
        &[135, 0, 0, 0, 0, 0, 0, 0][..],
        &octets(gateway.v6),
        &[1, 1],
        &own.mac,
    ]
    .concat();
    let right = raw::ip(arena.v6(), to, ICMPV6, 2, &solicitation);
    let mut far = right.clone();
    far[14 + 7] = 64;
    let message = |bytes: &[u8]| raw::ip(arena.v6(), to, ICMPV6, 2, bytes);
    let mut endless = solicitation.clone();
    endless[25] = 0;
    let mut long = solicitation.clone();
    long[25] = 40;
    let frames = [
        far,
        message(&endless),
        message(&long),
        message(&solicitation[..20]),
        message(&[133, 0, 0, 0]),
    ];
    arena.assert_dropped("neighbour discovery", DropReason::BadIcmp, &frames);
    arena.assert_undisturbed();
}

/// A scan of the network's /64 and of its IPv4 subnet: nothing is remembered of those that are not
/// there, and those that are answer.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_neighbour_scan_fills_no_table() {
    let arena = Arena::start();
    let own = arena.own;
    let frames: Vec<Vec<u8>> = (0..20_000u16)
        .map(|number| {
            let [a, b] = number.to_be_bytes();
            let mut target = octets(own.v6);
            target[13] = 7;
            target[14..].copy_from_slice(&[a, b]);
            let group = [0x33, 0x33, 0xff, 0, a, b];
            let mut solicited = octets(address("ff02::1:ff00:0"));
            solicited[14..].copy_from_slice(&[a, b]);
            let solicited: [u8; 16] = solicited.try_into().expect("an address");
            let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target, &[1, 1], &own.mac].concat();
            match number % 2 {
                0 => raw::ip(
                    arena.v6(),
                    (group, IpAddr::from(solicited)),
                    ICMPV6,
                    2,
                    &message,
                ),
                _ => {
                    let target: [u8; 16] = target.try_into().expect("an address");
                    let to = (arena.gateway.mac, IpAddr::from(target));
                    ipv6(arena.v6(), to, 17, &[0, 9, 0, 9, 0, 8, 1, 1])
                }
            }
        })
        .collect();
    arena.send(&frames);
    let flows = arena.network.of_port(arena.attacker.port).flows;
    assert!(flows.udp < 100, "{flows:?}");
    arena.assert_undisturbed();
}
