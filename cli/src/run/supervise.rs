//! Looking after the command while it runs.
//!
//! # Signals
//!
//! What a process sends to cnet is meant for the command, and is passed on. What the terminal
//! sends (^C, ^\, ^Z, a new window size, a hang-up) went to the command as well, because it is in
//! the same process group, and is not: a program that counts its SIGINTs would count two. What a
//! process of the command itself sends, most likely to its whole group, is passed on to no process.
//!
//! # Job control
//!
//! The shell that started cnet knows only cnet. When the command stops, whatever stopped it, cnet
//! stops itself, so that the shell takes its terminal back; when cnet is continued, so is the
//! command. Where there is no terminal, or no shell, nothing would continue cnet, and the network
//! goes on.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getpid, getsid};
use tokio::io::Interest;

use super::process::{self, exit_code};
use super::{init_messages, terminal};
use cnet_tap::async_fd::AsyncOwnedFd;
use cnet_tap::signal::{self, Received};

/// Looks after the command.
pub(super) struct Supervisor {
    /// The command, or the init whose child it is.
    command: Pid,
    /// What the init is talked with by, if there is one.
    init: Option<AsyncOwnedFd>,
    signals: AsyncOwnedFd,
    /// Whether a shell would notice, and undo, that we stop.
    job: bool,
    /// Whether a signal has asked cnet to end.
    end_was_asked: bool,
    /// This program's end of the command's own terminal, if it has one.
    terminal: Option<OwnedFd>,
}

/// What one signal meant.
enum Event {
    Ended(u8),
    /// A signal asks cnet to end.
    EndAsked,
}

impl Supervisor {
    /// For the process `command`, with the descriptor from [`super::signals::block`].
    pub(super) fn new(command: Pid, signals: OwnedFd) -> anyhow::Result<Supervisor> {
        let signals =
            AsyncOwnedFd::new(signals, Interest::READABLE).context("cannot wait for signals")?;
        let session_leader = getsid(None).is_ok_and(|session| session == getpid());
        let job = !session_leader && fs::File::open("/dev/tty").is_ok();
        Ok(Supervisor {
            command,
            init: None,
            signals,
            job,
            end_was_asked: false,
            terminal: None,
        })
    }

    /// Talks with the command's init from here on, if it has one.
    pub(super) fn talk_with(&mut self, init: Option<OwnedFd>) -> anyhow::Result<()> {
        let init = init.map(|init| AsyncOwnedFd::new(init, Interest::READABLE));
        self.init = init.transpose().context("cannot talk with the init")?;
        Ok(())
    }

    /// The command has a terminal of its own, and with it a session: the user's terminal sends its
    /// signals to cnet alone, and no shell continues what stops.
    pub(super) fn has_terminal(&mut self, master: OwnedFd) {
        self.terminal = Some(master);
        self.job = false;
    }

    /// Whether nothing of the command's is left once it has ended.
    pub(super) fn has_init(&self) -> bool {
        self.init.is_some()
    }

    /// Waits until the command has ended, and gives the exit code for it.
    pub(super) async fn wait(&mut self) -> anyhow::Result<u8> {
        loop {
            if let Event::Ended(code) = self.next().await? {
                return Ok(code);
            }
        }
    }

    /// Whether a signal has asked cnet to end so far.
    pub(super) fn end_was_asked(&self) -> bool {
        self.end_was_asked
    }

    /// Waits, after the command's end, until a signal asks cnet to end as well.
    pub(super) async fn end_asked(&mut self) {
        while let Ok(event) = self.next().await {
            if let Event::EndAsked = event {
                return;
            }
        }
    }

    async fn next(&mut self) -> anyhow::Result<Event> {
        loop {
            let received = tokio::select! {
                received = self.receive() => received.context("cannot read signals")?,
                () = self.stopped() => {
                    self.stop_as_well();
                    continue;
                }
            };
            if let Some(event) = self.handle(received)? {
                self.end_was_asked |= matches!(event, Event::EndAsked);
                return Ok(event);
            }
        }
    }

    async fn receive(&self) -> io::Result<Received> {
        loop {
            let mut ready = self.signals.ready().await?;
            match signal::next(self.signals.fd())? {
                Some(received) => return Ok(received),
                None => ready.clear_ready(),
            }
        }
    }

    /// Waits until the init tells that the command has stopped.
    async fn stopped(&self) {
        let Some(init) = &self.init else {
            return std::future::pending().await;
        };
        while let Ok(mut ready) = init.ready().await {
            match init_messages::has_stopped(init.fd()) {
                Ok(Some(true)) => return,
                Ok(Some(false)) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                // Its end is told by a signal as well.
                Ok(None) | Err(_) => break,
            }
        }
        std::future::pending().await
    }

    /// Sends the command a signal.
    fn pass_on(&self, number: i32) {
        match &self.init {
            Some(init) => init_messages::request_signal(init.fd(), number),
            // A command that is gone has no use for it.
            None => drop(signal::send(self.command, number)),
        }
    }

    fn handle(&self, received: Received) -> anyhow::Result<Option<Event>> {
        if received.is(Signal::CHILD) {
            return self.reap();
        }
        // We do not use the terminal.
        if received.is(Signal::TTIN) || received.is(Signal::TTOU) {
            return Ok(None);
        }
        if let (Some(master), true) = (&self.terminal, received.is(Signal::WINCH)) {
            terminal::resize(master);
            return Ok(None);
        }
        let from_inside = || {
            let sender = Pid::from_raw(received.sender.max(0));
            sender.is_some_and(|sender| sender == self.command || process::is_descendant(sender))
        };
        // The user's terminal has not sent it to a command that has another one.
        let is_ours_alone = received.by_process() || self.terminal.is_some();
        if is_ours_alone && !from_inside() {
            tracing::debug!(signal = received.number, "passed on to the command");
            self.pass_on(received.number);
        }
        let asking = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT];
        let ends = asking.iter().any(|signal| received.is(*signal));
        Ok(ends.then_some(Event::EndAsked))
    }

    /// Takes the news of all children; orphans of the command are among them.
    fn reap(&self) -> anyhow::Result<Option<Event>> {
        loop {
            let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
            match rustix::process::wait(options) {
                Ok(Some((pid, status))) if pid == self.command => {
                    if status.stopped() {
                        self.stop_as_well();
                    } else {
                        return Ok(Some(Event::Ended(exit_code(status))));
                    }
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) | Err(Errno::CHILD) => return Ok(None),
                Err(error) => return Err(error).context("cannot wait for the command"),
            }
        }
    }

    fn stop_as_well(&self) {
        if !self.job {
            return;
        }
        // Returns once the shell has continued us.
        let _ = rustix::process::kill_process(getpid(), Signal::STOP);
        self.pass_on(Signal::CONT.as_raw());
    }
}
