//! When to poll on instead of going to sleep.
//!
//! To be woken costs a good part of a short round trip. So after an event the worker polls
//! for a short *spell* without sleeping. That is worth its processor time only if the next event comes
//! within the spell: each spell in vain doubles the number of events after which there is none (up to
//! [`MAX_REST`]), and one that pays ends the rest. An idle worker sleeps.
//!
//! Nor does polling pay where other threads want the processor: the scheduler takes it away from a
//! thread that does not sleep, and gives it at once to one that was asleep. A poll that took longer than
//! [`PREEMPTED`] tells that this happened, and the longest rest follows.

use cnet_wire::time::{Duration, Instant};

/// Events without polling after many spells in vain.
const MAX_REST: u32 = 256;

/// Longer than any poll takes, unless another thread had the processor meanwhile.
const PREEMPTED: Duration = Duration::from_micros(30);

/// Decides between polling and sleeping.
#[derive(Debug)]
pub(super) struct BusyPoll {
    spell: Duration,
    /// Polling goes on until then.
    until: Option<Instant>,
    /// The end of the last poll that found nothing.
    last_poll: Option<Instant>,
    /// Events to pass before the next spell.
    rest: u32,
    /// How many the next rest will be.
    next_rest: u32,
}

impl BusyPoll {
    /// Polls for `spell` at a time; never if it is zero.
    pub(super) fn new(spell: Duration) -> BusyPoll {
        BusyPoll {
            spell,
            until: None,
            last_poll: None,
            rest: 0,
            next_rest: 1,
        }
    }

    /// Whether the next wait is to be none.
    pub(super) fn is_on(&self) -> bool {
        self.until.is_some()
    }

    /// A wait is over, with or without events.
    pub(super) fn waited(&mut self, now: Instant, events: bool) {
        let empty_poll = (self.is_on() && !events).then_some(now);
        let last_poll = std::mem::replace(&mut self.last_poll, empty_poll);
        let preempted = |last: Instant| now.saturating_since(last) > PREEMPTED;
        if empty_poll.is_some() && last_poll.is_some_and(preempted) {
            self.until = None;
            self.rest = MAX_REST;
            return;
        }
        match (self.until, events) {
            (Some(until), false) if now >= until => {
                self.until = None;
                self.rest = self.next_rest;
                self.next_rest = (self.next_rest * 2).min(MAX_REST);
            }
            (_, false) => {}
            (Some(_), true) => {
                self.next_rest = 1;
                self.until = Some(now + self.spell);
            }
            (None, true) if self.spell.is_zero() => {}
            (None, true) if self.rest > 0 => self.rest -= 1,
            (None, true) => self.until = Some(now + self.spell),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPELL: Duration = Duration::from_micros(50);

    #[test]
    fn polls_on_while_events_come_and_then_sleeps() {
        let mut busy_poll = BusyPoll::new(SPELL);
        assert!(!busy_poll.is_on());
        let mut t = Instant::from_millis(1);
        for _ in 0..5 {
            busy_poll.waited(t, true);
            assert!(busy_poll.is_on());
            t += SPELL / 2;
        }
        t += SPELL / 2;
        busy_poll.waited(t, false);
        assert!(!busy_poll.is_on(), "the spell is over at its end");
    }

    #[test]
    fn rests_when_another_thread_had_the_processor() {
        let mut busy_poll = BusyPoll::new(SPELL);
        let mut t = Instant::from_millis(1);
        busy_poll.waited(t, true);
        t += Duration::from_micros(1);
        busy_poll.waited(t, false);
        assert!(busy_poll.is_on());
        t += PREEMPTED + Duration::from_micros(1);
        busy_poll.waited(t, false);
        assert!(!busy_poll.is_on());
        for _ in 0..MAX_REST {
            t += Duration::from_micros(1);
            busy_poll.waited(t, true);
            assert!(!busy_poll.is_on());
        }
        busy_poll.waited(t, true);
        assert!(busy_poll.is_on());
    }

    #[test]
    fn rests_longer_after_each_spell_in_vain() {
        let mut busy_poll = BusyPoll::new(SPELL);
        let mut t = Instant::from_millis(1);
        let mut spells = 0;
        for _ in 0..10_000 {
            busy_poll.waited(t, true);
            if busy_poll.is_on() {
                spells += 1;
                t += SPELL;
                busy_poll.waited(t, false);
            }
            t += Duration::from_millis(1);
        }
        assert!(spells < 10_000 / 200, "{spells}");
        assert!(spells > 10_000 / 300, "{spells}");
    }

    #[test]
    fn never_without_a_spell() {
        let mut busy_poll = BusyPoll::new(Duration::ZERO);
        busy_poll.waited(Instant::from_millis(1), true);
        assert!(!busy_poll.is_on());
    }
}
