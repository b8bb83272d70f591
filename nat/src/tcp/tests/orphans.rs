//! What a container had sent to its end outlives it, and at whose cost.

use cnet_wire::DropReason;
use cnet_wire::time::Duration;

use super::limits::{OTHER, syn_on};
use crate::host::HostError;
use crate::tcp::flow::State;
use crate::tcp::testing::*;
use crate::tcp::{TcpConfig, TcpCounters};

/// A connection that has carried `data` and the container's end, none of which the host's socket
/// takes.
fn sent_to_its_end(b: &mut Bench, port: u16, data: &[u8]) -> Conn {
    let conn = b.open(port);
    b.host.socket(conn.socket).room = 0;
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(data))
        .unwrap();
    assert_eq!(b.only().ack, conn.seq.wrapping_add(data.len() as u32 + 1));
    conn
}

fn remove_port(b: &mut Bench) {
    b.run(|e, now, _, io| e.remove_port(now, LINK.port, io));
    assert_eq!(b.engine.held(LINK.port), 0);
    assert!(b.silent(), "the container is gone");
}

/// The same, and the container is gone.
fn orphan(b: &mut Bench, data: &[u8]) -> Conn {
    let conn = sent_to_its_end(b, 1000, data);
    remove_port(b);
    assert_eq!(b.flow(&conn).state(), State::Orphaned);
    conn
}

/// The host's socket takes up to `room` bytes.
fn take(b: &mut Bench, conn: &Conn, room: usize) {
    b.host.socket(conn.socket).room = room;
    b.ready(conn.socket, WRITABLE);
}

#[test]
fn what_a_port_has_sent_to_its_end_outlives_it() {
    let mut b = Bench::new();
    let conn = b.open(1000);
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(b"all"))
        .unwrap();
    b.out();
    assert_eq!(b.host.socket(conn.socket).tx, b"all");
    remove_port(&mut b);
    // A reset would take away what the host's kernel has yet to send.
    assert_eq!(b.fate(&conn), Some(Fate::Closed));
    assert!(b.engine.is_empty());
    b.finish();
}

#[test]
fn what_was_acknowledged_to_a_port_is_delivered_without_it() {
    let mut b = Bench::new();
    let conn = orphan(&mut b, &[7; 1000]);
    // As long as the far end takes something now and then.
    for taken in [400, 800] {
        b.pass(Duration::from_secs(8));
        take(&mut b, &conn, 400);
        assert_eq!(b.host.socket(conn.socket).tx.len(), taken);
    }
    take(&mut b, &conn, 400);
    assert_eq!(b.fate(&conn), Some(Fate::Closed));
    assert!(b.silent() && b.engine.is_empty());
    b.finish();
}

#[test]
fn an_orphan_waits_for_a_far_end_that_takes_nothing_and_for_one_that_fails_not_at_all() {
    let mut b = Bench::new();
    let conn = orphan(&mut b, &[7; 1000]);
    b.pass(Duration::from_secs(9));
    assert_eq!(b.fate(&conn), None);
    b.pass(Duration::from_secs(2));
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    assert!(b.silent() && b.engine.is_empty());

    let conn = orphan(&mut b, &[7; 1000]);
    b.host.socket(conn.socket).fail(HostError::Reset);
    b.ready(conn.socket, FAILED);
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    b.finish();
}

#[test]
fn a_far_end_that_takes_a_byte_now_and_then_has_a_minute() {
    for far_end_closed in [false, true] {
        let mut b = Bench::new();
        let mut conn = sent_to_its_end(&mut b, 1000, &[7; 1000]);
        if far_end_closed {
            b.remote_closes(&conn);
            conn.seq = conn.seq.wrapping_add(1001);
            conn.ack = conn.ack.wrapping_add(1);
            b.out();
            b.acknowledge(&conn);
            assert!(b.flow(&conn).container_done());
        }
        remove_port(&mut b);
        for _ in 0..7 {
            b.pass(Duration::from_secs(8));
            take(&mut b, &conn, 1);
        }
        assert_eq!((b.fate(&conn), b.engine.unsent()), (None, 993));
        b.pass(Duration::from_secs(5));
        assert_eq!(b.fate(&conn), Some(Fate::Reset));
        assert!(b.engine.is_empty());
        b.finish();
    }
}

#[test]
fn only_a_syn_takes_the_place_of_an_orphan() {
    let mut b = Bench::new();
    let conn = orphan(&mut b, &[7; 1000]);
    let (container, remote) = ((b.container, conn.port).into(), b.remote);
    assert!(!b.engine.owns(container, remote), "it has no port");
    // Its ends are another container's now, which has no connection there.
    for flags in [ACK, FIN | ACK, SYN | ACK, RST, RST | ACK] {
        let stray = seg(flags, conn.seq.wrapping_add(1001), conn.ack);
        assert_eq!(b.send(&conn, stray), Err(DropReason::NoFlow));
        let answers = b.out();
        assert_eq!(answers.len(), usize::from(flags & RST == 0), "{flags}");
        assert!(answers.iter().all(|answer| answer.is(RST)));
        assert_eq!(b.flow(&conn).state(), State::Orphaned);
    }
    syn_on(&mut b, OTHER, 1000).unwrap();
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    assert_eq!((b.engine.len(), b.engine.held(OTHER.port)), (1, 1));
    assert!(b.engine.owns(container, remote));
    b.finish();
}

/// A client, shown as `client`, whose container is not found yet.
fn accept(b: &mut Bench, client: std::net::SocketAddr) -> Result<Conn, DropReason> {
    let socket = b.host.accept();
    let container = (b.container, 1000).into();
    b.run(|e, now, _, io| e.handle_accept(now, None, container, client, socket, io))?;
    Ok(Conn {
        port: 1000,
        socket,
        seq: CONTAINER_ISN.wrapping_add(1),
        ack: 0,
    })
}

#[test]
fn an_orphan_waits_for_no_container() {
    let mut b = Bench::new();
    let remote = b.remote;
    // It once was a client whose container was looked for.
    let mut conn = accept(&mut b, remote).unwrap();
    let address = b.container;
    b.run(|e, now, _, io| e.link_resolved(now, address, LINK, io));
    conn.ack = b.only().seq.wrapping_add(1);
    let syn_ack = seg(SYN | ACK, CONTAINER_ISN, conn.ack).options(SYN_OPTIONS);
    b.send(&conn, syn_ack).unwrap();
    b.out();
    b.host.socket(conn.socket).room = 0;
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(&[7; 1000]))
        .unwrap();
    b.out();
    remove_port(&mut b);
    assert_eq!(b.flow(&conn).state(), State::Orphaned);
    // The container's next place: its port is not the orphan's.
    b.run(|e, now, _, io| e.link_resolved(now, address, OTHER, io));
    assert!(b.silent());
    assert_eq!(b.engine.held(OTHER.port), 0);
    b.run(|e, now, _, io| e.link_failed(now, address, io));
    assert_eq!(b.flow(&conn).state(), State::Orphaned);
    take(&mut b, &conn, 1000);
    assert_eq!(b.fate(&conn), Some(Fate::Closed));
    b.finish();
}

#[test]
fn orphans_have_a_part_of_the_table_and_make_room_oldest_first() {
    let mut b = Bench::with(TcpConfig {
        max_flows: 64,
        ..TcpConfig::default()
    });
    let conns: Vec<Conn> = (1..=6)
        .map(|port| sent_to_its_end(&mut b, port, b"x"))
        .collect();
    remove_port(&mut b);
    assert_eq!((b.engine.len(), b.engine.unsent()), (4, 4));
    let fates = |b: &Bench| conns.iter().map(|c| b.fate(c)).collect::<Vec<_>>();
    let reset = Some(Fate::Reset);
    assert_eq!(fates(&b), [None, None, None, None, reset, reset]);
    // A container that comes and goes has no more of them each time.
    let next = sent_to_its_end(&mut b, 7, b"x");
    remove_port(&mut b);
    assert_eq!((b.fate(&next), b.engine.len()), (reset, 4));

    for port in 0..54 {
        b.open(1000 + port);
    }
    let mut counters = TcpCounters {
        opened: 7 + 54,
        ..TcpCounters::default()
    };
    assert_eq!((b.engine.len(), b.engine.counters()), (58, counters));
    // The port has eight times what is free. It may have more, if it may in an orphan's place.
    b.open(2000);
    b.open(2001);
    assert_eq!(fates(&b), [reset, reset, None, None, reset, reset]);
    (counters.opened, counters.evicted) = (63, 2);
    assert_eq!(b.engine.counters(), counters);
    assert_eq!(b.syn(2002), Err(DropReason::Quota));
    counters.refused = 1;
    assert!(b.only().is(RST | ACK));
    assert_eq!(fates(&b), [reset, reset, None, None, reset, reset]);
    // Another has its first without.
    syn_on(&mut b, OTHER, 3000).unwrap();
    counters.opened = 64;
    assert_eq!(b.engine.counters(), counters);
    b.finish();
}

#[test]
fn orphans_share_with_clients_whose_container_is_not_found_and_make_room_for_them() {
    let mut b = Bench::with(TcpConfig {
        max_flows_per_port: 1,
        ..TcpConfig::default()
    });
    let conn = orphan(&mut b, b"x");
    let client = "198.51.100.7:1".parse().unwrap();
    let waiting = accept(&mut b, client).unwrap();
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    assert_eq!((b.engine.len(), b.fate(&waiting)), (1, None));
    // There is no place beside it.
    let conn = sent_to_its_end(&mut b, 1001, b"x");
    remove_port(&mut b);
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    b.finish();
}

#[test]
fn orphans_give_their_descriptors_up() {
    let mut b = Bench::new();
    let conn = orphan(&mut b, b"x");
    b.host.connect_errors = vec![HostError::Exhausted];
    b.syn(2000).unwrap();
    assert_eq!(b.fate(&conn), Some(Fate::Reset));
    assert_eq!((b.engine.len(), b.engine.counters().evicted), (1, 1));
    b.finish();
}

#[test]
fn orphans_have_a_part_of_the_unsent_budget() {
    let mut b = Bench::with(TcpConfig {
        unsent_limit: 40_000,
        ..TcpConfig::default()
    });
    let conns = [6000, 4001, 4000].map(|n| sent_to_its_end(&mut b, n, &vec![7; n.into()]));
    remove_port(&mut b);
    assert_eq!(conns.map(|c| b.fate(&c)), [None, Some(Fate::Reset), None]);
    assert_eq!(b.engine.unsent(), 10_000);
    // What they have yet to take counts, not what they had.
    take(&mut b, &conns[0], 5000);
    let next = [5001, 5000].map(|n| sent_to_its_end(&mut b, n, &vec![7; n.into()]));
    remove_port(&mut b);
    assert_eq!(next.map(|c| b.fate(&c)), [Some(Fate::Reset), None]);
    for conn in [conns[0], conns[2], next[1]] {
        take(&mut b, &conn, 10_000);
        assert_eq!(b.fate(&conn), Some(Fate::Closed));
    }
    b.finish();
}
