//! The members of a network: its containers and virtual machines, and what is done with them.
//!
//! # Theory of operation
//!
//! A container joins in two steps. First its name and its addresses are taken, under the lock;
//! then, without it, the interface is made in its namespace and plugged into the dataplane, and its
//! ports are opened ([`join`]). A namespace in which something hangs therefore keeps no other
//! container from joining. Leaving ([`leave`]) is the reverse, and is also how a failed joining is
//! undone. What is done with members stands in a file a verb, as functions of [`Members`]; a
//! client's action gets there by [`ActionHandler`].
//!
//! Each member has a number of its own, so that the end of a container that has left already does
//! not take out the next one of its name.
//!
//! # The shapes of a container
//!
//! From the command line to its TAP a container is described five times, each time by another
//! party:
//!
//! 1. the options of `cnet attach` and `cnet run`: what a person typed;
//! 2. [`cnet::Attach`]: what a runtime, a command line or the control API asks for, typed once;
//! 3. [`crate::journal::Record`]: what the network has given it, in the table, in `state.json` and,
//!    as a [`cnet::ContainerReport`], in answers;
//! 4. [`cnet_dataplane::PortPlan`]: what its port is to be, from which its interface is configured;
//! 5. the switch's `PortConfig`: what the switch checks on each frame.
//!
//! A published port has four; [`crate::forward`] lists them.
//!
//! # Invariants
//!
//! - The lock is never held while something is waited for.
//! - `state.json` lists those that have joined, before they are told so and before their interface
//!   is made to outlive this process, until that is undone. It is written without the lock
//!   ([`Journal`]).
//!
//! # Limits
//!
//! Leases are written down a moment after an action was answered, since that waits for the disk.
//! A crash in that moment loses what is remembered of those that left, not of those that are there.
//!
//! While `state.json` cannot be written, as on a full disk, no container joins and no port is
//! published: a crash would leave them behind unknown. Those that are there go on. One that leaves
//! is out at once, and that is written down later: it is tried every [`SAVE_INTERVAL`].

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use cnet::control::{Kind, Refusal};
use cnet::definition::Definition;
use cnet_dataplane::NetworkConfig;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::time::sleep;

use crate::dns::member_names::MemberNames;
use crate::events::EventSource;
use crate::instance::Instance;
use crate::ipam::Ipam;
use crate::journal::Journal;
use crate::ns_helper::NsHelperClient;
use crate::outside::Host;

mod auto;
mod handler;
mod join;
mod leave;
mod policy;
mod publish;
mod restore;
mod routing;
mod table;
mod vm;

pub(crate) use handler::ActionHandler;
pub(crate) use leave::leave_all;
pub(crate) use policy::Policies;
pub(crate) use restore::restore;
use table::{Link, MemberKey, Table, TapLink};

/// How long to wait before the members are written down again, after that has failed.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);

/// The members could not be written down.
#[derive(Debug, thiserror::Error)]
#[error(
    "who is on the network cannot be written down in {}: {source}; without that a crash would leave the container behind. Make room there, and try again",
    .path.display()
)]
pub(crate) struct Unsaved {
    path: PathBuf,
    source: std::io::Error,
}

impl From<Unsaved> for Refusal {
    fn from(error: Unsaved) -> Refusal {
        Refusal::new(Kind::Impossible, error.to_string())
    }
}

/// What members are made of and with.
pub(crate) struct Parts {
    /// Where `state.json` is.
    pub(crate) journal: PathBuf,
    pub(crate) definition: Definition,
    pub(crate) config: NetworkConfig,
    pub(crate) instance: Arc<Instance>,
    pub(crate) ns_helper: NsHelperClient,
    /// What is asked of the host.
    pub(crate) host: Host,
    /// The PID of this process where its clients are.
    pub(crate) pid: u32,
    pub(crate) names: MemberNames,
    pub(crate) ipam: Ipam,
    pub(crate) policies: Policies,
}

/// The members of one running network.
pub(crate) struct Members {
    pub(crate) definition: Definition,
    pub(crate) config: NetworkConfig,
    pub(crate) instance: Arc<Instance>,
    pub(crate) events: EventSource,
    ns_helper: NsHelperClient,
    host: Host,
    pid: u32,
    names: MemberNames,
    policies: Policies,
    journal: Journal,
    table: Mutex<Table>,
    changes: watch::Sender<()>,
    stopped: AtomicBool,
    /// When the network's process started, or so.
    started: SystemTime,
    /// Tells that leases are to be written down.
    leases: Notify,
    /// Only one task writes them at a time.
    leases_lock: Arc<AsyncMutex<()>>,
    /// Tells that the journal could not be written.
    unsaved: Notify,
}

impl Members {
    /// No members yet. To be called inside a tokio runtime.
    pub(crate) fn new(parts: Parts) -> Arc<Members> {
        let members = Arc::new(Members {
            definition: parts.definition,
            config: parts.config,
            instance: parts.instance,
            events: EventSource::default(),
            ns_helper: parts.ns_helper,
            host: parts.host,
            pid: parts.pid,
            names: parts.names,
            policies: parts.policies,
            journal: Journal::new(parts.journal),
            table: Mutex::new(Table::new(parts.ipam)),
            changes: watch::Sender::new(()),
            stopped: AtomicBool::new(false),
            started: SystemTime::now(),
            leases: Notify::new(),
            leases_lock: Arc::default(),
            unsaved: Notify::new(),
        });
        let writer = Arc::clone(&members);
        tokio::spawn(async move {
            loop {
                writer.leases.notified().await;
                writer.flush().await;
            }
        });
        let writer = Arc::clone(&members);
        tokio::spawn(async move {
            loop {
                writer.unsaved.notified().await;
                sleep(SAVE_INTERVAL).await;
                // A failure is logged, and tried again.
                let _ = writer.save().await;
            }
        });
        members
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when a member comes or goes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Whether there is no member, none that is joining, and none that is still to be let go of.
    pub(crate) fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    /// Whether a client has asked for the end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Notes that a client has asked for the end.
    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.changes.send_replace(());
    }

    /// Notes that the table was changed. A caller that needs the change on the disk calls
    /// [`Members::save`] after that, without the lock.
    fn changed(&self, table: &mut Table) {
        table.changes += 1;
        policy::apply(self, table);
        self.leases.notify_one();
        self.changes.send_replace(());
    }

    /// Writes the members down, unless that was done since the last change. If it fails, it is tried
    /// again later.
    ///
    /// # Errors
    ///
    /// See [`Unsaved`].
    pub(crate) async fn save(&self) -> Result<(), Unsaved> {
        let due = self.table().changes;
        let now = || {
            let table = self.table();
            (table.changes, table.records())
        };
        let written = self.journal.write(due, now).await;
        written.map_err(|source| {
            let path = self.journal.path().to_owned();
            // Forwarding goes on; only a crash would be worse than it should be.
            tracing::error!(error = %source, path = %path.display(), "cannot be written");
            self.unsaved.notify_one();
            Unsaved { path, source }
        })
    }

    /// Writes the leases down.
    pub(crate) async fn flush(&self) {
        // Given back by the thread that writes, so that a caller that is dropped lets no other in.
        let lock = Arc::clone(&self.leases_lock).lock_owned().await;
        let ipam = self.table().ipam.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let saved = ipam.save();
            drop(lock);
            saved
        });
        let saved = writing.await;
        if let Ok(Err(error)) = saved {
            tracing::error!(%error, "leases cannot be written down");
        }
    }
}
