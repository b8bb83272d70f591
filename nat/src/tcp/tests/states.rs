//! Every state against every kind of segment it should not fall for, and the few it should.

use cnet_wire::DropReason;
use cnet_wire::time::Duration;

use crate::tcp::flow::State;
use crate::tcp::testing::*;

/// The states a flow can be met in, the two half-closed ones apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Connecting,
    SynReceived,
    SynSent,
    Established,
    ContainerClosed,
    RemoteClosed,
}

const STAGES: [Stage; 6] = [
    Stage::Connecting,
    Stage::SynReceived,
    Stage::SynSent,
    Stage::Established,
    Stage::ContainerClosed,
    Stage::RemoteClosed,
];

/// A flow in `stage`; `ack` is the next byte the container expects of us.
fn at(stage: Stage) -> (Bench, Conn) {
    let mut b = Bench::new();
    let mut conn = Conn {
        port: 1000,
        socket: crate::host::SocketId(1),
        seq: CONTAINER_ISN.wrapping_add(1),
        ack: 0,
    };
    match stage {
        Stage::Connecting => b.syn(1000).unwrap(),
        Stage::SynReceived => {
            b.syn(1000).unwrap();
            b.connected(conn.socket);
            conn.ack = b.only().seq.wrapping_add(1);
        }
        Stage::SynSent => {
            let socket = b.host.accept();
            let (container, client) = ((b.container, 1000).into(), b.remote);
            b.run(|e, now, _, io| e.handle_accept(now, Some(LINK), container, client, socket, io))
                .unwrap();
            conn.ack = b.only().seq.wrapping_add(1);
        }
        Stage::Established => conn = b.open(1000),
        Stage::ContainerClosed => {
            conn = b.open(1000);
            b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack)).unwrap();
            conn.seq = conn.seq.wrapping_add(1);
            assert!(b.only().is(ACK));
        }
        Stage::RemoteClosed => {
            conn = b.open(1000);
            b.remote_closes(&conn);
            assert!(b.only().is(FIN | ACK));
            conn.ack = conn.ack.wrapping_add(1);
            b.acknowledge(&conn);
        }
    }
    (b, conn)
}

/// Whether the container's sequence numbers are known, and ours acknowledged.
fn is_synchronized(stage: Stage) -> bool {
    !matches!(stage, Stage::Connecting | Stage::SynSent)
}

#[test]
fn only_the_exact_reset_resets() {
    for stage in STAGES {
        let (mut b, conn) = at(stage);
        // Outside the window: no answer (RFC 5961, section 3.2).
        for seq in [conn.seq.wrapping_sub(1), conn.seq.wrapping_add(1 << 24)] {
            let result = b.send(&conn, seg(RST, seq, 0));
            assert_eq!(result, Err(DropReason::OutOfWindow), "{stage:?}");
            assert!(b.silent(), "{stage:?}");
        }
        // In the window: a challenge, though not for each.
        for i in 1..100 {
            let result = b.send(&conn, seg(RST, conn.seq.wrapping_add(i), 0));
            assert_eq!(result, Err(DropReason::OutOfWindow), "{stage:?}");
        }
        let challenges = b.out();
        let expected = usize::from(is_synchronized(stage));
        assert_eq!(challenges.len(), expected, "{stage:?}");
        assert!(challenges.iter().all(|c| c.is(ACK) && c.ack == conn.seq));
        assert_eq!(b.fate(&conn), None, "{stage:?}");

        let rst = match stage {
            Stage::SynSent => seg(RST | ACK, 0, conn.ack),
            _ => seg(RST, conn.seq, 0),
        };
        b.send(&conn, rst).unwrap();
        assert_eq!(b.fate(&conn), Some(Fate::Reset), "{stage:?}");
        assert!(b.silent() && b.engine.is_empty(), "{stage:?}");
        b.finish();
    }
}

#[test]
fn challenges_come_again_after_half_a_second() {
    let (mut b, conn) = at(Stage::Established);
    for _ in 0..5 {
        b.send(&conn, seg(RST, conn.seq.wrapping_add(1), 0))
            .unwrap_err();
        b.pass(Duration::from_millis(250));
    }
    assert_eq!(b.out().len(), 3);
    b.finish();
}

#[test]
fn a_syn_does_not_disturb_a_connection() {
    for stage in STAGES.into_iter().filter(|s| is_synchronized(*s)) {
        for seq in [conn_start(), conn_start().wrapping_add(5), 77, 0x4000_0000] {
            let (mut b, conn) = at(stage);
            let before = b.flow(&conn).state;
            b.send(&conn, seg(SYN, seq, 0).options(SYN_OPTIONS))
                .unwrap_err();
            assert_eq!(b.flow(&conn).state, before, "{stage:?}");
            let answer = b.only();
            assert!(answer.is(ACK) && answer.ack == conn.seq, "{stage:?}");
            // A container that really has forgotten resets by our ACK number, and may start anew.
            b.send(&conn, seg(RST, answer.ack, 0)).unwrap();
            assert!(b.is_gone(&conn));
            b.finish();
        }
    }
}

fn conn_start() -> u32 {
    CONTAINER_ISN.wrapping_add(1)
}

#[test]
fn a_syn_in_syn_sent_is_not_answered() {
    let (mut b, conn) = at(Stage::SynSent);
    let result = b.send(&conn, seg(SYN, 5, 0));
    assert_eq!(result, Err(DropReason::OutOfWindow));
    assert!(b.silent());
    // An ACK without SYN is no answer either.
    let result = b.send(&conn, seg(ACK, 5, conn.ack));
    assert_eq!(result, Err(DropReason::BadTcpFlags));
    assert_eq!(b.flow(&conn).state, State::SynSent);
    b.finish();
}

#[test]
fn what_belongs_to_no_flow_is_reset() {
    let mut b = Bench::new();
    b.send_from(1000, &seg(ACK, 5, 77).data(b"x")).unwrap_err();
    let rst = b.only();
    assert!(rst.is(RST) && rst.seq == 77);
    b.send_from(1000, &seg(SYN | ACK, 5, 77)).unwrap_err();
    assert!(b.only().is(RST));
    for flags in [RST, RST | ACK] {
        let result = b.send_from(1000, &seg(flags, 5, 77));
        assert_eq!(result, Err(DropReason::NoFlow));
        assert!(b.silent());
    }
    assert_eq!(b.host.connects, 0);
    b.finish();
}

#[test]
fn acks_of_the_past_and_the_future_change_nothing() {
    for stage in [
        Stage::Established,
        Stage::ContainerClosed,
        Stage::RemoteClosed,
    ] {
        let (mut b, conn) = at(stage);
        // The future, and a past that no window can explain (RFC 5961, section 5.2).
        for ack in [conn.ack.wrapping_add(1), conn.ack.wrapping_sub(0x4000_0001)] {
            b.pass(Duration::from_secs(1));
            let result = b.send(&conn, seg(ACK, conn.seq, ack).window(0));
            assert_eq!(result, Err(DropReason::OutOfWindow), "{stage:?}");
            assert!(b.only().is(ACK));
        }
        assert_ne!(b.flow(&conn).snd_wnd, 0, "{stage:?}");
        // An old duplicate is taken for what it is.
        b.send(
            &conn,
            seg(ACK, conn.seq, conn.ack.wrapping_sub(1)).window(0),
        )
        .unwrap();
        assert_ne!(b.flow(&conn).snd_wnd, 0, "{stage:?}");
        assert!(b.silent(), "{stage:?}");
        b.finish();
    }
}

#[test]
fn data_before_the_connection_stands_is_refused() {
    let (mut b, conn) = at(Stage::Connecting);
    for flags in [ACK, FIN | ACK] {
        let result = b.send(&conn, seg(flags, conn.seq, 5).data(b"early"));
        assert_eq!(result, Err(DropReason::OutOfWindow));
    }
    assert!(b.silent());
    b.finish();
    // With the handshake's last ACK it is welcome, and so is a FIN.
    let (mut b, conn) = at(Stage::SynReceived);
    b.send(&conn, seg(FIN | ACK, conn.seq, conn.ack).data(b"quick"))
        .unwrap();
    assert_eq!(b.host.socket(conn.socket).tx, b"quick");
    assert!(b.host.socket(conn.socket).shut);
    assert_eq!(b.only().ack, conn.seq.wrapping_add(6));
    b.finish();
}

#[test]
fn keepalives_and_probes_of_the_container_are_answered() {
    for stage in [
        Stage::Established,
        Stage::ContainerClosed,
        Stage::RemoteClosed,
    ] {
        let (mut b, conn) = at(stage);
        for len in [0, 1] {
            let probe = seg(ACK, conn.seq.wrapping_sub(1), conn.ack);
            b.send(&conn, probe.data(&vec![0; len])).unwrap_err();
            let answer = b.only();
            assert!(answer.is(ACK));
            assert_eq!((answer.seq, answer.ack), (conn.ack, conn.seq), "{stage:?}");
        }
        b.finish();
    }
}
