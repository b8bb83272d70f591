//! Fragments of IPv4 and IPv6.

use std::fs;
use std::net::SocketAddr;

use cnet_wire::DropReason;

use crate::arena::Arena;
use crate::frames::{fragment_header, ipv4, ipv6, transport, with_options};
use crate::lab::servers::UdpServer;
use crate::lab::traffic::echo_datagram;
use crate::lab::{REMOTES, any, raw};

const UDP: u8 = 17;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
/// More fragments follow.
const MORE: u16 = 0x2000;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ipv4_fragments_that_fit_nowhere_are_dropped() {
    let arena = Arena::start();
    let (from, to) = (arena.v4(), arena.world_v4());
    let fragment = |id: u16, protocol: u8, word: u16, payload: &[u8]| {
        with_options(from, to, protocol, (id, word), &[], payload)
    };
    let past_the_end = [
        fragment(1, UDP, 8191, &[0; 100]),
        fragment(2, UDP, 8191 | MORE, &[0; 96]),
        fragment(3, UDP, 8100, &[0; 1400]),
    ];
    arena.assert_dropped("past 65535 bytes", DropReason::BadFragment, &past_the_end);
    let uneven = [
        fragment(4, UDP, MORE, &[0; 1001]),
        fragment(5, UDP, MORE | 8, &[0; 7]),
    ];
    arena.assert_dropped("uneven lengths", DropReason::BadFragment, &uneven);
    // RFC 1858 and RFC 3128: flags in the second fragment, or over the first.
    let tiny = [
        fragment(6, TCP, MORE, &[0; 8]),
        fragment(7, TCP, 1, &[0; 16]),
    ];
    arena.assert_dropped("tiny fragments", DropReason::BadFragment, &tiny);
    // The second of each overlaps the first with other bytes.
    for id in 10..14 {
        let first = fragment(id, UDP, MORE, &[1; 800]);
        arena.send(&[first]);
        let before = arena.drops(DropReason::BadFragment);
        arena.send(&[
            fragment(id, UDP, 50 | MORE, &[2; 800]),
            fragment(id, UDP, 0, &[3; 40]),
        ]);
        crate::lab::wait_until("overlaps", std::time::Duration::from_secs(5), || {
            let dropped = arena.drops(DropReason::BadFragment) - before;
            (dropped >= 1)
                .then_some(())
                .ok_or(format!("{dropped} dropped"))
        });
    }
    arena.assert_undisturbed();
}

/// The first fragment is larger than the datagram that it begins, and comes last.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn cve_2019_14378_oversized_first_fragment() {
    let arena = Arena::start();
    let (from, to) = (arena.v4(), arena.world_v4());
    for id in 0..200 {
        let fragment = |word: u16, length: usize| {
            with_options(from, to, UDP, (id, word), &[], &vec![0x41; length])
        };
        // The end at 808 bytes; then a beginning of 1480.
        arena.send(&[fragment(100, 8), fragment(MORE, 1480)]);
    }
    arena.assert_dropped(
        "a beginning past the end",
        DropReason::BadFragment,
        &[with_options(from, to, UDP, (900, 8191), &[], &[0; 40])],
    );
    arena.assert_undisturbed();
}

/// What was left of one reassembly is not found by the next: identifications used again, with other
/// protocols, lengths and ends, complete and not.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn cve_2020_1983_and_2019_15890_reassembly_state_used_again() {
    let arena = Arena::start();
    let (from, to) = (arena.v4(), arena.world_v4());
    for round in 0..400u16 {
        let id = round % 4;
        let protocol = [UDP, TCP, 1][usize::from(round % 3)];
        let length = usize::from(8 * (1 + round % 100));
        let fragment =
            |word: u16| with_options(from, to, protocol, (id, word), &[], &vec![7; length]);
        let behind = u16::try_from(length / 8).expect("an offset");
        arena.send(&[
            fragment(behind),
            fragment(MORE),
            fragment(behind),
            fragment(MORE),
            fragment(0),
        ]);
    }
    arena.assert_undisturbed();
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ipv6_fragments_that_hide_something_are_dropped() {
    let arena = Arena::start();
    let (from, to) = (arena.v6(), arena.world_v6());
    let fragment = |id: u32, next: u8, offset: u16, more: bool, payload: &[u8]| {
        let header = fragment_header(next, offset, more, id);
        ipv6(from, to, FRAGMENT, &[&header[..], payload].concat())
    };
    let wrong = [
        fragment(1, UDP, 8191, false, &[0; 100]),
        fragment(2, UDP, 0, true, &[0; 1001]),
        fragment(4, TCP, 0, true, &[0; 8]),
    ];
    arena.assert_dropped("fragments", DropReason::BadFragment, &wrong);
    // RFC 7112: the headers go on in the next fragment.
    let chain = fragment(3, 60, 0, true, &[17, 20, 1, 4, 0, 0, 0, 0]);
    arena.assert_dropped(
        "a chain cut in two",
        DropReason::BadExtensionHeader,
        &[chain],
    );
    // RFC 6980: neighbour discovery is never fragmented.
    let solicitation = [
        &[135, 0, 0, 0, 0, 0, 0, 0][..],
        &raw::octets(arena.gateway.v6),
    ]
    .concat();
    let to_gateway = (arena.gateway.mac, arena.gateway.v6);
    let ndp = fragment_header(ICMPV6, 0, false, 5);
    let frame = ipv6(
        from,
        to_gateway,
        FRAGMENT,
        &[&ndp[..], &solicitation].concat(),
    );
    arena.assert_dropped("neighbour discovery", DropReason::BadFragment, &[frame]);
    // RFC 5722: one that overlaps ends the datagram, whose other fragments are dropped, too.
    let before = arena.drops(DropReason::BadFragment);
    arena.send(&[
        fragment(6, UDP, 0, true, &[1; 800]),
        fragment(6, UDP, 50, true, &[2; 800]),
        fragment(6, UDP, 150, false, &[3; 40]),
    ]);
    crate::lab::wait_until("overlaps", std::time::Duration::from_secs(5), || {
        let dropped = arena.drops(DropReason::BadFragment) - before;
        (dropped >= 2)
            .then_some(())
            .ok_or(format!("{dropped} dropped"))
    });
    arena.assert_undisturbed();
}

/// RFC 6946: a packet that says it is a fragment and is whole stands alone, also beside fragments of
/// its identification.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn atomic_fragments_stand_alone_and_honest_ones_arrive_whole() {
    let arena = Arena::start();
    let (from, to) = (arena.v6(), arena.world_v6());
    let server = UdpServer::echo(&arena.lab.remote, any(to.1, 0));
    let udp = raw::udp(
        (from.0, from.1, 7777),
        (to.0, to.1, server.address.port()),
        b"alone",
    );
    let part = [&fragment_header(UDP, 0, true, 77)[..], &[0; 800]].concat();
    let atomic = [&fragment_header(UDP, 0, false, 77)[..], &transport(&udp)].concat();
    arena.send(&[
        ipv6(from, to, FRAGMENT, &part),
        ipv6(from, to, FRAGMENT, &atomic),
    ]);
    crate::lab::wait_until("the datagram", std::time::Duration::from_secs(5), || {
        let came = server.log.peers().len();
        (came == 1).then_some(()).ok_or(format!("{came} came"))
    });
    for remote in REMOTES {
        let server = UdpServer::echo(&arena.lab.remote, any(remote, 0));
        let at = SocketAddr::new(remote, server.address.port());
        for length in [9_000, 65_000] {
            let echoed = echo_datagram(&arena.victim.namespace, at, length);
            echoed.unwrap_or_else(|error| panic!("{length} bytes to {remote}: {error}"));
        }
    }
    arena.assert_undisturbed();
}

/// The resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    kib.and_then(|kib| kib.trim().parse().ok())
        .expect("a number")
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn datagrams_that_never_complete_take_bounded_memory_and_no_others() {
    let arena = Arena::start();
    let (from, to) = (arena.v4(), arena.world_v4());
    let payload = [0x5a; 1400];
    // Datagrams given up are counted of the network.
    let given_up = || {
        arena
            .network
            .statistics()
            .drops
            .get(DropReason::ReassemblyLimit)
    };
    let before = (resident(), given_up());
    for id in 0..50_000u16 {
        arena
            .wire
            .send(&with_options(from, to, UDP, (id, MORE), &[], &payload));
        if id % 200 == 199 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    crate::lab::wait_until("a full table", std::time::Duration::from_secs(10), || {
        let dropped = given_up() - before.1;
        (dropped >= 40_000)
            .then_some(())
            .ok_or(format!("{dropped} dropped"))
    });
    let grown = resident().saturating_sub(before.0);
    println!("{grown} KiB more");
    assert!(grown < 32 << 10, "{grown} KiB");
    // Another container's datagrams are reassembled all the while.
    let server = UdpServer::echo(&arena.lab.remote, any(to.1, 0));
    let at = SocketAddr::new(to.1, server.address.port());
    echo_datagram(&arena.victim.namespace, at, 20_000).expect("a neighbour's fragments");
    let stray = ipv4(from, to, UDP, 8191, &[0; 40]);
    arena.assert_dropped("past the end", DropReason::BadFragment, &[stray]);
    arena.assert_undisturbed();
}
