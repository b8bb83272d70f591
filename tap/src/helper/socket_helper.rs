//! The socket helper: a small process that stands in a container's network namespace and makes TCP and
//! UDP sockets there.
//!
//! # Theory of operation
//!
//! A socket belongs for good to the network namespace it is made in, whichever process holds it; but
//! only a process inside can make one. The helper enters and stays. It sleeps in recvmsg(2) until
//! sockets are asked for, makes as many as were asked for, and sends them over (`SCM_RIGHTS`,
//! unix(7)). The program that asked uses them in its own namespace: no byte of a connection passes
//! the helper.
//!
//! # Invariants
//!
//! - The helper never outlives its parent: the kernel kills it at the parent's death
//!   (`PR_SET_PDEATHSIG`), and it ends when the other end of its socket is closed.
//! - Code that breaks into the helper gains nothing, and a container's root cannot break in: the
//!   helper shares the container's user namespace but not its file system, so the container's root
//!   must not trace it. It is not dumpable, which reserves ptrace(2) and `/proc/PID` to the user
//!   namespace of the program that was executed, cnet's; it holds no capability and no descriptor
//!   but its socket, keeps no system call but those of its task ([`Role::SocketHelper`]), and is in a
//!   session of its own.
//! - It is reaped, at the latest when its [`SocketHelper`] is dropped.
//!
//! # Limits
//!
//! It holds the namespaces as an open TAP does: its user must notice the container's end by
//! [`watch`](crate::watch). Where the container sees the host's processes, it may kill the helper
//! as it may kill cnet; [`SocketHelper::take`] tells.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::error::TapError;
use crate::fork::{Parent, spawn};
use crate::namespace::Namespaces;
use crate::sandbox::{Role, confine_helper};
use crate::socket::Diagnostics;
use crate::unix;

/// The most sockets asked for at once; fewer than [`unix::MAX_DESCRIPTORS`].
pub const MAX_SOCKETS: u8 = 64;

/// The first byte of a request and of its answer: the family, for datagrams with [`DATAGRAM`].
const V4: u8 = 4;
const V6: u8 = 6;
const DATAGRAM: u8 = 0x10;
/// The first byte of the answer that carries [`Diagnostics`].
const DIAGNOSTICS: u8 = b'd';

/// Sockets that came together in one answer.
#[derive(Debug)]
pub struct Supply {
    /// Whether they are for IPv6.
    pub v6: bool,
    /// Unconnected sockets, non-blocking and close-on-exec. Fewer than were asked for where a
    /// limit of descriptors is reached.
    pub sockets: Vec<OwnedFd>,
}

/// What a helper sends.
#[derive(Debug)]
pub enum Answer {
    /// Sockets that were asked for.
    Sockets(Supply),
    /// What tells of the sockets in the namespace. It comes once and by itself, at the start, where
    /// the kernel has it.
    Diagnostics(Diagnostics),
}

/// A running helper. Dropping it ends it.
#[derive(Debug)]
pub struct SocketHelper {
    socket: OwnedFd,
    pid: Pid,
    /// A pidfd: names this one process even after another wait has reaped it. `None` once another
    /// process has the helper.
    process: Option<OwnedFd>,
}

impl SocketHelper {
    /// Starts a helper in the namespaces. Does not wait: a helper that could not enter closes its
    /// socket, which [`take`](SocketHelper::take) tells.
    ///
    /// # Errors
    ///
    /// [`TapError::MultiThreaded`] if this process has more threads than one; [`TapError::Io`] at
    /// a limit of descriptors or processes, and before Linux 5.3, which has no pidfd.
    pub fn start(ns: &Namespaces) -> Result<SocketHelper, TapError> {
        let (child, socket) = spawn("cannot fork a socket helper", |parent, socket| {
            // What failed is not told: the parent sees the socket close, and does without.
            u8::from(live(ns, &socket, parent).is_err())
        })?;
        // The child was not reaped, so the number is its own. Without a pidfd it ends by itself,
        // since our end of the socket is closed.
        let process = crate::watch::pidfd(child.as_raw_nonzero().get())?;
        Ok(SocketHelper {
            socket,
            pid: child,
            process: Some(process),
        })
    }

    /// The helper's PID.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The descriptors that a forked process which goes on with the helper must keep.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let process = self.process.iter().map(AsRawFd::as_raw_fd);
        process.chain([self.socket.as_raw_fd()]).collect()
    }

    /// Leaves the helper to a forked process that has a copy of this.
    pub fn let_go(mut self) {
        self.process = None;
    }

    /// Asks for `count` sockets, at most [`MAX_SOCKETS`], of one family. Does not wait.
    ///
    /// # Errors
    ///
    /// As send(2): `EPIPE` when the helper has ended, `EAGAIN` when it does not listen.
    pub fn ask(&self, v6: bool, count: u8) -> io::Result<()> {
        self.request(if v6 { V6 } else { V4 }, count)
    }

    /// As [`ask`](Self::ask), for UDP sockets.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub fn ask_datagram(&self, v6: bool, count: u8) -> io::Result<()> {
        self.request(DATAGRAM | if v6 { V6 } else { V4 }, count)
    }

    fn request(&self, kind: u8, count: u8) -> io::Result<()> {
        let request = [kind, count.min(MAX_SOCKETS)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::send(&self.socket, &request, flags)?;
        Ok(())
    }

    /// Takes one answer, `None` if there is none yet. Does not wait; the descriptor polls readable
    /// when there is one.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` when the helper has ended, and as recvmsg(2).
    pub fn take(&self) -> io::Result<Option<Answer>> {
        let mut family = [0];
        let most = usize::from(MAX_SOCKETS);
        match unix::receive(&self.socket, &mut family, most, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, fds)) if family == [DIAGNOSTICS] => {
                let diagnostics = Diagnostics::from_fds(fds);
                let diagnostics = diagnostics.ok_or(io::ErrorKind::InvalidData)?;
                Ok(Some(Answer::Diagnostics(diagnostics)))
            }
            Ok((_, sockets)) => Ok(Some(Answer::Sockets(Supply {
                v6: family == [V6] || family == [DATAGRAM | V6],
                sockets,
            }))),
            Err(Errno::AGAIN) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for SocketHelper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for SocketHelper {
    fn drop(&mut self) {
        // From within the sandbox it cannot be killed, and ends by this; one that was stopped ends
        // with the program.
        let Some(process) = self.process.take() else {
            return;
        };
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        // Both calls fail if it has ended and was reaped by a wait for any child, and in the sandbox.
        let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
        let _ = rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
    }
}

/// The helper's life.
fn live(ns: &Namespaces, socket: &OwnedFd, parent: Parent) -> Result<(), TapError> {
    parent.die_together()?;
    ns.enter()?;
    parent.die_together()?;
    // Before the sandbox, which permits no such socket. Without it the ports listen always.
    if let Ok(diagnostics) = Diagnostics::open() {
        let fds = diagnostics.into_fds();
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        unix::send(socket, &[&[DIAGNOSTICS]], &fds, SendFlags::empty())
            .map_err(TapError::io("cannot send from the socket helper"))?;
    }
    confine(socket).map_err(TapError::io("cannot confine the socket helper"))?;
    while serve(socket).is_ok() {}
    Ok(())
}

/// Gives up what the helper does not need; see the module's invariants.
fn confine(socket: &OwnedFd) -> rustix::io::Result<()> {
    // The terminal's ^C goes to its session.
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    // Dumpable again after a change of credentials: all of those are behind it.
    confine_helper(Role::SocketHelper, &[socket.as_raw_fd()]);
    Ok(())
}

/// Answers one request.
fn serve(socket: &OwnedFd) -> rustix::io::Result<()> {
    let mut request = [0; 2];
    let length = loop {
        match rustix::net::recv(socket, &mut request, RecvFlags::empty()) {
            Ok((_, length)) => break length,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    };
    let kind = match request[0] & DATAGRAM {
        0 => SocketType::STREAM,
        _ => SocketType::DGRAM,
    };
    let family = match (request[0] & !DATAGRAM, length) {
        (V4, 2) => AddressFamily::INET,
        (V6, 2) => AddressFamily::INET6,
        _ => return Err(Errno::INVAL),
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let sockets = (0..request[1].min(MAX_SOCKETS))
        .map_while(|_| rustix::net::socket_with(family, kind, flags, None).ok());
    let sockets: Vec<OwnedFd> = sockets.collect();
    let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    unix::send(socket, &[&request[..1]], &borrowed, SendFlags::empty()).map(drop)
}
