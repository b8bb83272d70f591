//! Host to container: super-frames, windows, probes, fairness, a port that is full.

use cnet_wire::time::Duration;

use crate::host::HostError;
use crate::tcp::flow::Alarm;
use crate::tcp::testing::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 + i / 241) as u8).collect()
}

/// Sends `data` from the far end and acknowledges until all of it is through.
fn transfer(b: &mut Bench, conn: &mut Conn, data: &[u8]) {
    b.remote_sends(conn, data);
    let mut got = Vec::new();
    while got.len() < data.len() {
        let out = b.out();
        assert!(!out.is_empty(), "stuck at {} of {}", got.len(), data.len());
        for o in out {
            if o.payload.is_empty() {
                continue;
            }
            assert_eq!(o.seq, conn.ack);
            conn.ack = conn.ack.wrapping_add(o.payload.len() as u32);
            got.extend(o.payload);
        }
        b.acknowledge(conn);
        b.pass(Duration::ZERO);
    }
    assert_eq!(got, data);
}

#[test]
fn bytes_stay_in_the_socket_until_they_are_acknowledged() {
    for mut b in [Bench::new(), Bench::v6()] {
        let mut conn = b.open(1000);
        let data = pattern(200_000);
        b.remote_sends(&conn, &data);
        let out = b.out();
        let mss = if b.remote.is_ipv4() { 1460 } else { 1440 };
        let mut seq = conn.ack;
        for (i, o) in out.iter().enumerate() {
            assert_eq!((o.seq, o.ack, o.gso_size), (seq, conn.seq, mss));
            let last = i == out.len() - 1;
            assert_eq!(o.flags & PSH != 0, last);
            assert!(last || o.payload.len() % usize::from(mss) == 0);
            seq = seq.wrapping_add(o.payload.len() as u32);
        }
        assert_eq!(out.iter().map(|o| o.payload.len()).sum::<usize>(), 200_000);
        assert!(out.iter().flat_map(|o| &o.payload).eq(&data));
        assert_eq!(b.host.socket(conn.socket).rx.len(), 200_000);
        conn.ack = conn.ack.wrapping_add(150_000);
        b.acknowledge(&conn);
        assert_eq!(b.host.socket(conn.socket).rx.len(), 50_000);
        conn.ack = conn.ack.wrapping_add(50_000);
        b.acknowledge(&conn);
        assert!(b.host.socket(conn.socket).rx.is_empty() && b.silent());
        assert_eq!(b.flow(&conn).alarm, None);
        b.finish();
    }
}

#[test]
fn megabytes_cross_the_wrap_of_both_sequences() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    transfer(&mut b, &mut conn, &pattern(3_000_000));
    transfer(&mut b, &mut conn, &pattern(1));
    b.finish();
}

#[test]
fn many_long_transfers_take_turns_of_which_a_round_has_few() {
    const FLOWS: u16 = 10;
    let mut b = Bench::new();
    for port in 0..FLOWS {
        let conn = b.open(1000 + port);
        b.send(&conn, seg(ACK, conn.seq, conn.ack).window(u16::MAX))
            .unwrap();
        b.remote_sends(&conn, &pattern(4_000_000));
        assert_eq!(b.out().len(), 16);
    }
    // Others have their turn between any four, and each of the ten has its own before any has two.
    let mut ports = Vec::new();
    for _ in 0..5 {
        b.run(|e, now, _, io| e.handle_timeout(now, io));
        let out = b.out();
        assert_eq!(out.len(), 4 * 16);
        ports.extend(out.iter().step_by(16).map(|segment| segment.ports.1));
    }
    let each: Vec<u16> = (1000..1000 + FLOWS).collect();
    assert_eq!(ports, [&each[..], &each[..]].concat());
    b.run(|e, now, _, io| e.shut_down(now, io));
}

#[test]
fn flows_that_have_ended_take_no_turns() {
    let mut b = Bench::new();
    let mut conns = Vec::new();
    for port in 1000..1010 {
        let conn = b.open(port);
        b.send(&conn, seg(ACK, conn.seq, conn.ack).window(u16::MAX))
            .unwrap();
        b.remote_sends(&conn, &pattern(4_000_000));
        assert_eq!(b.out().len(), 16);
        conns.push(conn);
    }
    for conn in &conns[..8] {
        b.send(conn, seg(RST, conn.seq, 0)).unwrap();
    }
    b.run(|e, now, _, io| e.handle_timeout(now, io));
    // The two that are left have one each, and no other waits.
    let ports: Vec<u16> = b.out().iter().step_by(16).map(|s| s.ports.1).collect();
    assert_eq!(ports, [1008, 1009]);
    assert_eq!(b.engine.backlog.len(), 2);
    b.finish();
}

#[test]
fn a_long_transfer_gives_others_their_turn() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    b.send(&conn, seg(ACK, conn.seq, conn.ack).window(u16::MAX))
        .unwrap();
    let conn2 = b.open(1001);
    b.host.socket(conn.socket).rx = pattern(8_000_000);
    // However many events come meanwhile, the flow waits for one turn only.
    for _ in 0..5 {
        b.ready(conn.socket, READABLE);
    }
    assert_eq!(b.engine.backlog.len(), 1);
    let before = b.out().len();
    assert_eq!(before, 5 * 16);
    assert!(b.engine.poll_timeout().is_some_and(|at| at <= b.now));
    b.remote_sends(&conn2, b"quick");
    assert_eq!(b.only().payload, b"quick");
    b.run(|e, now, _, io| e.handle_timeout(now, io));
    assert_eq!(b.out().len(), 16);
    // A flow that ends while it waits for its turn is not missed.
    b.send(&conn, seg(RST, conn.seq, 0)).unwrap();
    b.run(|e, now, _, io| e.handle_timeout(now, io));
    assert!(b.silent() && b.engine.backlog.is_empty());
    b.finish();
}

#[test]
fn the_window_is_kept_and_small_segments_avoided() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.send(&conn, seg(ACK, conn.seq, conn.ack).window(25))
        .unwrap();
    b.remote_sends(&conn, &pattern(10_000));
    let out = b.only();
    assert_eq!(out.payload.len(), 25 << 7);
    // 1,000 bytes more could go, but something is on its way.
    conn.ack = conn.ack.wrapping_add(1000);
    b.send(&conn, seg(ACK, conn.seq, conn.ack).window(25))
        .unwrap();
    assert!(b.silent());
    conn.ack = conn.ack.wrapping_add(2200);
    b.send(&conn, seg(ACK, conn.seq, conn.ack).window(8))
        .unwrap();
    assert_eq!(
        b.only().payload.len(),
        1024,
        "nothing on its way: small is better than never"
    );
    // The container takes back what it has offered.
    b.send(&conn, seg(ACK, conn.seq, conn.ack).window(1))
        .unwrap();
    assert!(b.silent());
    conn.ack = conn.ack.wrapping_add(1024);
    b.send(&conn, seg(ACK, conn.seq, conn.ack)).unwrap();
    assert_eq!(b.only().payload.len(), 10_000 - 3200 - 1024);
    b.finish();
}

/// Fills the container's window, so that it is closed and bytes wait.
fn close_window(b: &mut Bench, conn: &mut Conn, bytes: usize) {
    b.send(conn, seg(ACK, conn.seq, conn.ack).window(8))
        .unwrap();
    b.remote_sends(conn, &pattern(bytes));
    assert_eq!(b.only().payload.len(), 1024);
    conn.ack = conn.ack.wrapping_add(1024);
    b.send(conn, seg(ACK, conn.seq, conn.ack).window(0))
        .unwrap();
    assert!(b.silent());
}

#[test]
fn a_closed_window_is_probed_for_as_long_as_the_container_answers() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    close_window(&mut b, &mut conn, 2000);
    let mut probes = 0;
    let hour = b.now + 3600 * SECOND;
    let mut last = b.now;
    let mut gap = Duration::ZERO;
    while b.now < hour {
        let at = b
            .engine
            .poll_timeout()
            .expect("a lost update is never noticed");
        b.pass(at - b.now);
        if b.silent() {
            continue;
        }
        let probe = b.only();
        assert!(probe.is(ACK) && probe.payload.is_empty());
        assert_eq!(
            probe.seq,
            conn.ack.wrapping_sub(1),
            "not acceptable, so it is answered"
        );
        assert!(b.now - last >= gap.min(59 * SECOND), "waits grow");
        (gap, last) = (b.now - last, b.now);
        probes += 1;
        b.send(&conn, seg(ACK, conn.seq, conn.ack).window(0))
            .unwrap();
    }
    assert!((60..90).contains(&probes), "{probes} an hour");
    b.send(&conn, seg(ACK, conn.seq, conn.ack)).unwrap();
    assert_eq!(b.only().payload.len(), 2000 - 1024);
    b.finish();
}

#[test]
fn a_lost_window_update_is_found_by_a_probe() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    close_window(&mut b, &mut conn, 2000);
    b.pass(200 * MS);
    assert_eq!(b.only().seq, conn.ack.wrapping_sub(1));
    b.send(&conn, seg(ACK, conn.seq, conn.ack)).unwrap();
    assert_eq!(b.only().payload.len(), 2000 - 1024);
    b.finish();
}

#[test]
fn probes_without_answer_end_the_connection_but_not_at_once() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    // The window closes over the very last byte, and all is quiet for an hour.
    close_window(&mut b, &mut conn, 1024);
    b.pass(3600 * SECOND);
    b.out();
    // More comes for a container that was last heard long ago: it deserves its probes.
    b.remote_sends(&conn, b"more");
    b.pass(100 * SECOND);
    assert!(b.out().len() >= 8);
    assert!(!b.is_gone(&conn));
    b.pass(400 * SECOND);
    assert!(b.is_gone(&conn));
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    assert!(b.out().last().unwrap().is(RST | ACK));
    b.finish();
}

#[test]
fn a_window_that_closes_over_bytes_on_their_way_is_probed() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.remote_sends(&conn, &pattern(5000));
    b.out();
    b.send(&conn, seg(ACK, conn.seq, conn.ack).window(0))
        .unwrap();
    b.pass(200 * MS);
    let probe = b.only();
    assert!(probe.is(ACK) && probe.payload.is_empty());
    // It may stay closed for as long as the container says so.
    for _ in 0..600 {
        b.send(&conn, seg(ACK, conn.seq, conn.ack).window(0))
            .unwrap();
        b.pass(SECOND);
        assert!(b.out().iter().all(|o| o.is(ACK) && o.payload.is_empty()));
    }
    b.send(&conn, seg(ACK, conn.seq, conn.ack)).unwrap();
    let again = b.only();
    assert_eq!((again.seq, again.payload.len()), (conn.ack, 5000));
    conn.ack = conn.ack.wrapping_add(5000);
    b.acknowledge(&conn);
    assert!(b.host.socket(conn.socket).rx.is_empty());
    b.finish();
}

#[test]
fn a_fin_waits_for_the_window_and_does_not_wait_for_ever() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    close_window(&mut b, &mut conn, 1024);
    b.remote_closes(&conn);
    assert!(b.silent());
    b.pass(200 * MS);
    assert!(b.only().is(ACK), "a probe");
    b.send(&conn, seg(ACK, conn.seq, conn.ack).window(1))
        .unwrap();
    assert!(b.only().is(FIN | ACK));
    // The container is gone: the FIN is repeated less and less often, and given up.
    b.send(&conn, seg(ACK, conn.seq, conn.ack).window(0))
        .unwrap();
    b.out();
    b.pass(600 * SECOND);
    let out = b.out();
    assert!(out.len() <= 13, "{}", out.len());
    assert!(out.last().unwrap().is(RST | ACK));
    assert!(b.engine.is_empty());
}

#[test]
fn a_full_port_is_tried_again_and_costs_nothing() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.wire.room = Some(0);
    b.remote_sends(&conn, &pattern(3000));
    b.pass(5 * MS);
    b.wire.room = None;
    b.pass(5 * MS);
    assert_eq!(b.only().payload.len(), 3000);
    conn.ack = conn.ack.wrapping_add(3000);
    b.acknowledge(&conn);
    b.remote_sends(&conn, b"on");
    assert_eq!(b.only().payload, b"on");
    // In the middle of a flight.
    b.wire.room = Some(0);
    b.remote_sends(&conn, b"ward");
    b.wire.room = None;
    b.pass(2 * MS);
    assert_eq!(b.only().payload, b"ward");
    assert!(matches!(b.flow(&conn).alarm, Some((Alarm::Retransmit, _))));
    // A FIN, too.
    b.wire.room = Some(0);
    b.remote_closes(&conn);
    b.wire.room = None;
    b.pass(2 * MS);
    assert!(b.only().is(FIN | ACK));
    b.finish();
}

#[test]
fn a_port_that_stays_full_is_neither_spun_on_nor_kept_for_ever() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    b.wire.room = Some(0);
    b.remote_sends(&conn, &pattern(3000));
    let wakes = b.pass(10 * SECOND);
    assert!(wakes < 30, "{wakes}");
    assert!(!b.is_gone(&conn));
    b.pass(600 * SECOND);
    assert!(b.is_gone(&conn));
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    b.finish();
}

#[test]
fn events_do_not_put_off_the_next_try_of_a_full_port() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    b.wire.room = Some(0);
    b.remote_sends(&conn, b"first");
    for _ in 0..20 {
        b.pass(MS / 2);
        b.remote_sends(&conn, b"more");
    }
    assert!(b.flow(&conn).stalls >= 3);
    b.finish();
}

#[test]
fn acks_to_a_full_port_do_not_shorten_its_patience() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.remote_sends(&conn, &pattern(3000));
    b.out();
    b.wire.room = Some(0);
    for _ in 0..1000 {
        conn.ack = conn.ack.wrapping_add(1);
        b.acknowledge(&conn);
        b.remote_sends(&conn, b"more");
    }
    b.wire.room = None;
    b.pass(2 * MS);
    assert_eq!(b.only().payload.len(), 4000);
    b.finish();
}

#[test]
fn what_came_before_an_error_reaches_the_container_first() {
    // Response and RST in one event, with the FIN before the RST and without.
    for fin in [false, true] {
        let mut b = Bench::new();
        let conn = b.open(1000);
        let socket = b.host.socket(conn.socket);
        socket.rx = b"the answer".to_vec();
        socket.rx_end = fin;
        socket.fail(HostError::Reset);
        b.ready(conn.socket, FAILED);
        let out = b.out();
        assert_eq!(out[0].payload, b"the answer");
        assert!(
            out[1].is(RST | ACK),
            "a reset is no orderly end: {:?}",
            out[1]
        );
        assert_eq!(out[1].seq, conn.ack.wrapping_add(10));
        assert_eq!(b.fate(&conn), Some(Fate::Reset));
        b.finish();
    }
}

#[test]
fn an_error_behind_a_closed_window_waits_for_the_bytes_before_it() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    close_window(&mut b, &mut conn, 2000);
    b.host.socket(conn.socket).fail(HostError::TimedOut);
    b.ready(conn.socket, FAILED);
    assert!(b.silent());
    b.send(&conn, seg(ACK, conn.seq, conn.ack)).unwrap();
    let out = b.out();
    assert_eq!(out[0].payload.len(), 2000 - 1024);
    assert!(out[1].is(RST | ACK));
    b.finish();
}

#[test]
fn an_error_with_nothing_before_it_is_told_at_once() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    close_window(&mut b, &mut conn, 1024);
    b.host.socket(conn.socket).fail(HostError::Reset);
    b.ready(conn.socket, FAILED);
    assert!(b.only().is(RST | ACK));
    // Seen by a read before its event: the end it looks like is none.
    let conn = b.open(1001);
    let socket = b.host.socket(conn.socket);
    socket.rx_end = true;
    socket.fail(HostError::Reset);
    b.ready(conn.socket, READABLE);
    assert!(b.only().is(RST | ACK));
    b.finish();
}

#[test]
fn an_error_event_without_error_changes_nothing() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    b.ready(conn.socket, FAILED);
    assert!(b.silent());
    b.remote_sends(&conn, b"still here");
    assert_eq!(b.only().payload, b"still here");
    b.finish();
}

#[test]
fn an_end_that_only_a_read_tells_is_found() {
    // RDHUP came while the window was closed; no further event will come.
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    close_window(&mut b, &mut conn, 2000);
    b.remote_closes(&conn);
    b.send(&conn, seg(ACK, conn.seq, conn.ack)).unwrap();
    let out = b.out();
    assert_eq!(out[0].payload.len(), 2000 - 1024);
    assert!(out[1].is(FIN | ACK));
    // It came before the handshake was done.
    b.syn(1001).unwrap();
    let socket = b.last_socket();
    b.connected(socket);
    let syn_ack = b.only();
    b.host.socket(socket).rx = b"bye".to_vec();
    b.host.socket(socket).rx_end = true;
    b.ready(socket, CLOSED);
    b.send_from(1001, &seg(ACK, syn_ack.ack, syn_ack.seq.wrapping_add(1)))
        .unwrap();
    let out = b.out();
    assert_eq!(out[0].payload, b"bye");
    assert!(out[1].is(FIN | ACK));
    b.finish();
}

#[test]
fn a_drained_socket_is_not_asked_again() {
    let mut b = Bench::new();
    let mut conn = b.open(1000);
    b.remote_sends(&conn, b"one");
    conn.ack = conn.ack.wrapping_add(3);
    let peeks = b.host.peeks;
    b.acknowledge(&conn);
    b.ready(conn.socket, WRITABLE);
    b.send(&conn, seg(ACK, conn.seq, conn.ack).data(b"x"))
        .unwrap();
    assert_eq!(b.host.peeks, peeks);
    b.finish();
}
