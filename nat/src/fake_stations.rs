//! A table of stations for tests.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cnet_wire::stations::{Location, Stations, Taken};
use cnet_wire::time::Instant;
use cnet_wire::{MacAddr, PortId};

/// A table that learns what a test tells it.
#[derive(Default)]
pub(crate) struct FakeStations {
    pub(crate) ports: BTreeSet<PortId>,
    known: RefCell<BTreeMap<IpAddr, (Location, bool)>>,
}

impl FakeStations {
    pub(crate) fn of(ports: impl IntoIterator<Item = PortId>) -> FakeStations {
        FakeStations {
            ports: ports.into_iter().collect(),
            known: RefCell::default(),
        }
    }

    /// The address is leased to a port, and its MAC address may be known.
    pub(crate) fn lease(&self, address: IpAddr, port: PortId, mac: Option<MacAddr>) {
        let station = Location { port, mac };
        self.known.borrow_mut().insert(address, (station, true));
    }

    /// A port used the address, as the switch learns it from its frames.
    pub(crate) fn learn(&self, address: IpAddr, port: PortId, mac: MacAddr) {
        let mut known = self.known.borrow_mut();
        let learned = Location { port, mac: None };
        let (station, _) = known.entry(address).or_insert((learned, false));
        if station.port == port {
            station.mac = Some(mac);
        }
    }

    pub(crate) fn remove_port(&mut self, port: PortId) {
        self.ports.remove(&port);
        self.known.borrow_mut().retain(|_, (s, _)| s.port != port);
    }
}

impl Stations for FakeStations {
    fn by_address(&self, _: Instant, address: IpAddr) -> Option<Location> {
        self.known.borrow().get(&address).map(|(s, _)| *s)
    }

    fn grant(&self, address: IpAddr, port: PortId, mac: Option<MacAddr>) -> Result<(), Taken> {
        let mut known = self.known.borrow_mut();
        let former = known.get(&address).copied();
        if former.is_some_and(|(s, pinned)| pinned && s.port != port) {
            return Err(Taken);
        }
        let of_port = former.filter(|(s, _)| s.port == port);
        let mac = mac.or(of_port.and_then(|(s, _)| s.mac));
        known.insert(address, (Location { port, mac }, true));
        Ok(())
    }

    fn take_back(&self, address: IpAddr, port: PortId) {
        let mut known = self.known.borrow_mut();
        known.retain(|a, (s, _)| *a != address || s.port != port);
    }

    fn ports(&self) -> impl Iterator<Item = PortId> + '_ {
        self.ports.iter().copied()
    }
}
