//! Bytes that were acknowledged to a container and that the host's socket has not taken yet, and
//! the budget that the unsent buffers of all flows share.
//!
//! Few flows have unsent bytes at a time. So a flow holds one pointer, and an empty buffer holds no
//! memory: its allocation goes back to the budget, which keeps a few for the next flow whose socket is
//! full. An upload to a slow network stops and resumes often, and must not call the allocator each time.
//!
//! The budget counts bytes and not memory. So an allocation may not be much larger than the bytes in
//! it: one from which most bytes were taken is shrunk ([`SLACK`]). Otherwise a far end that takes all
//! but one byte of each buffer would fill the memory and leave the budget unused.

use std::ops::Deref;

/// Buffers kept.
const SPARES: usize = 4;
/// Largest capacity of a buffer that is kept, in bytes: what is in flight when a socket of ordinary
/// speed stops.
const SPARE_LEN: usize = 256 * 1024;
/// A buffer of up to [`SPARE_LEN`] bytes has at most this many times the capacity of what it holds:
/// generous, as it will likely be filled again soon. For a larger one the factor is 2.
const SLACK: usize = 16;
/// Capacity in bytes that a buffer may always have: less than the kernel needs for the flow's socket.
const LEAST_LEN: usize = 4096;

/// The bytes that all unsent buffers of an engine share. A flow may hold as many as are still free (the dynamic
/// threshold of shared-memory switches: Choudhury and Hahne, 1998): however many flows are stalled,
/// something is left for the next, and a single one cannot take it all.
#[derive(Debug)]
pub(super) struct UnsentBudget {
    limit: usize,
    used: usize,
    #[expect(clippy::vec_box, reason = "the box itself goes to the flow and back")]
    spares: Vec<Box<Buffer>>,
}

impl UnsentBudget {
    /// A budget of `limit` bytes.
    pub(super) fn new(limit: usize) -> UnsentBudget {
        UnsentBudget {
            limit,
            used: 0,
            spares: Vec::with_capacity(SPARES),
        }
    }

    /// Bytes in all unsent buffers.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// All unsent buffers together have so many bytes.
    pub(super) fn recount(&mut self, used: usize) {
        self.used = used;
    }

    /// What a flow that holds `held` bytes may still take.
    pub(super) fn room(&self, held: usize) -> usize {
        (self.limit - self.used).saturating_sub(held) / 2
    }

    /// Less than half of the budget is used: receive windows may grow.
    pub(super) fn is_relaxed(&self) -> bool {
        self.used < self.limit / 2
    }

    /// Frees the buffers that are kept.
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

/// The unsent bytes of one flow.
#[derive(Debug, Default)]
pub(super) struct Unsent(Option<Box<Buffer>>);

impl Unsent {
    /// Appends as many of `bytes` as the budget has room for; returns how many.
    pub(super) fn append(&mut self, bytes: &[u8], budget: &mut UnsentBudget) -> usize {
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
    pub(super) fn consume(&mut self, n: usize, budget: &mut UnsentBudget) {
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

impl Deref for Unsent {
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
        let mut budget = UnsentBudget::new(1000);
        let mut unsent = Unsent::default();
        assert_eq!(unsent.append(&[], &mut budget), 0);
        assert!(unsent.is_empty() && unsent.0.is_none());
        assert_eq!(unsent.append(b"ab", &mut budget), 2);
        assert_eq!(unsent.append(b"cde", &mut budget), 3);
        unsent.consume(3, &mut budget);
        assert_eq!((&*unsent, budget.used()), (&b"de"[..], 2));
        unsent.consume(2, &mut budget);
        assert!(unsent.is_empty() && unsent.0.is_none());
        assert_eq!((budget.used(), budget.spares.len()), (0, 1));
    }

    #[test]
    fn what_passes_through_takes_no_more_room_than_what_stands() {
        let mut budget = UnsentBudget::new(usize::MAX);
        let (mut unsent, mut sent, mut got) = (Unsent::default(), Vec::new(), Vec::new());
        for n in 0..10_000_u32 {
            sent.extend_from_slice(&n.to_le_bytes());
            unsent.append(&n.to_le_bytes(), &mut budget);
            if unsent.len() > 100 {
                let take = n as usize % 13 + 1;
                got.extend_from_slice(&unsent[..take]);
                unsent.consume(take, &mut budget);
            }
        }
        got.extend_from_slice(&unsent);
        assert_eq!(got, sent);
        let capacity = unsent.0.as_ref().map(|b| b.bytes.capacity());
        assert!(capacity < Some(4 * unsent.len() + 400), "{capacity:?}");
    }

    #[test]
    fn what_is_taken_off_gives_its_memory_back() {
        let mut budget = UnsentBudget::new(usize::MAX);
        let capacity = |unsent: &Unsent| unsent.0.as_ref().map_or(0, |b| b.bytes.capacity());
        for len in [8 << 20, SPARE_LEN, 3 * LEAST_LEN] {
            let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let mut unsent = Unsent::default();
            unsent.append(&bytes, &mut budget);
            unsent.consume(len - 1, &mut budget);
            assert_eq!((&*unsent, budget.used()), (&bytes[len - 1..], 1));
            assert!(capacity(&unsent) <= LEAST_LEN, "{}", capacity(&unsent));
            unsent.append(&bytes, &mut budget);
            assert!(unsent[0] == bytes[len - 1] && unsent[1..] == bytes);
            // Bit by bit as well, and few of the bits move anything.
            let mut changes = 0;
            while unsent.len() > 100 {
                let before = capacity(&unsent);
                unsent.consume(100, &mut budget);
                assert_eq!(unsent[unsent.len() - 1], bytes[len - 1]);
                let slack = if before > SPARE_LEN { 4 } else { 2 * SLACK };
                assert!(capacity(&unsent) <= LEAST_LEN.max(slack * unsent.len()));
                changes += usize::from(capacity(&unsent) != before);
            }
            assert!((1..=12).contains(&changes), "{changes} of {len}");
            unsent.consume(usize::MAX, &mut budget);
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn takes_no_more_than_the_budget_leaves_and_lends_few_buffers_again() {
        let mut budget = UnsentBudget::new(1000);
        let mut unsent = Unsent::default();
        assert_eq!(unsent.append(&[1; 900], &mut budget), 500);
        assert_eq!(unsent.append(&[1; 900], &mut budget), 0);
        unsent.consume(usize::MAX, &mut budget);
        let mut budget = UnsentBudget::new(usize::MAX);
        let mut buffers: Vec<_> = (0..SPARES + 2).map(|_| Unsent::default()).collect();
        for unsent in &mut buffers {
            unsent.append(b"x", &mut budget);
        }
        for unsent in &mut buffers {
            unsent.consume(1, &mut budget);
        }
        assert_eq!(budget.spares.len(), SPARES);
        buffers[0].append(&vec![1; SPARE_LEN + 1], &mut budget);
        assert_eq!(budget.spares.len(), SPARES - 1);
        buffers[0].consume(SPARE_LEN + 1, &mut budget);
        assert_eq!(budget.spares.len(), SPARES - 1, "too large to be kept");
        budget.forget_spares();
        assert!(buffers[0].append(b"new", &mut budget) == 3 && *buffers[0] == *b"new");
    }
}
