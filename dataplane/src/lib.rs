//! The running network: worker threads that move packets, and the handle that others steer them by.
//!
//! # Theory of operation
//!
//! [`Dataplane::start`] takes a description of the network ([`NetworkConfig`]) and starts its worker
//! threads ([`worker`]). Each worker owns a pure core (layers 2 to 4), its host sockets ([`socket`])
//! and its queue of every port's device ([`port`]) alone, and moves packets between them ([`driver`])
//! in bounded rounds ([`budget`]). State that is not shared needs no lock.
//!
//! All else reaches the workers by [`Control`]: containers come and go by [`Control::add_port`] and
//! [`Control::remove_port`], published ports ([`forward`]) by [`Control::set_forwards`], answers of the
//! DNS service by [`Control::answer_dns`]. Commands go through a channel with an eventfd; DNS queries
//! leave through a queue ([`DnsQueries`]).
//!
//! There is one worker unless more are asked for ([`NetworkConfig::workers`]). The primary worker is
//! asked for everything and tells the others what concerns them; they carry TCP alone, and hand the
//! rest to it ([`handoff`]).
#![forbid(unsafe_code)]

use std::thread;

use tokio::sync::watch;

mod budget;
mod busy_poll;
mod clock;
mod config;
mod containment;
mod control;
mod core_config;
mod dns_queue;
mod driver;
mod error;
mod fd_budget;
mod forward;
mod handoff;
mod memory_budget;
mod port;
mod socket;
mod statistics;
mod worker;

pub use cnet_nat::gateway::{Quirks, ServicesOff};
pub use cnet_nat::host::{DnsQuery, QueryId, Transport};
pub use cnet_nat::policy::{HostAccess, PeerFilter, Prefix, Rule as PolicyRule};
pub use cnet_vswitch::PortRole;
pub use cnet_wire::PortId;
pub use cnet_wire::access::Access;
pub use cnet_wire::conversation::{Direction, Refusal};
pub use config::{DEFAULT_BUSY_POLL, MAX_BUSY_POLL_MICROS, MAX_WORKERS, NetworkConfig, PortPlan};
pub use control::Control;
pub use dns_queue::DnsQueries;
pub use error::{StartError, WorkerPanicked};
pub use fd_budget::{check_descriptors, most_forwards};
pub use forward::{
    BoundSockets, ContainerEnd, ForwardCounters, ForwardError, ForwardId, OpenForward, Rule,
    start_socket_helper,
};
// For the fuzz targets alone.
pub use memory_budget::available_memory;
#[doc(hidden)]
pub use port::VmSocket;
pub use port::{
    PeerCounters, PeerReport, PortDevice, PortEnd, PortError, Station, UplinkReport, Vxlan,
    VxlanConfig,
};
pub use socket::LocalPorts;
pub use statistics::{PortStatistics, Statistics};

use worker::command::Command;
use worker::workers;

/// The environment variables that are read when the network starts.
pub const ENVIRONMENT: [&str; 1] = [socket::WITHOUT];

/// What [`Dataplane::ended`] and [`PortEnd`] say when the network was stopped.
pub const STOPPED: &str = "stopped";

/// A running network. Dropping it stops it.
#[derive(Debug)]
pub struct Dataplane {
    control: Control,
    workers: Vec<thread::JoinHandle<()>>,
    ended: watch::Receiver<Option<String>>,
}

impl Dataplane {
    /// Starts the workers, without ports. DNS queries of containers come out of the queue and are
    /// answered by [`Control::answer_dns`].
    ///
    /// # Errors
    ///
    /// When the host lacks descriptors, threads or randomness, or the number of workers is out of
    /// range. A program asks [`check_descriptors`] before that.
    pub fn start(mut config: NetworkConfig) -> Result<(Dataplane, DnsQueries), StartError> {
        config.memory = config.memory.or_else(available_memory);
        let (outlet, queries) = dns_queue::queue();
        let (ended_sender, ended) = watch::channel(None);
        let (mailboxes, workers) = workers::start(&config, outlet, ended_sender)?;
        let dataplane = Dataplane {
            control: Control::new(mailboxes),
            workers,
            ended,
        };
        Ok((dataplane, queries))
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

    /// Resets all connections, closes all ports and waits for the workers' end.
    ///
    /// # Errors
    ///
    /// When one of them had panicked.
    pub fn stop(mut self) -> Result<(), WorkerPanicked> {
        self.end()
    }

    fn end(&mut self) -> Result<(), WorkerPanicked> {
        self.control.send(Command::Stop);
        let ended: Vec<_> = self
            .workers
            .drain(..)
            .map(thread::JoinHandle::join)
            .collect();
        match ended.into_iter().find(Result::is_err) {
            Some(_) => Err(WorkerPanicked),
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
