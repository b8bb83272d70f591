//! Packet sockets (packet(7)): Ethernet frames on an interface, past its IP stack.
//!
//! # Theory of operation
//!
//! [`open_uplink`] makes the socket of a raw uplink: bound to one interface, which it makes promiscuous,
//! with a virtio-net header before each frame (`PACKET_VNET_HDR`), so that super-frames pass both ways as
//! they do on a TAP. What the host itself sends on the interface does not come back
//! (`PACKET_IGNORE_OUTGOING`, Linux 4.20). The kernel takes VLAN tags off and tells of them beside the
//! frame (`PACKET_AUXDATA`).
//!
//! # Limits
//!
//! The kernel asks for CAP_NET_RAW when the socket is made and not afterwards. Who holds the descriptor
//! may send on any interface of its network namespace (sendto(2) with an address).
//!
//! Source: packet(7), `net/packet/af_packet.c`, `include/uapi/linux/if_packet.h`.

use std::ffi::CString;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::socket::ancillary::{Control, int, receive};
use crate::socket::options::set_int;

// include/uapi/linux/if_packet.h
const SOL_PACKET: libc::c_int = 263;
const PACKET_ADD_MEMBERSHIP: libc::c_int = 1;
const PACKET_AUXDATA: libc::c_int = 8;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const TP_STATUS_VLAN_VALID: libc::c_int = 1 << 4;
/// All protocols, in network order where it is written.
const ETH_P_ALL: u16 = 0x0003;

/// Bytes of received frames that wait, as far as `net.core.rmem_max` lets a socket ask.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The number of the interface of that name in the calling thread's network namespace.
///
/// # Errors
///
/// `ENODEV` without such an interface.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the pointer is to a string that ends in NUL and lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// A socket that sends Ethernet frames on the interface `ifindex` of the current network namespace.
/// It is close-on-exec, and blocks where the interface's queue is full.
///
/// # Errors
///
/// `EPERM` without CAP_NET_RAW in the user namespace that owns the network namespace; `ENODEV`
/// without such an interface.
pub fn sender(ifindex: u32) -> io::Result<OwnedFd> {
    let socket = packet_socket(SocketFlags::CLOEXEC)?;
    // With no protocol nothing is received.
    bind(&socket, ifindex, 0)?;
    Ok(socket)
}

/// A non-blocking socket that hears every frame of the interface `ifindex` of the current network
/// namespace, those that it sends too.
///
/// # Errors
///
/// As [`sender`].
pub fn listener(ifindex: u32) -> io::Result<OwnedFd> {
    let socket = packet_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    bind(&socket, ifindex, ETH_P_ALL.to_be())?;
    Ok(socket)
}

/// A non-blocking socket for all frames on `interface` of the current network namespace.
///
/// # Errors
///
/// As [`sender`].
pub fn open_uplink(interface: &str) -> io::Result<OwnedFd> {
    let index = interface_index(interface)?;
    let socket = packet_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    // Before it is bound, so that no frame comes without them.
    for option in [PACKET_VNET_HDR, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING] {
        set_int(socket.as_fd(), SOL_PACKET, option, 1)?;
    }
    let _ = sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER);
    bind(&socket, index, ETH_P_ALL.to_be())?;
    hear_all(&socket, index)?;
    Ok(socket)
}

fn packet_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        flags,
        None,
    )?)
}

/// Binds to an interface, for frames of `protocol`, which is in network order.
fn bind(socket: &OwnedFd, ifindex: u32, protocol: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as _,
        sll_protocol: protocol,
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
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the interface take frames for all stations, for as long as the socket is open.
fn hear_all(socket: &OwnedFd, ifindex: u32) -> io::Result<()> {
    let membership = libc::packet_mreq {
        mr_ifindex: libc::c_int::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidInput)?,
        mr_type: libc::PACKET_MR_PROMISC as _,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: the descriptor is open; the pointer is to a whole packet_mreq, as the length says, and
    // setsockopt(2) only reads it.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            SOL_PACKET,
            PACKET_ADD_MEMBERSHIP,
            (&raw const membership).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a read of an uplink has brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RawFrame {
    /// A frame of so many bytes, virtio-net header included.
    Plain(usize),
    /// A frame that had a VLAN tag on the wire.
    Tagged,
}

/// Reads one frame of an uplink's socket, virtio-net header first. Never blocks.
///
/// # Errors
///
/// `WouldBlock` when no frame waits; `ENETDOWN` once after the interface went down; `EINVAL` for a
/// super-frame of a kind that a virtio-net header has no word for, which is lost.
#[inline]
pub fn read_frame(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<RawFrame> {
    let mut control = Control::new();
    let mut pieces = [IoSliceMut::new(buf)];
    let got = receive(socket, &mut pieces, &mut control, libc::MSG_DONTWAIT)?;
    // struct tpacket_auxdata starts with its status.
    let tagged = control.messages().any(|(level, kind, data)| {
        (level, kind) == (SOL_PACKET, PACKET_AUXDATA)
            && int(data).is_some_and(|status| status & TP_STATUS_VLAN_VALID != 0)
    });
    match tagged {
        true => Ok(RawFrame::Tagged),
        false => Ok(RawFrame::Plain(got.length)),
    }
}
