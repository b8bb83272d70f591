//! The helper outside the sandbox: a process that does for a sandboxed one what only can be done
//! with the host's files and processes in sight.
//!
//! # Theory of operation
//!
//! It is forked before the sandbox is entered. It waits for requests, does what its handler says,
//! one after the other, and answers each; the process that asks waits for the answer. Bytes and
//! descriptors cross both ways. What requests there are, and that each is harmless, is for the
//! handler: the process that asks may be the attacker's.
//!
//! # Invariants
//!
//! - It ends when the other end of its socket is closed, after its handler has been told so.
//! - It holds no descriptor but its socket and standard error, no new privileges, and no
//!   environment.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{SendFlags, sockopt};
use rustix::process::Pid;

use super::{MAX_ANSWER, Output, receive};
use crate::error::TapError;
use crate::fork::{pair, spawn};
use crate::sandbox::{Role, begin, confine_helper};
use crate::unix;

/// What `ps` shows of the helper.
const TITLE: &str = "cnet: host files";

/// How long an answer is waited for. What is asked takes microseconds; a file system that hangs
/// must not hang the process that asks for good.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the helper may need, which says how it is confined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Files, by their paths: it holds no capability, and a short list of system calls.
    Files,
    /// Other processes and Unix sockets too, with the capabilities that this process has.
    Processes,
}

/// A running helper, seen from the process that forked it.
#[derive(Debug)]
pub struct Outside {
    /// With the number of the last request: an answer that comes too late is not taken for the next
    /// one's.
    socket: Mutex<(OwnedFd, u32)>,
    pid: i32,
}

impl Outside {
    /// Forks the helper. `handle` does what a request asks for; it is given `None` once, at the end.
    ///
    /// # Errors
    ///
    /// [`TapError::MultiThreaded`] if this process has more threads than one; [`TapError::Io`] at a
    /// limit of descriptors or processes.
    pub fn start(
        reach: Reach,
        handle: impl FnMut(Option<(Vec<OwnedFd>, &[u8])>) -> Output,
    ) -> Result<Outside, TapError> {
        let (pid, socket) = spawn("cannot fork a helper process", |_, socket| {
            let role = match reach {
                Reach::Files => Role::Files,
                Reach::Processes => Role::Outside,
            };
            // A terminal's ^C ends the process that asks, which tells the helper.
            let _ = rustix::process::setsid();
            begin(TITLE, &[socket.as_raw_fd()]);
            confine_helper(role, &[socket.as_raw_fd()]);
            serve(&socket, handle);
            0
        })?;
        Outside::new(socket, pid)
    }

    /// The two ends of a conversation, for a process that answers by itself and forks the one that
    /// asks.
    ///
    /// # Errors
    ///
    /// [`TapError::Io`] at a limit of descriptors.
    pub fn pair() -> Result<(Outside, Server), TapError> {
        let (asks, answers) = pair()?;
        Ok((
            Outside::new(asks, rustix::process::getpid())?,
            Server(answers),
        ))
    }

    fn new(socket: OwnedFd, pid: Pid) -> Result<Outside, TapError> {
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(TapError::io("cannot talk to a helper process"))?;
        Ok(Outside {
            socket: Mutex::new((socket, 0)),
            pid: pid.as_raw_nonzero().get(),
        })
    }

    /// The descriptor that a process which keeps the helper must not close.
    pub fn descriptor(&self) -> i32 {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.0.as_raw_fd()
    }

    /// The helper's PID.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` when the helper has ended, `WouldBlock` when it does not answer in time, and
    /// what sendmsg(2) says.
    pub fn ask(&self, request: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<Output> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.1 = socket.1.wrapping_add(1);
        let number = socket.1.to_ne_bytes();
        unix::send(
            &socket.0,
            &[&number, request],
            descriptors,
            SendFlags::empty(),
        )?;
        loop {
            let message = receive(socket.0.as_fd())?;
            let (descriptors, bytes) = message.ok_or(io::ErrorKind::UnexpectedEof)?;
            if let Some(answer) = bytes.strip_prefix(&number) {
                return Ok((descriptors, answer.to_vec()));
            }
        }
    }
}

/// The end that answers.
#[derive(Debug)]
pub struct Server(OwnedFd);

impl Server {
    /// Becomes the helper: gives up all that it does not need, as [`Reach::Processes`] says, and
    /// answers until the other end is closed. `kept` stays open.
    pub fn serve(
        self,
        kept: &[BorrowedFd<'_>],
        handle: impl FnMut(Option<(Vec<OwnedFd>, &[u8])>) -> Output,
    ) {
        let kept = kept.iter().map(AsRawFd::as_raw_fd);
        let kept: Vec<RawFd> = kept.chain([self.0.as_raw_fd()]).collect();
        confine_helper(Role::Outside, &kept);
        serve(&self.0, handle);
    }
}

/// The helper's life.
fn serve(socket: &OwnedFd, mut handle: impl FnMut(Option<(Vec<OwnedFd>, &[u8])>) -> Output) {
    while let Ok(Some((descriptors, bytes))) = receive(socket.as_fd()) {
        let Some((number, request)) = bytes.split_first_chunk::<4>() else {
            break;
        };
        let (descriptors, mut answer) = handle(Some((descriptors, request)));
        answer.truncate(MAX_ANSWER);
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        if unix::send(socket, &[number, &answer], &borrowed, SendFlags::empty()).is_err() {
            break;
        }
    }
    handle(None);
}
