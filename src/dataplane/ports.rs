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
use std::task::{Context, Poll};

use cnet_nat::host::{Token, TokenKind};
use cnet_tap::Tap;
use cnet_tap::device::TapQueue;
use cnet_vswitch::switch::{AddPortError, MAX_PORTS};
use cnet_vswitch::vnet::VNET_HDR_LEN;
use cnet_vswitch::{FrameSink, PortFull, PortId};
use tokio::sync::oneshot;

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
    /// A TAP without queues.
    #[error("the TAP has no queue; open it with at least one")]
    NoQueue,
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
    end: oneshot::Sender<String>,
}

/// A port that was taken out.
pub(super) struct Unplugged {
    queue: TapQueue,
    end: oneshot::Sender<String>,
    pub addresses: Vec<IpAddr>,
}

impl Unplugged {
    /// The device, to be closed with this.
    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    /// Tells whoever waits for the port's end.
    pub(super) fn tell(self, reason: String) {
        // Nobody need be interested.
        let _ = self.end.send(reason);
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
    /// Frames written or lost, of all ports that there ever were; wraps.
    emitted: u64,
}

impl Ports {
    pub(super) fn new() -> Ports {
        Ports {
            slots: Vec::new(),
            last: 0,
            next_generation: 0,
            ready: VecDeque::new(),
            emitted: 0,
        }
    }

    /// Frames that were to be written so far: a difference tells what some work cost.
    pub(super) fn emitted(&self) -> u64 {
        self.emitted
    }

    /// A number that no port has.
    pub(super) fn vacant(&self) -> Option<PortId> {
        let after = self.last + 1..MAX_PORTS;
        let numbers = after.chain(1..self.last + 1).map(PortId);
        let mut free = numbers.filter(|&id| self.get(id).is_none());
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
        let index = id.0 as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.last = id.0;
        self.next_generation = self.next_generation.wrapping_add(1);
        let (end, ended) = oneshot::channel();
        self.slots[index] = Some(Plug {
            generation: self.next_generation,
            queue,
            takes_uso,
            addresses,
            written: Written::default(),
            ready: false,
            end,
        });
        let token = Token::new(TokenKind::Shell, id.0, self.next_generation);
        (token, PortEnd(ended))
    }

    /// Takes a port out.
    pub(super) fn unplug(&mut self, id: PortId) -> Option<Unplugged> {
        let plug = self.slots.get_mut(id.0 as usize)?.take()?;
        Some(Unplugged {
            queue: plug.queue,
            end: plug.end,
            addresses: plug.addresses,
        })
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
        self.emitted = self.emitted.wrapping_add(1);
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
        let mut ports = Ports::new();
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
    fn turns_go_round_and_each_port_waits_once() {
        let mut ports = Ports::new();
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
        let mut ports = Ports::new();
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
