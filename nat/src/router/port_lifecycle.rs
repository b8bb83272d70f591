//! Containers that come and go, and what each has.

use std::collections::BTreeSet;
use std::sync::Arc;

use cnet_wire::PortId;
use cnet_wire::access::Access;
use cnet_wire::time::Instant;

use super::Router;
use crate::gateway::Lease;
use crate::host::HostSockets;
use crate::io::{Env, Io};
use cnet_wire::stations::Stations;

/// What one port has in the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortFlows {
    /// TCP flows.
    pub tcp: usize,
    /// UDP mappings.
    pub udp: usize,
    /// ICMP echo mappings.
    pub ping: usize,
}

impl PortFlows {
    /// Adds what another worker's router has.
    pub fn add(&mut self, others: &PortFlows) {
        self.tcp += others.tcp;
        self.udp += others.udp;
        self.ping += others.ping;
    }
}

impl Router {
    /// Adds the lease of a container that is plugged in: what DHCP is to tell it.
    pub fn add_lease(&mut self, lease: Lease) {
        self.gateway.add_lease(lease);
    }

    /// The container at `port` is gone. Its connections are reset towards the host, but for those to
    /// whose far end it had sent all, its end included: those are closed, once all is taken, as far
    /// as that is not too much and does not take too long ([`crate::tcp`]). Its mappings are closed,
    /// its leases and addresses free again; clients of published ports that it had are forgotten,
    /// and those that wait for its address are reset: it may be another container's at once.
    /// Nothing is sent to it. The cost goes with the size of the tables.
    ///
    /// Published ports themselves stay, as they lead to an address and not to a port.
    pub fn remove_port<E: Env>(&mut self, now: Instant, port: PortId, io: &mut Io<'_, E>) {
        let leased: Vec<_> = self.gateway.leased_to(port).collect();
        for address in leased {
            self.stop_soliciting(now, address, io);
        }
        self.policy.port_filters.remove(&port);
        self.policy.access.remove(&port);
        self.tcp.remove_port(now, port, io);
        self.udp.remove_port(port, io);
        self.ping.remove_port(port, io);
        self.reassembly.remove_port(port);
        self.gateway.remove_port(port);
    }

    /// A call into this router has panicked. Ends the flow that the call was about and goes on with the
    /// others; all that is derived from the flows is made anew. Whatever a port that is gone has left,
    /// because its removal panicked, goes now. The cost goes with the size of the tables.
    pub fn recover<E: Env>(&mut self, now: Instant, stations: &impl Stations, io: &mut Io<'_, E>) {
        if let Some(socket) = self.accepted.take()
            && !self.tcp.has_socket(socket)
        {
            io.hosts.tcp_reset(socket);
        }
        self.tcp.recover(now, io);
        self.udp.recover(now, io);
        self.ping.recover(now, io);
        self.gateway.recover();
        let there: BTreeSet<PortId> = stations.ports().collect();
        let used = self.tcp.ports().chain(self.udp.ports());
        let used: BTreeSet<PortId> = used.chain(self.ping.ports()).collect();
        for gone in used.into_iter().filter(|port| !there.contains(port)) {
            self.remove_port(now, gone, io);
        }
    }

    /// Has `access` be what is allowed to the container at `port`, and no longer what was there before.
    /// What is not allowed any more ends: connections with a reset on both sides. Where what is allowed
    /// beyond the network has changed, mappings of UDP and echo end as well, and are made anew by what
    /// the container sends next. The cost goes with the size of the tables.
    pub fn set_access<E: Env>(
        &mut self,
        now: Instant,
        port: PortId,
        access: Option<Arc<Access>>,
        io: &mut Io<'_, E>,
    ) {
        let before = match &access {
            Some(access) => self.policy.access.insert(port, Arc::clone(access)),
            None => self.policy.access.remove(&port),
        };
        // A container that no policy selects any more may do all that it did.
        let Some(access) = access else { return };
        let open = Access::default();
        if access.is_alike_outside(before.as_deref().unwrap_or(&open)) {
            return;
        }
        let policy = &self.policy;
        (self.tcp).end_refused(
            now,
            port,
            |conversation| policy.still_allows(conversation),
            io,
        );
        self.udp.remove_port(port, io);
        self.ping.remove_port(port, io);
    }

    /// What `port` has in the tables.
    pub fn port_flows(&self, port: PortId) -> PortFlows {
        PortFlows {
            tcp: self.tcp.held(port),
            udp: self.udp.held(port),
            ping: self.ping.held(port),
        }
    }
}
