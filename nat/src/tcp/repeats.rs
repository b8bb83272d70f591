//! Deadlines of first retransmissions, in their order.
//!
//! Nearly every flow that sends to its container waits equally long for the acknowledgement: the
//! shortest timeout ([`super::rtt`]), because the way is short. Deadlines that are all as far away
//! come in their order, so they stand in a queue rather than in the timer wheel: to set one touches
//! the queue's end and no other flow's memory, and the wheel keeps the flow's distant deadline as it
//! is.
//!
//! A flow is listed once at a time. Whatever it waits for after that, but for a full port, comes no
//! sooner than its entry, which then brings the wheel up to date. Nothing is taken out but at the
//! front: an entry whose flow was answered, or is gone, wakes for nothing, once; so may one whose
//! slot is another flow's by then.
//!
//! When many flows fall silent, nearly all entries wake for nothing, each at a time of its own. So the
//! queue asks to be woken only at whole multiples of [`GRAIN`], for all that is due by then: a
//! repetition is late by no more than a timer of an ordinary kernel makes it.

use std::collections::VecDeque;

use cnet_wire::time::Instant;

/// Nanoseconds from one time at which the queue may wake to the next: 8 ms, beside the 200 ms that
/// every entry waits at least.
const GRAIN: u64 = 8_000_000;
/// Entries that an empty queue keeps room for.
const KEPT: usize = 1024;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    queue: VecDeque<(Instant, u32)>,
}

impl Repeats {
    /// Has the flow in `slot` woken at `at`; `false` if that is out of order.
    pub(super) fn push(&mut self, at: Instant, slot: u32) -> bool {
        let in_order = self.queue.back().is_none_or(|last| last.0 <= at);
        if in_order {
            self.queue.push_back((at, slot));
        }
        in_order
    }

    /// When [`Repeats::expire`] wants to be called.
    pub(super) fn next(&self) -> Option<Instant> {
        let first = self.queue.front()?.0.as_nanos();
        let wake = first.div_ceil(GRAIN).saturating_mul(GRAIN);
        Some(Instant::from_nanos(wake))
    }

    /// Takes out one slot whose time has come. Call until `None`.
    pub(super) fn expire(&mut self, now: Instant) -> Option<u32> {
        if self.queue.front().is_some_and(|first| first.0 <= now) {
            return self.queue.pop_front().map(|first| first.1);
        }
        if self.queue.is_empty() {
            self.clear();
        }
        None
    }

    /// Forgets all; gives back what a crowd of flows took.
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
        let mut r = Repeats::default();
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
        let mut r = Repeats::default();
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
        let mut r = Repeats::default();
        (0..10_000).for_each(|slot| assert!(r.push(at(1), slot)));
        while r.expire(at(1)).is_some() {}
        assert_eq!(r.queue.capacity(), 0);
    }
}
