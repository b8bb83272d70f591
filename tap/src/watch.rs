//! Noticing that a container is gone.
//!
//! An open TAP keeps its network namespace alive, so its end never shows on the TAP itself. A
//! container that was named by a process is watched by a pidfd, which becomes readable when the
//! process ends. One that was named by a path is watched by the path's directory (inotify(7)):
//! `ip netns delete` unmounts and then unlinks the file.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::error::TapError;

/// A descriptor that polls readable once the process has ended. It stands for this one process,
/// whoever gets its PID later.
///
/// # Errors
///
/// [`TapError::NoSuchProcess`]; [`TapError::Io`] with ENOSYS before Linux 5.3.
pub fn pidfd(pid: i32) -> Result<OwnedFd, TapError> {
    let raw = if pid > 0 { Pid::from_raw(pid) } else { None };
    let raw = raw.ok_or(TapError::NoSuchProcess { pid })?;
    rustix::process::pidfd_open(raw, PidfdFlags::empty()).map_err(|errno| match errno {
        // EINVAL: the id is a thread's, not a process's.
        Errno::SRCH | Errno::INVAL => TapError::NoSuchProcess { pid },
        _ => TapError::Io {
            what: "cannot watch a process (pidfd_open)",
            source: errno.into(),
        },
    })
}

/// Whether the process behind a pidfd has ended. Does not wait.
///
/// # Errors
///
/// [`TapError::Io`] if poll(2) fails.
pub fn has_ended(pidfd: &OwnedFd) -> Result<bool, TapError> {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let ready =
        rustix::event::poll(&mut fds, Some(&now)).map_err(TapError::io("cannot poll a pidfd"))?;
    Ok(ready > 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let fd = pidfd(child.id() as i32).unwrap();
        assert!(!has_ended(&fd).unwrap());
        drop(child.stdin.take());
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1));
        assert!(has_ended(&fd).unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn no_such_process() {
        for pid in [0, -7, i32::MAX] {
            assert!(
                matches!(pidfd(pid), Err(TapError::NoSuchProcess { .. })),
                "{pid}"
            );
        }
    }
}
