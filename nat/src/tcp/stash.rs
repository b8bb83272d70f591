//! Bytes that were acknowledged to a container and that the host's socket has not taken yet, and
//! the budget that all flows' stashes share.
//!
//! Few flows have any at a time, so what stands in every flow is one pointer, and an empty stash
//! holds no memory: its buffer goes back to the budget, which keeps a few for the next flow whose
//! socket is full. An upload to a slow network stops and goes on all the time, and shall not ask the
//! allocator each time.
//!
//! The budget counts bytes and not memory, so a buffer may not be much larger than what stands in it:
//! one of which most was taken off gives its memory back ([`SLACK`]). Otherwise a far end that takes
//! all but one byte of each stash would leave the budget unused and the memory full.

use std::ops::Deref;

/// Buffers kept.
const SPARES: usize = 4;
/// Bytes that a buffer may have to be kept: all that is on its way when a socket of ordinary speed
/// stops.
const SPARE_LEN: usize = 256 * 1024;
/// How many times the bytes that stand in it a buffer of up to [`SPARE_LEN`] may have room for; wide,
/// as it is likely to be filled again soon. A larger one may twice.
const SLACK: usize = 16;
/// Bytes that a buffer may have whatever stands in it: less than the flow's socket costs the kernel.
const LEAST_LEN: usize = 4096;

/// The bytes all stashes of an engine share. A flow may hold as many as are still free (the dynamic
/// threshold of shared-memory switches: Choudhury and Hahne, 1998): however many flows are stalled,
/// something is left for the next, and a single one cannot take it all.
#[derive(Debug)]
pub(super) struct StashBudget {
    limit: usize,
    used: usize,
    #[expect(clippy::vec_box, reason = "the box itself goes to the flow and back")]
    spares: Vec<Box<Buffer>>,
}

impl StashBudget {
    /// A budget of `limit` bytes.
    pub(super) fn new(limit: usize) -> StashBudget {
        StashBudget {
            limit,
            used: 0,
            spares: Vec::with_capacity(SPARES),
        }
    }

    /// Bytes in all stashes.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// What a flow that holds `held` bytes may still take.
    pub(super) fn room(&self, held: usize) -> usize {
        (self.limit - self.used).saturating_sub(held) / 2
    }

    /// Less than half is used: windows may grow.
    pub(super) fn is_relaxed(&self) -> bool {
        self.used < self.limit / 2
    }

    /// Gives up the buffers that are kept.
    pub(super) fn forget_spares(&mut self) {
        self.spares.clear();
    }

    fn take_back(&mut self, mut buffer: Box<Buffer>) {
        if self.spares.len() < SPARES && buffer.bytes.capacity() <= SPARE_LEN {
            buffer.bytes.clear();
            buffer.start = 0;
            self.spares.push(buffer);
        }
    }
}

/// A queue of bytes that lie one behind the other.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Bytes before this one are taken off.
    start: usize,
}

impl Buffer {
    fn append(&mut self, more: &[u8]) {
        let full = self.bytes.len() + more.len() > self.bytes.capacity();
        // What is moved is less than what was taken off since the last move: constant cost a byte.
        if full && self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(more);
    }

    /// Takes off `n` bytes of more.
    fn consume(&mut self, n: usize) {
        self.start += n;
        let (left, capacity) = (self.bytes.len() - self.start, self.bytes.capacity());
        let slack = if capacity > SPARE_LEN { 2 } else { SLACK };
        // As above; and before it shrinks again half of this is taken off, or as much appended.
        if self.start > left && capacity > LEAST_LEN.max(slack * left) {
            self.bytes.drain(..self.start);
            self.start = 0;
            self.bytes.shrink_to(LEAST_LEN.max(2 * left));
        }
    }
}

/// A flow's stash.
#[derive(Debug, Default)]
pub(super) struct Stash(Option<Box<Buffer>>);

impl Stash {
    /// Puts as many of `bytes` behind what is there as the budget has room for; returns how many.
    pub(super) fn append(&mut self, bytes: &[u8], budget: &mut StashBudget) -> usize {
        let kept = bytes.len().min(budget.room(self.len()));
        if kept > 0 {
            budget.used += kept;
            let buffer = &mut self.0;
            let buffer = buffer.get_or_insert_with(|| budget.spares.pop().unwrap_or_default());
            buffer.append(&bytes[..kept]);
        }
        kept
    }

    /// Takes `n` bytes off the start, or all if there are fewer.
    pub(super) fn consume(&mut self, n: usize, budget: &mut StashBudget) {
        if n < self.len() {
            budget.used -= n;
            if let Some(buffer) = &mut self.0 {
                buffer.consume(n);
            }
        } else {
            budget.used -= self.len();
            if let Some(buffer) = self.0.take() {
                budget.take_back(buffer);
            }
        }
    }
}

impl Deref for Stash {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let buffer = self.0.as_deref();
        buffer.map_or(&[], |b| &b.bytes[b.start..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_queue_that_frees_itself() {
        let mut budget = StashBudget::new(1000);
        let mut stash = Stash::default();
        assert_eq!(stash.append(&[], &mut budget), 0);
        assert!(stash.is_empty() && stash.0.is_none());
        assert_eq!(stash.append(b"ab", &mut budget), 2);
        assert_eq!(stash.append(b"cde", &mut budget), 3);
        stash.consume(3, &mut budget);
        assert_eq!((&*stash, budget.used()), (&b"de"[..], 2));
        stash.consume(2, &mut budget);
        assert!(stash.is_empty() && stash.0.is_none());
        assert_eq!((budget.used(), budget.spares.len()), (0, 1));
    }

    #[test]
    fn what_passes_through_takes_no_more_room_than_what_stands() {
        let mut budget = StashBudget::new(usize::MAX);
        let (mut stash, mut sent, mut got) = (Stash::default(), Vec::new(), Vec::new());
        for n in 0..10_000_u32 {
            sent.extend_from_slice(&n.to_le_bytes());
            stash.append(&n.to_le_bytes(), &mut budget);
            if stash.len() > 100 {
                let take = n as usize % 13 + 1;
                got.extend_from_slice(&stash[..take]);
                stash.consume(take, &mut budget);
            }
        }
        got.extend_from_slice(&stash);
        assert_eq!(got, sent);
        let capacity = stash.0.as_ref().map(|b| b.bytes.capacity());
        assert!(capacity < Some(4 * stash.len() + 400), "{capacity:?}");
    }

    #[test]
    fn what_is_taken_off_gives_its_memory_back() {
        let mut budget = StashBudget::new(usize::MAX);
        let capacity = |stash: &Stash| stash.0.as_ref().map_or(0, |b| b.bytes.capacity());
        for len in [8 << 20, SPARE_LEN, 3 * LEAST_LEN] {
            let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let mut stash = Stash::default();
            stash.append(&bytes, &mut budget);
            stash.consume(len - 1, &mut budget);
            assert_eq!((&*stash, budget.used()), (&bytes[len - 1..], 1));
            assert!(capacity(&stash) <= LEAST_LEN, "{}", capacity(&stash));
            stash.append(&bytes, &mut budget);
            assert!(stash[0] == bytes[len - 1] && stash[1..] == bytes);
            // Bit by bit as well, and few of the bits move anything.
            let mut changes = 0;
            while stash.len() > 100 {
                let before = capacity(&stash);
                stash.consume(100, &mut budget);
                assert_eq!(stash[stash.len() - 1], bytes[len - 1]);
                let slack = if before > SPARE_LEN { 4 } else { 2 * SLACK };
                assert!(capacity(&stash) <= LEAST_LEN.max(slack * stash.len()));
                changes += usize::from(capacity(&stash) != before);
            }
            assert!((1..=12).contains(&changes), "{changes} of {len}");
            stash.consume(usize::MAX, &mut budget);
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn takes_no_more_than_the_budget_leaves_and_lends_few_buffers_again() {
        let mut budget = StashBudget::new(1000);
        let mut stash = Stash::default();
        assert_eq!(stash.append(&[1; 900], &mut budget), 500);
        assert_eq!(stash.append(&[1; 900], &mut budget), 0);
        stash.consume(usize::MAX, &mut budget);
        let mut budget = StashBudget::new(usize::MAX);
        let mut stashes: Vec<_> = (0..SPARES + 2).map(|_| Stash::default()).collect();
        for stash in &mut stashes {
            stash.append(b"x", &mut budget);
        }
        for stash in &mut stashes {
            stash.consume(1, &mut budget);
        }
        assert_eq!(budget.spares.len(), SPARES);
        stashes[0].append(&vec![1; SPARE_LEN + 1], &mut budget);
        assert_eq!(budget.spares.len(), SPARES - 1);
        stashes[0].consume(SPARE_LEN + 1, &mut budget);
        assert_eq!(budget.spares.len(), SPARES - 1, "too large to be kept");
        budget.forget_spares();
        assert!(stashes[0].append(b"new", &mut budget) == 3 && *stashes[0] == *b"new");
    }
}
