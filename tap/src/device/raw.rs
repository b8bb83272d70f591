//! Packet sockets (packet(7)): frames sent on an interface past its IP stack.
//!
//! # Limits
//!
//! It only sends. A raw uplink's receiving side, with its virtio-net header, will live here too.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// A socket that sends Ethernet frames on the interface `ifindex` of the current network namespace.
/// It is close-on-exec, and blocks where the interface's queue is full.
///
/// # Errors
///
/// `EPERM` without CAP_NET_RAW in the user namespace that owns the network namespace; `ENODEV`
/// without such an interface.
pub fn sender(ifindex: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as _,
        // With no protocol nothing is received.
        sll_protocol: 0,
        sll_ifindex: libc::c_int::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the descriptor is open; the pointer is to a whole sockaddr_ll that lives through the
    // call, as the length says, and bind(2) only reads it.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    match bound {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}
