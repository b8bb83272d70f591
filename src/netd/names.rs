//! The names of containers, from the moment they join until they leave.

use super::state::Record;
use crate::dns::{Host, LocalNames, Names, Zone};
use crate::network::Definition;

/// The table that the DNS service reads. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct SharedNames(Names);

impl SharedNames {
    pub(super) fn new(definition: &Definition) -> SharedNames {
        SharedNames(Names::new(Zone {
            network: definition.name.clone(),
            search: definition.dns_search.clone(),
            subnets: definition.subnets().collect(),
        }))
    }

    /// All names that the network answers itself.
    pub(super) fn local(&self, definition: &Definition) -> LocalNames {
        let (v4, v6) = definition.gateways();
        LocalNames::new(v4, v6).with_containers(self.0.clone())
    }

    pub(super) fn announce(&self, record: &Record) {
        let host = Host {
            name: record.name.clone(),
            aliases: record.aliases.clone(),
            ipv4: record.ipv4,
            ipv6: record.ipv6,
        };
        self.0.join(&record.id, host);
    }

    pub(super) fn withdraw(&self, record: &Record) {
        self.0.leave(&record.id);
    }
}
