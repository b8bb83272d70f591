//! What one engine holds at most, who makes room, and what is left when all is over.

use cnet_wire::time::Duration;
use cnet_wire::{DropReason, PortId};

use crate::host::{HostError, SocketId, Token, TokenKind};
use crate::tcp::flow::{State, TcpFlow};
use crate::tcp::testing::*;
use crate::tcp::{TcpConfig, TcpCounters, TcpSessions};
use cnet_wire::headers::Link;

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
    let mut counters = TcpCounters {
        opened: 4,
        evicted: 1,
        ..TcpCounters::default()
    };
    assert_eq!(b.engine.counters(), counters);
    assert_eq!(b.flow(&conn).state(), State::Established);
    // 1001 was the oldest; its SYN, repeated, takes 1002's place.
    assert_eq!(b.host.gone.len(), 1);
    b.syn(1001).unwrap();
    (counters.opened, counters.evicted) = (5, 2);
    assert_eq!(b.engine.counters(), counters);
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
    let (container, client) = (
        (b.container, 8080).into(),
        "198.51.100.7:1".parse().unwrap(),
    );
    let accepted =
        b.run(|e, now, _, io| e.handle_accept(now, Some(LINK), container, client, socket, io));
    assert_eq!(accepted, Err(DropReason::Quota));
    assert_eq!(b.host.gone, [(socket, Fate::Reset)]);
    assert_eq!(b.engine.len(), 3);
    counters = TcpCounters {
        opened: 3,
        refused: 2,
        ..TcpCounters::default()
    };
    assert_eq!(b.engine.counters(), counters);
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
    let mut counters = TcpCounters {
        opened: 2,
        evicted: 1,
        connect_failures: 1,
        ..TcpCounters::default()
    };
    assert_eq!((b.engine.len(), b.engine.counters()), (1, counters));
    b.host.connect_errors = vec![HostError::Exhausted, HostError::Exhausted];
    assert_eq!(b.syn(1003), Err(DropReason::HostResource));
    assert!(b.engine.is_empty());
    (counters.evicted, counters.connect_failures) = (2, 2);
    assert_eq!(b.engine.counters(), counters);
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
    let listed = b.engine.quotas.listed(Some(LINK.port)).count();
    assert!(listed <= 200, "{listed}");
    // The oldest is still known as such.
    assert_eq!(b.host.gone.len(), 20_000);
    b.run(|e, now, _, io| assert!(e.evict(now, Some(LINK.port), None, io)));
    assert!(b.engine.is_empty());
}

/// Another container.
pub(super) const OTHER: Link = Link {
    port: PortId(4),
    ..LINK
};

pub(super) fn syn_on(b: &mut Bench, link: Link, port: u16) -> Result<(), DropReason> {
    let syn = seg(SYN, CONTAINER_ISN, 0).options(SYN_OPTIONS);
    b.packet_on(&link, &syn.bytes(port, b.remote.port()))
}

#[test]
fn a_port_makes_room_at_its_own_cost_alone() {
    let mut b = Bench::with(TcpConfig {
        max_flows_per_port: 2,
        ..TcpConfig::default()
    });
    b.syn(1000).unwrap();
    for port in 2000..2100 {
        syn_on(&mut b, OTHER, port).unwrap();
        assert_eq!(
            (b.engine.held(LINK.port), b.engine.len()),
            (1, b.engine.held(OTHER.port) + 1)
        );
    }
    assert_eq!(
        (b.engine.held(OTHER.port), b.engine.counters().evicted),
        (2, 98)
    );
    let socket = b
        .host
        .sockets
        .keys()
        .next()
        .map(|&id| SocketId(id))
        .unwrap();
    b.connected(socket);
    assert!(b.only().is(SYN | ACK));
    b.finish();
}

#[test]
fn a_table_that_one_port_fills_has_room_for_the_next() {
    let mut b = small(900);
    for port in 1000..2000 {
        b.syn(port).unwrap();
    }
    assert_eq!(b.engine.held(LINK.port), 800);
    syn_on(&mut b, OTHER, 3000).unwrap();
    assert_eq!(
        (b.engine.held(OTHER.port), b.engine.held(LINK.port)),
        (1, 800)
    );
}

#[test]
fn a_port_that_goes_takes_its_flows_along_and_no_others() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    b.host.socket(conn.socket).room = 0;
    b.send(&conn, seg(ACK, conn.seq, conn.ack).data(&[7; 1000]))
        .unwrap();
    assert!(b.engine.unsent() > 0);
    b.syn(1001).unwrap();
    syn_on(&mut b, OTHER, 1002).unwrap();
    b.out();
    b.run(|e, now, _, io| e.remove_port(now, LINK.port, io));
    assert_eq!(
        (b.engine.held(LINK.port), b.engine.held(OTHER.port)),
        (0, 1)
    );
    assert_eq!((b.engine.len(), b.engine.unsent()), (1, 0));
    assert!(b.silent(), "the container is gone");
    let fates: Vec<_> = b.host.gone.iter().map(|g| g.1).collect();
    assert_eq!(fates, [Fate::Reset; 2]);
    b.end_batch();
    // The number's next owner has none of it.
    assert_eq!(
        b.send_from(1000, &seg(ACK, conn.seq, conn.ack)),
        Err(DropReason::NoFlow)
    );
    assert!(b.only().is(RST));
    b.run(|e, now, _, io| e.remove_port(now, OTHER.port, io));
    b.finish();
}

#[test]
fn a_flow_is_its_ports_own() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    let forged = seg(RST, conn.seq, 0).bytes(1000, b.remote.port());
    assert_eq!(b.packet_on(&OTHER, &forged), Err(DropReason::Spoofed));
    assert_eq!(syn_on(&mut b, OTHER, 1000), Err(DropReason::Spoofed));
    assert_eq!(b.flow(&conn).state(), State::Established);
    b.finish();
}

#[test]
fn a_client_passes_to_the_port_of_its_container_once_that_is_found() {
    let mut b = Bench::with(TcpConfig {
        max_flows_per_port: 1,
        ..TcpConfig::default()
    });
    let container = (b.container, 80).into();
    let accept = |b: &mut Bench, client: &str| {
        let socket = b.host.accept();
        let client = client.parse().unwrap();
        b.run(|e, now, _, io| e.handle_accept(now, None, container, client, socket, io))
    };
    accept(&mut b, "198.51.100.7:1").unwrap();
    // As of any owner, the oldest that waits makes room.
    accept(&mut b, "198.51.100.7:2").unwrap();
    assert_eq!((b.engine.len(), b.engine.held(LINK.port)), (1, 0));
    let address = b.container;
    b.run(|e, now, _, io| e.link_resolved(now, address, LINK, io));
    assert_eq!(b.engine.held(LINK.port), 1);
    assert!(b.only().is(SYN));
    // The port has its one flow: the next client that was waiting is turned away.
    accept(&mut b, "198.51.100.7:3").unwrap();
    b.run(|e, now, _, io| e.link_resolved(now, address, LINK, io));
    assert_eq!((b.engine.len(), b.engine.held(LINK.port)), (1, 1));
    assert!(b.silent());
    b.run(|e, now, _, io| e.remove_port(now, LINK.port, io));
    assert!(b.engine.is_empty());
    b.finish();
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
    assert_eq!(b.engine.unsent(), 0);
    assert_eq!(b.engine.poll_timeout(), None);
    let e = &b.engine;
    assert!(e.dirty.capacity() < 100 && e.backlog.capacity() < 100);
    let capacity = e.quotas.list_capacity();
    assert!(capacity <= 1024, "{capacity}");
}

#[test]
fn a_flow_costs_little() {
    // With its key and the table's own, a flow fills four cache lines.
    let size = size_of::<TcpFlow>();
    assert!(size <= 208, "{size} bytes a flow");
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
    other.engine = TcpSessions::new(TcpConfig::default(), [8; 16], other.now);
    assert_ne!(iss(&mut other, 1000), first);
}
