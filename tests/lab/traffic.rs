//! What clients of the tests do: move bytes and check every one, keep flows coming and going,
//! measure.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::namespace::{Namespace, connect_here};
use super::{any, wait_until};

/// How long a connect over these namespaces may take where the far end answers.
pub const CONNECT: Duration = Duration::from_secs(5);

/// Bytes without a pattern, and their SHA-256.
#[derive(Clone)]
pub struct Payload {
    bytes: Arc<Vec<u8>>,
    digest: [u8; 32],
}

impl Payload {
    /// `length` bytes that follow from `seed`.
    pub fn new(length: usize, seed: u64) -> Self {
        let bytes = noise(length, seed);
        let digest = Sha256::digest(&bytes).into();
        Self {
            bytes: Arc::new(bytes),
            digest,
        }
    }

    /// The 256 MiB of the bulk tests, made once.
    pub fn bulk() -> Self {
        static BULK: OnceLock<Payload> = OnceLock::new();
        BULK.get_or_init(|| Self::new(256 << 20, 1)).clone()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Sends it all to a [`super::servers::TcpServer::digest`], which has to see the same.
    pub fn upload(&self, from: &Namespace, to: SocketAddr) -> io::Result<Duration> {
        let mut stream = from.connect(to, CONNECT)?;
        let started = Instant::now();
        stream.write_all(&self.bytes)?;
        stream.shutdown(Shutdown::Write)?;
        let mut digest = [0; 32];
        stream.read_exact(&mut digest)?;
        assert_eq!(digest, self.digest, "other bytes arrived at {to}");
        Ok(started.elapsed())
    }

    /// Receives it all from a [`super::servers::TcpServer::source`], and compares.
    pub fn download(&self, to: &Namespace, from: SocketAddr) -> io::Result<Duration> {
        let mut stream = to.connect(from, CONNECT)?;
        let started = Instant::now();
        let (digest, length) = read_digest(&mut stream)?;
        assert_eq!(length, self.bytes.len() as u64, "length from {from}");
        assert_eq!(digest, self.digest, "other bytes arrived from {from}");
        Ok(started.elapsed())
    }
}

/// Reads `stream` to its end; gives the SHA-256 of what came, and how much it was.
pub fn read_digest(stream: &mut TcpStream) -> io::Result<([u8; 32], u64)> {
    let mut hash = Sha256::new();
    let mut length = 0;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok((hash.finalize().into(), length)),
            read => {
                hash.update(&buffer[..read]);
                length += read as u64;
            }
        }
    }
}

/// Bytes of a xorshift generator: they compress no better than random ones, and a shift or a
/// repetition of a part changes the digest.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Sends `message` over `stream` to an echo server and checks what comes back.
pub fn echo(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message)?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, message, "the echo differs");
    Ok(())
}

/// Waits until a new connection from `from` to an echo server works, `limit` at most; gives how long after
/// `since` that was.
pub fn connected_again(
    from: &Namespace,
    to: SocketAddr,
    since: Instant,
    limit: Duration,
) -> Duration {
    wait_until("a new flow", limit, || {
        let stream = from.connect(to, Duration::from_millis(50));
        let echoed = stream.and_then(|mut stream| echo(&mut stream, b"again"));
        echoed.map_err(|error| error.to_string())
    });
    since.elapsed()
}

/// Connects from `from`, and has `message` echoed.
pub fn connect_and_echo(from: &Namespace, to: SocketAddr, message: &[u8]) -> io::Result<()> {
    echo(&mut from.connect(to, CONNECT)?, message)
}

/// Sends one datagram of `length` bytes to an echo server, and checks the one that comes back.
/// A datagram may be lost: it is sent up to five times.
pub fn echo_datagram(from: &Namespace, to: SocketAddr, length: usize) -> io::Result<()> {
    let socket = from.udp(any(to.ip(), 0), Duration::from_secs(1));
    socket.connect(to)?;
    let message = noise(length, length as u64);
    let mut buffer = vec![0; 65536];
    let mut last = io::ErrorKind::TimedOut.into();
    for _ in 0..5 {
        socket.send(&message)?;
        match socket.recv(&mut buffer) {
            Ok(received) => {
                assert!(buffer[..received] == message, "the echo differs");
                return Ok(());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// One `ping` of `size` bytes from inside `from`, which has to be answered. It is tried five
/// times, since the first may go while addresses are being resolved.
pub fn ping(from: &Namespace, to: IpAddr, size: usize) {
    let arguments = format!("-n -c 5 -i 0.2 -w 10 -s {size} {to}");
    let done = from
        .command("ping")
        .args(arguments.split_whitespace())
        .run(Duration::from_secs(15));
    assert!(done.success(), "{done}");
}

/// Flows that open, exchange a message with an echo server and close, all the while.
pub struct Churn {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Churn {
    /// A hundred flows at a time, four times a second, so that ephemeral ports last.
    pub fn start(from: &Namespace, servers: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let opened = Arc::new(AtomicUsize::new(0));
        let threads = servers.iter().map(|server| {
            let (from, server) = (from.clone(), *server);
            let (stop, opened) = (Arc::clone(&stop), Arc::clone(&opened));
            let width = 100 / servers.len();
            thread::spawn(move || {
                from.enter(|| {
                    while !stop.load(Ordering::Relaxed) {
                        open_exchange_close(
                            server,
                            width,
                            opened.fetch_add(width, Ordering::Relaxed),
                        )?;
                        thread::sleep(Duration::from_millis(250));
                    }
                    Ok(())
                })
            })
        });
        let threads = threads.collect();
        Self {
            stop,
            opened,
            threads,
        }
    }

    /// Stops, and returns how many flows there were. The first that failed fails the test.
    pub fn stop(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let result = thread.join().expect("no echo differed");
            result.expect("every other flow succeeds");
        }
        self.opened.load(Ordering::Relaxed)
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Already failing: what stopped the test is the better report.
            let _ = thread.join();
        }
    }
}

/// Opens `width` flows from the calling thread's namespace, has a message echoed on each while all
/// are open, and closes them.
pub fn open_exchange_close(server: SocketAddr, width: usize, seed: usize) -> io::Result<()> {
    let mut streams = (0..width)
        .map(|_| connect_here(server, CONNECT))
        .collect::<io::Result<Vec<_>>>()?;
    for (index, stream) in streams.iter_mut().enumerate() {
        let message = noise(1000, (seed + index) as u64);
        echo(stream, &message)?;
    }
    Ok(())
}

/// Sends to a [`super::servers::TcpServer::discard`] for `time`; gives Gbit/s.
pub fn rate_out(from: &Namespace, to: SocketAddr, time: Duration) -> io::Result<f64> {
    let mut stream = from.connect(to, CONNECT)?;
    let block = vec![0x5a; 256 << 10];
    rate(time, || stream.write(&block))
}

/// Receives from a [`super::servers::TcpServer::flood`] for `time`; gives Gbit/s.
pub fn rate_in(to: &Namespace, from: SocketAddr, time: Duration) -> io::Result<f64> {
    let mut stream = to.connect(from, CONNECT)?;
    let mut block = vec![0; 256 << 10];
    rate(time, || stream.read(&mut block))
}

/// Moves bytes for `time` and a fifth more at the start, which is not counted: connections start
/// slowly.
fn rate(time: Duration, mut step: impl FnMut() -> io::Result<usize>) -> io::Result<f64> {
    let begin = Instant::now() + time / 5;
    while Instant::now() < begin {
        step()?;
    }
    let started = Instant::now();
    let mut bytes = 0;
    while started.elapsed() < time {
        bytes += step()?;
    }
    Ok(bytes as f64 * 8.0 / 1e9 / started.elapsed().as_secs_f64())
}

/// The middle one of some measurements.
pub fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Sends datagrams to `to` at full speed while `time` passes; gives how many.
pub fn flood(from: &Namespace, to: SocketAddr, time: Duration) -> u64 {
    let socket = from.udp(any(to.ip(), 0), CONNECT);
    let until = Instant::now() + time;
    let mut sent = 0;
    while Instant::now() < until {
        // What the container's own queue has no room for is not of interest.
        sent += u64::from(socket.send_to(&[0x5a; 1400], to).is_ok());
    }
    sent
}
