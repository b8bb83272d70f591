//! Idle flows: thousands of connections that are open and carry nothing.
//!
//! They go to [`PORTS`] ports in turns, so that there are local ports enough for 100,000 of them,
//! and end with a reset, so that none of them lingers. Nobody accepts them: they stay in the queues
//! of the listening sockets, established all the same, and cost this process one descriptor each.
//!
//! # Limits
//!
//! Where the limit of descriptors cannot be raised, neither this process nor a contender's holds
//! more flows than it has descriptors: the outcome says how many there were.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Resource, getrlimit};

use super::{STALL, listen};
use crate::bench::contenders::{Arena, Route};
use crate::bench::interrupt;

/// Ports that the flows are spread over: with 35,536 local ports a source address, room for three
/// times as many flows as the largest row opens.
const PORTS: u16 = 16;

/// How many connections may wait in the queue of each; as many as the namespaces' `somaxconn`.
const QUEUE: i32 = 8192;

/// Descriptors that this process needs for anything else.
const SPARE: u64 = 512;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Flows open at the same time: all that were asked for, or as many as could be opened in time.
    pub open: usize,
    /// Resident memory of the contender's programs, in bytes.
    pub resident: u64,
    /// What of it came with the flows, a flow.
    pub each: f64,
    /// Wake-ups a second while they are idle.
    pub wake_ups: f64,
}

/// Opens `count` flows, within `limit`, and watches them for `watch`.
///
/// # Errors
/// No listener; not one flow; the run is interrupted.
pub fn measure(
    arena: &Arena,
    route: &Route<'_>,
    first_port: u16,
    count: usize,
    limit: Duration,
    watch: Duration,
) -> anyhow::Result<Outcome> {
    let _listeners: Vec<TcpListener> = (first_port..first_port + PORTS)
        .map(|port| {
            let listener = listen(route, port)?;
            // Again, for a longer queue.
            rustix::net::listen(&listener, QUEUE)?;
            Ok(listener)
        })
        .collect::<anyhow::Result<_>>()?;
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = count.min(usize::try_from(descriptors.saturating_sub(SPARE))?);
    let before = arena.usage();
    let flows = open(route, first_port, count, limit)?;
    // What belongs to opening is over by then.
    interrupt::sleep(Duration::from_secs(1))?;
    let opened = arena.usage();
    interrupt::sleep(watch)?;
    let watched = arena.usage();
    let grown = watched.resident.saturating_sub(before.resident);
    let sleeps = watched.sleeps.saturating_sub(opened.sleeps);
    Ok(Outcome {
        open: flows.len(),
        resident: watched.resident,
        each: grown as f64 / flows.len() as f64,
        wake_ups: sleeps as f64 / watch.as_secs_f64(),
    })
}

/// Connects until there are `count` flows, `limit` has passed, or a connection fails.
fn open(
    route: &Route<'_>,
    first_port: u16,
    count: usize,
    limit: Duration,
) -> anyhow::Result<Vec<OwnedFd>> {
    let deadline = Instant::now() + limit;
    route.client.enter(|| {
        let mut flows = Vec::with_capacity(count);
        for port in (first_port..first_port + PORTS).cycle().take(count) {
            if Instant::now() > deadline || interrupt::pending() {
                break;
            }
            match connect(SocketAddr::new(route.dial, port)) {
                Ok(flow) => flows.push(flow),
                Err(error) if flows.is_empty() => return Err(error),
                // A limit of the contender's own: what it can hold is the result.
                Err(_) => break,
            }
        }
        Ok(flows)
    })
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
