//! The client's part: starting a network process where there is none.
//!
//! Clients serialise on a lock of the network's runtime directory, so two that find no process
//! start only one. A process that ends takes the lock as well, and keeps it until it has ended. So
//! does a client that removes the network; a process is started only for a network that is defined.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use crate::definition::{DEFAULT_NETWORK, Directories, runtime};
use crate::log::{Bounded, LogEnd};

/// The hidden subcommand of `cnet` that a network's process is started by.
pub const SUBCOMMAND: &str = "network-process";

/// What a network's process writes to standard output when it is ready. Anything else is an error's
/// text.
pub const READY: &str = "ready\n";

/// How long a process may take until it serves: it takes up containers first, and gives up on a
/// namespace that hangs after 5 seconds.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Why there is no network process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The runtime directory cannot be used.
    #[error("cannot use {}: {source}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// There is no such network any more.
    #[error("the network `{0}` was removed meanwhile; `cnet network create {0}` makes it again")]
    Removed(String),
    /// This process is in a user namespace that the user has admitted, where the user's networks do not
    /// start: what starts here would go out by another network, and end with the namespace.
    #[error(
        "the network `{0}` does not run, and does not start from another user namespace; start it from outside, by a container or by `cnet run --network {0}`"
    )]
    Elsewhere(String),
    /// The program cannot be executed.
    #[error("cannot execute {}: {source}; install cnet, or name its program", .program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// It runs, and does not serve.
    #[error(
        "the network's process was started {} s ago and does not serve yet; {log}",
        START_TIMEOUT.as_secs()
    )]
    Slow {
        /// What its log says.
        log: LogEnd,
    },
    /// It was ready, and has ended since, again and again.
    #[error("the network's process ends as soon as it is started; {log}")]
    Unstable {
        /// What its log says.
        log: LogEnd,
    },
    /// It ended before it was ready; this is what it said.
    #[error("the network cannot start: {0}")]
    Failed(String),
}

/// Makes sure that a process serves the network, and waits until it does. `program` is cnet's own.
/// Blocks for some milliseconds; for longer if another process is just leaving, and 40 seconds at
/// most.
///
/// # Errors
///
/// See [`StartError`].
pub fn ensure(directories: &Directories, network: &str, program: &Path) -> Result<(), StartError> {
    ensure_with(directories, network, program, None)
}

/// As [`ensure`]; a process that is started has this variable in its environment besides.
///
/// # Errors
///
/// See [`StartError`].
pub fn ensure_with(
    directories: &Directories,
    network: &str,
    program: &Path,
    variable: Option<(&str, &str)>,
) -> Result<(), StartError> {
    let unusable = |(path, source)| StartError::Directory { path, source };
    let (path, _lock) = runtime::lock_directory(directories, network).map_err(unusable)?;
    if UnixStream::connect(directories.socket(network)).is_ok() {
        // Another client was quicker.
        return Ok(());
    }
    start_locked(directories, (network, &path), program, variable)
}

/// Ends the process `pid` of a network, and all that belong to it, as a crash would, and starts
/// `program` in its place, which takes up the containers. No other client starts one meanwhile.
///
/// # Errors
///
/// See [`StartError`].
pub fn restart(
    directories: &Directories,
    network: &str,
    program: &Path,
    pid: u32,
) -> Result<(), StartError> {
    let unusable = |(path, source)| StartError::Directory { path, source };
    let (path, _lock) = runtime::lock_directory(directories, network).map_err(unusable)?;
    end_family(network, pid.cast_signed());
    // Its lock is free once all of it has ended.
    let lock = runtime::lock(&path).map_err(|source| unusable((path.clone(), source)))?;
    drop(lock);
    start_locked(directories, (network, &path), program, None)
}

/// Kills the process of a network, the one outside its sandbox, and what those have forked, among it
/// the watcher, which would start the network again. They are stopped first, so that none acts on the
/// end of another.
fn end_family(network: &str, pid: i32) {
    let outer = parent_of(pid).filter(|parent| is_of_network(*parent, network));
    let outer = outer.unwrap_or(pid);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let others: Vec<(i32, i32)> = numbers
        .filter_map(|pid| Some((pid, parent_of(pid)?)))
        .collect();
    let mut family = vec![outer, pid];
    // A watcher whose parent has been killed is no descendant any more.
    let orphans = others.iter().map(|(pid, _)| *pid);
    family.extend(orphans.filter(|pid| is_of_network(*pid, network) && has_our_directories(*pid)));
    loop {
        let is_new = |(pid, parent): &&(i32, i32)| family.contains(parent) && !family.contains(pid);
        match others.iter().find(is_new) {
            Some((pid, _)) => family.push(*pid),
            None => break,
        }
    }
    for signal in [Signal::STOP, Signal::KILL] {
        for pid in family.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            // One that is gone needs no signal.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// Whether the process was started to serve the network.
fn is_of_network(pid: i32, network: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0);
    words.any(|word| word == SUBCOMMAND.as_bytes()) && words.any(|word| word == network.as_bytes())
}

/// Whether the process has the runtime directory that this one has.
fn has_our_directories(pid: i32) -> bool {
    const VARIABLE: &str = "XDG_RUNTIME_DIR";
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut theirs = environment.split(|byte| *byte == 0).filter_map(|entry| {
        let value = entry.strip_prefix(VARIABLE.as_bytes())?;
        value.strip_prefix(b"=").map(<[u8]>::to_vec)
    });
    let own = std::env::var_os(VARIABLE).map(OsStringExt::into_vec);
    !environment.is_empty() && theirs.next() == own
}

/// The parent, which is the second word behind the name in parentheses (proc_pid_stat(5)).
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// Starts a process, for a caller that has locked the network's runtime directory, `path`.
fn start_locked(
    directories: &Directories,
    (network, path): (&str, &Path),
    program: &Path,
    variable: Option<(&str, &str)>,
) -> Result<(), StartError> {
    let failed = |source| StartError::Directory {
        path: path.to_owned(),
        source,
    };
    if network != DEFAULT_NETWORK && !directories.definition(network).exists() {
        // The directory, if it was made just now.
        let _ = fs::remove_dir(path);
        return Err(StartError::Removed(network.to_owned()));
    }
    if Directories::of_admitting_user().is_some_and(|theirs| theirs == *directories) {
        return Err(StartError::Elsewhere(network.to_owned()));
    }
    let log = Bounded::open(&runtime::log(path)).map_err(failed)?;
    let not_started = |source| StartError::Program {
        program: program.to_owned(),
        source,
    };
    let mut child = Command::new(program)
        .arg0("cnet")
        .arg(SUBCOMMAND)
        .args(sandbox_option())
        .arg(network)
        .envs(variable)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(not_started)?;
    let said = match child.stdout.take() {
        Some(out) => read_until_ready(out, START_TIMEOUT),
        None => Ok(String::new()),
    };
    if said.is_err() {
        // It has not even forked, or has ended, and this does nothing.
        let _ = child.kill();
    }
    // What was started forks, and ends at once.
    let _ = child.wait();
    let said = said.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => StartError::Slow {
            log: LogEnd::of(directories, network),
        },
        _ => not_started(error),
    })?;
    match said == READY {
        true => Ok(()),
        false if said.is_empty() => Err(StartError::Failed(format!(
            "its process ended without a word; {}",
            LogEnd::of(directories, network)
        ))),
        false => Err(StartError::Failed(said)),
    }
}

/// The variable of the environment that says how much of the sandbox a network's process insists upon:
/// `required` refuses to run where the host lacks a stage of it, `off` is for debugging.
pub const SANDBOX: &str = "CNET_SANDBOX";

/// What the variable asks for, as an option of the process.
fn sandbox_option() -> Option<&'static str> {
    match std::env::var(SANDBOX).as_deref() {
        Ok("required") => Some("--require-sandbox"),
        Ok("off") => Some("--no-sandbox"),
        _ => None,
    }
}

/// Reads up to the line that says that all is well, or to the end.
///
/// # Errors
///
/// What poll(2) or read(2) says; `TimedOut` if neither comes in time.
fn read_until_ready(mut out: impl Read + AsFd, limit: Duration) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut space = [0; 1024];
    let begun = Instant::now();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&out, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&left)) {
            Ok(0) if begun.elapsed() >= limit => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(Errno::INTR) => continue,
            ready => {
                ready?;
            }
        }
        match out.read(&mut space) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(&space[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if bytes == READY.as_bytes() {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn readiness_is_told_from_an_error() {
        let said = |text: &str| {
            let (reader, mut writer) = io::pipe().unwrap();
            writer.write_all(text.as_bytes()).unwrap();
            drop(writer);
            read_until_ready(reader, START_TIMEOUT).unwrap()
        };
        assert_eq!(said("ready\n"), READY);
        assert_eq!(said("no network `x`"), "no network `x`");
    }

    #[test]
    fn one_that_says_nothing_is_not_waited_for_without_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"rea").unwrap();
        let limit = Duration::from_millis(50);
        let begun = Instant::now();
        let error = read_until_ready(reader, limit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= limit);
    }

    #[test]
    fn a_program_that_is_no_network_process_is_told() {
        let place = tempfile::tempdir().unwrap();
        let directories = Directories {
            config: place.path().join("c"),
            state: place.path().join("s"),
            runtime: place.path().join("r"),
        };
        let error = |program: &str| ensure(&directories, "cnet", Path::new(program)).unwrap_err();
        assert!(matches!(error("true"), StartError::Failed(_)));
        assert!(error("true").to_string().contains("without a word"));
        assert!(matches!(
            error("/no/such/program"),
            StartError::Program { .. }
        ));
        let error = ensure(&directories, "lan", Path::new("true")).unwrap_err();
        assert!(error.to_string().contains("`lan` was removed"), "{error}");
        assert!(!directories.network_runtime("lan").exists());
    }
}
