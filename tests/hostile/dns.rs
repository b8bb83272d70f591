//! DNS: messages that lie, and TCP clients that hold on or break off. The network's process answers
//! honest queries all the while.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::lab::Lab;
use crate::lab::place::{Member, Place};
use crate::lab::traffic::{CONNECT, noise};
use crate::lab::{any, wait_until};

/// How long an honest query may take beside the hostile ones.
const ANSWER: Duration = Duration::from_secs(2);

/// A query for the address of `web`, which the network knows.
fn honest(id: u16) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    query.extend(b"\x03web\x00\x00\x01\x00\x01");
    query
}

/// A query whose question is `question`, and whose counts are `counts`.
fn message(counts: [u16; 4], question: &[u8]) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0];
    counts
        .iter()
        .for_each(|count| message.extend(count.to_be_bytes()));
    message.extend(question);
    message
}

/// Whether an honest query is answered, over UDP and over TCP.
fn assert_answers(from: &Member, at: SocketAddr) {
    wait_until("an answer", ANSWER, || {
        let socket = from
            .namespace
            .udp(any(at.ip(), 0), Duration::from_millis(500));
        let sent = socket
            .send_to(&honest(77), at)
            .map_err(|error| error.to_string())?;
        assert_eq!(sent, honest(77).len());
        let mut answer = [0; 512];
        let length = socket
            .recv(&mut answer)
            .map_err(|error| error.to_string())?;
        assert_eq!(&answer[..2], &77u16.to_be_bytes());
        assert!(answer[7] == 1 && length > 30, "{:02x?}", &answer[..length]);
        Ok(())
    });
    let mut stream = from.namespace.connect(at, CONNECT).expect("DNS over TCP");
    stream.set_read_timeout(Some(ANSWER)).expect("a limit");
    stream.write_all(&framed(&honest(78))).expect("a query");
    let mut head = [0; 4];
    stream.read_exact(&mut head).expect("an answer over TCP");
    assert_eq!(&head[2..], &78u16.to_be_bytes());
}

/// As DNS over TCP has it, behind its length.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a message");
    [&length.to_be_bytes()[..], message].concat()
}

/// A network with a container `web` and the attacker, and where DNS is.
fn arena(lab: &Lab) -> (Place<'_>, Member, Member, SocketAddr) {
    let place = Place::root(lab);
    let [web, attacker] = ["web", "attacker"].map(|name| place.join("cnet", name, ""));
    let at = SocketAddr::new(attacker.gateway, 53);
    assert_answers(&web, at);
    (place, web, attacker, at)
}

/// RFC 9267: pointers to themselves, forward and in a cycle, names without an end, counts that lie.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn messages_that_lie_end_nothing() {
    let lab = Lab::direct();
    let (_place, web, attacker, at) = arena(&lab);
    let one = [1, 0, 0, 0];
    let asked = [0, 1, 0, 1];
    let mut messages = vec![
        message(one, &[&[0xc0, 12][..], &asked].concat()),
        message(one, &[&[0xc0, 14, 0xc0, 12][..], &asked].concat()),
        message(one, &[&[0xc0, 200][..], &asked].concat()),
        message(one, &[&[0xff, 0xff][..], &asked].concat()),
        message(one, &[&[63][..], &[b'a'; 20]].concat()),
        message(one, &[0x80, b'a', 0, 0, 1, 0, 1]),
        message(one, b"\x03web"),
        message(one, b""),
        message([u16::MAX; 4], b"\x03web\x00\x00\x01\x00\x01"),
        message([0, 1, 1, 1], b"\x03web\x00\x00\x01\x00\x01"),
        message(
            [2, 0, 0, 0],
            b"\x03web\x00\x00\x01\x00\x01\xc0\x0c\x00\x01\x00\x01",
        ),
    ];
    // Over 255 bytes, in the longest labels and in the shortest.
    let mut long = Vec::new();
    (0..5).for_each(|_| long.extend([&[63][..], &[b'a'; 63]].concat()));
    messages.push(message(one, &[&long[..], &[0], &asked].concat()));
    let mut long = Vec::new();
    (0..200).for_each(|_| long.extend([1, b'a']));
    messages.push(message(one, &[&long[..], &[0], &asked].concat()));
    // A chain of pointers, each to the one before.
    let mut chain = vec![0];
    (0..200u16).for_each(|link| {
        let at = 12 + if link == 0 { 0 } else { 2 * link - 1 };
        chain.extend((0xc000 | at).to_be_bytes());
    });
    messages.push(message([1, 0, 0, 1], &[&chain[..], &asked].concat()));
    // An OPT record whose length lies.
    let options = b"\x03web\x00\x00\x01\x00\x01\x00\x00\x29\x10\x00\x00\x00\x00\x00\xff\xff";
    messages.push(message([1, 0, 0, 1], options));
    for length in [0, 1, 11, 12, 13, 512, 4000] {
        messages.push(noise(length, length as u64 + 1));
    }
    let socket = attacker
        .namespace
        .udp(any(at.ip(), 0), Duration::from_millis(50));
    for round in 0..20 {
        for message in &messages {
            // What the kernel refuses to send is no loss.
            let _ = socket.send_to(message, at);
            if round == 0 {
                let mut stream = attacker
                    .namespace
                    .connect(at, CONNECT)
                    .expect("DNS over TCP");
                stream.write_all(&framed(message)).expect("a message");
            }
        }
    }
    assert_answers(&web, at);
    assert_answers(&attacker, at);
}

/// Queries that are cut off, and clients that end with a reset.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn cve_2026_35406_truncated_query_over_tcp_and_reset() {
    let lab = Lab::direct();
    let (_place, web, attacker, at) = arena(&lab);
    let whole = framed(&honest(5));
    for _ in 0..10 {
        for end in 0..=whole.len() {
            let mut stream = attacker
                .namespace
                .connect(at, CONNECT)
                .expect("DNS over TCP");
            stream.write_all(&whole[..end]).expect("a part of a query");
            let none = Some(Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(&stream, none).expect("a socket");
        }
    }
    assert_answers(&web, at);
    assert_answers(&attacker, at);
}

/// Clients that connect and say nothing, or a byte of a query and no more.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn cve_2024_8418_idle_tcp_clients() {
    let lab = Lab::direct();
    let (_place, web, attacker, at) = arena(&lab);
    let idle: Vec<TcpStream> = attacker.namespace.enter(|| {
        let connect = |number: u32| {
            let mut stream = crate::lab::namespace::connect_here(at, CONNECT).ok()?;
            if number.is_multiple_of(2) {
                stream.write_all(&[0]).ok()?;
            }
            Some(stream)
        };
        (0..400).filter_map(connect).collect()
    });
    println!("{} idle clients", idle.len());
    assert_answers(&web, at);
    drop(idle);
    assert_answers(&attacker, at);
}

/// Queries for names of the world, whose servers do not answer.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_flood_of_queries_leaves_the_neighbours_answers() {
    let lab = Lab::direct();
    let (_place, web, attacker, at) = arena(&lab);
    let socket = attacker
        .namespace
        .udp(any(at.ip(), 0), Duration::from_millis(50));
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0u32;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                // A name of the world each, which no server answers for here.
                let name = format!("n{number}");
                let mut question = vec![u8::try_from(name.len()).expect("a label")];
                question.extend(name.as_bytes());
                question.extend(b"\x07invalid\x00\x00\x01\x00\x01");
                let _ = socket.send_to(&message([1, 0, 0, 0], &question), at);
                if number.is_multiple_of(50) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        for _ in 0..5 {
            assert_answers(&web, at);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
