//! Making processes, while there is one thread.
//!
//! The child of a fork(2) has the thread that forked and no other, but the locks of all: with more
//! threads than one it might not even allocate. So a process forks first, and makes threads later.
//!
//! [`spawn`] makes a child that does one thing and ends: it shares a socket pair with its parent,
//! never returns into its parent's frames, and dies with its parent if it asks for it
//! ([`Parent::die_together`]). [`fork()`] is for a child that goes on as a program of its own, and
//! [`before_exec`] for one that becomes another program.
//!
//! Source: fork(2), signal-safety(7), prctl(2).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};

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

/// The process that forked, seen from its child.
#[derive(Clone, Copy, Debug)]
pub struct Parent(Pid);

impl Parent {
    /// Asks the kernel to kill this process when its parent ends (`PR_SET_PDEATHSIG`), and fails if
    /// that has happened. A change of credentials clears the request (`commit_creds` in
    /// `kernel/cred.c`), so it is made again after each.
    ///
    /// # Errors
    ///
    /// [`TapError::Io`] if the parent has ended.
    pub fn die_together(self) -> Result<(), TapError> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(TapError::io("cannot tie a helper process to its parent"))?;
        // Looked at afterwards: a parent that ended before the request sends no signal.
        if rustix::process::getppid() == Some(self.0) {
            return Ok(());
        }
        Err(TapError::Io {
            what: "the parent process has ended",
            source: io::Error::from_raw_os_error(libc::ESRCH),
        })
    }
}

/// Forks a child that runs `live` with its end of a socket pair and ends with the exit status that
/// `live` gives, or 101 if it panics. Gives the child and the parent's end. Both ends are
/// SOCK_SEQPACKET, so a message arrives whole.
///
/// # Errors
///
/// As [`fork()`], and [`TapError::Io`] at a limit of descriptors.
pub fn spawn(
    what: &'static str,
    live: impl FnOnce(Parent, OwnedFd) -> u8,
) -> Result<(Pid, OwnedFd), TapError> {
    let (ours, theirs) = pair()?;
    let parent = Parent(rustix::process::getpid());
    match fork(what)? {
        Some(child) => Ok((child, ours)),
        None => {
            drop(ours);
            live_and_exit(|| live(parent, theirs))
        }
    }
}

/// As [`spawn`], for a child that talks over a descriptor which its parent has already.
///
/// # Errors
///
/// As [`fork()`].
pub fn spawn_sharing(what: &'static str, live: impl FnOnce(Parent) -> u8) -> Result<Pid, TapError> {
    let parent = Parent(rustix::process::getpid());
    match fork(what)? {
        Some(child) => Ok(child),
        None => live_and_exit(|| live(parent)),
    }
}

/// In a child: forks once more and ends, so that the caller goes on as the grandchild, whose parent
/// is then the nearest process that takes up orphans ([`become_subreaper`]). That is how a process
/// gets into the PID namespace that it has made (`CLONE_NEWPID`, unshare(2)): only its children are
/// in there. `report` runs in the process that ends, and is given the grandchild's PID there.
///
/// The grandchild is killed when its new parent ends ([`Parent::die_together`] has no say in it: a
/// parent outside the PID namespace has the number 0 there). It must notice by itself if that has
/// ended before this returned.
///
/// # Errors
///
/// As [`fork()`], and before Linux 5.3, which has no pidfd. The caller is the child still, then.
pub fn go_on_as_child(what: &'static str, report: impl FnOnce(Pid)) -> Result<(), TapError> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let between = crate::watch::pidfd(own)?;
    if let Some(child) = fork(what)? {
        report(child);
        // SAFETY: _exit(2) ends the process at once and takes no pointer.
        unsafe { libc::_exit(0) };
    }
    // Once that one has ended, this process is its new parent's child: asked for earlier, the signal
    // would come at that very moment.
    let mut fds = [PollFd::new(&between, PollFlags::IN)];
    while let Err(Errno::INTR) = rustix::event::poll(&mut fds, None) {}
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(TapError::io("cannot tie a process to its parent"))
}

/// Has orphaned descendants become children of this process.
///
/// # Errors
///
/// As prctl(2), which does not fail on any kernel that we run on.
pub fn become_subreaper() -> io::Result<()> {
    let own = rustix::process::getpid();
    Ok(rustix::process::set_child_subreaper(Some(own))?)
}

/// The child's part. A panic must not unwind into the parent's frames, of which this process has a
/// copy, nor may the parent's destructors and exit handlers run twice: hence `_exit`.
fn live_and_exit(live: impl FnOnce() -> u8) -> ! {
    let status = std::panic::catch_unwind(AssertUnwindSafe(live)).unwrap_or(PANICKED);
    // SAFETY: _exit(2) ends the process at once and takes no pointer.
    unsafe { libc::_exit(status.into()) }
}

/// Has `set_up` run in the process that `command` starts, between fork(2) and execve(2), with what it
/// owns. It must take no lock that another thread of this process may hold, or it waits for ever:
/// system calls on values made before are what it is for.
pub fn before_exec(
    command: &mut Command,
    set_up: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the child has a copy of this process's memory and one thread, so what `set_up` owns
    // is its alone. The C library makes its allocator usable in the child (malloc(3), glibc and
    // musl); a lock that another thread holds stays locked, which hangs but breaks nothing.
    unsafe { command.pre_exec(set_up) };
}

/// The exit status of a Rust program that panicked.
const PANICKED: u8 = 101;

/// The two ends of a conversation between parent and child.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), TapError> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    rustix::net::socketpair(family, SocketType::SEQPACKET, flags, None)
        .map_err(TapError::io("cannot make a socket pair"))
}

/// A thread that was joined a moment ago may still be listed: its end is announced before it is
/// taken off the list. Hence the few milliseconds of waiting.
pub(crate) fn require_one_thread() -> Result<(), TapError> {
    for _ in 0..20 {
        if threads() == 1 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(TapError::MultiThreaded)
}

/// The threads of this process; 1 if /proc does not tell.
pub(crate) fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}
