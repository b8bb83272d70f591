//! Containers that come and go.

use std::sync::Arc;

use cnet_nat::gateway::Lease;
use cnet_nat::io::{Env, Io};
use cnet_nat::policy::PeerFilter;
use cnet_nat::router::PortFlows;
use cnet_vswitch::port::{self, AddPortError, PortConfig, PortCounters};
use cnet_wire::PortId;
use cnet_wire::access::Access;
use cnet_wire::time::Instant;

use crate::Network;

/// The lease of `port` as the gateway hands it out: DHCP has one address of each family.
fn fixed_lease(port: PortId, lease: &port::Lease) -> Lease {
    Lease {
        port,
        v4: lease.ipv4.first().copied(),
        v6: lease.ipv6.first().copied(),
        hostname: lease.hostname.clone(),
    }
}

impl Network {
    /// A container is plugged in at `port`. Ports that had learned the addresses of its lease, or got them
    /// by DHCP, lose them.
    ///
    /// # Errors
    ///
    /// See [`AddPortError`].
    pub fn add_port(&mut self, port: PortId, config: PortConfig) -> Result<(), AddPortError> {
        let lease = fixed_lease(port, &config.lease);
        self.switch.add_port(port, config)?;
        self.router.add_lease(lease);
        Ok(())
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
        self.at_router(io, |router, _, io| router.remove_port(now, port, io));
        Some(counters)
    }

    /// Has `filter` decide what far ends the container at `port` may talk with, besides the network's
    /// policy; without a call no filter does.
    pub fn set_port_filter(&mut self, port: PortId, filter: PeerFilter) {
        self.router.policy_mut().set_port_filter(port, filter);
    }

    /// Has `access` be what is allowed to the container at `port`, `None` for everything, and ends what is
    /// open and not allowed any more ([`cnet_nat::router::Router::set_access`]).
    pub fn set_access<E: Env>(
        &mut self,
        now: Instant,
        port: PortId,
        access: Option<Arc<Access>>,
        io: &mut Io<'_, E>,
    ) {
        self.switch.set_access(port, access.clone());
        self.at_router(io, |router, _, io| router.set_access(now, port, access, io));
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
