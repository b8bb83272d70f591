//! The names of a network: the host's and the gateway's, and those of its containers.
//!
//! # Theory of operation
//!
//! [`LocalNames`] answers for `host.containers.internal` and the like, which stand for the address at
//! which the host's services can be reached, if they can ([`super::HostAddress`]). On a network of several containers it also looks into [`Names`], a table that
//! others change while the service runs: a container's names are there from [`Names::join`] to
//! [`Names::leave`].
//!
//! A container answers to its name, its aliases and the beginning of its id, each alone, before
//! the network's name (`web.cnet`, as with Docker) and before the network's search domains. A name
//! that several share has all their addresses, another one first each time. The address of a
//! container leads back to its name before the network's. What a network does not have, the other
//! networks that the client is on may have ([`super::Clients`]).
//!
//! # Invariants
//!
//! - Addresses of single labels are asked for here and nowhere else: what no container is called does
//!   not exist (NXDOMAIN), as with dnsmasq's `domain-needed`. So are names before the network's name,
//!   unless that is, or may be, a top-level domain of the Internet (a network may be called `com`);
//!   then only those that a container of the network has had. A search domain has other hosts, which
//!   are asked for elsewhere.
//! - The addresses of the network's subnets are ours alone: one that no container has, has no name,
//!   and no server elsewhere is asked for it.
//! - `localhost` is the loopback address, and names in `invalid` and `onion` do not exist (RFC 6761,
//!   RFC 7686), whatever the type.
//! - Over UDP an answer has at most as many bytes as the client takes. One that needs more carries
//!   what fits and says so (TC), so that the client comes back over TCP.
//!
//! # Limits
//!
//! No SOA stands with an answer that a name does not exist, so no resolver keeps it (RFC 2308
//! section 5): it is true only until the next container joins.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;
use hickory_proto::serialize::binary::BinEncodable;
use ipnet::IpNet;

use cnet::definition::{Definition, SHORT_ID};
use cnet_tap::socket::default_route_address;

use super::Transport;
use super::host_address::HostAddress;
use super::message::{CLASS_IN, OwnAnswer, Question, kind};
use crate::journal;

const GATEWAY: &str = "gateway.containers.internal";

const HOST: [&str; 2] = ["host.containers.internal", "host.docker.internal"];

/// Seconds an answer for the gateway may be kept: it stays.
const GATEWAY_TTL: u32 = 60;

/// Seconds an answer for the host may be kept: its way out may change.
const HOST_TTL: u32 = 5;

/// Seconds an answer for a container may be kept. It leaves without a word to those who keep its
/// address, and asking again costs no more than a packet to the gateway: as short as lets a burst
/// of connections be served by one answer.
const CONTAINER_TTL: u32 = 5;

/// The largest message over TCP.
const MAX_TCP: usize = 65535;

/// Names of containers that have left which are remembered.
const MAX_DEPARTED: usize = 256;

/// Domains in which no name exists (RFC 6761 section 6.4, RFC 7686 section 2).
const EMPTY_DOMAINS: [&str; 2] = ["invalid", "onion"];

/// Top-level domains of the Internet that a network might be called, beside all of two letters.
const TOP_LEVEL: [&str; 44] = [
    "academy", "agency", "app", "art", "biz", "blog", "business", "center", "cloud", "club", "com",
    "company", "design", "dev", "digital", "edu", "email", "games", "global", "gov", "group",
    "host", "info", "int", "live", "media", "mil", "mobi", "net", "network", "news", "one",
    "online", "org", "page", "pro", "services", "shop", "site", "software", "store", "systems",
    "tech", "world",
];

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
    /// Whether the network's name may be a domain of the Internet.
    is_domain: bool,
}

/// All names are in lower case (RFC 4343).
#[derive(Debug, Default)]
struct Table {
    by_id: BTreeMap<String, Host>,
    /// The ids of those a name stands for, in the order of their joining.
    by_name: HashMap<String, Vec<String>>,
    by_address: HashMap<IpAddr, String>,
    /// Names of containers that have left, the oldest first.
    departed: VecDeque<String>,
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
            if !self.departed.contains(&name) {
                self.departed.push_back(name);
            }
        }
        let too_many = self.departed.len().saturating_sub(MAX_DEPARTED);
        self.departed.drain(..too_many);
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
        let lower = zone.network.to_ascii_lowercase();
        Names(Arc::new(Shared {
            is_domain: lower.len() == 2
                || lower.contains('.')
                || TOP_LEVEL.contains(&lower.as_str()),
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
        self.lookup(&name.trim_end_matches('.').to_ascii_lowercase())
    }

    /// As [`Names::addresses`], for a name in lower case.
    fn lookup(&self, asked: &str) -> Option<Vec<IpAddr>> {
        let suffixes = self.0.suffixes.iter();
        let stripped = suffixes.filter_map(|suffix| asked.strip_suffix(suffix.as_str()));
        let table = self.0.table.read().unwrap_or_else(PoisonError::into_inner);
        let ids = std::iter::once(asked)
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

    /// Whether `name`, in lower case, is before the network's name, and so could be a container's of
    /// this network alone.
    fn is_own(&self, name: &str) -> bool {
        // The first suffix is the network's name; the others are domains to search.
        let suffix = self.0.suffixes.first();
        let Some(before) = suffix.and_then(|suffix| name.strip_suffix(suffix.as_str())) else {
            return false;
        };
        let table = || self.0.table.read().unwrap_or_else(PoisonError::into_inner);
        !self.0.is_domain || table().departed.iter().any(|departed| departed == before)
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
    host: HostAddress,
    containers: Option<Names>,
}

/// Whether a question is for the host's address.
pub(super) fn is_host(question: &Question) -> bool {
    let name = question.name.as_deref();
    name.is_some_and(|name| HOST.contains(&name))
}

/// What is known of a name.
struct Found {
    code: ResponseCode,
    ttl: u32,
    records: Vec<Data>,
}

/// What a record says.
enum Data {
    Address(IpAddr),
    Name(Name),
}

impl LocalNames {
    /// With the gateway's addresses. Without any, the host's names are not answered.
    pub fn new(ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> LocalNames {
        LocalNames {
            ipv4,
            ipv6,
            host: HostAddress::default(),
            containers: None,
        }
    }

    /// Has the host's names lead to `host`.
    pub fn with_host(self, host: HostAddress) -> LocalNames {
        LocalNames { host, ..self }
    }

    /// With those of containers as well.
    pub fn with_containers(self, containers: Names) -> LocalNames {
        LocalNames {
            containers: Some(containers),
            ..self
        }
    }

    /// The answer to `query` if it asks for a name of ours, to be sent over `transport`. A type
    /// that a name does not have gets an answer without records.
    pub fn answer(
        &self,
        query: &[u8],
        question: &Question,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        if question.class != CLASS_IN {
            return None;
        }
        let found = self.find(question.name.as_deref()?, question.kind)?;
        let limit = match transport {
            Transport::Udp => usize::from(question.udp_size()),
            Transport::Tcp => MAX_TCP,
        };
        let mut answer = OwnAnswer::new(query, question, found.code, limit);
        for data in found.records {
            match data {
                Data::Address(IpAddr::V4(a)) => answer.push(kind::A, found.ttl, &a.octets()),
                Data::Address(IpAddr::V6(a)) => answer.push(kind::AAAA, found.ttl, &a.octets()),
                Data::Name(name) => answer.push(kind::PTR, found.ttl, &name.to_bytes().ok()?),
            }
        }
        Some(answer.finish())
    }

    /// What is to be said of a name that neither this network nor `others`, the client's other ones,
    /// have, if no server may be asked for it.
    pub fn nowhere<'a>(
        &'a self,
        others: impl Iterator<Item = &'a Names>,
        question: &Question,
    ) -> Option<ResponseCode> {
        let name = question.name.as_deref()?;
        let last = name.rsplit_once('.').map_or(name, |(_, last)| last);
        if EMPTY_DOMAINS.contains(&last) {
            return Some(ResponseCode::NXDomain);
        }
        let mut networks = self.containers.iter().chain(others);
        let mut is_ours = || !name.contains('.') || networks.any(|names| names.is_own(name));
        (question.asks_for_addresses() && !name.is_empty() && is_ours())
            .then_some(ResponseCode::NXDomain)
    }

    fn find(&self, name: &str, kind: u16) -> Option<Found> {
        if name == "localhost" || name.ends_with(".localhost") {
            let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            return Some(Found::addresses(both, kind, GATEWAY_TTL));
        }
        if self.ipv4.is_some() || self.ipv6.is_some() {
            if name == GATEWAY {
                return Some(Found::addresses(self.gateway(), kind, GATEWAY_TTL));
            }
            if HOST.contains(&name) {
                return Some(self.find_host(kind));
            }
        }
        if let Some(addresses) = self.containers.as_ref().and_then(|c| c.lookup(name)) {
            return Some(Found::addresses(addresses, kind, CONTAINER_TTL));
        }
        if !name.ends_with(".arpa") {
            return None;
        }
        let network = Name::from_ascii(format!("{name}.")).ok()?;
        let network = network.parse_arpa_name().ok()?;
        self.find_reverse(network, kind)
    }

    fn gateway(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.ipv4.map(IpAddr::V4).into_iter();
        v4.chain(self.ipv6.map(IpAddr::V6))
    }

    fn find_host(&self, kind: u16) -> Found {
        let families = [self.ipv4.map(|_| false), self.ipv6.map(|_| true)];
        let addresses: Vec<IpAddr> = match self.host {
            HostAddress::Gateway => self.gateway().collect(),
            HostAddress::DefaultRoute => {
                let families = families.into_iter().flatten();
                families.filter_map(default_route_address).collect()
            }
            HostAddress::Unreachable => Vec::new(),
        };
        match addresses.is_empty() {
            true => Found::nothing(ResponseCode::NXDomain),
            false => Found::addresses(addresses, kind, HOST_TTL),
        }
    }

    fn find_reverse(&self, network: IpNet, kind: u16) -> Option<Found> {
        let address = network.addr();
        let whole = network.prefix_len() == network.max_prefix_len();
        if whole && address.is_loopback() {
            return Some(Found::name("localhost", kind, GATEWAY_TTL));
        }
        let names = self.containers.as_ref()?;
        if !names.covers(&network) {
            return None;
        }
        if !whole {
            // A node on the way to addresses: it exists, and has no records.
            return Some(Found::nothing(ResponseCode::NoError));
        }
        let is_gateway = match address {
            IpAddr::V4(address) => self.ipv4 == Some(address),
            IpAddr::V6(address) => self.ipv6 == Some(address),
        };
        Some(match (is_gateway, names.name_of(address)) {
            (true, _) => Found::name(GATEWAY, kind, CONTAINER_TTL),
            (false, Some(name)) => Found::name(&name, kind, CONTAINER_TTL),
            (false, None) => Found::nothing(ResponseCode::NXDomain),
        })
    }
}

impl Found {
    fn nothing(code: ResponseCode) -> Found {
        Found {
            code,
            ttl: CONTAINER_TTL,
            records: Vec::new(),
        }
    }

    fn name(name: &str, kind: u16, ttl: u32) -> Found {
        let wanted = matches!(kind, kind::PTR | kind::ANY);
        let name = Name::from_ascii(format!("{name}.")).ok();
        Found {
            code: ResponseCode::NoError,
            ttl,
            records: name
                .filter(|_| wanted)
                .map(Data::Name)
                .into_iter()
                .collect(),
        }
    }

    fn addresses(addresses: impl IntoIterator<Item = IpAddr>, kind: u16, ttl: u32) -> Found {
        let wanted = |address: &IpAddr| match address {
            IpAddr::V4(_) => matches!(kind, kind::A | kind::ANY),
            IpAddr::V6(_) => matches!(kind, kind::AAAA | kind::ANY),
        };
        let addresses = addresses.into_iter().filter(wanted);
        Found {
            code: ResponseCode::NoError,
            ttl,
            records: addresses.map(Data::Address).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
