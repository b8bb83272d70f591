//! Which port and MAC address an IP address was seen at.
//!
//! Invariants: an address stays with the port it was first seen at until that port is removed, so
//! a claim from elsewhere changes nothing; a port has at most [`MAX_PER_PORT`] addresses, its
//! oldest making room for a new one, so that a scan or a flood of claims costs only the port it
//! comes from. There is no expiry: a port's end is the end of its bindings.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use cnet_wire::{MacAddr, PortId};

/// Addresses kept for one port.
pub(super) const MAX_PER_PORT: usize = 32;

/// The table.
#[derive(Default)]
pub(super) struct Neighbours {
    bindings: BTreeMap<IpAddr, (PortId, MacAddr)>,
    /// Each port's addresses, the oldest first.
    by_port: BTreeMap<PortId, VecDeque<IpAddr>>,
}

impl Neighbours {
    pub(super) fn get(&self, ip: IpAddr) -> Option<(PortId, MacAddr)> {
        self.bindings.get(&ip).copied()
    }

    /// Binds `ip` to `mac` on `port`; false if it belongs to another port.
    pub(super) fn learn(&mut self, ip: IpAddr, port: PortId, mac: MacAddr) -> bool {
        if let Some(binding) = self.bindings.get_mut(&ip) {
            if binding.0 != port {
                return false;
            }
            binding.1 = mac;
            return true;
        }
        let order = self.by_port.entry(port).or_default();
        if order.len() >= MAX_PER_PORT
            && let Some(oldest) = order.pop_front()
        {
            self.bindings.remove(&oldest);
        }
        order.push_back(ip);
        self.bindings.insert(ip, (port, mac));
        true
    }

    /// Unbinds `ip`.
    pub(super) fn forget(&mut self, ip: IpAddr) {
        if let Some((port, _)) = self.bindings.remove(&ip)
            && let Some(order) = self.by_port.get_mut(&port)
        {
            order.retain(|&a| a != ip);
        }
    }

    /// Takes `ip` from whichever port but `holder` has it.
    pub(super) fn reserve(&mut self, ip: IpAddr, holder: PortId) {
        if self.get(ip).is_some_and(|(port, _)| port != holder) {
            self.forget(ip);
        }
    }

    pub(super) fn remove_port(&mut self, port: PortId) {
        for ip in self.by_port.remove(&port).into_iter().flatten() {
            self.bindings.remove(&ip);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.bindings.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PortId = PortId(1);
    const B: PortId = PortId(2);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn a_binding_stays_with_its_port_until_the_port_goes() {
        let mut n = Neighbours::default();
        assert!(n.learn(ip(1), A, MAC));
        assert!(!n.learn(ip(1), B, OTHER));
        assert_eq!(n.get(ip(1)), Some((A, MAC)));
        assert!(n.learn(ip(1), A, OTHER));
        assert_eq!(n.get(ip(1)), Some((A, OTHER)));
        n.remove_port(A);
        assert_eq!(n.get(ip(1)), None);
        assert!(n.learn(ip(1), B, OTHER));
    }

    #[test]
    fn a_flood_costs_only_its_own_port() {
        let mut n = Neighbours::default();
        n.learn(ip(0), B, OTHER);
        for i in 1..10_000 {
            n.learn(ip(i), A, MAC);
        }
        assert_eq!(n.len(), MAX_PER_PORT + 1);
        assert_eq!(n.get(ip(0)), Some((B, OTHER)));
        assert_eq!(n.get(ip(9_999)), Some((A, MAC)));
        assert_eq!(n.get(ip(1)), None);
    }

    #[test]
    fn a_lease_takes_the_address_from_a_squatter() {
        let mut n = Neighbours::default();
        n.learn(ip(1), A, MAC);
        n.reserve(ip(1), A);
        assert_eq!(n.get(ip(1)), Some((A, MAC)));
        n.reserve(ip(1), B);
        assert!(n.learn(ip(1), B, OTHER));
        n.remove_port(A);
        assert_eq!(n.get(ip(1)), Some((B, OTHER)));
    }
}
