//! TCP connections of a client that keeps no rule: what arrives at the far end is what was sent first,
//! and what does not belong to the window changes nothing.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use crate::arena::Arena;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::noise;
use crate::lab::{REMOTE_V4, any};
use crate::segments::Client;
use cnet_testkit::frames::flag::{ACK, FIN, PSH, RST, SYN, URG};

/// How long nothing has to come.
const QUIET: Duration = Duration::from_millis(300);

/// A server that tells what a client has sent, once it is at its end.
fn sink(arena: &Arena) -> (TcpServer, mpsc::Receiver<std::io::Result<Vec<u8>>>) {
    let (report, told) = mpsc::channel();
    let server = TcpServer::start(
        &arena.lab.remote,
        any(REMOTE_V4.into(), 0),
        move |mut stream| {
            let mut bytes = Vec::new();
            let read = stream.read_to_end(&mut bytes);
            report
                .send(read.map(|_| bytes))
                .map_err(std::io::Error::other)
        },
    );
    (server, told)
}

/// What came out at the far end.
fn came(told: &mpsc::Receiver<std::io::Result<Vec<u8>>>) -> std::io::Result<Vec<u8>> {
    told.recv_timeout(Duration::from_secs(10)).expect("an end")
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_was_sent_first_arrives_whatever_is_sent_besides() {
    let arena = Arena::start();
    let (server, told) = sink(&arena);
    let ports = |from: u16| (from, server.address.port());
    let world = arena.world_v4();

    // Numbers that wrap.
    let bytes = noise(50_000, 1);
    let mut client = Client::open(
        &arena,
        world,
        ports(4001),
        u32::MAX - 5_000,
        &[2, 4, 5, 180],
    );
    client.upload(&bytes, 1000);
    client.send(ACK | FIN, &[], b"");
    assert!(
        came(&told).expect("an upload") == bytes,
        "other bytes arrived"
    );

    // An urgent pointer past the data, and one at each byte of it.
    let mut client = Client::open(&arena, world, ports(4002), 7, &[2, 4, 5, 180]);
    for pointer in [0u16, 1, 5, 100, u16::MAX] {
        client.send_changed(ACK | URG | PSH, b"urgent", |header| {
            header[18..20].copy_from_slice(&pointer.to_be_bytes());
        });
        client.seq += 6;
        let due = client.seq;
        client.hear("an acknowledgement", |segment| segment.ack == due);
    }
    client.send(ACK | FIN, &[], b"");
    assert_eq!(came(&told).expect("an upload"), b"urgent".repeat(5));

    // The same numbers with other bytes, before, over and behind what is there.
    let mut client = Client::open(&arena, world, ports(4003), 7, &[2, 4, 5, 180]);
    client.upload(&[b'a'; 1000], 1000);
    client.send_at((client.seq - 1000, client.ack), ACK, &[], &[b'b'; 1000]);
    client.send_at((client.seq - 500, client.ack), ACK, &[], &[b'c'; 1000]);
    client.seq += 500;
    let due = client.seq;
    client.hear("an acknowledgement", |segment| segment.ack == due);
    client.send(ACK | FIN, &[], b"");
    let expected = [&[b'a'; 1000][..], &[b'c'; 500]].concat();
    assert!(
        came(&told).expect("an upload") == expected,
        "other bytes arrived"
    );
    arena.assert_undisturbed();
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_is_outside_the_window_ends_nothing_and_a_right_reset_does() {
    let arena = Arena::start();
    let (server, told) = sink(&arena);
    let to = (5001, server.address.port());
    let mut client = Client::open(&arena, arena.world_v4(), to, 1000, &[2, 4, 5, 180]);
    client.upload(b"before", 6);
    let (seq, ack) = (client.seq, client.ack);
    // Resets outside the window, at its far side, and in it but not where it begins (RFC 5961).
    for off in [0x4000_0000, 0x8000_0000, 0xc000_0000, 100] {
        client.send_at((seq.wrapping_add(off), ack), RST, &[], b"");
    }
    // A SYN of the same ends, with and without what it acknowledges.
    client.send_at((seq.wrapping_add(9), 0), SYN, &[], b"");
    client.send_at((seq, ack), SYN | ACK, &[], b"");
    // Acknowledgements of what was never sent, and of what was long ago.
    for off in [0x1000_0000, 0x9000_0000] {
        client.send_at((seq, ack.wrapping_add(off)), ACK, &[], b"");
    }
    // Data and an end that lie outside.
    client.send_at(
        (seq.wrapping_add(0x5000_0000), ack),
        ACK | PSH,
        &[],
        b"stray",
    );
    client.send_at(
        (seq.wrapping_sub(0x5000_0000), ack),
        ACK | FIN,
        &[],
        b"stray",
    );
    let challenges = std::iter::from_fn(|| client.hear_within(QUIET, |_| true)).count();
    println!("{challenges} answers");
    assert!((1..=12).contains(&challenges), "{challenges} answers");
    client.upload(b" and after", 10);
    client.send(RST, &[], b"");
    let ended = came(&told).expect_err("a reset");
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(
        client
            .hear_within(QUIET, |segment| segment.flags & RST == 0)
            .is_none()
    );
    // And it is gone: its next segment belongs to no flow.
    client.send(ACK, &[], b"late");
    client.hear("a reset", |segment| segment.flags & RST != 0);
    arena.assert_undisturbed();
}

/// A server on the remote that sends `bytes` to each client, and waits until it has had enough.
fn source(arena: &Arena, bytes: &[u8]) -> TcpServer {
    let sent = bytes.to_vec();
    TcpServer::start(
        &arena.lab.remote,
        any(REMOTE_V4.into(), 0),
        move |mut stream| {
            stream.write_all(&sent)?;
            let _ = stream.read(&mut [0]);
            Ok(())
        },
    )
}

/// The next `length` bytes of the stream, each segment acknowledged; and how many segments there were.
fn fetch(client: &mut Client<'_>, length: usize) -> (Vec<u8>, usize) {
    let (mut got, mut segments) = (Vec::new(), 0);
    while got.len() < length {
        let segment = client.hear("data", |segment| !segment.payload.is_empty());
        segments += 1;
        if segment.seq == client.ack {
            got.extend(&segment.payload);
            let length = u32::try_from(segment.payload.len()).expect("a segment");
            client.ack = client.ack.wrapping_add(length);
        }
        client.send(ACK, &[], b"");
    }
    (got, segments)
}

/// Windows and segment sizes that no client has.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn absurd_windows_and_segment_sizes_carry_data_in_a_bounded_number_of_segments() {
    let arena = Arena::start();
    let bytes = noise(3000, 3);
    let server = source(&arena, &bytes);
    let to = SocketAddr::new(REMOTE_V4.into(), server.address.port());
    let options: [&[u8]; 6] = [
        // MSS 0, 1 and 65535; a window scale over 14, alone and with MSS 1.
        &[2, 4, 0, 0],
        &[2, 4, 0, 1],
        &[2, 4, 255, 255],
        &[3, 3, 15, 1],
        &[3, 3, 255, 1],
        &[2, 4, 0, 1, 3, 3, 14, 1],
    ];
    for (number, options) in options.iter().enumerate() {
        let ports = (6001 + u16::try_from(number).expect("a port"), to.port());
        let mut client = Client::open(&arena, arena.world_v4(), ports, 1, options);
        let (got, segments) = fetch(&mut client, bytes.len());
        println!("{options:?}: {segments} segments");
        assert!(got == bytes, "{options:?}: other bytes arrived");
        assert!(segments < 200, "{options:?}: {segments} segments");
        client.send(RST, &[], b"");
    }
    arena.assert_undisturbed();
}

/// The window is closed, and the word that it is open again is lost: it is asked for.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_closed_window_is_probed_until_it_is_open() {
    let arena = Arena::start();
    let bytes = noise(3000, 3);
    let server = source(&arena, &bytes);
    let to = SocketAddr::new(REMOTE_V4.into(), server.address.port());
    let mut client = Client::open(
        &arena,
        arena.world_v4(),
        (6100, to.port()),
        1,
        &[2, 4, 5, 180],
    );
    let closed =
        |client: &Client<'_>| client.send_changed(ACK, b"", |header| header[14..16].fill(0));
    closed(&client);
    closed(&client);
    let probe = client.hear("a probe of the window", |segment| {
        segment.payload.len() <= 1 && segment.flags & SYN == 0
    });
    println!("probed by {probe:?}");
    client.send(ACK, &[], b"");
    let (got, _) = fetch(&mut client, bytes.len());
    assert!(got == bytes, "other bytes arrived");
    arena.assert_undisturbed();
}
