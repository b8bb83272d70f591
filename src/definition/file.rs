//! Files that are replaced whole or not at all, files that are read with a limit, and the lock of a
//! directory.
//!
//! # Theory of operation
//!
//! A new content is written beside the file, pushed to the disk and renamed over it; then the
//! directory is pushed to the disk. A reader sees the old content or the new one, after a power cut
//! as well. The name of the file beside is always the same, so a crash leaves at most one, which
//! the next writer overwrites; hence one writer a file at a time, by [`DirectoryLock`] or by being
//! the one process of a network.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// For this user alone: other users are not to read names and addresses of containers.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// How long the lock is waited for, and how long between two attempts. Each takes milliseconds;
/// only the start of a network's process may take as long as [`crate::start`] allows it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);
const LOCK_INTERVAL: Duration = Duration::from_millis(2);

/// The rights of others to take a directory's files away and put theirs there.
const OTHERS_WRITE: u32 = 0o022;

/// Makes a directory, and those above it, for this user alone. One that exists stays as it is.
///
/// # Errors
///
/// What mkdir(2) says.
pub fn make_directory(path: &Path) -> io::Result<()> {
    // Asked first: a network's process makes none once it is in its sandbox.
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
}

/// As [`make_directory`], and makes sure that no other user can put another thing in the place of
/// what is in it: in a directory such as `/tmp` any user could have made it first.
///
/// # Errors
///
/// What mkdir(2) says; `PermissionDenied` if it is not a directory of this user that only this user
/// may write to.
pub fn make_own_directory(path: &Path) -> io::Result<()> {
    make_directory(path)?;
    let found = fs::symlink_metadata(path)?;
    let refused = |why: String| {
        let text = format!("{why}; remove it, or set XDG_RUNTIME_DIR to a directory of your own");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    };
    if !found.is_dir() {
        return refused("is not a directory".to_owned());
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return refused(format!("belongs to the user {}", found.uid()));
    }
    match found.mode() & OTHERS_WRITE {
        0 => Ok(()),
        _ => refused("others may write to it".to_owned()),
    }
}

/// The text of the regular file at `path`, `limit` bytes at most. A FIFO or a device in its place is
/// an error at once: it could be waited for, or read, for ever.
///
/// # Errors
///
/// What open(2) or read(2) says; `InvalidData` if it is not a regular file or not UTF-8,
/// `FileTooLarge` if it is longer.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    text_of(open_regular(path)?, limit)
}

/// As [`read_text`], for a file that decides what is done: one that other users may write is
/// refused.
///
/// # Errors
///
/// As there; `PermissionDenied` if a user other than this one and root may change it.
pub fn read_trusted_text(path: &Path, limit: u64) -> io::Result<String> {
    let file = open_regular(path)?;
    check_trusted(&file.metadata()?)?;
    text_of(file, limit)
}

/// As [`read_text`], for a file that decides what is done with a privilege: root's alone, whoever this
/// user is.
///
/// # Errors
///
/// As there; `PermissionDenied` if a user other than root may change it.
pub fn read_trusted_text_of_root(path: &Path, limit: u64) -> io::Result<String> {
    let file = open_regular(path)?;
    let found = file.metadata()?;
    match found.uid() == 0 && found.mode() & OTHERS_WRITE == 0 {
        true => text_of(file, limit),
        false => {
            let why = "root alone may be able to change it; `chown root` and `chmod go-w` it";
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
        }
    }
}

/// Checks that no user other than this one and root may change what is in the directory at `path`;
/// one that does not exist is as good.
///
/// # Errors
///
/// What stat(2) says; `PermissionDenied` if another user may.
pub fn check_trusted_directory(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        found => check_trusted(&found?),
    }
}

fn check_trusted(found: &fs::Metadata) -> io::Result<()> {
    let refused = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    let (owner, own) = (found.uid(), rustix::process::geteuid().as_raw());
    if owner != own && owner != 0 {
        return refused(format!(
            "belongs to user {owner}, who could change it; `chown {own}` it"
        ));
    }
    match found.mode() & OTHERS_WRITE {
        0 => Ok(()),
        _ => refused("other users may write to it; `chmod go-w` it".to_owned()),
    }
}

fn open_regular(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK the open of a FIFO waits for a writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => {
            let why = "is not a regular file";
            Err(io::Error::new(io::ErrorKind::InvalidData, why))
        }
    }
}

fn text_of(file: File, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    // One byte more tells a file that is longer from one that just fits.
    let read = file.take(limit + 1).read_to_string(&mut text)?;
    match read as u64 > limit {
        true => {
            let why = format!("is longer than {limit} bytes");
            Err(io::Error::new(io::ErrorKind::FileTooLarge, why))
        }
        false => Ok(text),
    }
}

/// Replaces the content of the file at `path`, or makes it.
///
/// # Errors
///
/// What the file system says; the file is as before then.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = beside(path)?;
    let written = write_synced(&beside, content).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        // What was written is of no use; the error that counts is the first.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Where a new content is written first.
///
/// # Errors
///
/// `InvalidInput` for a path that does not end in a name.
pub fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    Ok(path.with_file_name(hidden))
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// The right to change a directory's files, until it is dropped or its process ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _directory: File,
}

impl DirectoryLock {
    /// Waits for the others to be done, 20 seconds at most.
    ///
    /// # Errors
    ///
    /// What open(2) or flock(2) says; `NotFound` also if the directory was removed meanwhile, even
    /// if there is another one in its place; `TimedOut` if another process is not done in time.
    pub fn at(path: &Path) -> io::Result<DirectoryLock> {
        DirectoryLock::within(LOCK_TIMEOUT, path)
    }

    fn within(limit: Duration, path: &Path) -> io::Result<DirectoryLock> {
        let directory = File::open(path)?;
        let begun = Instant::now();
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if begun.elapsed() < limit => sleep(LOCK_INTERVAL),
                Err(Errno::WOULDBLOCK) => {
                    let text = format!(
                        "another process has kept its turn at it for {} s; `lslocks` shows which: end that one",
                        limit.as_secs()
                    );
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                taken => break taken?,
            }
        }
        match is_at(&directory, path)? {
            true => Ok(DirectoryLock {
                _directory: directory,
            }),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// Whether `file` is what `path` leads to.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((open.dev(), open.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/b");
        make_directory(&directory).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        let path = directory.join("x.toml");
        fs::write(
            directory.join(".x.toml.new"),
            "left over from a crash, and longer",
        )
        .unwrap();
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::read_dir(&directory).unwrap().count(),
            1,
            "nothing beside"
        );
    }

    #[test]
    fn a_directory_that_others_can_change_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        make_own_directory(&path).unwrap();
        make_own_directory(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        let error = make_own_directory(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("XDG_RUNTIME_DIR"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        make_own_directory(&path).unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let error = make_own_directory(&link).unwrap_err();
        assert!(error.to_string().contains("not a directory"), "{error}");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            let error = make_own_directory(&path).unwrap_err();
            assert!(error.to_string().contains("the user 1;"), "{error}");
        }
    }

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        let kind = |path: &Path, limit| read_text(path, limit).unwrap_err().kind();
        assert_eq!(kind(&path, 4), io::ErrorKind::FileTooLarge);
        fs::write(&path, [0xff]).unwrap();
        assert_eq!(kind(&path, 4), io::ErrorKind::InvalidData);
        let fifo = root.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        for special in [&fifo, Path::new("/dev/zero"), root.path()] {
            assert_eq!(kind(special, 4), io::ErrorKind::InvalidData, "{special:?}");
        }
        assert_eq!(kind(&root.path().join("none"), 4), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_other_users_may_change_is_not_trusted() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x");
        fs::write(&path, "1").unwrap();
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for trusted in [0o600, 0o644, 0o444] {
            mode(trusted);
            assert_eq!(read_trusted_text(&path, 9).unwrap(), "1");
        }
        for shared in [0o620, 0o602] {
            mode(shared);
            let error = read_trusted_text(&path, 9).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("chmod go-w"), "{error}");
            assert_eq!(read_text(&path, 9).unwrap(), "1");
        }
        check_trusted_directory(&root.path().join("none")).unwrap();
        check_trusted_directory(root.path()).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(root.path(), Some(1), None).unwrap();
            let error = check_trusted_directory(root.path()).unwrap_err();
            assert!(error.to_string().contains("user 1,"), "{error}");
        }
    }

    #[test]
    fn a_failure_leaves_the_old_content() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x");
        fs::create_dir(&path).unwrap();
        fs::create_dir(path.join("y")).unwrap();
        assert!(replace(&path, b"one").is_err(), "a directory is no file");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        assert!(replace(&root.path().join("none/x"), b"one").is_err());
    }

    #[test]
    fn turns_are_taken_one_after_the_other() {
        let root = tempfile::tempdir().unwrap();
        let first = DirectoryLock::at(root.path()).unwrap();
        let path = root.path().to_owned();
        let (told, hears) = mpsc::channel();
        let second = std::thread::spawn(move || {
            let _lock = DirectoryLock::at(&path).unwrap();
            told.send(()).unwrap();
        });
        assert!(hears.recv_timeout(Duration::from_millis(100)).is_err());
        drop(first);
        hears.recv_timeout(Duration::from_secs(10)).unwrap();
        second.join().unwrap();
    }

    #[test]
    fn who_keeps_the_lock_is_not_waited_for_without_end() {
        let root = tempfile::tempdir().unwrap();
        let held = DirectoryLock::at(root.path()).unwrap();
        let error = DirectoryLock::within(LOCK_INTERVAL * 5, root.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("lslocks"), "{error}");
        drop(held);
        DirectoryLock::within(LOCK_INTERVAL * 5, root.path()).unwrap();
    }
}
