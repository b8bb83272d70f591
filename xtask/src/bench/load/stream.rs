//! TCP in bulk: as much as goes through one or several connections, one way.
//!
//! Bytes are counted where they arrive, between two moments of a transfer that goes on before and
//! after. Both ends copy every byte, as programs do.
//!
//! Each end is one thread, however many connections there are, as in iperf3 and in servers with an
//! event loop. With a thread a connection, eight would share the processors with the contender,
//! where in life those of the other end have processors of their own; and on few cores both ends of
//! a connection would fall into step on one of them, its data never leaving that core's cache: the
//! kernel alone then shows several times the rate that it has between two cores.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Direction, STALL, Window, join, listen, pair};
use crate::bench::contenders::{Arena, Route};
use crate::bench::interrupt;
use crate::bench::usage::machine_time;

/// Bytes of one read or write.
const CHUNK: usize = 256 * 1024;

const GIB: f64 = (1u64 << 30) as f64;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Payload in bits a second.
    pub rate: f64,
    /// Processor seconds of the whole machine for a GiB of payload.
    pub machine: f64,
    /// Processor seconds of the contender's own programs for a GiB of payload.
    pub programs: f64,
}

/// Measures `streams` connections to one port.
///
/// # Errors
/// No connection; one stalls or is reset; the run is interrupted.
pub fn measure(
    arena: &Arena,
    route: &Route<'_>,
    port: u16,
    streams: usize,
    direction: Direction,
    window: Window,
) -> anyhow::Result<Outcome> {
    let listener = listen(route, port)?;
    let pairs: Vec<(TcpStream, TcpStream)> = (0..streams)
        .map(|_| pair(route, &listener, port))
        .collect::<Result<_, _>>()?;
    let received = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let (clients, servers) = pairs.into_iter().unzip();
    let (from, to): (Vec<TcpStream>, Vec<TcpStream>) = match direction {
        Direction::ToServer => (clients, servers),
        Direction::ToClient => (servers, clients),
    };
    thread::scope(|scope| {
        let source = scope.spawn(|| pump(&from, PollFlags::OUT, &stop, write_chunk()));
        let sink = scope.spawn(|| pump(&to, PollFlags::IN, &stop, read_chunk(&received)));
        let outcome = observe(arena, &received, window);
        stop.store(true, Ordering::Relaxed);
        for end in from.iter().chain(&to) {
            // Wakes who waits for it; one that was reset is an error of its thread's.
            let _ = end.shutdown(Shutdown::Both);
        }
        // Join both before the first error leaves.
        let (sent, received) = (join(source), join(sink));
        sent.and(received).and(outcome)
    })
}

fn observe(arena: &Arena, received: &AtomicU64, window: Window) -> anyhow::Result<Outcome> {
    interrupt::sleep(window.warm_up)?;
    let look = || -> anyhow::Result<_> {
        let bytes = received.load(Ordering::Relaxed);
        let at = Instant::now();
        Ok((bytes, at, machine_time()?, arena.usage().cpu))
    };
    let before = look()?;
    interrupt::sleep(window.length)?;
    let after = look()?;
    let bytes = (after.0 - before.0) as f64;
    let per_gib = |spent: Duration| spent.as_secs_f64() / (bytes / GIB);
    ensure!(bytes > 0.0, "not a byte in {:?}", window.length);
    Ok(Outcome {
        rate: 8.0 * bytes / (after.1 - before.1).as_secs_f64(),
        machine: per_gib(after.2.saturating_sub(before.2)),
        programs: per_gib(after.3.saturating_sub(before.3)),
    })
}

/// Lets `transfer` do its part on each connection that is ready for it, until `stop`.
fn pump(
    streams: &[TcpStream],
    ready: PollFlags,
    stop: &AtomicBool,
    mut transfer: impl FnMut(&TcpStream) -> std::io::Result<usize>,
) -> anyhow::Result<()> {
    let limit = Timespec::try_from(STALL)?;
    for stream in streams {
        stream.set_nonblocking(true)?;
    }
    loop {
        let mut waiting: Vec<PollFd<'_>> = streams
            .iter()
            .map(|stream| PollFd::new(stream, ready))
            .collect();
        let count = match poll(&mut waiting, Some(&limit)) {
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        ensure!(count > 0, "bulk has stood still for {STALL:?}");
        for (stream, state) in streams.iter().zip(&waiting) {
            if state.revents().is_empty() {
                continue;
            }
            match transfer(stream) {
                _ if stop.load(Ordering::Relaxed) => return Ok(()),
                Ok(0) => bail!("the other end closed a bulk connection"),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("bulk"),
            }
        }
    }
}

fn write_chunk() -> impl FnMut(&TcpStream) -> std::io::Result<usize> {
    let chunk = vec![0x5a; CHUNK];
    move |mut stream| stream.write(&chunk)
}

fn read_chunk(received: &AtomicU64) -> impl FnMut(&TcpStream) -> std::io::Result<usize> {
    let mut chunk = vec![0; CHUNK];
    move |mut stream| {
        let count = stream.read(&mut chunk)?;
        received.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
