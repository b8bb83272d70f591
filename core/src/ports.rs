//! Containers that come and go.

use cnet_nat::gateway::Lease;
use cnet_nat::io::{Env, Io};
use cnet_nat::router::PortFlows;
use cnet_vswitch::port::{PortConfig, PortCounters};
use cnet_vswitch::switch::AddPortError;
use cnet_wire::PortId;
use cnet_wire::time::Instant;

use crate::Network;

impl Network {
    /// A container is plugged in at `port`.
    ///
    /// # Errors
    ///
    /// See [`AddPortError`].
    pub fn add_port(&mut self, port: PortId, config: PortConfig) -> Result<(), AddPortError> {
        self.switch.add_port(port, config)?;
        self.router.add_port(port);
        Ok(())
    }

    /// Adds a fixed lease. Whoever else used its addresses loses them.
    pub fn add_lease(&mut self, lease: Lease) {
        self.router.add_lease(lease);
    }

    /// The container at `port` is gone, and all it had with it ([`cnet_nat::router::Router::remove_port`]).
    /// Returns what the switch counted there; `None` if there is no such port.
    pub fn remove_port<E: Env>(
        &mut self,
        now: Instant,
        port: PortId,
        io: &mut Io<'_, E>,
    ) -> Option<PortCounters> {
        let counters = self.switch.remove_port(port)?;
        self.router.remove_port(now, port, io);
        Some(counters)
    }

    /// What came in from `port`, and what was dropped there.
    pub fn port_counters(&self, port: PortId) -> Option<&PortCounters> {
        self.switch.counters(port)
    }

    /// What `port` has in the router's tables.
    pub fn port_flows(&self, port: PortId) -> PortFlows {
        self.router.port_flows(port)
    }
}
