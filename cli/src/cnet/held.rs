//! `cnet stop`, `kill`, `logs` and `rm`: the containers that `cnet run` holds.
//!
//! A container that was attached is another program's, which ends it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use cnet::definition::Directories;
use cnet_tap::{signal, watch};
use rustix::process::{Pid, Signal};
use tokio::io::Interest;
use tokio::time::{Instant, sleep, timeout};

use super::container::{held, meant};
use super::ps::entries;
use crate::program::all_of;
use cnet_netd::registry::{Registry, Running};
use cnet_tap::async_fd::AsyncOwnedFd;

/// How often a log that is followed is looked at.
const LOG_INTERVAL: Duration = Duration::from_millis(100);

/// How long a container may take to die of SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the networks of a container that has ended may take to let go of it, and how long between
/// two looks.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
const LEAVE_INTERVAL: Duration = Duration::from_millis(10);

/// The options of `cnet stop`.
#[derive(Args, Debug)]
pub(crate) struct StopOptions {
    /// Seconds before what has not ended is killed.
    #[arg(
        short = 't',
        long = "time",
        alias = "timeout",
        value_name = "SECONDS",
        default_value_t = 10
    )]
    seconds: u64,

    /// The signal to send first.
    #[arg(short, long, default_value = "TERM", value_parser = parse_signal)]
    signal: i32,

    /// The containers: their names, their ids or the starts of them, or their processes.
    #[arg(required = true, value_name = "NAME|PID")]
    containers: Vec<String>,
}

/// The options of `cnet kill`.
#[derive(Args, Debug)]
pub(crate) struct KillOptions {
    /// The signal to send, such as HUP, SIGRTMIN+3 or 9.
    #[arg(short, long, default_value = "KILL", value_parser = parse_signal)]
    signal: i32,

    /// The containers: their names, their ids or the starts of them, or their processes.
    #[arg(required = true, value_name = "NAME|PID")]
    containers: Vec<String>,
}

/// The options of `cnet logs`.
#[derive(Args, Debug)]
pub(crate) struct LogsOptions {
    /// Go on with what is written, until the container ends.
    #[arg(short, long)]
    follow: bool,

    /// The last lines alone.
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,

    /// The container: its name, or the start of its id.
    #[arg(value_name = "NAME")]
    container: String,
}

/// The options of `cnet rm`.
#[derive(Args, Debug)]
pub(crate) struct RemoveOptions {
    /// Kill what runs.
    #[arg(short, long)]
    force: bool,

    /// The containers, by name.
    #[arg(required = true, value_name = "NAME")]
    containers: Vec<String>,
}

fn parse_signal(text: &str) -> Result<i32, String> {
    signal::parse(text).ok_or_else(|| "it is a signal, such as TERM, SIGRTMIN+3 or 9".to_owned())
}

/// Ends containers, and prints their names.
pub(super) async fn stop(options: StopOptions) -> anyhow::Result<()> {
    let limit = Duration::from_secs(options.seconds);
    let mut results = Vec::new();
    for container in &options.containers {
        results.push(end(container, options.signal, limit).await);
    }
    all_of(results)
}

/// Sends a signal, and after `limit` SIGKILL.
async fn end(container: &str, number: i32, limit: Duration) -> anyhow::Result<()> {
    let running = held_by_run(container).await?;
    let pidfd = watch::pidfd(running.pid)?;
    send(&running, number)?;
    if !ends_within(pidfd, limit).await? {
        let pidfd = watch::pidfd(running.pid)?;
        send(&running, Signal::KILL.as_raw())?;
        if !ends_within(pidfd, KILL_TIMEOUT).await? {
            bail!("`{container}` does not end");
        }
    }
    wait_until_left(&running).await;
    super::print(&format!("{container}\n")).map(drop)
}

/// Waits until no network lists the container any more, so that its name, its ports and its network are
/// free once it was stopped.
async fn wait_until_left(running: &Running) {
    let begun = Instant::now();
    while begun.elapsed() < LEAVE_TIMEOUT {
        // A network that cannot be asked is not waited for.
        let Ok((all, _)) = entries(None).await else {
            return;
        };
        if !all.iter().any(|e| e.container.pid == Some(running.pid)) {
            return;
        }
        sleep(LEAVE_INTERVAL).await;
    }
}

async fn ends_within(pidfd: std::os::fd::OwnedFd, limit: Duration) -> anyhow::Result<bool> {
    let watched = AsyncOwnedFd::new(pidfd, Interest::READABLE)?;
    let ended = timeout(limit, async { watched.ready().await.map(drop) }).await;
    Ok(ended.is_ok())
}

/// Sends a signal to the command of a container: `cnet run` and its init pass it on.
fn send(running: &Running, number: i32) -> anyhow::Result<()> {
    let pid = Pid::from_raw(running.pid).context("no process is 0")?;
    signal::send(pid, number).with_context(|| format!("`{}`", running.name))
}

/// Sends a signal to containers, and prints their names.
pub(super) async fn kill(options: KillOptions) -> anyhow::Result<()> {
    let mut results = Vec::new();
    for container in &options.containers {
        let sent = match held_by_run(container).await {
            Ok(running) => send(&running, options.signal),
            Err(error) => Err(error),
        };
        results.push(sent.and_then(|()| super::print(&format!("{container}\n")).map(drop)));
    }
    all_of(results)
}

/// The container, which `cnet run` holds.
async fn held_by_run(container: &str) -> anyhow::Result<Running> {
    if let Some(running) = held(container) {
        return Ok(running);
    }
    let found = meant(None, container).await?;
    let pid = found.iter().find_map(|entry| entry.container.pid);
    Err(match pid {
        Some(pid) => anyhow!(
            "`{container}` was attached, and is another program's to end: it is process {pid}; `cnet detach {container}` takes it off its networks"
        ),
        None => anyhow!(
            "`{container}` has no process; `cnet detach {container}` takes it off its networks"
        ),
    })
}

/// Prints the log of a container.
pub(super) async fn logs(options: LogsOptions) -> anyhow::Result<()> {
    let registry = Registry::new(&Directories::of_this_user()?);
    let ended = registry.ended().into_iter().map(|ended| ended.was);
    let found = held(&options.container).or_else(|| {
        let mut ended = ended;
        ended.find(|was| was.name == options.container || was.is_meant_by(&options.container))
    });
    let name = match found {
        Some(running) if !running.detached => bail!(
            "`{}` runs in the foreground, and its output is there; `cnet run -d` keeps it",
            running.name
        ),
        Some(running) => running.name,
        // It has ended a moment ago, and that is not written down yet.
        None if registry.log(&options.container).exists() => options.container.clone(),
        None => bail!(
            "there is no container `{0}` in the background, nor was there one; `cnet ps -a` lists them",
            options.container
        ),
    };
    let path = registry.log(&name);
    let mut log = File::open(&path).with_context(|| path.display().to_string())?;
    if let Some(lines) = options.tail {
        let start = start_of_last(&mut log, lines)?;
        log.seek(SeekFrom::Start(start))?;
    }
    loop {
        // Looked at first: what it has written before its end is read then.
        let runs = registry.find(&name).is_some();
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)?;
        if !super::print_bytes(&bytes)? || !options.follow || !runs {
            return Ok(());
        }
        sleep(LOG_INTERVAL).await;
    }
}

/// Where the last so many lines begin.
fn start_of_last(log: &mut File, lines: usize) -> anyhow::Result<u64> {
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let ends = text
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n');
    let start = match lines {
        0 => bytes.len(),
        _ => ends.map(|(at, _)| at + 1).nth(lines - 1).unwrap_or(0),
    };
    Ok(start as u64)
}

/// Forgets containers that have ended, and prints their names.
pub(super) async fn remove(options: RemoveOptions) -> anyhow::Result<()> {
    let registry = Registry::new(&Directories::of_this_user()?);
    let mut results = Vec::new();
    for name in &options.containers {
        results.push(remove_one(&registry, name, options.force).await);
    }
    all_of(results)
}

async fn remove_one(registry: &Registry, name: &str, force: bool) -> anyhow::Result<()> {
    if let Some(running) = registry.find(name) {
        if !force {
            bail!("`{name}` runs; `cnet stop {name}` ends it, and --force kills it");
        }
        let pidfd = watch::pidfd(running.pid)?;
        send(&running, Signal::KILL.as_raw())?;
        ends_within(pidfd, KILL_TIMEOUT).await?;
        // What holds it writes down that it has ended.
        let begun = Instant::now();
        let is_there = || {
            let ended = registry.ended();
            let written = ended.iter().any(|ended| ended.was.id == running.id);
            registry.find(name).is_some() || running.detached && !written
        };
        while is_there() && begun.elapsed() < KILL_TIMEOUT {
            sleep(LOG_INTERVAL / 10).await;
        }
        registry.forget(name);
    } else if !registry.forget(name) {
        bail!("there is no container `{name}` that has ended; `cnet ps -a` lists them");
    }
    super::print(&format!("{name}\n")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_begin_where_they_do() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        let from = |lines| start_of_last(&mut File::open(&path).unwrap(), lines).unwrap();
        assert_eq!([0, 1, 2, 3, 9].map(from), [14, 8, 4, 0, 0]);
    }
}
