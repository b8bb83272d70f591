//! The running network: worker threads that move packets, and the handle that others steer them by.
//!
//! [`Dataplane::start`] takes a description of the network and gives back a handle. From then on each
//! worker ([`worker`]) owns its router, its host sockets and its queue of every container's device
//! alone: commands reach it through a channel with an eventfd, DNS queries leave it through another.
//! Containers come and go by [`Control::add_port`] and [`Control::remove_port`].
//!
//! There is one worker unless more are asked for ([`NetworkConfig::workers`]). The first is asked for
//! everything and tells the others what concerns them ([`worker`]); they carry TCP alone, and hand the
//! rest to it ([`handoff`]).
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use cnet_tap::SocketHelper;
use tokio::sync::{mpsc as async_mpsc, oneshot, watch};

mod busy_poll;
mod config;
mod core_config;
mod fd_budget;
mod forward;
mod handoff;
mod port;
mod socket;
mod statistics;
mod worker;

pub use cnet_nat::gateway::{DnsQuery, QueryId, Transport};
pub use cnet_wire::PortId;
pub use config::{DEFAULT_BUSY_POLL, MAX_BUSY_POLL_MICROS, MAX_WORKERS, NetworkConfig, PortPlan};
pub use forward::supplier;
pub use forward::{ForwardId, Publish, PublishError};
// For the fuzz targets alone.
#[doc(hidden)]
pub use port::VmSocket;
pub use port::{PortDevice, PortEnd, PortError};
pub use statistics::{PortStatistics, Statistics};

/// What [`Dataplane::ended`] and [`PortEnd`] say when the network was stopped.
pub const STOPPED: &str = "stopped";

/// DNS queries that may wait for the service before further ones are dropped.
const QUERY_QUEUE: usize = 256;

/// What a worker is asked to do. All but the statistics, the delivery and the stop is for the first.
enum Command {
    AddPort(
        PortPlan,
        PortDevice,
        oneshot::Sender<Result<(PortId, PortEnd), PortError>>,
    ),
    RemovePort(PortId, oneshot::Sender<Result<(), PortError>>),
    Statistics(oneshot::Sender<Statistics>),
    Supply(PortId, SocketHelper),
    Delivered(oneshot::Sender<()>),
    Publish(Publish, oneshot::Sender<Result<ForwardId, PublishError>>),
    Unpublish(ForwardId, oneshot::Sender<Result<(), PublishError>>),
    AnswerDns(QueryId, Vec<u8>),
    Stop,
    /// From another worker.
    Crew(worker::workers::News),
}

/// Where a worker takes its commands from.
#[derive(Clone, Debug)]
struct Mailbox {
    commands: mpsc::Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl Mailbox {
    fn send(&self, command: Command) {
        // A worker that has ended answers nothing; the caller's own channel tells it.
        if self.commands.send(command).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// Steers a running network. Cheap to clone, from any thread.
#[derive(Clone, Debug)]
pub struct Control {
    workers: worker::workers::Mailboxes,
}

impl Control {
    fn send(&self, command: Command) {
        if let Some(first) = self.workers.first() {
            first.send(command);
        }
    }

    /// Plugs a container in. It is served from when this returns, until it is removed or its device
    /// is gone, which the future tells.
    ///
    /// # Errors
    ///
    /// See [`PortError`]; the device is closed then.
    pub async fn add_port(
        &self,
        plan: PortPlan,
        device: PortDevice,
    ) -> Result<(PortId, PortEnd), PortError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::AddPort(plan, device, reply));
        answer.await.unwrap_or(Err(PortError::Ended))
    }

    /// Takes a container out: its connections are reset towards the host, but for those on which it
    /// had sent all, its end included, which stay until the host's sockets have taken that, within
    /// limits ([`cnet_nat::router::Router::remove_port`]); the published ports that lead to its fixed
    /// addresses are closed, and its device.
    ///
    /// # Errors
    ///
    /// [`PortError::Unknown`] if there is no such port, which may have gone by itself.
    pub async fn remove_port(&self, port: PortId) -> Result<(), PortError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::RemovePort(port, reply));
        answer.await.unwrap_or(Err(PortError::Ended))
    }

    /// What has passed, what was dropped, and what there is now.
    ///
    /// # Errors
    ///
    /// [`PortError::Ended`] once the network has stopped.
    pub async fn statistics(&self) -> Result<Statistics, PortError> {
        // All are asked before the first answer is waited for.
        let ask = |worker| ask(worker, Command::Statistics);
        let asked: Vec<_> = self.workers.iter().map(ask).collect();
        let mut sum: Option<Statistics> = None;
        for answer in asked {
            let counted = answer.await.map_err(|_| PortError::Ended)?;
            match &mut sum {
                Some(sum) => sum.add(&counted),
                None => sum = Some(counted),
            }
        }
        sum.ok_or(PortError::Ended)
    }

    /// Has `supplier`, which stands in the network namespace of `port`'s container, make the sockets
    /// to splice connections with that come to published TCP ports from the host's loopback. Without
    /// a supplier, and when it ends, they go through the container's device as others do.
    pub fn supply(&self, port: PortId, supplier: SocketHelper) {
        self.send(Command::Supply(port, supplier));
    }

    /// Waits until all that containers have sent over TCP, and that was acknowledged to them, was
    /// passed on to the host's kernel, the ends of their streams included. Meant for when their
    /// processes have ended, so that there is an end.
    pub async fn delivered(&self) {
        let ask = |worker| ask(worker, Command::Delivered);
        let asked: Vec<_> = self.workers.iter().map(ask).collect();
        for answer in asked {
            // A network that has stopped has nothing more to pass on.
            let _ = answer.await;
        }
    }

    /// Opens a port of the host and forwards what comes there to the container.
    ///
    /// # Errors
    ///
    /// See [`PublishError`]; nothing is opened then, and other forwards stay.
    pub async fn publish(&self, publish: Publish) -> Result<ForwardId, PublishError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Publish(publish, reply));
        answer.await.unwrap_or(Err(PublishError::Ended))
    }

    /// Closes a port that was opened by [`Control::publish`]. Connections made through it go on.
    ///
    /// # Errors
    ///
    /// [`PublishError::Unknown`] if there is no such forward.
    pub async fn unpublish(&self, id: ForwardId) -> Result<(), PublishError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Unpublish(id, reply));
        answer.await.unwrap_or(Err(PublishError::Ended))
    }

    /// Answers a query that came out of [`Dataplane::start`]'s receiver.
    pub fn answer_dns(&self, id: QueryId, message: Vec<u8>) {
        self.send(Command::AnswerDns(id, message));
    }
}

/// Asks one worker; the answer is an error if it has ended.
fn ask<T>(
    worker: &Mailbox,
    question: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> oneshot::Receiver<T> {
    let (reply, answer) = oneshot::channel();
    worker.send(question(reply));
    answer
}

/// A running network. Dropping it stops it.
#[derive(Debug)]
pub struct Dataplane {
    control: Control,
    workers: Vec<thread::JoinHandle<()>>,
    ended: watch::Receiver<Option<String>>,
}

impl Dataplane {
    /// Starts the workers, without ports. DNS queries of containers come out of the receiver and are
    /// answered by [`Control::answer_dns`].
    ///
    /// # Errors
    ///
    /// When the host lacks descriptors, threads or randomness, or the number of workers is out of
    /// range.
    pub fn start(
        config: NetworkConfig,
    ) -> anyhow::Result<(Dataplane, async_mpsc::Receiver<DnsQuery>)> {
        let (queries, query_receiver) = async_mpsc::channel(QUERY_QUEUE);
        let (ended_sender, ended) = watch::channel(None);
        let (mailboxes, workers) = worker::workers::start(&config, &queries, ended_sender)?;
        let control = Control { workers: mailboxes };
        Ok((
            Dataplane {
                control,
                workers,
                ended,
            },
            query_receiver,
        ))
    }

    /// The handle to steer it by.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Waits until the workers have ended, and gives the reason: it was stopped, or it failed.
    pub fn ended(&self) -> impl Future<Output = String> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            match ended.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                Err(_) => "the worker thread failed".to_owned(),
            }
        }
    }

    /// Waits until `port` or the worker has ended, and gives the reason: for networks of one
    /// container, which end with it.
    pub fn ended_with(&self, port: PortEnd) -> impl Future<Output = String> + Send + use<> {
        let ended = self.ended();
        async move {
            match port.await {
                // Ports end with the worker, which knows more.
                reason if reason == STOPPED => ended.await,
                reason => reason,
            }
        }
    }

    /// Resets all connections, closes all ports and waits for the workers' end.
    ///
    /// # Errors
    ///
    /// When one of them had panicked.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.control.send(Command::Stop);
        let ended: Vec<_> = self
            .workers
            .drain(..)
            .map(thread::JoinHandle::join)
            .collect();
        match ended.into_iter().find(Result::is_err) {
            Some(_) => anyhow::bail!("a worker thread failed"),
            None => Ok(()),
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        // The reason of a failure was told by `ended`.
        let _ = self.end();
    }
}

/// An address as a peer is known by: IPv4-mapped IPv6 addresses are IPv4.
pub(crate) fn canonical(a: SocketAddr) -> SocketAddr {
    SocketAddr::new(
        match a.ip() {
            IpAddr::V6(v6) => v6.to_canonical(),
            v4 => v4,
        },
        a.port(),
    )
}
