//! How many flows each port may have, and which of them are half-open.
//!
//! # Theory of operation
//!
//! The ports share the table by [`FairShare`]. A port that is at its limit loses its own oldest
//! half-open flow to make room, never another port's: a SYN flood harms only the port that sends it.
//! A flow from a published port has no port of its own until the container's link is resolved. Such
//! flows share the table as one more owner, and pass to the container's port once it is known.
//! Orphans ([`orphan`](super::orphan)) are counted with them. An orphan makes room for an owner that
//! has no half-open flow left, if the owner may have one more flow then.
//!
//! # Invariants
//!
//! - An owner's count is the number of flows in the table whose link is on that port, or that have
//!   no link.
//! - Every half-open flow is in its owner's list. An entry may outlive its flow and is skipped then.
//!   The list is cleared of such entries each time it has doubled. So its length stays near the
//!   number of half-open flows, and the cost for each flow is constant.

use std::collections::{BTreeMap, VecDeque};

use cnet_wire::PortId;

use crate::flow::{FairShare, FlowBudget, Handle};

/// List length below which entries of ended handshakes are not removed.
const EMBRYONIC_FLOOR: usize = 64;

/// A port; `None` stands for the flows without a link: the container is not found yet, or is gone.
pub(super) type Owner = Option<PortId>;

/// The flows of one owner.
#[derive(Debug)]
pub(super) struct Quota {
    flows: usize,
    /// Half-open flows, oldest first.
    embryonic: VecDeque<Handle>,
    /// Length at which `embryonic` is cleared of flows that are no longer half-open.
    limit: usize,
}

/// The flows of all owners, and what each may have.
#[derive(Debug)]
pub(super) struct Quotas {
    share: FairShare,
    /// What flows of other protocols and workers are counted in as well.
    budget: FlowBudget,
    by_owner: BTreeMap<Owner, Quota>,
}

impl Quotas {
    pub(super) fn new(share: FairShare, budget: FlowBudget) -> Quotas {
        Quotas {
            share,
            budget,
            by_owner: BTreeMap::new(),
        }
    }

    /// The same without flows.
    pub(super) fn emptied(&self) -> Quotas {
        Quotas::new(self.share, self.budget.clone())
    }

    /// The ports that have flows, or had.
    pub(super) fn ports(&self) -> impl Iterator<Item = PortId> {
        self.by_owner.keys().filter_map(|owner| *owner)
    }

    /// Flows of `owner`.
    pub(super) fn flows(&self, owner: Owner) -> usize {
        self.by_owner.get(&owner).map_or(0, |h| h.flows)
    }

    /// Whether `owner` may have one more, when all together have `used`.
    pub(super) fn admits(&self, owner: Owner, used: usize) -> bool {
        let held = self.flows(owner);
        self.share.admits(held, used) && self.budget.admits(held, 0)
    }

    /// Whether one of the `used`, which has another owner, may pass to `owner`.
    pub(super) fn admits_in_place(&self, owner: Owner, used: usize) -> bool {
        let held = self.flows(owner);
        self.share.admits(held, used.saturating_sub(1)) && self.budget.admits(held, 1)
    }

    /// Whether `owner` may have one more in the place of an orphan, which is one of the `used`.
    pub(super) fn admits_for_an_orphan(&self, owner: Owner, used: usize) -> bool {
        let its_own = usize::from(owner.is_none());
        let held = self.flows(owner).saturating_sub(its_own);
        self.share.admits(held, used.saturating_sub(1)) && self.budget.admits(held, 1)
    }

    /// A half-open flow of `owner` entered the table. `current` tells whether a listed one still is
    /// half-open and owned by it.
    pub(super) fn enter(&mut self, owner: Owner, flow: Handle, current: impl Fn(Handle) -> bool) {
        let quota = self.adopt(owner);
        if quota.embryonic.len() >= quota.limit {
            quota.embryonic.retain(|&h| current(h));
            quota.limit = EMBRYONIC_FLOOR.max(2 * quota.embryonic.len());
            quota.embryonic.shrink_to(quota.limit);
        }
        quota.embryonic.push_back(flow);
    }

    /// A flow that is not half-open passed to `owner`.
    pub(super) fn adopt(&mut self, owner: Owner) -> &mut Quota {
        let quota = self.by_owner.entry(owner).or_insert(Quota {
            flows: 0,
            embryonic: VecDeque::new(),
            limit: EMBRYONIC_FLOOR,
        });
        quota.flows += 1;
        quota
    }

    /// A flow of `owner` left the table, or passed to another owner.
    pub(super) fn leave(&mut self, owner: Owner) {
        if let Some(quota) = self.by_owner.get_mut(&owner) {
            quota.flows -= 1;
        }
    }

    /// Takes the oldest entry off the list of `owner`; whether it still is half-open is for the caller
    /// to see.
    pub(super) fn pop_oldest(&mut self, owner: Owner) -> Option<Handle> {
        self.by_owner.get_mut(&owner)?.embryonic.pop_front()
    }

    /// Puts back what [`Quotas::pop_oldest`] gave.
    pub(super) fn put_back(&mut self, owner: Owner, flow: Handle) {
        if let Some(quota) = self.by_owner.get_mut(&owner) {
            quota.embryonic.push_front(flow);
        }
    }

    /// The list of `owner`, entries that are half-open no more included.
    pub(super) fn listed(&self, owner: Owner) -> impl Iterator<Item = Handle> {
        let quota = self.by_owner.get(&owner);
        quota.into_iter().flat_map(|h| h.embryonic.iter().copied())
    }

    /// Forgets a port that is gone, and all of whose flows are.
    pub(super) fn remove_port(&mut self, port: PortId) {
        self.by_owner.remove(&Some(port));
    }

    #[cfg(test)]
    pub(super) fn list_capacity(&self) -> usize {
        self.by_owner.values().map(|h| h.embryonic.capacity()).sum()
    }
}
