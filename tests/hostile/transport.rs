//! TCP and UDP headers, and floods of segments.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cnet_wire::DropReason;

use crate::arena::Arena;
use crate::frames::{changed, ipv4, ipv6, tcp};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::connect_and_echo;
use crate::lab::{REMOTE_V4, SILENT_V4, any, raw};
use cnet_testkit::frames::flag::{ACK, FIN, PSH, RST, SYN, URG};

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn udp_headers_that_lie_are_dropped_by_their_reasons() {
    let arena = Arena::start();
    for (from, to) in [
        (arena.v4(), arena.world_v4()),
        (arena.v6(), arena.world_v6()),
    ] {
        let datagram = |ports: (u16, u16)| {
            raw::udp((from.0, from.1, ports.0), (to.0, to.1, ports.1), b"payload")
        };
        let right = datagram((9, 9));
        let udp = right.len() - 15;
        let packet = |payload: &[u8]| match from.1.is_ipv4() {
            true => ipv4(from, to, 17, 0, payload),
            false => ipv6(from, to, 17, payload),
        };
        // IPv4 datagrams without a checksum, which covers the length as well.
        let lengths = [0, 7, 1000, u16::MAX].map(|length| {
            let mut datagram = right[udp..].to_vec();
            datagram[4..6].copy_from_slice(&length.to_be_bytes());
            datagram[6..8].fill(0);
            packet(&datagram)
        });
        arena.assert_dropped("lengths that lie", DropReason::BadUdpHeader, &lengths);
        let cut = [0, 1, 7].map(|end| packet(&right[udp..udp + end]));
        arena.assert_dropped("cut headers", DropReason::BadUdpHeader, &cut);
        let mut sum = vec![changed(&right, |f| f[udp + 6] ^= 0x55)];
        if from.1.is_ipv6() {
            // None at all is for IPv4 alone (RFC 8200 section 8.1).
            sum.push(changed(&right, |f| f[udp + 6..udp + 8].fill(0)));
        }
        arena.assert_dropped("wrong checksums", DropReason::BadChecksum, &sum);
        let zero = [datagram((0, 9)), datagram((0, 0))];
        arena.assert_dropped("port 0", DropReason::PortZero, &zero);
    }
    arena.assert_undisturbed();
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn tcp_headers_that_lie_are_dropped_by_their_reasons() {
    let arena = Arena::start();
    for (from, to) in [
        (arena.v4(), arena.world_v4()),
        (arena.v6(), arena.world_v6()),
    ] {
        let segment =
            |flags: u8, options: &[u8]| tcp(from, to, (4000, 80), (1, 0), flags, options, b"");
        let options = [
            &[2, 0, 5, 180][..],
            &[2, 1, 5, 180],
            &[2, 3, 5, 180],
            &[8, 40, 0, 0],
            &[3, 3, 7, 2],
            &[254],
        ];
        let wrong = options.map(|options| segment(SYN, options));
        arena.assert_dropped("options", DropReason::BadTcpHeader, &wrong);
        let right = segment(SYN, &[]);
        let header = right.len() - 20;
        let offsets = [0, 1, 4, 6, 15].map(|words: u8| {
            let mut segment = right[header..].to_vec();
            segment[12] = words << 4;
            segment[16..18].fill(0);
            raw::ip(from, to, 6, 16, &segment)
        });
        arena.assert_dropped("data offsets", DropReason::BadTcpHeader, &offsets);
        let sets = [
            0,
            FIN | PSH | URG,
            SYN | FIN,
            SYN | RST,
            SYN | FIN | ACK,
            0x3f,
        ];
        let flags = sets.map(|flags| segment(flags, &[]));
        arena.assert_dropped("flags", DropReason::BadTcpFlags, &flags);
        let sum = changed(&right, |frame| frame[header + 16] ^= 0x55);
        arena.assert_dropped("a wrong checksum", DropReason::BadChecksum, &[sum]);
        let stray = [ACK, ACK | FIN, ACK | PSH].map(|flags| segment(flags, &[]));
        arena.assert_dropped("of no flow", DropReason::NoFlow, &stray);
        let zero = [(0, 80), (0, 0)].map(|ports| tcp(from, to, ports, (1, 0), SYN, &[], b""));
        arena.assert_dropped("port 0", DropReason::PortZero, &zero);
    }
    arena.assert_undisturbed();
}

/// SYNs of many ports to a host that does not answer, and SYNs each followed by a RST: a neighbour's
/// connects are as quick as before.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_syn_flood_leaves_room_for_the_neighbours() {
    let arena = Arena::start();
    let echo = TcpServer::echo(&arena.lab.remote, any(REMOTE_V4.into(), 0));
    let at = SocketAddr::new(REMOTE_V4.into(), echo.address.port());
    let from = arena.v4();
    let silent = (arena.gateway.mac, SILENT_V4.into());
    for round in 0..4u16 {
        let frames: Vec<Vec<u8>> = (0..5_000u16)
            .flat_map(|number| {
                let ports = (10_000 + round * 5_000 + number, 80);
                let syn = tcp(
                    from,
                    silent,
                    ports,
                    (number.into(), 0),
                    SYN,
                    &[2, 4, 5, 180],
                    b"",
                );
                let reset = tcp(
                    from,
                    silent,
                    ports,
                    (u32::from(number) + 1, 0),
                    RST,
                    &[],
                    b"",
                );
                let both = if round % 2 == 0 {
                    vec![syn]
                } else {
                    vec![syn, reset]
                };
                both.into_iter()
            })
            .collect();
        arena.send(&frames);
        let started = Instant::now();
        connect_and_echo(&arena.victim.namespace, at, b"a neighbour").expect("a connect");
        let took = started.elapsed();
        println!("round {round}: a neighbour's connect took {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    arena.assert_undisturbed();
}
