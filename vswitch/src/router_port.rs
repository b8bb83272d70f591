//! The router's port, as the router has it: what it sends comes into the switch here, and here it asks
//! who is where.
//!
//! What the router sends has one station or one flow in view, so it names the port it goes to, and is
//! neither admitted nor looked up. It is counted as come in by [`PortId::ROUTER`].

use std::net::IpAddr;

use cnet_wire::addr::{MacAddr, PortId};
use cnet_wire::sink::{FrameSink, PortFull};
use cnet_wire::stations::{self, Location, Taken};
use cnet_wire::time::Instant;
use cnet_wire::vnet::VNET_HDR_LEN;

use crate::port::{Port, PortCounters, PortRole};
use crate::stations::Stations;

/// Counts what the router sends, and takes it to the ports.
#[derive(Debug)]
pub struct RouterPort<'a, S> {
    pub(crate) sink: &'a mut S,
    pub(crate) counters: &'a mut PortCounters,
}

impl<S: FrameSink> FrameSink for RouterPort<'_, S> {
    #[inline]
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        self.counters.frames_in += 1;
        self.counters.bytes_in += frame.len().saturating_sub(VNET_HDR_LEN) as u64;
        self.sink.emit(port, frame)
    }

    fn hand_over(&mut self, ingress: PortId, frame: &[u8]) -> Result<(), PortFull> {
        self.sink.hand_over(ingress, frame)
    }

    #[inline]
    fn takes_uso(&self, port: PortId) -> bool {
        self.sink.takes_uso(port)
    }
}

/// Who is behind the other ports. The router's own addresses are not among them.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours<'a> {
    pub(crate) stations: &'a Stations,
    pub(crate) ports: &'a [Option<Box<Port>>],
}

impl<'a> Neighbours<'a> {
    /// All ports but the router's.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = PortId> + use<'a> {
        let numbered = (0..).map(PortId).zip(self.ports);
        numbered.filter_map(|(id, port)| port.is_some().then_some(id))
    }

    /// Stations behind an uplink have a router of their own.
    fn is_uplink(&self, id: PortId) -> bool {
        let port = self.ports.get(id.0 as usize).and_then(Option::as_deref);
        port.is_some_and(|port| port.config.role == PortRole::Uplink)
    }
}

impl stations::Stations for Neighbours<'_> {
    #[inline]
    fn by_address(&self, now: Instant, address: IpAddr) -> Option<Location> {
        let (port, mac) = self.stations.by_address(now, address)?;
        let is_router = port == PortId::ROUTER;
        (!is_router && !self.is_uplink(port)).then_some(Location { port, mac })
    }

    fn grant(&self, address: IpAddr, port: PortId, mac: Option<MacAddr>) -> Result<(), Taken> {
        let granted = self.stations.grant(address, port, mac);
        granted.map_err(|_| Taken)
    }

    fn take_back(&self, address: IpAddr, port: PortId) {
        self.stations.take_back(address, port);
    }

    fn ports(&self) -> impl Iterator<Item = PortId> + '_ {
        self.numbers().filter(|&port| !self.is_uplink(port))
    }
}
