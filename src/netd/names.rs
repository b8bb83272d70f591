//! The names of containers, as the network's DNS service answers them.

use crate::dns::LocalNames;
use crate::network::Definition;
use super::state::Record;

/// The table that the DNS service reads.
#[derive(Clone, Debug)]
pub(super) struct SharedNames(LocalNames);

impl SharedNames {
    pub(super) fn new(definition: &Definition) -> SharedNames {
        let (v4, v6) = definition.gateways();
        SharedNames(LocalNames::new(v4, v6))
    }
    pub(super) fn table(&self) -> LocalNames {
        self.0.clone()
    }
    pub(super) fn announce(&self, _record: &Record) {}
    pub(super) fn withdraw(&self, _record: &Record) {}
}
