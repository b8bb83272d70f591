//! The names of the network's members, from the moment they join until they leave.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use super::other_networks::{Namespace, OtherNetworks};
use super::{Host, LocalNames, Names, Zone};
use crate::journal::{Liveness, Record};
use cnet::definition::Definition;

/// The table that the DNS service reads, and who has which address. Clones share both.
#[derive(Clone, Debug)]
pub(crate) struct MemberNames {
    names: Names,
    namespaces: Arc<RwLock<HashMap<IpAddr, Namespace>>>,
}

fn addresses(record: &Record) -> impl Iterator<Item = IpAddr> {
    let ipv4 = record.ipv4.map(IpAddr::V4);
    ipv4.into_iter().chain(record.ipv6.map(IpAddr::V6))
}

impl MemberNames {
    pub(crate) fn new(definition: &Definition) -> MemberNames {
        MemberNames {
            names: Names::new(Zone::from(definition)),
            namespaces: Arc::default(),
        }
    }

    /// All names that the network answers itself, and those of the other networks that who asks is
    /// on.
    pub(crate) fn local(&self, definition: &Definition, networks: OtherNetworks) -> LocalNames {
        let (v4, v6) = definition.gateways();
        let namespaces = Arc::clone(&self.namespaces);
        let others = move |client: IpAddr| {
            let namespaces = namespaces.read().unwrap_or_else(PoisonError::into_inner);
            let namespace = namespaces.get(&client).copied();
            drop(namespaces);
            namespace.map_or(Vec::new(), |namespace| networks.of(namespace))
        };
        LocalNames::new(v4, v6)
            .with_containers(self.names.clone())
            .with_others(others)
    }

    pub(crate) fn announce(&self, record: &Record) {
        self.names.join(&record.id, Host::from(record));
        if matches!(record.liveness, Liveness::Vm { .. }) {
            return;
        }
        let mut namespaces = self.write();
        namespaces.extend(addresses(record).map(|address| (address, record.namespace)));
    }

    pub(crate) fn withdraw(&self, record: &Record) {
        self.names.leave(&record.id);
        let mut namespaces = self.write();
        for address in addresses(record) {
            namespaces.remove(&address);
        }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<IpAddr, Namespace>> {
        let namespaces = self.namespaces.write();
        namespaces.unwrap_or_else(PoisonError::into_inner)
    }
}
