//! The worker's ports: how they come, how they go, and what they count.

use std::io;

use cnet_tap::SocketHelper;
use cnet_wire::time::Instant;
use cnet_wire::{DropReason, PortId};

use super::super::core_config::port_config;
use super::super::forward::ForwardId;
use super::super::port::{Device, Opened, PortDevice, PortEnd, PortError, Unplugged};
use super::super::statistics::{PortStatistics, Statistics};
use super::Worker;
use super::workers::News;
use crate::PortPlan;

impl Worker {
    pub(crate) fn add_port(
        &mut self,
        plan: PortPlan,
        device: PortDevice,
    ) -> Result<(PortId, PortEnd), PortError> {
        let id = self.ports.vacant().ok_or(PortError::Full)?;
        let workers = 1 + self.channels.crew.others.len();
        let Opened {
            device,
            further,
            mac,
        } = Device::open(device, workers)?;
        let addresses = plan.addresses().collect();
        let (config, lease) = port_config(plan, id, mac);
        self.router.add_port(id, config.clone())?;
        self.router.add_lease(lease.clone());
        match self.ports.plug(id, device, addresses) {
            Ok(end) => {
                self.share_port(id, further, &config, &lease);
                Ok((id, end))
            }
            Err(e) => {
                self.with_router(|r, io| r.remove_port(super::now(), id, io));
                Err(PortError::Watch(e.to_string()))
            }
        }
    }

    pub(crate) fn remove_port(&mut self, now: Instant, id: PortId) -> Result<(), PortError> {
        let gone = self.take_port(now, id).ok_or(PortError::Unknown(id))?;
        gone.tell_removed();
        Ok(())
    }

    /// Splices connections from the host's loopback to a port, with sockets from `supplier`.
    pub(crate) fn supply(&mut self, port: PortId, supplier: SocketHelper) {
        // A port that is gone again needs none.
        if let Some(guests) = self.ports.addresses(port) {
            self.splices.supply(port, guests, supplier);
        }
    }

    /// The device of `id` has failed.
    pub(crate) fn lose_port(&mut self, now: Instant, id: PortId, error: &io::Error) {
        if let Some(gone) = self.take_port(now, id) {
            let (token, reason) = (gone.token, gone.obituary(error));
            gone.tell(reason.clone());
            self.tell_first(News::Lost(token, reason));
        }
    }

    /// Ends all that a port has, published ports that lead to it included.
    pub(crate) fn take_port(&mut self, now: Instant, id: PortId) -> Option<Unplugged> {
        let gone = self.ports.unplug(id)?;
        let to_it = |guest| gone.addresses.contains(&guest);
        let forwards = self.forwards.iter().flatten();
        let forwards = forwards.filter(|f| to_it(f.publish.guest.ip()));
        let forwards: Vec<ForwardId> = forwards.map(|f| f.id).collect();
        for forward in forwards {
            // It was there a moment ago.
            let _ = self.unpublish(forward);
        }
        self.splices.withdraw(id);
        self.with_router(|r, io| r.remove_port(now, id, io));
        self.tell_others(|| News::Leave(gone.token));
        Some(gone)
    }

    pub(crate) fn statistics(&self) -> Statistics {
        let ports = self.ports.written().filter_map(|(port, written)| {
            let counted = self.router.port_counters(port)?;
            // The switch counts only what other ports found full; the device's count has it all.
            let mut drops = counted.drops.clone();
            drops.set(DropReason::PortFull, written.full);
            Some(PortStatistics {
                port,
                frames_in: counted.frames_in,
                bytes_in: counted.bytes_in,
                frames_out: written.frames,
                bytes_out: written.bytes,
                drops,
                flows: self.router.port_flows(port),
            })
        });
        Statistics {
            ports: ports.collect(),
            drops: self.router.all_drops(),
            flows: self.router.flows(),
            tcp: self.router.tcp().counters(),
            gateway: self.router.gateway().counters(),
        }
    }
}
