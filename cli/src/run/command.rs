//! The command itself: found, and executed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::terminal;
use crate::program::{OWN_FAILURE, tell};

/// The exit code for a command that is there but cannot be executed, as shells have it.
const NOT_EXECUTABLE: u8 = 126;
/// The exit code for a command that is not there.
const NOT_FOUND: u8 = 127;

/// Where programs are looked for without PATH, as execvp(3) does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Looks for the program before anything is made for it.
///
/// # Errors
///
/// The exit code when it is not there, which has been told.
pub(super) fn check(command: &[OsString]) -> Result<(), u8> {
    let program = command.first().map(OsString::as_os_str).unwrap_or_default();
    let is_there = match program.as_bytes().contains(&b'/') {
        true => Path::new(program).exists(),
        false => {
            let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
            let mut directories = env::split_paths(&path);
            !program.is_empty() && directories.any(|directory| directory.join(program).exists())
        }
    };
    if is_there {
        return Ok(());
    }
    let shown = Path::new(program).display();
    tell(&format!(
        "there is no program `{shown}`: {}",
        what_runs(program)
    ));
    Err(NOT_FOUND)
}

/// What a person is told who has named no program of this host.
fn what_runs(program: &OsStr) -> &'static str {
    match program.as_bytes() {
        [] => "the command's name is empty",
        // `-v` is --verbose, and what stood behind it is taken for the command.
        [b'/', rest @ ..] if rest.contains(&b':') => {
            "`-v` is --verbose, and there are no volumes: the command sees the host's files as they are"
        }
        _ => {
            "`cnet run` runs a program of this host, not an image (podman and docker run images on cnet, see docs/runtimes.md)"
        }
    }
}

/// What is executed, and how.
pub(crate) struct CommandPlan<'a> {
    /// The program and its arguments.
    pub(super) words: &'a [OsString],
    /// Variables of its environment, each with its value, or without for the one it has here.
    pub(super) env: &'a [(String, Option<String>)],
    /// Where it starts.
    pub(super) workdir: Option<&'a Path>,
    /// A terminal of its own.
    pub(super) terminal: Option<OwnedFd>,
}

impl<'a> CommandPlan<'a> {
    /// These words, with all else as it is here.
    pub(crate) fn of(words: &'a [OsString]) -> CommandPlan<'a> {
        CommandPlan {
            words,
            env: &[],
            workdir: None,
            terminal: None,
        }
    }
}

/// Executes the command; gives the exit code if that fails.
pub(crate) fn become_command(plan: &CommandPlan<'_>) -> u8 {
    let Some((program, arguments)) = plan.words.split_first() else {
        return OWN_FAILURE;
    };
    if let Some(Err(error)) = plan.terminal.as_ref().map(terminal::take) {
        tell(&format!("the command gets no terminal of its own: {error}"));
    }
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, value) in plan.env {
        match value
            .as_ref()
            .map(OsString::from)
            .or_else(|| env::var_os(name))
        {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if let Some(directory) = plan.workdir
        && let Err(error) = env::set_current_dir(directory)
    {
        tell(&format!("--workdir {}: {error}", directory.display()));
        return OWN_FAILURE;
    }
    // Also gives SIGPIPE, which Rust programs ignore, its default back.
    let error = command.exec();
    let shown = Path::new(program).display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            let why = match Path::new(program).exists() {
                true => "the interpreter that its first line names is not there",
                false => what_runs(program),
            };
            tell(&format!("{shown}: {error}; {why}"));
            NOT_FOUND
        }
        _ => {
            tell(&format!("{shown}: {error}"));
            NOT_EXECUTABLE
        }
    }
}
