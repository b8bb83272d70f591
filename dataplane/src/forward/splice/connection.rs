//! One spliced connection: two sockets, and a way in each direction.
//!
//! # Theory of operation
//!
//! A *side* is a socket, with what epoll has told of it; a *way* carries from one side to the other
//! through a pipe. A way's turn fills the pipe from its source and drains it into its destination
//! until neither moves, or until its share of the round is used up. Edges are remembered
//! (`readable`, `writable`) and forgotten only when the kernel said `EAGAIN`, or gave less than
//! was asked for and nothing but an empty queue can be the reason.
//!
//! `EAGAIN` of a splice into a pipe that holds something may mean either end. The source is taken
//! for empty only when the pipe was; otherwise the next drained byte brings the question up again.
//!
//! # How it ends
//!
//! An end of stream travels behind the data (`SHUT_WR`), each way by itself; when both have passed,
//! both sockets are closed. A side that fails is *broken*: what it had sent before is still
//! delivered, and then both sockets are reset, as the far end would have met it without us.
//!
//! # Urgent data
//!
//! Both sockets take it in line. splice(2) stops before the urgent byte and calls it `EAGAIN`; a
//! source that has reported one (`EPOLLPRI`) is read by recv(2) and written to the pipe until it is
//! empty. The mark itself is lost, as on the way through the TAP.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cnet_tap::socket as sys;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use rustix::pipe::SpliceFlags;

use super::pipe_pool::{Pipe, Pipes};
use crate::budget::SPLICE_TURN_LEN;

/// Bytes read at once where splice(2) cannot: what the smallest pipe takes in one piece.
const URGENT_LEN: usize = 4096;

/// The side of the client, which was accepted.
pub(super) const CLIENT: usize = 0;
/// The side in the container's namespace.
pub(super) const CONTAINER: usize = 1;

#[derive(Debug)]
struct Side {
    fd: OwnedFd,
    readable: bool,
    writable: bool,
    /// A short read no longer means that nothing follows: an end, an error or urgent data does.
    short_reads: bool,
    urgent: bool,
    /// It has failed: nothing goes there any more.
    broken: bool,
}

impl Side {
    fn new(fd: OwnedFd) -> Side {
        Side {
            fd,
            readable: false,
            writable: false,
            short_reads: false,
            urgent: false,
            broken: false,
        }
    }
}

/// A direction.
#[derive(Debug, Default)]
struct Way {
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    held: usize,
    /// Nothing more comes from the source.
    ended: bool,
    /// That was passed on, or cannot be: the way is over.
    over: bool,
}

/// What a turn ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// The next event will tell.
    Waiting,
    /// Its share was used up.
    More,
    /// The connection is to be dropped.
    Over,
}

/// Two sockets whose bytes go to each other. Dropping it closes them: with a reset where something
/// was not delivered.
#[derive(Debug)]
pub(super) struct Connection {
    sides: [Side; 2],
    /// `ways[s]` starts at `sides[s]`.
    ways: [Way; 2],
    connecting: bool,
}

impl Connection {
    /// `container` has been told to connect.
    pub(super) fn new(client: OwnedFd, container: OwnedFd) -> Connection {
        for socket in [&client, &container] {
            // Whatever ends this process, neither end takes half a stream for a whole one.
            let _ = sys::reset_on_close(socket);
        }
        Connection {
            sides: [Side::new(client), Side::new(container)],
            ways: [Way::default(), Way::default()],
            connecting: true,
        }
    }

    /// A side's socket.
    pub(super) fn fd(&self, side: usize) -> BorrowedFd<'_> {
        self.sides[side].fd.as_fd()
    }

    /// Whether everything that the container has sent, its end included, was passed on.
    pub(super) fn is_delivered(&self) -> bool {
        self.ways[CONTAINER].over
    }

    /// Remembers what epoll tells of a side.
    pub(super) fn note(&mut self, side: usize, events: EventFlags) {
        let s = &mut self.sides[side];
        s.readable |= events.intersects(
            EventFlags::IN
                | EventFlags::RDHUP
                | EventFlags::PRI
                | EventFlags::ERR
                | EventFlags::HUP,
        );
        s.writable |= events.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP);
        s.urgent |= events.contains(EventFlags::PRI);
        s.short_reads |= events
            .intersects(EventFlags::RDHUP | EventFlags::PRI | EventFlags::ERR | EventFlags::HUP);
        if events.contains(EventFlags::ERR) && !self.connecting {
            // Asking takes the error away; what was received before it can still be read.
            s.broken |= !matches!(sys::so_error(&s.fd), Ok(None));
        }
    }

    /// Moves what can be moved, and adds the bytes to `total`, by the side they come from.
    pub(super) fn turn(&mut self, pipes: &mut Pipes, total: &mut [u64; 2]) -> Turn {
        if self.connecting {
            if !self.sides[CONTAINER].writable {
                return Turn::Waiting;
            }
            match sys::so_error(&self.sides[CONTAINER].fd) {
                Ok(None) => self.connecting = false,
                // Refused, most likely: no program listens.
                _ => {
                    self.sides[CONTAINER].broken = true;
                    return Turn::Over;
                }
            }
        }
        let mut more = false;
        for from in [CLIENT, CONTAINER] {
            match self.carry(from, pipes, &mut total[from]) {
                Ok(unfinished) => more |= unfinished,
                // No pipe is to be had. Half a stream is worse than none.
                Err(_) => return Turn::Over,
            }
        }
        let both_over = self.ways.iter().all(|way| way.over);
        let sides = self.sides.iter().zip(&self.ways);
        let mut ends = sides.map(|(side, way)| side.broken && way.over);
        match both_over || ends.any(|end| end) {
            true => Turn::Over,
            false if more => Turn::More,
            false => Turn::Waiting,
        }
    }

    /// Gives a way its turn; whether it has more to do than its share.
    fn carry(
        &mut self,
        from: usize,
        pipes: &mut Pipes,
        total: &mut u64,
    ) -> rustix::io::Result<bool> {
        let to = 1 - from;
        let mut carried = 0;
        while !self.ways[from].over {
            let filled = self.fill(from, pipes)?;
            let drained = self.drain(from);
            let way = &mut self.ways[from];
            if way.ended && way.held == 0 {
                if !self.sides[from].broken && !self.sides[to].broken {
                    // A connection that is gone meanwhile reports it by an event.
                    let _ = rustix::net::shutdown(&self.sides[to].fd, Shutdown::Write);
                }
                way.over = true;
            } else if !filled && drained == 0 {
                break;
            }
            carried += drained;
            *total += drained as u64;
            if carried >= SPLICE_TURN_LEN {
                return Ok(!self.ways[from].over);
            }
        }
        let way = &mut self.ways[from];
        if way.held == 0
            && let Some(pipe) = way.pipe.take()
        {
            pipes.give(pipe);
        }
        Ok(false)
    }

    /// Moves from the source into the pipe; whether there was anything, an end included.
    fn fill(&mut self, from: usize, pipes: &mut Pipes) -> rustix::io::Result<bool> {
        let (side, way) = (&mut self.sides[from], &mut self.ways[from]);
        if way.ended || !side.readable {
            return Ok(false);
        }
        let pipe = match &mut way.pipe {
            Some(pipe) => pipe,
            none => none.insert(pipes.take()?),
        };
        let room = pipe.len - way.held.min(pipe.len);
        let empty = way.held == 0;
        let moved = match (side.urgent, empty) {
            (true, false) => return Ok(false),
            (true, true) => read_into(side.fd.as_fd(), pipe),
            (false, _) if room == 0 => return Ok(false),
            (false, _) => {
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                rustix::pipe::splice(&side.fd, None, &pipe.writer, None, room, flags)
            }
        };
        match moved {
            Ok(0) => way.ended = true,
            Ok(n) => {
                way.held += n;
                // A piece is at least a byte: with fewer bytes than slots the pipe is not full.
                if empty && n < room.min(pipe.slots) && !side.short_reads {
                    side.readable = false;
                }
            }
            Err(Errno::AGAIN) => {
                if empty {
                    side.readable = false;
                    side.urgent = false;
                }
                return Ok(false);
            }
            Err(Errno::INTR) => {}
            Err(_) => {
                side.broken = true;
                way.ended = true;
            }
        }
        Ok(true)
    }

    /// Moves from the pipe to the destination; how many bytes.
    fn drain(&mut self, from: usize) -> usize {
        let (side, way) = (&mut self.sides[1 - from], &mut self.ways[from]);
        let Some(pipe) = &way.pipe else { return 0 };
        if way.held == 0 {
            return 0;
        }
        if side.broken {
            way.give_up();
            return 0;
        }
        if !side.writable {
            return 0;
        }
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = rustix::io::retry_on_intr(|| {
            rustix::pipe::splice(&pipe.reader, None, &side.fd, None, way.held, flags)
        });
        match moved {
            Ok(n) => {
                way.held -= n.min(way.held);
                n
            }
            Err(Errno::AGAIN) => {
                side.writable = false;
                0
            }
            Err(_) => {
                side.broken = true;
                way.give_up();
                0
            }
        }
    }
}

impl Way {
    /// The destination is gone: what is in the pipe goes with it.
    fn give_up(&mut self) {
        self.pipe = None;
        self.held = 0;
        self.ended = true;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for side in [CLIENT, CONTAINER] {
            let delivered = self.ways[1 - side].over && !self.sides[1 - side].broken;
            if delivered && !self.sides[side].broken {
                // The kernel delivers what it has, and the end behind it.
                let _ = sys::deliver_on_close(&self.sides[side].fd);
            }
        }
    }
}

/// Reads past urgent data into an empty pipe.
fn read_into(source: BorrowedFd<'_>, pipe: &Pipe) -> rustix::io::Result<usize> {
    let mut bytes = [0; URGENT_LEN];
    let (n, _) = rustix::net::recv(source, &mut bytes, RecvFlags::DONTWAIT)?;
    match n {
        0 => Ok(0),
        n => rustix::io::write(&pipe.writer, &bytes[..n]),
    }
}
