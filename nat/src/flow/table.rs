//! The flow table: a slab of flows, found by key or by handle.

use std::hash::Hash;

/// Names a flow; stale handles find nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle {
    /// Slot in the slab.
    pub index: u32,
    /// Counts the slot's uses.
    pub generation: u32,
}

/// The table holds as many flows as it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableFull;

/// Flows of one protocol.
#[derive(Debug)]
pub struct FlowTable<K, F> {
    slots: Vec<Option<(K, F)>>,
}

impl<K: Eq + Hash + Clone, F> FlowTable<K, F> {
    /// A table of at most `limit` flows, hashing with `seed`.
    pub fn new(_limit: usize, _seed: u64) -> Self {
        FlowTable { slots: Vec::new() }
    }
    /// Enters a flow under `key`, which must not be in the table.
    pub fn insert(&mut self, _key: K, _flow: F) -> Result<Handle, TableFull> {
        Err(TableFull)
    }
    /// The flow of `key`.
    pub fn find(&self, _key: &K) -> Option<Handle> {
        None
    }
    /// The flow of `handle`, if it is still there.
    pub fn get(&self, h: Handle) -> Option<&F> {
        self.slots.get(h.index as usize)?.as_ref().map(|s| &s.1)
    }
    /// The flow of `handle`, to change it.
    pub fn get_mut(&mut self, h: Handle) -> Option<&mut F> {
        self.slots
            .get_mut(h.index as usize)?
            .as_mut()
            .map(|s| &mut s.1)
    }
    /// The key of `handle`.
    pub fn key(&self, h: Handle) -> Option<&K> {
        self.slots.get(h.index as usize)?.as_ref().map(|s| &s.0)
    }
    /// The live handle of slot `index` (timers know slots only).
    pub fn at(&self, _index: u32) -> Option<Handle> {
        None
    }
    /// Takes a flow out.
    pub fn remove(&mut self, _h: Handle) -> Option<(K, F)> {
        None
    }
    /// Flows in the table.
    pub fn len(&self) -> usize {
        0
    }
    /// No flows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// All flows.
    pub fn iter(&self) -> impl Iterator<Item = (Handle, &K, &F)> {
        std::iter::empty()
    }
}
