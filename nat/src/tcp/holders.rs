//! Which port holds which flows: how many in all, and the half-open ones in the order they came.
//!
//! # Theory of operation
//!
//! The table is shared by [`Share`]. A port that may have no more flows ends its own oldest
//! half-open one to make room, never another port's: a flood of SYNs harms those who send it. A
//! client of a published port whose guest is not found yet belongs to no port; those share the table
//! as one more holder does, and pass to the guest's port once it is known. Orphans
//! ([`orphan`](super::orphan)) are counted with them, and make room for whoever has no half-open flow
//! of its own left, if it may have one more then.
//!
//! # Invariants
//!
//! - A holder's count is the number of flows in the table whose link is on that port, or that have
//!   none.
//! - Every half-open flow is in its holder's list. Entries outlive their flows and are skipped then;
//!   the list is cleared of them when it has doubled, so that it stays near the number of half-open
//!   flows, at a constant cost a flow.

use std::collections::{BTreeMap, VecDeque};

use cnet_wire::PortId;

use crate::flow::{Handle, Share};

/// Half-open flows below which a list is not looked through.
const EMBRYONIC_FLOOR: usize = 64;

/// A port, or `None` for those flows whose guest is not found yet.
pub(super) type HolderId = Option<PortId>;

/// What one holder has.
#[derive(Debug)]
pub(super) struct Holder {
    flows: usize,
    /// Half-open flows, oldest first.
    embryonic: VecDeque<Handle>,
    /// Length at which `embryonic` is cleared of flows that are half-open no more.
    limit: usize,
}

/// The holders of one engine's flows.
#[derive(Debug)]
pub(super) struct Holders {
    share: Share,
    holders: BTreeMap<HolderId, Holder>,
}

impl Holders {
    pub(super) fn new(share: Share) -> Holders {
        Holders {
            share,
            holders: BTreeMap::new(),
        }
    }

    /// Flows of `id`.
    pub(super) fn flows(&self, id: HolderId) -> usize {
        self.holders.get(&id).map_or(0, |h| h.flows)
    }

    /// Whether `id` may have one more, when all together have `used`.
    pub(super) fn admits(&self, id: HolderId, used: usize) -> bool {
        self.share.admits(self.flows(id), used)
    }

    /// Whether `id` may have one more in the place of an orphan, which is one of the `used`.
    pub(super) fn admits_for_an_orphan(&self, id: HolderId, used: usize) -> bool {
        let its_own = usize::from(id.is_none());
        let held = self.flows(id).saturating_sub(its_own);
        self.share.admits(held, used.saturating_sub(1))
    }

    /// A half-open flow of `id` entered the table. `current` tells whether a listed one still is
    /// half-open and the holder's.
    pub(super) fn enter(&mut self, id: HolderId, flow: Handle, current: impl Fn(Handle) -> bool) {
        let holder = self.adopt(id);
        if holder.embryonic.len() >= holder.limit {
            holder.embryonic.retain(|&h| current(h));
            holder.limit = EMBRYONIC_FLOOR.max(2 * holder.embryonic.len());
            holder.embryonic.shrink_to(holder.limit);
        }
        holder.embryonic.push_back(flow);
    }

    /// A flow that is not half-open passed to `id`.
    pub(super) fn adopt(&mut self, id: HolderId) -> &mut Holder {
        let holder = self.holders.entry(id).or_insert(Holder {
            flows: 0,
            embryonic: VecDeque::new(),
            limit: EMBRYONIC_FLOOR,
        });
        holder.flows += 1;
        holder
    }

    /// A flow of `id` left the table, or passed to another holder.
    pub(super) fn leave(&mut self, id: HolderId) {
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.flows -= 1;
        }
    }

    /// Takes the oldest entry off the list of `id`; whether it still is half-open is for the caller
    /// to see.
    pub(super) fn pop_oldest(&mut self, id: HolderId) -> Option<Handle> {
        self.holders.get_mut(&id)?.embryonic.pop_front()
    }

    /// Puts back what [`Holders::pop_oldest`] gave.
    pub(super) fn put_back(&mut self, id: HolderId, flow: Handle) {
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.embryonic.push_front(flow);
        }
    }

    /// The list of `id`, entries that are half-open no more included.
    pub(super) fn listed(&self, id: HolderId) -> impl Iterator<Item = Handle> {
        let holder = self.holders.get(&id);
        holder.into_iter().flat_map(|h| h.embryonic.iter().copied())
    }

    /// Forgets a port that is gone, and all of whose flows are.
    pub(super) fn remove_port(&mut self, port: PortId) {
        self.holders.remove(&Some(port));
    }

    #[cfg(test)]
    pub(super) fn list_capacity(&self) -> usize {
        self.holders.values().map(|h| h.embryonic.capacity()).sum()
    }
}
