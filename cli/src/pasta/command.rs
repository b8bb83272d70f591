//! The command, or the shell, that is run in new namespaces.
//!
//! # Theory of operation
//!
//! Two processes. The outer one makes the user, network, mount and UTS namespaces, in which the user is
//! root, and waits there while its network is made. Then it forks the command as the first process of
//! a PID namespace with a /proc of its own, waits for it and ends with its exit code.
//!
//! # Invariants
//!
//! - When this program is killed, the outer process dies, and the command with it.

use std::ffi::OsString;
use std::os::fd::OwnedFd;

use anyhow::{Context, bail};
use cnet_tap::fork::{Parent, fork, spawn};
use cnet_tap::namespace::{NewNamespaces, unshare};
use cnet_tap::signal;
use rustix::process::{Pid, Signal, WaitOptions, waitpid};

use crate::log::report;
use crate::program::{OWN_FAILURE, tell};
use crate::run::command::{self as run_command, CommandPlan};
use crate::run::id_maps::IdMaps;
use crate::run::{child, mounts, process::exit_code};

/// The variable that names the user's shell, and the shell without it.
const SHELL: (&str, &str) = ("SHELL", "/bin/sh");

/// The first port of a network namespace that needs no capability (ip(7)).
const UNPRIVILEGED_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// The messages of the two processes: it is there, it may go on.
const MADE: u8 = b'm';
const GO: u8 = b'g';

/// The outer process, in its namespaces.
pub(super) struct Waiting {
    pid: Pid,
    socket: OwnedFd,
}

/// Makes namespaces for the command, which waits.
///
/// # Errors
///
/// When the host forbids such namespaces, with what to do about it.
pub(super) fn start(words: &[OsString]) -> anyhow::Result<Waiting> {
    // Ended by nothing that is meant for the command: the terminal tells both.
    let (pid, socket) = spawn("cannot fork the command", |parent, socket| {
        live(words, parent, &socket).unwrap_or_else(|error| {
            tell(&report(&error));
            1
        })
    })?;
    let mut said = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(&socket, &mut said)) {
        Ok(1) if said == [MADE] => Ok(Waiting { pid, socket }),
        // It has told why.
        _ => bail!("the command has no namespaces"),
    }
}

impl Waiting {
    /// Its number.
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Lets the command go on, waits for its end and gives its exit code.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub(super) fn go(self) -> anyhow::Result<u8> {
        for of_terminal in [Signal::INT, Signal::QUIT] {
            signal::ignore(of_terminal);
        }
        let sent = rustix::io::retry_on_intr(|| rustix::io::write(&self.socket, &[GO]));
        sent.context("the command is gone")?;
        wait(self.pid)
    }
}

fn wait(pid: Pid) -> anyhow::Result<u8> {
    let status = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
    let (_, status) = status
        .context("cannot wait for the command")?
        .context("it goes on")?;
    Ok(exit_code(status))
}

/// The outer process's life; the command's, once it is that.
fn live(words: &[OsString], parent: Parent, socket: &OwnedFd) -> anyhow::Result<u8> {
    parent.die_together()?;
    child::enter_namespaces(true, &IdMaps::root_alone())?;
    // The change of credentials has cleared the request (`commit_creds` in kernel/cred.c).
    parent.die_together()?;
    mounts::separate()?;
    child::allow_ping();
    // The network's process opens ports of the loopback here (`-T`, `-U`) without any capability.
    let opened = std::fs::write(UNPRIVILEGED_PORTS, "0");
    if let Err(error) = opened {
        tracing::info!(%error, "low ports of the host's loopback are left out");
    }
    rustix::io::retry_on_intr(|| rustix::io::write(socket, &[MADE]))?;
    let mut said = [0];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut said));
    if read != Ok(1) || said != [GO] {
        return Ok(OWN_FAILURE);
    }
    let new = NewNamespaces {
        pid: true,
        ..NewNamespaces::default()
    };
    let with_processes = unshare(new).is_ok();
    match fork("cannot fork the command")? {
        None => {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if with_processes && let Err(error) = mounts::proc() {
                tracing::info!("the command sees the host's /proc: {}", report(&error));
            }
            Ok(run_command::become_command(&CommandPlan::of(&command(
                words,
            ))))
        }
        Some(command) => {
            for of_terminal in [Signal::INT, Signal::QUIT] {
                signal::ignore(of_terminal);
            }
            wait(command)
        }
    }
}

/// The command, or the shell.
fn command(words: &[OsString]) -> Vec<OsString> {
    if !words.is_empty() {
        return words.to_vec();
    }
    let (variable, otherwise) = SHELL;
    let shell = std::env::var_os(variable).filter(|shell| !shell.is_empty());
    vec![shell.unwrap_or_else(|| otherwise.into())]
}
