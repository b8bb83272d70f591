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
//! A watcher that is killed must be missed by a process that may start programs, which those that serve
//! the network may not. So there are two, and each waits for the other's end as well: the second one
//! stands by ([`keep_watch`]). Whichever is left forks another.
//!
//! # Invariants
//!
//! - It starts the network as a client does ([`cnet::start::ensure`]), so that it and clients do not
//!   start two.
//! - A network that cannot start is not started again: there is no control socket then.
//! - One that ends as soon as it runs is started once in [`RESTART_INTERVAL`], after a few times
//!   ([`QUICK_RESTARTS`]) at once.
//! - One that stands by and is killed is forked again once in [`STANDBY_INTERVAL`].
//!
//! # Limits
//!
//! Where both watchers are killed at once, none is left to miss them; the network's next start makes
//! others.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use cnet::definition::{Directories, runtime};
use cnet::start::ensure_with;
use cnet_tap::fork::{fork, spawn_sharing};
use cnet_tap::{TapError, watch};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Signal, WaitOptions, kill_process, waitpid};

use crate::journal::{self, Record};

/// The program itself, also where its file was replaced or removed.
const PROGRAM: &str = "/proc/self/exe";

/// The variable of the environment that counts restarts which follow close on each other.
const RESTARTS: &str = "CNET_RESTARTS";

/// How many of them are made at once.
const QUICK_RESTARTS: u32 = 5;

/// How long to wait before each after these.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is tried to start the network, for one end.
const START_ATTEMPTS: u32 = 10;

/// How long to wait before a watcher that stood by, and was killed, is forked again.
const STANDBY_INTERVAL: Duration = Duration::from_millis(100);

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
    keep_watch(watched);
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
    start_again(directories, network, count.saturating_add(1));
}

/// Starts the network until a process has its lock, as long as a container is left. `count` is how many
/// restarts follow close on each other by then.
fn start_again(directories: &Directories, network: &str, count: u32) {
    let counted = count.to_string();
    let variable = Some((RESTARTS, counted.as_str()));
    for _ in 0..START_ATTEMPTS {
        // The process in the sandbox ends a moment after the one outside, and its socket a moment after
        // its lock: until then a client finds it in service.
        match runtime::lock(&directories.network_runtime(network)) {
            Ok(Some(lock)) => drop(lock),
            Ok(None) => return,
            Err(error) => return tracing::error!(network, %error, "its lock cannot be taken"),
        }
        let left = journal::load(&directories.state_file(network));
        if !left.iter().any(Record::lives) {
            return;
        }
        tracing::warn!(
            network,
            "has ended with containers on it, and is started again"
        );
        if let Err(error) = ensure_with(directories, network, Path::new(PROGRAM), variable) {
            return tracing::error!(network, %error, "cannot be started again");
        }
    }
}

/// Waits for the end of the process that is watched, beside a second watcher that stands by. That one
/// goes on in here where this one is killed, and is another process then.
fn keep_watch(watched: &OwnedFd) {
    loop {
        let own = watch::pidfd(std::process::id().cast_signed());
        match (own, fork("cannot fork the watcher that stands by")) {
            (Ok(other), Ok(None)) => wait_for(&[&other]),
            (_, Ok(Some(standby))) => {
                let number = standby.as_raw_nonzero().get();
                match watch::pidfd(number) {
                    Ok(standby) => wait_for(&[watched, &standby]),
                    Err(_) => wait_for(&[watched]),
                }
                let is_over = watch::has_ended(watched).unwrap_or(true);
                if is_over {
                    // It has nothing to take up: this one does what there is to do.
                    let _ = kill_process(standby, Signal::KILL);
                }
                let _ = waitpid(Some(standby), WaitOptions::empty());
                if is_over {
                    return;
                }
                std::thread::sleep(STANDBY_INTERVAL);
            }
            // A second one that could not tell when to take over.
            (Err(_), Ok(None)) => std::process::exit(1),
            (_, Err(error)) => {
                tracing::warn!(%error, "there is one watcher alone");
                return wait_for(&[watched]);
            }
        }
    }
}

/// Waits until one of these processes has ended.
fn wait_for(processes: &[&OwnedFd]) {
    let ended = |pidfd: &&OwnedFd| watch::has_ended(pidfd).unwrap_or(true);
    while !processes.iter().any(ended) {
        let watched = processes.iter().map(|one| PollFd::new(*one, PollFlags::IN));
        let mut fds: Vec<PollFd<'_>> = watched.collect();
        let _ = rustix::event::poll(&mut fds, None);
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
