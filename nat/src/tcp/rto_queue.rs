//! Retransmission deadlines of flows that wait for the shortest timeout, in order.
//!
//! Nearly every flow that sends to its container waits for the acknowledgement equally long: the
//! shortest timeout ([`super::rto`]), because the TAP has no delay. Deadlines that are all equally far
//! away arise in order, so they are kept in a queue rather than in the timer wheel. Setting one touches
//! the queue's end and no other flow's memory, and the wheel keeps the flow's distant deadline.
//!
//! A flow has at most one entry. Every later deadline of the flow, except the wait for a full port,
//! comes no sooner than its entry, and the entry then updates the wheel. Entries are removed only at
//! the front. An entry whose flow was acknowledged or has ended wakes the engine once for nothing, and
//! so may one whose slot belongs to another flow by then.
//!
//! When many flows fall silent, nearly all entries wake for nothing, each at its own time. So the queue
//! asks to be woken only at whole multiples of [`GRAIN`], for everything that is due by then. A
//! retransmission is late by no more than an ordinary kernel's timer.

use std::collections::VecDeque;

use cnet_wire::time::Instant;

/// Nanoseconds from one time at which the queue may wake to the next: 8 ms, beside the 200 ms that
/// every entry waits at least.
const GRAIN: u64 = 8_000_000;
/// Entries that an empty queue keeps room for.
const KEPT: usize = 1024;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct RtoQueue {
    queue: VecDeque<(Instant, u32)>,
}

impl RtoQueue {
    /// Wakes the flow in `slot` at `at`; `false` if `at` is before the last entry.
    pub(super) fn push(&mut self, at: Instant, slot: u32) -> bool {
        let in_order = self.queue.back().is_none_or(|last| last.0 <= at);
        if in_order {
            self.queue.push_back((at, slot));
        }
        in_order
    }

    /// When [`RtoQueue::expire`] wants to be called.
    pub(super) fn next(&self) -> Option<Instant> {
        let first = self.queue.front()?.0.as_nanos();
        let wake = first.div_ceil(GRAIN).saturating_mul(GRAIN);
        Some(Instant::from_nanos(wake))
    }

    /// Removes one slot whose deadline has passed. Call until `None`.
    pub(super) fn expire(&mut self, now: Instant) -> Option<u32> {
        if self.queue.front().is_some_and(|first| first.0 <= now) {
            return self.queue.pop_front().map(|first| first.1);
        }
        if self.queue.is_empty() {
            self.clear();
        }
        None
    }

    /// Removes all entries and frees the memory that many flows needed.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        if self.queue.capacity() > KEPT {
            self.queue = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn keeps_order_and_leaves_the_rest_to_the_wheel() {
        let mut r = RtoQueue::default();
        assert!(r.push(at(5), 1) && r.push(at(5), 2) && r.push(at(7), 3));
        assert!(!r.push(at(6), 4));
        assert_eq!((r.next(), r.expire(at(4))), (Some(at(8)), None));
        assert_eq!([r.expire(at(6)), r.expire(at(6))], [Some(1), Some(2)]);
        assert_eq!((r.expire(at(6)), r.next()), (None, Some(at(8))));
        assert_eq!(r.expire(at(9)), Some(3));
        assert!(r.push(at(6), 4));
    }

    #[test]
    fn a_crowd_that_falls_silent_wakes_a_few_times() {
        let mut r = RtoQueue::default();
        // 200 ms of traffic, a flow every 10 µs.
        (0..20_000).for_each(|n| assert!(r.push(Instant::from_nanos(u64::from(n) * 10_000), n)));
        let (mut wakes, mut woken) = (0, 0);
        while let Some(now) = r.next() {
            wakes += 1;
            woken += std::iter::from_fn(|| r.expire(now)).count();
        }
        assert_eq!(woken, 20_000);
        assert!(wakes <= 26, "{wakes}");
    }

    #[test]
    fn gives_back_what_a_crowd_took() {
        let mut r = RtoQueue::default();
        (0..10_000).for_each(|slot| assert!(r.push(at(1), slot)));
        while r.expire(at(1)).is_some() {}
        assert_eq!(r.queue.capacity(), 0);
    }
}
