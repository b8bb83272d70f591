//! Congestion control towards the container.
//!
//! The TAP is a wire of no delay, so a loss means that a queue was full: the congestion window is
//! halved and never collapses. One hole at a time is repaired (NewReno, RFC 6582). A timeout goes back
//! to the first unacknowledged byte.

use cnet_wire::tcp::Seq;

/// Congestion window at the start, in bytes, and its upper bound. Only the container's receive window
/// limits what may be in flight until the first loss tells of a full queue.
const INITIAL_WINDOW: u32 = 16 * 1024 * 1024;
/// The congestion window never falls below this many bytes.
const MIN_WINDOW: u32 = 128 * 1024;
/// Duplicate ACKs that mean a loss (RFC 5681).
const DUP_ACK_THRESHOLD: u8 = 3;
/// Segments by which the window grows in the time of one window: the way is short, and the queue that
/// overflowed is emptied in microseconds.
const INCREASE: u64 = 16;

/// The congestion state of one flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Congestion {
    /// Congestion window in bytes.
    window: u32,
    /// Slow start ends at this window, in bytes.
    threshold: u32,
    /// A loss is being repaired.
    recovering: bool,
    dup_acks: u8,
    /// That ends when everything sent before this is acknowledged.
    recover: Seq,
}

impl Default for Congestion {
    fn default() -> Self {
        Congestion {
            window: INITIAL_WINDOW,
            threshold: INITIAL_WINDOW,
            recovering: false,
            dup_acks: 0,
            recover: Seq(0),
        }
    }
}

impl Congestion {
    /// Bytes that may be in flight.
    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// Whether a loss is being repaired.
    #[cfg(test)]
    pub(super) fn is_recovering(&self) -> bool {
        self.recovering
    }

    /// A duplicate ACK came for `una` while `max` was the highest byte sent. Returns whether it means
    /// a new loss: the hole at `una` is to be repaired.
    pub(super) fn on_duplicate_ack(&mut self, una: Seq, max: Seq) -> bool {
        self.dup_acks = self.dup_acks.saturating_add(1);
        let lost = self.dup_acks == DUP_ACK_THRESHOLD && !self.recovering;
        if lost {
            self.on_loss(una, max);
        }
        lost
    }

    /// No ACK came in time for `una`.
    pub(super) fn on_timeout(&mut self, una: Seq, max: Seq) {
        self.dup_acks = 0;
        self.on_loss(una, max);
    }

    fn on_loss(&mut self, una: Seq, max: Seq) {
        self.recover = max;
        self.recovering = true;
        let flight = max.bytes_since(una) as u32;
        self.threshold = (flight / 2).max(MIN_WINDOW);
        self.window = self.threshold;
    }

    /// `acked` bytes up to `una` were newly acknowledged. Returns whether another hole starts at `una`
    /// (a partial ACK, RFC 6582).
    pub(super) fn on_new_ack(&mut self, una: Seq, acked: u32, mss: u16) -> bool {
        self.dup_acks = 0;
        if self.recovering {
            self.recovering = una.before(self.recover);
            return self.recovering;
        }
        if self.window < self.threshold {
            self.grow(acked);
        } else {
            let window = u64::from(self.window.max(1));
            self.grow((u64::from(acked) * u64::from(mss) * INCREASE / window) as u32);
        }
        false
    }

    fn grow(&mut self, bytes: u32) {
        self.window = self.window.saturating_add(bytes).min(INITIAL_WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_halves_the_window_and_a_partial_ack_asks_for_the_next_hole() {
        let (una, max) = (Seq(0), Seq(1 << 20));
        let mut c = Congestion::default();
        assert_eq!(c.window(), INITIAL_WINDOW);
        assert!(!c.on_duplicate_ack(una, max) && !c.on_duplicate_ack(una, max));
        assert!(c.on_duplicate_ack(una, max), "the third");
        assert!(!c.on_duplicate_ack(una, max), "one loss at a time");
        assert_eq!((c.window(), c.is_recovering()), (1 << 19, true));
        assert!(c.on_new_ack(Seq(1000), 1000, 1460));
        assert!(!c.on_new_ack(max, 1000, 1460));
        assert_eq!((c.window(), c.is_recovering()), (1 << 19, false));
    }

    #[test]
    fn the_window_stays_within_its_bounds() {
        let mut c = Congestion::default();
        c.on_timeout(Seq(0), Seq(10));
        assert_eq!(c.window(), MIN_WINDOW);
        assert!(!c.on_new_ack(Seq(10), 10, 1460));
        // Sixteen segments for each window that is acknowledged.
        assert!(!c.on_new_ack(Seq(20), MIN_WINDOW, 1000));
        assert_eq!(c.window(), MIN_WINDOW + 16_000);
        for _ in 0..10_000 {
            c.on_new_ack(Seq(30), INITIAL_WINDOW, 1460);
        }
        assert_eq!(c.window(), INITIAL_WINDOW);
    }
}
