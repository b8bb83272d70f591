//! No packet on a hot path allocates, once its tables and buffers have their size.
//!
//! Each test drives the pure core over a null host (`benches/support`), first until everything has
//! its size, then for as many packets again under a counting allocator, and checks that the packets
//! did what they were sent for. Counts are kept for each thread, so the tests run side by side.
//!
//! The allocator's `unsafe impl` (`benches/support/counting.rs`) is the one `unsafe` here.

#[path = "../../benches/support/mod.rs"]
mod support;

mod containers;
mod flows;
mod memory;

use support::counting;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// Packets that warm up, and packets that are counted.
const PACKETS: u64 = 4_000;

/// Warms `step` up, and then allows it no allocation.
#[track_caller]
fn assert_none<W>(state: &mut W, mut step: impl FnMut(&mut W)) {
    for _ in 0..PACKETS {
        step(state);
    }
    let before = counting::calls();
    for _ in 0..PACKETS {
        step(state);
    }
    let calls = counting::calls() - before;
    assert_eq!(calls, 0, "allocations in {PACKETS} packets");
}

#[test]
fn allocations_are_seen() {
    let before = counting::calls();
    let mut bytes = std::hint::black_box(Vec::<u8>::with_capacity(10));
    assert_eq!(counting::calls() - before, 1);
    bytes.reserve_exact(std::hint::black_box(1000));
    assert_eq!(counting::calls() - before, 2);
    let held = counting::held();
    drop(bytes);
    assert_eq!(held - counting::held(), 1000);
}
