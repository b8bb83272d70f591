//! A network namespace held by a descriptor, and sockets made inside it.
//!
//! A socket belongs to the namespace that its thread was in when it was made, and may be used from
//! any thread afterwards: so each is made on a short-lived thread that enters the namespace
//! ([`Namespace::enter`]), and the servers and clients of the tests are plain threads. Only root of
//! the initial user namespace may enter any network namespace so.
//!
//! A namespace made here is held by nothing but its descriptor: it is gone with the test process,
//! whatever way that ends.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cnet_tap::namespace::{NewNamespaces, unshare};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::Launch;

/// Where a thread finds the network namespace it is in.
const OWN: &str = "/proc/thread-self/ns/net";

/// How much later than the container a published port may listen, and more.
const PRESENCE_TIME: Duration = Duration::from_millis(400);
/// What the standard library says of a connection that failed without an error to be had, which was
/// seen once in some fifty connections that no route led to.
const NO_ERROR: &str = "no error set after POLLHUP";

/// A network namespace; clones are the same one.
#[derive(Clone, Debug)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// A new namespace, owned by the initial user namespace, with its loopback up.
    pub fn create() -> Self {
        let made = on_a_thread(|| {
            let net = NewNamespaces {
                net: true,
                ..NewNamespaces::default()
            };
            // Only this thread, which ends here, moves.
            unshare(net).expect("unshare(CLONE_NEWNET) as root");
            File::open(OWN).expect("the thread's own namespace")
        });
        let namespace = Self {
            fd: Arc::new(made.into()),
        };
        // Link-local addresses are usable at once: nobody else can have them.
        namespace.sysctl("ipv6/conf/default/accept_dad", "0");
        namespace.ip("link set lo up");
        namespace
    }

    /// The namespace that a process is in.
    pub fn of_process(pid: u32) -> Self {
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self {
            fd: Arc::new(file.into()),
        }
    }

    /// The one behind a descriptor.
    pub fn of(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd) }
    }

    /// Its path, while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// The link text of its entry in `/proc`, such as `net:[4026531840]`: equal for the same one.
    pub fn identity(&self) -> String {
        let link = fs::read_link(self.path()).expect("a link for an open descriptor");
        link.to_string_lossy().into_owned()
    }

    /// The descriptor, for a child to enter it by.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    /// Runs `action` on a thread inside the namespace; a panic in it is the caller's.
    pub fn enter<R: Send>(&self, action: impl FnOnce() -> R + Send) -> R {
        on_a_thread(|| {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("setns(CLONE_NEWNET) as root");
            action()
        })
    }

    /// A program to be run inside it.
    pub fn command(&self, program: &str) -> Launch {
        Launch::new(program).namespace(self.descriptor())
    }

    /// Runs `ip` with `arguments`, split at spaces; it has to succeed.
    pub fn ip(&self, arguments: &str) -> String {
        let done = self
            .command("ip")
            .args(arguments.split_whitespace())
            .run(Duration::from_secs(10));
        assert!(done.success(), "ip {arguments}: {done}");
        done.stdout
    }

    /// Feeds `rules` to `nft -f -`.
    pub fn nft(&self, rules: &str) {
        let done = self
            .command("nft")
            .args(["-f", "-"])
            .input(rules)
            .run(Duration::from_secs(10));
        assert!(done.success(), "nft: {done}\n{rules}");
    }

    /// Sets a value under `/proc/sys/net`, such as `ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        let written = self.enter(|| fs::write(&path, value));
        written.unwrap_or_else(|error| panic!("{path} = {value}: {error}"));
    }

    /// Connects to `to` from inside, with the error that the kernel gives. Who is refused tries again
    /// for a moment, since a published port listens a moment later than the container does.
    pub fn connect(&self, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let started = Instant::now();
        loop {
            match self.connect_once(to, limit) {
                Err(error)
                    if error.kind() == io::ErrorKind::ConnectionRefused
                        && started.elapsed() < PRESENCE_TIME =>
                {
                    thread::sleep(Duration::from_millis(10));
                }
                // A hang-up of which the kernel told no error; the next try tells one.
                Err(error)
                    if error.to_string() == NO_ERROR && started.elapsed() < PRESENCE_TIME => {}
                done => return done,
            }
        }
    }

    /// Connects to `to` from inside, without a second try.
    pub fn connect_once(&self, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        self.enter(|| connect_here(to, limit))
    }

    /// Listens inside on `at`.
    pub fn listen(&self, at: SocketAddr) -> TcpListener {
        self.enter(|| TcpListener::bind(at))
            .unwrap_or_else(|error| panic!("listen on {at}: {error}"))
    }

    /// A UDP socket inside, bound to `at`, whose reads end after `limit`.
    pub fn udp(&self, at: SocketAddr, limit: Duration) -> UdpSocket {
        let socket = self.enter(|| UdpSocket::bind(at));
        let socket = socket.unwrap_or_else(|error| panic!("UDP socket on {at}: {error}"));
        socket.set_read_timeout(Some(limit)).expect("a read limit");
        socket
    }
}

/// Connects from the calling thread's namespace; reads and writes that stall for half a minute
/// fail.
pub fn connect_here(to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, limit)?;
    limit_stalls(&stream)?;
    Ok(stream)
}

/// Lets reads and writes that stall for half a minute fail, so that no test hangs.
pub fn limit_stalls(stream: &TcpStream) -> io::Result<()> {
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)
}

fn on_a_thread<R: Send>(action: impl FnOnce() -> R + Send) -> R {
    let result = thread::scope(|scope| scope.spawn(action).join());
    result.unwrap_or_else(|panic| resume_unwind(panic))
}
