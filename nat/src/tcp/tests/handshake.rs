//! Connections that come about, and those that do not: both directions.

use cnet_wire::DropReason;
use cnet_wire::time::Duration;

use crate::host::HostError;
use crate::tcp::TcpConfig;
use crate::tcp::flow::State;
use crate::tcp::testing::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_container_hears_nothing_before_the_far_end_accepted() {
    for mut b in [Bench::new(), Bench::v6()] {
        b.syn(1000).unwrap();
        let socket = b.last_socket();
        assert_eq!(b.host.socket(socket).to, Some(b.remote));
        assert!(b.silent());
        // An event without cause, and the container's own repetitions.
        b.ready(socket, WRITABLE);
        b.syn(1000).unwrap();
        assert!(b.silent());
        assert_eq!(b.host.connects, 1);

        b.connected(socket);
        let syn_ack = b.only();
        assert!(syn_ack.is(SYN | ACK));
        assert_eq!(syn_ack.ports, (80, 1000));
        let mss = if b.remote.is_ipv4() { 1460 } else { 1440 };
        assert_eq!((syn_ack.mss, syn_ack.scale), (Some(mss), Some(8)));
        assert!(syn_ack.sack && syn_ack.window == u16::MAX);
        b.finish();
    }
}

#[test]
fn the_containers_port_is_asked_for_where_ports_are_kept() {
    for keep_ports in [false, true] {
        let mut b = Bench::with(TcpConfig {
            keep_ports,
            ..TcpConfig::default()
        });
        b.syn(1000).unwrap();
        let asked = b.host.socket(b.last_socket()).port;
        assert_eq!(asked, keep_ports.then_some(1000));
    }
}

#[test]
fn options_are_confirmed_only_where_they_were_offered() {
    let mut b = Bench::new();
    b.send_from(1000, &seg(SYN, 5, 0)).unwrap();
    let socket = b.last_socket();
    b.connected(socket);
    let syn_ack = b.only();
    assert_eq!((syn_ack.scale, syn_ack.sack), (None, false));
    let (ours, theirs) = (syn_ack.seq.wrapping_add(1), 6);
    b.send_from(1000, &seg(ACK, theirs, ours).window(1000))
        .unwrap();
    // The window is not scaled either way, and without an MSS option 536 bytes go.
    b.host.socket(socket).rx = vec![1; 5000];
    b.ready(socket, READABLE);
    let out = b.only();
    assert_eq!(
        (out.payload.len(), out.gso_size, out.window),
        (1000, 536, u16::MAX)
    );
    b.finish();
}

#[test]
fn an_mss_of_nothing_costs_neither_a_division_nor_a_flood() {
    for mss in [[0, 0], [0, 1]] {
        let mut b = Bench::new();
        let conn = b.open_with(1000, &[2, 4, mss[0], mss[1]]);
        b.remote_sends(&conn, &[7; 100_000]);
        for out in b.out() {
            assert!(out.payload.len() <= 48 * 128);
            assert!(out.gso_size == 48 || out.payload.len() <= 48);
        }
        b.finish();
    }
}

#[test]
fn a_failed_connect_is_told_in_the_words_for_it() {
    let icmp_v4 = [
        (HostError::NetUnreachable, (3, 0)),
        (HostError::HostUnreachable, (3, 1)),
        (HostError::Prohibited, (3, 13)),
    ];
    let icmp_v6 = [
        (HostError::NetUnreachable, (1, 0)),
        (HostError::HostUnreachable, (1, 3)),
        (HostError::Prohibited, (1, 1)),
    ];
    for at_once in [false, true] {
        for (v6, cases) in [(false, icmp_v4), (true, icmp_v6)] {
            for (error, want) in cases {
                let mut b = if v6 { Bench::v6() } else { Bench::new() };
                fail_connect(&mut b, error, at_once);
                let (icmp_type, code, quote) = b.icmp();
                assert_eq!((icmp_type, code), want, "{error:?}");
                // The container's kernel looks for the connection by the quote.
                let tcp = if v6 { 40 } else { 20 };
                assert_eq!(quote[tcp..tcp + 4], [3, 232, 0, 80]);
                assert_eq!(quote[tcp + 4..tcp + 8], CONTAINER_ISN.to_be_bytes());
                b.finish();
            }
        }
        for error in [HostError::Refused, HostError::Reset, HostError::Other] {
            let mut b = Bench::new();
            fail_connect(&mut b, error, at_once);
            let rst = b.only();
            assert!(rst.is(RST | ACK));
            assert_eq!((rst.seq, rst.ack), (0, CONTAINER_ISN.wrapping_add(1)));
            b.finish();
        }
        // Silence is what becomes ETIMEDOUT.
        let mut b = Bench::new();
        fail_connect(&mut b, HostError::TimedOut, at_once);
        assert!(b.silent());
        b.finish();
    }
}

fn fail_connect(b: &mut Bench, error: HostError, at_once: bool) {
    if at_once {
        b.host.connect_errors = vec![error];
        b.syn(1000).unwrap_err();
    } else {
        b.syn(1000).unwrap();
        let socket = b.last_socket();
        b.host.socket(socket).error = Some(error);
        b.ready(socket, FAILED);
    }
    assert!(b.engine.is_empty() && b.host.sockets.is_empty());
}

#[test]
fn policy_is_asked_before_the_table() {
    let mut b = Bench::new();
    for (to, code) in [("127.0.0.1:80", 0), ("169.254.169.254:80", 13)] {
        b.remote = to.parse().unwrap();
        assert_eq!(b.syn(1000), Err(DropReason::Policy));
        assert_eq!(b.icmp().1, code);
    }
    // RFC 9293, section 3.9.2.3: no answer, not even a RST, for what goes to a group.
    for to in ["224.0.0.1:80", "255.255.255.255:80"] {
        b.remote = to.parse().unwrap();
        assert_eq!(b.syn(1000), Err(DropReason::MartianDestination));
        assert_eq!(b.send_from(1000, &seg(ACK, 1, 1)), Err(DropReason::NoFlow));
    }
    assert!(b.silent() && b.engine.is_empty());
    assert_eq!(b.host.connects, 0);
}

#[test]
fn a_lost_syn_ack_is_repeated_and_given_up() {
    let mut b = Bench::new();
    b.syn(1000).unwrap();
    let socket = b.last_socket();
    b.connected(socket);
    let first = b.only();
    // The container repeats its SYN: it is answered, but that buys the handshake no time.
    b.pass(SECOND / 2);
    b.syn(1000).unwrap();
    assert_eq!(b.only(), first);
    b.pass(SECOND / 2);
    assert_eq!(b.only(), first);
    b.pass(62 * SECOND);
    let mut out = b.out();
    let rst = out.pop().unwrap();
    assert!(rst.is(RST | ACK) && rst.seq == first.seq.wrapping_add(1));
    assert_eq!(out, vec![first; 4]);
    assert!(b.engine.is_empty() && b.host.sockets.is_empty());
}

#[test]
fn the_port_may_be_full_in_the_handshake() {
    let mut b = Bench::new();
    b.syn(1000).unwrap();
    b.wire.room = Some(0);
    let socket = b.last_socket();
    b.connected(socket);
    b.wire.room = None;
    b.pass(SECOND);
    assert!(b.only().is(SYN | ACK));
    b.finish();
}

#[test]
fn a_silent_connect_ends_with_the_transitory_timeout() {
    let mut b = Bench::new();
    b.syn(1000).unwrap();
    assert_eq!(b.pass(239 * SECOND), 0);
    assert_eq!(b.engine.len(), 1);
    b.pass(2 * SECOND);
    assert!(b.engine.is_empty() && b.host.sockets.is_empty() && b.silent());
}

#[test]
fn a_new_attempt_from_the_same_port_supersedes_a_connect() {
    let mut b = Bench::new();
    b.syn(1000).unwrap();
    let first = b.last_socket();
    b.send_from(1000, &seg(SYN, 77, 0)).unwrap();
    assert_eq!(b.host.gone, [(first, Fate::Reset)]);
    assert_eq!(b.host.connects, 2);
    b.connected(b.last_socket());
    assert_eq!(b.only().ack, 78);
    b.finish();
}

#[test]
fn an_ack_of_another_connection_is_reset_in_the_handshake() {
    // RFC 9293, section 3.10.7.4, fifth check, SYN-RECEIVED.
    let mut b = Bench::new();
    b.syn(1000).unwrap();
    b.connected(b.last_socket());
    let syn_ack = b.only();
    for wrong in [syn_ack.seq, syn_ack.seq.wrapping_add(2), 5] {
        let seq = CONTAINER_ISN.wrapping_add(1);
        let result = b.send_from(1000, &seg(ACK, seq, wrong));
        assert_eq!(result, Err(DropReason::OutOfWindow));
        let rst = b.only();
        assert!(rst.is(RST) && rst.seq == wrong);
    }
    assert_eq!(b.engine.len(), 1);
    b.finish();
}

#[test]
fn a_syn_right_after_a_reset_is_not_lost() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    let port = b.remote.port();
    b.packet(&seg(RST, conn.seq, 0).bytes(1000, port)).unwrap();
    let syn = seg(SYN, 9, 0).options(SYN_OPTIONS);
    b.packet(&syn.bytes(1000, port)).unwrap();
    b.end_batch();
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    b.connected(b.last_socket());
    assert_eq!(b.only().ack, 10);
    b.finish();
}

/// A client of a published port, shown to the container's port 8080 as `client`.
fn accept(b: &mut Bench, known: bool, client: &str) -> Result<Conn, DropReason> {
    let socket = b.host.accept();
    let container = (b.container, 8080).into();
    let client = client.parse().unwrap();
    b.run(|e, now, _, io| {
        e.handle_accept(now, known.then_some(LINK), container, client, socket, io)
    })?;
    b.remote = client;
    Ok(Conn {
        port: 8080,
        socket,
        seq: CONTAINER_ISN.wrapping_add(1),
        ack: 0,
    })
}

#[test]
fn a_published_port_shows_the_client_and_forwards_both_ways() {
    let mut b = Bench::new();
    let mut conn = accept(&mut b, true, "198.51.100.7:5555").unwrap();
    // The client speaks first, before the container has answered.
    b.remote_sends(&conn, b"GET");
    let syn = b.only();
    assert!(syn.is(SYN) && syn.payload.is_empty());
    assert_eq!(syn.ports, (5555, 8080));
    assert_eq!((syn.mss, syn.scale, syn.sack), (Some(1460), Some(8), true));
    conn.ack = syn.seq.wrapping_add(1);
    // The window of a SYN/ACK is not scaled (RFC 7323, section 2.2).
    let syn_ack = seg(SYN | ACK, CONTAINER_ISN, conn.ack).options(SYN_OPTIONS);
    b.send(&conn, syn_ack.window(2)).unwrap();
    let data = b.only();
    assert_eq!((&data.payload[..], data.ack), (&b"GE"[..], conn.seq));
    b.send(&conn, seg(ACK, conn.seq, conn.ack + 2).data(b"200"))
        .unwrap();
    assert_eq!(b.host.socket(conn.socket).tx, b"200");
    assert_eq!(b.only().payload, b"T");
    b.finish();
}

#[test]
fn a_published_port_nobody_serves_resets_the_client() {
    let mut b = Bench::new();
    let conn = accept(&mut b, true, "198.51.100.7:5555").unwrap();
    let syn = b.only();
    let rst = |ack| seg(RST | ACK, 0, ack);
    let wrong = b.send(&conn, rst(syn.seq));
    assert_eq!(wrong, Err(DropReason::OutOfWindow));
    assert!(b.silent());
    b.send(&conn, rst(syn.seq.wrapping_add(1))).unwrap();
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    assert!(b.engine.is_empty() && b.silent());
}

#[test]
fn a_container_that_remembers_another_connection_is_told_to_forget_it() {
    // RFC 9293, section 3.10.7.3: after a restart of ours the container may hold a connection
    // between the same ends; its challenge ACK must bring a RST, or our SYN never gets through.
    let mut b = Bench::new();
    let conn = accept(&mut b, true, "198.51.100.7:5555").unwrap();
    b.out();
    let challenge = seg(ACK, 4711, 815);
    assert_eq!(b.send(&conn, challenge), Err(DropReason::OutOfWindow));
    let rst = b.only();
    assert!(rst.is(RST) && rst.seq == 815);
    b.pass(SECOND);
    assert!(b.only().is(SYN));
    b.finish();
}

#[test]
fn a_container_without_an_address_is_waited_for() {
    let mut b = Bench::new();
    let conn = accept(&mut b, false, "198.51.100.7:5555").unwrap();
    let container = b.container;
    b.pass(SECOND);
    assert!(b.silent());
    // A peer that guesses the number of a SYN that was never sent answers nothing.
    let guess = b.flow(&conn).snd_max.0;
    b.send(&conn, seg(SYN | ACK, 1, guess)).unwrap_err();
    assert_eq!(b.flow(&conn).state, State::SynSent);
    let other = "10.0.2.101".parse().unwrap();
    b.run(|e, now, _, io| e.link_resolved(now, other, LINK, io));
    assert!(b.silent());
    b.run(|e, now, _, io| e.link_resolved(now, container, LINK, io));
    assert!(b.only().is(SYN));
    // A second answer finds nothing that waits.
    b.run(|e, now, _, io| e.link_resolved(now, container, LINK, io));
    assert!(b.silent());
    assert_eq!(b.flow(&conn).state, State::SynSent);
    // One that is never found.
    let lost = accept(&mut b, false, "198.51.100.7:5556").unwrap();
    b.run(|e, now, _, io| e.link_failed(now, container, io));
    assert_eq!(b.fate(&lost), Some(Fate::Reset));
    assert_eq!(b.fate(&conn), None);
    b.pass(70 * SECOND);
    assert!(b.engine.is_empty() && b.host.sockets.is_empty());
}

#[test]
fn two_clients_that_look_alike_are_told_apart() {
    let mut b = Bench::new();
    accept(&mut b, true, "198.51.100.7:65535").unwrap();
    accept(&mut b, true, "198.51.100.7:65535").unwrap();
    let ports: Vec<u16> = b.out().iter().map(|o| o.ports.0).collect();
    assert_eq!(ports, [65535, 1024]);
    b.host.adopt_error = Some(HostError::Exhausted);
    let result = accept(&mut b, true, "198.51.100.7:1").map(|_| ());
    assert_eq!(result, Err(DropReason::HostResource));
    assert_eq!(b.host.sockets.len(), 2);
    b.finish();
}

#[test]
fn a_client_that_leaves_takes_its_syn_with_it() {
    let mut b = Bench::new();
    let conn = accept(&mut b, true, "198.51.100.7:5555").unwrap();
    let syn = b.only();
    b.host.socket(conn.socket).fail(HostError::Reset);
    b.ready(conn.socket, FAILED);
    let rst = b.only();
    assert!(rst.is(RST) && rst.seq == syn.seq.wrapping_add(1));
    assert!(b.engine.is_empty());
}
