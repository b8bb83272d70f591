//! A supplier of sockets: a small process that stands in a container's network namespace and hands
//! out TCP sockets made there.
//!
//! # Theory of operation
//!
//! A socket belongs to the network namespace it is made in, for good, whoever holds it; but only a
//! process inside can make one, and a process with threads cannot enter a user namespace. So, as in
//! [`namespace`](crate::namespace), a child is forked while there is one thread, enters, and stays.
//! It sleeps in recvmsg(2) until it is asked, makes as many sockets as it is asked for, and sends
//! them over (`SCM_RIGHTS`, unix(7)). What is done with them is done by who asked, in its own
//! namespace and with its own descriptors: no byte of a connection passes the supplier.
//!
//! # Invariants
//!
//! - The supplier never outlives its parent: the kernel kills it at the parent's death
//!   (`PR_SET_PDEATHSIG`), and it ends when the other end of its socket is closed.
//! - It is of no use to who breaks into it, and cannot be broken into from inside: it shares the
//!   container's user namespace but not its file system, so a container's root must not trace it.
//!   It is not dumpable, which reserves ptrace(2) and `/proc/PID` to the user namespace of the
//!   program that was executed, cnet's; it holds no capability and no descriptor but its socket,
//!   and is in a session of its own.
//! - It is reaped, at the latest when its [`Supplier`] is dropped.
//!
//! # Limits
//!
//! It holds the namespaces as an open TAP does: who uses it must notice the container's end by
//! [`watch`](crate::watch). Where the container sees the host's processes, it may kill the supplier
//! as it may kill cnet; [`Supplier::take`] tells.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::AssertUnwindSafe;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{DumpableBehavior, Pid, Signal, WaitId, WaitIdOptions};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::TapError;
use crate::fork::{fork, pair};
use crate::namespace::{Namespaces, die_with};

/// The most sockets asked for at once. One message carries no more than 253 descriptors
/// (`SCM_MAX_FD` of include/net/scm.h).
pub const MAX_SOCKETS: u8 = 64;

/// The first byte of a request and of its answer: the family.
const V4: u8 = 4;
const V6: u8 = 6;

/// Sockets that came together.
#[derive(Debug)]
pub struct Supply {
    /// Whether they are for IPv6.
    pub v6: bool,
    /// Unconnected TCP sockets, non-blocking and close-on-exec. Fewer than were asked for where a
    /// limit of descriptors is reached.
    pub sockets: Vec<OwnedFd>,
}

/// A running supplier. Dropping it ends it.
#[derive(Debug)]
pub struct Supplier {
    socket: OwnedFd,
    /// Stands for this one process even when somebody else has reaped it.
    process: OwnedFd,
}

impl Supplier {
    /// Starts a supplier in the namespaces. Whether it got in shows at the first answer: until
    /// then nobody waits for it.
    ///
    /// # Errors
    ///
    /// [`TapError::MultiThreaded`] if this process has more threads than one; [`TapError::Io`] at
    /// a limit of descriptors or processes, and before Linux 5.3, which has no pidfd.
    pub fn start(ns: &Namespaces) -> Result<Supplier, TapError> {
        let (ours, theirs) = pair()?;
        let parent = rustix::process::getpid();
        match fork("cannot fork a supplier of sockets")? {
            // It leaves through `_exit` alone, so no destructor of the parent's runs twice.
            None => {
                drop(ours);
                live(ns, &theirs, parent)
            }
            Some(pid) => {
                drop(theirs);
                // The child was not reaped, so the number is its own. Without a pidfd it ends by
                // itself, since our end of the socket is closed.
                let process = crate::watch::pidfd(pid.as_raw_nonzero().get())?;
                Ok(Supplier {
                    socket: ours,
                    process,
                })
            }
        }
    }

    /// Asks for `count` sockets, at most [`MAX_SOCKETS`], of one family. Does not wait.
    ///
    /// # Errors
    ///
    /// As send(2): `EPIPE` when the supplier has ended, `EAGAIN` when it does not listen.
    pub fn ask(&self, v6: bool, count: u8) -> io::Result<()> {
        let request = [if v6 { V6 } else { V4 }, count.min(MAX_SOCKETS)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::send(&self.socket, &request, flags)?;
        Ok(())
    }

    /// Takes one answer, `None` if there is none yet. Does not wait; the descriptor polls readable
    /// when there is one.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` when the supplier has ended, and as recvmsg(2).
    pub fn take(&self) -> io::Result<Option<Supply>> {
        let mut family = [0];
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let length = loop {
            let mut pieces = [IoSliceMut::new(&mut family)];
            match rustix::net::recvmsg(&self.socket, &mut pieces, &mut control, flags) {
                Ok(message) => break message.bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        };
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut sockets = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                sockets.extend(rights);
            }
        }
        let v6 = family == [V6];
        Ok(Some(Supply { v6, sockets }))
    }
}

impl AsFd for Supplier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Supplier {
    fn drop(&mut self) {
        // It would end by itself, unless it was stopped. Both fail if it has ended and somebody
        // has reaped it.
        let _ = rustix::process::pidfd_send_signal(&self.process, Signal::KILL);
        let _ = rustix::process::waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED);
    }
}

const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_SOCKETS as usize));

/// The supplier's life.
fn live(ns: &Namespaces, socket: &OwnedFd, parent: Pid) -> ! {
    let work = || -> Result<(), TapError> {
        die_with(parent)?;
        ns.enter()?;
        die_with(parent)?;
        give_up_the_rest(socket).map_err(TapError::io("cannot confine the supplier"))?;
        while serve(socket).is_ok() {}
        Ok(())
    };
    // A panic must not unwind into the parent's frames, of which this process has a copy. What
    // failed is not told: the parent sees the socket close, and does without.
    let _ = std::panic::catch_unwind(AssertUnwindSafe(work));
    // SAFETY: _exit(2) ends the process at once and takes no pointer.
    unsafe { libc::_exit(0) }
}

/// Gives up what a supplier does not need; see the module's invariants.
fn give_up_the_rest(socket: &OwnedFd) -> rustix::io::Result<()> {
    // A ^C at the terminal is not for it.
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        // Whoever waits for the end of the parent's output must not wait for us.
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
    }
    close_all_but(socket.as_raw_fd());
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none)?;
    // Last: a change of credentials sets it anew.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Closes every descriptor from 3 on but `kept`.
fn close_all_but(kept: RawFd) {
    let close = |first: RawFd, last: libc::c_uint| {
        // SAFETY: the descriptors are closed under their owners, but those are on the stack of a
        // parent of which this process is a copy that never returns to it: nobody uses them again.
        unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, last, 0) == 0 }
    };
    const FIRST: RawFd = 3;
    let below = kept <= FIRST || close(FIRST, kept as libc::c_uint - 1);
    if below && close(kept + 1, libc::c_uint::MAX) {
        return;
    }
    // Before Linux 5.9 there is no such call.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // Collected first: the directory's own descriptor is among them.
    let open: Vec<RawFd> = open.filter(|&fd| fd >= FIRST && fd != kept).collect();
    for fd in open {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
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
    let (V4 | V6, 2) = (request[0], length) else {
        return Err(Errno::INVAL);
    };
    let family = match request[0] {
        V6 => AddressFamily::INET6,
        _ => AddressFamily::INET,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let sockets = (0..request[1].min(MAX_SOCKETS))
        .map_while(|_| rustix::net::socket_with(family, SocketType::STREAM, flags, None).ok());
    let sockets: Vec<OwnedFd> = sockets.collect();
    let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(Errno::TOOBIG);
    }
    let family = &request[..1];
    let pieces = [IoSlice::new(family)];
    rustix::net::sendmsg(socket, &pieces, &mut control, SendFlags::NOSIGNAL).map(drop)
}
