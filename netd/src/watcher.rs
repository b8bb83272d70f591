//! The watcher of a network: a process that starts the network again when those that ran it have
//! ended and containers are left, so that they need no client for it.
//!
//! # Theory of operation
//!
//! The watcher is forked first of all, before there is anything of the network that it could hold, and
//! before any right is given up. It waits for the end of the process that forked it, which outlives all
//! others of the network. That one tells it when the network has ended in order
//! ([`Watcher::end`]), and then the watcher just ends. Otherwise, and if the journal names a container
//! that lives, it starts the network as a client would, and ends: that one has a watcher of its own. It
//! reads nothing that a container or a client sends.
//!
//! # Invariants
//!
//! - It starts the network as a client does ([`cnet::start::ensure`]), so that it and clients do not
//!   start two.
//! - A network that cannot start is not started again: there is no control socket then.
//! - One that ends as soon as it runs is started once in [`RESTART_INTERVAL`], after a few times
//!   ([`QUICK_RESTARTS`]) at once.
//!
//! # Limits
//!
//! A watcher that is killed is missed at the network's next start only.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use cnet::definition::{Directories, runtime};
use cnet::start::ensure_with;
use cnet_tap::fork::spawn_sharing;
use cnet_tap::{TapError, watch};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::journal::{self, Record};

/// The program itself, also where its file was replaced or removed.
const PROGRAM: &str = "/proc/self/exe";

/// The variable of the environment that counts restarts which follow close on each other.
const RESTARTS: &str = "CNET_RESTARTS";

/// How many of them are made at once.
const QUICK_RESTARTS: u32 = 5;

/// How long to wait before each after these.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// After so long a life the count begins anew.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// What is written when the network has ended in order.
const IN_ORDER: u8 = b'.';

/// The watcher, seen from the process that it watches.
#[derive(Debug)]
pub(crate) struct Watcher(io::PipeWriter);

impl Watcher {
    /// Forks the watcher of this process, which is about to run `network`. `let_go` runs in the watcher
    /// first, for what it does not need.
    ///
    /// # Errors
    ///
    /// At a limit of descriptors or processes, and if this process has more than one thread.
    pub(crate) fn start(
        directories: &Directories,
        network: &str,
        let_go: impl FnOnce(),
    ) -> Result<Watcher, Box<dyn std::error::Error + Send + Sync>> {
        let own = watch::pidfd(std::process::id().cast_signed())?;
        let (told, teller) = io::pipe()?;
        let mut teller = Some(teller);
        let started: Result<_, TapError> = spawn_sharing("cannot fork the watcher", |_parent| {
            drop(teller.take());
            let_go();
            live(&own, told, directories, network);
            0
        });
        started?;
        let teller = teller.ok_or("the watcher's pipe is gone")?;
        Ok(Watcher(teller))
    }

    /// Says that the network has ended in order: it is not to be started again.
    pub(crate) fn end(&self) {
        // A watcher that is gone starts nothing.
        let _ = (&self.0).write_all(&[IN_ORDER]);
    }

    /// The descriptor by which it is told, which is to stay open.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The watcher's life.
fn live(watched: &OwnedFd, told: io::PipeReader, directories: &Directories, network: &str) {
    let begun = Instant::now();
    let mut fds = [PollFd::new(watched, PollFlags::IN)];
    while let Err(Errno::INTR) = rustix::event::poll(&mut fds, None) {}
    if was_in_order(told) || !directories.socket(network).exists() {
        return;
    }
    let before = std::env::var(RESTARTS).ok().and_then(|n| n.parse().ok());
    let count: u32 = match begun.elapsed() < LONG_LIFE {
        true => before.unwrap_or(0),
        false => 0,
    };
    if count >= QUICK_RESTARTS {
        std::thread::sleep(RESTART_INTERVAL);
    }
    let left = journal::load(&directories.state_file(network));
    if !left.iter().any(Record::lives) {
        return;
    }
    // The process in the sandbox ends a moment after the one outside; until then its socket answers.
    match runtime::lock(&directories.network_runtime(network)) {
        Ok(Some(lock)) => drop(lock),
        // A client has started the next one already.
        Ok(None) => return,
        Err(error) => return tracing::error!(network, %error, "its lock cannot be taken"),
    }
    tracing::warn!(
        network,
        "has ended with containers on it, and is started again"
    );
    let counted = count.saturating_add(1).to_string();
    let variable = Some((RESTARTS, counted.as_str()));
    if let Err(error) = ensure_with(directories, network, Path::new(PROGRAM), variable) {
        tracing::error!(network, %error, "cannot be started again");
    }
}

/// Whether the process that has ended had said so. Others may hold the pipe's end still, so the end of
/// file is not waited for.
fn was_in_order(mut told: io::PipeReader) -> bool {
    if rustix::io::ioctl_fionbio(&told, true).is_err() {
        return false;
    }
    let mut word = [0];
    told.read(&mut word).is_ok_and(|length| length == 1) && word == [IN_ORDER]
}
