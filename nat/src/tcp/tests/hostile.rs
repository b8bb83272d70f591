//! Anything a container and a host can do, in any order: nothing panics, nothing is left over.

use std::net::SocketAddr;

use cnet_wire::time::Duration;
use proptest::prelude::*;

use crate::host::{HostError, Readiness};
use crate::tcp::TcpConfig;
use crate::tcp::testing::*;

/// Numbers around the ones a connection stands at, and some from anywhere.
fn near() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => -2i64..3,
        2 => -70_000i64..70_000,
        1 => -(1i64 << 31)..(1 << 31),
    ]
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        6 => Just(ACK),
        2 => Just(FIN | ACK),
        1 => Just(SYN),
        1 => Just(SYN | ACK),
        1 => Just(RST),
        2 => 0u8..64,
    ]
}

#[derive(Clone, Debug)]
enum Step {
    /// From one of four ports: flags, distance from what is expected both ways, window, payload
    /// length, SACK distance, and whether the batch ends with it.
    Segment(u16, u8, i64, i64, u16, usize, Option<i64>, bool),
    Bytes(Vec<u8>),
    Accept(u16, bool),
    Resolved(bool),
    /// To one of the sockets: readiness bits.
    Event(usize, u8),
    RemoteSends(usize, usize),
    RemoteCloses(usize),
    RemoteFails(usize),
    Connected(usize, Option<HostError>),
    Room(usize, usize),
    ConnectError(HostError),
    PortFull(bool),
    Pass(u64),
    EndBatch,
}

fn host_error() -> impl Strategy<Value = HostError> {
    prop_oneof![
        Just(HostError::Refused),
        Just(HostError::Reset),
        Just(HostError::TimedOut),
        Just(HostError::NetUnreachable),
        Just(HostError::Exhausted),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let socket = 0usize..4;
    let segment = (
        0u16..4,
        flags(),
        near(),
        near(),
        prop_oneof![Just(0), Just(1), any::<u16>()],
        prop_oneof![3 => Just(0usize), 2 => 1usize..10, 1 => 1usize..60_000],
        proptest::option::weighted(0.1, near()),
        any::<bool>(),
    );
    prop_oneof![
        20 => segment.prop_map(|(p, f, s, a, w, l, k, e)| Step::Segment(p, f, s, a, w, l, k, e)),
        1 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(Step::Bytes),
        2 => (0u16..4, any::<bool>()).prop_map(|(p, known)| Step::Accept(p, known)),
        1 => any::<bool>().prop_map(Step::Resolved),
        4 => (socket.clone(), 0u8..16).prop_map(|(s, r)| Step::Event(s, r)),
        6 => (socket.clone(), 1usize..100_000).prop_map(|(s, n)| Step::RemoteSends(s, n)),
        2 => socket.clone().prop_map(Step::RemoteCloses),
        1 => socket.clone().prop_map(Step::RemoteFails),
        6 => (socket.clone(), proptest::option::weighted(0.2, host_error()))
            .prop_map(|(s, e)| Step::Connected(s, e)),
        3 => (socket, prop_oneof![Just(0), 1usize..1000, Just(usize::MAX)])
            .prop_map(|(s, n)| Step::Room(s, n)),
        1 => host_error().prop_map(Step::ConnectError),
        2 => any::<bool>().prop_map(Step::PortFull),
        4 => prop_oneof![0u64..10, 0u64..5_000, 0u64..400_000].prop_map(Step::Pass),
        2 => Just(Step::EndBatch),
    ]
}

/// Some live socket, if there is one.
fn pick(b: &Bench, n: usize) -> Option<crate::host::SocketId> {
    let count = b.host.sockets.len();
    let id = b.host.sockets.keys().nth(n % count.max(1))?;
    Some(crate::host::SocketId(*id))
}

fn tell(b: &mut Bench, socket: crate::host::SocketId, bits: u8) {
    let ready = Readiness {
        readable: bits & 1 != 0,
        writable: bits & 2 != 0,
        read_closed: bits & 4 != 0,
        error: bits & 8 != 0,
    };
    if b.host.socket(socket).token.is_some() {
        b.ready(socket, ready);
    }
}

/// A segment as `step` has it, relative to what the engine expects of that port.
fn segment_of(b: &Bench, port: u16, flags: u8, off: (i64, i64)) -> Seg {
    let container = SocketAddr::new(b.container, port);
    let mut flows = b.engine.flows.iter();
    let flow = flows.find(|f| f.1.container() == container).map(|f| f.2);
    let (seq, ack) = flow.map_or((CONTAINER_ISN, 0), |f| (f.rcv_nxt.0, f.snd_max.0));
    let add = |n: u32, off: i64| (i64::from(n) + off) as u32;
    seg(flags, add(seq, off.0), add(ack, off.1))
}

fn apply(b: &mut Bench, step: Step) {
    match step {
        Step::Segment(port, flags, seq, ack, window, len, sack, ends) => {
            let port = 1000 + port;
            let mut s = segment_of(b, port, flags, (seq, ack))
                .window(window)
                .data(&vec![7; len]);
            if let Some(off) = sack {
                let left = (i64::from(s.ack) + off) as u32;
                s = s.sack(&[(left, left.wrapping_add(1000))]);
            } else if flags & SYN != 0 {
                s = s.options(SYN_OPTIONS);
            }
            let _ = b.packet(&s.bytes(port, b.remote.port()));
            if ends {
                b.end_batch();
            }
        }
        Step::Bytes(bytes) => {
            let _ = b.packet(&bytes);
        }
        Step::Accept(port, known) => {
            let socket = b.host.accept();
            let (container, client) = ((b.container, 1000 + port).into(), b.remote);
            let link = known.then_some(LINK);
            let _ =
                b.run(|e, now, _, io| e.handle_accept(now, link, container, client, socket, io));
        }
        Step::Resolved(found) => {
            let container = b.container;
            b.run(|e, now, _, io| match found {
                true => e.link_resolved(now, container, LINK, io),
                false => e.link_failed(now, container, io),
            });
        }
        Step::ConnectError(e) => b.host.connect_errors = vec![e],
        Step::PortFull(full) => b.wire.room = full.then_some(0),
        Step::Pass(ms) => {
            b.pass(Duration::from_millis(ms));
        }
        Step::EndBatch => b.end_batch(),
        Step::Event(n, _)
        | Step::RemoteSends(n, _)
        | Step::RemoteCloses(n)
        | Step::RemoteFails(n)
        | Step::Connected(n, _)
        | Step::Room(n, _) => {
            if let Some(socket) = pick(b, n) {
                apply_to_socket(b, socket, step);
            }
        }
    }
    b.wire.frames.clear();
}

fn apply_to_socket(b: &mut Bench, socket: crate::host::SocketId, step: Step) {
    let s = b.host.socket(socket);
    let (connecting, over) = (s.connecting, s.rx_end || s.dead);
    let bits = match step {
        Step::Event(_, bits) => bits,
        Step::RemoteSends(_, n) if !connecting && !over => {
            s.rx.extend(vec![9; n]);
            1
        }
        Step::RemoteCloses(_) if !connecting => {
            s.rx_end = true;
            5
        }
        Step::RemoteFails(_) => {
            s.connecting = false;
            s.fail(HostError::Reset);
            15
        }
        Step::Connected(_, error) if connecting => {
            s.connecting = false;
            if let Some(e) = error {
                s.fail(e);
            }
            if error.is_some() { 15 } else { 2 }
        }
        Step::Room(_, n) => {
            s.room = n;
            2
        }
        _ => 0,
    };
    tell(b, socket, bits);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_sequence_of_steps_leaves_nothing_over(
        steps in proptest::collection::vec(step(), 1..120),
        max_flows in 1usize..5,
        unsent_limit in prop_oneof![Just(0usize), 1usize..100_000, Just(64 << 20)],
    ) {
        let mut b = Bench::with(TcpConfig { max_flows, unsent_limit, ..TcpConfig::default() });
        for step in steps {
            apply(&mut b, step);
            prop_assert!(b.engine.len() <= max_flows);
        }
        b.finish();
    }

    /// Whatever was done to it, an engine left alone comes to rest by itself.
    #[test]
    fn left_alone_it_comes_to_rest(steps in proptest::collection::vec(step(), 1..60)) {
        let mut b = Bench::new();
        for step in steps {
            apply(&mut b, step);
        }
        b.end_batch();
        // The container is gone: whatever it had open ends in time.
        b.wire.room = None;
        b.pass(Duration::from_secs(5 * 3600));
        prop_assert!(b.engine.is_empty());
        prop_assert_eq!(b.engine.poll_timeout(), None);
        prop_assert!(b.host.sockets.is_empty());
        b.finish();
    }
}
