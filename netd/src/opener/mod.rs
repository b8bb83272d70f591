//! The opener: the process that enters containers' namespaces for a network process.
//!
//! # Theory of operation
//!
//! setns(2) takes only a process with one thread into a user namespace, and the network process
//! has several. So it forks the opener first of all. The opener waits on a socket pair for
//! requests, each with the descriptor of a network namespace, and forks once more for every one:
//! that child enters, makes the TAP, configures it, and answers on the socket pair itself, under
//! the request's number. Requests therefore go on beside each other, and a namespace in which
//! something hangs holds up nobody else: its child is killed after [`PATIENCE`].
//!
//! A TAP that a network process left behind when it was killed is taken over as it is: nothing in
//! it is configured again, since the container may have changed its routes since.
//!
//! # Invariants
//!
//! - The opener is forked before there is any thread and before the network process holds a lock
//!   or a socket, so that it keeps neither after the network process's end.
//! - The opener dies with the network process, its children with the opener (`PR_SET_PDEATHSIG`).
//! - Every request gets one answer; a child that ends without one is answered for.
//!
//! # Limits
//!
//! If the opener itself is killed, the network process cannot take in containers any more:
//! [`Opener::ended`] tells, and it ends.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use cnet_tap::fork::fork;
use cnet_tap::namespace::{Handover, parse_tagged, receive, send_message};
use cnet_tap::{InterfaceConfig, Tap, TapError, TapInfo};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::sync::{Semaphore, oneshot, watch};

use cnet::async_fd::Watched;

mod child;

/// How long one request may take before its child is killed. What it does takes milliseconds; the
/// kernel's RTNL lock, which it needs, may be held by others for some hundred.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Requests under way at a time.
const MAX_REQUESTS: usize = 32;

/// What is to be made in a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
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

impl Request {
    /// For an interface of that name, one queue, that is to look like `config`.
    pub fn new(interface: String, mac: [u8; 6], config: InterfaceConfig) -> Request {
        Request {
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

    fn config(&self) -> InterfaceConfig {
        InterfaceConfig {
            mtu: self.mtu,
            mac: Some(self.mac),
            addresses: self.addresses.clone(),
            gateways: self.gateways.clone(),
            tx_queue_len: self.tx_queue_len,
            joins_others: true,
        }
    }
}

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It could not be made, as the text says.
    #[error("{0}")]
    Refused(String),
    /// The opener is gone.
    #[error(
        "the process that enters namespaces has ended; the network starts again with the next command"
    )]
    Ended,
    /// What crossed to or from the opener makes no sense.
    #[error("cannot talk to the process that enters namespaces: {0}")]
    Conversation(String),
}

/// An opener that was forked, before the event loop runs.
#[derive(Debug)]
pub struct Seat {
    socket: OwnedFd,
}

/// Forks the opener.
///
/// # Errors
///
/// If this process has more threads than one, and what fork(2) and socketpair(2) say.
pub fn start() -> anyhow::Result<Seat> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .context("cannot make a socket pair")?;
    let parent = rustix::process::getpid();
    match fork("cannot fork the opener")? {
        Some(_) => Ok(Seat { socket: ours }),
        None => {
            drop(ours);
            // A panic must not unwind into the parent's frames, of which this is a copy.
            let lived = std::panic::AssertUnwindSafe(|| child::live(&theirs, parent));
            let ended = std::panic::catch_unwind(lived).is_ok();
            std::process::exit(i32::from(!ended))
        }
    }
}

impl Seat {
    /// Begins to listen to the opener, on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// What fcntl(2) and epoll_ctl(2) say.
    pub fn attend(self) -> anyhow::Result<Opener> {
        rustix::io::ioctl_fionbio(&self.socket, true).context("cannot talk to the opener")?;
        let socket = Watched::new(self.socket, Interest::READABLE);
        let socket = Arc::new(socket.context("cannot talk to the opener")?);
        let waiting = Arc::new(Waiting::default());
        let (ended_sender, ended) = watch::channel(false);
        tokio::spawn(listen(
            Arc::clone(&socket),
            Arc::clone(&waiting),
            ended_sender,
        ));
        Ok(Opener {
            socket,
            waiting,
            ended,
            room: Arc::new(Semaphore::new(MAX_REQUESTS)),
        })
    }
}

type Answer = Result<Handover, TapError>;

#[derive(Debug, Default)]
struct Waiting {
    requests: Mutex<(u64, HashMap<u64, oneshot::Sender<Answer>>)>,
}

impl Waiting {
    fn add(&self) -> (u64, oneshot::Receiver<Answer>) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.0 += 1;
        let number = requests.0;
        let (sender, receiver) = oneshot::channel();
        requests.1.insert(number, sender);
        (number, receiver)
    }

    fn take(&self, number: u64) -> Option<oneshot::Sender<Answer>> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.1.remove(&number)
    }

    fn clear(&self) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.1.clear();
    }
}

async fn listen(socket: Arc<Watched>, waiting: Arc<Waiting>, ended: watch::Sender<bool>) {
    while let Ok(mut ready) = socket.ready().await {
        match receive(socket.fd()) {
            Ok(Some(message)) => {
                if let Some((number, answer)) = parse_tagged(message)
                    && let Some(waiter) = waiting.take(number)
                {
                    // Nobody waits any more: the descriptors close, and the TAP goes with them.
                    let _ = waiter.send(answer);
                }
            }
            Err(TapError::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock => {
                ready.clear_ready();
            }
            Ok(None) | Err(_) => break,
        }
    }
    let _ = ended.send(true);
    waiting.clear();
}

/// The opener, seen from the network process.
#[derive(Clone, Debug)]
pub struct Opener {
    socket: Arc<Watched>,
    waiting: Arc<Waiting>,
    ended: watch::Receiver<bool>,
    room: Arc<Semaphore>,
}

impl Opener {
    /// Makes a TAP in the network namespace `net`, or takes one over. It goes with its descriptors
    /// until [`cnet_tap::TapQueue::set_persistent`] says otherwise.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub async fn open(&self, net: BorrowedFd<'_>, request: &Request) -> Result<Tap, OpenError> {
        let _room = self.room.acquire().await.map_err(|_| OpenError::Ended)?;
        let (number, answer) = self.waiting.add();
        if *self.ended.borrow() {
            return Err(OpenError::Ended);
        }
        let conversation = |e: &dyn std::fmt::Display| OpenError::Conversation(e.to_string());
        let bytes = serde_json::to_vec(request).map_err(|e| conversation(&e))?;
        let sent = send_message(
            self.socket.fd(),
            &[&number.to_ne_bytes(), &bytes],
            &[net.as_fd()],
        );
        if let Err(errno) = sent {
            self.waiting.take(number);
            return Err(match errno {
                Errno::PIPE | Errno::CONNRESET => OpenError::Ended,
                other => conversation(&other),
            });
        }
        let (fds, info) = answer
            .await
            .map_err(|_| OpenError::Ended)?
            .map_err(|error| OpenError::Refused(error.to_string()))?;
        match TapInfo::from_bytes(&info) {
            Some(info) if fds.len() == usize::from(request.queues) => Ok(Tap::from_fds(fds, info)),
            _ => Err(OpenError::Conversation("it sent no TAP".to_owned())),
        }
    }

    /// Waits until the opener has ended.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error is the listening task's end, which is the same.
        let _ = ended.wait_for(|ended| *ended).await;
    }
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
        let request = Request::new("eth%d".to_owned(), [2, 0, 0, 0, 0, 1], config.clone());
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        assert!(request.config().joins_others);
        assert_eq!(request.config().addresses, config.addresses);
        let more = text.replacen('{', "{\"more\":1,", 1);
        assert!(serde_json::from_str::<Request>(&more).is_err());
    }

    #[test]
    fn the_opener_is_not_forked_by_a_process_with_threads() {
        // This thread is one more than the test's own.
        let tried = std::thread::spawn(|| start().map(drop)).join();
        let error = tried.unwrap().unwrap_err();
        assert!(error.to_string().contains("fork"), "{error}");
    }
}
