//! Container to host: order, overlap, back pressure, the unsent buffer and its budget.

use cnet_wire::DropReason;
use cnet_wire::time::Duration;

use crate::host::HostError;
use crate::tcp::TcpConfig;
use crate::tcp::flow::{INITIAL_GRANT, MAX_GRANT, MIN_GRANT};
use crate::tcp::testing::*;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn bytes_are_acknowledged_once_a_batch() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    let data = pattern(4000);
    let port = b.remote.port();
    for chunk in data.chunks(1000) {
        let s = seg(ACK, conn.seq, conn.ack).data(chunk);
        b.packet(&s.bytes(1000, port)).unwrap();
        conn.seq = conn.seq.wrapping_add(1000);
    }
    assert!(b.silent());
    b.end_batch();
    let ack = b.only();
    assert!(ack.is(ACK) && ack.payload.is_empty());
    assert_eq!((ack.seq, ack.ack), (conn.ack, conn.seq));
    assert_eq!(u32::from(ack.window) << 8, INITIAL_GRANT);
    assert_eq!(b.host.socket(conn.socket).tx, data);
    b.finish();
}

#[test]
fn of_overlapping_bytes_the_first_wins() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    let at =
        |offset: u32, text: &[u8]| seg(ACK, conn.seq.wrapping_add(offset), conn.ack).data(text);
    b.send(&conn, at(0, b"first")).unwrap();
    b.send(&conn, at(2, b"XXXsecond")).unwrap();
    // Wholly old, with other bytes.
    b.send(&conn, at(0, b"other")).unwrap_err();
    b.send(&conn, at(11, b" third")).unwrap();
    assert_eq!(b.host.socket(conn.socket).tx, b"firstsecond third");
    assert_eq!(b.out().last().unwrap().ack, conn.seq.wrapping_add(17));
    b.finish();
}

#[test]
fn urgent_bytes_are_passed_in_line() {
    for urgent in [0, 1, 3, 4000] {
        let mut b = Bench::new();
        let conn = b.open(1000);
        let s = Seg {
            urgent,
            ..seg(ACK | URG | PSH, conn.seq, conn.ack).data(b"abc")
        };
        b.send(&conn, s).unwrap();
        assert_eq!(b.host.socket(conn.socket).tx, b"abc");
        b.finish();
    }
}

#[test]
fn a_gap_is_told_at_once_and_filled_by_repetition() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    let later = seg(ACK, conn.seq.wrapping_add(5), conn.ack).data(b"later");
    let result = b.send(&conn, later.clone());
    assert_eq!(result, Err(DropReason::OutOfOrder));
    assert_eq!(b.only().ack, conn.seq);
    // A FIN out of order waits, too.
    let fin = seg(FIN | ACK, conn.seq.wrapping_add(10), conn.ack);
    assert_eq!(b.send(&conn, fin.clone()), Err(DropReason::OutOfOrder));
    b.send(&conn, seg(ACK, conn.seq, conn.ack).data(b"first"))
        .unwrap();
    b.send(&conn, later).unwrap();
    b.send(&conn, fin).unwrap();
    let socket = b.host.socket(conn.socket);
    assert_eq!((&socket.tx[..], socket.shut), (&b"firstlater"[..], true));
    assert_eq!(b.out().last().unwrap().ack, conn.seq.wrapping_add(11));
    b.finish();
}

#[test]
fn a_stalled_socket_stops_the_window_and_loses_nothing() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.send(&conn, seg(ACK, conn.seq, conn.ack).data(b"x"))
        .unwrap();
    conn.seq = conn.seq.wrapping_add(1);
    assert_eq!(u32::from(b.only().window) << 8, INITIAL_GRANT);
    let edge = conn.seq.wrapping_add(INITIAL_GRANT);
    let data = pattern(INITIAL_GRANT as usize);
    b.host.socket(conn.socket).room = 5000;
    for chunk in data.chunks(16 * 1024) {
        b.send(&conn, seg(ACK, conn.seq, conn.ack).data(chunk))
            .unwrap();
        conn.seq = conn.seq.wrapping_add(chunk.len() as u32);
        let ack = b.only();
        assert_eq!(ack.ack, conn.seq, "taken, though the socket is full");
        let right = ack.ack.wrapping_add(u32::from(ack.window) << 8);
        let beyond = right.wrapping_sub(edge);
        assert!(beyond < 256, "the edge stands still: {beyond}");
    }
    assert_eq!(conn.seq, edge);
    assert_eq!(b.engine.unsent(), data.len() - 5000);
    // Past the edge nothing is taken, least of all a FIN; the container probes.
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(b"!"))
        .unwrap();
    assert!(!b.flow(&conn).fin_received);
    let answer = b.only();
    assert_eq!((answer.ack, answer.window), (conn.seq, 0));
    // Room comes in parts.
    b.host.socket(conn.socket).room = 100_000;
    b.ready(conn.socket, WRITABLE);
    assert!(b.silent(), "no window before all is through");
    assert!(b.host.socket(conn.socket).wants_room, "or no event is owed");
    b.host.socket(conn.socket).room = usize::MAX;
    b.ready(conn.socket, WRITABLE);
    assert_eq!(b.host.socket(conn.socket).tx[1..], data);
    assert_eq!(b.engine.unsent(), 0);
    let opened = b.only();
    assert_eq!(u32::from(opened.window) << 8, INITIAL_GRANT / 2);
    b.finish();
}

#[test]
fn the_edge_of_a_window_never_moves_back_and_small_segments_are_bounded() {
    // An edge that moves back by the rounding of a scaled window leaves bytes behind that smoltcp,
    // for one, never repeats.
    let mut b = Bench::with(TcpConfig {
        unsent_limit: 400_000,
        ..TcpConfig::default()
    });
    let mut conn = b.open(1000);
    b.host.socket(conn.socket).room = 0;
    let mut edge = None;
    for i in 0..70_000 {
        let len = 7 + i % 5;
        let data = seg(ACK, conn.seq, conn.ack).data(&vec![1; len]);
        b.send(&conn, data).unwrap();
        let ack = b.only();
        let right = ack.ack.wrapping_add(u32::from(ack.window) << 8);
        let moved = right.wrapping_sub(edge.unwrap_or(right));
        assert!(moved <= len as u32, "{moved}");
        edge = Some(right);
        conn.seq = ack.ack;
    }
    assert!(b.engine.unsent() <= 200_000);
    // The same once all is through.
    b.host.socket(conn.socket).room = usize::MAX;
    b.ready(conn.socket, WRITABLE);
    let ack = b.only();
    let right = ack.ack.wrapping_add(u32::from(ack.window) << 8);
    assert!(right.wrapping_sub(edge.unwrap()) < 1 << 30);
    b.finish();
}

#[test]
fn the_window_follows_the_pace_of_the_socket() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    let mut window = 0;
    for _ in 0..400 {
        b.send(&conn, seg(ACK, conn.seq, conn.ack).data(&[1; 60_000]))
            .unwrap();
        conn.seq = conn.seq.wrapping_add(60_000);
        let now = u32::from(b.only().window) << 8;
        assert!(now >= window, "without a stop it only grows");
        window = now;
    }
    assert_eq!(window, MAX_GRANT);
    // Each stop halves what is granted, but what was announced stays announced.
    for _ in 0..10 {
        b.host.socket(conn.socket).room = 1;
        b.send(&conn, seg(ACK, conn.seq, conn.ack).data(b"ab"))
            .unwrap();
        conn.seq = conn.seq.wrapping_add(2);
        let edge = b.only();
        let right = edge.ack.wrapping_add(u32::from(edge.window) << 8);
        b.host.socket(conn.socket).room = usize::MAX;
        b.ready(conn.socket, WRITABLE);
        let next = b.only();
        let next = next.ack.wrapping_add(u32::from(next.window) << 8);
        assert!(next.wrapping_sub(right) < 1 << 30);
    }
    assert_eq!(b.flow(&conn).grant, MIN_GRANT);
    b.finish();
}

#[test]
fn a_fin_waits_for_unsent_bytes() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    b.host.socket(conn.socket).room = 2;
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(b"goodbye"))
        .unwrap();
    assert_eq!(b.only().ack, conn.seq.wrapping_add(8));
    assert!(!b.host.socket(conn.socket).shut);
    b.host.socket(conn.socket).room = 2;
    b.ready(conn.socket, WRITABLE);
    assert!(!b.host.socket(conn.socket).shut);
    b.host.socket(conn.socket).room = 100;
    b.ready(conn.socket, WRITABLE);
    let socket = b.host.socket(conn.socket);
    assert_eq!((&socket.tx[..], socket.shut), (&b"goodbye"[..], true));
    b.finish();
}

#[test]
fn past_the_budget_bytes_are_dropped_unacknowledged() {
    let mut b = Bench::with(TcpConfig {
        unsent_limit: 1000,
        ..TcpConfig::default()
    });
    let first = b.open(1000);
    let second = b.open(1001);
    b.host.socket(first.socket).room = 0;
    b.host.socket(second.socket).room = 0;
    b.send(&first, seg(ACK, first.seq, first.ack).data(&[1; 800]))
        .unwrap();
    b.send(
        &second,
        seg(FIN | ACK, second.seq, second.ack).data(&[2; 800]),
    )
    .unwrap();
    // Each may hold half of what is free.
    assert_eq!(b.engine.unsent(), 500 + 250);
    let acks: Vec<u32> = b.out().iter().map(|o| o.ack).collect();
    let partly = second.seq.wrapping_add(250);
    assert_eq!(acks, [first.seq.wrapping_add(500), partly]);
    assert!(!b.flow(&second).fin_received, "the FIN came behind a loss");
    // A third flow whose socket takes all does not notice.
    let third = b.open(1002);
    b.send(&third, seg(ACK, third.seq, third.ack).data(&[3; 5000]))
        .unwrap();
    assert_eq!(b.host.socket(third.socket).tx.len(), 5000);
    assert_eq!(b.only().ack, third.seq.wrapping_add(5000));
    // One that is full still has its share of what is left; the rest is as if lost.
    b.host.socket(third.socket).room = 0;
    let after = third.seq.wrapping_add(5000);
    let lost = seg(ACK, after, third.ack).data(&[4; 200]);
    b.send(&third, lost.clone()).unwrap();
    assert_eq!(b.only().ack, after.wrapping_add(125));
    // Room comes back, and the container repeats.
    for conn in [&first, &second, &third] {
        b.host.socket(conn.socket).room = usize::MAX;
        b.ready(conn.socket, WRITABLE);
    }
    assert_eq!(b.engine.unsent(), 0);
    b.out();
    b.send(&third, lost).unwrap();
    b.send(
        &second,
        seg(FIN | ACK, second.seq, second.ack).data(&[2; 800]),
    )
    .unwrap();
    assert_eq!(b.host.socket(third.socket).tx.len(), 5200);
    let socket = b.host.socket(second.socket);
    assert_eq!((socket.tx.len(), socket.shut), (800, true));
    b.finish();
}

#[test]
fn every_way_out_frees_the_unsent_buffer() {
    for way in 0..5 {
        let mut b = Bench::new();
        let conn = b.open(1000);
        b.host.socket(conn.socket).room = 0;
        b.send(&conn, seg(ACK, conn.seq, conn.ack).data(&[1; 800]))
            .unwrap();
        assert_eq!(b.engine.unsent(), 800);
        let next = conn.seq.wrapping_add(800);
        match way {
            0 => b.send(&conn, seg(RST, next, 0)).unwrap(),
            1 => {
                b.host.socket(conn.socket).fail(HostError::Reset);
                b.ready(conn.socket, FAILED);
            }
            2 => {
                // The socket fails at the next send.
                b.host.socket(conn.socket).fail(HostError::Reset);
                b.ready(conn.socket, WRITABLE);
            }
            3 => {
                // Silence, and no answer to keepalives.
                b.pass(Duration::from_secs(4 * 3600));
            }
            _ => b.run(|e, now, _, io| e.shut_down(now, io)),
        }
        assert_eq!(b.engine.unsent(), 0, "way {way}");
        assert!(b.is_gone(&conn));
        assert_eq!(b.fate(&conn), Some(Fate::Reset));
        b.finish();
    }
}

#[test]
fn a_container_that_used_its_whole_window_still_acknowledges() {
    // Its pure ACKs stand at the window's edge while a lost segment is missing in between.
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.send(&conn, seg(ACK, conn.seq, conn.ack).data(b"x"))
        .unwrap();
    let announced = b.only();
    let right = announced.ack.wrapping_add(u32::from(announced.window) << 8);
    b.remote_sends(&conn, b"data for the container");
    conn.ack = conn.ack.wrapping_add(b.only().payload.len() as u32);
    b.send(&conn, seg(ACK, right, conn.ack)).unwrap();
    assert!(
        b.host.socket(conn.socket).rx.is_empty(),
        "acknowledged and discarded"
    );
    // One behind it cannot be the container's.
    let behind = b.send(&conn, seg(ACK, right.wrapping_add(1), conn.ack));
    assert_eq!(behind, Err(DropReason::OutOfWindow));
    b.finish();
}

#[test]
fn a_send_that_fails_resets_both_sides() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    b.host.socket(conn.socket).fail(HostError::Reset);
    let result = b.send(&conn, seg(ACK, conn.seq, conn.ack).data(b"x"));
    assert_eq!(result, Err(DropReason::HostRefused));
    assert!(b.only().is(RST | ACK));
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    assert!(b.engine.is_empty());
}
