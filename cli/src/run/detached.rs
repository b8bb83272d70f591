//! `cnet run -d`: a command that goes on when `cnet run` has returned.
//!
//! # Theory of operation
//!
//! The program starts itself once more, with the same words and the container's id in `--detached-id`,
//! in a session of its own. That second process is `cnet run` like any other, but for its streams: its
//! standard input is empty, its output and the command's go to the container's log, and its first
//! standard output is a pipe to the process that started it, which waits there for [`READY`] or for an
//! exit code and an error's text.
//!
//! When the command ends, its log and its exit code stay, for `cnet logs` and `cnet ps -a`, until `cnet
//! rm` or the next container of that name; with `--rm` neither does.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use cnet::definition::random_id;

use super::args::RunOptions;
use crate::program::{OWN_FAILURE, tell, write_out};
use cnet_netd::registry::Registry;

/// What is written when the command starts.
const READY: &str = "ready";

/// Starts the second process, and prints the container's id once the command runs.
pub(super) fn start() -> anyhow::Result<u8> {
    let id = random_id().context("cannot get random bytes from the kernel")?;
    let words = std::env::args_os().skip(2);
    let mut child = Command::new("/proc/self/exe")
        .arg0("cnet")
        .args(["run", "--detached-id", &id])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start a process in the background")?;
    let mut said = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut said)?;
    }
    if said == READY {
        write_out(format!("{id}\n")).context("cannot write to standard output")?;
        return Ok(0);
    }
    let _ = child.wait();
    match said.split_once(' ') {
        Some((code, text)) => {
            tell(text);
            Ok(code.parse().unwrap_or(OWN_FAILURE))
        }
        None => bail!("the process in the background ended without a word"),
    }
}

/// In the second process: what tells the first one.
pub(super) struct Report(Option<File>);

impl Report {
    /// Takes the pipe, and has this process's output go to the log of the container of that name. Does
    /// nothing in a process of the foreground.
    pub(super) fn take(
        options: &RunOptions,
        registry: Option<&Registry>,
        name: &str,
    ) -> anyhow::Result<Report> {
        if options.detached_id.is_none() {
            return Ok(Report(None));
        }
        let pipe = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
        // It was started by another name, /proc/self/exe.
        let _ = rustix::thread::set_name(c"cnet");
        // It fails for the leader of a process group, which a child is not.
        let _ = rustix::process::setsid();
        let report = Report(Some(pipe.into()));
        let opened = registry
            .context("a container in the background needs a place for its log")
            .and_then(|registry| Ok(OwnedFd::from(registry.open_log(name)?)));
        match opened {
            Ok(log) => {
                rustix::stdio::dup2_stdout(&log)?;
                rustix::stdio::dup2_stderr(&log)?;
                Ok(report)
            }
            Err(error) => Err(error),
        }
    }

    /// Says that the command starts.
    pub(super) fn ready(&mut self) {
        self.say(READY);
    }

    /// Says why it does not; in a process of the foreground, to the user.
    pub(super) fn failed(&mut self, code: u8, text: &str) {
        match self.0 {
            Some(_) => self.say(&format!("{code} {text}")),
            None => tell(text),
        }
    }

    /// A first process that is gone needs to be told nothing.
    fn say(&mut self, text: &str) {
        if let Some(mut pipe) = self.0.take() {
            let _ = pipe.write_all(text.as_bytes());
        }
    }
}
