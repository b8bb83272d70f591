//! Ends: half-close both ways, both at once, silence, keepalive.

use cnet_wire::time::Duration;

use crate::tcp::testing::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn the_container_closes_first_and_still_receives() {
    for mut b in [Bench::new(), Bench::v6()] {
        let mut conn = b.open(1000);
        b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(b"question"))
            .unwrap();
        conn.seq = conn.seq.wrapping_add(9);
        assert_eq!(b.only().ack, conn.seq);
        assert!(b.host.socket(conn.socket).shut);
        b.remote_sends(&conn, b"a long answer");
        conn.ack = conn.ack.wrapping_add(b.only().payload.len() as u32);
        b.acknowledge(&conn);
        b.remote_closes(&conn);
        let fin = b.only();
        assert!(fin.is(FIN | ACK) && fin.seq == conn.ack);
        conn.ack = conn.ack.wrapping_add(1);
        b.acknowledge(&conn);
        assert_eq!(b.fate(&conn), Some(Fate::Closed));
        assert!(b.silent() && b.engine.is_empty());
    }
}

#[test]
fn the_far_end_closes_first_and_still_receives() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.host.socket(conn.socket).rx = b"all there is".to_vec();
    b.remote_closes(&conn);
    let out = b.out();
    assert_eq!(out[0].payload, b"all there is");
    assert!(out[1].is(FIN | ACK) && out.len() == 2);
    conn.ack = conn.ack.wrapping_add(13);
    b.acknowledge(&conn);
    assert_eq!(b.fate(&conn), None);
    b.send(&conn, seg(ACK, conn.seq, conn.ack).data(b"thanks"))
        .unwrap();
    conn.seq = conn.seq.wrapping_add(6);
    assert_eq!(b.host.socket(conn.socket).tx, b"thanks");
    b.out();
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack)).unwrap();
    assert!(b.only().is(ACK));
    assert_eq!(b.fate(&conn), Some(Fate::Closed));
    assert!(b.engine.is_empty());
}

#[test]
fn both_close_at_once() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    b.remote_closes(&conn);
    assert!(b.only().is(FIN | ACK));
    // The container's FIN left before ours came.
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack)).unwrap();
    assert!(b.only().is(ACK));
    assert_eq!(b.fate(&conn), None);
    let done = seg(ACK, conn.seq.wrapping_add(1), conn.ack.wrapping_add(1));
    b.send(&conn, done).unwrap();
    assert_eq!(b.fate(&conn), Some(Fate::Closed));
    assert!(b.silent() && b.engine.is_empty());
}

#[test]
fn bytes_behind_a_fin_are_nobodys() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(b"end"))
        .unwrap();
    b.send(
        &conn,
        seg(ACK, conn.seq.wrapping_add(4), conn.ack).data(b"more"),
    )
    .unwrap_err();
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(b"end"))
        .unwrap_err();
    assert_eq!(b.host.socket(conn.socket).tx, b"end");
    b.finish();
}

#[test]
fn the_far_end_may_fail_after_it_closed() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.remote_closes(&conn);
    b.out();
    conn.ack = conn.ack.wrapping_add(1);
    b.acknowledge(&conn);
    b.host
        .socket(conn.socket)
        .fail(crate::host::HostError::Reset);
    b.ready(conn.socket, FAILED);
    assert!(b.only().is(RST | ACK));
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    b.finish();
}

#[test]
fn hanging_up_in_good_order_is_no_error() {
    // The host's kernel reports HUP once both directions are closed.
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack)).unwrap();
    conn.seq = conn.seq.wrapping_add(1);
    b.out();
    b.host.socket(conn.socket).rx = b"last words".to_vec();
    b.host.socket(conn.socket).rx_end = true;
    b.ready(conn.socket, FAILED);
    let out = b.out();
    assert_eq!(out[0].payload, b"last words");
    assert!(out[1].is(FIN | ACK));
    conn.ack = conn.ack.wrapping_add(11);
    b.acknowledge(&conn);
    assert_eq!(b.fate(&conn), Some(Fate::Closed));
    assert!(b.engine.is_empty());
}

#[test]
fn a_container_that_closed_both_ways_leaves_its_last_bytes_behind() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.host.socket(conn.socket).room = 0;
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(b"last"))
        .unwrap();
    conn.seq = conn.seq.wrapping_add(5);
    b.remote_closes(&conn);
    conn.ack = conn.ack.wrapping_add(1);
    b.acknowledge(&conn);
    b.out();
    // To the container the connection is over; a RST of its does not touch what it entrusted to us.
    b.send(&conn, seg(RST, conn.seq, 0)).unwrap();
    assert_eq!(b.fate(&conn), None);
    b.pass(HOUR);
    b.host.socket(conn.socket).room = 100;
    b.ready(conn.socket, WRITABLE);
    assert_eq!(b.host.gone, [(conn.socket, Fate::Closed)]);
    assert!(b.engine.is_empty());
}

#[test]
fn a_silent_connection_is_kept_and_then_probed() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    // The handshake's deadline, which is moved when it passes.
    assert_eq!(b.pass(SECOND), 1);
    assert_eq!(
        b.pass(2 * HOUR + 238 * SECOND),
        0,
        "nothing wakes an idle engine"
    );
    b.pass(2 * SECOND);
    let probe = b.only();
    assert!(probe.is(ACK) && probe.payload.is_empty());
    assert_eq!(probe.seq, conn.ack.wrapping_sub(1));
    b.acknowledge(&conn);
    assert_eq!(b.flow(&conn).alarm, None);
    b.pass(2 * HOUR);
    assert!(b.silent(), "an answer counts as traffic");
    b.pass(HOUR);
    assert!(b.is_gone(&conn), "nine probes went unanswered");
    let out = b.out();
    assert_eq!(out.len(), 10);
    assert!(out[..9].iter().all(|o| o.is(ACK)) && out[9].is(RST | ACK));
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    b.finish();
}

#[test]
fn data_during_a_keepalive_is_sent_and_guarded() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.pass(2 * HOUR + 241 * SECOND);
    b.out();
    b.remote_sends(&conn, b"data");
    assert_eq!(b.only().payload, b"data");
    b.pass(SECOND);
    assert!(
        b.out().iter().any(|o| o.payload == b"data"),
        "repeated like any other"
    );
    conn.ack = conn.ack.wrapping_add(4);
    b.acknowledge(&conn);
    assert_eq!(b.flow(&conn).tries, 0);
    b.finish();
}

#[test]
fn half_closed_connections_are_probed_sooner_and_kept_if_they_answer() {
    for remote_first in [false, true] {
        let mut b = Bench::new();
        let mut conn = b.open(1000);
        if remote_first {
            b.remote_closes(&conn);
            conn.ack = conn.ack.wrapping_add(1);
            b.acknowledge(&conn);
        } else {
            b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack)).unwrap();
            conn.seq = conn.seq.wrapping_add(1);
        }
        b.out();
        for _ in 0..5 {
            b.pass(241 * SECOND);
            assert!(b.only().is(ACK));
            b.acknowledge(&conn);
        }
        b.pass(1200 * SECOND);
        assert!(b.is_gone(&conn));
        b.finish();
    }
}

#[test]
fn a_jump_of_the_clock_probes_before_it_ends_anything() {
    let mut b = Bench::new();
    let conns: Vec<Conn> = (0..100).map(|i| b.open(1000 + i)).collect();
    b.now += 24 * HOUR;
    b.run(|e, now, _, io| e.handle_timeout(now, io));
    assert_eq!(b.engine.len(), 100);
    assert_eq!(b.out().len(), 100);
    for conn in &conns {
        b.acknowledge(conn);
    }
    assert_eq!(b.pass(HOUR), 1, "the deadline of the answers is moved");
    b.finish();
}
