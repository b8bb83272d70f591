//! Who is where on the link: which port a MAC address and an IP address are behind, pinned by a lease,
//! as the router's own are, or learned ([`crate::fdb`]).

use std::net::{IpAddr, Ipv6Addr};

use cnet_wire::addr::{MacAddr, PortId, is_station};
use cnet_wire::time::Instant;

use crate::conntrack::Conntrack;
use crate::fdb::{AGEING, AddressTable, Claim, Fdb, MAC_HOLD, Refusal};
use crate::port::{AddPortError, Lease};

/// What is fixed for a network's life.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SwitchConfig {
    /// The router's own addresses: all that it answers for on the link, its link-local one included.
    /// Without a MAC address nothing is delivered to it by that.
    pub router: Lease,
    /// IPv6 prefixes, with their lengths, from which ports may make up addresses (SLAAC).
    /// fe80::/10 always is one.
    pub ipv6_prefixes: Vec<(Ipv6Addr, u8)>,
    /// Random; keeps containers from choosing addresses that collide in the tables.
    pub seed: u64,
}

/// Who is where: shared by the switches of all workers.
#[derive(Debug)]
pub struct Stations {
    ipv6_prefixes: Vec<(Ipv6Addr, u8)>,
    pub(crate) fdb: Fdb,
    pub(crate) addresses: AddressTable,
    /// What containers that policies select have opened.
    pub(crate) conntrack: Conntrack,
}

impl Stations {
    pub(crate) fn new(ipv6_prefixes: Vec<(Ipv6Addr, u8)>, seed: u64) -> Stations {
        Stations {
            ipv6_prefixes,
            fdb: Fdb::new(MAC_HOLD, seed),
            addresses: AddressTable::new(AGEING, seed),
            conntrack: Conntrack::new(seed),
        }
    }

    /// Pins `lease` to `port`. What was pinned before an error stays.
    ///
    /// # Errors
    ///
    /// The MAC address is no station's or the router's, or an address is another port's by lease.
    pub(crate) fn pin(&self, port: PortId, lease: &Lease) -> Result<(), AddPortError> {
        if let Some(mac) = lease.mac {
            let is_routers = port != PortId::ROUTER && self.fdb.pinned(mac) == Some(PortId::ROUTER);
            if mac.is_multicast() || mac.is_zero() || is_routers {
                return Err(AddPortError::UnusableMac(mac));
            }
            let pinned = self.fdb.pin(mac, port, Claim::Leased);
            pinned.map_err(|_| AddPortError::MacInUse(mac))?;
        }
        for address in lease.addresses() {
            let pinned = self.addresses.pin(address, port, Claim::Leased);
            pinned.map_err(|_| AddPortError::AddressInUse(address))?;
            if let Some(mac) = lease.mac {
                self.addresses.tell_mac(address, port, mac);
            }
        }
        Ok(())
    }

    /// Forgets all that is leased to `port`, granted to it or learned from it.
    pub(crate) fn remove_port(&self, port: PortId) {
        self.fdb.remove_port(port);
        self.addresses.remove_port(port);
        self.conntrack.remove_port(port);
    }

    /// Where `address` is: the port it is leased or granted to, or was learned from, and the MAC address
    /// it was last used with, if that is known.
    pub fn by_address(&self, now: Instant, address: IpAddr) -> Option<(PortId, Option<MacAddr>)> {
        self.addresses.locate(now, address)
    }

    /// DHCP grants `address` to `port`, whose station is at `mac` if that is told: all others lose it.
    ///
    /// # Errors
    ///
    /// [`Refusal::Owned`]: it is leased or granted to another port.
    pub fn grant(
        &self,
        address: IpAddr,
        port: PortId,
        mac: Option<MacAddr>,
    ) -> Result<(), Refusal> {
        self.addresses.pin(address, port, Claim::Granted)?;
        if let Some(mac) = mac {
            self.addresses.tell_mac(address, port, mac);
        }
        Ok(())
    }

    /// DHCP takes back what it granted.
    pub fn take_back(&self, address: IpAddr, port: PortId) {
        self.addresses.take_back(address, port);
    }

    /// The port of `station`, which has learned fewer addresses than `limit`, uses `address`.
    pub(crate) fn learn(
        &self,
        now: Instant,
        address: IpAddr,
        station: (PortId, MacAddr),
        limit: usize,
    ) -> Result<(), Refusal> {
        if !is_station(address) {
            return Err(Refusal::Owned);
        }
        self.addresses.learn_at(now, address, station, limit)
    }

    /// Whether a port may make up `addr` (RFC 6620), if it is no other's.
    pub(crate) fn may_be_taken(&self, addr: Ipv6Addr) -> bool {
        let within = |&(prefix, len): &(Ipv6Addr, u8)| {
            let differ = u128::from(addr) ^ u128::from(prefix);
            differ.leading_zeros() >= u32::from(len.min(128))
        };
        addr.is_unicast_link_local() || self.ipv6_prefixes.iter().any(within)
    }
}
