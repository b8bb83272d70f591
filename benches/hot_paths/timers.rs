//! The timer wheel, by the number of deadlines in it.

use std::hint::black_box;

use cnet_nat::flow::TimerWheel;
use cnet_wire::time::{Duration, Instant};
use criterion::{BenchmarkId, Criterion};

use crate::{group, is_test, measure};
use cnet_testkit::rng::Rng;

/// A wheel whose keys have deadlines like those of flows: most of them idle for hours yet, each
/// tenth about to be retransmitted.
struct Wheel {
    wheel: TimerWheel,
    rng: Rng,
    keys: usize,
    now: Instant,
}

impl Wheel {
    fn new(keys: usize) -> Wheel {
        let now = Instant::from_millis(1_000);
        let mut wheel = TimerWheel::new(now);
        let mut rng = Rng::from_state(6);
        for key in 0..keys as u32 {
            let span = if key % 10 == 0 { 200 } else { 7_440_000 };
            let at = now + Duration::from_millis(span + rng.next_u64() % span);
            wheel.set(key, at);
        }
        Wheel {
            wheel,
            rng,
            keys,
            now,
        }
    }

    /// A random key's deadline moves: to a retransmission timeout from its idle limit, and back.
    fn set(&mut self) {
        let r = self.rng.next_u64();
        let key = (r % self.keys as u64) as u32;
        let span = if r >> 63 == 0 { 200 } else { 7_440_000 };
        self.wheel.set(key, self.now + Duration::from_millis(span));
    }

    /// A key expires and is set again, for a random time within four seconds.
    fn expire(&mut self) {
        loop {
            if let Some(key) = self.wheel.expire(self.now) {
                let span = Duration::from_micros(self.rng.next_u64() % 4_000_000);
                self.wheel.set(key, self.now + span);
                return;
            }
            self.now = self.wheel.next().expect("a deadline");
        }
    }
}

pub fn wheel(c: &mut Criterion) {
    let mut group = group(c, "timers");
    let counts: &[usize] = if is_test() {
        &[1, 1_000]
    } else {
        &[1, 1_000, 100_000, 1_000_000]
    };
    for &keys in counts {
        let id = |name: &str| BenchmarkId::new(name, keys);
        let mut wheel = None;
        let make = || Wheel::new(keys);
        measure(&mut group, id("set"), &mut wheel, make, Wheel::set);
        measure(&mut group, id("next"), &mut wheel, make, |w| {
            black_box(w.wheel.next());
        });
        let mut wheel = None;
        measure(&mut group, id("expire"), &mut wheel, make, Wheel::expire);
    }
    group.finish();
}
