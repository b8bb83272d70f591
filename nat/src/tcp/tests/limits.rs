//! What one engine holds at most, who makes room, and what is left when all is over.

use cnet_vswitch::DropReason;
use cnet_vswitch::time::Duration;

use crate::host::{HostError, Token, TokenKind};
use crate::tcp::flow::{State, TcpFlow};
use crate::tcp::testing::*;
use crate::tcp::{TcpConfig, TcpEngine};

fn small(max_flows: usize) -> Bench {
    Bench::with(TcpConfig {
        max_flows,
        ..TcpConfig::default()
    })
}

#[test]
fn the_oldest_half_open_flow_makes_room_and_never_an_established_one() {
    let mut b = small(3);
    let conn = b.open(1000);
    b.syn(1001).unwrap();
    b.syn(1002).unwrap();
    b.syn(1003).unwrap();
    assert_eq!(b.engine.len(), 3);
    assert_eq!(b.engine.counters().evicted, 1);
    assert_eq!(b.flow(&conn).state(), State::Established);
    // 1001 was the oldest; its SYN, repeated, takes 1002's place.
    assert_eq!(b.host.gone.len(), 1);
    b.syn(1001).unwrap();
    assert_eq!(b.engine.counters().evicted, 2);
    assert!(b.silent());
    b.finish();

    let mut b = small(3);
    for port in 0..3 {
        b.open(1000 + port);
    }
    assert_eq!(b.syn(1003), Err(DropReason::Quota));
    let rst = b.only();
    assert!(rst.is(RST | ACK) && rst.ack == CONTAINER_ISN.wrapping_add(1));
    let socket = b.host.accept();
    let (guest, client) = (
        (b.container, 8080).into(),
        "198.51.100.7:1".parse().unwrap(),
    );
    let accepted =
        b.run(|e, now, _, io| e.handle_accept(now, Some(LINK), guest, client, socket, io));
    assert_eq!(accepted, Err(DropReason::Quota));
    assert_eq!(b.host.gone, [(socket, Fate::Reset)]);
    assert_eq!(b.engine.len(), 3);
    assert_eq!(b.engine.counters().evicted, 0);
    b.finish();
}

#[test]
fn an_evicted_handshake_is_told() {
    let mut b = small(1);
    b.syn(1000).unwrap();
    b.connected(b.last_socket());
    b.out();
    b.syn(1001).unwrap();
    let rst = b.only();
    assert!(rst.is(RST | ACK) && rst.ports.1 == 1000);
    b.finish();
}

#[test]
fn a_host_without_descriptors_takes_one_from_the_oldest_half_open_flow() {
    let mut b = Bench::new();
    b.host.connect_errors = vec![HostError::Exhausted];
    assert_eq!(b.syn(1000), Err(DropReason::HostResource));
    assert!(b.only().is(RST | ACK));
    assert!(b.engine.is_empty());
    b.syn(1001).unwrap();
    b.host.connect_errors = vec![HostError::Exhausted];
    b.syn(1002).unwrap();
    assert_eq!((b.engine.len(), b.engine.counters().evicted), (1, 1));
    b.host.connect_errors = vec![HostError::Exhausted, HostError::Exhausted];
    assert_eq!(b.syn(1003), Err(DropReason::HostResource));
    assert!(b.engine.is_empty());
}

#[test]
fn the_list_of_half_open_flows_stays_near_their_number() {
    let mut b = Bench::new();
    // One that stays, and a loop of SYN and RST behind it.
    b.syn(999).unwrap();
    for i in 0..20_000 {
        let port = 1000 + (i % 50_000) as u16;
        b.syn(port).unwrap();
        b.send_from(port, &seg(RST, CONTAINER_ISN.wrapping_add(1), 0))
            .unwrap();
    }
    assert_eq!(b.engine.len(), 1);
    let listed = b.engine.holders.listed(Some(LINK.port)).count();
    assert!(listed <= 200, "{listed}");
    // The oldest is still known as such.
    assert_eq!(b.host.gone.len(), 20_000);
    b.run(|e, now, _, io| assert!(e.evict(now, Some(LINK.port), None, io)));
    assert!(b.engine.is_empty());
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    let mut b = Bench::new();
    let mut conns = Vec::new();
    for i in 0..10_000u16 {
        conns.push(b.open(1000 + i));
    }
    for conn in &conns {
        b.send(conn, seg(FIN | ACK, conn.seq, conn.ack)).unwrap();
        b.remote_closes(conn);
        let done = seg(ACK, conn.seq.wrapping_add(1), conn.ack.wrapping_add(1));
        b.send(conn, done).unwrap();
        b.wire = Wire::default();
    }
    assert!(b.engine.is_empty() && b.host.sockets.is_empty());
    assert_eq!(b.engine.stashed(), 0);
    assert_eq!(b.engine.poll_timeout(), None);
    let e = &b.engine;
    assert!(e.dirty.capacity() < 100 && e.backlog.capacity() < 100);
    let capacity = e.holders.list_capacity();
    assert!(capacity <= 1024, "{capacity}");
}

#[test]
fn a_flow_costs_little() {
    // 100,000 idle flows are to take less than 60 MB, table and timers included.
    let size = size_of::<TcpFlow>();
    assert!(size <= 384, "{size} bytes a flow");
}

#[test]
fn stale_events_find_nobody() {
    let mut b = Bench::new();
    let first = b.open(1000);
    let token = b.host.socket(first.socket).token.unwrap();
    b.send(&first, seg(RST, first.seq, 0)).unwrap();
    for ready in [READABLE, WRITABLE, CLOSED, FAILED] {
        b.event(token, ready);
    }
    // The slot's next tenant does not hear of them either.
    let second = b.open(1001);
    let other = b.host.socket(second.socket).token.unwrap();
    assert_eq!(token.index(), other.index());
    assert_ne!(token, other);
    b.event(token, FAILED);
    assert_eq!(b.flow(&second).state(), State::Established);
    b.event(Token::new(TokenKind::Tcp, Token::MAX_INDEX, 0), FAILED);
    assert!(b.silent());
    b.finish();
}

#[test]
fn timers_of_a_removed_flow_do_not_touch_the_next_one() {
    let mut b = Bench::new();
    let first = b.open(1000);
    b.remote_sends(&first, b"unacknowledged");
    b.out();
    b.send(&first, seg(RST, first.seq, 0)).unwrap();
    let second = b.open(1001);
    assert_eq!(b.pass(Duration::from_secs(3600)), 1, "its handshake's own");
    assert_eq!(b.flow(&second).state(), State::Established);
    b.finish();
}

#[test]
fn others_are_not_touched_by_a_flow_that_is_stuck() {
    let mut b = Bench::new();
    let stuck = b.open(1000);
    b.send(&stuck, seg(ACK, stuck.seq, stuck.ack).window(0))
        .unwrap();
    b.remote_sends(&stuck, &[1; 10_000]);
    b.host.socket(stuck.socket).room = 0;
    b.send(
        &stuck,
        seg(ACK, stuck.seq, stuck.ack).window(0).data(&[1; 9000]),
    )
    .unwrap();
    b.out();
    let mut conn = b.open(1001);
    for _ in 0..10 {
        b.remote_sends(&conn, b"pong");
        assert_eq!(b.only().payload, b"pong");
        conn.ack = conn.ack.wrapping_add(4);
        b.send(&conn, seg(ACK, conn.seq, conn.ack).data(b"ping"))
            .unwrap();
        conn.seq = conn.seq.wrapping_add(4);
        assert_eq!(b.only().ack, conn.seq);
    }
    b.finish();
}

#[test]
fn sequence_numbers_of_the_engine_differ_by_flow_time_and_secret() {
    let iss = |b: &mut Bench, port: u16| {
        b.syn(port).unwrap();
        b.connected(b.last_socket());
        b.only().seq
    };
    let mut b = Bench::new();
    let first = iss(&mut b, 1000);
    let second = iss(&mut b, 1001);
    assert!(first.wrapping_sub(second) > 1 << 16 && second.wrapping_sub(first) > 1 << 16);
    b.run(|e, now, _, io| e.shut_down(now, io));
    b.out();
    // The same ends a second later: 250,000 further on, so that nothing old fits.
    b.pass(Duration::from_secs(1));
    assert_eq!(iss(&mut b, 1000).wrapping_sub(first), 250_000);
    let mut other = Bench::new();
    other.engine = TcpEngine::new(TcpConfig::default(), [8; 16], other.now);
    assert_ne!(iss(&mut other, 1000), first);
}
