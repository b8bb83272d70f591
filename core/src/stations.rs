//! The router at its port of the switch: what it is lent for a call, and the table of stations as it
//! asks it.

use std::net::IpAddr;

use cnet_nat::io::{Env, Io};
use cnet_nat::router::Router;
use cnet_nat::stations::{Location, Stations, Taken};
use cnet_vswitch::{Neighbours, RouterPort};
use cnet_wire::time::Instant;
use cnet_wire::{MacAddr, PortId};

use crate::Network;

/// The network's effects as the router has them: what it sends comes into the switch by its port.
pub(crate) type AtPort<'a, E> = (RouterPort<'a, <E as Env>::Sink>, <E as Env>::Hosts);

impl Network {
    /// Calls the router.
    #[inline]
    pub(crate) fn at_router<E: Env, T>(
        &mut self,
        io: &mut Io<'_, E>,
        call: impl FnOnce(&mut Router, &StationsOf<'_>, &mut Io<'_, AtPort<'_, E>>) -> T,
    ) -> T {
        let (neighbours, mut port) = self.switch.router_port(&mut *io.sink);
        let mut io = Io::new(&mut port, &mut *io.hosts, &mut *io.buf);
        call(&mut self.router, &StationsOf(neighbours), &mut io)
    }
}

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
