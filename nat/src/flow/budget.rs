//! How many flows there may be at all, whatever their protocol: each takes a descriptor of the host.
//!
//! The shell says how many descriptors flows may take, and gives every engine of every worker a handle
//! to one [`FlowBudget`]. So TCP, UDP and echo lend each other what they do not use. What one port may
//! have of the budget is [`FairShare`]'s to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::FairShare;

/// A handle to a budget. Clones share it.
#[derive(Clone, Debug)]
pub struct FlowBudget {
    total: usize,
    used: Arc<AtomicUsize>,
}

impl FlowBudget {
    /// Flows that this many descriptors are for.
    pub fn new(total: usize) -> FlowBudget {
        FlowBudget {
            total,
            used: Arc::default(),
        }
    }

    /// Flows that there may be.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Flows that hold a part of it.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether a port that holds `held` flows of one protocol may have one more, after `freed` flows
    /// have ended.
    pub(crate) fn admits(&self, held: usize, freed: usize) -> bool {
        let share = FairShare {
            each: usize::MAX,
            total: self.total,
        };
        share.admits(held, self.used().saturating_sub(freed))
    }

    /// A flow begins. Workers may pass the total by one flow each, when they ask at one time.
    pub(crate) fn take(&self) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    /// A flow has ended.
    pub(crate) fn give_back(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for FlowBudget {
    /// One without limit.
    fn default() -> Self {
        FlowBudget::new(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_holds_another_lacks_until_it_is_given_back() {
        let budget = FlowBudget::new(10);
        let other = budget.clone();
        (0..8).for_each(|_| budget.take());
        assert!(other.admits(8, 0) && !other.admits(16, 0));
        (0..2).for_each(|_| other.take());
        assert!(!budget.admits(0, 0) && budget.admits(0, 1));
        other.give_back();
        assert!(budget.admits(0, 0));
        assert_eq!(other.used(), 9);
    }
}
