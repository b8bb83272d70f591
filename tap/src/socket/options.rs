//! Socket options and small queries.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

// include/uapi/linux/in.h; the libc crate lacks it on some targets.
const IP_BIND_ADDRESS_NO_PORT: libc::c_int = 24;

/// setsockopt(2) with an `int`.
pub(crate) fn set_int(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the descriptor is open; the pointer is to one int, as the length says.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// getsockopt(2) into bytes; gives how many the kernel wrote.
pub(crate) fn get_bytes(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    space: &mut [u8],
) -> io::Result<usize> {
    let mut length = space.len() as libc::socklen_t;
    // SAFETY: the descriptor is open; the kernel writes at most `length` bytes to `space`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            option,
            space.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(length as usize)
    }
}

/// Takes the socket's pending error (`SO_ERROR`), an errno; `None` if there is none. This is how
/// the outcome of a non-blocking connect(2) is learnt.
///
/// # Errors
///
/// Only for a descriptor that is no socket.
pub fn so_error(fd: impl AsFd) -> io::Result<Option<i32>> {
    Ok(sockopt::socket_error(fd)?
        .err()
        .map(|errno| errno.raw_os_error()))
}

/// Lets bind(2) with port 0 leave the port open until connect(2), so that ports are shared by
/// connections to different destinations (`IP_BIND_ADDRESS_NO_PORT`, ip(7)). It serves IPv4 and
/// IPv6 sockets.
///
/// # Errors
///
/// As setsockopt(2).
pub fn bind_address_no_port(fd: impl AsFd) -> io::Result<()> {
    set_int(fd.as_fd(), libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Chooses whether datagrams are sent with Don't Fragment: with `true`, one over the path's MTU
/// fails with `EMSGSIZE`; with `false`, it is cut into fragments here or on its way
/// (`IP_MTU_DISCOVER`, ip(7); `IPV6_MTU_DISCOVER`, ipv6(7)). `v6` is the socket's family; an IPv6
/// socket gets the setting for the IPv4 packets it may send, too.
///
/// # Errors
///
/// As setsockopt(2).
pub fn set_dont_fragment(fd: impl AsFd, v6: bool, dont_fragment: bool) -> io::Result<()> {
    let fd = fd.as_fd();
    let (mode4, mode6) = if dont_fragment {
        (Ipv4PathMtuDiscovery::DO, Ipv6PathMtuDiscovery::DO)
    } else {
        (Ipv4PathMtuDiscovery::DONT, Ipv6PathMtuDiscovery::DONT)
    };
    if v6 {
        sockopt::set_ipv6_mtu_discover(fd, mode6)?;
        // Refused with ENOPROTOOPT where IPv4 is not compiled in; then it is not needed either.
        let _ = sockopt::set_ip_mtu_discover(fd, mode4);
        return Ok(());
    }
    Ok(sockopt::set_ip_mtu_discover(fd, mode4)?)
}

/// A datagram socket that the kernel has given a route to where nothing more specific leads: its address
/// and MTU are those of the default route. `None` without such a route. Sends nothing.
fn towards_default_route(v6: bool) -> Option<OwnedFd> {
    // A root server, which stands for the rest of the world.
    let (family, to) = match v6 {
        false => (AddressFamily::INET, SocketAddr::from(([198, 41, 0, 4], 9))),
        true => {
            let to = [0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30];
            (AddressFamily::INET6, SocketAddr::from((to, 9)))
        }
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None).ok()?;
    rustix::net::connect(&socket, &to).ok()?;
    Some(socket)
}

/// The host's own address of the family on its default route.
pub fn default_route_address(v6: bool) -> Option<IpAddr> {
    let socket = UdpSocket::from(towards_default_route(v6)?);
    Some(socket.local_addr().ok()?.ip())
}

/// The MTU in bytes of the route to where nothing more specific leads, as the kernel has it for a
/// socket connected there (`IP_MTU`, ip(7); `IPV6_MTU`, ipv6(7)); of IPv6 where there is no IPv4.
pub fn default_route_mtu() -> Option<u32> {
    let of_route = |v6| route_mtu_of(towards_default_route(v6)?.as_fd(), v6);
    of_route(false).or_else(|| of_route(true))
}

/// The MTU in bytes of the route of a connected datagram socket of that family.
pub(super) fn route_mtu_of(socket: BorrowedFd<'_>, v6: bool) -> Option<u32> {
    let (level, option) = match v6 {
        false => (libc::IPPROTO_IP, libc::IP_MTU),
        true => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut bytes = [0; 4];
    get_bytes(socket, level, option, &mut bytes).ok()?;
    Some(u32::from_ne_bytes(bytes))
}

/// Undoes [`reset_on_close`]: close(2) delivers what is queued and sends FIN.
///
/// # Errors
///
/// As setsockopt(2).
pub fn deliver_on_close(fd: impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(fd, None)?)
}

/// Makes close(2) send RST instead of FIN and drop what is queued (`SO_LINGER` with 0 seconds,
/// socket(7)).
///
/// # Errors
///
/// As setsockopt(2).
pub fn reset_on_close(fd: impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(fd, Some(Duration::ZERO))?)
}

/// Opens a non-blocking ping socket (icmp(7)): it sends echo requests under an identifier that is
/// its local port, and receives the replies to them.
///
/// # Errors
///
/// `EACCES` where `net.ipv4.ping_group_range` holds none of the process's groups; the setting
/// serves both families.
pub fn ping_socket(v6: bool) -> io::Result<OwnedFd> {
    let (family, protocol) = if v6 {
        (AddressFamily::INET6, ipproto::ICMPV6)
    } else {
        (AddressFamily::INET, ipproto::ICMP)
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        family,
        SocketType::DGRAM,
        flags,
        Some(protocol),
    )?)
}

/// Bytes written to a TCP socket that the far end has not acknowledged (`SIOCOUTQ`, tcp(7)).
///
/// # Errors
///
/// `EINVAL` on a listening socket.
pub fn unacknowledged(fd: impl AsFd) -> io::Result<usize> {
    query(fd.as_fd(), libc::TIOCOUTQ as _)
}

/// Bytes written to a TCP socket that have not been sent (`SIOCOUTQNSD`, tcp(7)).
///
/// # Errors
///
/// `EINVAL` on a listening socket.
pub fn unsent(fd: impl AsFd) -> io::Result<usize> {
    // include/uapi/linux/sockios.h
    const SIOCOUTQNSD: libc::c_ulong = 0x894b;
    query(fd.as_fd(), SIOCOUTQNSD)
}

fn query(fd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: the descriptor is open; both requests passed in this file write one int.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut value) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(value).unwrap_or(0))
}
