//! A network's runtime directory: its lock, the lock of the network's process, and its removal.
//!
//! # Theory of operation
//!
//! A client that starts a network's process or removes the network locks the directory while it
//! does so ([`lock_directory`]). The process itself holds a lock on a file there for as long as it
//! lives ([`lock`]). A client that has both knows that no process serves the network, nor is about
//! to, and may remove it: its definition first, without which no process starts, then the directory
//! ([`clear`]).
//!
//! # Invariants
//!
//! Both locks are of what is there now: a client that waited for those of a directory or file that
//! was removed meanwhile gets those of the next one. They are taken in this order, and the lock of
//! the definitions last.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::directories::Directories;
use super::file::{DirectoryLock, beside, is_at};

/// The lock of the process.
const LOCK: &str = "lock";

/// What the process says.
const LOG: &str = "log";

/// How often both locks are tried, and how long to wait for that of the process in between.
const ATTEMPTS: usize = 100;
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// Makes the runtime directory of `network`, locks it, and gives both.
///
/// # Errors
///
/// The directory that cannot be used, and why.
pub fn lock_directory(
    directories: &Directories,
    network: &str,
) -> Result<(PathBuf, DirectoryLock), (PathBuf, io::Error)> {
    let once = || {
        let path = directories.make_network_runtime(network)?;
        match DirectoryLock::at(&path) {
            Ok(lock) => Ok((path, lock)),
            Err(error) => Err((path, error)),
        }
    };
    for _ in 1..ATTEMPTS {
        match once() {
            // Removed while it was made, or while we waited.
            Err((_, error)) if is_of_removal(&error) => {}
            done => return done,
        }
    }
    once()
}

/// Whether that is what a directory says that is removed while it is made: it is there when
/// mkdir(2) looks, and is not a moment later.
pub fn is_of_removal(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, NotFound};
    matches!(error.kind(), AlreadyExists | NotFound)
}

/// Takes the lock that says that the caller serves the network of this runtime directory; `None` if
/// another process does. One that has ended or was killed a moment ago may still be ending: that is
/// waited for, half a second at most.
///
/// # Errors
///
/// What open(2) or flock(2) says.
pub fn lock(directory: &Path) -> io::Result<Option<File>> {
    let path = directory.join(LOCK);
    for _ in 0..ATTEMPTS {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, &path)? => return Ok(Some(file)),
            Ok(()) | Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => sleep(LOCK_INTERVAL),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// The log in this runtime directory.
pub fn log(directory: &Path) -> PathBuf {
    directory.join(LOG)
}

/// Removes the runtime directory of `network` and what its process has left there. To be called
/// with both locks; a file that is not the process's keeps the directory.
pub fn clear(directories: &Directories, network: &str) {
    let directory = directories.network_runtime(network);
    let state = directories.state_file(network);
    // Of one that was killed while it wrote.
    let half_written = beside(&state).ok();
    let left = [
        directories.socket(network),
        state,
        log(&directory),
        directory.join(LOCK),
    ];
    for path in left.into_iter().chain(half_written) {
        // What stays does no harm: the next process overwrites it.
        let _ = fs::remove_file(path);
    }
    let _ = fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::definition::file::make_directory;

    fn directories(root: &tempfile::TempDir) -> Directories {
        Directories {
            config: root.path().join("c"),
            state: root.path().join("s"),
            runtime: root.path().join("r"),
        }
    }

    #[test]
    fn who_waited_for_what_was_removed_has_the_lock_at_the_next_one() {
        let root = tempfile::tempdir().unwrap();
        let directories = directories(&root);
        let (path, first) = lock_directory(&directories, "lan").unwrap();
        let (told, hears) = mpsc::channel();
        let waiting = directories.clone();
        let second = thread::spawn(move || {
            told.send(()).unwrap();
            lock_directory(&waiting, "lan").unwrap()
        });
        hears.recv().unwrap();
        // Long enough to open the directory, and to wait for it.
        thread::sleep(Duration::from_millis(100));
        clear(&directories, "lan");
        assert!(!path.exists());
        drop(first);
        let (path, _second) = second.join().unwrap();
        let directory = File::open(path).expect("a new directory");
        let other = flock(&directory, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(other, Err(Errno::WOULDBLOCK), "the lock is of the new one");
    }

    #[test]
    fn the_lock_is_had_while_others_remove_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let directories = directories(&root);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..50 {
                        let locked = lock_directory(&directories, "lan");
                        let (path, lock) = locked.unwrap_or_else(|e| panic!("{round}: {e:?}"));
                        assert!(path.is_dir());
                        clear(&directories, "lan");
                        drop(lock);
                    }
                });
            }
        });
    }

    #[test]
    fn what_is_no_directory_is_told_at_once() {
        let root = tempfile::tempdir().unwrap();
        let directories = directories(&root);
        make_directory(&directories.runtime).unwrap();
        fs::write(directories.network_runtime("lan"), "x").unwrap();
        let (path, _) = lock_directory(&directories, "lan").unwrap_err();
        assert_eq!(path, directories.network_runtime("lan"));
    }

    #[test]
    fn the_lock_is_one_process_s_and_of_the_file_that_is_there() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path();
        let held = lock(directory).unwrap().expect("it is free");
        assert!(lock(directory).unwrap().is_none());
        assert!(is_at(&held, &directory.join(LOCK)).unwrap());
        fs::remove_file(directory.join(LOCK)).unwrap();
        assert!(!is_at(&held, &directory.join(LOCK)).unwrap());
        let next = lock(directory).unwrap().expect("another file");
        assert!(is_at(&next, &directory.join(LOCK)).unwrap());
    }

    #[test]
    fn what_is_not_the_process_s_stays() {
        let root = tempfile::tempdir().unwrap();
        let directories = directories(&root);
        let (path, _lock) = lock_directory(&directories, "lan").unwrap();
        let _lock = lock(&path).unwrap();
        for name in ["log", "state.json", ".state.json.new", "api.sock", "mine"] {
            fs::write(path.join(name), "x").unwrap();
        }
        clear(&directories, "lan");
        let left = fs::read_dir(&path).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["mine"]);
    }
}
