//! `pasta`: connects a network namespace to the host's network, under the command line of passt's
//! `pasta`.
//!
//! # Theory of operation
//!
//! The order of steps is the contract with the caller:
//!
//! 1. The command line is read ([`args`]), and what the host has ([`plan`]).
//! 2. The namespace is pinned, or made for a command ([`command`]).
//! 3. The network's process is forked, unless it is this one (`--foreground`). It opens the TAP,
//!    enters the sandbox and opens the ports ([`serve`]).
//! 4. Once it is ready it lets go of the terminal and of standard output and error. This process
//!    then writes the PID file and exits with 0, or, with a command, waits for its end.
//!
//! # How it ends
//!
//! With its namespace: when the process ends, or the path is removed or stands for another file; and
//! on SIGTERM and SIGINT. With a command it ends when the command does, with its exit code.
//!
//! # Limits
//!
//! As with `cnet-slirp`: a namespace named by a path is noticed to be gone when the path is.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::{Context, bail};
use cnet::log::Bounded;
use cnet_tap::Namespaces;
use cnet_tap::fork::spawn;
use cnet_tap::netif::host_link::HostLinks;
use rustix::process::Pid;
use tracing::Level;

use crate::log::{self, report};
use crate::program::{write_err, write_out};
use crate::target::Target;

mod args;
mod capture;
mod command;
mod control;
mod forwards;
mod outwards;
mod plan;
mod policy;
pub(crate) mod ports;
mod serve;
pub(crate) mod wire;

use args::{ArgsError, Invocation, Options};
use plan::Plan;

/// The first byte of what the network's process says: it is ready, or why it is not.
const READY: u8 = b'r';
const FAILED: u8 = b'f';

/// The longest message: an error's text.
const MAX_MESSAGE: usize = 16 * 1024;

/// The program: reads the command line, whose first word is the name that it was called by, and tells
/// the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_else(|| "pasta".into());
    let program = program.to_string_lossy();
    match args::parse(args) {
        Ok(Invocation::Help) => {
            let _ = write_out(args::usage(&program));
            ExitCode::SUCCESS
        }
        Ok(Invocation::Version) => {
            let _ = write_out(version());
            ExitCode::SUCCESS
        }
        Ok(Invocation::Run(options)) => match run(&options) {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                write_err(&format!("{program}: {}\n", report(&error)));
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            write_err(&format!("{program}: {error}\n"));
            if let ArgsError::Syntax(_) = error {
                write_err(&args::usage(&program));
            }
            ExitCode::FAILURE
        }
    }
}

fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("CNET_COMMIT").unwrap_or("unknown");
    format!("pasta of cnet {version}\ncommit: {commit}\n")
}

/// Files that are opened before anything else, so that a mistake is told at once.
struct Files {
    pid: Option<File>,
    log: Option<Bounded>,
}

impl Files {
    fn open(options: &Options) -> anyhow::Result<Files> {
        let create = |path| {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .open(path);
            file.with_context(|| format!("cannot write {}", std::path::Path::display(path)))
        };
        let log = options.logging.file.as_deref().map(|path| {
            let opened = Bounded::open(path);
            let opened = opened.with_context(|| format!("cannot write {}", path.display()));
            opened.map(|log| match options.logging.size {
                Some(size) => log.with_max_size(size),
                None => log,
            })
        });
        Ok(Files {
            pid: options.pid_file.as_deref().map(create).transpose()?,
            log: log.transpose()?,
        })
    }
}

/// Tells the process's ID where it was asked for.
fn write_pid(file: Option<File>, pid: Pid) -> anyhow::Result<()> {
    let Some(mut file) = file else { return Ok(()) };
    writeln!(file, "{}", pid.as_raw_nonzero()).context("cannot write the PID file")
}

fn run(options: &Options) -> anyhow::Result<u8> {
    let mut files = Files::open(options)?;
    start_log(options, files.log.take());
    let host = HostLinks::read().context("cannot ask for the host's addresses and routes")?;
    let plan = plan::make(options, &host)?;
    if options.run_as.is_some() {
        tracing::warn!(
            "--runas changes nothing: the process is in a user namespace of its own, without a capability"
        );
    }
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    match &options.target {
        args::Target::Command(words) => {
            let waiting = command::start(words)?;
            let target = Target::pin_process(waiting.pid(), None)?;
            let network = Started::fork(options, &plan, target)?;
            network.ready()?;
            write_pid(files.pid.take(), network.pid)?;
            waiting.go()
        }
        args::Target::Process(pid) => {
            let target = Target::pin_process(*pid, options.userns.as_deref())?;
            serve_target(options, plan, target, files.pid.take())
        }
        args::Target::Path(path) => {
            let target = Target::pin_path(path, options.userns.as_deref())?;
            serve_target(options, plan, target, files.pid.take())
        }
    }
}

fn start_log(options: &Options, file: Option<Bounded>) {
    let logging = &options.logging;
    let is_command = matches!(options.target, args::Target::Command(_));
    let level = match (logging.trace, logging.debug) {
        (true, _) => Level::TRACE,
        (false, true) => Level::DEBUG,
        (false, false) if logging.quiet => Level::ERROR,
        (false, false) if is_command || file.is_none() => Level::WARN,
        (false, false) => Level::INFO,
    };
    match (options.foreground, file) {
        (_, Some(file)) => log::start_at(level, Some(file)),
        (true, None) => log::start(level),
        (false, None) => log::start_for_now(level),
    }
}

/// Serves a namespace that is there, in this process or in one in the background.
fn serve_target(
    options: &Options,
    plan: Plan,
    target: (Target, Namespaces),
    pid_file: Option<File>,
) -> anyhow::Result<u8> {
    if options.foreground {
        let ready = || write_pid(pid_file, rustix::process::getpid());
        serve::run(options, plan, target, ready)?;
        return Ok(0);
    }
    let network = Started::fork(options, &plan, target)?;
    network.ready()?;
    write_pid(pid_file, network.pid)?;
    Ok(0)
}

/// The network's process, forked.
struct Started {
    pid: Pid,
    socket: OwnedFd,
}

impl Started {
    fn fork(
        options: &Options,
        plan: &Plan,
        target: (Target, Namespaces),
    ) -> anyhow::Result<Started> {
        let with_command = matches!(options.target, args::Target::Command(_));
        let mut target = Some(target);
        let (pid, socket) = spawn("cannot fork the network's process", |parent, socket| {
            let Some(target) = target.take() else {
                return 1;
            };
            let served = (match with_command {
                true => parent.die_together().map_err(Into::into),
                false => leave(),
            })
            .and_then(|()| {
                let ready = || {
                    say(&socket, &[READY])?;
                    if !with_command {
                        log::let_go();
                    }
                    Ok(())
                };
                serve::run(options, plan.clone(), target, ready)
            });
            match served {
                Ok(()) => 0,
                Err(error) => {
                    // Where the network was ready already, nothing waits for this.
                    let text = report(&error);
                    let cut = text.len().min(MAX_MESSAGE - 1);
                    let _ = say(&socket, &[&[FAILED], &text.as_bytes()[..cut]].concat());
                    1
                }
            }
        })?;
        Ok(Started { pid, socket })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    ///
    /// The reason why it is not.
    fn ready(&self) -> anyhow::Result<()> {
        let mut said = vec![0; MAX_MESSAGE];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut *said))
            .context("cannot hear from the network's process")?;
        match said[..length].split_first() {
            Some((&READY, _)) => Ok(()),
            Some((_, text)) => bail!("{}", String::from_utf8_lossy(text)),
            None => bail!("the network's process ended before it was ready"),
        }
    }
}

fn say(socket: &OwnedFd, message: &[u8]) -> anyhow::Result<()> {
    rustix::io::retry_on_intr(|| rustix::io::write(socket, message))
        .context("the process that waits for the network is gone")?;
    Ok(())
}

/// Leaves the terminal and the caller's descriptors, which a caller may read to their end.
fn leave() -> anyhow::Result<()> {
    // Fails for the leader of a process group, which a child is not.
    let _ = rustix::process::setsid();
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
