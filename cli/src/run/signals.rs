//! Which signals `cnet run` reads instead of being ended by them: all that can be caught.
//!
//! They are read from a signalfd(2). SIGTTIN and SIGTTOU are among them so that they do not stop us when
//! the command has given the terminal to a process group of its own. SIGPIPE is not: it is ignored, and
//! is of our own doing.

use std::io;
use std::os::fd::OwnedFd;

use cnet_tap::signal::{self, Mask};
use rustix::process::Signal;

/// Blocks the signals, and gives the descriptor they are read from and the mask that was in force.
///
/// SIGCHLD gets its default back first: where it is ignored, the kernel keeps no exit status.
pub(super) fn block() -> io::Result<(OwnedFd, Mask)> {
    signal::restore_default(Signal::CHILD);
    signal::block_all()
}
