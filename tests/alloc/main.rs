//! No packet on a hot path allocates, once its tables and buffers have their size.
//!
//! Each test drives the pure core over a null host ([`cnet_benches::load`]), first until everything
//! has its size, then for as many packets again under a counting allocator, and checks that the
//! packets did what they were sent for. Counts are kept for each thread, so the tests run side by
//! side. The allocator is that of the package `allocation-counter`: to it a reallocation is an
//! allocation, a copy and a release, so it counts as one allocation.
#![forbid(unsafe_code)]

mod containers;
mod flows;
mod memory;

use std::hint::black_box;

/// Packets that warm up, and packets that are counted.
const PACKETS: u64 = 4_000;

/// Warms `step` up, and then allows it no allocation.
#[track_caller]
fn assert_none<W>(state: &mut W, mut step: impl FnMut(&mut W)) {
    for _ in 0..PACKETS {
        step(state);
    }
    let counted = allocation_counter::measure(|| (0..PACKETS).for_each(|_| step(state)));
    assert_eq!(counted.count_total, 0, "allocations in {PACKETS} packets");
}

#[test]
fn allocations_are_seen() {
    let mut bytes = Vec::new();
    let counted = allocation_counter::measure(|| bytes = black_box(Vec::<u8>::with_capacity(10)));
    assert_eq!((counted.count_total, counted.bytes_current), (1, 10));
    let counted = allocation_counter::measure(|| bytes.reserve_exact(black_box(1000)));
    assert_eq!((counted.count_total, counted.bytes_current), (1, 990));
    let counted = allocation_counter::measure(|| drop(bytes));
    assert_eq!((counted.count_total, counted.bytes_current), (0, -1000));
}
