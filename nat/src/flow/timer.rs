//! Deadlines of flows: one a slot, set and cancelled in constant time.
//!
//! # Theory of operation
//! A hierarchical timing wheel (Varghese and Lauck, 1987, scheme 7). Time is counted in ticks of
//! 1 ms, rounded up for deadlines and down for the present, so a deadline never fires early and at
//! most one tick late. The wheel has [`LEVELS`] levels of 64 slots; a slot of level *n* spans 64^n
//! ticks. A deadline stands on the level of the highest base-64 digit in which it differs from
//! `elapsed`, in the slot of that digit. So every deadline of a lower level comes before every one
//! of a higher level, no slot lies behind `elapsed`, and the earliest deadline is in the first
//! occupied slot of the lowest occupied level: one bitmap look-up.
//!
//! When time enters a slot above level 0, its deadlines are dealt out to lower levels (at most
//! `LEVELS - 1` times in a deadline's life). Time jumps from occupied slot to occupied slot; what
//! lies between costs nothing, be it a day.
//!
//! Each slot keeps a lower bound of its deadlines, so that [`TimerWheel::next`] names the earliest
//! deadline itself and not the slot's beginning. The bound goes stale when that deadline is
//! cancelled; then the wheel wants to be called once, deals the slot out and knows better. An idle
//! wheel is thus never woken periodically.
//!
//! # Invariants
//! - A slot's list is circular and doubly linked through `nodes`, which is indexed by key; its
//!   bitmap bit is set exactly if it has a head.
//! - `elapsed` moves only forward, and never past an occupied slot.
//!
//! # Limits
//! Eight levels reach 2^48 ms, more than an [`Instant`] can say. Memory is 16 bytes for each key up
//! to the highest one used, and is kept.

use cnet_wire::time::Instant;

/// Base-64 digits of a tick number.
const LEVELS: usize = 8;
/// Bits of one digit.
const DIGIT: u32 = 6;
/// Slots of a level.
const SLOTS: usize = 1 << DIGIT;
/// Nanoseconds of a tick.
const TICK: u64 = 1_000_000;
/// No key.
const NONE: u32 = u32::MAX;
/// List number of a key without a deadline.
const UNSET: u64 = 0xffff;

/// A key's links, and its deadline and list in one word.
#[derive(Clone, Copy, Debug)]
struct Node {
    next: u32,
    prev: u32,
    /// Deadline in ticks in the upper 48 bits, list (level times 64 plus slot) in the lower 16.
    when_list: u64,
}

impl Node {
    const IDLE: Node = Node {
        next: NONE,
        prev: NONE,
        when_list: UNSET,
    };

    fn when(self) -> u64 {
        self.when_list >> 16
    }

    /// `None` without a deadline.
    fn list(self) -> Option<usize> {
        let list = self.when_list & 0xffff;
        (list != UNSET).then_some(list as usize)
    }
}

/// One deadline for each small integer key (a flow's slot index).
#[derive(Debug)]
pub struct TimerWheel {
    nodes: Vec<Node>,
    /// First key of each list.
    heads: Box<[u32; LEVELS * SLOTS]>,
    /// No deadline of the list is earlier, in ticks. Meaningful for occupied lists.
    bounds: Box<[u64; LEVELS * SLOTS]>,
    occupied: [u64; LEVELS],
    /// The tick up to which slots were emptied.
    elapsed: u64,
    /// The present, as last heard.
    now: Instant,
}

/// The first tick that is not before `at`.
fn tick_at_or_after(at: Instant) -> u64 {
    at.as_nanos().div_ceil(TICK)
}

impl TimerWheel {
    /// A wheel that starts at `now`.
    pub fn new(now: Instant) -> Self {
        TimerWheel {
            nodes: Vec::new(),
            heads: Box::new([NONE; LEVELS * SLOTS]),
            bounds: Box::new([0; LEVELS * SLOTS]),
            occupied: [0; LEVELS],
            elapsed: now.as_millis(),
            now,
        }
    }

    /// Sets the deadline of `key`, replacing an earlier one. A deadline that is not after the
    /// present [`TimerWheel::expire`] was last told fires at its next call. Keys are dense: memory
    /// grows with the highest.
    pub fn set(&mut self, key: u32, at: Instant) {
        let when = if at <= self.now {
            self.elapsed
        } else {
            tick_at_or_after(at).max(self.elapsed)
        };
        match self.nodes.get(key as usize) {
            Some(node) if node.list().is_some() => {
                if node.when() == when {
                    return;
                }
                self.unlink(key);
            }
            Some(_) => {}
            None => self.nodes.resize(key as usize + 1, Node::IDLE),
        }
        self.link(key, when);
    }

    /// Reads what it takes to set the deadlines of `keys`, ahead of it, so that the waits for memory
    /// pass side by side.
    pub fn prefetch(&self, keys: &[u32]) {
        let node = |key: u32| self.nodes.get(key as usize).copied().unwrap_or(Node::IDLE);
        let mut read = 0;
        for &key in keys {
            read ^= node(key).when_list;
        }
        for &key in keys {
            let Node { next, prev, .. } = node(key);
            read ^= node(next).when_list ^ node(prev).when_list;
        }
        std::hint::black_box(read);
    }

    /// Removes the deadline of `key`, if there is one.
    pub fn cancel(&mut self, key: u32) {
        if self
            .nodes
            .get(key as usize)
            .is_some_and(|n| n.list().is_some())
        {
            self.unlink(key);
        }
    }

    /// When [`TimerWheel::expire`] wants to be called; `None` without deadlines. Never later than
    /// one tick (1 ms) after the earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        let (list, start) = self.first_list()?;
        let tick = self.bounds[list].max(start);
        // A deadline at the end of time is rounded up past it.
        Some(Instant::from_nanos(tick.saturating_mul(TICK)))
    }

    /// Takes out one key whose deadline has passed. Call until `None`.
    pub fn expire(&mut self, now: Instant) -> Option<u32> {
        self.now = self.now.max(now);
        let target = self.now.as_millis();
        while let Some((list, start)) = self.first_list().filter(|&(_, start)| start <= target) {
            self.elapsed = start;
            if list < SLOTS {
                let key = self.heads[list];
                self.unlink(key);
                return Some(key);
            }
            self.deal_out(list);
        }
        self.elapsed = self.elapsed.max(target);
        None
    }

    /// The list of the earliest deadlines and the tick at which its slot begins.
    fn first_list(&self) -> Option<(usize, u64)> {
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        let slot = self.occupied[level].trailing_zeros();
        let shift = DIGIT * level as u32;
        let above = self.elapsed >> (shift + DIGIT) << (shift + DIGIT);
        let start = above | u64::from(slot) << shift;
        Some((level * SLOTS + slot as usize, start))
    }

    /// Moves the keys of a list that `elapsed` has entered to lower levels.
    fn deal_out(&mut self, list: usize) {
        let first = std::mem::replace(&mut self.heads[list], NONE);
        self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
        let mut key = first;
        while key != NONE {
            let node = self.nodes[key as usize];
            self.link(key, node.when());
            key = if node.next == first { NONE } else { node.next };
        }
    }

    /// Enters an unlinked `key` at tick `when`, which is not before `elapsed`.
    fn link(&mut self, key: u32, when: u64) {
        let differing = when ^ self.elapsed;
        let level = (63 - (differing | 1).leading_zeros()) / DIGIT;
        let slot = (when >> (level * DIGIT)) as usize % SLOTS;
        let list = level as usize * SLOTS + slot;
        let head = self.heads[list];
        let (next, prev) = if head == NONE {
            self.heads[list] = key;
            self.bounds[list] = when;
            self.occupied[level as usize] |= 1 << slot;
            (key, key)
        } else {
            self.bounds[list] = self.bounds[list].min(when);
            let tail = std::mem::replace(&mut self.nodes[head as usize].prev, key);
            self.nodes[tail as usize].next = key;
            (head, tail)
        };
        self.nodes[key as usize] = Node {
            next,
            prev,
            when_list: when << 16 | list as u64,
        };
    }

    /// Takes a linked `key` out of its list.
    fn unlink(&mut self, key: u32) {
        let node = std::mem::replace(&mut self.nodes[key as usize], Node::IDLE);
        let Some(list) = node.list() else { return };
        if node.next == key {
            self.heads[list] = NONE;
            self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
            return;
        }
        self.nodes[node.next as usize].prev = node.prev;
        self.nodes[node.prev as usize].next = node.next;
        if self.heads[list] == key {
            self.heads[list] = node.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnet_wire::time::Duration;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const DAY: u64 = 86_400_000 * TICK;

    #[derive(Clone, Debug)]
    enum Op {
        Set(u32, i64),
        Cancel(u32),
        Advance(u64),
        AdvanceToNext,
    }

    /// Nanoseconds of very different sizes.
    fn span() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..3 * TICK,
            0..200 * TICK,
            0..10_000 * TICK,
            0..5 * DAY,
            0..400 * DAY,
        ]
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            5 => (0u32..40, span()).prop_map(|(k, d)| Op::Set(k, d as i64)),
            1 => (0u32..40, 0..DAY).prop_map(|(k, d)| Op::Set(k, -(d as i64))),
            2 => (0u32..40).prop_map(Op::Cancel),
            2 => span().prop_map(Op::Advance),
            3 => Just(Op::AdvanceToNext),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn behaves_as_a_sorted_map(
            start in prop_oneof![0..10 * DAY, any::<u64>().prop_map(|t| t / 2)],
            ops in proptest::collection::vec(op(), 0..200),
        ) {
            let mut now = start;
            let mut wheel = TimerWheel::new(Instant::from_nanos(now));
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Set(k, d) => {
                        let at = now.saturating_add_signed(d);
                        wheel.set(k, Instant::from_nanos(at));
                        model.insert(k, at);
                    }
                    Op::Cancel(k) => {
                        wheel.cancel(k);
                        model.remove(&k);
                    }
                    Op::Advance(d) => now += d,
                    Op::AdvanceToNext => {
                        if let Some(next) = wheel.next() {
                            now = now.max(next.as_nanos());
                        }
                    }
                }
                match model.values().min() {
                    None => prop_assert_eq!(wheel.next(), None),
                    Some(&first) => {
                        let next = wheel.next().unwrap().as_nanos();
                        prop_assert!(next < first.max(now) + TICK);
                    }
                }
                let mut fired = BTreeSet::new();
                while let Some(k) = wheel.expire(Instant::from_nanos(now)) {
                    let at = model.remove(&k);
                    prop_assert!(at.is_some_and(|at| at <= now), "{k} at {at:?} fired at {now}");
                    prop_assert!(fired.insert(k));
                }
                for (k, &at) in &model {
                    prop_assert!(at + TICK > now, "{k} at {at} missed at {now}");
                }
                // Nothing is due any more, so the next call is in the future.
                prop_assert!(wheel.next().is_none_or(|n| n.as_nanos() > now));
            }
        }
    }

    #[test]
    fn expires_in_order_of_ticks() {
        let mut wheel = TimerWheel::new(Instant::ZERO);
        for k in 0..5000u32 {
            let ms = u64::from(k.wrapping_mul(2_654_435_761)) % 9_000_000;
            wheel.set(k, Instant::from_millis(ms));
        }
        let now = Instant::from_millis(10_000_000);
        let mut last = 0;
        for _ in 0..5000 {
            let k = wheel.expire(now).unwrap();
            let ms = u64::from(k.wrapping_mul(2_654_435_761)) % 9_000_000;
            assert!(ms >= last);
            last = ms;
        }
        assert_eq!((wheel.expire(now), wheel.next()), (None, None));
    }

    #[test]
    fn next_is_exact_and_idle_deadlines_do_not_wake() {
        let mut wheel = TimerWheel::new(Instant::from_millis(12_345));
        let hours = Duration::from_secs(2 * 3600);
        for k in 0..100_000u32 {
            let at = Instant::from_millis(12_345 + u64::from(k)) + hours;
            wheel.set(k, at);
        }
        let first = Instant::from_millis(12_345) + hours;
        assert_eq!(wheel.next(), Some(first));
        assert_eq!(wheel.expire(first), Some(0));
        // Refreshing every deadline, as traffic does, leaves a stale bound; it costs at most one
        // call a level until the wheel knows the new earliest deadline.
        let mut wakes = 0;
        for k in 1..100_000u32 {
            wheel.set(k, first + hours);
        }
        while let Some(next) = wheel.next().filter(|&n| n < first + hours) {
            assert_eq!(wheel.expire(next), None);
            wakes += 1;
        }
        assert!(wakes <= LEVELS, "{wakes}");
        assert_eq!(wheel.next(), Some(first + hours));
    }

    #[test]
    fn a_jump_of_days_fires_what_is_due_and_nothing_else() {
        let mut wheel = TimerWheel::new(Instant::ZERO);
        wheel.set(1, Instant::from_nanos(3 * DAY));
        wheel.set(2, Instant::from_millis(200));
        wheel.set(3, Instant::from_nanos(u64::MAX));
        let later = Instant::from_nanos(2 * DAY);
        assert_eq!(wheel.expire(later), Some(2));
        assert_eq!(wheel.expire(later), None);
        assert_eq!(wheel.next(), Some(Instant::from_nanos(3 * DAY)));
        // Backwards is ignored.
        assert_eq!(wheel.expire(Instant::ZERO), None);
        wheel.set(4, Instant::from_nanos(DAY));
        assert_eq!(wheel.expire(later), Some(4));
    }

    #[test]
    fn a_deadline_of_now_fires_now() {
        let mut wheel = TimerWheel::new(Instant::ZERO);
        let now = Instant::from_nanos(5 * TICK + 300_000);
        assert_eq!(wheel.expire(now), None);
        wheel.set(7, now);
        assert!(wheel.next().is_some_and(|n| n <= now));
        assert_eq!(wheel.expire(now), Some(7));
        // Half a tick later waits for the tick, and is not early.
        let at = now + Duration::from_micros(100);
        wheel.set(7, at);
        assert_eq!(wheel.expire(now), None);
        assert_eq!(wheel.next(), Some(Instant::from_millis(6)));
    }
}
