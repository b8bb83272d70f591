//! ICMP and ICMPv6: echoes and errors.

use cnet_wire::DropReason;

use crate::arena::Arena;
use crate::frames::{changed, ipv4, ipv6};
use crate::lab::raw;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn forged_errors_find_no_flow() {
    let arena = Arena::start();
    // Fragmentation needed for 68 bytes, packet too big for 100, and unreachables, of flows that
    // there are not.
    let quoted_v4 = |from: crate::frames::End, to: crate::frames::End| {
        raw::udp((to.0, to.1, 53), (from.0, from.1, 9), b"quoted")[14..].to_vec()
    };
    let (from, to) = (arena.v4(), arena.world_v4());
    let mut frames = Vec::new();
    for header in [
        [3, 4, 0, 0, 0, 0, 0, 68],
        [3, 3, 0, 0, 0, 0, 0, 0],
        [11, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let message = [&header[..], &quoted_v4(from, to)].concat();
        frames.push(raw::ip(from, to, ICMP, 2, &message));
    }
    let (from, to) = (arena.v6(), arena.world_v6());
    for header in [[2, 0, 0, 0, 0, 0, 0, 100], [1, 4, 0, 0, 0, 0, 0, 0]] {
        let message = [&header[..], &quoted_v4(from, to)].concat();
        frames.push(raw::ip(from, to, ICMPV6, 2, &message));
    }
    arena.assert_dropped("forged quotes", DropReason::ForgedQuote, &frames);
    let (from, to) = (arena.v4(), arena.world_v4());
    let short = [0, 10, 19, 24].map(|length| {
        let whole = quoted_v4(from, to);
        let message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &whole[..length]].concat();
        raw::ip(from, to, ICMP, 2, &message)
    });
    arena.assert_dropped("truncated quotes", DropReason::ForgedQuote, &short);
    arena.assert_undisturbed();
}

/// An echo request that ends before its header does: an answer would hold bytes that were not in it.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn cve_2020_10756_echo_shorter_than_its_header() {
    let arena = Arena::start();
    let gateway = arena.gateway;
    for (from, to, protocol, kind) in [
        (arena.v4(), (gateway.mac, gateway.v4), ICMP, 8),
        (arena.v4(), arena.world_v4(), ICMP, 8),
        (arena.v6(), (gateway.mac, gateway.v6), ICMPV6, 128),
        (arena.v6(), arena.world_v6(), ICMPV6, 128),
    ] {
        let whole = [kind, 0, 0, 0, 0, 1, 0, 1];
        let short: Vec<Vec<u8>> = (4..8)
            .map(|length| raw::ip(from, to, protocol, 2, &whole[..length]))
            .collect();
        arena.assert_dropped("short echoes", DropReason::BadIcmp, &short);
        let cut = [0, 1, 3].map(|length| match from.1.is_ipv4() {
            true => ipv4(from, to, protocol, 0, &whole[..length]),
            false => ipv6(from, to, protocol, &whole[..length]),
        });
        arena.assert_dropped("echoes without a checksum", DropReason::BadChecksum, &cut);
        let wrong = changed(&raw::ip(from, to, protocol, 2, &whole), |frame| {
            let last = frame.len() - 1;
            frame[last] ^= 1;
        });
        arena.assert_dropped("a wrong checksum", DropReason::BadChecksum, &[wrong]);
    }
    arena.assert_undisturbed();
}
