//! Unix sockets: binding one that only its owner may use, and descriptors beside bytes.
//!
//! # Private sockets
//!
//! The mode of a socket's file has to be right from the start: chmod(2) afterwards would leave a
//! moment in which others may connect, and a umask(2) belongs to all threads of a process. The file
//! gets the mode that the socket has when it is bound (`unix_bind_bsd` in `net/unix/af_unix.c`), so
//! [`bind_private`] sets that.
//!
//! # Descriptors
//!
//! [`send`] and [`receive`] carry descriptors beside a message's bytes (`SCM_RIGHTS`, unix(7)).
//! Received ones are close-on-exec. The kernel closes those that exceed what the receiver has room
//! for, so a sender cannot fill the receiver's descriptor table.
//!
//! # Who is there
//!
//! [`peer`] tells which process is at the other end.
//!
//! # Limits
//!
//! A message carries no more than [`MAX_DESCRIPTORS`] descriptors, and on a stream at least one byte
//! has to go with them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// The most bytes a Unix socket's path may have: `sun_path` has 108, with a terminator (unix(7)).
pub const MAX_PATH: usize = 107;

/// The most descriptors in one message (`SCM_MAX_FD` of `include/net/scm.h`).
pub const MAX_DESCRIPTORS: usize = 253;

/// `include/uapi/asm-generic/socket.h`; libc lacks it on some targets.
const SO_PEERPIDFD: libc::c_int = 77;

/// Bytes of ancillary data for that many descriptors.
const SPACE: usize = space_for(MAX_DESCRIPTORS);

const fn space_for(descriptors: usize) -> usize {
    rustix::cmsg_space!(ScmRights(descriptors))
}

/// A socket of that kind at `path`, for its owner alone (mode 0600), non-blocking and close-on-exec.
///
/// # Errors
///
/// `EADDRINUSE` if there is a file at `path`, `ENAMETOOLONG` beyond [`MAX_PATH`], and what the file
/// system says.
pub fn bind_private(kind: SocketType, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// A listening stream socket at `path`, as [`bind_private`] makes it. `backlog` connections may wait
/// to be accepted.
///
/// # Errors
///
/// As [`bind_private`].
pub fn listen_private(path: &Path, backlog: i32) -> rustix::io::Result<OwnedFd> {
    let socket = bind_private(SocketType::STREAM, path)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// The process at the other end of a Unix socket: the one that connected, or that listens.
#[derive(Debug)]
pub struct Peer {
    /// Stands for it, whichever process gets its number later.
    pub pidfd: OwnedFd,
    /// The user it had then, as this process's user namespace knows it.
    pub uid: u32,
}

/// Which process is at the other end (`SO_PEERPIDFD`, from Linux 6.5 on). An older kernel tells its
/// number alone (`SO_PEERCRED`), which may have become another process's since.
///
/// # Errors
///
/// What getsockopt(2) says; `ESRCH` if the process has ended, or is in no PID namespace of ours.
pub fn peer(socket: BorrowedFd<'_>) -> rustix::io::Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    let pidfd = match peer_pidfd(socket) {
        Err(Errno::NOPROTOOPT) => {
            rustix::process::pidfd_open(credentials.pid, rustix::process::PidfdFlags::empty())
        }
        pidfd => pidfd,
    }?;
    Ok(Peer {
        pidfd,
        uid: credentials.uid.as_raw(),
    })
}

fn peer_pidfd(socket: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let mut pidfd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the socket is open; the kernel writes one int and the length, both of which live
    // through the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut pidfd).cast(),
            &raw mut length,
        )
    };
    if done != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    // SAFETY: the kernel has just made this descriptor for us (close-on-exec), and nothing else
    // knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Sends the pieces in a row, with descriptors, and gives how many bytes were taken: all, except on
/// a stream. A peer that is gone is an error and no SIGPIPE.
///
/// # Errors
///
/// As sendmsg(2); `E2BIG` for more than [`MAX_DESCRIPTORS`] descriptors.
pub fn send(
    socket: impl AsFd,
    pieces: &[&[u8]],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> rustix::io::Result<usize> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(Errno::TOOBIG);
    }
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    let pieces: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let flags = flags | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &pieces, &mut control, flags)
}

/// Receives into `bytes`, with up to `most` descriptors, and gives how many bytes there were and the
/// descriptors. No bytes say that the other end is closed. A call that a signal interrupts is made
/// again.
///
/// # Errors
///
/// As recvmsg(2).
pub fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    most: usize,
    flags: RecvFlags,
) -> rustix::io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let room = space_for(most.min(MAX_DESCRIPTORS));
    let mut control = RecvAncillaryBuffer::new(&mut space[..room]);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let length = loop {
        let mut pieces = [IoSliceMut::new(bytes)];
        match rustix::net::recvmsg(&socket, &mut pieces, &mut control, flags) {
            Err(Errno::INTR) => {}
            message => break message?.bytes,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    // The room is rounded up to whole words.
    descriptors.truncate(most);
    Ok((length, descriptors))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn a_private_socket_is_its_owners_alone() {
        let directory = std::env::temp_dir().join(format!("cnet-tap-unix-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("socket");
        let listener = listen_private(&path, 1).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(listen_private(&path, 1).unwrap_err(), Errno::ADDRINUSE);
        drop(listener);
        let long = directory.join("x".repeat(MAX_PATH));
        let error = bind_private(SocketType::DGRAM, &long).unwrap_err();
        assert_eq!(error, Errno::NAMETOOLONG);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn descriptors_cross_and_those_without_room_are_closed() {
        let (one, other) = UnixDatagram::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let many = vec![null.as_fd(); MAX_DESCRIPTORS + 1];
        let none = SendFlags::empty();
        assert_eq!(send(&one, &[b"x"], &many, none).unwrap_err(), Errno::TOOBIG);
        let (mut bytes, flags) = ([0; 8], RecvFlags::DONTWAIT);
        for (sent, room, received) in [(0, 9, 0), (3, 3, 3), (3, 2, 2), (253, 253, 253)] {
            send(&one, &[b"ab", b"", b"c"], &many[..sent], none).unwrap();
            let (length, descriptors) = receive(&other, &mut bytes, room, flags).unwrap();
            assert_eq!(
                (&bytes[..length], descriptors.len()),
                (&b"abc"[..], received)
            );
        }
        let error = receive(&other, &mut bytes, 1, flags).unwrap_err();
        assert_eq!(error, Errno::AGAIN);
    }
}
