//! The switch's table of stations, as the router asks it.

use std::net::IpAddr;

use cnet_nat::stations::{Location, Stations, Taken};
use cnet_vswitch::Neighbours;
use cnet_wire::time::Instant;
use cnet_wire::{MacAddr, PortId};

/// Lends the router the table of stations and the list of ports.
#[derive(Clone, Copy)]
pub(crate) struct StationsOf<'a>(pub(crate) Neighbours<'a>);

impl Stations for StationsOf<'_> {
    #[inline]
    fn by_address(&self, now: Instant, address: IpAddr) -> Option<Location> {
        let (port, mac) = self.0.by_address(now, address)?;
        Some(Location { port, mac })
    }

    fn grant(&self, address: IpAddr, port: PortId, mac: Option<MacAddr>) -> Result<(), Taken> {
        let granted = self.0.grant(address, port, mac);
        granted.map_err(|_| Taken)
    }

    fn take_back(&self, address: IpAddr, port: PortId) {
        self.0.take_back(address, port);
    }

    fn ports(&self) -> impl Iterator<Item = PortId> + '_ {
        self.0.ports()
    }
}
