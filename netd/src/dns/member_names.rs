//! The names of the network's members, from the moment they join until they leave, and what DNS is
//! to know of a member that asks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use super::other_networks::{Namespace, OtherNetwork, OtherNetworks};
use super::{Clients, Host, HostAddress, LocalNames, Names, Zone};
use crate::journal::{Liveness, Record};
use cnet::definition::{Definition, DnsServer};

/// The table that the DNS service reads, and who has which address. Clones share both.
#[derive(Clone, Debug)]
pub(crate) struct MemberNames {
    names: Names,
    members: Arc<RwLock<HashMap<IpAddr, Member>>>,
}

/// A member as a client of the DNS service.
#[derive(Clone, Debug)]
struct Member {
    /// `None` for a VM.
    namespace: Option<Namespace>,
    /// The servers that are asked for it, if not the network's.
    dns: Arc<[DnsServer]>,
    host: Option<HostAddress>,
}

fn addresses(record: &Record) -> impl Iterator<Item = IpAddr> {
    let ipv4 = record.ipv4.map(IpAddr::V4);
    ipv4.into_iter().chain(record.ipv6.map(IpAddr::V6))
}

impl MemberNames {
    pub(crate) fn new(definition: &Definition) -> MemberNames {
        MemberNames {
            names: Names::new(Zone::from(definition)),
            members: Arc::default(),
        }
    }

    /// All names that the network answers itself.
    pub(crate) fn local(&self, definition: &Definition) -> LocalNames {
        let (v4, v6) = definition.gateways();
        LocalNames::new(v4, v6).with_containers(self.names.clone())
    }

    /// What is known of the members as clients, which may be on `networks`, too.
    pub(crate) fn clients(&self, networks: OtherNetworks) -> Arc<dyn Clients> {
        Arc::new(MemberClients {
            members: Arc::clone(&self.members),
            networks,
        })
    }

    pub(crate) fn announce(&self, record: &Record) {
        self.names.join(&record.id, Host::from(record));
        let is_vm = matches!(record.liveness, Liveness::Vm { .. });
        let member = Member {
            namespace: (!is_vm).then_some(record.namespace),
            dns: record.dns.clone().into(),
            host: HostAddress::of_container(&record.filter),
        };
        let mut members = self.write();
        members.extend(addresses(record).map(|address| (address, member.clone())));
    }

    pub(crate) fn withdraw(&self, record: &Record) {
        self.names.leave(&record.id);
        let mut members = self.write();
        for address in addresses(record) {
            members.remove(&address);
        }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<IpAddr, Member>> {
        self.members.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The members of a network as clients.
#[derive(Debug)]
struct MemberClients {
    members: Arc<RwLock<HashMap<IpAddr, Member>>>,
    networks: OtherNetworks,
}

impl MemberClients {
    fn get(&self, client: IpAddr) -> Option<Member> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.get(&client).cloned()
    }
}

impl Clients for MemberClients {
    fn other_networks(&self, client: IpAddr) -> Vec<OtherNetwork> {
        let namespace = self.get(client).and_then(|member| member.namespace);
        namespace.map_or(Vec::new(), |namespace| self.networks.of(namespace))
    }

    fn host(&self, client: IpAddr) -> Option<HostAddress> {
        self.get(client)?.host
    }

    fn servers(&self, client: IpAddr) -> Arc<[DnsServer]> {
        self.get(client).map_or(Arc::default(), |member| member.dns)
    }
}
