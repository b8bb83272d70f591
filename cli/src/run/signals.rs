//! Which signals `cnet run` reads instead of being ended by them.

use std::io;
use std::os::fd::OwnedFd;

use cnet_tap::signal::{self, Mask};
use rustix::process::Signal;

/// What is read from a signalfd(2) instead of being acted upon by the kernel.
///
/// SIGKILL and SIGSTOP cannot be. Of the others, SIGTTIN and SIGTTOU are here so that they do not
/// stop us when the command has given the terminal to a process group of its own; those that tell
/// of errors in the program itself are not here, nor is SIGPIPE, which is ignored.
const SIGNALS: [Signal; 13] = [
    Signal::CHILD,
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::WINCH,
    Signal::CONT,
    Signal::TSTP,
    Signal::TTIN,
    Signal::TTOU,
];

/// Blocks the signals, and gives the descriptor they are read from and the mask that was in force.
///
/// SIGCHLD gets its default back first: where it is ignored, the kernel keeps no exit status.
pub(super) fn block() -> io::Result<(OwnedFd, Mask)> {
    signal::restore_default(Signal::CHILD);
    signal::block(&SIGNALS)
}
