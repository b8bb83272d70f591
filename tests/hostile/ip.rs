//! IPv4 and IPv6 headers.

use std::net::IpAddr;

use cnet_wire::DropReason;

use crate::arena::Arena;
use crate::frames::{ETHERNET, changed, ipv4, ipv6, transport, with_options};
use crate::lab::raw;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ipv4_headers_that_lie_are_dropped_by_their_reasons() {
    let arena = Arena::start();
    let (from, to) = (arena.v4(), arena.world_v4());
    let right = raw::udp((from.0, from.1, 9), (to.0, to.1, 9), b"payload");
    let byte = |at: usize, value: u8| changed(&right, |frame| frame[ETHERNET + at] = value);
    let length = |value: u16| {
        changed(&right, |f| {
            f[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&value.to_be_bytes())
        })
    };
    let mut headers = vec![
        byte(0, 0x44),
        byte(0, 0x40),
        byte(0, 0x55),
        byte(0, 0x65),
        byte(0, 0x4f),
    ];
    headers.extend([length(0), length(19), length(1000), length(u16::MAX)]);
    headers.extend([0, 1, 19].map(|end| right[..ETHERNET + end].to_vec()));
    arena.assert_dropped("lengths that lie", DropReason::BadIpHeader, &headers);
    let mut sum = right.clone();
    sum[ETHERNET + 10] ^= 0x55;
    arena.assert_dropped("a wrong checksum", DropReason::BadIpChecksum, &[sum]);
    arena.assert_dropped("no hop left", DropReason::TtlExpired, &[byte(8, 0)]);
    let routes = [131, 137].map(|kind| {
        let options = [kind, 7, 4, 203, 0, 113, 1, 0];
        with_options(from, to, 17, (7, 0), &options, &transport(&right))
    });
    arena.assert_dropped("source routes", DropReason::IpOption, &routes);
    let endless = [[131, 0, 4, 0], [7, 1, 0, 0], [7, 40, 4, 0]]
        .map(|options| with_options(from, to, 17, (7, 0), &options, &transport(&right)));
    arena.assert_dropped("options past the end", DropReason::IpOption, &endless);
    let own = (arena.gateway.mac, arena.own.v4);
    let land = raw::udp((from.0, from.1, 9), (own.0, own.1, 9), b"to itself");
    arena.assert_dropped("LAND", DropReason::Land, &[land]);
    let unknown = [132, 47, 50, 255].map(|protocol| ipv4(from, to, protocol, 0, &[0; 40]));
    arena.assert_dropped("other protocols", DropReason::UnknownProtocol, &unknown);
    arena.assert_undisturbed();
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn senders_that_cannot_be_are_dropped_without_spoof_protection_too() {
    let arena = Arena::with(false);
    for (sources, to) in [
        (
            ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"],
            arena.world_v4(),
        ),
        (
            ["::1", "::", "ff02::1", "::ffff:127.0.0.1"],
            arena.world_v6(),
        ),
    ] {
        let frames = sources.map(|source| {
            raw::udp(
                (arena.own.mac, address(source), 9),
                (to.0, to.1, 9),
                b"a martian",
            )
        });
        arena.assert_dropped("martian sources", DropReason::MartianSource, &frames);
    }
    arena.assert_undisturbed();
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ipv6_headers_that_lie_are_dropped_by_their_reasons() {
    let arena = Arena::start();
    let (from, to) = (arena.v6(), arena.world_v6());
    let right = raw::udp((from.0, from.1, 9), (to.0, to.1, 9), b"payload");
    let byte = |at: usize, value: u8| changed(&right, |frame| frame[ETHERNET + at] = value);
    let mut headers = vec![byte(0, 0x45), byte(4, 0xff), byte(5, 0xff)];
    headers.extend([0, 1, 39].map(|end| right[..ETHERNET + end].to_vec()));
    arena.assert_dropped("lengths that lie", DropReason::BadIpHeader, &headers);
    arena.assert_dropped("no hop left", DropReason::TtlExpired, &[byte(7, 0)]);
    let udp = transport(&right);
    // Destination options, each leading to the next.
    let storm = |count: usize, last: u8| -> Vec<u8> {
        let mut chain = Vec::new();
        for number in 0..count {
            let next = if number + 1 == count { last } else { 60 };
            chain.extend([next, 0, 1, 4, 0, 0, 0, 0]);
        }
        chain.extend(&udp);
        ipv6(from, to, 60, &chain)
    };
    let cut = |next: u8, bytes: &[u8]| ipv6(from, to, next, bytes);
    let headers = [
        storm(40, 17),
        storm(170, 17),
        // Longer than the packet, and cut off.
        cut(60, &[17, 255, 1, 4, 0, 0, 0, 0]),
        cut(60, &[17]),
        cut(0, &[]),
        // Hop-by-hop options that do not come first.
        cut(
            60,
            &[&[0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat(),
        ),
    ];
    arena.assert_dropped(
        "extension headers",
        DropReason::BadExtensionHeader,
        &headers,
    );
    // RFC 5095.
    let route = cut(
        43,
        &[&[17, 2, 0, 1, 0, 0, 0, 0][..], &[0x20; 16], &udp].concat(),
    );
    arena.assert_dropped("a source route", DropReason::IpOption, &[route]);
    let land = raw::udp(
        (from.0, from.1, 9),
        (arena.gateway.mac, from.1, 9),
        b"to itself",
    );
    arena.assert_dropped("LAND", DropReason::Land, &[land]);
    arena.assert_undisturbed();
}
