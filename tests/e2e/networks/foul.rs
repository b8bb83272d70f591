//! A container that minds no rules: it claims addresses, plays the router and the DHCP server, and
//! floods. Its neighbours' caches, addresses, routes and connections stay as they are, and the
//! counters tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Place;
use crate::lab::namespace::Namespace;
use crate::lab::raw::{self, BROADCAST, Mac, Wire, octets};
use crate::lab::servers::TcpServer;
use crate::lab::station::{Station, mac_of};
use crate::lab::traffic::{CONNECT, echo, noise};
use crate::lab::{Lab, any, wait_until};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// The IPv6 group of all nodes, and its hardware address.
const ALL_NODES: (Mac, &str) = ([0x33, 0x33, 0, 0, 0, 1], "ff02::1");

/// Addresses and routes, without the times that pass by themselves.
fn settings(namespace: &Namespace) -> BTreeSet<String> {
    let shown = [
        "-o addr",
        "-4 route show table all",
        "-6 route show table all",
    ]
    .map(|what| namespace.ip(what));
    let lines = shown.iter().flat_map(|text| text.lines()).map(|line| {
        let words = line.split_whitespace();
        let words: Vec<&str> = words.filter(|word| !word.ends_with("sec")).collect();
        words.join(" ")
    });
    lines.collect()
}

/// The neighbours' addresses with their hardware addresses.
fn neighbours(namespace: &Namespace) -> BTreeMap<IpAddr, Mac> {
    let shown = namespace.ip("-o neigh show");
    let known = shown.lines().filter(|line| line.contains("lladdr"));
    let entry = |line: &str| {
        let address = line.split_whitespace().next();
        let address = address.and_then(|a| a.parse().ok()).expect("an address");
        (address, mac_of(line))
    };
    known.map(entry).collect()
}

/// The addresses of a container's own.
fn addresses(namespace: &Namespace) -> BTreeSet<IpAddr> {
    let shown = namespace.ip("-o addr show eth0");
    let words = shown
        .split_whitespace()
        .filter_map(|word| word.split_once('/'));
    words
        .filter_map(|(address, _)| address.parse().ok())
        .collect()
}

/// A kind of attack: its name, the reason its frames are dropped for, and the frames.
type Attack = (&'static str, &'static str, Vec<Vec<u8>>);

/// Claims of the addresses that belong to others.
fn claims(own: Station, gateway: Station, victim: Station, peer: Station) -> Vec<Attack> {
    let mut arp = Vec::new();
    let mut advertisements = Vec::new();
    for (claimed, told) in [
        (gateway, victim),
        (gateway, peer),
        (victim, peer),
        (peer, victim),
    ] {
        let claim = (own.mac, claimed.v4);
        arp.push(raw::arp(BROADCAST, 1, claim, ([0; 6], claimed.v4)));
        arp.push(raw::arp(BROADCAST, 2, claim, (BROADCAST, claimed.v4)));
        arp.push(raw::arp(told.mac, 2, claim, (told.mac, told.v4)));
        // Neighbour advertisement: override, the target, its supposed hardware address.
        let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
        message.extend(octets(claimed.v6));
        message.extend([2, 1]);
        message.extend(own.mac);
        for source in [own.v6, claimed.v6] {
            let to = (told.mac, told.v6);
            advertisements.push(raw::ip((own.mac, source), to, ICMPV6, 2, &message));
        }
    }
    vec![
        ("claims by ARP", "spoofed", arp),
        (
            "claims by neighbour advertisement",
            "spoofed",
            advertisements,
        ),
    ]
}

/// Packets of senders that it is not.
fn foreign(own: Station, victim: Station, peer: Station) -> Attack {
    let elsewhere = ["203.0.113.5", "2001:db8:99::5"].map(|a| a.parse().expect("an address"));
    let sources = [victim.v4, victim.v6, elsewhere[0], elsewhere[1]];
    let frames = sources.map(|source| {
        let to = if source.is_ipv4() { peer.v4 } else { peer.v6 };
        raw::udp((own.mac, source, 9), (peer.mac, to, 9), b"not mine")
    });
    ("foreign sources", "spoofed", frames.into())
}

/// What the gateway alone may say.
fn services(own: Station, victim: Station) -> Attack {
    // Router advertisement: half an hour; the prefix 2001:db8:666::/64, on the link and for
    // addresses, for an hour.
    let mut router = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    router.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
    router.extend(octets("2001:db8:666::".parse().expect("an address")));
    let link_local = "fe80::666".parse().expect("an address");
    let group = (ALL_NODES.0, ALL_NODES.1.parse().expect("an address"));
    // DHCP: an offer, as much of it as tells one (RFC 2131).
    let mut offer = vec![0; 240];
    offer[..4].copy_from_slice(&[2, 1, 6, 0]);
    offer[236..].copy_from_slice(&[99, 130, 83, 99]);
    offer.extend([53, 1, 2, 255]);
    let everyone = (BROADCAST, IpAddr::V4(Ipv4Addr::BROADCAST), 68);
    // Redirects: to reach 198.51.100.2, or the same over IPv6, go by the attacker.
    let mut redirect = [&[5, 1, 0, 0][..], &octets(own.v4)].concat();
    redirect.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    redirect.extend([octets(victim.v4), vec![198, 51, 100, 2]].concat());
    redirect.extend([0; 8]);
    let mut redirect_v6 = vec![137, 0, 0, 0, 0, 0, 0, 0];
    redirect_v6.extend(octets(own.v6));
    redirect_v6.extend(octets("2001:db8:2::2".parse().expect("an address")));
    let own_v4 = (own.mac, own.v4);
    let frames = vec![
        raw::ip((own.mac, link_local), group, ICMPV6, 2, &router),
        raw::ip(
            (own.mac, own.v6),
            (victim.mac, victim.v6),
            ICMPV6,
            2,
            &router,
        ),
        raw::udp((own.mac, own.v4, 67), everyone, &offer),
        raw::udp((own.mac, own.v4, 67), (victim.mac, victim.v4, 68), &offer),
        raw::udp(
            (own.mac, own.v6, 547),
            (victim.mac, victim.v6, 546),
            &[2, 0, 0, 1],
        ),
        raw::ip(own_v4, (victim.mac, victim.v4), ICMP, 2, &redirect),
        raw::ip(
            (own.mac, own.v6),
            (victim.mac, victim.v6),
            ICMPV6,
            2,
            &redirect_v6,
        ),
    ];
    ("services of the gateway", "rogue_service", frames)
}

/// As many source addresses as a switch may try to learn.
fn flood(victim: Station) -> Attack {
    let frames = noise(6 * 4000, 4)
        .chunks(6)
        .map(|random| {
            let mut mac: Mac = random.try_into().expect("six octets");
            // One station, of local administration.
            mac[0] = mac[0] & 0xfc | 2;
            let from = (mac, "0.0.0.0".parse().expect("an address"));
            raw::arp(BROADCAST, 1, from, ([0; 6], victim.v4))
        })
        .collect();
    ("flood of hardware addresses", "spoofed", frames)
}

// Longer than 60 lines: one attack after the other on one network, whose counters are told at the end.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_hostile_container_changes_nothing_for_its_neighbours_and_the_counters_tell() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    let [attacker, victim, peer] =
        ["attacker", "victim", "peer"].map(|name| place.join("cnet", name, ""));
    for (from, to) in [(&victim, &peer), (&peer, &victim)] {
        for address in to.addresses() {
            from.assert_pings(&lab, &address.to_string());
        }
        from.assert_pings(&lab, &from.gateway.to_string());
        let gateway = Station::gateway(from);
        from.assert_pings(&lab, &gateway.v6.to_string());
    }
    let gateway = Station::gateway(&victim);
    let [own, of_victim, of_peer] = [&attacker, &victim, &peer].map(Station::of);
    let both = [&victim, &peer];
    for member in both {
        wait_until("addresses in use", Duration::from_secs(5), || {
            let shown = member.namespace.ip("-o addr");
            (!shown.contains("tentative")).then_some(()).ok_or(shown)
        });
    }
    let before = both.map(|member| settings(&member.namespace));
    let known_before = both.map(|member| neighbours(&member.namespace));

    let server = TcpServer::echo(&peer.namespace, any(peer.v4, 0));
    let at = SocketAddr::new(peer.v4, server.address.port());
    let mut stream = victim.namespace.connect(at, CONNECT).expect("a connect");
    let over = AtomicBool::new(false);
    let wire = Wire::open(&attacker.namespace, &attacker.interface);
    let mut attacks = claims(own, gateway, of_victim, of_peer);
    attacks.push(foreign(own, of_victim, of_peer));
    attacks.push(services(own, of_victim));
    attacks.push(flood(of_victim));
    let longest = thread::scope(|scope| {
        let neighbours = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let started = Instant::now();
                echo(&mut stream, b"undisturbed").expect("an echo");
                longest = longest.max(started.elapsed());
                thread::sleep(Duration::from_millis(1));
            }
            longest
        });
        for (what, reason, frames) in &attacks {
            let counted = place.drops("cnet", "attacker", reason);
            // The kernel lets an entry alone that was changed a moment ago.
            for _ in 0..2 {
                for (number, frame) in frames.iter().enumerate() {
                    wire.send(frame);
                    if number % 100 == 99 {
                        thread::sleep(Duration::from_millis(2));
                    }
                }
                thread::sleep(Duration::from_millis(100));
            }
            let sent = 2 * frames.len() as u64;
            wait_until(what, Duration::from_secs(5), || {
                let dropped = place.drops("cnet", "attacker", reason) - counted;
                println!("{what}: {sent} frames, {dropped} dropped as {reason}");
                (dropped >= sent)
                    .then_some(())
                    .ok_or(format!("{dropped} of {sent}"))
            });
        }
        over.store(true, Ordering::Relaxed);
        neighbours.join().expect("neighbours that talk on")
    });
    println!("longest round trip of the neighbours: {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");

    assert_eq!(both.map(|member| settings(&member.namespace)), before);
    let its_own = addresses(&attacker.namespace);
    for (member, before) in both.iter().zip(known_before) {
        let after = neighbours(&member.namespace);
        for (address, mac) in before {
            assert_eq!(
                after.get(&address),
                Some(&mac),
                "{}: {address}",
                member.name
            );
        }
        let stolen =
            |(address, mac): (&IpAddr, &Mac)| *mac == own.mac && !its_own.contains(address);
        assert!(!after.iter().any(stolen), "{}: {after:?}", member.name);
    }
    for name in ["victim", "peer"] {
        for reason in ["spoofed", "rogue_service"] {
            assert_eq!(place.drops("cnet", name, reason), 0, "{name}: {reason}");
        }
    }
    for from in [&victim, &peer] {
        from.assert_pings(&lab, &from.gateway.to_string());
        from.assert_pings(&lab, "attacker");
    }
    // Nor is it shut out itself.
    attacker.assert_pings(&lab, "victim");
}
