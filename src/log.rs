//! The log of a network's process: a file of bounded size.
//!
//! # Theory of operation
//!
//! The process is started with the file as its standard error. What is logged goes there a line at
//! a time; once the file is over [`MAX_SIZE`], its newer half is written over it. There is one
//! file, and one descriptor is enough: nothing is opened while the process runs. Where standard
//! error leads elsewhere, nothing is cut.
//!
//! # Limits
//!
//! What a helper process or a panic writes in that very moment may be lost. What they write is
//! bounded with the next line that is logged, or when the next process starts.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::definition::file::is_at;
use crate::definition::{Directories, runtime};

/// Bytes of a log.
const MAX_SIZE: u64 = 1024 * 1024;

/// A log that stays bounded; anything that is no regular file is written to as it is.
#[derive(Debug)]
pub struct Bounded {
    file: File,
    max_size: u64,
}

impl Bounded {
    /// Opens the log at `path` to be appended to.
    pub fn open(path: &Path) -> io::Result<Bounded> {
        let file = fs::OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let log = Bounded {
            file,
            max_size: MAX_SIZE,
        };
        log.shorten()?;
        Ok(log)
    }

    /// The same with at most so many bytes.
    pub fn with_max_size(self, max_size: u64) -> Bounded {
        Bounded { max_size, ..self }
    }

    /// `file`, which is this process's standard error, if it is the log at `path`.
    pub fn of(file: impl AsFd, path: &Path) -> io::Result<Option<Bounded>> {
        let file = File::from(file.as_fd().try_clone_to_owned()?);
        let is_log = is_at(&file, path)?;
        Ok(is_log.then_some(Bounded {
            file,
            max_size: MAX_SIZE,
        }))
    }

    /// Leaves the newer half, from the start of a line on, of a file that is too large.
    fn shorten(&self) -> io::Result<()> {
        let found = self.file.metadata()?;
        if !found.is_file() || found.len() <= self.max_size {
            return Ok(());
        }
        let kept = self.max_size / 2;
        let mut newer = vec![0; kept as usize];
        self.file.read_exact_at(&mut newer, found.len() - kept)?;
        let begin = newer.iter().position(|&byte| byte == b'\n');
        let begin = begin.map_or(0, |end_of_line| end_of_line + 1);
        self.file.set_len(0)?;
        (&self.file).write_all(&newer[begin..])
    }
}

impl Write for Bounded {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let written = self.file.write(line)?;
        self.shorten()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl From<Bounded> for std::process::Stdio {
    fn from(log: Bounded) -> Self {
        log.file.into()
    }
}

/// Where a network's log is, and its last line: what a person is told of a process that has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct LogEnd {
    /// The log.
    pub path: PathBuf,
    /// Its last line, if it has one.
    pub last: Option<String>,
}

impl LogEnd {
    /// That of the network of that name.
    pub fn of(directories: &Directories, network: &str) -> LogEnd {
        let path = runtime::log(&directories.network_runtime(network));
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().rfind(|line| !line.trim().is_empty());
        let last = last.map(|line| line.trim().to_owned());
        LogEnd { path, last }
    }
}

impl fmt::Display for LogEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.last {
            Some(last) => write!(f, "the last line of its log, {path}, is: {last}"),
            None => write!(f, "its log, {path}, is empty"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_and_no_more_than_that() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        let mut log = Bounded {
            max_size: 1000,
            ..Bounded::open(&path).unwrap()
        };
        for number in 0..1000 {
            writeln!(log, "line {number:03}").unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.len() <= 1000, "{}", text.len());
            assert!(text.ends_with(&format!("line {number:03}\n")));
            assert!(text.starts_with("line "), "half a line: {text:.9}");
        }
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines >= 50, "{lines} are too few");
    }

    #[test]
    fn a_log_that_has_grown_is_shortened_when_it_is_opened() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        let size = MAX_SIZE as usize + 5000;
        fs::write(&path, "x".repeat(size) + "\nlast\n").unwrap();
        drop(Bounded::open(&path).unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "last\n", "the one whole line of the newer half");
    }

    #[test]
    fn only_the_log_itself_is_bounded() {
        let place = tempfile::tempdir().unwrap();
        let [log, other] = ["log", "other"].map(|name| place.path().join(name));
        let at = |path: &Path| File::create(path).unwrap();
        let (own, others) = (at(&log), at(&other));
        assert!(Bounded::of(&own, &log).unwrap().is_some());
        assert!(Bounded::of(&others, &log).unwrap().is_none());
        fs::remove_file(&log).unwrap();
        assert!(Bounded::of(&own, &log).unwrap().is_none());
    }

    #[test]
    fn what_is_no_file_is_written_to() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = Bounded {
            file: File::from(std::os::fd::OwnedFd::from(writer)),
            max_size: 1,
        };
        log.write_all(b"told").unwrap();
        drop(log);
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "told");
    }
}
