//! Who has which address of a network.
//!
//! # Theory of operation
//!
//! A lease belongs to a name. While the container is there, the lease is *held*; after it left,
//! the lease is *remembered*, so that the next container of that name gets the same addresses. An
//! address that is remembered goes to another name only if nothing else is free, the one released
//! longest ago first, or if it is asked for by number. A name that loses one address so loses all
//! it was remembered for.
//!
//! What is not asked for by number is chosen so:
//!
//! - IPv4, and IPv6 pools of few addresses: the lowest that is free.
//! - IPv6 in a /64: the interface identifier that the kernel, or any machine that configures
//!   itself by router advertisements, makes of the MAC address (RFC 4291 appendix A). Lease and
//!   autoconfiguration then mean the same address.
//! - IPv6 elsewhere, or where that is taken: a hash of the name (as RFC 7217 would have it).
//! - MAC: Docker's `02:42` before the IPv4 address, or a hash of the name.
//!
//! There is neither clock nor chance in it: "longest ago" is a count of releases.
//!
//! # Invariants
//!
//! - No two names hold or are remembered for one address, of whatever kind.
//! - No container gets the gateway's addresses, a reserved one, or one that no host can have.
//! - At most [`MAX_REMEMBERED`] leases are remembered.
//! - A name that takes up its lease again, within the same pools and without asking for another
//!   address, gets what it had.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use cnet_wire::MacAddr;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use cnet::definition::Definition;
use cnet::definition::file;
use cnet::definition::pool::{hosts, number};

mod error;
mod pool;

pub use error::IpamError;
use pool::{Pool, hash};

/// How many names are remembered. The next one that leaves makes the oldest be forgotten.
pub const MAX_REMEMBERED: usize = 4096;

/// Pools of up to so many addresses are searched from the lowest; larger ones of IPv6 by hashes.
const SEARCHED: u128 = 1 << 16;

/// Bytes the file of leases may have: those of 100,000 containers.
const MAX_LEASES: u64 = 32 << 20;

/// Hashes of a name that are tried before its addresses count as taken.
const HASHES: u32 = 64;

/// The first bytes of Docker's MAC addresses: locally administered, one station.
const MAC_PREFIX: [u8; 2] = [0x02, 0x42];

/// The addresses that a container asks for by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AddressRequest {
    /// An IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// An IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// A MAC address.
    pub mac: Option<MacAddr>,
}

/// What a container has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// Its IPv4 address, if the network has IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address, if the network has IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Its MAC address.
    pub mac: MacAddr,
}

/// One name's lease.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lease {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv4: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<Ipv6Addr>,
    mac: String,
    /// The number of its release; none while it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    released: Option<u64>,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Leases {
    #[serde(default)]
    leases: BTreeMap<String, Lease>,
}

/// The name that has an address, and its release.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Holder {
    name: String,
    released: Option<u64>,
}

/// A lease with its MAC address read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    addresses: Addresses,
    released: Option<u64>,
}

/// The leases of one network. All of it is in memory; [`Ipam::save`] writes it down.
#[derive(Clone, Debug)]
pub struct Ipam {
    path: PathBuf,
    v4: Option<Pool>,
    v6: Option<Pool>,
    gateway_mac: MacAddr,
    /// Addresses that no container gets: the gateways'.
    reserved: BTreeSet<u128>,
    entries: BTreeMap<String, Entry>,
    by_address: BTreeMap<u128, String>,
    by_mac: BTreeMap<MacAddr, String>,
    releases: u64,
}

impl Ipam {
    /// The leases of the network `definition`, from the file at `path`, which need not exist.
    /// What fits the pools no longer is forgotten.
    ///
    /// # Errors
    ///
    /// [`IpamError::Broken`] and [`IpamError::File`].
    pub fn load(path: impl Into<PathBuf>, definition: &Definition) -> Result<Ipam, IpamError> {
        let mut ipam = Ipam::empty(path.into(), definition);
        let text = match file::read_text(&ipam.path, MAX_LEASES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ipam),
            text => text.map_err(at(&ipam.path))?,
        };
        let read: Leases = toml::from_str(&text).map_err(|error| IpamError::Broken {
            path: ipam.path.clone(),
            reason: error.to_string().trim_end().to_owned(),
        })?;
        for (name, lease) in read.leases {
            ipam.take_up(name, &lease);
        }
        Ok(ipam)
    }

    fn empty(path: PathBuf, definition: &Definition) -> Ipam {
        let (v4, v6) = (definition.ipv4, definition.ipv6);
        let pool = |subnet: IpNet, range: Option<IpNet>| Pool {
            subnet,
            range: range.unwrap_or(subnet),
            hosts: hosts(subnet, None),
            given: hosts(subnet, range),
        };
        let gateway_v4 = v4.map(|p| number(p.gateway.into()));
        let gateway_v6 = v6.map(|p| number(p.gateway.into()));
        Ipam {
            path,
            v4: v4.map(|p| pool(p.subnet.into(), p.ip_range.map(Into::into))),
            v6: v6.map(|p| pool(p.subnet.into(), p.ip_range.map(Into::into))),
            gateway_mac: definition.gateway_mac(),
            reserved: gateway_v4.into_iter().chain(gateway_v6).collect(),
            entries: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_mac: BTreeMap::new(),
            releases: 0,
        }
    }

    /// Takes up a lease from the file, unless it does not fit.
    fn take_up(&mut self, name: String, lease: &Lease) {
        let fits = |pool: &Option<Pool>, address: Option<IpAddr>| match (pool, address) {
            (Some(pool), Some(address)) => {
                pool.hosts.contains(&number(address)) && self.is_free(address)
            }
            (None, None) => true,
            _ => false,
        };
        let mac = lease
            .mac
            .parse()
            .ok()
            .filter(|mac: &MacAddr| self.permits_mac(*mac));
        let whole = fits(&self.v4, lease.ipv4.map(Into::into))
            && fits(&self.v6, lease.ipv6.map(Into::into));
        let Some(mac) = mac.filter(|mac| whole && !self.by_mac.contains_key(mac)) else {
            tracing::debug!(name, "a lease does not fit the network any more");
            return;
        };
        let addresses = Addresses {
            v4: lease.ipv4,
            v6: lease.ipv6,
            mac,
        };
        self.releases = self.releases.max(lease.released.unwrap_or(0));
        let released = lease.released;
        self.insert(
            name,
            Entry {
                addresses,
                released,
            },
        );
    }

    /// Writes all leases down, held and remembered.
    ///
    /// # Errors
    ///
    /// [`IpamError::File`]; the file is as before then.
    pub fn save(&self) -> Result<(), IpamError> {
        let lease = |entry: &Entry| Lease {
            ipv4: entry.addresses.v4,
            ipv6: entry.addresses.v6,
            mac: entry.addresses.mac.to_string(),
            released: entry.released,
        };
        let leases = self
            .entries
            .iter()
            .map(|(name, e)| (name.clone(), lease(e)));
        let leases = Leases {
            leases: leases.collect(),
        };
        let text = toml::to_string(&leases).map_err(|error| IpamError::Broken {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        let made = self.path.parent().map_or(Ok(()), file::make_directory);
        made.and_then(|()| file::replace(&self.path, text.as_bytes()))
            .map_err(at(&self.path))
    }

    /// Gives `name` a lease: what it holds, else what is `wanted`, else what it is remembered for,
    /// else what is free.
    ///
    /// # Errors
    ///
    /// See [`IpamError`]; all leases are as before then.
    pub fn lease(&mut self, name: &str, wanted: AddressRequest) -> Result<Addresses, IpamError> {
        let known = self.entries.get(name).copied();
        if let Some(Entry {
            addresses,
            released: None,
        }) = known
        {
            return same(name, addresses, wanted);
        }
        // On a copy of what may change, so that a failure changes nothing; a lease is taken a few
        // times a second at most.
        let mut tried = self.clone();
        let addresses = tried.choose(name, wanted, known.map(|entry| entry.addresses))?;
        *self = tried;
        Ok(addresses)
    }

    fn choose(
        &mut self,
        name: &str,
        wanted: AddressRequest,
        known: Option<Addresses>,
    ) -> Result<Addresses, IpamError> {
        self.forget(name);
        let v4 = wanted.v4.map(IpAddr::V4);
        let v4 = match (self.v4.clone(), v4) {
            (None, Some(address)) => return Err(IpamError::NoFamily("IPv4", address)),
            (None, None) => None,
            (Some(pool), Some(address)) => Some(self.take_wanted(&pool, address)?),
            (Some(pool), None) => {
                let known = known.and_then(|k| k.v4).map(IpAddr::V4);
                Some(match known.filter(|a| self.is_free(*a)) {
                    Some(address) => address,
                    None => self.lowest_free(&pool)?,
                })
            }
        };
        let v4 = v4.and_then(ipv4);
        let mac = match wanted.mac {
            Some(mac) => self.take_wanted_mac(mac)?,
            None => self.mac_for(name, v4, known)?,
        };
        let v6 = match (self.v6.clone(), wanted.v6.map(IpAddr::V6)) {
            (None, Some(address)) => return Err(IpamError::NoFamily("IPv6", address)),
            (None, None) => None,
            (Some(pool), Some(address)) => Some(self.take_wanted(&pool, address)?),
            (Some(pool), None) => {
                // With another MAC address, another identifier.
                let known = known.filter(|k| k.mac == mac).and_then(|k| k.v6);
                Some(match known.map(IpAddr::V6).filter(|a| self.is_free(*a)) {
                    Some(address) => address,
                    None => self.v6_for(&pool, name, mac)?,
                })
            }
        };
        let addresses = Addresses {
            v4,
            v6: v6.and_then(ipv6),
            mac,
        };
        let released = None;
        self.insert(
            name.to_owned(),
            Entry {
                addresses,
                released,
            },
        );
        Ok(addresses)
    }

    /// The container `name` has left. Its addresses are remembered.
    pub fn release(&mut self, name: &str) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        if entry.released.is_some() {
            return;
        }
        self.releases += 1;
        entry.released = Some(self.releases);
        let remembered = self
            .entries
            .values()
            .filter(|e| e.released.is_some())
            .count();
        if remembered > MAX_REMEMBERED
            && let Some(oldest) = self.oldest(|_| true)
        {
            self.forget(&oldest);
        }
    }

    /// Releases what is held by names that are not `present`: those that were there when the
    /// network's process crashed.
    pub fn release_absent(&mut self, present: impl Fn(&str) -> bool) {
        let held = self.held().map(|(name, _)| name.to_owned());
        let absent: Vec<String> = held.filter(|name| !present(name)).collect();
        for name in absent {
            self.release(&name);
        }
    }

    /// All leases that are held, by name.
    pub fn held(&self) -> impl Iterator<Item = (&str, Addresses)> {
        let held = self.entries.iter().filter(|(_, e)| e.released.is_none());
        held.map(|(name, entry)| (name.as_str(), entry.addresses))
    }

    fn insert(&mut self, name: String, entry: Entry) {
        let Addresses { v4, v6, mac } = entry.addresses;
        for address in v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)) {
            self.by_address.insert(number(address), name.clone());
        }
        self.by_mac.insert(mac, name.clone());
        self.entries.insert(name, entry);
    }

    fn forget(&mut self, name: &str) {
        let Some(entry) = self.entries.remove(name) else {
            return;
        };
        let Addresses { v4, v6, mac } = entry.addresses;
        for address in v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)) {
            self.by_address.remove(&number(address));
        }
        self.by_mac.remove(&mac);
    }

    fn holder(&self, name: &str) -> Option<Holder> {
        let (name, entry) = self.entries.get_key_value(name)?;
        Some(Holder {
            name: name.clone(),
            released: entry.released,
        })
    }

    fn is_free(&self, address: IpAddr) -> bool {
        let n = number(address);
        !self.by_address.contains_key(&n) && !self.reserved.contains(&n)
    }

    /// The name whose lease was released longest ago, among those that `fit`.
    fn oldest(&self, fit: impl Fn(&Addresses) -> bool) -> Option<String> {
        let remembered = self.entries.iter().filter(|(_, e)| fit(&e.addresses));
        remembered
            .filter_map(|(name, entry)| Some((entry.released?, name)))
            .min()
            .map(|(_, name)| name.clone())
    }

    fn take_wanted(&mut self, pool: &Pool, address: IpAddr) -> Result<IpAddr, IpamError> {
        let n = number(address);
        if !pool.subnet.contains(&address) {
            let subnet = pool.subnet;
            return Err(IpamError::Outside { address, subnet });
        }
        if !pool.hosts.contains(&n) || self.reserved.contains(&n) {
            return Err(IpamError::NotForContainers(address));
        }
        let holder = self.by_address.get(&n).and_then(|name| self.holder(name));
        self.displace(holder, address)?;
        Ok(address)
    }

    /// Makes an address free, unless its holder is there.
    fn displace(
        &mut self,
        holder: Option<Holder>,
        address: impl std::fmt::Display,
    ) -> Result<(), IpamError> {
        match holder {
            None => Ok(()),
            Some(holder) if holder.released.is_some() => {
                self.forget(&holder.name);
                Ok(())
            }
            Some(holder) => Err(IpamError::Taken {
                address: address.to_string(),
                holder: holder.name,
            }),
        }
    }

    fn lowest_free(&mut self, pool: &Pool) -> Result<IpAddr, IpamError> {
        // Each step passes over an address that is taken, so there are no more of them than leases.
        let free = |n: &u128| !self.by_address.contains_key(n) && !self.reserved.contains(n);
        if let Some(n) = pool.given.clone().find(free) {
            return Ok(pool.address(n));
        }
        let own = |addresses: &Addresses| pool.own(addresses);
        let given = |a: &Addresses| {
            own(a).is_some_and(|n| pool.given.contains(&n) && !self.reserved.contains(&n))
        };
        let Some((oldest, n)) = self.oldest(given).and_then(|name| {
            let n = own(&self.entries.get(&name)?.addresses)?;
            Some((name, n))
        }) else {
            let reserved = self.reserved.range(pool.given.clone()).count();
            let all = pool.given.end() - pool.given.start() + 1;
            return Err(IpamError::Exhausted {
                pool: pool.range,
                held: self.by_address.range(pool.given.clone()).count(),
                usable: all - reserved as u128,
            });
        };
        self.forget(&oldest);
        Ok(pool.address(n))
    }

    fn v6_for(&mut self, pool: &Pool, name: &str, mac: MacAddr) -> Result<IpAddr, IpamError> {
        if pool.given.end() - pool.given.start() < SEARCHED {
            return self.lowest_free(pool);
        }
        let whole = pool.range == pool.subnet && pool.subnet.prefix_len() == 64;
        let own = number(pool.subnet.network()) | u128::from(u64::from_be_bytes(mac.eui64()));
        let own = whole.then_some(own);
        let hashed = (0..HASHES).map(|attempt| pool.hashed(name, attempt));
        // The lowest, if all of them are taken: addresses were chosen so as to collide.
        own.into_iter()
            .chain(hashed)
            .map(|n| pool.address(n))
            .find(|address| pool.given.contains(&number(*address)) && self.is_free(*address))
            .map_or_else(|| self.lowest_free(pool), Ok)
    }

    fn permits_mac(&self, mac: MacAddr) -> bool {
        !mac.is_multicast() && !mac.is_zero() && mac != self.gateway_mac
    }

    fn take_wanted_mac(&mut self, mac: MacAddr) -> Result<MacAddr, IpamError> {
        if !self.permits_mac(mac) {
            return Err(IpamError::Mac(mac));
        }
        let holder = self.by_mac.get(&mac).and_then(|name| self.holder(name));
        self.displace(holder, mac)?;
        Ok(mac)
    }

    fn mac_for(
        &mut self,
        name: &str,
        v4: Option<Ipv4Addr>,
        known: Option<Addresses>,
    ) -> Result<MacAddr, IpamError> {
        // What was made of another IPv4 address will be made again when a container has that.
        let known = known.filter(|k| k.v4 == v4).map(|k| k.mac);
        let made = v4.map(|v4| mac_of(v4.octets()));
        let hashed = (0..HASHES).map(|attempt| {
            let [a, b, c, d, ..] = hash(name, attempt);
            mac_of([a, b, c, d])
        });
        let mut candidates = known.into_iter().chain(made).chain(hashed);
        let free = |mac: &MacAddr| self.permits_mac(*mac) && !self.by_mac.contains_key(mac);
        candidates.find(free).ok_or_else(|| IpamError::Taken {
            address: "each MAC address that could be made for it".to_owned(),
            holder: "another".to_owned(),
        })
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> IpamError + use<> {
    let path = path.to_owned();
    move |source| IpamError::File { path, source }
}

fn mac_of([a, b, c, d]: [u8; 4]) -> MacAddr {
    let [first, second] = MAC_PREFIX;
    MacAddr([first, second, a, b, c, d])
}

fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn ipv6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

/// The lease that is held, if it is what is wanted.
fn same(name: &str, has: Addresses, wanted: AddressRequest) -> Result<Addresses, IpamError> {
    let other = |has: Option<String>, wanted: String| IpamError::HasAnother {
        name: name.to_owned(),
        has: has.unwrap_or_else(|| "none".to_owned()),
        wanted,
    };
    if let Some(v4) = wanted.v4.filter(|v4| Some(*v4) != has.v4) {
        return Err(other(has.v4.map(|a| a.to_string()), v4.to_string()));
    }
    if let Some(v6) = wanted.v6.filter(|v6| Some(*v6) != has.v6) {
        return Err(other(has.v6.map(|a| a.to_string()), v6.to_string()));
    }
    match wanted.mac.filter(|mac| *mac != has.mac) {
        Some(mac) => Err(other(Some(has.mac.to_string()), mac.to_string())),
        None => Ok(has),
    }
}

#[cfg(test)]
mod tests;
