//! A process that a program under test leaves running when it ends.
//!
//! It is no child of ours and has told nobody its process id, but it listens at a Unix socket, and
//! the kernel says who does. From then on a pidfd stands for it, so no other process can be meant
//! by mistake.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::program::{Descendants, PATIENCE, family, wait_for_end};

/// The process. Dropped, it is ended, with what it started.
pub struct Daemon {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Daemon {
    /// The one that listens at `socket`.
    ///
    /// # Errors
    /// Nobody does.
    pub fn listening_at(socket: &Path) -> anyhow::Result<Self> {
        let what = || socket.display().to_string();
        // Credentials are those of the moment when it began to listen (SO_PEERCRED in unix(7)). It
        // accepts nothing of ours: the connection is closed at once.
        let stream = UnixStream::connect(socket).with_context(what)?;
        let pid = socket_peercred(&stream).with_context(what)?.pid;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
        Ok(Self { pid, pidfd })
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        wait_for_end(&self.pidfd, Duration::ZERO)
    }

    /// It and its descendants.
    pub fn family(&self) -> Vec<u32> {
        family(self.pid.as_raw_nonzero().get().cast_unsigned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let descendants = Descendants::of(self.family());
        // Both fail once it has ended.
        let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
        if !wait_for_end(&self.pidfd, PATIENCE) {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            wait_for_end(&self.pidfd, PATIENCE);
        }
        descendants.kill();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_listener_is_found_by_its_socket() {
        let path = std::env::temp_dir().join(format!("cnb{}-daemon.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let found = Daemon::listening_at(&path).unwrap();
        // Dropped, it would end this very process.
        let found = std::mem::ManuallyDrop::new(found);
        assert_eq!(found.family().first(), Some(&std::process::id()));
        assert!(!found.has_ended());
        drop(listener);
        assert!(Daemon::listening_at(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
