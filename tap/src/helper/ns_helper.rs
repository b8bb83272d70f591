//! The namespace helper: the process that enters containers' namespaces for a program with threads.
//!
//! # Theory of operation
//!
//! A program forks the helper before it has any thread. The helper waits on its socket for requests,
//! each with the descriptor of a network namespace, and forks once more for every one: that child
//! enters, makes the TAP and configures it, or changes the rules of routing of one that is there, and
//! answers on the socket itself, under the request's number. Requests therefore run beside each other, and a namespace in which something hangs
//! delays no other: its child is killed after [`REQUEST_TIMEOUT`].
//!
//! With the TAP comes what the namespace's sockets can be asked by ([`Diagnostics`]), and whether the
//! interface has routes by source ([`policy_routing`]).
//!
//! A TAP that a network process left behind when it was killed is taken over as it is: nothing in
//! it is configured again, since the container may have changed its routes since. The TCP connections that
//! went through that process are cut, and ended in the container at once.
//!
//! # Invariants
//!
//! - The helper dies with the program that forked it, its children with the helper.
//! - It holds no descriptor but its socket and the standard streams, no environment and no new
//!   privileges; the capabilities it needs to enter are those it has, or gets inside.
//! - Every request gets one answer; a child that ends without one is answered for.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

use super::{Output, answer, outcome, receive, tap_of, tap_output, work_in};
use crate::device::Tap;
use crate::error::TapError;
use crate::fork::{Parent, spawn, spawn_sharing};
use crate::namespace::Namespaces;
use crate::netif::policy_routing::{self, Outcome, RoutesBySource};
use crate::netif::{self, InterfaceConfig};
use crate::sandbox::{Role, confine_helper};
use crate::socket::Diagnostics;
use crate::unix;

/// How long one request may take before its child is killed. What it does takes milliseconds; the
/// kernel's RTNL lock, which it needs, may be held by others for some hundred.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How often children are looked after while there are any.
const REAP_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// What is to be made in a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapRequest {
    /// The interface's name; with `%d` in it the kernel chooses the first free number.
    pub interface: String,
    /// How many queues it has.
    pub queues: u16,
    /// Whether it is there already and is taken over, not made.
    pub take_over: bool,
    /// Bytes of an IP packet.
    pub mtu: u32,
    /// The hardware address of the container's side.
    pub mac: [u8; 6],
    /// Addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Where default routes lead.
    pub gateways: Vec<IpAddr>,
    /// Packets that the interface's queue holds; `None` for the kernel's own number.
    pub tx_queue_len: Option<u32>,
}

impl TapRequest {
    /// For an interface of that name, one queue, that is to look like `config`.
    pub fn new(interface: String, mac: [u8; 6], config: InterfaceConfig) -> TapRequest {
        TapRequest {
            interface,
            queues: 1,
            take_over: false,
            mtu: config.mtu,
            mac,
            addresses: config.addresses,
            gateways: config.gateways,
            tx_queue_len: config.tx_queue_len,
        }
    }

    fn routes(&self) -> RoutesBySource {
        RoutesBySource {
            addresses: self.addresses.iter().map(|(address, _)| *address).collect(),
            gateways: self.gateways.clone(),
            udp_ports: Vec::new(),
        }
    }

    /// Whether a connection of the container with these ends went through the network's router: from the
    /// interface's address, and neither to itself nor to a neighbour, whom the switch leads it to.
    fn went_by_router(&self, local: IpAddr, remote: IpAddr) -> bool {
        let (local, remote) = (local.to_canonical(), remote.to_canonical());
        let is_neighbour = |&(address, len): &(IpAddr, u8)| are_in_one_subnet(address, remote, len);
        self.addresses.iter().any(|(own, _)| *own == local)
            && (self.gateways.contains(&remote) || !self.addresses.iter().any(is_neighbour))
    }

    fn config(&self) -> InterfaceConfig {
        InterfaceConfig {
            mtu: self.mtu,
            mac: Some(self.mac),
            addresses: self.addresses.clone(),
            gateways: self.gateways.clone(),
            tx_queue_len: self.tx_queue_len,
            joins_others: true,
            ..InterfaceConfig::default()
        }
    }
}

/// What is to be done in a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// A TAP is made, or taken over.
    Tap(TapRequest),
    /// The rules of an interface are brought to this ([`policy_routing::apply`]).
    Routes(u32, RoutesBySource),
}

/// What came with a TAP.
#[derive(Debug)]
pub struct OpenedTap {
    /// The TAP.
    pub tap: Tap,
    /// What tells of the sockets in its namespace, where the kernel has it.
    pub diagnostics: Option<Diagnostics>,
    /// Whether the interface has routes by source.
    pub routes: RouteState,
}

/// Whether an interface has routes by source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteState {
    /// It has none, and needs none.
    Needless,
    /// It has.
    Made,
    /// It has none, since the container has rules of its own.
    LeftToContainer,
    /// The kernel refused them.
    Failed,
}

impl RouteState {
    fn of(outcome: Result<Outcome, TapError>) -> RouteState {
        match outcome {
            Ok(Outcome::Needless) => RouteState::Needless,
            Ok(Outcome::Made) => RouteState::Made,
            Ok(Outcome::LeftToContainer) => RouteState::LeftToContainer,
            Err(_) => RouteState::Failed,
        }
    }

    fn of_byte(byte: u8) -> RouteState {
        let all = [
            RouteState::Needless,
            RouteState::Made,
            RouteState::LeftToContainer,
        ];
        let found = all.into_iter().find(|state| *state as u8 == byte);
        found.unwrap_or(RouteState::Failed)
    }
}

/// Whether the first `len` bits of two addresses are the same.
fn are_in_one_subnet(one: IpAddr, other: IpAddr, len: u8) -> bool {
    let differs = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            u128::from(one.to_bits() ^ other.to_bits()) << (u128::BITS - u32::BITS)
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => one.to_bits() ^ other.to_bits(),
        _ => return false,
    };
    differs.leading_zeros() >= len.into()
}

/// A running helper, seen from the program that forked it. It ends when this is dropped.
#[derive(Debug)]
pub struct NsHelper {
    socket: OwnedFd,
}

/// The answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// The request's number.
    pub number: u64,
    outcome: Result<Output, TapError>,
}

impl Answer {
    /// The TAP, which has the `queues` queues that were asked for, and what came with it.
    ///
    /// # Errors
    ///
    /// [`TapError::Helper`] with the reason why there is none.
    pub fn into_tap(self, queues: u16) -> Result<OpenedTap, TapError> {
        let (mut descriptors, mut bytes) = self.outcome?;
        let further = descriptors.split_off(descriptors.len().min(queues.into()));
        let state = bytes.pop();
        let tap = tap_of((descriptors, bytes), queues);
        let (tap, state) = tap
            .zip(state)
            .ok_or_else(|| TapError::Helper("the helper process sent no TAP".to_owned()))?;
        Ok(OpenedTap {
            tap,
            diagnostics: Diagnostics::from_fds(further),
            routes: RouteState::of_byte(state),
        })
    }

    /// That rules of routing were changed.
    ///
    /// # Errors
    ///
    /// [`TapError::Helper`] with the reason why not.
    pub fn into_done(self) -> Result<(), TapError> {
        self.outcome.map(drop)
    }
}

impl NsHelper {
    /// Forks the helper.
    ///
    /// # Errors
    ///
    /// [`TapError::MultiThreaded`] if this process has more threads than one; [`TapError::Io`] at a
    /// limit of descriptors or processes.
    pub fn start() -> Result<NsHelper, TapError> {
        let (_, socket) = spawn("cannot fork the namespace helper", |parent, socket| {
            live(socket.as_fd(), parent);
            0
        })?;
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(TapError::io("cannot talk to the namespace helper"))?;
        Ok(NsHelper { socket })
    }

    /// Asks for something in the network namespace `net`, under a number that the answer will bear.
    /// Does not wait.
    ///
    /// # Errors
    ///
    /// As sendmsg(2): `EPIPE` and `ECONNRESET` when the helper has ended.
    pub fn ask(&self, number: u64, net: BorrowedFd<'_>, request: &Request) -> io::Result<()> {
        let request = serde_json::to_vec(request)?;
        let pieces: [&[u8]; 2] = [&number.to_ne_bytes(), &request];
        unix::send(&self.socket, &pieces, &[net], SendFlags::empty())?;
        Ok(())
    }

    /// Takes the next answer, `None` once the helper has ended. Does not wait; the descriptor polls
    /// readable when there is one.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is no answer yet; `InvalidData` for a message that is none.
    pub fn take(&self) -> io::Result<Option<Answer>> {
        let Some((descriptors, bytes)) = receive(self.socket.as_fd())? else {
            return Ok(None);
        };
        let (number, rest) = bytes
            .split_first_chunk()
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(Answer {
            number: u64::from_ne_bytes(*number),
            outcome: outcome(descriptors, rest),
        }))
    }
}

impl AsFd for NsHelper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A request under way.
struct Running {
    number: u64,
    child: Pid,
    started: Instant,
}

/// The helper's life: serves requests until the program has ended.
fn live(socket: BorrowedFd<'_>, parent: Parent) {
    if parent.die_together().is_err() {
        return;
    }
    confine_helper(Role::Namespaces, &[socket.as_raw_fd()]);
    let mut running: Vec<Running> = Vec::new();
    loop {
        running.retain(|child| !is_over(socket, child));
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        let limit = (!running.is_empty()).then_some(&REAP_INTERVAL);
        match rustix::event::poll(&mut fds, limit) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        match receive(socket) {
            Ok(Some(message)) => running.extend(begin(socket, message)),
            // The program is gone.
            Ok(None) | Err(_) => return,
        }
    }
}

/// Starts on a request. One that cannot be begun is answered at once.
fn begin(socket: BorrowedFd<'_>, (descriptors, bytes): Output) -> Option<Running> {
    let (number, request) = bytes.split_first_chunk::<8>()?;
    let begun = || -> Result<Pid, TapError> {
        let request: Request =
            serde_json::from_slice(request).map_err(|e| TapError::Helper(e.to_string()))?;
        let no_descriptor = || TapError::Helper("the request has no descriptor".to_owned());
        let net = descriptors.into_iter().next().ok_or_else(no_descriptor)?;
        let namespaces = Namespaces::of_net(net)?;
        spawn_sharing("cannot fork a helper process", |parent| {
            let outcome = work_in(&namespaces, parent, || {
                match &request {
                    Request::Tap(request) => open(request),
                    Request::Routes(ifindex, routes) => {
                        // What the container has itself was told with the TAP.
                        let _ = policy_routing::apply(*ifindex, routes)?;
                        Ok((Vec::new(), Vec::new()))
                    }
                }
            });
            u8::from(answer(socket, number, outcome).is_err())
        })
    };
    match begun() {
        Ok(child) => Some(Running {
            number: u64::from_ne_bytes(*number),
            child,
            started: Instant::now(),
        }),
        Err(error) => {
            // If that fails, the program is gone.
            let _ = answer(socket, number, Err(error));
            None
        }
    }
}

/// Reaps a child that has ended, and kills one that takes too long.
fn is_over(socket: BorrowedFd<'_>, running: &Running) -> bool {
    match rustix::process::waitpid(Some(running.child), WaitOptions::NOHANG) {
        Ok(Some((_, status))) => {
            if status.exit_status() != Some(0) {
                let text = match running.started.elapsed() > REQUEST_TIMEOUT {
                    true => "setting up the interface took too long: the namespace does not answer",
                    false => "the process that set up the interface was ended",
                };
                let failed = Err(TapError::Helper(text.to_owned()));
                let _ = answer(socket, &running.number.to_ne_bytes(), failed);
            }
            true
        }
        Ok(None) => {
            if running.started.elapsed() > REQUEST_TIMEOUT {
                let _ = rustix::process::kill_process(running.child, Signal::KILL);
            }
            false
        }
        Err(Errno::INTR) => false,
        Err(_) => true,
    }
}

/// Inside the namespaces: the TAP, what the sockets there can be asked by, and whether it has routes by
/// source.
fn open(request: &TapRequest) -> Result<Output, TapError> {
    let tap = make(request)?;
    let mut routes = request.routes();
    routes
        .gateways
        .retain(|gateway| gateway.is_ipv4() || !tap.lacks_ipv6);
    let routes = match request.take_over {
        false => RouteState::of(policy_routing::apply(tap.ifindex, &routes)),
        true => match policy_routing::has_rules(tap.ifindex) {
            Ok(true) => RouteState::Made,
            Ok(false) | Err(_) => RouteState::Needless,
        },
    };
    let (mut descriptors, mut bytes) = tap_output(tap);
    bytes.push(routes as u8);
    // Without it published ports listen always.
    if let Ok(diagnostics) = Diagnostics::open() {
        if request.take_over {
            // Where the kernel cannot, programs that only wait do so until they give up.
            let _ = diagnostics
                .end_connections(|local, remote| request.went_by_router(local.ip(), remote.ip()));
        }
        descriptors.extend(diagnostics.into_fds());
    }
    Ok((descriptors, bytes))
}

/// Inside the namespaces: makes the TAP, or takes over one that is there.
fn make(request: &TapRequest) -> Result<Tap, TapError> {
    let name = &request.interface;
    match (netif::index_of(name), request.take_over) {
        (Ok(_), true) => return Tap::create(name, request.queues),
        (Ok(_), false) => return Err(TapError::NameTaken { name: name.clone() }),
        // The container has removed the TAP, or never had one.
        (Err(missing), true) => return Err(missing),
        (Err(_), false) => {}
    }
    let mut tap = Tap::create(name, request.queues)?;
    netif::loopback_up()?;
    // Without IPv6 there are none.
    let _ = netif::ignore_router_advertisements(&tap.name);
    tap.lacks_ipv6 = !netif::configure(tap.ifindex, &tap.name, &request.config())?;
    tap.mac = request.mac;
    Ok(tap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_cross_unchanged_and_unknown_fields_are_refused() {
        let config = InterfaceConfig {
            mtu: 1500,
            addresses: vec![("10.89.0.2".parse().unwrap(), 24)],
            gateways: vec!["10.89.0.1".parse().unwrap()],
            ..InterfaceConfig::default()
        };
        let request = TapRequest::new("eth%d".to_owned(), [2, 0, 0, 0, 0, 1], config.clone());
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<TapRequest>(&text).unwrap(), request);
        assert!(request.config().joins_others);
        assert_eq!(request.config().addresses, config.addresses);
        let more = text.replacen('{', "{\"more\":1,", 1);
        assert!(serde_json::from_str::<TapRequest>(&more).is_err());
    }

    #[test]
    fn connections_of_the_router_are_told_from_others() {
        let config = InterfaceConfig {
            addresses: vec![
                ("10.89.0.2".parse().unwrap(), 24),
                ("fd00::2".parse().unwrap(), 64),
            ],
            gateways: vec!["10.89.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ..InterfaceConfig::default()
        };
        let request = TapRequest::new("eth0".to_owned(), [2, 0, 0, 0, 0, 1], config);
        for (local, remote, expected) in [
            ("10.89.0.2", "198.51.100.1", true),
            ("::ffff:10.89.0.2", "::ffff:198.51.100.1", true),
            ("10.89.0.2", "10.89.0.1", true),
            ("10.89.0.2", "10.89.0.3", false),
            ("10.89.0.2", "10.89.0.2", false),
            ("10.90.0.2", "198.51.100.1", false),
            ("127.0.0.1", "127.0.0.1", false),
            ("fd00::2", "2001:db8::1", true),
            ("fd00::2", "fd00::1", true),
            ("fd00::2", "fd00::3", false),
        ] {
            let (own, far) = (local.parse().unwrap(), remote.parse().unwrap());
            assert_eq!(
                request.went_by_router(own, far),
                expected,
                "{local} {remote}"
            );
        }
    }

    #[test]
    fn it_is_not_forked_by_a_process_with_threads() {
        // This thread is one more than the test's own.
        let tried = std::thread::spawn(|| NsHelper::start().map(drop)).join();
        let error = tried.unwrap().unwrap_err();
        assert!(matches!(error, TapError::MultiThreaded), "{error}");
    }
}
