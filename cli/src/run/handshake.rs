//! The handshake between parent and child before the command starts.
//!
//! Over the socket pair of [`spawn`](cnet_tap::fork::spawn). The child reports: the PID of the process
//! that it goes on as, if it has a PID namespace; its TAP, if it made one, and the tables of its TCP
//! sockets as descriptors, or the text of an error. The parent answers with one byte: go. With a PID
//! namespace the two talk on ([`super::init_messages`]). A side that finds the other gone ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, bail};
use cnet_tap::{Tap, TapInfo, unix};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::drain::TcpTables;
use cnet_dataplane::MAX_WORKERS;

/// The first byte of a report with a TAP; the number of its queues is the second.
const READY: u8 = 0;
/// The first byte of a report of an error.
const FAILED: u8 = 1;
/// The first byte of a report without a TAP.
const READY_WITHOUT_TAP: u8 = 2;

/// The first byte of a report with the PID of the process that the child goes on as.
const GOES_ON_AS: u8 = 3;
/// A report that there can be no PID namespace, since /proc cannot be mounted anew.
const NO_PROC: u8 = 4;
/// The first byte of the permission to start the command.
const GO: u8 = 1;
/// The longest report: an error's text.
const MAX_REPORT: usize = 16 * 1024;

/// The TAP's queues and the tables of two address families.
const MAX_DESCRIPTORS: usize = MAX_WORKERS as usize + 2;

/// What the child has made: its TAP, if it made one, and the tables of its TCP sockets.
pub(super) type Made = (Option<Tap>, TcpTables);

/// The child, seen from the parent.
pub(super) struct Child {
    id: Pid,
    socket: OwnedFd,
    /// Whether it is the first process of a PID namespace.
    is_init: bool,
}

impl Child {
    pub(super) fn new(id: Pid, socket: OwnedFd) -> Child {
        Child {
            id,
            socket,
            is_init: false,
        }
    }

    pub(super) fn id(&self) -> Pid {
        self.id
    }

    /// Waits for the child's report; `None` if it cannot have a PID namespace, and ends.
    pub(super) fn receive(&mut self) -> anyhow::Result<Option<Made>> {
        let mut bytes = vec![0; MAX_REPORT];
        let most = MAX_DESCRIPTORS;
        let (length, mut fds) = unix::receive(&self.socket, &mut bytes, most, RecvFlags::empty())
            .context("cannot hear from the child")?;
        match bytes[..length].split_first() {
            Some((&READY, [queues, info @ ..])) if fds.len() >= usize::from(*queues) => {
                let info = TapInfo::from_bytes(info).context("the child sent no TAP")?;
                let tables = fds.split_off(usize::from(*queues));
                let tap = Tap::from_fds(fds, info);
                Ok(Some((Some(tap), TcpTables::new(tables))))
            }
            Some((&READY_WITHOUT_TAP, [])) => Ok(Some((None, TcpTables::new(fds)))),
            Some((&NO_PROC, [])) => Ok(None),
            Some((&GOES_ON_AS, number)) => {
                let number = number.try_into().context("the child told no PID")?;
                let pid = Pid::from_raw(i32::from_ne_bytes(number));
                let between = std::mem::replace(&mut self.id, pid.context("no process is 0")?);
                self.is_init = true;
                // It ends at once. Our next child takes its place.
                let _ = waitpid(Some(between), WaitOptions::empty());
                self.receive()
            }
            Some((&FAILED, text)) => bail!("{}", String::from_utf8_lossy(text)),
            _ => bail!("the child ended before the network was set up"),
        }
    }

    /// Lets the child start the command. Gives the socket to go on talking by, if it is an init.
    pub(super) fn go(self) -> anyhow::Result<Option<OwnedFd>> {
        match rustix::net::send(&self.socket, &[GO], SendFlags::NOSIGNAL) {
            // A child that was killed meanwhile is the supervisor's to report.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => {}
            Err(error) => return Err(error).context("cannot start the command"),
        }
        Ok(self.is_init.then_some(self.socket))
    }
}

/// The parent, seen from the child.
pub(super) struct Parent {
    socket: OwnedFd,
}

impl Parent {
    pub(super) fn new(socket: OwnedFd) -> Parent {
        Parent { socket }
    }

    /// Hands the TAP over; the child keeps no descriptor of it.
    pub(super) fn send_ready(&self, tap: Option<Tap>, tables: &TcpTables) -> anyhow::Result<()> {
        let Some(tap) = tap else {
            let fds: Vec<BorrowedFd<'_>> = tables.descriptors().collect();
            return self.send(READY_WITHOUT_TAP, &[], &fds);
        };
        let (queues, info) = tap.into_fds();
        let mut fds: Vec<BorrowedFd<'_>> = queues.iter().map(AsFd::as_fd).collect();
        fds.extend(tables.descriptors());
        let mut report = vec![u8::try_from(queues.len()).context("too many queues")?];
        report.extend(info.to_bytes());
        self.send(READY, &report, &fds)
    }

    /// Reports that the child goes on as another process. A parent that is gone ends that one.
    pub(super) fn send_goes_on_as(&self, pid: Pid) {
        let number = pid.as_raw_nonzero().get().to_ne_bytes();
        let _ = self.send(GOES_ON_AS, &number, &[]);
    }

    /// Reports that there can be no PID namespace.
    pub(super) fn send_no_proc(&self) {
        let _ = self.send(NO_PROC, &[], &[]);
    }

    /// Reports an error. If that fails too, the parent sees the child end.
    pub(super) fn send_failed(&self, text: &str) {
        let bytes = text.as_bytes();
        let cut = bytes.len().min(MAX_REPORT - 1);
        let _ = self.send(FAILED, &bytes[..cut], &[]);
    }

    fn send(&self, kind: u8, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        let pieces: [&[u8]; 2] = [&[kind], bytes];
        unix::send(&self.socket, &pieces, fds, SendFlags::empty())
            .context("cannot report to the parent")?;
        Ok(())
    }

    /// Waits to be let go; `false` if the parent has ended instead.
    pub(super) fn wait_for_go(&self) -> bool {
        let mut byte = [0];
        loop {
            match rustix::net::recv(&self.socket, &mut byte, RecvFlags::empty()) {
                Ok((_, length)) => return length == 1,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    fn ends() -> (Child, Parent) {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let pair = rustix::net::socketpair(family, SocketType::SEQPACKET, flags, None);
        let (ours, theirs) = pair.unwrap();
        (
            Child::new(rustix::process::getpid(), ours),
            Parent::new(theirs),
        )
    }

    #[test]
    fn a_tap_and_its_tables_cross() {
        let (mut child, parent) = ends();
        let info = TapInfo {
            name: "eth0".to_owned(),
            offloads: cnet_tap::Offloads::default(),
            mac: [2, 0, 0, 0, 0, 1],
            ifindex: 7,
            lacks_ipv6: true,
        };
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let queues = (0..MAX_WORKERS).map(|_| null()).collect();
        let tap = Tap::from_fds(queues, info.clone());
        parent
            .send_ready(Some(tap), &TcpTables::new(vec![null(), null()]))
            .unwrap();
        let (tap, tables) = child.receive().unwrap().unwrap();
        let (queues, received) = tap.unwrap().into_fds();
        assert_eq!((queues.len(), received), (usize::from(MAX_WORKERS), info));
        assert_eq!(tables.descriptors().count(), 2);
        let one = TcpTables::new(vec![null()]);
        parent.send_ready(None, &one).unwrap();
        let (tap, tables) = child.receive().unwrap().unwrap();
        assert!(tap.is_none());
        assert_eq!(tables.descriptors().count(), 1);
        assert!(child.go().unwrap().is_none(), "it becomes the command");
        assert!(parent.wait_for_go());
    }

    #[test]
    fn a_child_goes_on_as_an_init_that_is_talked_with() {
        let (mut child, parent) = ends();
        let pid = Pid::from_raw(4321).unwrap();
        parent.send_goes_on_as(pid);
        parent
            .send_ready(None, &TcpTables::new(Vec::new()))
            .unwrap();
        assert!(child.receive().unwrap().is_some());
        assert_eq!(child.id(), pid);
        let init = child.go().unwrap().unwrap();
        assert!(parent.wait_for_go());
        drop(init);

        let (mut child, parent) = ends();
        parent.send_no_proc();
        assert!(child.receive().unwrap().is_none());
    }

    #[test]
    fn errors_and_silence_cross() {
        let (mut child, parent) = ends();
        parent.send_failed(&"x".repeat(2 * MAX_REPORT));
        let text = child.receive().map(drop).unwrap_err().to_string();
        assert_eq!(text.len(), MAX_REPORT - 1);
        drop(parent);
        let text = child.receive().map(drop).unwrap_err().to_string();
        assert!(text.contains("ended before"), "{text}");
        child.go().unwrap();

        let (child, parent) = ends();
        drop(child);
        assert!(!parent.wait_for_go());
    }
}
