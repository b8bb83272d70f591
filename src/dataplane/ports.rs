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

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};

use cnet_nat::host::{Token, TokenKind};
use cnet_tap::Tap;
use cnet_tap::device::TapQueue;
use cnet_vswitch::switch::{AddPortError, MAX_PORTS};
use cnet_vswitch::vnet::VNET_HDR_LEN;
use cnet_vswitch::{FrameSink, PortFull, PortId};
use tokio::sync::oneshot;

use super::hand_over::Outlet;

/// What a port leads to.
#[derive(Debug)]
pub enum PortDevice {
    /// A container's interface.
    Tap(Tap),
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
    /// A TAP with fewer queues than the network has workers.
    #[error("the TAP has {queues} queues for {workers} workers; open it with one for each")]
    TooFewQueues {
        /// Those it has.
        queues: usize,
        /// Those that are needed.
        workers: usize,
    },
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

/// The end of a port: ready once the port is gone, with the reason; [`STOPPED`](super::STOPPED) if
/// the network went with it.
#[derive(Debug)]
pub struct PortEnd(oneshot::Receiver<String>);

impl Future for PortEnd {
    type Output = String;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<String> {
        let ended = Pin::new(&mut self.0).poll(cx);
        ended.map(|reason| reason.unwrap_or_else(|_| super::STOPPED.to_owned()))
    }
}

/// What a port's workers share: the last of them to let go of it tells its end.
#[derive(Debug)]
pub(super) struct Life {
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
pub(super) struct Seat {
    pub token: Token,
    pub queue: TapQueue,
    pub takes_uso: bool,
    pub life: Arc<Life>,
}

/// What was written to a port, whoever made the frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Written {
    pub frames: u64,
    /// Without virtio-net headers.
    pub bytes: u64,
    /// Frames that the device did not take.
    pub full: u64,
}

/// A port in use.
#[derive(Debug)]
struct Plug {
    generation: u32,
    queue: TapQueue,
    takes_uso: bool,
    /// Fixed addresses of the container.
    addresses: Vec<IpAddr>,
    written: Written,
    /// Waits for its turn.
    ready: bool,
    life: Arc<Life>,
}

/// A port that was taken out.
pub(super) struct Unplugged {
    queue: TapQueue,
    life: Arc<Life>,
    pub token: Token,
    pub addresses: Vec<IpAddr>,
}

impl Unplugged {
    /// The device, to be closed with this.
    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    /// Tells whoever waits for the port's end, or lets the last worker that has the port tell it.
    pub(super) fn tell(self, reason: String) {
        let _ = self.life.reason.set(reason);
    }
}

/// All ports of one worker.
#[derive(Debug)]
pub(super) struct Ports {
    /// By number; 0 stays free, as it is the worker's own token.
    slots: Vec<Option<Plug>>,
    last: u32,
    next_generation: u32,
    ready: VecDeque<Token>,
    /// Numbers that other workers still hold.
    leaving: Vec<(PortId, Weak<Life>)>,
    outlet: Option<Outlet>,
}

impl Ports {
    /// No ports. What this worker does not take leaves by `outlet`.
    pub(super) fn new(outlet: Option<Outlet>) -> Ports {
        Ports {
            slots: Vec::new(),
            last: 0,
            next_generation: 0,
            ready: VecDeque::new(),
            leaving: Vec::new(),
            outlet,
        }
    }

    /// A number that no port has, in no worker.
    pub(super) fn vacant(&mut self) -> Option<PortId> {
        self.leaving.retain(|(_, life)| life.strong_count() > 0);
        let held = |id: PortId| self.leaving.iter().any(|&(leaving, _)| leaving == id);
        let after = self.last + 1..MAX_PORTS;
        let numbers = after.chain(1..self.last + 1).map(PortId);
        let mut free = numbers.filter(|&id| self.get(id).is_none() && !held(id));
        free.next()
    }

    /// Puts a queue in the place `id`, which is vacant, and gives the token to watch it by.
    pub(super) fn plug(
        &mut self,
        id: PortId,
        queue: TapQueue,
        takes_uso: bool,
        addresses: Vec<IpAddr>,
    ) -> (Token, PortEnd) {
        self.last = id.0;
        self.next_generation = self.next_generation.wrapping_add(1);
        let token = Token::new(TokenKind::Shell, id.0, self.next_generation);
        let (end, ended) = oneshot::channel();
        let life = Life {
            end: Some(end),
            reason: OnceLock::new(),
        };
        let seat = Seat {
            token,
            queue,
            takes_uso,
            life: Arc::new(life),
        };
        self.seat(seat, addresses);
        (token, PortEnd(ended))
    }

    /// Puts a queue where the first worker has put another of the same port.
    pub(super) fn seat(&mut self, seat: Seat, addresses: Vec<IpAddr>) {
        let index = seat.token.index() as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(Plug {
            generation: seat.token.generation(),
            queue: seat.queue,
            takes_uso: seat.takes_uso,
            addresses,
            written: Written::default(),
            ready: false,
            life: seat.life,
        });
    }

    /// A place in another worker for the port `id`, with a further queue of its device.
    pub(super) fn another_seat(&self, id: PortId, queue: TapQueue) -> Option<Seat> {
        let plug = self.get(id)?;
        Some(Seat {
            token: Token::new(TokenKind::Shell, id.0, plug.generation),
            queue,
            takes_uso: plug.takes_uso,
            life: Arc::clone(&plug.life),
        })
    }

    /// Takes a port out.
    pub(super) fn unplug(&mut self, id: PortId) -> Option<Unplugged> {
        let plug = self.slots.get_mut(id.0 as usize)?.take()?;
        if Arc::strong_count(&plug.life) > 1 {
            self.leaving.push((id, Arc::downgrade(&plug.life)));
        }
        Some(Unplugged {
            queue: plug.queue,
            life: plug.life,
            token: Token::new(TokenKind::Shell, id.0, plug.generation),
            addresses: plug.addresses,
        })
    }

    /// The port that `token` stands for, if it is still there.
    pub(super) fn current(&self, token: Token) -> Option<PortId> {
        let id = PortId(token.index());
        let same = self.get(id)?.generation == token.generation();
        same.then_some(id)
    }

    /// Frames were handed over since the last call: wakes the worker that takes them.
    pub(super) fn announce_handed(&mut self) {
        if let Some(outlet) = &mut self.outlet {
            outlet.announce();
        }
    }

    /// The device of a port.
    pub(super) fn device(&self, id: PortId) -> Option<BorrowedFd<'_>> {
        self.get(id).map(|plug| plug.queue.as_fd())
    }

    /// The fixed addresses of a port's container.
    pub(super) fn addresses(&self, id: PortId) -> Option<Vec<IpAddr>> {
        self.get(id).map(|plug| plug.addresses.clone())
    }

    /// All ports and what was written to them.
    pub(super) fn written(&self) -> impl Iterator<Item = (PortId, Written)> {
        let numbered = (0..).map(PortId).zip(&self.slots);
        numbered.filter_map(|(id, plug)| Some((id, plug.as_ref()?.written)))
    }

    fn get(&self, id: PortId) -> Option<&Plug> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    /// The port that `token` stands for, if that use of the number has not ended.
    fn of_token(&mut self, token: Token) -> Option<(PortId, &mut Plug)> {
        let plug = self.slots.get_mut(token.index() as usize)?.as_mut()?;
        (plug.generation == token.generation()).then_some((PortId(token.index()), plug))
    }

    // ---- turns ----

    /// The device of `token` has frames, or has failed: its port gets a turn.
    pub(super) fn enqueue(&mut self, token: Token) {
        if let Some((_, plug)) = self.of_token(token)
            && !std::mem::replace(&mut plug.ready, true)
        {
            self.ready.push_back(token);
        }
    }

    /// Whose turn it is. To be enqueued again unless its device is drained.
    pub(super) fn next_turn(&mut self) -> Option<(Token, PortId)> {
        while let Some(token) = self.ready.pop_front() {
            if let Some((id, plug)) = self.of_token(token) {
                plug.ready = false;
                return Some((token, id));
            }
        }
        None
    }

    /// Some port waits for its turn.
    pub(super) fn has_turns(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Reads one frame of `id`, virtio-net header first.
    ///
    /// # Errors
    ///
    /// As [`TapQueue::read`]; `NotFound` if there is no such port.
    #[inline]
    pub(super) fn read(&self, id: PortId, buf: &mut [u8]) -> io::Result<usize> {
        match self.get(id) {
            Some(plug) => plug.queue.read(buf),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl FrameSink for Ports {
    #[inline]
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        let Some(Some(plug)) = self.slots.get_mut(port.0 as usize) else {
            return Err(PortFull);
        };
        match plug.queue.write(frame) {
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
        }
    }

    fn hand_over(&mut self, ingress: PortId, frame: &[u8]) -> Result<(), PortFull> {
        let plug = self.slots.get(ingress.0 as usize).and_then(Option::as_ref);
        match (plug, &mut self.outlet) {
            (Some(plug), Some(outlet)) => {
                let token = Token::new(TokenKind::Shell, ingress.0, plug.generation);
                outlet.hand_over(token, frame)
            }
            _ => Err(PortFull),
        }
    }

    fn takes_uso(&self, port: PortId) -> bool {
        self.get(port).is_some_and(|plug| plug.takes_uso)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    /// A queue that is one end of a socket pair, where a frame is a packet, and the other end.
    fn queue() -> (TapQueue, OwnedFd) {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (ours.into(), theirs)
    }

    fn plug(ports: &mut Ports) -> (PortId, Token, OwnedFd) {
        let id = ports.vacant().unwrap();
        let (queue, far) = queue();
        let (token, _) = ports.plug(id, queue, true, Vec::new());
        (id, token, far)
    }

    #[test]
    fn numbers_are_given_again_last_of_all() {
        let mut ports = Ports::new(None);
        let all: Vec<u32> = (1..MAX_PORTS).map(|_| plug_nothing(&mut ports)).collect();
        assert_eq!(all, (1..MAX_PORTS).collect::<Vec<_>>());
        assert_eq!(ports.vacant(), None);
        for id in [7, 3, 9] {
            assert!(ports.unplug(PortId(id)).is_some());
            assert!(ports.unplug(PortId(id)).is_none());
        }
        let again: Vec<u32> = (0..3).map(|_| plug_nothing(&mut ports)).collect();
        assert_eq!(again, [3, 7, 9]);
        assert!(ports.unplug(PortId(5)).is_some());
        assert!(ports.unplug(PortId(4000)).is_some());
        assert_eq!(plug_nothing(&mut ports), 4000);
    }

    fn plug_nothing(ports: &mut Ports) -> u32 {
        let id = ports.vacant().unwrap();
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        );
        ports.plug(id, null.unwrap().into(), false, Vec::new());
        id.0
    }

    #[test]
    fn a_port_ends_once_and_its_number_is_free_when_the_last_worker_lets_go() {
        let mut first = Ports::new(None);
        let mut second = Ports::new(None);
        let id = first.vacant().unwrap();
        let [(ours, _a), (theirs, _b)] = [queue(), queue()];
        let (token, mut end) = first.plug(id, ours, true, Vec::new());
        let seat = first.another_seat(id, theirs).unwrap();
        assert_eq!(seat.token, token);
        second.seat(seat, Vec::new());
        assert_eq!(second.current(token), Some(id));

        let told = |end: &mut PortEnd| end.0.try_recv().ok();
        first
            .unplug(id)
            .unwrap()
            .tell("the first reason".to_owned());
        assert_eq!(told(&mut end), None);
        assert_eq!(first.current(token), None);
        // All others are taken, so that the next number would be this one.
        for _ in 2..MAX_PORTS {
            plug_nothing(&mut first);
        }
        assert_eq!(first.vacant(), None);
        second.unplug(id).unwrap().tell("a later one".to_owned());
        assert_eq!(told(&mut end).as_deref(), Some("the first reason"));
        assert_eq!(first.vacant(), Some(id));
    }

    #[test]
    fn turns_go_round_and_each_port_waits_once() {
        let mut ports = Ports::new(None);
        let (a, token_a, _far_a) = plug(&mut ports);
        let (b, token_b, _far_b) = plug(&mut ports);
        for token in [token_a, token_a, token_b, token_a] {
            ports.enqueue(token);
        }
        assert_eq!(ports.next_turn(), Some((token_a, a)));
        ports.enqueue(token_a);
        assert_eq!(ports.next_turn(), Some((token_b, b)));
        assert_eq!(ports.next_turn(), Some((token_a, a)));
        assert!(!ports.has_turns());
        // The number's next holder has no turn for what its former one did.
        ports.enqueue(token_b);
        ports.unplug(b);
        let (queue, _far) = queue();
        ports.plug(b, queue, true, Vec::new());
        ports.enqueue(token_b);
        assert_eq!(ports.next_turn(), None);
    }

    #[test]
    fn a_full_port_costs_its_own_frames_only() {
        let mut ports = Ports::new(None);
        let (a, _, _never_read) = plug(&mut ports);
        let (b, _, _far) = plug(&mut ports);
        let frame = [0; VNET_HDR_LEN + 1000];
        let sent = (0..100_000).take_while(|_| ports.emit(a, &frame).is_ok());
        let sent = sent.count() as u64;
        assert!(sent > 0);
        assert_eq!(ports.emit(b, &frame), Ok(()));
        assert_eq!(ports.emit(PortId(77), &frame), Err(PortFull));
        let written: Vec<_> = ports.written().collect();
        let of = |frames, full| Written {
            frames,
            bytes: 1000 * frames,
            full,
        };
        assert_eq!(written, [(a, of(sent, 1)), (b, of(1, 0))]);
    }
}
