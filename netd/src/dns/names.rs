//! The names of a network: the host's and the gateway's, and those of its containers.
//!
//! # Theory of operation
//!
//! [`LocalNames`] answers for `host.containers.internal` and the like, which stand for the
//! gateway's address; whether the host's own services can be reached there is for policy to say,
//! not for DNS. On a network of several containers it also looks into [`Names`], a table that
//! others change while the service runs: a container's names are there from [`Names::join`] to
//! [`Names::leave`].
//!
//! A container answers to its name, its aliases and the beginning of its id, each alone, before
//! the network's name (`web.cnet`, as with Docker) and before the network's search domains. A name
//! that several share has all their addresses, another one first each time. The address of a
//! container leads back to its name before the network's. What a network does not have, the other
//! networks that the client is on may have ([`LocalNames::with_others`]).
//!
//! # Invariants
//!
//! - A name that is not in the table is not ours, whatever it ends in: a network may be called
//!   `com`, and a search domain has other hosts. The service asks elsewhere then.
//! - The addresses of the network's subnets are ours alone: one that no container has, has no name,
//!   and no server elsewhere is asked for it.
//! - Over UDP an answer has at most [`MAX_UDP`] bytes. One that needs more carries what fits and
//!   says so (TC), so that the client comes back over TCP.
//!
//! # Limits
//!
//! No SOA stands with an answer that a name does not exist, so no resolver keeps it (RFC 2308
//! section 5): it is true only until the next container joins.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::IpNet;

use cnet::definition::{Definition, SHORT_ID};

use super::Transport;
use super::message::{self, Question};
use crate::journal;

const GATEWAY: &str = "gateway.containers.internal";

const HOST: [&str; 3] = ["host.containers.internal", "host.docker.internal", GATEWAY];

/// Seconds an answer for the host or the gateway may be kept: they stay.
const HOST_TTL: u32 = 60;

/// Seconds an answer for a container may be kept. It leaves without a word to those who keep its
/// address, and asking again costs no more than a packet to the gateway: as short as lets a burst
/// of connections be served by one answer.
const CONTAINER_TTL: u32 = 5;

/// The bytes of an answer over UDP that any client takes (RFC 1035 section 2.3.4).
const MAX_UDP: usize = 512;

/// What a network's names are about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Zone {
    /// The network's name.
    pub network: String,
    /// Domains that its containers search.
    pub search: Vec<String>,
    /// Its subnets.
    pub subnets: Vec<IpNet>,
}

/// A container's names and addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Host {
    /// What it is called.
    pub name: String,
    /// What it is called as well; others may share these.
    pub aliases: Vec<String>,
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

impl From<&Definition> for Zone {
    fn from(definition: &Definition) -> Zone {
        Zone {
            network: definition.name.clone(),
            search: definition.dns_search.clone(),
            subnets: definition.subnets().collect(),
        }
    }
}

impl From<&journal::Record> for Host {
    fn from(record: &journal::Record) -> Host {
        Host {
            name: record.name.clone(),
            aliases: record.aliases.clone(),
            ipv4: record.ipv4,
            ipv6: record.ipv6,
        }
    }
}

/// The names of a network's containers. Clones share one table.
#[derive(Clone, Debug)]
pub struct Names(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    network: String,
    /// What may stand behind a container's name, each with a dot in front, in lower case.
    suffixes: Vec<String>,
    subnets: Vec<IpNet>,
    table: RwLock<Table>,
    turn: AtomicUsize,
}

/// All names are in lower case (RFC 4343).
#[derive(Debug, Default)]
struct Table {
    by_id: BTreeMap<String, Host>,
    /// The ids of those a name stands for, in the order of their joining.
    by_name: HashMap<String, Vec<String>>,
    by_address: HashMap<IpAddr, String>,
}

impl Host {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv4 = self.ipv4.map(IpAddr::V4);
        ipv4.into_iter().chain(self.ipv6.map(IpAddr::V6))
    }

    /// Each once, in lower case.
    fn names(&self, id: &str) -> Vec<String> {
        let short = id.get(..SHORT_ID).unwrap_or(id);
        let given = std::iter::once(&self.name).chain(&self.aliases);
        let all = given.map(String::as_str).chain([short]);
        let mut names: Vec<String> = all.map(str::to_ascii_lowercase).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl Table {
    fn leave(&mut self, id: &str) -> bool {
        let Some(host) = self.by_id.remove(id) else {
            return false;
        };
        for name in host.names(id) {
            if let Some(ids) = self.by_name.get_mut(&name) {
                ids.retain(|other| other != id);
                if ids.is_empty() {
                    self.by_name.remove(&name);
                }
            }
        }
        for address in host.addresses() {
            if self.by_address.get(&address).is_some_and(|has| has == id) {
                self.by_address.remove(&address);
            }
        }
        true
    }
}

impl Names {
    /// Without containers.
    pub fn new(zone: Zone) -> Names {
        let domains = std::iter::once(&zone.network).chain(&zone.search);
        let suffixes = domains
            .map(|domain| format!(".{}", domain.trim_matches('.').to_ascii_lowercase()))
            .collect();
        Names(Arc::new(Shared {
            network: zone.network,
            suffixes,
            subnets: zone.subnets,
            table: RwLock::default(),
            turn: AtomicUsize::new(0),
        }))
    }

    /// The container `id` is there, from the next query on. If it was, it has these names and
    /// addresses now.
    pub fn join(&self, id: &str, host: Host) {
        let mut table = self.0.table.write().unwrap_or_else(PoisonError::into_inner);
        table.leave(id);
        for name in host.names(id) {
            table.by_name.entry(name).or_default().push(id.to_owned());
        }
        for address in host.addresses() {
            table.by_address.insert(address, id.to_owned());
        }
        table.by_id.insert(id.to_owned(), host);
    }

    /// The container `id` is gone. Tells whether it was there.
    pub fn leave(&self, id: &str) -> bool {
        let mut table = self.0.table.write().unwrap_or_else(PoisonError::into_inner);
        table.leave(id)
    }

    /// The addresses of `name`, another one first each time; `None` if no container has it.
    pub fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let asked = name.trim_end_matches('.').to_ascii_lowercase();
        let suffixes = self.0.suffixes.iter();
        let stripped = suffixes.filter_map(|suffix| asked.strip_suffix(suffix.as_str()));
        let table = self.0.table.read().unwrap_or_else(PoisonError::into_inner);
        let ids = std::iter::once(asked.as_str())
            .chain(stripped)
            .find_map(|name| table.by_name.get(name))?;
        let hosts = ids.iter().filter_map(|id| table.by_id.get(id));
        let mut addresses: Vec<IpAddr> = hosts.flat_map(Host::addresses).collect();
        if ids.len() > 1 {
            let turn = self.0.turn.fetch_add(1, Ordering::Relaxed);
            // By containers, not by addresses, which are of two families.
            addresses.sort_by_key(|address| address.is_ipv6());
            let split = addresses.partition_point(|address| address.is_ipv4());
            let (ipv4, ipv6) = addresses.split_at_mut(split);
            for family in [ipv4, ipv6] {
                let places = turn.checked_rem(family.len()).unwrap_or(0);
                family.rotate_left(places);
            }
        }
        Some(addresses)
    }

    /// The name of the container that has `address`, before the network's.
    pub fn name_of(&self, address: IpAddr) -> Option<String> {
        let table = self.0.table.read().unwrap_or_else(PoisonError::into_inner);
        let host = table.by_id.get(table.by_address.get(&address)?)?;
        Some(format!("{}.{}", host.name, self.0.network))
    }

    /// Whether all of `network` is within the subnets.
    fn covers(&self, network: &IpNet) -> bool {
        self.0.subnets.iter().any(|subnet| subnet.contains(network))
    }
}

/// Answers the names that are the network's own.
#[derive(Clone, Debug, Default)]
pub struct LocalNames {
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    containers: Option<Names>,
    others: Others,
}

/// Tells, for a client's address, the names of its other networks.
#[derive(Clone, Default)]
struct Others(Option<Arc<dyn Fn(IpAddr) -> Vec<Names> + Send + Sync>>);

impl fmt::Debug for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Others").field(&self.0.is_some()).finish()
    }
}

/// What is known of a name.
struct Found {
    code: ResponseCode,
    ttl: u32,
    records: Vec<RData>,
}

impl LocalNames {
    /// With the gateway's addresses. Without any, the host's names are not answered.
    pub fn new(ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> LocalNames {
        LocalNames {
            ipv4,
            ipv6,
            containers: None,
            others: Others::default(),
        }
    }

    /// With those of containers as well.
    pub fn with_containers(self, containers: Names) -> LocalNames {
        LocalNames {
            containers: Some(containers),
            ..self
        }
    }

    /// With the names that `of_client` gives for the address of the client that asks: those of the
    /// other networks that it is on. Called for each query that nothing else here answers; it must
    /// not wait.
    pub fn with_others(
        self,
        of_client: impl Fn(IpAddr) -> Vec<Names> + Send + Sync + 'static,
    ) -> LocalNames {
        LocalNames {
            others: Others(Some(Arc::new(of_client))),
            ..self
        }
    }

    /// As [`LocalNames::answer`], for a name on another network of `client`.
    pub fn answer_of_others(
        &self,
        client: IpAddr,
        query: &[u8],
        question: &Question,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let others = self.others.0.as_ref()?(client);
        others.into_iter().find_map(|names| {
            let other = LocalNames::default().with_containers(names);
            other.answer(query, question, transport)
        })
    }

    /// The answer to `query` if it asks for a name of ours, to be sent over `transport`. A type
    /// that a name does not have gets an answer without records.
    pub fn answer(
        &self,
        query: &[u8],
        question: &Question,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let asked = &question.query;
        if asked.query_class() != DNSClass::IN {
            return None;
        }
        let found = self.find(asked.name(), asked.query_type())?;
        let empty = message::error(query, question, found.code);
        let mut answer = Message::from_vec(&empty).ok()?;
        answer.metadata.authoritative = true;
        let records = found.records.into_iter();
        let records = records.map(|data| Record::from_rdata(asked.name().clone(), found.ttl, data));
        answer.add_answers(records);
        let whole = answer.to_vec().ok()?;
        if transport == Transport::Tcp || whole.len() <= MAX_UDP {
            return Some(whole);
        }
        // All records are of one size, or nearly: the name is a pointer to the question.
        let (all, room) = (answer.answers.len(), MAX_UDP.saturating_sub(empty.len()));
        answer
            .answers
            .truncate(room * all / (whole.len() - empty.len()));
        answer.metadata.truncation = true;
        answer.to_vec().ok()
    }

    fn find(&self, name: &Name, query_type: RecordType) -> Option<Found> {
        let text = name.to_ascii();
        let text = text.trim_end_matches('.');
        let own = self.ipv4.is_some() || self.ipv6.is_some();
        if own && HOST.iter().any(|host| host.eq_ignore_ascii_case(text)) {
            let gateway = self.ipv4.map(IpAddr::V4).into_iter();
            let gateway = gateway.chain(self.ipv6.map(IpAddr::V6)).collect();
            return Some(Found::addresses(gateway, query_type, HOST_TTL));
        }
        let containers = self.containers.as_ref()?;
        if let Some(addresses) = containers.addresses(text) {
            return Some(Found::addresses(addresses, query_type, CONTAINER_TTL));
        }
        let network = name.parse_arpa_name().ok()?;
        containers
            .covers(&network)
            .then(|| self.find_reverse(containers, network, query_type))
    }

    fn find_reverse(&self, names: &Names, network: IpNet, query_type: RecordType) -> Found {
        let nothing = |code| Found {
            code,
            ttl: CONTAINER_TTL,
            records: Vec::new(),
        };
        if network.prefix_len() < network.max_prefix_len() {
            // A node on the way to addresses: it exists, and has no records.
            return nothing(ResponseCode::NoError);
        }
        let address = network.addr();
        let is_gateway = match address {
            IpAddr::V4(address) => self.ipv4 == Some(address),
            IpAddr::V6(address) => self.ipv6 == Some(address),
        };
        let name = match is_gateway {
            true => Some(GATEWAY.to_owned()),
            false => names.name_of(address),
        };
        let Some(name) = name.and_then(|name| Name::from_ascii(format!("{name}.")).ok()) else {
            return nothing(ResponseCode::NXDomain);
        };
        match query_type {
            RecordType::PTR | RecordType::ANY => Found {
                records: vec![RData::PTR(PTR(name))],
                ..nothing(ResponseCode::NoError)
            },
            _ => nothing(ResponseCode::NoError),
        }
    }
}

impl Found {
    fn addresses(addresses: Vec<IpAddr>, query_type: RecordType, ttl: u32) -> Found {
        let (ipv4, ipv6) = match query_type {
            RecordType::A => (true, false),
            RecordType::AAAA => (false, true),
            RecordType::ANY => (true, true),
            _ => (false, false),
        };
        let records = addresses.into_iter().filter_map(|address| match address {
            IpAddr::V4(a) => ipv4.then_some(RData::A(A(a))),
            IpAddr::V6(a) => ipv6.then_some(RData::AAAA(AAAA(a))),
        });
        Found {
            code: ResponseCode::NoError,
            ttl,
            records: records.collect(),
        }
    }
}

#[cfg(test)]
mod tests;
