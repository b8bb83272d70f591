//! The UDP sockets of a tunnel's end: one that hears all peers, and those that send to one each.
//!
//! Source: udp(7), ip(7), socket(7), `net/ipv4/udp.c`, `include/uapi/linux/sock_diag.h`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::sockopt;

use super::options::{get_bytes, route_mtu_of, set_dont_fragment, set_int};
use super::udp::set_udp_gro;

// include/uapi/linux/udp.h
const SOL_UDP: libc::c_int = 17;
const UDP_NO_CHECK6_RX: libc::c_int = 102;

/// Bytes of received datagrams that wait, as far as `net.core.rmem_max` lets a socket ask: a buffer that
/// is full loses whole trains.
const RECEIVE_BUFFER: usize = 8 << 20;

/// A non-blocking socket for the datagrams of all peers to `port`, of both families where the host has
/// both. Trains come in one read (`UDP_GRO`), and IPv6 without a checksum is taken (RFC 6935).
///
/// # Errors
///
/// `EADDRINUSE` where another program, or the kernel's own tunnel, has the port.
pub fn open_tunnel(port: u16) -> io::Result<OwnedFd> {
    let both = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port));
    let (socket, v6) = match both {
        Ok(socket) => (socket, true),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
        // A host without IPv6.
        Err(_) => (UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?, false),
    };
    socket.set_nonblocking(true)?;
    // Without any of these it is slower, or refuses what few send.
    let _ = set_udp_gro(&socket, true);
    let _ = sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER);
    if v6 {
        let _ = set_int(socket.as_fd(), SOL_UDP, UDP_NO_CHECK6_RX, 1);
    }
    Ok(socket.into())
}

/// A non-blocking socket that sends to `peer`, from a port of its own. What it sends may be cut into
/// fragments on its way, as the kernel's tunnels allow by default (`df unset`, ip-link(8)).
///
/// # Errors
///
/// `ENETUNREACH` where the host has no route to `peer`.
pub fn open_tunnel_to(peer: SocketAddr) -> io::Result<OwnedFd> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(peer)?;
    set_dont_fragment(&socket, peer.is_ipv6(), false)?;
    Ok(socket.into())
}

/// The MTU in bytes of the host's route to `peer`, as the kernel has it now; `None` without a route.
pub fn route_mtu(peer: SocketAddr) -> Option<u32> {
    let socket = open_tunnel_to(peer).ok()?;
    route_mtu_of(socket.as_fd(), peer.is_ipv6())
}

/// Datagrams that `socket` has lost because its buffer was full (`SO_MEMINFO`, Linux 4.12).
pub fn lost_datagrams(socket: impl AsFd) -> u64 {
    const SO_MEMINFO: libc::c_int = 55;
    // SK_MEMINFO_DROPS
    const DROPS: usize = 8;
    let mut values = [0; 4 * (DROPS + 1)];
    let got = get_bytes(socket.as_fd(), libc::SOL_SOCKET, SO_MEMINFO, &mut values);
    match (got, values.last_chunk()) {
        (Ok(length), Some(drops)) if length == values.len() => u32::from_ne_bytes(*drops).into(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::recv_datagram;

    #[test]
    fn a_tunnels_end_hears_both_families_and_knows_its_routes() {
        let end = open_tunnel(0).unwrap();
        let port = UdpSocket::from(end.try_clone().unwrap());
        let port = port.local_addr().unwrap().port();
        let taken = open_tunnel(port).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        for host in ["127.0.0.1", "::1"] {
            let peer: SocketAddr = (host.parse::<std::net::IpAddr>().unwrap(), port).into();
            let to = open_tunnel_to(peer).unwrap();
            rustix::io::write(&to, b"frame").unwrap();
            let got = recv_datagram(&end, &mut [0; 16]).unwrap();
            assert_eq!((got.len, got.from.ip().to_canonical()), (5, peer.ip()));
            assert!(route_mtu(peer).is_some_and(|mtu| mtu > 1280));
        }
        assert_eq!(lost_datagrams(&end), 0);
    }
}
