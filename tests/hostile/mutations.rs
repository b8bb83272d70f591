//! The long form of what is in no list: frames that were right before some of their bytes were changed,
//! a million of them over a TAP. `CNET_LONG_FRAMES` says how many, where it is not to take so long.

use std::time::Duration;

use cnet_testkit::corpus;
use cnet_testkit::rng::Rng;
use cnet_wire::vnet::VNET_HDR_LEN;

use crate::arena::Arena;
use crate::lab::raw;

/// Frames.
const FRAMES: u64 = 1_000_000;

/// The longest that the neighbours may wait for each other's answer meanwhile.
const STALL: Duration = Duration::from_millis(100);

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn long_a_million_mutated_frames_stall_no_neighbour() {
    let frames = std::env::var("CNET_LONG_FRAMES").ok();
    let frames = frames.map_or(FRAMES, |text| text.parse().expect("a number"));
    // With spoof protection most would get no further than that.
    let arena = Arena::with(false);
    let mut rng = Rng::new(1);
    let own = [arena.v4(), arena.v6()];
    let far = [arena.world_v4(), arena.world_v6()];
    let (port, victim) = (
        (arena.own.mac, arena.own.v4),
        (arena.of_victim.mac, arena.of_victim.v4),
    );
    let all = corpus::all().into_iter();
    // Without the virtio-net header, which the kernel writes here.
    let mut right: Vec<Vec<u8>> = all.map(|frame| frame[VNET_HDR_LEN..].to_vec()).collect();
    for (own, far) in own.into_iter().zip(far) {
        right.push(raw::udp(
            (own.0, own.1, 4000),
            (far.0, far.1, 9),
            b"mutated",
        ));
    }
    right.push(raw::udp(
        (port.0, port.1, 4000),
        (victim.0, victim.1, 9),
        b"mutated",
    ));
    right.push(raw::arp(raw::BROADCAST, 1, port, victim));
    let mut sent = 0;
    while sent < frames {
        let batch: Vec<Vec<u8>> = (0..1000).map(|_| mutated(&mut rng, &right)).collect();
        sent += batch.len() as u64;
        arena.send(&batch);
    }
    arena.assert_undisturbed_within(STALL);
}

/// One of `right` with up to eight bytes changed, or cut short.
fn mutated(rng: &mut Rng, right: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = right[rng.below(right.len())].clone();
    for _ in 0..=rng.below(8) {
        let at = rng.below(frame.len());
        frame[at] = rng.next_u64() as u8;
    }
    if rng.chance(100) {
        // A packet socket sends no shorter ones.
        frame.truncate(rng.below(frame.len()).max(15));
    }
    frame
}
