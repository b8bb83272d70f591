//! Signals as messages, with what the kernel knows of their origin.
//!
//! Our signals are blocked, in this thread and in all that it starts, and read from a signalfd(2).
//! That tells what a handler could hardly: whether the terminal sent the signal, in which case the
//! command has got it too, or a process did, in which case it has not.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// What is read instead of being acted upon by the kernel.
///
/// SIGKILL and SIGSTOP cannot be. Of the others, SIGTTIN and SIGTTOU are here so that they do not
/// stop us when the command has given the terminal to a process group of its own; those that tell
/// of errors in the program itself are not here, nor is SIGPIPE, which is ignored.
const SIGNALS: [libc::c_int; 13] = [
    libc::SIGCHLD,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGWINCH,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// Bytes of `struct signalfd_siginfo` (signalfd(2)).
const INFO_LEN: usize = 128;

/// One signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Received {
    /// Its number.
    pub(super) signal: i32,
    /// `si_code`: where it comes from.
    code: i32,
    /// Who sent it, where a process did.
    pub(super) sender: i32,
}

impl Received {
    /// Whether a process sent it, by kill(2), tgkill(2) or sigqueue(3); their codes are not
    /// positive (sigaction(2)). The kernel's own, such as those of the terminal, are.
    pub(super) fn by_process(&self) -> bool {
        self.code <= 0
    }
}

/// The signals that a thread had blocked.
#[derive(Clone, Copy)]
pub(super) struct Mask(libc::sigset_t);

impl Mask {
    /// Blocks these signals, and no others, in this thread. What came meanwhile is delivered.
    pub(super) fn restore(&self) {
        // SAFETY: the set was filled in by pthread_sigmask, the pointer lives through the call, and
        // no old mask is asked for. It fails for an unknown `how` alone.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// Blocks the signals, and gives the descriptor they are read from and the mask that was in force:
/// a program started with ours would never hear of ^C.
pub(super) fn block() -> io::Result<(OwnedFd, Mask)> {
    // SAFETY: sigset_t is plain C data, for which zeros are a value and which sigemptyset makes a
    // valid set; the pointers are to two such sets and live through the calls. The descriptor that
    // signalfd returns is new, so nobody else owns it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in SIGNALS {
            libc::sigaddset(&mut set, signal);
        }
        let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut old);
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok((OwnedFd::from_raw_fd(fd), Mask(old))),
        }
    }
}

/// The next signal, if one waits.
pub(super) fn next(fd: &impl AsRawFd) -> io::Result<Option<Received>> {
    let mut info = [0; INFO_LEN];
    // SAFETY: the descriptor is borrowed from its owner, so open, and read(2) writes no more than
    // the buffer's length into the buffer.
    let length = unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), INFO_LEN) };
    if length < 0 {
        let error = io::Error::last_os_error();
        return match Errno::from_io_error(&error) {
            Some(Errno::AGAIN | Errno::INTR) => Ok(None),
            _ => Err(error),
        };
    }
    Ok(parse(&info))
}

/// `ssi_signo`, `ssi_errno`, `ssi_code` and `ssi_pid` stand in front, 32 bits each.
fn parse(info: &[u8]) -> Option<Received> {
    let word = |at: usize| -> Option<i32> {
        let bytes = info.get(at..at + 4)?;
        Some(i32::from_ne_bytes(bytes.try_into().ok()?))
    };
    Some(Received {
        signal: word(0)?,
        code: word(8)?,
        sender: word(12)?,
    })
}

/// Sends `signal` to the process `pid`. A process that is gone has no use for it.
pub(super) fn send(pid: rustix::process::Pid, signal: i32) {
    // SAFETY: kill(2) takes two numbers and no pointer; the pid is a positive one.
    let _ = unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_is_told() {
        // On a thread of its own, which the mask ends with.
        std::thread::spawn(|| {
            let (fd, old) = block().unwrap();
            assert_eq!(next(&fd).unwrap(), None);
            // SAFETY: both functions take plain values; the thread is this one.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
            let received = next(&fd).unwrap().unwrap();
            assert_eq!(received.signal, libc::SIGUSR1);
            assert_eq!(received.sender, std::process::id() as i32);
            assert!(received.by_process());
            assert_eq!(next(&fd).unwrap(), None);
            old.restore();
            // SAFETY: as above. SIGWINCH is ignored by default, and no longer kept for the reader.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGWINCH) };
            assert_eq!(next(&fd).unwrap(), None);
        })
        .join()
        .unwrap();
        let terminal = Received {
            signal: libc::SIGINT,
            code: 0x80,
            sender: 0,
        };
        assert!(!terminal.by_process(), "SI_KERNEL");
    }
}
