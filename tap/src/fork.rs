//! Making processes, while there is one thread.
//!
//! The child of a fork(2) has the thread that forked and no other, but the locks of all: with more
//! threads than one it might not even allocate. So a process forks first, and makes threads later.
//!
//! Source: fork(2), signal-safety(7).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;

use crate::error::TapError;

/// Forks; `None` in the child, which has copies of everything: what its parent's destructors do
/// must not be done by it as well.
///
/// # Errors
///
/// [`TapError::MultiThreaded`] if this process has more threads than one; [`TapError::Io`] with
/// `what` at a limit of processes or memory.
pub fn fork(what: &'static str) -> Result<Option<Pid>, TapError> {
    require_one_thread()?;
    // SAFETY: this process has one thread, so the child has all there is of it: no lock is held
    // and no invariant half-way by a thread that it lacks.
    match unsafe { libc::fork() } {
        -1 => Err(TapError::Io {
            what,
            source: io::Error::last_os_error(),
        }),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// The two ends of a conversation between parent and child.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), TapError> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    rustix::net::socketpair(family, SocketType::SEQPACKET, flags, None)
        .map_err(TapError::io("cannot make a socket pair"))
}

/// A thread that was joined a moment ago may still be listed: its end is announced before it is
/// taken off the list. Hence the few milliseconds of patience.
fn require_one_thread() -> Result<(), TapError> {
    for _ in 0..20 {
        if threads() == 1 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(TapError::MultiThreaded)
}

/// The threads of this process.
pub(crate) fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}
