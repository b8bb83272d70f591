//! The terminal: one of the command's own for `-t`, and the user's left as it was.
//!
//! # Theory of operation
//!
//! For `-t` the command gets a pseudo-terminal (pty(7)) as its controlling terminal, in a session of
//! its own. The user's terminal is raw meanwhile: what is typed, ^C among it, is copied to the
//! pseudo-terminal, whose line discipline makes signals of it, and what the command writes is copied
//! back, by a thread each way. Without `-t` the command has the user's terminal itself, and nothing is
//! copied.
//!
//! A command that is killed leaves the terminal as it had set it. It is set back then, as shells do; a
//! command that ends by itself is left to what it meant (`stty -echo`).
//!
//! # Limits
//!
//! The thread that reads what is typed is not waited for: it may wait for ever.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{self, OptionalActions, Termios};

/// How long output is waited for after the command's end, where a process that it has left behind keeps
/// its terminal open.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How much is copied at a time.
const COPIED: usize = 16 * 1024;

/// The user's terminal on standard input, as it was.
pub(super) struct Saved(Option<Termios>);

impl Saved {
    pub(super) fn now() -> Saved {
        Saved(termios::tcgetattr(io::stdin()).ok())
    }

    /// Whether there is one.
    pub(super) fn is_terminal(&self) -> bool {
        self.0.is_some()
    }

    /// Sets it back.
    pub(super) fn restore(&self) {
        if let Some(settings) = &self.0 {
            // A terminal that is gone needs nothing.
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, settings);
        }
    }

    /// Makes the terminal raw, as cfmakeraw(3).
    fn make_raw(&self) {
        if let Some(mut settings) = self.0.clone() {
            settings.make_raw();
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &settings);
        }
    }
}

/// A pseudo-terminal: this program's end of it, and the command's.
pub(super) struct Pty {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

impl Pty {
    /// # Errors
    ///
    /// Where /dev/pts is not mounted, or at the limit of /proc/sys/kernel/pty/max.
    pub(super) fn open() -> anyhow::Result<Pty> {
        let made = || -> rustix::io::Result<Pty> {
            let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            grantpt(&master)?;
            unlockpt(&master)?;
            let path = ptsname(&master, Vec::new())?;
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let slave = rustix::fs::open(path, flags, Mode::empty())?;
            Ok(Pty { master, slave })
        };
        let pty = made().context("cannot make a pseudo-terminal for --tty")?;
        resize(&pty.master);
        Ok(pty)
    }
}

/// In the command's process: makes the terminal its own, and its standard streams.
///
/// # Errors
///
/// As setsid(2), for the leader of a process group, and as TIOCSCTTY (ioctl_tty(2)).
pub(super) fn take(slave: &OwnedFd) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::ioctl_tiocsctty(slave)?;
    rustix::stdio::dup2_stdin(slave)?;
    rustix::stdio::dup2_stdout(slave)?;
    rustix::stdio::dup2_stderr(slave)?;
    Ok(())
}

/// Gives the pseudo-terminal the size of the user's terminal.
pub(super) fn resize(master: impl AsFd) {
    if let Ok(size) = termios::tcgetwinsize(io::stdin()) {
        let _ = termios::tcsetwinsize(master, size);
    }
}

/// What is copied between the user's terminal and the command's.
pub(super) struct Copied {
    saved: Saved,
    written: mpsc::Receiver<()>,
}

impl Copied {
    /// Begins to copy.
    ///
    /// # Errors
    ///
    /// At a limit of threads or descriptors.
    pub(super) fn start(master: &OwnedFd) -> anyhow::Result<Copied> {
        let clone = || master.try_clone().map(File::from);
        let (mut from, mut to) = (clone()?, clone()?);
        let saved = Saved::now();
        saved.make_raw();
        let (done, written) = mpsc::channel();
        let output = move || {
            // Where the command's end is closed, there is an error, EIO.
            copy(&mut from, &mut io::stdout());
            let _ = done.send(());
        };
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(output)?;
        if saved.is_terminal() {
            let typed = move || copy(&mut io::stdin(), &mut to);
            std::thread::Builder::new()
                .name("input".to_owned())
                .spawn(typed)?;
        }
        Ok(Copied { saved, written })
    }

    /// Waits until all that the command has written is copied, and sets the terminal back.
    pub(super) fn end(self) {
        let _ = self.written.recv_timeout(OUTPUT_TIMEOUT);
        self.saved.restore();
    }
}

/// Copies until one side ends.
fn copy(from: &mut impl Read, to: &mut impl Write) {
    let mut bytes = vec![0; COPIED];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return,
            Ok(length) => {
                if to
                    .write_all(&bytes[..length])
                    .and_then(|()| to.flush())
                    .is_err()
                {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
