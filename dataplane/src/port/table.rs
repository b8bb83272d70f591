//! The ports of one worker: their devices, whose turn it is, and what was written to each.
//!
//! # Theory of operation
//!
//! A port's number is its place in a slab, and it is the switch's number too. Port numbers are
//! allocated round-robin: a freed number is reused last, so a stale reference cannot reach another
//! container. Each use of a number has a generation, which epoll's events carry.
//!
//! Ports that may be read from wait in a queue for their turns: each in it once, so that a port's
//! part of a round does not grow with what it sends.
//!
//! # What a frame needs of the device it goes to
//!
//! A frame of another port is written as it was read. The kernel takes any super-frame that it knows
//! from any TAP with virtio-net headers; what `TUNSETOFFLOAD` said is about the way from it alone,
//! and no TAP of a kernel hands out a kind that the same kernel does not know. A checksum still to be
//! filled in (`NEEDS_CSUM`) is taken for right by the receiver's kernel and filled in by the one that
//! puts the frame on a wire, `DATA_VALID` is a hint that it leaves aside, and `hdr_len` is zero or
//! within the frame, both as `Frame::parse` demands. `gso_size` was held against the MTU, which is
//! the network's.
//!
//! # Several workers
//!
//! Each has a queue of every device, and a [`Ports`] of its own. The primary worker numbers the ports
//! and knows their containers' addresses. A number is reused only once all workers have let go of
//! it: the last of them to drop the port's [`Lifetime`] tells that, and the port's end with it.
//!
//! # When a device is full
//!
//! Its queue is the kernel's, and there is no other: what it does not take at once is lost and
//! counted at that port. Nothing waits, so one port holds no other up. Towards a container that queue
//! never fills: `write` runs the frame through the container's own stack, which drops what its
//! sockets have no room for. Towards us it is the TAP's ring of txqueuelen packets; a container that
//! sends more than its turns take loses its own frames there.
//!
//! The socket of a virtual machine ([`vm`](super::vm)) has an outbox besides, of bounded size: there
//! may be as little room in the socket as ten datagrams, where a super-frame makes more of them.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use cnet_nat::host::{Token, TokenKind};
use cnet_tap::device::TapQueue;
use cnet_vswitch::port::MAX_PORTS;
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{DropCounters, DropReason, FrameSink, MacAddr, PortFull, PortId};
use rustix::event::epoll;

use super::{Device, Lifetime, PortEnd, PortQueue};
use crate::clock::now;
use crate::handoff::Outlet;

/// What was written to a port: frames of other ports, and those that the core made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Written {
    pub frames: u64,
    /// Without virtio-net headers.
    pub bytes: u64,
    /// Frames that the device did not take.
    pub full: u64,
}

/// A port in use.
#[derive(Debug)]
struct Port {
    token: Token,
    device: Device,
    /// Fixed addresses of the container.
    addresses: Vec<IpAddr>,
    written: Written,
    /// It is watched for room to write as well.
    awaits_room: bool,
    /// Waits for its turn.
    ready: bool,
    lifetime: Arc<Lifetime>,
}

/// A port that was taken out.
pub(crate) struct RemovedPort {
    device: Device,
    lifetime: Arc<Lifetime>,
    pub token: Token,
    pub addresses: Vec<IpAddr>,
}

impl RemovedPort {
    /// Why the port ends if the device failed with `error`.
    pub(crate) fn failure_reason(&self, error: &io::Error) -> String {
        self.device.failure_reason(error)
    }

    /// Gives the reason of the port's end, which is told once the last worker lets go of the port.
    pub(crate) fn tell(self, reason: String) {
        self.lifetime.set_reason(reason);
    }
}

/// All ports of one worker.
#[derive(Debug)]
pub(crate) struct Ports {
    /// Where the devices are watched.
    epoll: Rc<OwnedFd>,
    /// The link's, in bytes of IP packets.
    mtu: usize,
    /// By number; 0 stays free, as it is the worker's own token.
    slots: Vec<Option<Port>>,
    last: u32,
    next_generation: u32,
    ready: VecDeque<Token>,
    /// Frames written or lost, of all ports that there ever were; wraps.
    emitted: u64,
    /// Frames that a device did not take, or whose port was gone, of all ports that there ever were.
    full: u64,
    /// Numbers that other workers still hold.
    leaving: Vec<(PortId, Weak<Lifetime>)>,
    outlet: Option<Outlet>,
}

impl Ports {
    /// No ports. What this worker does not take leaves by `outlet`.
    pub(crate) fn new(epoll: Rc<OwnedFd>, mtu: usize, outlet: Option<Outlet>) -> Ports {
        Ports {
            epoll,
            mtu,
            slots: Vec::new(),
            last: 0,
            next_generation: 0,
            ready: VecDeque::new(),
            emitted: 0,
            full: 0,
            leaving: Vec::new(),
            outlet,
        }
    }

    /// Frames that were to be written so far: a difference tells what some work cost.
    pub(crate) fn emitted(&self) -> u64 {
        self.emitted
    }

    /// Frames that a device did not take, or whose port was gone, so far.
    pub(crate) fn full(&self) -> u64 {
        self.full
    }

    /// The next number that no port has, in no worker.
    pub(crate) fn free_id(&mut self) -> Option<PortId> {
        self.leaving
            .retain(|(_, lifetime)| lifetime.strong_count() > 0);
        let held = |id: PortId| self.leaving.iter().any(|&(leaving, _)| leaving == id);
        let after = self.last + 1..MAX_PORTS;
        let numbers = after.chain(1..self.last + 1).map(PortId);
        let mut free = numbers.filter(|&id| self.get(id).is_none() && !held(id));
        free.next()
    }

    /// Adds the port `id`, which is free, and watches its device.
    ///
    /// # Errors
    ///
    /// When it cannot be watched; the number is free still.
    pub(crate) fn add(
        &mut self,
        id: PortId,
        device: Device,
        addresses: Vec<IpAddr>,
    ) -> io::Result<PortEnd> {
        self.next_generation = self.next_generation.wrapping_add(1);
        let (lifetime, end) = Lifetime::new();
        let queue = PortQueue {
            token: Token::new(TokenKind::Shell, id.0, self.next_generation),
            device,
            lifetime: Arc::new(lifetime),
        };
        self.add_queue(queue, addresses)?;
        self.last = id.0;
        Ok(end)
    }

    /// Adds this worker's queue of a port that the primary worker has added.
    ///
    /// # Errors
    ///
    /// When the device cannot be waited for; there is no port then.
    pub(crate) fn add_queue(&mut self, queue: PortQueue, addresses: Vec<IpAddr>) -> io::Result<()> {
        let PortQueue {
            token,
            device,
            lifetime,
        } = queue;
        let data = epoll::EventData::new_u64(token.to_bits());
        epoll::add(&*self.epoll, device.fd(), data, epoll::EventFlags::IN)?;
        let index = token.index() as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(Port {
            token,
            device,
            addresses,
            written: Written::default(),
            awaits_room: false,
            ready: false,
            lifetime,
        });
        Ok(())
    }

    /// For another worker: the port `id`, with a further queue of its device.
    pub(crate) fn queue_of(&self, id: PortId, queue: TapQueue) -> Option<PortQueue> {
        let port = self.get(id)?;
        let Device::Tap { takes_uso, .. } = port.device else {
            return None;
        };
        Some(PortQueue {
            token: port.token,
            device: Device::Tap { queue, takes_uso },
            lifetime: Arc::clone(&port.lifetime),
        })
    }

    /// Removes a port.
    pub(crate) fn remove(&mut self, id: PortId) -> Option<RemovedPort> {
        let port = self.slots.get_mut(id.0 as usize)?.take()?;
        // Closing it is not enough: the process that opened the device may still hold it.
        let _ = epoll::delete(&*self.epoll, port.device.fd());
        if Arc::strong_count(&port.lifetime) > 1 {
            self.leaving.push((id, Arc::downgrade(&port.lifetime)));
        }
        Some(RemovedPort {
            device: port.device,
            lifetime: port.lifetime,
            token: port.token,
            addresses: port.addresses,
        })
    }

    /// The port that `token` stands for, if it is still there.
    pub(crate) fn current(&self, token: Token) -> Option<PortId> {
        let id = PortId(token.index());
        (self.get(id)?.token == token).then_some(id)
    }

    /// Frames were handed over since the last call: wakes the worker that takes them.
    pub(crate) fn announce_handed(&mut self) {
        if let Some(outlet) = &mut self.outlet {
            outlet.announce();
        }
    }

    /// Frames handed over so far.
    pub(crate) fn handed_over(&self) -> u64 {
        self.outlet.as_ref().map_or(0, Outlet::handed_over)
    }

    /// The fixed addresses of a port's container.
    pub(crate) fn addresses(&self, id: PortId) -> Option<Vec<IpAddr>> {
        self.get(id).map(|port| port.addresses.clone())
    }

    /// What was written to the port `id`.
    pub(crate) fn written(&self, id: PortId) -> Option<Written> {
        self.get(id).map(|port| port.written)
    }

    /// What the devices of uplinks have dropped: of the port `id`, or of all.
    pub(crate) fn dropped(&self, id: Option<PortId>) -> DropCounters {
        let mut drops = DropCounters::default();
        for (port, device) in self.uplinks() {
            if id.is_none_or(|id| id == port) {
                match device {
                    Device::Vxlan(vxlan) => drops.add(vxlan.drops()),
                    Device::Raw(uplink) => drops.add(uplink.drops()),
                    Device::Tap { .. } | Device::Vm(_) => {}
                }
            }
        }
        drops
    }

    /// The devices that lead to other switches.
    pub(crate) fn uplinks(&self) -> impl Iterator<Item = (PortId, &Device)> {
        let numbered = (0..).map(PortId).zip(&self.slots);
        numbered.filter_map(|(id, port)| match &port.as_ref()?.device {
            Device::Tap { .. } | Device::Vm(_) => None,
            device => Some((id, device)),
        })
    }

    fn get(&self, id: PortId) -> Option<&Port> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    /// The port that `token` stands for, if that use of the number has not ended.
    fn of_token(&mut self, token: Token) -> Option<(PortId, &mut Port)> {
        let port = self.slots.get_mut(token.index() as usize)?.as_mut()?;
        (port.token == token).then_some((PortId(token.index()), port))
    }

    // ---- turns ----

    /// The device of `token` has room, or frames, or has failed.
    pub(crate) fn handle_event(&mut self, token: Token, flags: epoll::EventFlags) {
        if flags.contains(epoll::EventFlags::OUT)
            && let Some((
                id,
                Port {
                    device: Device::Vm(socket),
                    ..
                },
            )) = self.of_token(token)
        {
            socket.flush();
            self.settle(id);
        }
        if flags != epoll::EventFlags::OUT {
            self.enqueue(token);
        }
    }

    /// After writing to `id`, a virtual machine's: watches for room if frames wait for it, and gives
    /// the port a turn, which ends it, if the machine is gone.
    fn settle(&mut self, id: PortId) {
        let Some(Some(port)) = self.slots.get_mut(id.0 as usize) else {
            return;
        };
        let (token, Device::Vm(socket)) = (port.token, &port.device) else {
            return;
        };
        let (failed, stuck) = (socket.has_failed(), socket.is_stuck());
        if port.awaits_room != stuck {
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, stuck);
            let data = epoll::EventData::new_u64(token.to_bits());
            // It is watched, so there is memory for it.
            let changed = epoll::modify(&*self.epoll, port.device.fd(), data, flags);
            if changed.is_ok() {
                port.awaits_room = stuck;
            }
        }
        if failed {
            self.enqueue(token);
        }
    }

    /// The device of `token` has frames, or has failed: its port gets a turn.
    pub(crate) fn enqueue(&mut self, token: Token) {
        if let Some((_, port)) = self.of_token(token)
            && !std::mem::replace(&mut port.ready, true)
        {
            self.ready.push_back(token);
        }
    }

    /// The port whose turn it is. To be enqueued again unless its device is drained.
    pub(crate) fn next_turn(&mut self) -> Option<(Token, PortId)> {
        while let Some(token) = self.ready.pop_front() {
            if let Some((id, port)) = self.of_token(token) {
                port.ready = false;
                return Some((token, id));
            }
        }
        None
    }

    /// Some port waits for its turn.
    pub(crate) fn has_turns(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Reads one frame of `id`, virtio-net header first.
    ///
    /// # Errors
    ///
    /// As [`TapQueue::read`] and [`VmSocket::read`](super::VmSocket::read); `NotFound` if there is no
    /// such port.
    #[inline]
    pub(crate) fn read(&mut self, id: PortId, buf: &mut [u8]) -> io::Result<usize> {
        match self.slots.get_mut(id.0 as usize) {
            Some(Some(port)) => match &mut port.device {
                Device::Tap { queue, .. } => queue.read(buf),
                Device::Vm(socket) => socket.read(buf),
                Device::Vxlan(vxlan) => vxlan.read(now(), buf, self.mtu),
                Device::Raw(uplink) => uplink.read(buf),
            },
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl FrameSink for Ports {
    #[inline]
    fn emit(&mut self, id: PortId, frame: &[u8]) -> Result<(), PortFull> {
        self.emitted = self.emitted.wrapping_add(1);
        let Some(Some(port)) = self.slots.get_mut(id.0 as usize) else {
            self.full += 1;
            return Err(PortFull);
        };
        let socket = match &mut port.device {
            Device::Tap { queue, .. } => {
                return match queue.write(frame) {
                    Ok(_) => {
                        port.written.frames += 1;
                        port.written.bytes += frame.len().saturating_sub(VNET_HDR_LEN) as u64;
                        Ok(())
                    }
                    // Full, short of memory, down or gone. The last of these shows when it is read.
                    Err(_) => {
                        self.full += 1;
                        port.written.full += 1;
                        Err(PortFull)
                    }
                };
            }
            Device::Vm(socket) => socket,
            Device::Raw(_) | Device::Vxlan(_) => {
                let written = match &mut port.device {
                    Device::Vxlan(vxlan) => vxlan.write(now(), frame, self.mtu),
                    Device::Raw(uplink) => uplink.write(frame).ok_or(DropReason::PortFull),
                    Device::Tap { .. } | Device::Vm(_) => Err(DropReason::PortFull),
                };
                return match written {
                    Ok(taken) => {
                        port.written.frames += taken.frames;
                        port.written.bytes += taken.bytes;
                        Ok(())
                    }
                    Err(DropReason::PortFull) => {
                        self.full += 1;
                        port.written.full += 1;
                        Err(PortFull)
                    }
                    // Counted there, by its reason.
                    Err(_) => Err(PortFull),
                };
            }
        };
        let taken = socket.write(frame, self.mtu);
        match taken {
            Some(taken) => {
                port.written.frames += taken.frames;
                port.written.bytes += taken.bytes;
            }
            None => {
                self.full += 1;
                port.written.full += 1;
            }
        }
        self.settle(id);
        taken.map(|_| ()).ok_or(PortFull)
    }

    fn hand_over(&mut self, ingress: PortId, frame: &[u8]) -> Result<(), PortFull> {
        let port = self.slots.get(ingress.0 as usize).and_then(Option::as_ref);
        match (port, &mut self.outlet) {
            (Some(port), Some(outlet)) => outlet.hand_over(port.token, frame),
            _ => Err(PortFull),
        }
    }

    fn note_foreign_source(&mut self, port: PortId, mac: MacAddr, ip: Option<IpAddr>) {
        let own = self.addresses(port).unwrap_or_default();
        let own: Vec<String> = own.iter().map(ToString::to_string).collect();
        let source = ip.map_or_else(|| mac.to_string(), |ip| format!("{ip} at {mac}"));
        tracing::warn!(
            container = own.join(" "),
            source,
            "a frame is dropped that does not come from the container's own address, and others will be; `--trust` lets it send from further ones"
        );
    }

    fn takes_uso(&self, port: PortId) -> bool {
        match self.get(port).map(|port| &port.device) {
            Some(Device::Tap { takes_uso, .. }) => *takes_uso,
            // Cut at once, in one go.
            Some(Device::Vm(_) | Device::Vxlan(_) | Device::Raw(_)) => true,
            None => false,
        }
    }
}

#[cfg(test)]
mod tests;
