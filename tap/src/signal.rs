//! Signals as messages, with what the kernel knows of their origin.
//!
//! The caller's signals are blocked, in this thread and in all that it starts, and read from a
//! signalfd(2). That tells what a handler could hardly: whether the terminal sent the signal, in
//! which case every process of the foreground group has it too, or a process did.
//!
//! Source: signalfd(2), sigaction(2), pthread_sigmask(3).

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

/// Bytes of `struct signalfd_siginfo` (signalfd(2)).
const INFO_LEN: usize = 128;

/// One signal, as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Which one: a number of signal(7), which may be a real-time signal's.
    pub number: i32,
    /// `si_code`: where it comes from.
    pub code: i32,
    /// The PID of the sender, where a process sent it.
    pub sender: i32,
}

impl Received {
    /// Whether it is `signal`.
    pub fn is(&self, signal: Signal) -> bool {
        self.number == signal.as_raw()
    }

    /// Whether a process sent it, by kill(2), tgkill(2) or sigqueue(3); their codes are not
    /// positive (sigaction(2)). The kernel's own, such as those of the terminal, are.
    pub fn by_process(&self) -> bool {
        self.code <= 0
    }
}

/// The signals that a thread had blocked before [`block`].
#[derive(Clone, Copy)]
pub struct Mask(libc::sigset_t);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mask").finish_non_exhaustive()
    }
}

impl Mask {
    /// Blocks these signals, and no others, in this thread. What came meanwhile is delivered.
    pub fn restore(&self) {
        // SAFETY: the set was filled in by pthread_sigmask, the pointer lives through the call, and
        // no old mask is asked for. It fails for an unknown `how` alone.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// Blocks the signals in this thread, and gives the descriptor they are read from, which does not
/// block, and the mask that was in force: a program started with ours would never hear of ^C.
///
/// # Errors
///
/// As signalfd(2), at a limit of descriptors.
pub fn block(signals: &[Signal]) -> io::Result<(OwnedFd, Mask)> {
    block_numbers(signals.iter().map(|signal| signal.as_raw()))
}

/// As [`block`], of every signal that can be caught but SIGPIPE, which a program meets by itself when it
/// writes. The C library's own real-time signals (nptl(7)) are not among them.
///
/// # Errors
///
/// As [`block`].
pub fn block_all() -> io::Result<(OwnedFd, Mask)> {
    let left_out = [libc::SIGKILL, libc::SIGSTOP, libc::SIGPIPE];
    let named = (1..=libc::SIGSYS).filter(|number| !left_out.contains(number));
    block_numbers(named.chain(libc::SIGRTMIN()..=libc::SIGRTMAX()))
}

fn block_numbers(numbers: impl Iterator<Item = i32>) -> io::Result<(OwnedFd, Mask)> {
    // SAFETY: sigset_t is plain C data, for which zeros are a value and which sigemptyset makes a
    // valid set; the pointers are to two such sets and live through the calls. The descriptor that
    // signalfd returns is new, so nothing else owns it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for number in numbers {
            libc::sigaddset(&mut set, number);
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

/// The next signal from a descriptor of [`block`], if one waits.
///
/// # Errors
///
/// As read(2), for a descriptor of another kind.
pub fn next(fd: impl AsFd) -> io::Result<Option<Received>> {
    let mut info = [0; INFO_LEN];
    match rustix::io::read(fd, &mut info) {
        Ok(_) => Ok(read_info(&info)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// `ssi_signo`, `ssi_errno`, `ssi_code` and `ssi_pid` stand in front, 32 bits each.
fn read_info(info: &[u8]) -> Option<Received> {
    let word = |at: usize| -> Option<i32> {
        let bytes = info.get(at..at + 4)?;
        Some(i32::from_ne_bytes(bytes.try_into().ok()?))
    };
    Some(Received {
        number: word(0)?,
        code: word(8)?,
        sender: word(12)?,
    })
}

/// Sends a process the signal of this number, which may be a real-time signal's.
///
/// # Errors
///
/// As kill(2): no such process, no right to, no such signal.
pub fn send(process: Pid, number: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes two numbers. The process is one, not a group, since its number is positive.
    match unsafe { libc::kill(process.as_raw_nonzero().get(), number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The signal of that name, with or without `SIG`, or of that number: `TERM`, `SIGRTMIN+3`, `9`.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, begin: i32| {
        let offset: i32 = if rest.is_empty() {
            0
        } else {
            rest.parse().ok()?
        };
        Some(begin + offset).filter(|n| (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(n))
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest.trim_start_matches('+'), libc::SIGRTMIN());
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest, libc::SIGRTMAX());
    }
    let found = NAMES.iter().find(|(known, _)| *known == name)?;
    Some(found.1)
}

/// The names of signal(7), without `SIG`.
const NAMES: [(&str, i32); 31] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// Gives a signal its default action again (`SIG_DFL`, signal(2)). A program inherits which signals
/// are ignored from the program that starts it.
pub fn restore_default(signal: Signal) {
    // SAFETY: SIG_DFL installs no code of ours. The call fails for numbers alone that no `Signal`
    // has, and for SIGKILL and SIGSTOP, which have no other action.
    unsafe { libc::signal(signal.as_raw(), libc::SIG_DFL) };
}

/// Has a signal do nothing to this process, and to programs that it becomes until they say otherwise
/// (`SIG_IGN`, signal(2)).
pub fn ignore(signal: Signal) {
    // SAFETY: SIG_IGN installs no code of ours. The call fails for the same numbers as above.
    unsafe { libc::signal(signal.as_raw(), libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [
            ("TERM", 15),
            ("sigkill", 9),
            ("3", 3),
            ("SIGRTMIN+3", libc::SIGRTMIN() + 3),
            ("RTMAX-1", libc::SIGRTMAX() - 1),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "TERMX", "RTMIN+99", "RTMAX+1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn origin_is_told() {
        // On a thread of its own, which the mask ends with.
        std::thread::spawn(|| {
            let (fd, old) = block(&[Signal::USR1, Signal::WINCH]).unwrap();
            assert_eq!(next(&fd).unwrap(), None);
            // SAFETY: both functions take plain values; the thread is this one.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
            let received = next(&fd).unwrap().unwrap();
            assert!(received.is(Signal::USR1));
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
            number: libc::SIGINT,
            code: 0x80,
            sender: 0,
        };
        assert!(!terminal.by_process(), "SI_KERNEL");
    }
}
