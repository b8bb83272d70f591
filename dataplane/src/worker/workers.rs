//! The workers of one network: how they start, what they tell each other, how they end.
//!
//! # Theory of operation
//!
//! The primary worker hears all commands. It numbers the ports and gives each of the other workers a
//! queue of every port's device ([`WorkerEvent::PortAdded`]). When a port goes, whichever worker
//! notices, the primary one ends it everywhere. No worker waits for another: events go through the
//! workers' mailboxes, in order.
//!
//! A network needs all its workers. When another worker fails it tells the primary one
//! ([`PanicNotice`]), which ends; when the primary worker ends, by order or not, so do all
//! ([`Peers`]).

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use cnet_core::Network;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::watch;

use super::command::{Command, Mailbox, Mailboxes, Peers, WorkerEvent};
use super::{Channels, run};
use crate::clock::now;
use crate::dns_queue::DnsOutlet;
use crate::error::StartError;
use crate::handoff::{self, Inlet, Outlet};
use crate::{MAX_WORKERS, NetworkConfig, STOPPED, core_config, fd_budget, memory_budget};

/// Tells the primary worker, at the end of another's thread, if that one failed or panicked.
struct PanicNotice {
    primary: Mailbox,
    reason: Option<String>,
}

impl Drop for PanicNotice {
    fn drop(&mut self) {
        if let Some(reason) = self.reason.take() {
            let event = WorkerEvent::WorkerFailed(reason);
            self.primary.send(Command::Worker(event));
        }
    }
}

/// What a worker starts with.
struct Start {
    network: Network,
    outlet: Option<Outlet>,
    channels: Channels,
}

/// Starts the workers of `config`. The reason of their end goes to `ended`. Gives their mailboxes
/// and threads, the primary one's first.
///
/// # Errors
///
/// See [`StartError`]; none runs then.
pub(crate) fn start(
    config: &NetworkConfig,
    queries: DnsOutlet,
    ended: watch::Sender<Option<String>>,
) -> Result<(Mailboxes, Vec<JoinHandle<()>>), StartError> {
    if !(1..=MAX_WORKERS).contains(&config.workers) {
        return Err(StartError::Workers(config.workers));
    }
    let (mailboxes, starts) = prepare(config, queries)?;
    let mut ended = Some(ended);
    let mut threads = Vec::new();
    for (number, start) in starts.into_iter().enumerate() {
        let spawned = match ended.take() {
            Some(ended) => spawn_primary(config.clone(), start, ended),
            None => spawn_further(number, config.clone(), start, mailboxes[0].clone()),
        };
        match spawned {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                mailboxes
                    .iter()
                    .for_each(|worker| worker.send(Command::Stop));
                return Err(StartError::Thread(error));
            }
        }
    }
    Ok((mailboxes, threads))
}

/// Makes networks and channels.
fn prepare(
    config: &NetworkConfig,
    queries: DnsOutlet,
) -> Result<(Mailboxes, Vec<Start>), StartError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(StartError::Random)?;
    let descriptors = fd_budget::raise_limit()?;
    let budget = fd_budget::flows(descriptors, memory_budget::flows(config.memory));
    let router_config = || core_config::router_config(config, &budget);
    let now = now();
    let first = Network::new(router_config(), secret, now);
    let further: Vec<Network> = (1..config.workers)
        .map(|_| first.further(router_config(), secret, now))
        .collect();
    let mut boxes = Vec::new();
    for _ in 0..config.workers {
        boxes.push(mailbox()?);
    }
    let (mailboxes, inboxes): (Vec<Mailbox>, Vec<_>) = boxes.into_iter().unzip();
    let (outlets, inlets): (Vec<Outlet>, Vec<Inlet>) = further
        .iter()
        .map(|_| handoff::channel(Arc::clone(&mailboxes[0].wake)))
        .unzip();
    let of_primary = Peers {
        others: mailboxes[1..].to_vec(),
        inlets,
        primary: None,
    };
    let of_another = || Peers {
        others: Vec::new(),
        inlets: Vec::new(),
        primary: Some(mailboxes[0].clone()),
    };
    let peers = std::iter::once(of_primary).chain(std::iter::repeat_with(of_another));
    let outlets = std::iter::once(None).chain(outlets.into_iter().map(Some));
    let mut queries = Some(queries);
    let networks = std::iter::once(first).chain(further);
    let starts = inboxes.into_iter().zip(&mailboxes).zip(peers);
    let starts = starts.zip(networks.zip(outlets));
    let starts = starts.map(|(((inbox, mailbox), peers), (network, outlet))| Start {
        network,
        outlet,
        channels: Channels {
            inbox,
            wake: Arc::clone(&mailbox.wake),
            queries: queries.take(),
            peers,
        },
    });
    let starts = starts.collect();
    Ok((mailboxes.into(), starts))
}

fn mailbox() -> Result<(Mailbox, mpsc::Receiver<Command>), StartError> {
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|errno| StartError::EventFd(errno.into()))?;
    let (commands, inbox) = mpsc::channel();
    let wake = Arc::new(wake);
    Ok((Mailbox { commands, wake }, inbox))
}

fn spawn_primary(
    config: NetworkConfig,
    start: Start,
    ended: watch::Sender<Option<String>>,
) -> std::io::Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name("cnet-worker".into());
    thread.spawn(move || {
        let reason = match run(&config, start.network, start.outlet, start.channels) {
            Ok(()) => STOPPED.to_owned(),
            Err(error) => error.to_string(),
        };
        let _ = ended.send(Some(reason));
    })
}

fn spawn_further(
    number: usize,
    config: NetworkConfig,
    start: Start,
    primary: Mailbox,
) -> std::io::Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(format!("cnet-worker-{number}"));
    thread.spawn(move || {
        // Sent as it is if the thread panics.
        let mut notice = PanicNotice {
            primary,
            reason: Some("a worker thread failed".to_owned()),
        };
        let ended = run(&config, start.network, start.outlet, start.channels);
        notice.reason = ended.err().map(|error| error.to_string());
    })
}
