//! Which mapping of a port gives way when the port is at its limit and opens another.
//!
//! # Theory of operation
//! First go mappings of one exchange (a question and its answer, or none), then those that saw more,
//! if nothing passed for [`LASTING_IDLE`]; of each kind the one idle longest. A port has a heap for
//! each kind, ordered by when its mappings were last used *as far as the heap knows*: traffic does not
//! touch the heaps. What stands at the top is compared with the truth. If it was used since, it goes
//! back with the true time; if it saw more than one exchange since, it goes to the other heap. So what
//! stands at the top with its true time is the one idle longest, and the work of an answer is paid for
//! by packets that passed before.
//!
//! # Limits
//! One answer looks at [`LOOKS`] mappings at most, so that a container that refreshes all its mappings
//! does not hold the others up for longer.
//!
//! # Invariants
//! Every mapping is in one of its port's heaps once. An entry may outlive its mapping; entries are
//! cleared of those each time the heap has doubled.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use cnet_wire::time::{Duration, Instant};

use crate::flow::Handle;

/// Silence after which a mapping of more than one exchange may give way.
const LASTING_IDLE: Duration = Duration::from_secs(30);
/// Mappings looked at for one answer.
const LOOKS: usize = 1024;
/// Length below which a heap is not cleared.
const FLOOR: usize = 64;

/// How a mapping is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Usage {
    /// The last packet, in either direction.
    pub(super) last_used: Instant,
    /// More than one exchange has passed.
    pub(super) lasting: bool,
}

/// The mappings of one port in the order in which they give way.
#[derive(Debug, Default)]
pub(super) struct GiveWay {
    brief: Heap,
    lasting: Heap,
}

/// Mappings by the time of their last use as last heard, the longest idle at the top.
#[derive(Debug, Default)]
struct Heap {
    entries: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// Length at which entries of ended mappings are removed.
    limit: usize,
}

impl Heap {
    fn push(&mut self, last_used: Instant, mapping: Handle) {
        let entry = (last_used, mapping.index, mapping.generation);
        self.entries.push(Reverse(entry));
    }

    fn pop(&mut self) -> Option<(Instant, Handle)> {
        let Reverse((last_used, index, generation)) = self.entries.pop()?;
        Some((last_used, Handle { index, generation }))
    }

    /// Removes entries of ended mappings, if it has doubled since that was done.
    fn clear_ended(&mut self, is_live: impl Fn(Handle) -> bool) {
        if self.entries.len() < self.limit.max(FLOOR) {
            return;
        }
        self.entries
            .retain(|&Reverse((_, index, generation))| is_live(Handle { index, generation }));
        self.limit = 2 * self.entries.len();
    }
}

impl GiveWay {
    /// Enters a mapping that was opened now. `usage` tells of a mapping, `None` if it has ended.
    pub(super) fn enter(
        &mut self,
        now: Instant,
        mapping: Handle,
        usage: impl Fn(Handle) -> Option<Usage>,
    ) {
        for heap in [&mut self.brief, &mut self.lasting] {
            heap.clear_ended(|mapping| usage(mapping).is_some());
        }
        self.brief.push(now, mapping);
    }

    /// Takes out the mapping that is the next to give way, of those that were idle for `least`.
    /// `None` if all are in use.
    pub(super) fn take_next(
        &mut self,
        now: Instant,
        least: Duration,
        usage: impl Fn(Handle) -> Option<Usage>,
    ) -> Option<Handle> {
        let mut looks = 0..LOOKS;
        while let Some((heard, mapping)) = self.brief.pop() {
            let spent = looks.next().is_none();
            if let Some(truth) = usage(mapping) {
                let exact = truth.last_used == heard;
                let idle = now.saturating_since(truth.last_used) >= least;
                if truth.lasting {
                    self.lasting.push(truth.last_used, mapping);
                } else if idle && (exact || spent) {
                    return Some(mapping);
                } else {
                    self.brief.push(truth.last_used, mapping);
                    if exact {
                        break;
                    }
                }
            }
            if spent {
                return None;
            }
        }
        let least = least.max(LASTING_IDLE);
        while let Some((heard, mapping)) = self.lasting.pop() {
            let spent = looks.next().is_none();
            if let Some(truth) = usage(mapping) {
                let exact = truth.last_used == heard;
                if exact && now.saturating_since(truth.last_used) >= least {
                    return Some(mapping);
                }
                self.lasting.push(truth.last_used, mapping);
                if exact {
                    break;
                }
            }
            if spent {
                break;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const NONE: Duration = Duration::ZERO;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(1000 * seconds)
    }

    fn handle(index: u32) -> Handle {
        Handle {
            index,
            generation: 7,
        }
    }

    /// The mappings of one port: when each was used, and whether it is lasting.
    #[derive(Default)]
    struct Port {
        order: GiveWay,
        mappings: BTreeMap<u32, Usage>,
    }

    impl Port {
        fn open(&mut self, now: Instant, index: u32) {
            let usage = Usage {
                last_used: now,
                lasting: false,
            };
            self.mappings.insert(index, usage);
            let mappings = &self.mappings;
            self.order
                .enter(now, handle(index), |h| mappings.get(&h.index).copied());
        }

        fn used(&mut self, now: Instant, index: u32, lasting: bool) {
            let usage = Usage {
                last_used: now,
                lasting,
            };
            self.mappings.insert(index, usage);
        }

        fn next(&mut self, now: Instant, least: Duration) -> Option<u32> {
            let mappings = &self.mappings;
            let next = self
                .order
                .take_next(now, least, |h| mappings.get(&h.index).copied())?;
            self.mappings.remove(&next.index);
            Some(next.index)
        }
    }

    #[test]
    fn exchanges_of_one_question_go_first_and_the_longest_idle_of_them_at_first() {
        let mut port = Port::default();
        (0..5).for_each(|n| port.open(at(n.into()), n));
        port.used(at(10), 0, true);
        port.used(at(11), 1, false);
        assert_eq!(port.next(at(60), NONE), Some(2));
        assert_eq!(port.next(at(60), NONE), Some(3));
        assert_eq!(port.next(at(60), NONE), Some(4));
        assert_eq!(port.next(at(60), Duration::from_secs(51)), None);
        assert_eq!(port.next(at(60), Duration::from_secs(49)), Some(1));
        assert_eq!(port.next(at(60), NONE), Some(0));
        assert_eq!(port.next(at(60), NONE), None);
    }

    #[test]
    fn what_lasts_is_safe_for_half_a_minute_after_its_last_packet() {
        let mut port = Port::default();
        (0..3).for_each(|n| port.open(at(0), n));
        (0..3).for_each(|n| port.used(at(10 + u64::from(n)), n, true));
        assert_eq!(port.next(at(39), NONE), None);
        port.used(at(39), 0, true);
        assert_eq!(port.next(at(40), NONE), None);
        assert_eq!(port.next(at(42), NONE), Some(1));
        assert_eq!(port.next(at(42), NONE), Some(2));
        assert_eq!(port.next(at(68), NONE), None);
        assert_eq!(port.next(at(69), NONE), Some(0));
    }

    #[test]
    fn mappings_that_ended_leave_no_entries_behind() {
        let mut port = Port::default();
        for n in 0..100_000 {
            port.open(at(1), n);
            if n >= 10 {
                port.mappings.remove(&(n - 10));
            }
        }
        let entries = port.order.brief.entries.len();
        assert!(entries <= FLOOR + 20, "{entries}");
    }

    #[test]
    fn one_answer_looks_at_few() {
        let mut port = Port::default();
        let many = 4 * LOOKS as u32;
        (0..many).for_each(|n| port.open(at(1), n));
        (0..many).for_each(|n| port.used(at(2), n, true));
        // Each answer goes on where the last one stopped.
        for _ in 0..3 {
            assert_eq!(port.next(at(100), NONE), None);
        }
        assert!(port.next(at(100), NONE).is_some());
    }
}
