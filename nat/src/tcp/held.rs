//! What a flow has received and does not acknowledge yet, and when it looks whether it may
//! ([`acknowledge`](super::acknowledge)).

use cnet_wire::tcp::Seq;
use cnet_wire::time::{Duration, Instant};

/// No time that comes.
pub(super) const NEVER: Instant = Instant::from_nanos(u64::MAX);
/// The bit of [`Held::looks`] that stands for a keepalive probe.
const PROBE: u8 = 0x80;
/// The first look at what is held back; a flow that finds nothing doubles it.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// Doublings of [`FIRST_LOOK`] that a flow whose answers come early learns, and those of one wait.
const LEARNT_DOUBLINGS: u8 = 4;
const MOST_DOUBLINGS: u8 = 6;

/// What a flow holds back, and when it looks whether it still has to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// The next look, or [`NEVER`].
    at: Instant,
    /// What was acknowledged last.
    pub(super) acked: Seq,
    /// Looks so far, and [`PROBE`] where the answer to a keepalive probe is held back.
    looks: u8,
    /// How late the first look is, in doublings.
    patience: u8,
    /// Bytes of the last segment, or 1 for a FIN: what may be held back.
    pub(super) tail: u16,
}

impl Default for Held {
    fn default() -> Self {
        Held {
            at: NEVER,
            acked: Seq(0),
            looks: 0,
            patience: 0,
            tail: 1,
        }
    }
}

impl Held {
    /// The next look; [`NEVER`] if nothing is held back.
    #[inline]
    pub(super) fn deadline(&self) -> Instant {
        self.at
    }

    /// Whether something is held back.
    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.at != NEVER
    }

    /// All is acknowledged.
    pub(super) fn clear(&mut self) {
        self.at = NEVER;
    }

    /// Something is held back from now on; with `probe` the answer to a keepalive probe.
    pub(super) fn start(&mut self, now: Instant, probe: bool) {
        let doublings = if probe { 0 } else { self.patience };
        self.at = now + FIRST_LOOK * (1 << doublings);
        self.looks = if probe { PROBE } else { 0 };
    }

    /// Whether it is the answer to a keepalive probe.
    pub(super) fn is_probe(&self) -> bool {
        self.looks & PROBE != 0
    }

    /// Nothing has come yet: the next look is later.
    pub(super) fn wait_on(&mut self, now: Instant) {
        let looks = (self.looks & !PROBE).saturating_add(1).min(MOST_DOUBLINGS);
        self.looks = self.looks & PROBE | looks;
        let first = if self.is_probe() { 0 } else { self.patience };
        let doublings = (first + looks).min(MOST_DOUBLINGS);
        self.at = now + FIRST_LOOK * (1 << doublings);
    }

    /// Nobody has looked yet.
    pub(super) fn is_first_look(&self) -> bool {
        self.looks & !PROBE == 0
    }

    /// The far end answers before the first look, which may be later.
    pub(super) fn learn_to_wait(&mut self) {
        self.patience = (self.patience + 1).min(LEARNT_DOUBLINGS);
    }

    /// The first look found the answer, and may be sooner.
    pub(super) fn learn_to_hurry(&mut self) {
        self.patience = self.patience.saturating_sub(1);
    }
}
