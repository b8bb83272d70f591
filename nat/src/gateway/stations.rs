//! The stations on the gateway's ports: their leases, and where their addresses were seen.

use std::net::{IpAddr, Ipv4Addr};

use cnet_wire::{MacAddr, PortId};

use super::lease::{Lease, Leases};
use super::neighbours::Neighbours;

/// Ports, leases and neighbours together.
pub(super) struct Stations {
    ports: std::collections::BTreeSet<PortId>,
    leases: Leases,
    neighbours: Neighbours,
}

impl Stations {
    pub(super) fn new(fixed: Vec<Lease>, range: Option<(Ipv4Addr, Ipv4Addr)>) -> Stations {
        Stations {
            ports: Default::default(),
            leases: Leases::new(fixed, range),
            neighbours: Neighbours::default(),
        }
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = PortId> + '_ {
        self.ports.iter().copied()
    }

    pub(super) fn has_port(&self, port: PortId) -> bool {
        self.ports.contains(&port)
    }

    pub(super) fn add_port(&mut self, port: PortId) {
        self.ports.insert(port);
    }

    /// Forgets `port`, its neighbours, and its fixed and dynamic leases.
    pub(super) fn remove_port(&mut self, port: PortId) {
        self.ports.remove(&port);
        self.neighbours.remove_port(port);
        self.leases.remove_port(port);
    }

    /// Adds a fixed lease. Other stations that used its addresses lose them.
    pub(super) fn add_lease(&mut self, lease: Lease) {
        for ip in lease.addresses() {
            if let Some((port, mac)) = self.neighbours.get(ip)
                && !lease.is_held_by(port, mac)
            {
                self.neighbours.forget(ip);
            }
        }
        self.leases.add(lease);
    }

    /// Where `ip` is, if it has spoken or its lease tells.
    pub(super) fn neighbour(&self, ip: IpAddr) -> Option<(PortId, MacAddr)> {
        let seen = self.neighbours.get(ip);
        seen.or_else(|| self.leases.location(ip))
    }

    /// The port that `ip` has spoken from, or whose lease it is.
    pub(super) fn port_of(&self, ip: IpAddr) -> Option<PortId> {
        let seen = self.neighbours.get(ip).map(|(port, _)| port);
        seen.or_else(|| self.leases.holder(ip))
    }

    /// The addresses leased to `port`.
    pub(super) fn leased_to(&self, port: PortId) -> impl Iterator<Item = IpAddr> + '_ {
        self.leases.addresses_of(port)
    }

    /// Records that `ip` is at `mac` on `port`; false if it is leased to or bound to another port.
    pub(super) fn learn(&mut self, ip: IpAddr, port: PortId, mac: MacAddr) -> bool {
        self.has_port(port)
            && self.leases.permits(ip, port, mac)
            && self.neighbours.learn(ip, port, mac)
    }

    /// The fixed lease of a station.
    pub(super) fn fixed_lease(&self, port: PortId, mac: MacAddr) -> Option<&Lease> {
        self.leases.fixed(port, mac)
    }

    /// The IPv4 address leased to a station, taken from the range if it has no other; `usable`
    /// excludes addresses of the range. Other stations lose it.
    pub(super) fn lease_v4(
        &mut self,
        port: PortId,
        mac: MacAddr,
        usable: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let lease = self.leases.v4(port, mac, usable)?;
        self.neighbours.reserve(IpAddr::V4(lease), port);
        Some(lease)
    }

    /// Takes back the dynamic lease of `port`, after a decline or a release.
    pub(super) fn release_v4(&mut self, port: PortId, declined: bool) {
        self.leases.release(port, declined);
    }

    #[cfg(test)]
    pub(super) fn neighbours(&self) -> usize {
        self.neighbours.len()
    }
}
