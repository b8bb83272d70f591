//! Everything that a network counts, to be read at once.

use std::net::IpAddr;

use cnet_nat::gateway::GatewayCounters;
use cnet_nat::host::HostError;
use cnet_nat::router::PortFlows;
use cnet_nat::tcp::TcpCounters;
use cnet_vswitch::port::PortCounters;
use cnet_wire::time::Instant;
use cnet_wire::{DropCounters, MacAddr, PortId};

use crate::Network;

/// What one worker's part of a network has counted, and what it holds now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Every port that there is but the router's, by number.
    pub ports: Vec<PortReport>,
    /// The router's port: *in* is what the router sent. Its drops are of what came from the host or
    /// waited in the router.
    pub router: PortCounters,
    /// What was dropped, by reason: of frames from containers, by the switch or by the router, those
    /// of ports that are gone included, and of what came from the host or waited in the router.
    pub drops: DropCounters,
    /// TCP flows, UDP mappings and ICMP mappings, of all ports and of none yet.
    pub flows: usize,
    /// TCP connections so far.
    pub tcp: TcpCounters,
    /// What the gateway did.
    pub gateway: GatewayCounters,
    /// Why the host would open no ping socket, if it would not: containers' echo requests are refused
    /// then (`net.ipv4.ping_group_range`, icmp(7)).
    pub ping_unavailable: Option<HostError>,
}

/// What one port has counted and holds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PortReport {
    /// Which.
    pub port: PortId,
    /// What came in by it, and what was dropped there.
    pub counters: PortCounters,
    /// What it has in the router's tables.
    pub flows: PortFlows,
}

impl Network {
    /// Everything that is counted. The cost goes with the number of ports.
    pub fn report(&self) -> Report {
        let ports = self.switch.ports().filter(|&port| port != PortId::ROUTER);
        let ports = ports.filter_map(|port| {
            Some(PortReport {
                port,
                counters: self.switch.counters(port)?.clone(),
                flows: self.router.port_flows(port),
            })
        });
        let mut router = self.switch.router_counters().clone();
        router.drops.add(&self.router.drops());
        let mut drops = self.switch.drops();
        drops.add(&router.drops);
        Report {
            ports: ports.collect(),
            router,
            drops,
            flows: self.router.flows(),
            tcp: self.router.tcp().counters(),
            gateway: self.router.gateway().counters(),
            ping_unavailable: self.router.ping_unavailable(),
        }
    }

    /// The addresses that were heard behind `port`, with the MAC addresses they were last used with.
    pub fn addresses_behind(&self, now: Instant, port: PortId) -> Vec<(IpAddr, Option<MacAddr>)> {
        self.switch.addresses().behind(now, port)
    }

    /// What was dropped so far of the frames that came in, by reason.
    pub fn drops(&self) -> DropCounters {
        self.switch.drops()
    }
}
