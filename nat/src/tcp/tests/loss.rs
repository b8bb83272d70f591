//! Loss on the way to the container: duplicate ACKs, SACK, timeouts, and giving up.

use cnet_wire::time::Duration;

use crate::tcp::TcpCounters;
use crate::tcp::testing::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MSS: u32 = 1460;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 17 + i / 239) as u8).collect()
}

/// A connection with `len` bytes on their way.
fn in_flight(len: usize) -> (Bench, Conn) {
    let mut b = Bench::new();
    let conn = b.open(1000);
    b.remote_sends(&conn, &pattern(len));
    let sent: usize = b.out().iter().map(|o| o.payload.len()).sum();
    assert_eq!(sent, len);
    (b, conn)
}

fn duplicate(b: &mut Bench, conn: &Conn, sack: &[(u32, u32)]) {
    let ack = seg(ACK, conn.seq, conn.ack);
    let ack = if sack.is_empty() { ack } else { ack.sack(sack) };
    b.send(conn, ack).unwrap();
}

#[test]
fn the_third_duplicate_repeats_the_hole_that_sack_tells() {
    let (mut b, mut conn) = in_flight(200_000);
    let base = conn.ack;
    let held = (base.wrapping_add(3 * MSS), base.wrapping_add(20 * MSS));
    for _ in 0..2 {
        duplicate(&mut b, &conn, &[held]);
        assert!(b.silent());
    }
    duplicate(&mut b, &conn, &[held]);
    let again = b.only();
    assert_eq!((again.seq, again.payload.len()), (base, 3 * MSS as usize));
    assert_eq!(again.payload, pattern(3 * MSS as usize));
    // Further duplicates repeat nothing, and a second hole is repaired by the partial ACK.
    for _ in 0..10 {
        duplicate(&mut b, &conn, &[held]);
    }
    assert!(b.silent());
    conn.ack = held.1;
    let next = (base.wrapping_add(21 * MSS), base.wrapping_add(30 * MSS));
    duplicate(&mut b, &conn, &[next]);
    let again = b.only();
    assert_eq!((again.seq, again.payload.len()), (conn.ack, MSS as usize));
    conn.ack = base.wrapping_add(200_000);
    b.acknowledge(&conn);
    assert!(b.silent() && b.host.socket(conn.socket).rx.is_empty());
    assert!(!b.flow(&conn).congestion.is_recovering());
    let counters = TcpCounters {
        opened: 1,
        retransmissions: 2,
        ..TcpCounters::default()
    };
    assert_eq!(b.engine.counters(), counters);
    b.finish();
}

#[test]
fn without_sack_one_super_frame_is_repeated() {
    let (mut b, conn) = in_flight(200_000);
    for _ in 0..3 {
        duplicate(&mut b, &conn, &[]);
    }
    let again = b.only();
    assert_eq!(again.seq, conn.ack);
    assert!(again.payload.len() > 60_000);
    b.finish();
}

#[test]
fn sack_blocks_that_lie_repeat_no_more_than_what_was_sent() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    // Of 10,000 bytes the container wants 3,072 for now.
    b.send(&conn, seg(ACK, conn.seq, conn.ack).window(24))
        .unwrap();
    b.remote_sends(&conn, &pattern(10_000));
    assert_eq!(b.only().payload.len(), 3072);
    let far = conn.ack.wrapping_add(0x7000_0000);
    let lies = [
        (conn.ack, conn.ack),
        (far, far.wrapping_add(1)),
        (conn.ack.wrapping_sub(500), conn.ack.wrapping_add(10)),
    ];
    for _ in 0..3 {
        b.send(&conn, seg(ACK, conn.seq, conn.ack).window(24).sack(&lies))
            .unwrap();
    }
    assert_eq!(b.only().payload.len(), 3072);
    b.finish();
}

#[test]
fn what_is_no_duplicate_does_not_count() {
    let (mut b, conn) = in_flight(50_000);
    // Window updates, and ACKs that come with data.
    for window in 100..110 {
        b.send(&conn, seg(ACK, conn.seq, conn.ack).window(window))
            .unwrap();
    }
    let mut seq = conn.seq;
    for _ in 0..5 {
        b.send(&conn, seg(ACK, seq, conn.ack).data(b"up").window(109))
            .unwrap();
        seq = seq.wrapping_add(2);
    }
    assert!(b.out().iter().all(|o| o.payload.is_empty()));
    assert!(!b.flow(&conn).congestion.is_recovering());
    b.finish();
}

#[test]
fn a_loss_halves_the_window_and_no_more() {
    let (mut b, mut conn) = in_flight(1_000_000);
    for _ in 0..3 {
        duplicate(&mut b, &conn, &[]);
    }
    assert_eq!(b.flow(&conn).congestion.window(), 500_000);
    b.pass(20 * SECOND);
    assert!(b.flow(&conn).congestion.window() >= 128 * 1024);
    b.out();
    conn.ack = conn.ack.wrapping_add(1_000_000);
    b.acknowledge(&conn);
    let after = b.flow(&conn).congestion.window();
    for _ in 0..20 {
        b.remote_sends(&conn, &pattern(100_000));
        conn.ack = conn.ack.wrapping_add(100_000);
        b.acknowledge(&conn);
    }
    assert!(
        b.flow(&conn).congestion.window() > after,
        "and it grows again"
    );
    b.finish();
}

#[test]
fn a_timeout_goes_back_and_skips_what_the_container_holds() {
    let (mut b, mut conn) = in_flight(500_000);
    let base = conn.ack;
    b.pass(199 * MS);
    assert!(b.silent());
    b.pass(2 * MS);
    let out = b.out();
    assert_eq!(out[0].seq, base);
    let sent: u32 = out.iter().map(|o| o.payload.len() as u32).sum();
    assert!(sent < 500_000, "no more than the halved window: {sent}");
    // Only the first segment was missing.
    conn.ack = base.wrapping_add(400_000);
    b.acknowledge(&conn);
    let out = b.out();
    assert_eq!(out[0].seq, conn.ack);
    assert_eq!(out.iter().map(|o| o.payload.len()).sum::<usize>(), 100_000);
    assert_eq!(out[0].payload[..100], pattern(500_000)[400_000..400_100]);
    conn.ack = base.wrapping_add(500_000);
    b.acknowledge(&conn);
    assert_eq!(b.flow(&conn).alarm, None);
    assert!(!b.flow(&conn).congestion.is_recovering());
    b.finish();
}

#[test]
fn a_repetition_does_not_count_as_a_round_trip() {
    // Karn's algorithm (RFC 6298, section 3): the ACK may be of either transmission.
    let (mut b, mut conn) = in_flight(5000);
    b.pass(201 * MS);
    assert_eq!(b.only().payload.len(), 5000);
    b.now += 5 * SECOND;
    conn.ack = conn.ack.wrapping_add(5000);
    b.acknowledge(&conn);
    assert_eq!(b.flow(&conn).rtt.rto(), 200 * MS);
    b.remote_sends(&conn, b"once");
    conn.ack = conn.ack.wrapping_add(4);
    b.now += 150 * MS;
    b.acknowledge(&conn);
    assert_eq!(b.flow(&conn).rtt.rto(), 450 * MS);
    b.finish();
}

#[test]
fn duplicates_after_a_timeout_do_not_repeat_again() {
    let (mut b, mut conn) = in_flight(300_000);
    b.pass(201 * MS);
    b.out();
    conn.ack = conn.ack.wrapping_add(65_000);
    b.acknowledge(&conn);
    b.out();
    for _ in 0..20 {
        duplicate(&mut b, &conn, &[]);
    }
    assert!(b.silent());
    // The hole is still repaired by the next timeout, the repair of the repair by the one after.
    for _ in 0..2 {
        b.pass(SECOND);
        assert!(
            b.out()
                .iter()
                .any(|o| o.seq == conn.ack && !o.payload.is_empty())
        );
    }
    // New data after the recovery is guarded as ever.
    conn.ack = conn.ack.wrapping_add(235_000);
    b.acknowledge(&conn);
    b.remote_sends(&conn, &pattern(10_000));
    b.out();
    for _ in 0..3 {
        duplicate(&mut b, &conn, &[]);
    }
    assert_eq!(b.only().seq, conn.ack);
    b.finish();
}

#[test]
fn a_container_that_never_acknowledges_is_given_up() {
    let (mut b, conn) = in_flight(5000);
    let start = b.now;
    let mut repeats = 0;
    // It is alive, and speaks; it only never acknowledges.
    while !b.is_gone(&conn) {
        b.pass(SECOND);
        let _ = b.send(&conn, seg(ACK, conn.seq, conn.ack).window(100));
        repeats += b.out().iter().filter(|o| !o.payload.is_empty()).count();
        assert!(b.now - start < 600 * SECOND, "kept for ever");
    }
    assert!(b.now - start > 100 * SECOND, "RFC 9293, section 3.8.3, R2");
    assert!((10..16).contains(&repeats), "{repeats}");
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    b.finish();
}

#[test]
fn giving_up_is_told_where_the_container_listens() {
    // All was received, but no ACK came through: the container expects the byte behind it all.
    let (mut b, conn) = in_flight(500_000);
    b.pass(600 * SECOND);
    let rst = b.out().pop().unwrap();
    assert!(rst.is(RST | ACK));
    assert_eq!(rst.seq, conn.ack.wrapping_add(500_000));
    assert!(b.engine.is_empty());
}

#[test]
fn a_lost_fin_is_repeated() {
    let (mut b, mut conn) = in_flight(3000);
    b.remote_closes(&conn);
    assert!(b.only().is(FIN | ACK));
    // By timeout, behind the data.
    b.pass(201 * MS);
    let out = b.out();
    assert_eq!(out.len(), 2);
    assert!(out[0].payload.len() == 3000 && out[1].is(FIN | ACK));
    // By a partial ACK: all but the FIN is there.
    conn.ack = conn.ack.wrapping_add(3000);
    b.acknowledge(&conn);
    let fin = b.only();
    assert!(fin.is(FIN | ACK) && fin.seq == conn.ack && fin.payload.is_empty());
    assert!(b.host.socket(conn.socket).rx.is_empty());
    conn.ack = conn.ack.wrapping_add(1);
    b.acknowledge(&conn);
    assert_eq!(b.flow(&conn).alarm, None);
    b.finish();
}

#[test]
fn one_ack_for_the_last_bytes_and_the_fin() {
    let (mut b, mut conn) = in_flight(3000);
    b.remote_closes(&conn);
    b.out();
    conn.ack = conn.ack.wrapping_add(3001);
    // Together with the container's own last bytes and FIN.
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(b"bye"))
        .unwrap();
    let last = b.only();
    assert!(last.is(ACK) && last.ack == conn.seq.wrapping_add(4) && last.seq == conn.ack);
    assert_eq!(b.fate(&conn), Some(Fate::Closed));
    assert!(b.engine.is_empty());
    // Its repetition meets no flow.
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(b"bye"))
        .unwrap_err();
    assert!(b.only().is(RST));
    b.finish();
}
