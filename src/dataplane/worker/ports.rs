//! The worker's ports: how they come, how they go, and what they count.

use std::io;

use cnet_nat::host::Token;
use cnet_tap::Supplier;
use cnet_tap::device::TapQueue;
use cnet_vswitch::time::Instant;
use cnet_vswitch::{DropReason, MacAddr, PortId};
use rustix::event::epoll;

use super::super::crew::News;
use super::super::forwards::ForwardId;
use super::super::plan::port_config;
use super::super::ports::{PortDevice, PortEnd, PortError, Unplugged};
use super::super::statistics::{PortStatistics, Statistics};
use super::Worker;
use crate::dataplane::PortPlan;

impl Worker {
    pub(super) fn add_port(
        &mut self,
        plan: PortPlan,
        device: PortDevice,
    ) -> Result<(PortId, PortEnd), PortError> {
        let PortDevice::Tap(tap) = device;
        let id = self.ports.vacant().ok_or(PortError::Full)?;
        let (queue, further) = self.queues(tap.queues)?;
        let addresses = plan.addresses().collect();
        let (config, lease) = port_config(plan, id, MacAddr(tap.mac));
        self.router.add_port(id, config.clone())?;
        self.router.add_lease(lease.clone());
        let (token, end) = self.ports.plug(id, queue, tap.offloads.uso, addresses);
        if let Err(error) = self.watch_port(token) {
            self.take_port(super::now(), id);
            return Err(error);
        }
        self.share_port(id, further, &config, &lease);
        Ok((id, end))
    }

    /// One queue for this worker, and one for each of the others.
    fn queues(&self, queues: Vec<TapQueue>) -> Result<(TapQueue, Vec<TapQueue>), PortError> {
        let workers = 1 + self.channels.crew.others.len();
        let too_few = PortError::TooFewQueues {
            queues: queues.len(),
            workers,
        };
        let mut queues = queues.into_iter().take(workers);
        match queues.next() {
            Some(own) if queues.len() + 1 == workers => Ok((own, queues.collect())),
            _ => Err(too_few),
        }
    }

    /// Has the device of `token` reported when it may be read from.
    pub(super) fn watch_port(&self, token: Token) -> Result<(), PortError> {
        let data = epoll::EventData::new_u64(token.to_bits());
        match self.ports.device(PortId(token.index())) {
            Some(fd) => epoll::add(&*self.epoll, fd, data, epoll::EventFlags::IN)
                .map_err(|e| PortError::Watch(e.to_string())),
            None => Ok(()),
        }
    }

    pub(super) fn remove_port(&mut self, now: Instant, id: PortId) -> Result<(), PortError> {
        let gone = self.take_port(now, id).ok_or(PortError::Unknown(id))?;
        gone.tell("removed".to_owned());
        Ok(())
    }

    /// Splices connections from the host's loopback to a port, with sockets from `supplier`.
    pub(super) fn supply(&mut self, port: PortId, supplier: Supplier) {
        // A port that is gone again needs none.
        if let Some(guests) = self.ports.addresses(port) {
            self.splices.supply(port, guests, supplier);
        }
    }

    /// The device of `id` has failed.
    pub(super) fn lose_port(&mut self, now: Instant, id: PortId, error: &io::Error) {
        if let Some(gone) = self.take_port(now, id) {
            let (token, reason) = (gone.token, format!("the TAP is gone: {error}"));
            gone.tell(reason.clone());
            self.tell_first(News::Lost(token, reason));
        }
    }

    /// Ends all that a port has, published ports that lead to it included.
    pub(super) fn take_port(&mut self, now: Instant, id: PortId) -> Option<Unplugged> {
        let gone = self.ports.unplug(id)?;
        // Closing it is not enough: whoever opened it for us may hold the same device.
        let _ = epoll::delete(&*self.epoll, gone.device());
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

    pub(super) fn statistics(&self) -> Statistics {
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
        }
    }
}
