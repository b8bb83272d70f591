//! How long answers to DNS queries took: a histogram, counted without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cnet::control::{AnswerTimes, TimeBucket};

/// The longest times of the buckets, in microseconds: answers from memory, of a server near by, of one
/// far away, and those after a server that was silent (a second and more).
const UP_TO: [u64; 11] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
];

/// The histogram. The last count is of those beyond all buckets.
#[derive(Debug, Default)]
pub(super) struct Times {
    micros: AtomicU64,
    counts: [AtomicU64; UP_TO.len() + 1],
}

impl Times {
    /// Counts one answer.
    pub(super) fn keep(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = UP_TO.partition_point(|&up_to| up_to < micros);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub(super) fn report(&self) -> AnswerTimes {
        let count = |n: usize| self.counts[n].load(Ordering::Relaxed);
        let bucket = |(n, &up_to): (usize, &u64)| TimeBucket {
            up_to,
            count: count(n),
        };
        AnswerTimes {
            micros: self.micros.load(Ordering::Relaxed),
            buckets: UP_TO.iter().enumerate().map(bucket).collect(),
            more: count(UP_TO.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_bucket_that_it_fits() {
        let times = Times::default();
        assert!(times.report().is_empty());
        for micros in [0, 500, 501, 5_000_000, 5_000_001] {
            times.keep(Duration::from_micros(micros));
        }
        let report = times.report();
        let counts: Vec<u64> = report.buckets.iter().map(|bucket| bucket.count).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((report.more, report.micros), (1, 10_001_002));
    }
}
