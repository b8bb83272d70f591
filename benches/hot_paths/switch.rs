//! The switch, by the number of ports: the forwarding table, the verdict on a frame (parsed first),
//! and the router above it with frames that stay in the network.

use std::hint::black_box;

use cnet_vswitch::Verdict;
use criterion::{BenchmarkId, Criterion};

use crate::{group, is_test, measure};
use cnet_benches::load::containers::{Containers, Crowd, To};
use cnet_benches::load::world::World;
use cnet_testkit::template::{self, GATEWAY_V4, Template};

fn ports() -> &'static [u32] {
    if is_test() { &[1, 64] } else { &[1, 64, 4096] }
}

pub fn lookup(c: &mut Criterion) {
    let mut group = group(c, "switch/lookup");
    for &ports in ports() {
        let id = BenchmarkId::from_parameter(ports);
        let make = || Crowd::new(ports, To::Gateway);
        measure(&mut group, id, &mut None, make, |crowd| {
            assert!(black_box(crowd.lookup()).is_some());
        });
    }
    group.finish();
}

pub fn verdict(c: &mut Criterion) {
    let mut group = group(c, "switch/verdict");
    for (name, to) in [
        ("gateway", To::Gateway),
        ("unicast", To::Neighbour),
        ("broadcast", To::Everybody),
    ] {
        for &ports in ports() {
            if to == To::Neighbour && ports == 1 {
                continue;
            }
            let id = BenchmarkId::new(name, ports);
            measure(
                &mut group,
                id,
                &mut None,
                || Crowd::new(ports, to),
                |crowd| {
                    assert!(!matches!(crowd.verdict(), Verdict::Drop(_)));
                },
            );
        }
    }
    group.finish();
}

pub fn router(c: &mut Criterion) {
    let mut group = group(c, "router");
    let make = || (World::new(1, 0), template::arp(GATEWAY_V4));
    let id = BenchmarkId::new("arp", 1);
    measure(&mut group, id, &mut None, make, |(world, frame)| {
        let frame: &Template = frame;
        world.frame(1, frame.bytes());
    });
    for (name, to) in [
        ("udp_small", To::Gateway),
        ("unicast", To::Neighbour),
        ("broadcast", To::Everybody),
    ] {
        for &ports in ports() {
            // A flood to thousands is timed by one to 64: it is as many writes.
            if to == To::Neighbour && ports == 1 || to == To::Everybody && ports > 64 {
                continue;
            }
            let id = BenchmarkId::new(name, ports);
            let make = || Containers::new(ports, to);
            measure(&mut group, id, &mut None, make, Containers::send);
        }
    }
    group.finish();
}
