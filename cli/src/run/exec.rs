//! `cnet exec`: a further command in the namespaces of a container.
//!
//! A child enters all namespaces of the container's process that are not its own already, as nsenter(1)
//! does: user, network, mount, PID, UTS and IPC. Into a PID namespace a process comes by a fork alone, so
//! the child goes on as a child of its own there. The command ends with this program and with the
//! container.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use cnet_tap::fork::{Parent, become_subreaper, go_on_as_child, spawn};
use cnet_tap::watch;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use rustix::thread::LinkNameSpaceType;

use super::args::parse_env;
use super::command::{CommandPlan, become_command};
use super::joined::ProcessNamespaces;
use super::supervise::Supervisor;
use super::terminal::{Copied, Pty, Saved};
use super::{joined, signals};
use crate::log::{self, report};
use crate::program::{OWN_FAILURE, event_loop, tell};

/// The longest report of the child: an error's text.
const MAX_REPORT: usize = 4096;

/// The options of `cnet exec`.
#[derive(Args, Debug)]
#[command(after_help = "Exit status: as of `cnet run`.")]
pub struct ExecOptions {
    /// Let the command read standard input, as it does in any case; for those who type it.
    #[arg(short, long)]
    interactive: bool,

    /// Give the command a terminal of its own, if standard input is one.
    #[arg(short, long)]
    tty: bool,

    /// A variable for the command's environment, with its value, or without for the value that it has
    /// here; may be given several times.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", value_parser = parse_env)]
    env: Vec<(String, Option<String>)>,

    /// The directory that the command starts in.
    #[arg(short, long, value_name = "DIRECTORY")]
    workdir: Option<PathBuf>,

    /// The container: its name, the start of its id, or its process.
    #[arg(value_name = "NAME|PID")]
    container: String,

    /// The command and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

/// A container's namespaces, pinned by descriptor.
struct Inside {
    namespaces: ProcessNamespaces,
    has_pid_namespace: bool,
}

/// Runs the command, and gives its exit code.
pub(crate) fn main(options: &ExecOptions) -> ExitCode {
    log::start(tracing::Level::WARN);
    match exec(options) {
        Ok(code) => code.into(),
        Err(error) => {
            tell(&report(&error));
            OWN_FAILURE.into()
        }
    }
}

fn exec(options: &ExecOptions) -> anyhow::Result<u8> {
    // The runtime ends here: the child is forked by a process with one thread.
    let pid = event_loop()?.block_on(joined::process_of(&options.container))?;
    let inside = Inside::of_process(pid)?;
    let (signals, mask) = signals::block().context("cannot take over the signals")?;
    let saved = Saved::now();
    let pty = (options.tty && saved.is_terminal())
        .then(Pty::open)
        .transpose()?;
    let (master, slave) = pty.map(|pty| (pty.master, pty.slave)).unzip();
    let here = std::env::current_dir().ok();
    let plan = CommandPlan {
        words: &options.command,
        env: &options.env,
        // Entering a mount namespace leads to its root.
        workdir: options.workdir.as_deref().or(here.as_deref()),
        terminal: slave,
    };
    become_subreaper().context("cannot look after the command's children")?;
    let (child, socket) = spawn("cannot fork", |parent, socket| {
        match inside.enter(parent, &socket) {
            Ok(()) => {
                drop(socket);
                mask.restore();
                become_command(&plan)
            }
            Err(error) => {
                let text = report(&error);
                let text = &text.as_bytes()[..text.len().min(MAX_REPORT)];
                let _ = send(&socket, text, SendFlags::NOSIGNAL);
                OWN_FAILURE
            }
        }
    })?;
    drop(plan);
    let command = goes_on_as(child, &socket)?;
    let code = event_loop()?.block_on(attend(command, signals, master));
    if code.as_ref().is_ok_and(|code| *code > super::SIGNALLED) {
        saved.restore();
    }
    code
}

/// Looks after the command, which has this terminal.
async fn attend(command: Pid, signals: OwnedFd, master: Option<OwnedFd>) -> anyhow::Result<u8> {
    let mut supervisor = Supervisor::new(command, signals)?;
    let copied = master.as_ref().map(Copied::start).transpose()?;
    if let Some(master) = master {
        supervisor.has_terminal(master);
    }
    let code = supervisor.wait().await;
    if let Some(copied) = copied {
        copied.end();
    }
    code
}

/// The process that becomes the command, which the child tells by its number, or an error's text.
fn goes_on_as(child: Pid, socket: &OwnedFd) -> anyhow::Result<Pid> {
    let mut told = vec![0; MAX_REPORT];
    let heard = recv(socket, &mut told[..], RecvFlags::empty());
    let (_, length) = heard.context("cannot hear from the child")?;
    let number: Result<[u8; 4], _> = told[..length].try_into();
    let Ok(number) = number else {
        let _ = waitpid(Some(child), WaitOptions::empty());
        bail!("{}", String::from_utf8_lossy(&told[..length]));
    };
    let pid = Pid::from_raw(i32::from_ne_bytes(number)).context("no process is 0")?;
    if pid != child {
        // It ends at once. Our next child takes its place.
        let _ = waitpid(Some(child), WaitOptions::empty());
    }
    Ok(pid)
}

impl Inside {
    fn of_process(pid: i32) -> anyhow::Result<Inside> {
        let pidfd = watch::pidfd(pid)?;
        let kinds = [
            ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
            ("ipc", LinkNameSpaceType::InterProcessCommunication),
            ("pid", LinkNameSpaceType::ProcessID),
            // The last one: it leads away from this /proc.
            ("mnt", LinkNameSpaceType::Mount),
        ];
        let namespaces = ProcessNamespaces::open(pid, &kinds, "the container's namespaces")?;
        if watch::has_ended(&pidfd)? {
            bail!("the container has just ended");
        }
        Ok(Inside {
            has_pid_namespace: namespaces.has_other(LinkNameSpaceType::ProcessID),
            namespaces,
        })
    }

    /// Moves this process there, and tells which process the command is.
    fn enter(&self, parent: Parent, socket: &OwnedFd) -> anyhow::Result<()> {
        self.namespaces.enter()?;
        let told = |pid: Pid| {
            let number = pid.as_raw_nonzero().get().to_ne_bytes();
            let _ = send(socket, &number, SendFlags::NOSIGNAL);
        };
        match self.has_pid_namespace {
            true => go_on_as_child("cannot fork the command", told)?,
            false => {
                parent.die_together()?;
                told(getpid());
            }
        }
        Ok(())
    }
}
