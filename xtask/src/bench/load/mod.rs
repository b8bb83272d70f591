//! The load: small generators and sinks on threads of this process.
//!
//! Their sockets are made inside the namespaces of a [`Route`]; the threads that only read and
//! write them may stay where they are. Everything is bounded in time: no socket waits longer than
//! [`STALL`], which is an error, and every thread ends with its measurement.

pub mod attach;
pub mod connect;
pub mod datagram;
pub mod flows;
pub mod round_trip;
pub mod stream;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::contenders::Route;

/// What stands still for so long has failed.
pub const STALL: Duration = Duration::from_secs(5);

/// How long a published port may take to listen after its server, and how often it is tried.
const LISTEN_TIMEOUT: Duration = Duration::from_millis(500);
const LISTEN_INTERVAL: Duration = Duration::from_millis(20);

/// Which way payload flows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From who connects to who listens.
    ToServer,
    /// From who listens to who connects.
    ToClient,
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// What passes unmeasured before.
    pub warm_up: Duration,
    /// What is measured.
    pub length: Duration,
}

/// Listens in the server's namespace.
fn listen(route: &Route<'_>, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(route.bind, port);
    route.server.enter(|| Ok(TcpListener::bind(address)?))
}

/// Connects from the client's namespace, and accepts in the server's. Returns the two ends, the
/// client's first.
///
/// The client speaks first, before it is accepted, because there are pastas (2023-03-09) that do
/// not complete a connection to a published port before there is something to be sent on it.
fn pair(
    route: &Route<'_>,
    listener: &TcpListener,
    port: u16,
) -> anyhow::Result<(TcpStream, TcpStream)> {
    let address = SocketAddr::new(route.dial, port);
    let mut client = route.client.enter(|| Ok(connect(&address)?))?;
    client.write_all(&[1])?;
    if !readable(listener, STALL)? {
        bail!("connected, but nothing to accept after {STALL:?}");
    }
    let (mut server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_read_timeout(Some(STALL))?;
        end.set_write_timeout(Some(STALL))?;
        end.set_nodelay(true)?;
    }
    server.read_exact(&mut [0])?;
    Ok((client, server))
}

/// Connects; as often as it is refused for half a second, because a published port may listen a moment
/// after the server does.
fn connect(address: &SocketAddr) -> std::io::Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect_timeout(address, STALL) {
            Err(error)
                if error.kind() == ErrorKind::ConnectionRefused
                    && begun.elapsed() < LISTEN_TIMEOUT =>
            {
                std::thread::sleep(LISTEN_INTERVAL);
            }
            other => return other,
        }
    }
}

/// Whether something can be read, or accepted, within `limit`.
fn readable(descriptor: &impl std::os::fd::AsFd, limit: Duration) -> anyhow::Result<bool> {
    let limit = Timespec::try_from(limit)?;
    let mut descriptors = [PollFd::new(descriptor, PollFlags::IN)];
    match poll(&mut descriptors, Some(&limit)) {
        Ok(count) => Ok(count > 0),
        // A signal: the caller looks at the interruption.
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The result of a thread of load.
fn join<T>(thread: ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow!("a thread of load panicked")))
}
