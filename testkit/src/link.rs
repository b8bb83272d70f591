//! The link between container and switch: it loses, doubles, delays and reorders frames, each
//! direction by its own schedule, and corrupts them only where a test asks for it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use cnet_wire::checksum;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vnet::VNET_HDR_LEN;

use crate::offload;
use crate::rng::Rng;

/// What one direction does to frames. Rates are in thousandths.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Frames that do not arrive.
    pub loss: u32,
    /// Frames that arrive twice.
    pub duplicate: u32,
    /// Frames that may be overtaken.
    pub reorder: u32,
    /// Delay of every frame, between these two.
    pub delay: (Duration, Duration),
    /// Frames under way at most, the rest is refused as a full queue refuses.
    pub queue: usize,
    /// TCP payloads with a byte changed and the checksum right. Only to show that it is noticed.
    pub corrupt: u32,
}

impl Schedule {
    /// A wire that does nothing but take a moment.
    pub const PERFECT: Schedule = Schedule {
        loss: 0,
        duplicate: 0,
        reorder: 0,
        delay: (Duration::from_micros(5), Duration::from_micros(5)),
        queue: 10_000,
        corrupt: 0,
    };

    /// A schedule from the seed: none, light or heavy.
    pub fn draw(rng: &mut Rng) -> Schedule {
        let level = rng.pick(&[0, 0, 0, 1, 1, 2]);
        let rate = |rng: &mut Rng, most: [u32; 3]| match most[level] {
            0 => 0,
            most => rng.below(most as usize + 1) as u32,
        };
        let slow = rng.pick(&[10u64, 100, 1_000, 20_000]);
        let jitter = [0, slow / 2, slow * 2][level];
        Schedule {
            loss: rate(rng, [0, 20, 150]),
            duplicate: rate(rng, [0, 20, 100]),
            reorder: rate(rng, [0, 50, 200]),
            delay: (
                Duration::from_micros(slow.div_ceil(2)),
                Duration::from_micros(slow.div_ceil(2) + jitter),
            ),
            queue: rng.pick(&[20, 100, 500, 1000, 1000]),
            corrupt: 0,
        }
    }
}

/// One direction.
#[derive(Debug)]
pub struct Lane {
    schedule: Schedule,
    rng: Rng,
    under_way: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    /// Arrival of the last frame that may not be overtaken.
    last: Instant,
    count: u64,
    /// Frames that did not arrive, those of a full queue included.
    pub lost: u64,
}

/// The queue has no room.
#[derive(Debug)]
pub struct Full;

impl Lane {
    /// A direction with nothing under way.
    pub fn new(schedule: Schedule, rng: Rng) -> Self {
        Lane {
            schedule,
            rng,
            under_way: BinaryHeap::new(),
            last: Instant::ZERO,
            count: 0,
            lost: 0,
        }
    }

    /// Whether the next frame finds no room.
    pub fn is_full(&self) -> bool {
        self.under_way.len() >= self.schedule.queue
    }

    /// Puts a frame on the wire.
    pub fn send(&mut self, now: Instant, mut frame: Vec<u8>) -> Result<(), Full> {
        if self.is_full() {
            self.lost += 1;
            return Err(Full);
        }
        if self.rng.chance(self.schedule.loss) {
            self.lost += 1;
            return Ok(());
        }
        if self.rng.chance(self.schedule.corrupt) {
            corrupt(&mut frame);
        }
        if self.rng.chance(self.schedule.duplicate) {
            self.launch(now, frame.clone(), true);
        }
        let overtaken = self.rng.chance(self.schedule.reorder);
        self.launch(now, frame, overtaken);
        Ok(())
    }

    fn launch(&mut self, now: Instant, frame: Vec<u8>, overtaken: bool) {
        let (from, to) = self.schedule.delay;
        let mut at = now + self.rng.duration(from, to);
        if overtaken {
            at += self.rng.duration(Duration::ZERO, (to + from) * 4);
        } else {
            at = at.max(self.last);
            self.last = at;
        }
        self.count += 1;
        self.under_way.push(Reverse((at, self.count, frame)));
    }

    /// When the next frame arrives.
    pub fn next(&self) -> Option<Instant> {
        self.under_way.peek().map(|f| f.0.0)
    }

    /// A frame that has arrived.
    pub fn receive(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.next()
            .filter(|&at| at <= now)
            .and_then(|_| self.under_way.pop())
            .map(|f| f.0.2)
    }
}

/// Changes the last payload byte of a TCP frame and keeps its checksum right. On the way up a
/// virtio-net header stands in front, which is all zero where checksums are complete.
fn corrupt(frame: &mut [u8]) {
    let start = if frame.starts_with(&[0; VNET_HDR_LEN]) {
        VNET_HDR_LEN
    } else {
        0
    };
    let frame = &mut frame[start..];
    let Ok(tcp) = offload::tcp_at(frame) else {
        return;
    };
    if tcp.payload == tcp.end {
        return;
    }
    frame[tcp.end - 1] ^= 0x55;
    frame[tcp.l4 + 16..tcp.l4 + 18].fill(0);
    let sum = checksum::pseudo_header(tcp.src, tcp.dst, 6, (tcp.end - tcp.l4) as u32);
    let sum = checksum::finish(sum, &frame[tcp.l4..tcp.end]);
    frame[tcp.l4 + 16..tcp.l4 + 18].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flood(schedule: Schedule) -> Vec<u16> {
        let mut lane = Lane::new(schedule, Rng::new(3));
        let mut now = Instant::ZERO;
        for n in 0..1000u16 {
            lane.send(now, n.to_be_bytes().to_vec()).unwrap();
            now += Duration::from_micros(10);
        }
        let mut got = Vec::new();
        while let Some(at) = lane.next() {
            while let Some(f) = lane.receive(at) {
                got.push(u16::from_be_bytes([f[0], f[1]]));
            }
        }
        got
    }

    #[test]
    fn does_what_the_schedule_says() {
        let all: Vec<u16> = (0..1000).collect();
        assert_eq!(flood(Schedule::PERFECT), all);
        let lossy = flood(Schedule {
            loss: 200,
            ..Schedule::PERFECT
        });
        assert!((700..900).contains(&lossy.len()) && lossy.is_sorted());
        let mut doubled = flood(Schedule {
            duplicate: 200,
            ..Schedule::PERFECT
        });
        assert!((1100..1300).contains(&doubled.len()));
        doubled.sort_unstable();
        doubled.dedup();
        assert_eq!(doubled, all);
        let mut shuffled = flood(Schedule {
            reorder: 200,
            delay: (Duration::from_micros(50), Duration::from_micros(100)),
            ..Schedule::PERFECT
        });
        assert!(!shuffled.is_sorted());
        shuffled.sort_unstable();
        assert_eq!(shuffled, all);
    }
}
