//! Frames between containers, and for the gateway itself.

use cnet_vswitch::Verdict;
use cnet_wire::PortId;

use crate::{PACKETS, assert_none};
use cnet_benches::load::containers::{Containers, Crowd, To};
use cnet_benches::load::world::World;
use cnet_testkit::template::{self, GATEWAY_V4};

const PORTS: u32 = 64;

#[test]
fn verdicts() {
    for to in [To::Gateway, To::Neighbour, To::Everybody] {
        let mut crowd = Crowd::new(PORTS, to);
        assert_none(&mut crowd, |crowd| {
            let fits = match (crowd.verdict(), to) {
                (Verdict::Port(port), To::Gateway) => port == PortId::ROUTER,
                (Verdict::Port(port), To::Neighbour) => port != PortId::ROUTER,
                (Verdict::Flood { router }, To::Everybody) => router,
                _ => false,
            };
            assert!(fits, "{to:?}");
        });
    }
}

#[test]
fn unicast_through_the_router() {
    let mut containers = Containers::new(PORTS, To::Neighbour);
    let before = containers.world.sink.frames;
    assert_none(&mut containers, Containers::send);
    containers.world.assert_no_drops();
    assert_eq!(containers.world.sink.frames - before, 2 * PACKETS);
}

#[test]
fn broadcast_through_the_router() {
    let mut containers = Containers::new(PORTS, To::Everybody);
    let before = containers.world.sink.frames;
    assert_none(&mut containers, Containers::send);
    let each = u64::from(PORTS) - 1;
    assert_eq!(containers.world.sink.frames - before, 2 * PACKETS * each);
}

#[test]
fn containers_in_turn() {
    let mut containers = Containers::new(PORTS, To::Gateway);
    assert_none(&mut containers, Containers::send);
    containers.world.end_batch();
    containers.world.assert_no_drops();
    assert_eq!(containers.world.hosts.sends, 2 * PACKETS);
}

#[test]
fn arp() {
    let mut state = (World::new(1, 0), template::arp(GATEWAY_V4));
    assert_none(&mut state, |(world, frame)| world.frame(1, frame.bytes()));
    state.0.assert_no_drops();
    assert_eq!(state.0.sink.frames, 2 * PACKETS);
}
