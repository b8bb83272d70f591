//! Servers of the tests: threads of the test process on sockets made inside a namespace.
//!
//! Each notes who came ([`Log`]) and ends with its value: dropping it wakes the thread that
//! accepts. Connections have threads of their own, and stalls are bounded by the sockets' limits.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::namespace::{Namespace, limit_stalls};
use super::traffic::{Payload, read_digest};

/// The source addresses of connections or datagrams, in the order they came.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<SocketAddr>>>);

impl Log {
    fn add(&self, peer: SocketAddr) {
        self.0.lock().expect("no panic while it is held").push(peer);
    }

    /// The addresses that have come so far.
    pub fn peers(&self) -> Vec<IpAddr> {
        let log = self.0.lock().expect("no panic while it is held");
        log.iter().map(SocketAddr::ip).collect()
    }

    /// The addresses and ports that have come so far.
    pub fn sockets(&self) -> Vec<SocketAddr> {
        self.0.lock().expect("no panic while it is held").clone()
    }
}

/// A TCP server.
pub struct TcpServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who came.
    pub log: Log,
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Listens in `namespace` on `address` (port 0: any) and runs `serve` for each connection.
    pub fn start(
        namespace: &Namespace,
        address: SocketAddr,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = Arc::new(namespace.listen(address));
        // The standard library listens with a backlog of 128, too few for a thousand at once.
        rustix::net::listen(&*listener, 4096).expect("a longer backlog");
        let address = listener.local_addr().expect("it is bound");
        let log = Log::default();
        let accepting = (Arc::clone(&listener), log.clone());
        let serve = Arc::new(serve);
        let thread = thread::spawn(move || {
            let (listener, log) = accepting;
            // Ends when `drop` shuts the listener down.
            while let Ok((stream, peer)) = listener.accept() {
                log.add(peer);
                let serve = Arc::clone(&serve);
                // An error of one connection is its client's to notice.
                thread::spawn(move || limit_stalls(&stream).and_then(|()| serve(stream)));
            }
        });
        Self {
            address,
            log,
            listener,
            thread: Some(thread),
        }
    }

    /// Sends back what it receives, until the client has finished sending.
    pub fn echo(namespace: &Namespace, address: SocketAddr) -> Self {
        Self::start(namespace, address, |mut stream| {
            let mut from = stream.try_clone()?;
            io::copy(&mut from, &mut stream)?;
            stream.shutdown(Shutdown::Write)
        })
    }

    /// Reads to the end, and answers with the SHA-256 of what came.
    pub fn digest(namespace: &Namespace, address: SocketAddr) -> Self {
        Self::start(namespace, address, |mut stream| {
            let (digest, _) = read_digest(&mut stream)?;
            stream.write_all(&digest)
        })
    }

    /// Sends `payload` to each client and closes.
    pub fn source(namespace: &Namespace, address: SocketAddr, payload: &Payload) -> Self {
        let payload = payload.clone();
        Self::start(namespace, address, move |mut stream| {
            stream.write_all(payload.bytes())?;
            stream.shutdown(Shutdown::Write)?;
            // Until the client has closed, so that this end is not the one to reset.
            io::copy(&mut stream, &mut io::sink()).map(|_| ())
        })
    }

    /// Sends without end, until the client closes.
    pub fn flood(namespace: &Namespace, address: SocketAddr) -> Self {
        Self::start(namespace, address, |mut stream| {
            let block = vec![0x5a; 256 << 10];
            loop {
                stream.write_all(&block)?;
            }
        })
    }

    /// Reads and forgets, until the client closes.
    pub fn discard(namespace: &Namespace, address: SocketAddr) -> Self {
        Self::start(namespace, address, |mut stream| {
            let mut block = vec![0; 256 << 10];
            while stream.read(&mut block)? != 0 {}
            Ok(())
        })
    }

    /// Accepts, and keeps the connection open without reading, until the client closes.
    pub fn hold(namespace: &Namespace, address: SocketAddr) -> Self {
        Self::start(namespace, address, |stream| {
            stream.set_read_timeout(Some(Duration::from_secs(300)))?;
            let mut byte = [0];
            while stream.peek(&mut byte)? != 0 {
                thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        })
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        // Wakes `accept` with an error.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A UDP server that answers each datagram.
pub struct UdpServer {
    /// Where it receives.
    pub address: SocketAddr,
    /// Who sent.
    pub log: Log,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Receives in `namespace` on `address`, and sends back what `answer` makes of each datagram.
    pub fn start(
        namespace: &Namespace,
        address: SocketAddr,
        answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let socket = namespace.udp(address, Duration::from_millis(50));
        let address = socket.local_addr().expect("it is bound");
        let log = Log::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (log, stop) = (log.clone(), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    receive_one(&socket, &log, &answer);
                }
            }
        });
        Self {
            address,
            log,
            stop,
            thread: Some(thread),
        }
    }

    /// As [`UdpServer::start`], but each answer is sent `delay` after its datagram came.
    pub fn start_slow(
        namespace: &Namespace,
        address: SocketAddr,
        delay: Duration,
        answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let later = namespace.udp(address, Duration::from_millis(50));
        let address = later.local_addr().expect("it is bound");
        let (socket, log) = (later.try_clone().expect("a copy"), Log::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (queue, queued) = std::sync::mpsc::channel::<(Instant, Vec<u8>, SocketAddr)>();
        let sender = thread::spawn(move || {
            for (at, answer, peer) in queued {
                thread::sleep(at.saturating_duration_since(Instant::now()));
                // A peer that has gone meanwhile is no failure of the server's.
                let _ = later.send_to(&answer, peer);
            }
        });
        let thread = thread::spawn({
            let (log, stop) = (log.clone(), Arc::clone(&stop));
            move || {
                let mut buffer = vec![0; 65536];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    log.add(peer);
                    if let Some(answer) = answer(&buffer[..length]) {
                        let _ = queue.send((Instant::now() + delay, answer, peer));
                    }
                }
                drop(queue);
                let _ = sender.join();
            }
        });
        Self {
            address,
            log,
            stop,
            thread: Some(thread),
        }
    }

    /// Sends each datagram back.
    pub fn echo(namespace: &Namespace, address: SocketAddr) -> Self {
        Self::start(namespace, address, |datagram| Some(datagram.to_vec()))
    }
}

fn receive_one(socket: &UdpSocket, log: &Log, answer: &impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = vec![0; 65536];
    match socket.recv_from(&mut buffer) {
        Ok((length, peer)) => {
            log.add(peer);
            if let Some(answer) = answer(&buffer[..length]) {
                // A peer that has gone meanwhile is no failure of the server's.
                let _ = socket.send_to(&answer, peer);
            }
        }
        Err(error) => assert!(
            matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused
            ),
            "{error}"
        ),
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
