//! Frames in a network of one container: what is counted, and that reading ahead changes nothing.

use cnet_nat::flow::CACHED_FLOWS;
use cnet_nat::io::Io;
use cnet_nat::policy::Rule;
use cnet_vswitch::port::{Lease, PortConfig};
use cnet_wire::conversation::{Direction, Refusal};
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::{DropReason, FrameSink, MacAddr, PortFull, PortId};

use crate::Network;
use crate::testing::{Host, LINK, NOW, REMOTE, config, udp_from};

/// Keeps every frame.
#[derive(Default)]
struct Wire(Vec<Vec<u8>>);

impl FrameSink for Wire {
    fn emit(&mut self, _: PortId, frame: &[u8]) -> Result<(), PortFull> {
        self.0.push(frame.to_vec());
        Ok(())
    }
}

fn network() -> Network {
    let mut network = Network::new(config(), [7; 32], NOW);
    network.add_port(LINK.port, PortConfig::default()).unwrap();
    network
}

#[test]
fn a_drop_is_counted_once_wherever_it_happens() {
    let mut network = network();
    let (mut wire, mut host) = (Wire::default(), Host::default());
    let mut buf = vec![0; FRAME_BUFFER_LEN];
    let mut io = Io::new(&mut wire, &mut host, &mut buf);
    let good = udp_from(9, REMOTE, b"x");
    let mut broken = good.clone();
    *broken.last_mut().unwrap() ^= 1;
    let frames: [(&[u8], Option<DropReason>); 4] = [
        // By parsing, by the switch, by the router, and not at all.
        (&good[..12], Some(DropReason::FrameTooShort)),
        (
            &[&good[..10], &[0x52, 0x54, 0, 0, 0, 9], &good[16..]].concat(),
            Some(DropReason::NoSuchPort),
        ),
        (&broken, Some(DropReason::BadChecksum)),
        (&good, None),
    ];
    for (n, (frame, reason)) in frames.into_iter().enumerate() {
        let before = network.drops();
        network.handle_frame(NOW, LINK.port, frame, &mut io);
        let (report, counted) = (network.report(), network.drops());
        assert_eq!(
            counted.total() - before.total(),
            u64::from(reason.is_some())
        );
        if let Some(reason) = reason {
            assert_eq!(counted.get(reason) - before.get(reason), 1);
        }
        assert_eq!(report.drops.total(), counted.total());
        assert_eq!(report.ports[0].counters.drops.total(), counted.total());
        assert_eq!(report.ports[0].counters.frames_in, n as u64 + 1);
    }
    assert_eq!(network.report().ports[0].flows.udp, 1);
    // What a port that is gone has lost stays in the sum, and what comes from it is none.
    let counters = network.remove_port(NOW, LINK.port, &mut io).unwrap();
    assert_eq!((counters.frames_in, counters.drops.total()), (4, 3));
    assert!(network.remove_port(NOW, LINK.port, &mut io).is_none());
    network.handle_frame(NOW, LINK.port, &good, &mut io);
    assert!(network.port_counters(LINK.port).is_none());
    assert_eq!(network.drops().get(DropReason::NoSuchPort), 2);
    assert_eq!(network.report().drops.total(), 4);
}

/// What became of frames.
#[derive(PartialEq, Eq, Debug)]
struct Outcome {
    emitted: Vec<Vec<u8>>,
    sent: Vec<String>,
    drops: Vec<(DropReason, u64)>,
}

/// Has a network with many mappings handle `frames`, all at once or one by one.
fn outcome(frames: &[Vec<u8>], at_once: bool) -> Outcome {
    let mut network = network();
    let (mut wire, mut host) = (Wire::default(), Host::default());
    let mut buf = vec![0; FRAME_BUFFER_LEN];
    let mut io = Io::new(&mut wire, &mut host, &mut buf);
    for port in 0..CACHED_FLOWS as u16 {
        network.handle_frame(NOW, LINK.port, &datagram(port + 1, b"first"), &mut io);
        network.end_batch(NOW, &mut io);
    }
    assert!(network.prefetches());
    io.hosts.sent.clear();
    let all: Vec<(PortId, &[u8])> = frames.iter().map(|f| (LINK.port, &f[..])).collect();
    let each = if at_once { all.len() } else { 1 };
    for frames in all.chunks(each) {
        network.handle_frames(NOW, frames, &mut io);
    }
    network.end_batch(NOW, &mut io);
    Outcome {
        emitted: wire.0,
        sent: host.sent.iter().map(|sent| format!("{sent:?}")).collect(),
        drops: network.drops().iter().collect(),
    }
}

fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
    udp_from(port, REMOTE, payload)
}

#[test]
fn frames_that_come_together_are_handled_as_if_they_came_one_by_one() {
    let mut frames = Vec::new();
    for n in 0..50_u16 {
        frames.push(datagram(1 + 80 * n, format!("known {n}").as_bytes()));
        frames.push(datagram(60_000 + n / 2, b"new, and then known"));
        let mut broken = datagram(1 + 80 * n, b"broken");
        broken[usize::from(n) % 46 + 12] ^= 0x55;
        frames.push(broken);
        frames.push(datagram(7, b"cut")[..usize::from(n)].to_vec());
    }
    let (together, alone) = (outcome(&frames, true), outcome(&frames, false));
    assert_eq!(together, alone);
    assert!(together.sent.len() >= 100 && together.drops.len() > 2);
}

#[test]
fn policy_is_asked_between_containers_where_it_has_rules() {
    const OTHER: (PortId, MacAddr) = (PortId(5), MacAddr([0x52, 0x54, 0, 0, 0, 9]));
    let rule = Rule {
        protocol: Some(17),
        service: Some(9..=9),
        ..Rule::all(Direction::Between, Some(Refusal::Prohibited))
    };
    let to_other = |from, to| {
        let frame = udp_from(from, to, b"x");
        [&frame[..10], &OTHER.1.0, &frame[16..]].concat()
    };
    for (rules, copies) in [(vec![], 1), (vec![rule], 0)] {
        let mut config = config();
        config.policy.rules = rules;
        let mut network = Network::new(config, [7; 32], NOW);
        let lease = Lease {
            mac: Some(OTHER.1),
            ..Lease::default()
        };
        let other = PortConfig {
            lease,
            ..PortConfig::default()
        };
        network.add_port(LINK.port, PortConfig::default()).unwrap();
        network.add_port(OTHER.0, other).unwrap();
        let (mut wire, mut host) = (Wire::default(), Host::default());
        let mut buf = vec![0; FRAME_BUFFER_LEN];
        let mut io = Io::new(&mut wire, &mut host, &mut buf);
        network.handle_frame(NOW, LINK.port, &to_other(1, [10, 0, 2, 101]), &mut io);
        assert_eq!(io.sink.0.len(), copies);
        assert_eq!(network.drops().get(DropReason::Policy), 1 - copies as u64);
        // The router hears what is for all, whatever containers may say to each other.
        let to_all = to_other(1, [255; 4]);
        let to_all = [&to_all[..10], &[0xff; 6], &to_all[16..]].concat();
        network.handle_frame(NOW, LINK.port, &to_all, &mut io);
        assert_eq!(io.sink.0.len(), 2 * copies);
        assert_eq!(network.drops().get(DropReason::NotServed), 1);
        assert_eq!(network.drops().get(DropReason::Policy), 1 - copies as u64);
        // The rule is about containers: the world is reached as before.
        network.handle_frame(NOW, LINK.port, &udp_from(1, REMOTE, b"x"), &mut io);
        network.end_batch(NOW, &mut io);
        assert_eq!(io.hosts.sent.len(), 1);
    }
}
