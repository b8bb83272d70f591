//! Forking a process into namespaces of its own.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::Isolation;
use crate::error::TapError;
use crate::fork::{become_subreaper, go_on_as_child, spawn};

/// The exit status of a process in between that could not go on.
const GIVEN_UP: u8 = 1;

/// A process in namespaces of its own, as it begins.
#[derive(Debug)]
pub struct Isolated {
    /// The namespaces it was forked into.
    pub isolation: Isolation,
    /// Its PID where its parent is; in its own PID namespace it is another.
    pub pid: i32,
}

/// As [`spawn`], in mount, IPC, UTS, PID and user namespaces of its own, as far as the host offers
/// them ([`Isolation::make_for_child`]). The child dies with this process, which
/// takes up orphans from here on ([`become_subreaper`]); it must end as well when its socket is
/// closed.
///
/// # Errors
///
/// As [`spawn`]; [`TapError::HelperDied`] if the child could not be forked.
pub fn spawn_isolated(
    what: &'static str,
    binds_low_ports: bool,
    live: impl FnOnce(Isolated, OwnedFd) -> u8,
) -> Result<(Pid, OwnedFd), TapError> {
    become_subreaper().map_err(TapError::io("cannot take up orphans"))?;
    let (between, socket) = spawn(what, |parent, socket| {
        if parent.die_together().is_err() {
            return GIVEN_UP;
        }
        let isolation = Isolation::make_for_child(binds_low_ports);
        let told = |pid: Pid| {
            let number = pid.as_raw_nonzero().get().to_ne_bytes();
            // A parent that is gone ends the child by the closed socket.
            let _ = send(&socket, &number, SendFlags::NOSIGNAL);
        };
        if go_on_as_child(what, told).is_err() {
            return GIVEN_UP;
        }
        // The host's /proc is still mounted, and has the number that the host knows.
        let own = std::fs::read_link("/proc/self").ok();
        let pid = own.and_then(|own| own.to_str()?.parse().ok());
        let pid = pid.unwrap_or_else(|| rustix::process::getpid().as_raw_nonzero().get());
        live(Isolated { isolation, pid }, socket)
    })?;
    let mut number = [0; 4];
    let received = loop {
        match recv(&socket, &mut number, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            received => break received,
        }
    };
    let ended = waitpid(Some(between), WaitOptions::empty());
    match received {
        Ok((_, 4)) => Pid::from_raw(i32::from_ne_bytes(number)).map(|pid| (pid, socket)),
        _ => None,
    }
    .ok_or_else(|| TapError::HelperDied {
        status: format!("{ended:?}"),
    })
}
