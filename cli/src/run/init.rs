//! The init of the command's PID namespace: process 1, whose child the command is.
//!
//! # Theory of operation
//!
//! When the first process of a PID namespace ends, the kernel kills all others in it
//! (pid_namespaces(7)). So nothing of the command outlives this process, and this process ends with
//! the program that started it: the kernel kills it then, and its socket is closed. It reaps what the
//! command leaves behind, ends when the command does, with the command's exit status, and tells when
//! the command stops.
//!
//! # Signals
//!
//! What the program passes on comes over the socket. What a process outside sends to this one, which
//! `cnet ps` shows, is passed on to the command. What the terminal sends went to the command as well,
//! and what the command's own processes send to the first one is for no process.
//!
//! # Invariants
//!
//! - It has given up its capabilities and nearly all system calls ([`cnet_tap::sandbox::Role::Init`]),
//!   after the command was forked: the command has what it had.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context;
use cnet_tap::fork::fork;
use cnet_tap::sandbox;
use cnet_tap::signal::{self, Received};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

use super::init_messages::{next_signal, tell_stopped};
use super::process::exit_code;
use super::signals;
use crate::program::OWN_FAILURE;

/// What `ps` shows of it.
const TITLE: &str = "cnet: init";

/// Starts the command and lives until its end; gives the exit status. In the child that is the
/// command, what it gives if there is no such program.
pub(super) fn live(
    socket: BorrowedFd<'_>,
    become_command: impl FnOnce() -> u8,
) -> anyhow::Result<u8> {
    let (signals, _) = signals::block().context("cannot take over the signals")?;
    let Some(command) = fork("cannot fork the command")? else {
        return Ok(become_command());
    };
    sandbox::confine_init(TITLE, &[signals.as_fd(), socket]);
    Ok(wait(command, &signals, socket))
}

/// Waits for the command's end.
fn wait(command: Pid, signals: &OwnedFd, socket: BorrowedFd<'_>) -> u8 {
    loop {
        // First: the command may have ended already.
        while let Ok(Some(received)) = signal::next(signals) {
            if is_for_command(received) {
                pass_on(command, received.number);
            }
        }
        if let Some(status) = reap(command, socket) {
            return status;
        }
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(&socket, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return OWN_FAILURE,
            Ok(_) => {}
        }
        if !fds[1].revents().is_empty() {
            match next_signal(socket) {
                Some(signal) => pass_on(command, signal),
                // The program has ended.
                None => return OWN_FAILURE,
            }
        }
    }
}

/// Whether a process outside has sent it: one inside has a number here.
fn is_for_command(received: Received) -> bool {
    let kept = [Signal::CHILD, Signal::TTIN, Signal::TTOU];
    let is_passed = !kept.iter().any(|signal| received.is(*signal));
    is_passed && received.by_process() && received.sender == 0
}

fn pass_on(command: Pid, number: i32) {
    // A command that is gone has no use for it. It was not reaped, so the number is its own.
    let _ = signal::send(command, number);
}

/// Takes the news of all children; gives the exit status once the command has ended.
fn reap(command: Pid, socket: BorrowedFd<'_>) -> Option<u8> {
    let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
    loop {
        match rustix::process::wait(options) {
            Ok(Some((pid, status))) if pid == command => {
                if !status.stopped() {
                    return Some(exit_code(status));
                }
                tell_stopped(socket);
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}
