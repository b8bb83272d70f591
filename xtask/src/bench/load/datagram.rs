//! UDP: how many datagrams a second arrive, and how many can be sent so that they do.
//!
//! Two figures, because a sender that is not slowed down says little of a path: it takes the
//! processor from whoever carries its datagrams. First a *flood*, as fast as one thread can send;
//! then a search for the highest rate at which less than [`TOLERATED_LOSS`] is lost, halving the
//! interval (of the rate's logarithm) below the flood's rate. Datagrams are sent in small batches
//! by the clock, and counted at the other end by the step that they belong to, so that stragglers
//! of one step do not count for the next.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

use super::{Direction, STALL, Window, join};
use crate::bench::contenders::Route;
use crate::bench::interrupt;

/// The part that may be lost of what counts as passed.
pub const TOLERATED_LOSS: f64 = 0.001;

/// Datagrams of one system call.
const BATCH: usize = 64;

/// The largest datagram received.
const LARGEST: usize = 2048;

/// Steps of the search. From [`WIDEST`] on, the last interval is 4 % wide.
const STEPS: u32 = 7;

/// How far below the flood's rate the search begins, as a factor.
const WIDEST: f64 = 256.0;

/// How much of the time a paced sender has missed it makes up for.
const DEBT: Duration = Duration::from_millis(2);

/// The receiver's buffer in bytes: what is lost there would be lost by the load, not the path.
const RECEIVE_BUFFER: usize = 8 << 20;

/// What was measured; rates are in datagrams a second.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The highest rate found at which less than [`TOLERATED_LOSS`] is lost; 0 if none is so low.
    pub lossless: f64,
    /// What arrives of a flood.
    pub flood: f64,
    /// The part of the flood that does not.
    pub flood_loss: f64,
}

/// Measures datagrams of `size` bytes of payload.
///
/// # Errors
/// Nothing arrives; a send fails; the run is interrupted.
pub fn measure(
    route: &Route<'_>,
    port: u16,
    size: usize,
    direction: Direction,
    window: Window,
) -> anyhow::Result<Outcome> {
    let (client, server) = pair(route, port)?;
    let (from, to) = match direction {
        Direction::ToServer => (&client, &server),
        Direction::ToClient => (&server, &client),
    };
    set_socket_recv_buffer_size_force(to, RECEIVE_BUFFER)?;
    set_socket_send_buffer_size_force(from, RECEIVE_BUFFER)?;
    let meter = Meter::default();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(to, &meter));
        let outcome = Sender {
            from,
            size,
            meter: &meter,
        }
        .search(window.length);
        meter.stop.store(true, Ordering::Relaxed);
        let received = join(receiver);
        let outcome = outcome?;
        received.map(|()| outcome)
    })
}

/// Two sockets connected to each other, the client's first. The client speaks first, which opens
/// the way back through whatever translates addresses between them.
fn pair(route: &Route<'_>, port: u16) -> anyhow::Result<(UdpSocket, UdpSocket)> {
    let server = SocketAddr::new(route.bind, port);
    let server = route.server.enter(|| Ok(UdpSocket::bind(server)?))?;
    let client = route.client.enter(|| {
        let any = match route.dial.is_ipv4() {
            true => "0.0.0.0:0",
            false => "[::]:0",
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(SocketAddr::new(route.dial, port))?;
        Ok(socket)
    })?;
    server.set_read_timeout(Some(Duration::from_millis(100)))?;
    let deadline = Instant::now() + STALL;
    loop {
        client.send(&[0])?;
        match server.recv_from(&mut [0; 8]) {
            Ok((_, peer)) => {
                server.connect(peer)?;
                return Ok((client, server));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("the first datagram"),
        }
        if Instant::now() > deadline || interrupt::pending() {
            bail!("no datagram arrives in {STALL:?}");
        }
    }
}

/// What the two ends share.
#[derive(Default)]
struct Meter {
    /// The step whose datagrams count. No step is numbered 0.
    step: AtomicU64,
    received: AtomicU64,
    stop: AtomicBool,
}

struct Sender<'a> {
    from: &'a UdpSocket,
    size: usize,
    meter: &'a Meter,
}

/// What became of a step; rates are in datagrams a second.
struct Step {
    offered: f64,
    delivered: f64,
    loss: f64,
}

impl Sender<'_> {
    fn search(&self, length: Duration) -> anyhow::Result<Outcome> {
        let flood = self.step(None, length / 4)?;
        anyhow::ensure!(flood.delivered > 0.0, "no datagram of a flood arrives");
        let mut outcome = Outcome {
            lossless: 0.0,
            flood: flood.delivered,
            flood_loss: flood.loss,
        };
        if flood.loss < TOLERATED_LOSS {
            outcome.lossless = flood.delivered;
            return Ok(outcome);
        }
        let (mut low, mut high) = (flood.offered / WIDEST, flood.offered);
        for _ in 0..STEPS {
            let rate = (low * high).sqrt();
            let step = self.step(Some(rate), length * 3 / 4 / STEPS)?;
            if step.loss < TOLERATED_LOSS {
                outcome.lossless = outcome.lossless.max(step.delivered);
                low = rate;
            } else {
                high = rate;
            }
        }
        Ok(outcome)
    }

    fn step(&self, rate: Option<f64>, length: Duration) -> anyhow::Result<Step> {
        let number = self.meter.step.load(Ordering::Relaxed) + 1;
        self.meter.received.store(0, Ordering::Relaxed);
        self.meter.step.store(number, Ordering::Relaxed);
        let start = Instant::now();
        let sent = self.send(number, rate, length)?;
        let elapsed = start.elapsed().as_secs_f64();
        let received = self.settled()?.min(sent);
        anyhow::ensure!(sent > 0, "no datagram could be sent");
        Ok(Step {
            offered: sent as f64 / elapsed,
            delivered: received as f64 / elapsed,
            loss: 1.0 - received as f64 / sent as f64,
        })
    }

    /// Sends for `length`, as fast as possible or by the clock. Returns how many.
    fn send(&self, number: u64, rate: Option<f64>, length: Duration) -> anyhow::Result<u64> {
        let mut payload = vec![0; self.size];
        let tag = payload
            .first_chunk_mut()
            .context("a datagram too small for its tag")?;
        *tag = number.to_ne_bytes();
        let slices = [IoSlice::new(&payload)];
        let mut controls: Vec<_> = (0..BATCH).map(|_| SendAncillaryBuffer::default()).collect();
        let mut messages: Vec<_> = controls
            .iter_mut()
            .map(|control| MMsgHdr::new(&slices, control))
            .collect();
        let start = Instant::now();
        let mut last = start;
        let (mut sent, mut owed) = (0u64, 0.0);
        while start.elapsed() < length {
            if interrupt::pending() {
                bail!("interrupted");
            }
            let count = match rate {
                None => BATCH,
                Some(rate) => {
                    let now = Instant::now();
                    owed += rate * (now - last).as_secs_f64();
                    owed = f64::min(owed, f64::max(1.0, rate * DEBT.as_secs_f64()));
                    last = now;
                    (owed as usize).min(BATCH)
                }
            };
            if count == 0 {
                thread::sleep(Duration::from_micros(20));
                continue;
            }
            let batch = messages.get_mut(..count).unwrap_or_default();
            match sendmmsg(self.from, batch, SendFlags::empty()) {
                Ok(done) => {
                    sent += done as u64;
                    owed -= done as f64;
                }
                // The way out is full.
                Err(Errno::NOBUFS | Errno::AGAIN | Errno::INTR) => thread::yield_now(),
                Err(error) => return Err(error).context("sending datagrams"),
            }
        }
        Ok(sent)
    }

    /// How many of the step have arrived, once no more do.
    fn settled(&self) -> anyhow::Result<u64> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut last = self.meter.received.load(Ordering::Relaxed);
        loop {
            interrupt::sleep(Duration::from_millis(30))?;
            let now = self.meter.received.load(Ordering::Relaxed);
            if now == last || Instant::now() > deadline {
                return Ok(now);
            }
            last = now;
        }
    }
}

/// Counts datagrams until told to stop.
fn receive(socket: &UdpSocket, meter: &Meter) -> anyhow::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut batch = Batch::new();
    while !meter.stop.load(Ordering::Relaxed) {
        match batch.receive(socket) {
            Ok(count) => {
                let step = meter.step.load(Ordering::Relaxed).to_ne_bytes();
                let of_step = batch
                    .datagrams(count)
                    .filter(|bytes| bytes.starts_with(&step));
                meter
                    .received
                    .fetch_add(of_step.count() as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("receiving datagrams"),
        }
    }
    Ok(())
}

/// Room for the datagrams of one recvmmsg(2).
struct Batch {
    headers: MultiHeaders<()>,
    buffers: Vec<[u8; LARGEST]>,
    lengths: Vec<usize>,
}

impl Batch {
    fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            buffers: vec![[0; LARGEST]; BATCH],
            lengths: Vec::with_capacity(BATCH),
        }
    }

    /// Waits for one datagram, and takes what else is there. Returns how many.
    fn receive(&mut self, socket: &UdpSocket) -> std::io::Result<usize> {
        let buffers = self.buffers.iter_mut();
        let mut vectors: Vec<_> = buffers.map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let received = recvmmsg(
            socket.as_raw_fd(),
            &mut self.headers,
            vectors.iter_mut(),
            MsgFlags::MSG_WAITFORONE,
            None,
        )?;
        self.lengths.clear();
        self.lengths.extend(received.map(|message| message.bytes));
        Ok(self.lengths.len())
    }

    fn datagrams(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        let filled = self.buffers.iter().zip(&self.lengths).take(count);
        filled.map(|(buffer, length)| buffer.get(..*length).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_holds_what_was_sent() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(STALL)).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        for length in [1usize, 700, LARGEST] {
            sender.send(&vec![7; length]).unwrap();
        }
        let mut batch = Batch::new();
        let mut lengths = Vec::new();
        while lengths.len() < 3 {
            let count = batch.receive(&receiver).unwrap();
            lengths.extend(batch.datagrams(count).map(<[u8]>::len));
            assert!(
                batch
                    .datagrams(count)
                    .all(|bytes| bytes.iter().all(|byte| *byte == 7))
            );
        }
        assert_eq!(lengths, [1, 700, LARGEST]);
    }
}
