//! What published TCP ports count. What published UDP ports drop is in the core's counters.

/// Clients of published TCP ports so far, and what spliced connections carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ForwardCounters {
    /// Clients accepted.
    pub accepted: u64,
    /// Of them, clients whose socket was joined with one inside the container's namespace.
    pub spliced: u64,
    /// Of them, clients brought to the container by frames; those that could not be spliced after
    /// all are in it.
    pub by_frames: u64,
    /// Of them, clients reset because the container could not answer them under any address.
    pub refused: u64,
    /// Bytes that spliced connections carried to containers.
    pub spliced_bytes_to_containers: u64,
    /// Bytes that spliced connections carried from containers.
    pub spliced_bytes_from_containers: u64,
}

impl ForwardCounters {
    /// Adds what another worker counted.
    pub fn add(&mut self, others: &ForwardCounters) {
        self.accepted += others.accepted;
        self.spliced += others.spliced;
        self.by_frames += others.by_frames;
        self.refused += others.refused;
        self.spliced_bytes_to_containers += others.spliced_bytes_to_containers;
        self.spliced_bytes_from_containers += others.spliced_bytes_from_containers;
    }

    /// Every counter under its name in reports.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [
            ("accepted", self.accepted),
            ("spliced", self.spliced),
            ("by_frames", self.by_frames),
            ("refused", self.refused),
            (
                "spliced_bytes_to_containers",
                self.spliced_bytes_to_containers,
            ),
            (
                "spliced_bytes_from_containers",
                self.spliced_bytes_from_containers,
            ),
        ]
        .into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_added_and_named() {
        let ones = ForwardCounters {
            accepted: 1,
            spliced: 2,
            by_frames: 3,
            refused: 4,
            spliced_bytes_to_containers: 5,
            spliced_bytes_from_containers: 6,
        };
        let mut sum = ones;
        sum.add(&ones);
        let counts: Vec<u64> = sum.iter().map(|(_, n)| n).collect();
        assert_eq!(counts, [2, 4, 6, 8, 10, 12]);
        assert_eq!(
            size_of::<ForwardCounters>(),
            counts.len() * size_of::<u64>()
        );
    }
}
