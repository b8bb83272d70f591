//! Who is where on the link: which port a MAC address and an IP address are behind, pinned by a lease
//! or learned ([`crate::fdb`]), and which of them are the gateway's.

use std::net::{IpAddr, Ipv6Addr};

use cnet_wire::addr::{MacAddr, PortId, is_station};
use cnet_wire::time::Instant;

use crate::fdb::{AGEING, AddressTable, Claim, Fdb, MAC_HOLD, Refusal};

/// What is fixed for a network's life.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SwitchConfig {
    /// MAC addresses of the gateway.
    pub gateway_macs: Vec<MacAddr>,
    /// IP addresses that the gateway answers for on the link, its link-local one included.
    pub gateway_addresses: Vec<IpAddr>,
    /// IPv6 prefixes, with their lengths, from which ports may make up addresses (SLAAC).
    /// fe80::/10 always is one.
    pub ipv6_prefixes: Vec<(Ipv6Addr, u8)>,
    /// Random; keeps containers from choosing addresses that collide in the tables.
    pub seed: u64,
}

/// Who is where, and what the router answers for: shared by the switches of all workers.
#[derive(Debug)]
pub struct Stations {
    config: SwitchConfig,
    pub(crate) fdb: Fdb,
    pub(crate) addresses: AddressTable,
}

impl Stations {
    pub(crate) fn new(config: SwitchConfig) -> Stations {
        Stations {
            fdb: Fdb::new(MAC_HOLD, config.seed),
            addresses: AddressTable::new(AGEING, config.seed),
            config,
        }
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
        if !is_station(address) || self.is_gateway_address(address) {
            return Err(Refusal::Owned);
        }
        self.addresses.learn_at(now, address, station, limit)
    }

    pub(crate) fn is_gateway_mac(&self, mac: MacAddr) -> bool {
        self.config.gateway_macs.contains(&mac)
    }

    pub(crate) fn is_gateway_address(&self, addr: IpAddr) -> bool {
        self.config.gateway_addresses.contains(&addr)
    }

    /// Whether a port may make up `addr` (RFC 6620).
    pub(crate) fn may_be_taken(&self, addr: Ipv6Addr) -> bool {
        let within = |&(prefix, len): &(Ipv6Addr, u8)| {
            let differ = u128::from(addr) ^ u128::from(prefix);
            differ.leading_zeros() >= u32::from(len.min(128))
        };
        (addr.is_unicast_link_local() || self.config.ipv6_prefixes.iter().any(within))
            && !self.is_gateway_address(IpAddr::V6(addr))
    }
}
