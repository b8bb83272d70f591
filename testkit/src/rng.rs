//! The one source of chance in the simulation: a seeded generator, so that a seed is a test.
//!
//! SplitMix64 (Steele, Lea and Flood, 2014): one word of state, every seed a full period, and forks
//! that do not disturb the parent's sequence beyond one draw.

use std::ops::Range;

use cnet_wire::time::Duration;

/// A generator; equal seeds draw equal numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator; neighbouring seeds start far apart.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        // Neighbouring seeds start far apart.
        Rng(rng.next_u64())
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A generator whose first state is `state`, unmixed.
    pub fn from_state(state: u64) -> Self {
        Rng(state)
    }

    /// An independent generator.
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.next_u64())
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }

    /// A number in `range`; its start if that is empty.
    pub fn within(&mut self, range: Range<usize>) -> usize {
        range.start + self.below(range.len().max(1))
    }

    /// True `permille` times in a thousand.
    pub fn chance(&mut self, permille: u32) -> bool {
        permille > 0 && self.next_u64() % 1000 < u64::from(permille)
    }

    /// One of `choices`, which are not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Between `from` and `to`, to the nanosecond.
    pub fn duration(&mut self, from: Duration, to: Duration) -> Duration {
        let span = to.saturating_sub(from).as_nanos() as u64;
        from + Duration::from_nanos(self.next_u64() % (span + 1))
    }

    /// Puts `items` in an order of which every one is equally likely (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `len` bytes that repeat nowhere in sight, so that a shifted stream is noticed.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
