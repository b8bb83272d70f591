//! Idle flows: thousands of connections that are open and carry nothing.
//!
//! They go to [`PORTS`] ports in turns, so that there are local ports enough for 100,000 of them,
//! and end with a reset, so that none of them lingers. Nobody accepts them: they stay in the queues
//! of the listening sockets, established all the same. This process parks its own ends in messages that
//! nobody reads (unix(7)), where they are none of its descriptors, and count for nobody who has
//! CAP_SYS_ADMIN.
//!
//! No contender's process holds more flows than it may have descriptors: there are as many containers,
//! each with a program of its own, as it takes.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socket_with, socketpair,
};
use rustix::process::{Resource, getrlimit};

use super::{STALL, listen};
use crate::bench::contenders::{Arena, Route};
use crate::bench::interrupt;
use crate::bench::usage::Usage;

/// Ports that the flows are spread over: with 35,536 local ports a source address, room for three
/// times as many flows as the largest row opens.
const PORTS: u16 = 16;

/// How many connections may wait in the queue of each; as many as the namespaces' `somaxconn`.
const QUEUE: i32 = 8192;

/// The part of a contender's descriptors that flows may take: it needs some for anything else, and
/// may keep some back so that no container takes all of them.
const PART: f64 = 0.5;

/// Descriptors a message; `SCM_MAX_FD` of the kernel's is 253.
const PARKED_TOGETHER: usize = 250;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Flows open at the same time: all that were asked for, or as many as could be opened in time.
    pub open: usize,
    /// Resident memory of the contender's programs together, in bytes.
    pub resident: u64,
    /// What of it is theirs alone: no program's text, no library (`RssAnon` in proc_pid_status(5)).
    pub anonymous: u64,
    /// What of the resident memory came with the flows, a flow.
    pub each: f64,
    /// Wake-ups a second while they are idle.
    pub wake_ups: f64,
}

/// How many containers it takes for `count` flows.
///
/// # Errors
/// The limit of descriptors leaves no room for flows.
pub fn containers(count: usize) -> anyhow::Result<usize> {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = (descriptors as f64 * PART) as usize;
    if room < PARKED_TOGETHER {
        bail!("{descriptors} descriptors leave no room for flows");
    }
    Ok(count.div_ceil(room))
}

/// Opens `count` flows, within `limit`, evenly from all containers, and watches them for `watch`.
///
/// # Errors
/// No listener; not one flow; the run is interrupted.
pub fn measure(
    arenas: &[(&Arena, Route<'_>)],
    first_port: u16,
    count: usize,
    limit: Duration,
    watch: Duration,
) -> anyhow::Result<Outcome> {
    let (_, remote) = arenas.first().context("no container")?;
    let _listeners: Vec<TcpListener> = (first_port..first_port + PORTS)
        .map(|port| {
            let listener = listen(remote, port)?;
            // Again, for a longer queue.
            rustix::net::listen(&listener, QUEUE)?;
            Ok(listener)
        })
        .collect::<anyhow::Result<_>>()?;
    let usage = || {
        let each = arenas.iter().map(|(arena, _)| arena.usage());
        each.fold(Usage::default(), Usage::plus)
    };
    let before = usage();
    let deadline = Instant::now() + limit;
    let share = count.div_ceil(arenas.len());
    let mut parked = Parked::default();
    for (_, route) in arenas {
        open(route, first_port, share, deadline, &mut parked)?;
    }
    // What belongs to opening is over by then.
    interrupt::sleep(Duration::from_secs(1))?;
    let opened = usage();
    interrupt::sleep(watch)?;
    let watched = usage();
    let grown = watched.resident.saturating_sub(before.resident);
    let sleeps = watched.sleeps.saturating_sub(opened.sleeps);
    Ok(Outcome {
        open: parked.count,
        resident: watched.resident,
        anonymous: watched.anonymous,
        each: grown as f64 / parked.count as f64,
        wake_ups: sleeps as f64 / watch.as_secs_f64(),
    })
}

/// Connects until there are `count` more flows, the deadline has passed, or a connection fails.
fn open(
    route: &Route<'_>,
    first_port: u16,
    count: usize,
    deadline: Instant,
    parked: &mut Parked,
) -> anyhow::Result<()> {
    route.client.enter(|| {
        let mut flows = Vec::with_capacity(PARKED_TOGETHER);
        for port in (first_port..first_port + PORTS).cycle().take(count) {
            if Instant::now() > deadline || interrupt::pending() {
                break;
            }
            match connect(SocketAddr::new(route.dial, port)) {
                Ok(flow) => flows.push(flow),
                Err(error) if parked.count + flows.len() == 0 => return Err(error),
                // A limit of the contender's own: what it can hold is the result.
                Err(error) => {
                    eprintln!(
                        "no more than {} flows: {error:#}",
                        parked.count + flows.len()
                    );
                    break;
                }
            }
            if flows.len() == PARKED_TOGETHER {
                parked.park(&mut flows)?;
            }
        }
        parked.park(&mut flows)
    })
}

/// Sockets in messages that nobody reads. Dropped, they are closed.
#[derive(Default)]
struct Parked {
    pairs: Vec<(OwnedFd, OwnedFd)>,
    count: usize,
}

impl Parked {
    /// Takes the sockets, at most [`PARKED_TOGETHER`].
    fn park(&mut self, flows: &mut Vec<OwnedFd>) -> anyhow::Result<()> {
        if flows.is_empty() {
            return Ok(());
        }
        let sent = match self.pairs.last() {
            Some((socket, _)) => send(socket, flows),
            None => Err(Errno::AGAIN),
        };
        match sent {
            Ok(()) => {}
            // Full, or the first.
            Err(Errno::AGAIN) => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
                send(&pair.0, flows).context("parking sockets")?;
                self.pairs.push(pair);
            }
            Err(error) => return Err(error).context("parking sockets"),
        }
        self.count += flows.len();
        flows.clear();
        Ok(())
    }
}

fn send(socket: &OwnedFd, flows: &[OwnedFd]) -> rustix::io::Result<()> {
    let borrowed: Vec<BorrowedFd<'_>> = flows.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PARKED_TOGETHER))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&borrowed));
    let flags = SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, flags).map(drop)
}

fn connect(target: SocketAddr) -> anyhow::Result<OwnedFd> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Of connect(2) too (socket(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(STALL))?;
    set_socket_linger(&socket, Some(Duration::ZERO))?;
    rustix::net::connect(&socket, &target).with_context(|| format!("connect to {target}"))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parked_sockets_stay_open_until_they_are_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut parked = Parked::default();
        let mut ends = Vec::new();
        for count in [PARKED_TOGETHER, 1] {
            let mut flows = Vec::new();
            for _ in 0..count {
                flows.push(connect(address).unwrap());
                ends.push(listener.accept().unwrap().0);
            }
            parked.park(&mut flows).unwrap();
            assert!(flows.is_empty());
        }
        assert_eq!(parked.count, ends.len());
        let at_end = |end: &std::net::TcpStream| {
            end.set_nonblocking(true).unwrap();
            let error = end.peek(&mut [0]).unwrap_err();
            error.kind() != std::io::ErrorKind::WouldBlock
        };
        assert!(!ends.iter().any(at_end));
        drop(parked);
        assert!(ends.iter().all(at_end));
    }
}
