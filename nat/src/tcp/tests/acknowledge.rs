//! What is acknowledged when: the last segment and a keepalive probe once the far end has answered.

use cnet_wire::time::Duration;

use crate::host::HeaderFields;
use crate::tcp::testing::*;

const TEN_SECONDS: Duration = Duration::from_secs(10);

/// A connection that has sent `data`, of which the far end has acknowledged nothing.
fn upload(b: &mut Bench, data: &[u8]) -> Conn {
    let mut conn = b.open(1000);
    b.host.socket(conn.socket).unacknowledged = data.len();
    b.send(&conn, seg(ACK, conn.seq, conn.ack).data(data))
        .unwrap();
    conn.seq = conn.seq.wrapping_add(data.len() as u32);
    conn
}

#[test]
fn the_last_segment_is_acknowledged_when_the_far_end_has_all() {
    let mut b = Bench::new();
    let conn = upload(&mut b, &[1; 4000]);
    let mss = u32::from(b.flow(&conn).mss);
    let held = b.only();
    assert_eq!(held.ack, conn.seq.wrapping_sub((4000 - 1) % mss + 1));
    // Its copy is not answered either, and the looks become few.
    b.send(
        &conn,
        seg(ACK, conn.seq.wrapping_sub(1), conn.ack).data(b"\x01"),
    )
    .unwrap_err();
    let wakes = b.pass(TEN_SECONDS);
    assert!(b.silent() && (10..300).contains(&wakes), "{wakes}");
    b.host.socket(conn.socket).unacknowledged = 0;
    b.pass(Duration::from_millis(100));
    assert_eq!(b.only().ack, conn.seq);
    // Nothing wakes it any more.
    assert_eq!(b.pass(TEN_SECONDS), 0);
    b.finish();
}

#[test]
fn an_answer_acknowledges_all_at_once() {
    let mut b = Bench::new();
    let conn = upload(&mut b, b"question");
    assert!(b.silent());
    b.host.socket(conn.socket).unacknowledged = 0;
    b.remote_sends(&conn, b"answer");
    let answer = b.only();
    assert_eq!(
        (&answer.payload[..], answer.ack),
        (&b"answer"[..], conn.seq)
    );
    b.finish();
}

#[test]
fn a_fin_is_acknowledged_when_the_far_end_has_it_and_at_once_when_both_have_ended() {
    for far_end_ends in [false, true] {
        let mut b = Bench::new();
        let mut conn = b.open(1000);
        b.host.socket(conn.socket).unacknowledged = 1;
        b.send(&conn, seg(ACK | FIN, conn.seq, conn.ack)).unwrap();
        assert!(b.silent());
        conn.seq = conn.seq.wrapping_add(1);
        if far_end_ends {
            b.remote_closes(&conn);
            let fin = b.only();
            assert!(fin.is(ACK | FIN) && fin.ack == conn.seq);
        } else {
            b.host.socket(conn.socket).unacknowledged = 0;
            b.pass(Duration::from_millis(100));
            assert_eq!(b.only().ack, conn.seq);
        }
        b.finish();
    }
}

#[test]
fn a_keepalive_probe_is_answered_by_a_far_end_that_is_there() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    let probe = || seg(ACK, conn.seq.wrapping_sub(1), conn.ack);
    // Heard a moment ago: answered at once.
    b.send(&conn, probe()).unwrap_err();
    assert_eq!(b.only().ack, conn.seq);
    // Silent: the host asks first.
    b.host.socket(conn.socket).silence = Duration::from_secs(5);
    for n in 2..6 {
        b.send(&conn, probe()).unwrap_err();
        assert_eq!(b.host.socket(conn.socket).probes, n);
        b.pass(TEN_SECONDS);
        assert!(b.silent(), "answered for a far end that is gone");
    }
    b.send(&conn, probe()).unwrap_err();
    b.host.socket(conn.socket).silence = Duration::from_millis(3);
    b.pass(Duration::from_millis(2));
    assert_eq!(b.only().ack, conn.seq);
    b.finish();
}

#[test]
fn what_the_containers_packets_say_is_said_to_the_far_end() {
    let mut b = Bench::new();
    let said = |hop_limit, tos| HeaderFields { hop_limit, tos };
    b.said = said(5, 0x48 | 1);
    b.syn(1000).unwrap();
    let socket = b.last_socket();
    // One hop less, and the host's own ECN.
    assert_eq!(b.host.socket(socket).fields, said(4, 0x48));
    b.said = said(64, 0);
    let conn = b.open(2000);
    assert_eq!(b.host.socket(conn.socket).fields, said(64, 0));
    b.said = said(64, 0xb8);
    b.acknowledge(&conn);
    assert_eq!(b.host.socket(conn.socket).fields, said(64, 0xb8));
    b.finish();
}
