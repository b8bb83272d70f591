//! Deadlines of flows: one a slot, set and cancelled in constant time.

use cnet_vswitch::time::Instant;

/// One deadline for each small integer key (a flow's slot index).
#[derive(Debug)]
pub struct TimerWheel {}

impl TimerWheel {
    /// A wheel that starts at `now`.
    pub fn new(_now: Instant) -> Self {
        TimerWheel {}
    }
    /// Sets the deadline of `key`, replacing an earlier one.
    pub fn set(&mut self, _key: u32, _at: Instant) {}
    /// Removes the deadline of `key`, if there is one.
    pub fn cancel(&mut self, _key: u32) {}
    /// When [`TimerWheel::expire`] wants to be called; `None` without deadlines. Never later than
    /// one tick (1 ms) after the earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        None
    }
    /// Takes out one key whose deadline has passed. Call until `None`.
    pub fn expire(&mut self, _now: Instant) -> Option<u32> {
        None
    }
}
