//! Noticing that a container is gone.
//!
//! An open TAP keeps its network namespace alive, so its end never shows on the TAP itself. A
//! container that was named by a process is watched by a pidfd, which becomes readable when the
//! process ends. One that was named by a path is watched by the path's directory (inotify(7)):
//! `ip netns delete` unmounts and then unlinks the file.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::error::TapError;

/// A descriptor that polls readable once the process has ended. It stands for this one process,
/// whichever process gets its PID later.
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

/// When the process `pid` started, in clock ticks after the boot; `None` if there is no such
/// process, or it has ended and waits to be reaped.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    start_time_in(&String::from_utf8_lossy(&stat))
}

/// State and start time are the 1st and the 20th word behind the name, which stands in parentheses
/// and may hold anything (proc_pid_stat(5)).
fn start_time_in(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    let state = words.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    words.nth(18)?.parse().ok()
}

/// The number of the process behind a pidfd, as this process's `/proc` has it (proc_pid_fdinfo(5));
/// `None` for one that was reaped, or that this `/proc` does not show.
pub fn number_of(pidfd: &OwnedFd) -> Option<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path).ok()?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    pid.trim().parse().ok().filter(|&pid: &i32| pid > 0)
}

/// The process that a path of the form `/proc/PID/ns/…` or `/proc/PID/task/TID/ns/…` speaks of.
/// Files of /proc send no events, so such a path is watched by its process. `/proc/self` and
/// `/proc/thread-self` speak of this one.
pub fn process_of(path: &Path) -> Option<i32> {
    let rest = path.strip_prefix("/proc").ok()?;
    let mut parts = rest.iter();
    let pid = match parts.next()?.to_str()? {
        "self" | "thread-self" => std::process::id().cast_signed(),
        number => number.parse().ok()?,
    };
    parts.any(|part| part == "ns").then_some(pid)
}

/// Reads of inotify events in one [`PathWatch::is_gone`]. What is left over fires again.
const MAX_READS: usize = 16;

/// Watches a file, such as the bind mount of a namespace, for its end: that its name is taken
/// away, or stands for another file.
#[derive(Debug)]
pub struct PathWatch {
    inotify: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file the path stood for.
    identity: (u64, u64),
}

impl PathWatch {
    /// Starts to watch the file that `path` stands for now.
    ///
    /// # Errors
    ///
    /// [`TapError::OpenNamespace`] if there is no such file; [`TapError::Io`] where a limit of
    /// inotify(7) is reached.
    pub fn new(path: &Path) -> Result<PathWatch, TapError> {
        let failed = TapError::io::<Errno>;
        // The name may be a symbolic link: the file it leads to is what will be taken away.
        let path = path
            .canonicalize()
            .map_err(|source| TapError::OpenNamespace {
                path: path.to_owned(),
                source,
            })?;
        let directory = path.parent().unwrap_or(&path);
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(failed("cannot make an inotify descriptor"))?;
        let events = WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&inotify, directory, events)
            .map_err(failed("cannot watch the directory of a namespace"))?;
        // Looked at after the watch began, so that no change falls between.
        let identity =
            identity(&path)
                .ok_or(Errno::NOENT)
                .map_err(|e| TapError::OpenNamespace {
                    path: path.clone(),
                    source: e.into(),
                })?;
        Ok(PathWatch {
            inotify,
            path,
            identity,
        })
    }

    /// Whether the file is gone or another. To be asked when the descriptor polls readable; takes
    /// the events that made it so.
    pub fn is_gone(&self) -> bool {
        self.take_events();
        identity(&self.path) != Some(self.identity)
    }

    /// Takes it apart: the descriptor, the path and the file's identity.
    pub fn into_parts(self) -> (OwnedFd, PathBuf, (u64, u64)) {
        (self.inotify, self.path, self.identity)
    }

    /// Puts one together that was taken apart, by another process maybe.
    pub fn from_parts(inotify: OwnedFd, path: PathBuf, identity: (u64, u64)) -> PathWatch {
        PathWatch {
            inotify,
            path,
            identity,
        }
    }

    /// The path that is watched, with no symbolic link in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode of the file that is watched.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Takes the events, for one who finds out in another way what is at the path.
    pub fn take_events(&self) {
        let mut events = [0_u8; 4096];
        for _ in 0..MAX_READS {
            if rustix::io::read(&self.inotify, &mut events).is_err() {
                break;
            }
        }
    }
}

impl AsFd for PathWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::stat(path).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn start_times() {
        let stat = |state: &str| {
            format!("12 (a ) S 9) {state} 7 12 12 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 1")
        };
        assert_eq!(start_time_in(&stat("S")), Some(987_654));
        assert_eq!(start_time_in(&stat("Z")), None);
        assert_eq!(start_time_in("nonsense"), None);
        let own = start_time(std::process::id() as i32);
        assert!(own.is_some());
        assert_eq!(own, start_time(std::process::id() as i32));
        assert_eq!(start_time(-1), None);
    }

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

    /// A directory that goes with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let name = format!("cnet-tap-watch-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn fires(watch: &PathWatch) -> bool {
        let mut fds = [PollFd::new(watch, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut fds, Some(&limit)) == Ok(1)
    }

    #[test]
    fn a_path_that_is_removed_or_replaced_is_gone() {
        let scratch = Scratch::new("path");
        let (file, other) = (scratch.0.join("ns"), scratch.0.join("other"));
        std::fs::write(&file, "").unwrap();
        let watch = PathWatch::new(&file).unwrap();
        assert!(!fires(&watch));
        assert!(!watch.is_gone());
        // Something else happens in the directory.
        std::fs::write(&other, "").unwrap();
        assert!(fires(&watch));
        assert!(!watch.is_gone());
        assert!(!fires(&watch));
        std::fs::rename(&other, &file).unwrap();
        assert!(fires(&watch));
        assert!(watch.is_gone());

        let watch = PathWatch::new(&file).unwrap();
        assert!(!watch.is_gone());
        std::fs::remove_file(&file).unwrap();
        assert!(fires(&watch));
        assert!(watch.is_gone());
        assert!(matches!(
            PathWatch::new(&file),
            Err(TapError::OpenNamespace { .. })
        ));
    }

    #[test]
    fn paths_of_processes() {
        let process = |path: &str| process_of(Path::new(path));
        assert_eq!(process("/proc/17/ns/net"), Some(17));
        assert_eq!(process("/proc/17/task/18/ns/net"), Some(17));
        assert_eq!(process("/proc/17/root/run/x"), None);
        let own = Some(std::process::id().cast_signed());
        assert_eq!(process("/proc/self/ns/net"), own);
        assert_eq!(process("/proc/thread-self/ns/net"), own);
        assert_eq!(process("/run/netns/x"), None);
    }
}
