//! Who holds which address.
//!
//! A *fixed* lease comes with the configuration and names its holder by switch port, or by MAC
//! address where the port is not known beforehand. Where a range is given, a port without a fixed
//! lease gets a *dynamic* IPv4 lease out of it: one a port, whatever MAC addresses and client
//! identifiers its requests carry, so that nobody can drain the range. Leases are the last word
//! on ownership: an address that is leased cannot be claimed by another port.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cnet_wire::{MacAddr, PortId};

/// A fixed lease.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lease {
    /// The holder's port. A lease with a port is the port's, whatever `mac` says.
    pub port: Option<PortId>,
    /// The holder's MAC address: names the holder if `port` is `None`, and makes it known as a
    /// neighbour before it has spoken if both are given.
    pub mac: Option<MacAddr>,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address, handed out by DHCPv6 only.
    pub v6: Option<Ipv6Addr>,
    /// Its host name, for DHCPv4.
    pub hostname: Option<String>,
}

impl Lease {
    pub(super) fn is_held_by(&self, port: PortId, mac: MacAddr) -> bool {
        match self.port {
            Some(p) => p == port,
            None => self.mac == Some(mac),
        }
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// A port's place in the range.
#[derive(Default)]
struct Dynamic {
    address: Option<Ipv4Addr>,
    /// Where the next search starts, so that a declined address is not offered at once again.
    cursor: Option<Ipv4Addr>,
}

/// All leases of the network.
pub(super) struct Leases {
    fixed: Vec<Lease>,
    /// Positions in `fixed` by address.
    by_address: BTreeMap<IpAddr, usize>,
    range: Option<(Ipv4Addr, Ipv4Addr)>,
    dynamic: BTreeMap<PortId, Dynamic>,
    dynamic_holders: BTreeMap<Ipv4Addr, PortId>,
}

impl Leases {
    pub(super) fn new(fixed: Vec<Lease>, range: Option<(Ipv4Addr, Ipv4Addr)>) -> Leases {
        let mut leases = Leases {
            fixed,
            by_address: BTreeMap::new(),
            range: range.filter(|(first, last)| first <= last),
            dynamic: BTreeMap::new(),
            dynamic_holders: BTreeMap::new(),
        };
        leases.index();
        leases
    }

    fn index(&mut self) {
        let fixed = self.fixed.iter().enumerate();
        self.by_address = fixed
            .flat_map(|(i, lease)| lease.addresses().map(move |a| (a, i)))
            .collect();
    }

    pub(super) fn add(&mut self, lease: Lease) {
        for address in lease.addresses() {
            if let IpAddr::V4(a) = address
                && let Some(port) = self.dynamic_holders.remove(&a)
            {
                self.dynamic.remove(&port);
            }
        }
        self.fixed.push(lease);
        self.index();
    }

    /// Forgets what `port` holds.
    pub(super) fn remove_port(&mut self, port: PortId) {
        self.fixed.retain(|l| l.port != Some(port));
        self.index();
        if let Some(Dynamic {
            address: Some(a), ..
        }) = self.dynamic.remove(&port)
        {
            self.dynamic_holders.remove(&a);
        }
    }

    /// The fixed lease of a station.
    pub(super) fn fixed(&self, port: PortId, mac: MacAddr) -> Option<&Lease> {
        self.fixed.iter().find(|l| l.is_held_by(port, mac))
    }

    /// Whether the station may use `ip`: it is nobody's, or its own.
    pub(super) fn permits(&self, ip: IpAddr, port: PortId, mac: MacAddr) -> bool {
        if let Some(lease) = self.by_address.get(&ip).and_then(|&i| self.fixed.get(i)) {
            return lease.is_held_by(port, mac);
        }
        match ip {
            IpAddr::V4(ip) => self.dynamic_holders.get(&ip).is_none_or(|&p| p == port),
            IpAddr::V6(_) => true,
        }
    }

    /// Where the holder of a fixed lease on `ip` is, if the lease tells.
    pub(super) fn location(&self, ip: IpAddr) -> Option<(PortId, MacAddr)> {
        let lease = self.fixed.get(*self.by_address.get(&ip)?)?;
        Some((lease.port?, lease.mac?))
    }

    /// The port that a lease on `ip` names.
    pub(super) fn holder(&self, ip: IpAddr) -> Option<PortId> {
        let fixed = self.by_address.get(&ip).and_then(|&i| self.fixed.get(i));
        match (fixed, ip) {
            (Some(lease), _) => lease.port,
            (None, IpAddr::V4(ip)) => self.dynamic_holders.get(&ip).copied(),
            (None, IpAddr::V6(_)) => None,
        }
    }

    /// The addresses leased to `port`.
    pub(super) fn addresses_of(&self, port: PortId) -> impl Iterator<Item = IpAddr> + '_ {
        let fixed = self.fixed.iter().filter(move |l| l.port == Some(port));
        let dynamic = self.dynamic.get(&port).and_then(|d| d.address);
        fixed
            .flat_map(Lease::addresses)
            .chain(dynamic.map(IpAddr::V4))
    }

    /// The IPv4 address of a station, taken from the range if it has no other. `usable` excludes
    /// addresses of the range that are not for containers.
    pub(super) fn v4(
        &mut self,
        port: PortId,
        mac: MacAddr,
        usable: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        if let Some(a) = self.fixed(port, mac).and_then(|l| l.v4) {
            return Some(a);
        }
        let state = self.dynamic.get(&port);
        if let Some(a) = state.and_then(|d| d.address) {
            return Some(a);
        }
        let (first, last) = self.range.map(|(a, b)| (u32::from(a), u32::from(b)))?;
        let start = state
            .and_then(|d| d.cursor)
            .map_or(first, |c| u32::from(c).clamp(first, last));
        // Each step passes over an address that is taken, so there are no more of them than leases.
        let found = (start..=last)
            .chain(first..start)
            .map(Ipv4Addr::from)
            .find(|&a| {
                usable(a)
                    && !self.by_address.contains_key(&IpAddr::V4(a))
                    && !self.dynamic_holders.contains_key(&a)
            })?;
        self.dynamic.entry(port).or_default().address = Some(found);
        self.dynamic_holders.insert(found, port);
        Some(found)
    }

    /// Takes back the dynamic lease of `port`. After a decline the search goes on behind the
    /// refused address.
    pub(super) fn release(&mut self, port: PortId, declined: bool) {
        let Some(state) = self.dynamic.get_mut(&port) else {
            return;
        };
        if let Some(a) = state.address.take() {
            self.dynamic_holders.remove(&a);
            if declined {
                state.cursor = Some(Ipv4Addr::from(u32::from(a).saturating_add(1)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn range() -> Option<(Ipv4Addr, Ipv4Addr)> {
        Some((Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 18)))
    }

    fn host(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, n)
    }

    #[test]
    fn a_port_has_one_dynamic_lease_whatever_its_mac() {
        let mut l = Leases::new(Vec::new(), range());
        let usable = |a| a != host(16);
        for i in 0..100 {
            let mac = MacAddr([2, 0, 0, 0, 1, i]);
            assert_eq!(l.v4(PortId(1), mac, usable), Some(host(15)));
        }
        assert_eq!(l.v4(PortId(2), OTHER, usable), Some(host(17)));
        assert_eq!(l.v4(PortId(3), OTHER, usable), Some(host(18)));
        assert_eq!(l.v4(PortId(4), OTHER, usable), None);
        assert!(!l.permits(host(17).into(), PortId(1), MAC));
        assert!(l.permits(host(15).into(), PortId(1), MAC));
        l.remove_port(PortId(2));
        assert_eq!(l.v4(PortId(4), OTHER, usable), Some(host(17)));
    }

    #[test]
    fn a_declined_address_is_not_offered_next() {
        let mut l = Leases::new(Vec::new(), range());
        assert_eq!(l.v4(PortId(1), MAC, |_| true), Some(host(15)));
        l.release(PortId(1), true);
        assert_eq!(l.v4(PortId(1), MAC, |_| true), Some(host(16)));
        l.release(PortId(1), false);
        assert_eq!(l.v4(PortId(2), OTHER, |_| true), Some(host(15)));
        assert_eq!(l.v4(PortId(1), MAC, |_| true), Some(host(16)));
        for _ in 0..3 {
            l.release(PortId(1), true);
            assert_ne!(l.v4(PortId(1), MAC, |_| true), None);
        }
    }

    #[test]
    fn fixed_leases_go_by_port_then_mac_and_are_exclusive() {
        let by_port = Lease {
            port: Some(PortId(1)),
            mac: Some(MAC),
            v4: Some(host(15)),
            ..Lease::default()
        };
        let by_mac = Lease {
            mac: Some(OTHER),
            v4: Some(host(16)),
            ..Lease::default()
        };
        let mut l = Leases::new(vec![by_port], range());
        assert_eq!(l.v4(PortId(1), OTHER, |_| true), Some(host(15)));
        assert_eq!(l.v4(PortId(2), OTHER, |_| true), Some(host(16)));
        l.add(by_mac);
        assert_eq!(l.v4(PortId(2), OTHER, |_| true), Some(host(16)));
        assert_eq!(l.v4(PortId(2), MAC, |_| true), Some(host(17)));
        assert!(!l.permits(host(15).into(), PortId(2), MAC));
        assert_eq!(l.location(host(15).into()), Some((PortId(1), MAC)));
        assert_eq!(l.location(host(16).into()), None);
        l.remove_port(PortId(1));
        assert_eq!(l.location(host(15).into()), None);
    }
}
