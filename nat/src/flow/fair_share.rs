//! How ports share a table: what one may hold, so that no container takes all.
//!
//! A port may hold as many entries as it was given, and no more than [`FACTOR`] times those that are
//! still free (the dynamic threshold of shared-memory switches: Choudhury and Hahne, 1998). So a
//! port that is alone may use all but a ninth of the table, and however many take what they can,
//! something is left for the next one: `n` greedy ports leave one part of `FACTOR * n + 1`.

/// How many times as many as are free a port may hold.
const FACTOR: usize = 8;

/// The division of one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FairShare {
    /// What one port may hold at most.
    pub each: usize,
    /// What all may hold together.
    pub total: usize,
}

impl FairShare {
    /// Whether a port that holds `held` of the `used` entries may have one more.
    pub fn admits(&self, held: usize, used: usize) -> bool {
        let free = self.total.saturating_sub(used);
        held < self.each && held < free.saturating_mul(FACTOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ports that take what they can, one after another; what each got.
    fn greedy(share: FairShare, ports: usize) -> Vec<usize> {
        let mut held = vec![0; ports];
        let mut used = 0;
        for port in &mut held {
            while share.admits(*port, used) {
                *port += 1;
                used += 1;
            }
        }
        held
    }

    #[test]
    fn something_is_left_for_the_next() {
        let share = |each, total| FairShare { each, total };
        assert_eq!(greedy(share(100, 9_000), 3), [100, 100, 100]);
        assert_eq!(greedy(share(usize::MAX, 9_000), 2), [8_000, 889]);
        let many = greedy(share(usize::MAX, 1 << 20), 5);
        assert!(many.iter().all(|&n| n > 10), "{many:?}");
        // A table too small to be divided is used in full.
        assert_eq!(greedy(share(usize::MAX, 3), 2), [3, 0]);
        assert_eq!(greedy(share(0, 3), 1), [0]);
        assert_eq!(greedy(share(5, usize::MAX), 2), [5, 5]);
    }
}
