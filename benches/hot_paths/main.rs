//! The hot paths of the pure crates, timed by criterion, by packet family.
//!
//! `cargo bench -p cnet-benches --bench hot_paths` runs all of it in about three minutes; a filter (`-- flows/tcp`)
//! picks some. Behind each time stands how many allocations a packet took, warmed up. What grows
//! with the number of flows is measured again by the bench `scale`, side by side in one run.

mod dns;
mod flows;
mod frames;
mod switch;
mod timers;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};

/// Packets over which allocations are counted.
const COUNTED: u64 = 4096;

/// Whether this is `cargo test`, which only asks that everything runs.
fn is_test() -> bool {
    std::env::args().any(|a| a == "--test")
}

/// A group with short runs: a packet takes nanoseconds, so a second has millions.
fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(700));
    group
}

/// Times `step` on a state that is made when it is first needed, and tells its allocations.
fn measure<W>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    state: &mut Option<W>,
    make: impl Fn() -> W,
    mut step: impl FnMut(&mut W),
) {
    let mut ran = false;
    group.bench_function(id, |b| {
        let state = state.get_or_insert_with(&make);
        ran = true;
        b.iter(|| step(state));
    });
    if !ran || is_test() {
        return;
    }
    if let Some(state) = state {
        let counted = allocation_counter::measure(|| (0..COUNTED).for_each(|_| step(state)));
        let calls = counted.count_total;
        let each = calls as f64 / COUNTED as f64;
        println!("{:24}allocs:  {each:.3} each ({calls} in {COUNTED})", "");
    }
}

criterion_group!(
    benches,
    frames::parse,
    frames::checksum,
    frames::headers,
    frames::segment,
    switch::lookup,
    switch::verdict,
    switch::router,
    flows::tcp,
    flows::udp,
    flows::ping,
    dns::gateway,
    dns::service,
    timers::wheel
);
criterion_main!(benches);
