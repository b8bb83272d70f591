//! The watcher of a network: a process that starts the network again when those that ran it have
//! ended and containers are left, so that they need no client for it.
//!
//! # Theory of operation
//!
//! The watcher is forked first of all, before there is anything of the network that it could hold, and
//! before any right is given up. It waits for the end of the process that forked it, which outlives all
//! others of the network. That one tells it when the network has ended in order
//! ([`Watcher::end`]), and then the watcher just ends. Otherwise, and if the journal names a container
//! that lives, it becomes the program that a client would have started, with the same command line and
//! environment. It reads nothing that a container or a client sends.
//!
//! # Invariants
//!
//! - A client may start the network at the same moment: the lock of the runtime directory lets one of
//!   the two go on, as between two clients.
//! - A network that cannot run is not started for ever: after [`MAX_RESTARTS`] without a life of
//!   [`LONG_LIFE`] between them it is left to the next client.
//!
//! # Limits
//!
//! A watcher that is killed is missed at the network's next start only.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cnet_tap::fork::spawn_sharing;
use cnet_tap::{TapError, watch};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::journal::{self, Record};

/// The variable of the environment that counts restarts which follow close on each other.
const RESTARTS: &str = "CNET_RESTARTS";

/// How many there may be.
const MAX_RESTARTS: u32 = 5;

/// After so long a life the count begins anew.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// How long to wait before the second restart, and each after that.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// What is written when the network has ended in order.
const IN_ORDER: u8 = b'.';

/// The watcher, seen from the process that it watches.
#[derive(Debug)]
pub(crate) struct Watcher(io::PipeWriter);

impl Watcher {
    /// Forks the watcher of this process; `journal` tells whom it has to care for. `prepare` runs in
    /// the watcher first, which lets go there of what it does not need.
    ///
    /// # Errors
    ///
    /// At a limit of descriptors or processes, and if this process has more than one thread.
    pub(crate) fn start(
        journal: PathBuf,
        prepare: impl FnOnce(),
    ) -> Result<Watcher, Box<dyn std::error::Error + Send + Sync>> {
        let own = watch::pidfd(std::process::id().cast_signed())?;
        let (told, teller) = io::pipe()?;
        let mut teller = Some(teller);
        let started: Result<_, TapError> = spawn_sharing("cannot fork the watcher", |_parent| {
            drop(teller.take());
            prepare();
            live(&own, told, &journal);
            0
        });
        started?;
        let teller = teller.ok_or("the watcher's pipe is gone")?;
        Ok(Watcher(teller))
    }

    /// Says that the network has ended in order: it is not to be started again.
    pub(crate) fn end(&mut self) {
        // A watcher that is gone starts nothing.
        let _ = self.0.write_all(&[IN_ORDER]);
    }

    /// The descriptor by which it is told, which is to stay open.
    pub(crate) fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The watcher's life.
fn live(watched: &OwnedFd, told: io::PipeReader, journal: &Path) {
    let begun = Instant::now();
    let mut fds = [PollFd::new(watched, PollFlags::IN)];
    while let Err(Errno::INTR) = rustix::event::poll(&mut fds, None) {}
    if was_in_order(told) {
        return;
    }
    let close = std::env::var(RESTARTS).ok().and_then(|n| n.parse().ok());
    let count = match begun.elapsed() < LONG_LIFE {
        true => close.unwrap_or(0),
        false => 0,
    };
    if count > 0 {
        std::thread::sleep(RESTART_INTERVAL);
    }
    if !journal::load(journal).iter().any(Record::lives) {
        return;
    }
    if count >= MAX_RESTARTS {
        return tracing::error!("the network ends again and again: it is left to the next client");
    }
    tracing::warn!("the network has ended with containers on it, and is started again");
    if let Err(error) = restart(count + 1) {
        tracing::error!(%error, "the network cannot be started again");
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

/// Becomes the program again.
fn restart(count: u32) -> io::Result<Infallible> {
    let error = Command::new("/proc/self/exe")
        .arg0("cnet")
        .args(std::env::args_os().skip(1))
        .env(RESTARTS, count.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .exec();
    Err(error)
}
