//! The harness against itself: two smoltcp containers over the wire, without the core. What the
//! wire and the applications are trusted for later is shown here, and that they notice corruption.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use cnet_wire::MacAddr;
use cnet_wire::time::{Duration, Instant};

use cnet_testkit::addresses;
use cnet_testkit::app::{App, AppPlan, End, Ending};
use cnet_testkit::container::{Container, Endpoint, SocketPlan};
use cnet_testkit::link::{Lane, Schedule};
use cnet_testkit::offload::{self, Offloads};
use cnet_testkit::rng::Rng;

fn app(name: &str, out: &Rc<[u8]>, expected: &Rc<[u8]>, ending: Ending) -> App {
    let plan = AppPlan {
        write_chunk: 10_000,
        read_chunk: 10_000,
        pace: Duration::ZERO,
        speak_after: 0,
        stalls: vec![(1000, Duration::from_secs(2))],
        rests: Vec::new(),
        ending,
    };
    App::new(name.into(), plan, out.clone(), expected.clone())
}

/// Two containers, 50 kB each way; returns how both ended.
fn run(schedule: Schedule, client_ending: Ending) -> Result<[Option<End>; 2], String> {
    // Longer than 60 lines: two stacks are set up and run, and nothing else.
    let mut rng = Rng::new(9);
    let (out, back): (Rc<[u8]>, Rc<[u8]>) = (rng.bytes(50_000).into(), rng.bytes(50_000).into());
    let (here, there): (IpAddr, IpAddr) =
        (addresses::IPV4.into(), Ipv4Addr::new(10, 0, 2, 101).into());
    let socket = SocketPlan {
        rx_buffer: 20_000,
        tx_buffer: 20_000,
        nagle: true,
        ack_delay: None,
    };
    let start = Instant::from_millis(1);
    let gateway = addresses::GATEWAY_V4.into();
    let mut a = Container::new(false, 1500, 1, here, gateway, addresses::MAC);
    let mut b = Container::new(
        false,
        1500,
        2,
        there,
        gateway,
        MacAddr([0x52, 0x54, 0, 0, 0, 2]),
    );
    let (client, server) = (
        app("client", &out, &back, client_ending),
        app("server", &back, &out, Ending::AfterPeer),
    );
    a.endpoints.push(Endpoint::connecting(
        SocketAddr::new(there, 80),
        2000,
        start,
        socket,
        client,
    ));
    b.endpoints
        .push(Endpoint::listening(80, Instant::ZERO, socket, server));
    let mut lanes = [
        Lane::new(schedule, rng.fork()),
        Lane::new(schedule, rng.fork()),
    ];
    let mut now = Instant::ZERO;
    let all = Offloads {
        checksum: true,
        segmentation: true,
    };
    for _ in 0..100_000 {
        let mut frames = Vec::new();
        for from in [0, 1] {
            let (sender, receiver) = if from == 0 {
                (&mut a, &mut b)
            } else {
                (&mut b, &mut a)
            };
            sender.poll(now, &mut frames)?;
            for f in offload::join(std::mem::take(&mut frames), all, &mut rng) {
                for part in offload::cut(&f, 1500)? {
                    let _ = lanes[from].send(now, part);
                }
            }
            while let Some(f) = lanes[from].receive(now) {
                receiver.deliver(now, f);
            }
        }
        let ends = [a.endpoints[0].app.end, b.endpoints[0].app.end];
        if ends.iter().all(Option::is_some) {
            return Ok(ends);
        }
        let next = [a.next(now), b.next(now), lanes[0].next(), lanes[1].next()];
        let Some(next) = next.into_iter().flatten().min() else {
            return Err(format!("stuck at {now:?}"));
        };
        now = next.max(now + Duration::from_nanos(1));
    }
    Err("no end in sight".into())
}

#[test]
fn bytes_arrive_over_a_bad_wire() {
    let bad = Schedule {
        loss: 100,
        duplicate: 50,
        reorder: 100,
        delay: (Duration::from_micros(100), Duration::from_millis(1)),
        ..Schedule::PERFECT
    };
    for schedule in [Schedule::PERFECT, bad] {
        assert_eq!(
            run(schedule, Ending::AfterSending),
            Ok([Some(End::Done); 2])
        );
    }
}

#[test]
fn a_reset_is_seen() {
    let reset = Ending::Reset {
        sent: 10_000,
        received: 5_000,
    };
    assert_eq!(
        run(Schedule::PERFECT, reset),
        Ok([Some(End::Aborted), Some(End::Reset)])
    );
}

#[test]
fn a_wire_that_corrupts_a_byte_is_detected() {
    let corrupting = Schedule {
        corrupt: 20,
        ..Schedule::PERFECT
    };
    let error = run(corrupting, Ending::AfterSending).unwrap_err();
    assert!(error.contains("wrong bytes"), "{error}");
}
