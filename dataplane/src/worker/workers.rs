//! The workers of one network, and what they tell each other.
//!
//! The first worker hears all commands. It numbers the ports and gives each of the others a queue of
//! every port's device ([`News::Join`]); when a port goes, whoever notices, the first one ends it
//! everywhere. None waits for another: the news go through the workers' mailboxes, in order.
//!
//! A network needs all its workers: when one fails the first one ends, and when the first one ends,
//! by order or not, so do all ([`Crew`]).

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::Context;
use cnet_nat::gateway::Lease;
use cnet_nat::host::Token;
use cnet_nat::router::Router;
use cnet_vswitch::port::PortConfig;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{mpsc as async_mpsc, watch};

use super::{Channels, now, run};
use crate::handoff::{self, Inlet, Outlet};
use crate::port::Seat;
use crate::{
    Command, DnsQuery, MAX_WORKERS, Mailbox, NetworkConfig, STOPPED, core_config, fd_budget,
};

/// The mailboxes of all workers, the first one's first.
pub(crate) type Mailboxes = Arc<[Mailbox]>;

/// What workers tell each other.
pub(crate) enum News {
    /// To all but the first: there is a port.
    Join(Box<Joining>),
    /// To all but the first: it is gone.
    Leave(Token),
    /// To the first: the port's device failed, for this reason.
    Lost(Token, String),
    /// To the first: a worker has failed, for this reason.
    Failed(String),
}

/// A port, as the first worker describes it to another.
pub(crate) struct Joining {
    pub seat: Seat,
    pub config: PortConfig,
    pub lease: Lease,
}

/// The others, as one worker sees them.
pub(crate) struct Crew {
    /// All others, for the first worker; nobody for the rest.
    pub others: Vec<Mailbox>,
    /// What they hand over.
    pub inlets: Vec<Inlet>,
    /// The first worker, for the others.
    pub first: Option<Mailbox>,
}

impl Drop for Crew {
    fn drop(&mut self) {
        for other in &self.others {
            other.send(Command::Stop);
        }
    }
}

/// Tells the first worker, at the end of another's thread, if it failed.
struct Farewell {
    first: Mailbox,
    reason: Option<String>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if let Some(reason) = self.reason.take() {
            self.first.send(Command::Crew(News::Failed(reason)));
        }
    }
}

/// What a worker starts with.
struct Start {
    router: Router,
    outlet: Option<Outlet>,
    channels: Channels,
}

/// Starts the workers of `config`. The reason of their end goes to `ended`. Gives their mailboxes
/// and threads, the first one's first.
///
/// # Errors
///
/// As [`crate::Dataplane::start`]; none runs then.
pub(crate) fn start(
    config: &NetworkConfig,
    queries: &async_mpsc::Sender<DnsQuery>,
    ended: watch::Sender<Option<String>>,
) -> anyhow::Result<(Mailboxes, Vec<JoinHandle<()>>)> {
    let workers = config.workers;
    anyhow::ensure!(
        (1..=MAX_WORKERS).contains(&workers),
        "a network has 1 to {MAX_WORKERS} workers, not {workers}"
    );
    let (mailboxes, starts) = prepare(config, queries)?;
    let mut ended = Some(ended);
    let mut threads = Vec::new();
    for (number, start) in starts.into_iter().enumerate() {
        let spawned = match ended.take() {
            Some(ended) => spawn_first(config.clone(), start, ended),
            None => spawn_further(number, config.clone(), start, mailboxes[0].clone()),
        };
        match spawned.context("cannot start a worker thread") {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                mailboxes
                    .iter()
                    .for_each(|worker| worker.send(Command::Stop));
                return Err(error);
            }
        }
    }
    Ok((mailboxes, threads))
}

/// Makes routers and channels.
fn prepare(
    config: &NetworkConfig,
    queries: &async_mpsc::Sender<DnsQuery>,
) -> anyhow::Result<(Mailboxes, Vec<Start>)> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).context("cannot get random bytes from the kernel")?;
    let totals = fd_budget::totals(fd_budget::raise_limit());
    let router_config = || core_config::router_config(config, totals);
    let now = now();
    let first = Router::new(router_config(), secret, now);
    let siblings: Vec<Router> = (1..config.workers)
        .map(|_| first.sibling(router_config(), secret, now))
        .collect();
    let mut boxes = Vec::new();
    for _ in 0..config.workers {
        boxes.push(mailbox()?);
    }
    let (mailboxes, inboxes): (Vec<Mailbox>, Vec<_>) = boxes.into_iter().unzip();
    let (outlets, inlets): (Vec<Outlet>, Vec<Inlet>) = siblings
        .iter()
        .map(|_| handoff::channel(Arc::clone(&mailboxes[0].wake)))
        .unzip();
    let first_crew = Crew {
        others: mailboxes[1..].to_vec(),
        inlets,
        first: None,
    };
    let crew_of_others = || Crew {
        others: Vec::new(),
        inlets: Vec::new(),
        first: Some(mailboxes[0].clone()),
    };
    let crews = std::iter::once(first_crew).chain(std::iter::repeat_with(crew_of_others));
    let outlets = std::iter::once(None).chain(outlets.into_iter().map(Some));
    let routers = std::iter::once(first).chain(siblings);
    let starts = inboxes.into_iter().zip(&mailboxes).zip(crews);
    let starts = starts.zip(routers.zip(outlets));
    let starts = starts.map(|(((inbox, mailbox), crew), (router, outlet))| Start {
        router,
        outlet,
        channels: Channels {
            inbox,
            wake: Arc::clone(&mailbox.wake),
            queries: queries.clone(),
            crew,
        },
    });
    let starts = starts.collect();
    Ok((mailboxes.into(), starts))
}

fn mailbox() -> anyhow::Result<(Mailbox, mpsc::Receiver<Command>)> {
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .context("cannot make an eventfd")?;
    let (commands, inbox) = mpsc::channel();
    let wake = Arc::new(wake);
    Ok((Mailbox { commands, wake }, inbox))
}

fn spawn_first(
    config: NetworkConfig,
    start: Start,
    ended: watch::Sender<Option<String>>,
) -> std::io::Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name("cnet-worker".into());
    thread.spawn(move || {
        let reason = match run(&config, start.router, start.outlet, start.channels) {
            Ok(()) => STOPPED.to_owned(),
            Err(e) => format!("{e:#}"),
        };
        let _ = ended.send(Some(reason));
    })
}

fn spawn_further(
    number: usize,
    config: NetworkConfig,
    start: Start,
    first: Mailbox,
) -> std::io::Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(format!("cnet-worker-{number}"));
    thread.spawn(move || {
        // Said unless the thread gets to its end.
        let mut farewell = Farewell {
            first,
            reason: Some("a worker thread failed".to_owned()),
        };
        let ended = run(&config, start.router, start.outlet, start.channels);
        farewell.reason = ended.err().map(|e| format!("{e:#}"));
    })
}
