//! What a network counts.

use cnet_core::Report;
use cnet_nat::gateway::GatewayCounters;
use cnet_nat::host::HostError;
use cnet_nat::router::PortFlows;
use cnet_nat::tcp::TcpCounters;
use cnet_vswitch::port::PortCounters;
use cnet_wire::{DropCounters, DropReason, PortId};

use crate::driver::Driver;
use crate::forward::{ForwardCounters, Forwards};

/// A snapshot of a network's counters. Counters of frames begin with their port, the others with
/// the network.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Statistics {
    /// Every port that there is but the router's, by number.
    pub ports: Vec<PortStatistics>,
    /// The router's port: *in* is what the router sent to containers, dropped is what came from the host
    /// or waited in the router. It has no flows.
    pub router: PortStatistics,
    /// What was dropped, of frames from containers, of datagrams from the host and of frames that found
    /// a port full, by reason. What ports that are gone lost is in it.
    pub drops: DropCounters,
    /// TCP flows, UDP mappings and ICMP mappings there are, of all ports and of none yet.
    pub flows: usize,
    /// TCP connections so far.
    pub tcp: TcpCounters,
    /// What the gateway's services did so far.
    pub gateway: GatewayCounters,
    /// Clients of published TCP ports so far.
    pub forwards: ForwardCounters,
    /// Frames that workers have handed over to the primary one so far. Those that found no room are
    /// among the drops ([`DropReason::WorkerFull`]).
    pub handed_over: u64,
    /// Defects of the program that frames and events have met so far. Each has ended what it concerned.
    pub defects: u64,
    /// Why the host gives no ping sockets, if it has refused one: containers cannot ping the world then.
    pub ping_unavailable: Option<HostError>,
}

impl Statistics {
    /// What one worker has counted.
    pub(crate) fn of_worker(driver: &Driver, forwards: &Forwards) -> Statistics {
        let Report {
            ports,
            router,
            mut drops,
            flows,
            tcp,
            gateway,
            ping_unavailable,
            ..
        } = driver.core.report();
        // The core counts none of these: they are counted where the devices are written.
        drops.set(DropReason::PortFull, driver.ports.full());
        drops.add(&driver.ports.dropped(None));
        let ports = ports.into_iter().filter_map(|counted| {
            let written = driver.ports.written(counted.port)?;
            let mut drops = counted.counters.drops;
            drops.set(DropReason::PortFull, written.full);
            drops.add(&driver.ports.dropped(Some(counted.port)));
            Some(PortStatistics {
                port: counted.port,
                frames_in: counted.counters.frames_in,
                bytes_in: counted.counters.bytes_in,
                frames_out: written.frames,
                bytes_out: written.bytes,
                drops,
                flows: counted.flows,
            })
        });
        Statistics {
            ports: ports.collect(),
            router: PortStatistics::of_router(router),
            drops,
            flows,
            tcp,
            gateway,
            forwards: forwards.counters(),
            handed_over: driver.ports.handed_over(),
            defects: driver.panics.count(),
            ping_unavailable,
        }
    }

    /// Adds what another worker counted. What ports there are, this one knows.
    pub(crate) fn add(&mut self, others: &Statistics) {
        for port in &mut self.ports {
            let same = others.ports.iter().find(|other| other.port == port.port);
            if let Some(other) = same {
                port.add(other);
            }
        }
        self.router.add(&others.router);
        self.drops.add(&others.drops);
        self.flows += others.flows;
        self.tcp.add(&others.tcp);
        self.gateway.add(&others.gateway);
        self.forwards.add(&others.forwards);
        self.handed_over += others.handed_over;
        self.defects += others.defects;
        self.ping_unavailable = self.ping_unavailable.or(others.ping_unavailable);
    }
}

/// What passed one port. *In* is from the container into the network; a super-frame counts as one
/// frame where the port takes it whole, and bytes are those of Ethernet frames.
#[derive(Clone, Debug)]
pub struct PortStatistics {
    /// Which.
    pub port: PortId,
    /// Frames from the container, dropped ones included.
    pub frames_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Frames to the container that its device took.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Frames from the container that were dropped, by the switch or by the router, and frames to it
    /// that its device did not take, by reason.
    pub drops: DropCounters,
    /// What it has in the tables.
    pub flows: PortFlows,
}

impl PortStatistics {
    fn of_router(counted: PortCounters) -> PortStatistics {
        PortStatistics {
            port: PortId::ROUTER,
            frames_in: counted.frames_in,
            bytes_in: counted.bytes_in,
            frames_out: counted.frames_out,
            bytes_out: counted.bytes_out,
            drops: counted.drops,
            flows: PortFlows::default(),
        }
    }

    fn add(&mut self, others: &PortStatistics) {
        self.frames_in += others.frames_in;
        self.bytes_in += others.bytes_in;
        self.frames_out += others.frames_out;
        self.bytes_out += others.bytes_out;
        self.drops.add(&others.drops);
        self.flows.add(&others.flows);
    }
}
