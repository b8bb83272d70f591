//! The retransmission timeout (RFC 6298), with a floor that suits a wire of no delay.

use cnet_wire::time::{Duration, Instant};

use cnet_wire::tcp::Seq;

/// Shortest timeout; the same as Linux's TCP_RTO_MIN.
const MIN_RTO: Duration = Duration::from_millis(200);
/// Longest timeout (RFC 6298, section 2.5).
const MAX_RTO: Duration = Duration::from_secs(60);

/// Smoothed round-trip time and what follows from it.
#[derive(Clone, Copy, Debug, Default)]
pub struct RttEstimator {
    /// Microseconds; zero before the first sample.
    srtt: u32,
    rttvar: u32,
    /// The byte being timed. One at a time, never a repeated one (Karn).
    timed: Option<Seq>,
    /// When it left.
    sent: Instant,
}

impl RttEstimator {
    /// `seq` leaves now; time it unless another one is being timed.
    pub fn start(&mut self, seq: Seq, now: Instant) {
        if self.timed.is_none() {
            self.timed = Some(seq);
            self.sent = now;
        }
    }

    /// A loss: what is being timed may be acknowledged by a repetition.
    pub fn spoil(&mut self) {
        self.timed = None;
    }

    /// Everything before `una` is acknowledged.
    pub fn acked(&mut self, una: Seq, now: Instant) {
        let Some(seq) = self.timed else {
            return;
        };
        if !una.after(seq) {
            return;
        }
        self.timed = None;
        let r = u32::try_from((now - self.sent).as_micros())
            .unwrap_or(u32::MAX / 8)
            .clamp(1, u32::MAX / 8);
        if self.srtt == 0 {
            self.srtt = r;
            self.rttvar = r / 2;
        } else {
            self.rttvar = (3 * (self.rttvar / 4)).saturating_add(self.srtt.abs_diff(r) / 4);
            self.srtt = (7 * (self.srtt / 8)).saturating_add(r / 8).max(1);
        }
    }

    /// The timeout for a first transmission.
    pub fn rto(&self) -> Duration {
        let micros = u64::from(self.srtt) + 4 * u64::from(self.rttvar);
        Duration::from_micros(micros).clamp(MIN_RTO, MAX_RTO)
    }

    /// Whether the timeout is the shortest there is.
    pub fn is_shortest(&self) -> bool {
        self.rto() == MIN_RTO
    }

    /// The timeout after `tries` repetitions.
    pub fn backed_off(&self, tries: u8) -> Duration {
        (self.rto() * (1 << tries.min(16))).min(MAX_RTO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_rfc_6298_between_its_bounds() {
        let mut r = RttEstimator::default();
        assert_eq!(r.rto(), MIN_RTO);
        r.start(Seq(1), Instant::ZERO);
        r.start(Seq(9), Instant::from_millis(100));
        r.acked(Seq(1), Instant::from_millis(400));
        assert_eq!(
            r.rto(),
            MIN_RTO,
            "the timed byte itself is not acknowledged yet"
        );
        r.acked(Seq(2), Instant::from_millis(400));
        assert_eq!(r.rto(), Duration::from_millis(400 + 4 * 200));
        assert_eq!(r.backed_off(1), 2 * r.rto());
        assert_eq!(r.backed_off(200), MAX_RTO);
        r.start(Seq(10), Instant::from_millis(500));
        r.spoil();
        r.acked(Seq(11), Instant::from_millis(9000));
        assert_eq!(r.rto(), Duration::from_millis(1200));
    }
}
