//! The ports of one worker: their devices, whose turn it is, and what was written to each.
//!
//! # Theory of operation
//!
//! A port's number is its place in a slab, and it is the switch's number too. Numbers are given out
//! in turn, so that one that was given back is the last to be given again, and whoever still holds
//! it does not mean another container. Each use has a generation, which epoll's events carry.
//!
//! Ports that may be read from wait in a queue for their turns: each in it once, so that a port's
//! share of a round does not grow with what it sends.
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
//! Each has a queue of every device, and a [`Ports`] of its own. The first one numbers the ports and
//! knows their containers; a number is given again only once all have let go of it, which the last
//! of them to drop the port's [`Life`] tells, and the port's end with it.
//!
//! # When a device is full
//!
//! Its queue is the kernel's, and there is no other: what it does not take at once is lost and
//! counted at that port. Nothing waits, so nobody else does. Towards a container that queue never
//! fills: `write` runs the frame through the container's own stack, which drops what its sockets
//! have no room for. Towards us it is the TAP's ring of txqueuelen packets; a container that sends
//! more than its turns take loses its own frames there.
//!
//! The socket of a virtual machine ([`vm`](super::vm)) has an outbox besides, of bounded size: there may be as
//! little room in the socket as ten datagrams, where a super-frame makes more of them.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};

use cnet_nat::host::{Token, TokenKind};
use cnet_tap::Tap;
use cnet_tap::device::TapQueue;
use cnet_vswitch::switch::{AddPortError, MAX_PORTS};
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{FrameSink, MacAddr, PortFull, PortId};
use rustix::event::epoll;
use tokio::sync::oneshot;

use super::vm::VmSocket;
use crate::handoff::Outlet;

/// What a port leads to.
#[derive(Debug)]
pub enum PortDevice {
    /// A container's interface.
    Tap(Tap),
    /// A virtual machine behind a connected Unix stream socket, each frame after its length in four
    /// bytes in network order: QEMU's `-netdev stream`. When the machine closes it, or announces a
    /// length that no frame has, the port ends.
    Stream(OwnedFd),
    /// A virtual machine behind a connected Unix datagram socket, each frame a datagram: QEMU's
    /// `-netdev dgram`. The port ends when a frame finds the machine's socket gone.
    Datagram(OwnedFd),
}

/// Why a port was not added or removed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PortError {
    /// The switch refuses it.
    #[error("the network cannot take the container: {0}")]
    Refused(#[from] AddPortError),
    /// All numbers are in use.
    #[error("the network is full: it has {} containers; remove one first", MAX_PORTS - 1)]
    Full,
    /// A TAP with fewer queues than the network has workers; a virtual machine has one.
    #[error(
        "the device has {queues} queues for {workers} workers; open it with one for each, or start the network with fewer workers"
    )]
    TooFewQueues {
        /// Those it has.
        queues: usize,
        /// Those that are needed.
        workers: usize,
    },
    /// A descriptor that is not what the port needs.
    #[error("not a socket of a virtual machine: {0}; give one that is connected")]
    NotSocket(String),
    /// The device cannot be waited for.
    #[error("cannot watch the container's device: {0}")]
    Watch(String),
    /// No port of that number.
    #[error("there is no port {}; it may have gone by itself", .0.0)]
    Unknown(PortId),
    /// The network has stopped.
    #[error("the network has stopped")]
    Ended,
}

/// The end of a port: ready once the port is gone, with the reason; [`STOPPED`](crate::STOPPED) if
/// the network went with it.
#[derive(Debug)]
pub struct PortEnd(oneshot::Receiver<String>);

impl Future for PortEnd {
    type Output = String;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<String> {
        let ended = Pin::new(&mut self.0).poll(cx);
        ended.map(|reason| reason.unwrap_or_else(|_| crate::STOPPED.to_owned()))
    }
}

/// What a port's workers share: the last of them to let go of it tells its end.
#[derive(Debug)]
pub(crate) struct Life {
    end: Option<oneshot::Sender<String>>,
    /// Why it ends; the first to know says it.
    reason: OnceLock<String>,
}

impl Drop for Life {
    fn drop(&mut self) {
        // Without a reason the network has ended, which the receiver understands.
        if let (Some(end), Some(reason)) = (self.end.take(), self.reason.take()) {
            // Nobody need be interested.
            let _ = end.send(reason);
        }
    }
}

/// A place for a port in a worker.
#[derive(Debug)]
pub(crate) struct Seat {
    pub token: Token,
    pub device: Device,
    pub life: Arc<Life>,
}

/// What was written to a port, whoever made the frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Written {
    pub frames: u64,
    /// Without virtio-net headers.
    pub bytes: u64,
    /// Frames that the device did not take.
    pub full: u64,
}

/// A device as the worker uses it.
#[derive(Debug)]
pub(crate) enum Device {
    Tap { queue: TapQueue, takes_uso: bool },
    Vm(VmSocket),
}

/// A device that was taken apart for the workers.
#[derive(Debug)]
pub(crate) struct Opened {
    pub device: Device,
    /// A queue for each of the other workers.
    pub further: Vec<TapQueue>,
    /// The hardware address of the container's side, if the device tells.
    pub mac: Option<MacAddr>,
}

impl Device {
    /// The device to use.
    pub(crate) fn open(device: PortDevice, workers: usize) -> Result<Opened, PortError> {
        let not_socket = |e: io::Error| PortError::NotSocket(e.to_string());
        let socket = match device {
            PortDevice::Tap(tap) => {
                let too_few = PortError::TooFewQueues {
                    queues: tap.queues.len(),
                    workers,
                };
                let mut queues = tap.queues.into_iter().take(workers);
                let queue = queues.next();
                let (Some(queue), true) = (queue, queues.len() + 1 == workers) else {
                    return Err(too_few);
                };
                let takes_uso = tap.offloads.uso;
                return Ok(Opened {
                    device: Device::Tap { queue, takes_uso },
                    further: queues.collect(),
                    mac: Some(MacAddr(tap.mac)),
                });
            }
            _ if workers > 1 => return Err(PortError::TooFewQueues { queues: 1, workers }),
            PortDevice::Stream(fd) => VmSocket::stream(fd),
            PortDevice::Datagram(fd) => VmSocket::datagram(fd),
        };
        Ok(Opened {
            device: Device::Vm(socket.map_err(not_socket)?),
            further: Vec::new(),
            mac: None,
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Device::Tap { queue, .. } => queue.as_fd(),
            Device::Vm(socket) => socket.as_fd(),
        }
    }

    /// Why a port ends whose device failed with `error`.
    fn obituary(&self, error: &io::Error) -> String {
        match self {
            Device::Tap { .. } => format!("the TAP is gone: {error}"),
            Device::Vm(_) => format!("the virtual machine is gone: {error}"),
        }
    }
}

/// A port in use.
#[derive(Debug)]
struct Plug {
    token: Token,
    device: Device,
    /// Fixed addresses of the container.
    addresses: Vec<IpAddr>,
    written: Written,
    /// It is watched for room to write as well.
    awaits_room: bool,
    /// Waits for its turn.
    ready: bool,
    life: Arc<Life>,
}

/// A port that was taken out.
pub(crate) struct Unplugged {
    device: Device,
    life: Arc<Life>,
    pub token: Token,
    pub addresses: Vec<IpAddr>,
}

impl Unplugged {
    /// Tells whoever waits for the port's end that it was asked for.
    pub(crate) fn tell_removed(self) {
        self.tell("removed".to_owned());
    }

    /// Why the port ends if the device failed with `error`.
    pub(crate) fn obituary(&self, error: &io::Error) -> String {
        self.device.obituary(error)
    }

    /// Tells whoever waits for the port's end, or lets the last worker that has the port tell it.
    pub(crate) fn tell(self, reason: String) {
        let _ = self.life.reason.set(reason);
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
    slots: Vec<Option<Plug>>,
    last: u32,
    next_generation: u32,
    ready: VecDeque<Token>,
    /// Frames written or lost, of all ports that there ever were; wraps.
    emitted: u64,
    /// Numbers that other workers still hold.
    leaving: Vec<(PortId, Weak<Life>)>,
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
            leaving: Vec::new(),
            outlet,
        }
    }

    /// Frames that were to be written so far: a difference tells what some work cost.
    pub(crate) fn emitted(&self) -> u64 {
        self.emitted
    }

    /// A number that no port has, in no worker.
    pub(crate) fn vacant(&mut self) -> Option<PortId> {
        self.leaving.retain(|(_, life)| life.strong_count() > 0);
        let held = |id: PortId| self.leaving.iter().any(|&(leaving, _)| leaving == id);
        let after = self.last + 1..MAX_PORTS;
        let numbers = after.chain(1..self.last + 1).map(PortId);
        let mut free = numbers.filter(|&id| self.get(id).is_none() && !held(id));
        free.next()
    }

    /// Puts a device in the place `id`, which is vacant, and watches it.
    ///
    /// # Errors
    ///
    /// When it cannot be watched; the place is vacant still.
    pub(crate) fn plug(
        &mut self,
        id: PortId,
        device: Device,
        addresses: Vec<IpAddr>,
    ) -> io::Result<PortEnd> {
        self.next_generation = self.next_generation.wrapping_add(1);
        let (end, ended) = oneshot::channel();
        let life = Life {
            end: Some(end),
            reason: OnceLock::new(),
        };
        let seat = Seat {
            token: Token::new(TokenKind::Shell, id.0, self.next_generation),
            device,
            life: Arc::new(life),
        };
        self.seat(seat, addresses)?;
        self.last = id.0;
        Ok(PortEnd(ended))
    }

    /// Puts a queue where the first worker has put another of the same port.
    ///
    /// # Errors
    ///
    /// When the device cannot be waited for; there is no port then.
    pub(crate) fn seat(&mut self, seat: Seat, addresses: Vec<IpAddr>) -> io::Result<()> {
        let Seat {
            token,
            device,
            life,
        } = seat;
        let data = epoll::EventData::new_u64(token.to_bits());
        epoll::add(&*self.epoll, device.fd(), data, epoll::EventFlags::IN)?;
        let index = token.index() as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(Plug {
            token,
            device,
            addresses,
            written: Written::default(),
            awaits_room: false,
            ready: false,
            life,
        });
        Ok(())
    }

    /// A place in another worker for the port `id`, with a further queue of its device.
    pub(crate) fn another_seat(&self, id: PortId, queue: TapQueue) -> Option<Seat> {
        let plug = self.get(id)?;
        let Device::Tap { takes_uso, .. } = plug.device else {
            return None;
        };
        Some(Seat {
            token: plug.token,
            device: Device::Tap { queue, takes_uso },
            life: Arc::clone(&plug.life),
        })
    }

    /// Takes a port out.
    pub(crate) fn unplug(&mut self, id: PortId) -> Option<Unplugged> {
        let plug = self.slots.get_mut(id.0 as usize)?.take()?;
        // Closing it is not enough: whoever opened it for us may hold the same device.
        let _ = epoll::delete(&*self.epoll, plug.device.fd());
        if Arc::strong_count(&plug.life) > 1 {
            self.leaving.push((id, Arc::downgrade(&plug.life)));
        }
        Some(Unplugged {
            device: plug.device,
            life: plug.life,
            token: plug.token,
            addresses: plug.addresses,
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

    /// The fixed addresses of a port's container.
    pub(crate) fn addresses(&self, id: PortId) -> Option<Vec<IpAddr>> {
        self.get(id).map(|plug| plug.addresses.clone())
    }

    /// All ports and what was written to them.
    pub(crate) fn written(&self) -> impl Iterator<Item = (PortId, Written)> {
        let numbered = (0..).map(PortId).zip(&self.slots);
        numbered.filter_map(|(id, plug)| Some((id, plug.as_ref()?.written)))
    }

    fn get(&self, id: PortId) -> Option<&Plug> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    /// The port that `token` stands for, if that use of the number has not ended.
    fn of_token(&mut self, token: Token) -> Option<(PortId, &mut Plug)> {
        let plug = self.slots.get_mut(token.index() as usize)?.as_mut()?;
        (plug.token == token).then_some((PortId(token.index()), plug))
    }

    // ---- turns ----

    /// The device of `token` has room, or frames, or has failed.
    pub(crate) fn handle_event(&mut self, token: Token, flags: epoll::EventFlags) {
        if flags.contains(epoll::EventFlags::OUT)
            && let Some((
                id,
                Plug {
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
        let Some(Some(plug)) = self.slots.get_mut(id.0 as usize) else {
            return;
        };
        let (token, Device::Vm(socket)) = (plug.token, &plug.device) else {
            return;
        };
        let (failed, stuck) = (socket.has_failed(), socket.is_stuck());
        if plug.awaits_room != stuck {
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, stuck);
            let data = epoll::EventData::new_u64(token.to_bits());
            // It is watched, so there is memory for it.
            let changed = epoll::modify(&*self.epoll, plug.device.fd(), data, flags);
            if changed.is_ok() {
                plug.awaits_room = stuck;
            }
        }
        if failed {
            self.enqueue(token);
        }
    }

    /// The device of `token` has frames, or has failed: its port gets a turn.
    pub(crate) fn enqueue(&mut self, token: Token) {
        if let Some((_, plug)) = self.of_token(token)
            && !std::mem::replace(&mut plug.ready, true)
        {
            self.ready.push_back(token);
        }
    }

    /// Whose turn it is. To be enqueued again unless its device is drained.
    pub(crate) fn next_turn(&mut self) -> Option<(Token, PortId)> {
        while let Some(token) = self.ready.pop_front() {
            if let Some((id, plug)) = self.of_token(token) {
                plug.ready = false;
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
    /// As [`TapQueue::read`] and [`VmSocket::read`]; `NotFound` if there is no such port.
    #[inline]
    pub(crate) fn read(&mut self, id: PortId, buf: &mut [u8]) -> io::Result<usize> {
        match self.slots.get_mut(id.0 as usize) {
            Some(Some(plug)) => match &mut plug.device {
                Device::Tap { queue, .. } => queue.read(buf),
                Device::Vm(socket) => socket.read(buf),
            },
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl FrameSink for Ports {
    #[inline]
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        self.emitted = self.emitted.wrapping_add(1);
        let Some(Some(plug)) = self.slots.get_mut(port.0 as usize) else {
            return Err(PortFull);
        };
        let socket = match &mut plug.device {
            Device::Tap { queue, .. } => {
                return match queue.write(frame) {
                    Ok(_) => {
                        plug.written.frames += 1;
                        plug.written.bytes += frame.len().saturating_sub(VNET_HDR_LEN) as u64;
                        Ok(())
                    }
                    // Full, short of memory, down or gone. The last of these shows when it is read.
                    Err(_) => {
                        plug.written.full += 1;
                        Err(PortFull)
                    }
                };
            }
            Device::Vm(socket) => socket,
        };
        let taken = socket.write(frame, self.mtu);
        match taken {
            Some(taken) => {
                plug.written.frames += taken.frames;
                plug.written.bytes += taken.bytes;
            }
            None => plug.written.full += 1,
        }
        self.settle(port);
        taken.map(|_| ()).ok_or(PortFull)
    }

    fn hand_over(&mut self, ingress: PortId, frame: &[u8]) -> Result<(), PortFull> {
        let plug = self.slots.get(ingress.0 as usize).and_then(Option::as_ref);
        match (plug, &mut self.outlet) {
            (Some(plug), Some(outlet)) => outlet.hand_over(plug.token, frame),
            _ => Err(PortFull),
        }
    }

    fn takes_uso(&self, port: PortId) -> bool {
        match self.get(port).map(|plug| &plug.device) {
            Some(Device::Tap { takes_uso, .. }) => *takes_uso,
            // Cut at once, in one go.
            Some(Device::Vm(_)) => true,
            None => false,
        }
    }
}

#[cfg(test)]
mod tests;
