//! Datagrams, many at a time.
//!
//! With `UDP_GRO` the kernel hands over a train of equally long datagrams of one flow in one read,
//! and says how long each is (the last may be shorter); with `UDP_SEGMENT` it cuts one write into
//! such a train. The two are each other's mirror, and both are what a USO super-frame is on a TAP:
//! [`Datagram::segment`] and [`SendOptions::segment`] are its `gso_size`.
//!
//! Source: udp(7), ip(7), ipv6(7), `net/ipv4/udp_offload.c`.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::AddressFamily;

use super::ancillary::{Control, int, is_ipv4, receive, send};
use super::options::set_int;

// include/uapi/linux/udp.h
const SOL_UDP: libc::c_int = 17;
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;

/// The most segments one [`send_datagram`] may have (`UDP_MAX_SEGMENTS`; 64 before Linux 6.9, 128
/// since).
pub const MAX_SEGMENTS: usize = 64;

/// Asks for trains of datagrams (`UDP_GRO`, Linux 5.0). Give [`recv_datagram`] 64 KiB then.
///
/// # Errors
///
/// `ENOPROTOOPT` on older kernels.
pub fn set_udp_gro(fd: impl AsFd, on: bool) -> io::Result<()> {
    set_int(fd.as_fd(), SOL_UDP, UDP_GRO, on.into())
}

/// Asks for [`Datagram::ttl`] and [`Datagram::tos`] with each datagram of the socket's own family, which
/// `v6` tells.
///
/// # Errors
///
/// As setsockopt(2).
pub fn receive_fields(fd: impl AsFd, v6: bool) -> io::Result<()> {
    let fd = fd.as_fd();
    let (level, hop_limit, tos) = match v6 {
        true => (
            libc::IPPROTO_IPV6,
            libc::IPV6_RECVHOPLIMIT,
            libc::IPV6_RECVTCLASS,
        ),
        false => (libc::IPPROTO_IP, libc::IP_RECVTTL, libc::IP_RECVTOS),
    };
    set_int(fd, level, hop_limit, 1)?;
    set_int(fd, level, tos, 1)
}

/// Asks for [`Datagram::ttl`], [`Datagram::tos`] and [`Datagram::local`] with each datagram.
/// `v6` is the socket's family; an IPv6 socket gives them for IPv4 packets as well.
///
/// # Errors
///
/// As setsockopt(2).
pub fn receive_details(fd: impl AsFd, v6: bool) -> io::Result<()> {
    let fd = fd.as_fd();
    let ipv4 = || -> io::Result<()> {
        set_int(fd, libc::IPPROTO_IP, libc::IP_RECVTTL, 1)?;
        set_int(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        set_int(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    };
    if !v6 {
        return ipv4();
    }
    set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
    set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
    // For mapped addresses only, so a kernel without IPv4 may refuse.
    let _ = ipv4();
    Ok(())
}

/// One datagram, or one train of them, as received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Bytes in the buffer.
    pub len: usize,
    /// The sender's address, as the kernel gives it: an IPv6 socket names an IPv4 sender
    /// `::ffff:a.b.c.d`.
    pub from: SocketAddr,
    /// The bytes are a train of datagrams of this many bytes each, the last one perhaps shorter.
    pub segment: Option<u16>,
    /// It was longer than the buffer; the rest is lost.
    pub truncated: bool,
    /// Its time to live or hop limit, after [`receive_details`].
    pub ttl: Option<u8>,
    /// Its type of service or traffic class, after [`receive_details`].
    pub tos: Option<u8>,
    /// The host's address that an answer is to come from, after [`receive_details`]: the one it was
    /// sent to, but for what was sent to many.
    pub local: Option<IpAddr>,
}

/// Receives one datagram, or one train of them under [`set_udp_gro`]. Serves ping sockets too.
///
/// # Errors
///
/// `WouldBlock` when none waits. A pending ICMP error, such as `ECONNREFUSED`, is reported once;
/// [`recv_error`](super::recv_error) tells more about it.
#[inline]
pub fn recv_datagram(fd: impl AsFd, buf: &mut [u8]) -> io::Result<Datagram> {
    let mut control = Control::new();
    let mut pieces = [IoSliceMut::new(buf)];
    let got = receive(fd.as_fd(), &mut pieces, &mut control, libc::MSG_DONTWAIT)?;
    let from = got.address.ok_or(io::ErrorKind::InvalidData)?;
    Ok(describe(got.length, from, got.flags, &control))
}

/// Puts together what recvmsg(2) gave.
pub(super) fn describe(
    len: usize,
    from: SocketAddr,
    flags: libc::c_int,
    control: &Control,
) -> Datagram {
    let mut datagram = Datagram {
        len,
        from,
        segment: None,
        truncated: flags & libc::MSG_TRUNC != 0,
        ttl: None,
        tos: None,
        local: None,
    };
    for (level, kind, data) in control.messages() {
        read_detail(&mut datagram, level, kind, data);
    }
    datagram
}

fn read_detail(datagram: &mut Datagram, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
    let small = || int(data).and_then(|v| u8::try_from(v).ok());
    match (level, kind) {
        (SOL_UDP, UDP_GRO) => {
            let size = int(data).and_then(|v| u16::try_from(v).ok());
            // A train of one is a datagram.
            datagram.segment = size.filter(|s| *s > 0 && usize::from(*s) < datagram.len);
        }
        (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
            datagram.ttl = small();
        }
        // The one option that comes as a byte.
        (libc::IPPROTO_IP, libc::IP_TOS) => datagram.tos = data.first().copied(),
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => datagram.tos = small(),
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // struct in_pktinfo: ifindex, spec_dst, addr.
            let addr = data.get(4..).and_then(|b| b.first_chunk::<4>());
            datagram.local = addr.map(|b| Ipv4Addr::from(*b).into());
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            // struct in6_pktinfo: addr, ifindex.
            let addr = data.first_chunk::<16>();
            let addr = addr.map(|b| Ipv6Addr::from(*b).to_canonical());
            datagram.local = addr.filter(|addr| !addr.is_multicast());
        }
        _ => {}
    }
}

/// How a datagram is to be sent, where it is not to be as the socket says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SendOptions {
    /// Cut the payload into datagrams of this many bytes (`UDP_SEGMENT`), at most
    /// [`MAX_SEGMENTS`] of them and 65,535 bytes with their headers.
    pub segment: Option<u16>,
    /// Time to live or hop limit, from 1.
    pub hop_limit: Option<u8>,
    /// Type of service or traffic class.
    pub tos: Option<u8>,
    /// The source address, one of this host's; for a socket bound to the unspecified address.
    pub source: Option<IpAddr>,
}

/// Sends one datagram, or a train of them if `segment` says how long each is. `to` is `None` on a
/// connected socket.
///
/// # Errors
///
/// As [`send_datagram_with`].
#[inline]
pub fn send_datagram(
    fd: impl AsFd,
    to: Option<SocketAddr>,
    payload: &[IoSlice<'_>],
    segment: Option<u16>,
    hop_limit: Option<u8>,
    tos: Option<u8>,
) -> io::Result<usize> {
    send_datagram_with(
        fd,
        to,
        payload,
        SendOptions {
            segment,
            hop_limit,
            tos,
            source: None,
        },
    )
}

/// Sends one datagram, or a train of them.
///
/// # Errors
///
/// `WouldBlock` when the socket's buffer is full. `EMSGSIZE` when the datagram is longer than
/// 65,507 bytes (65,527 over IPv6) or, under
/// [`set_dont_fragment`](super::set_dont_fragment), than the path takes. `EINVAL` when a segment
/// is longer than the path's MTU or there are too many. `EIO` when the device cannot checksum
/// segments. A pending ICMP error of an earlier datagram, such as `ECONNREFUSED`, is reported once
/// and nothing is sent.
#[inline]
pub fn send_datagram_with(
    fd: impl AsFd,
    to: Option<SocketAddr>,
    payload: &[IoSlice<'_>],
    options: SendOptions,
) -> io::Result<usize> {
    let fd = fd.as_fd();
    let mut control = Control::new();
    write_options(&mut control, fd, to, options)?;
    send(
        fd,
        to,
        payload,
        &control,
        libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
    )
}

/// Writes `options` as control messages for a datagram to `to`.
pub(super) fn write_options(
    control: &mut Control,
    fd: BorrowedFd<'_>,
    to: Option<SocketAddr>,
    options: SendOptions,
) -> io::Result<()> {
    if let Some(segment) = options.segment {
        control.push(SOL_UDP, UDP_SEGMENT, &segment.to_ne_bytes());
    }
    if options.hop_limit.is_some() || options.tos.is_some() {
        let (level, hop_limit, tos) = if sends_ipv4(fd, to)? {
            (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS)
        };
        if let Some(value) = options.hop_limit {
            control.push(level, hop_limit, &libc::c_int::from(value).to_ne_bytes());
        }
        if let Some(value) = options.tos {
            control.push(level, tos, &libc::c_int::from(value).to_ne_bytes());
        }
    }
    match options.source {
        None => {}
        Some(IpAddr::V4(v4)) if to.is_none_or(|to| to.is_ipv4()) => {
            let mut data = [0; 12];
            data[4..8].copy_from_slice(&v4.octets());
            control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &data);
        }
        Some(source) => {
            let address = match source {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            let mut data = [0; 20];
            data[..16].copy_from_slice(&address.octets());
            control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
        }
    }
    Ok(())
}

/// Whether the packet will be IPv4's, which decides whose options it takes.
fn sends_ipv4(fd: BorrowedFd<'_>, to: Option<SocketAddr>) -> io::Result<bool> {
    match to {
        Some(to) => Ok(is_ipv4(to.ip())),
        None => Ok(rustix::net::sockopt::socket_domain(fd)? == AddressFamily::INET),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn pair(v6: bool) -> (UdpSocket, UdpSocket) {
        let bind = || UdpSocket::bind(if v6 { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
        let (a, b) = (bind(), bind());
        a.connect(b.local_addr().unwrap()).unwrap();
        (a, b)
    }

    #[test]
    fn a_train_leaves_in_one_send_and_comes_in_one_receive() {
        for v6 in [false, true] {
            let (a, b) = pair(v6);
            set_udp_gro(&b, true).unwrap();
            let payload: Vec<u8> = (0..9500_u32).map(|i| i as u8).collect();
            let pieces = [IoSlice::new(&payload[..3]), IoSlice::new(&payload[3..])];
            assert_eq!(
                send_datagram(&a, None, &pieces, Some(1000), None, None).unwrap(),
                9500
            );
            let mut buf = vec![0; 65536];
            let got = recv_datagram(&b, &mut buf).unwrap();
            assert_eq!(
                (got.len, got.segment, got.truncated),
                (9500, Some(1000), false)
            );
            assert_eq!(got.from, a.local_addr().unwrap());
            assert_eq!(&buf[..9500], &payload);
            // Without GRO the same train arrives as ten datagrams.
            set_udp_gro(&b, false).unwrap();
            send_datagram(&a, None, &pieces, Some(1000), None, None).unwrap();
            for i in 0..10 {
                let got = recv_datagram(&b, &mut buf).unwrap();
                assert_eq!(
                    (got.len, got.segment),
                    (if i < 9 { 1000 } else { 500 }, None)
                );
            }
            let error = recv_datagram(&b, &mut buf).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn details_arrive() {
        for v6 in [false, true] {
            let (a, b) = pair(v6);
            receive_details(&b, v6).unwrap();
            let payload = [IoSlice::new(b"x")];
            let to = b.local_addr().unwrap();
            a.send(b"x").unwrap();
            for to in [None, Some(to)] {
                send_datagram(&a, to, &payload, None, Some(7), Some(0x2e)).unwrap();
            }
            let mut buf = [0; 16];
            let plain = recv_datagram(&b, &mut buf).unwrap();
            assert_eq!(
                (plain.ttl, plain.tos, plain.local),
                (Some(64), Some(0), Some(to.ip()))
            );
            for _ in 0..2 {
                let got = recv_datagram(&b, &mut buf).unwrap();
                assert_eq!(
                    (got.len, got.ttl, got.tos),
                    (1, Some(7), Some(0x2e)),
                    "{v6}"
                );
            }
        }
    }

    #[test]
    fn the_source_address_can_be_chosen() {
        let a = UdpSocket::bind("0.0.0.0:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = Some(b.local_addr().unwrap());
        let options = SendOptions {
            source: Some("127.0.0.9".parse().unwrap()),
            ..SendOptions::default()
        };
        send_datagram_with(&a, to, &[IoSlice::new(b"x")], options).unwrap();
        let got = recv_datagram(&b, &mut [0; 16]).unwrap();
        assert_eq!(got.from.ip().to_string(), "127.0.0.9");
    }

    #[test]
    fn an_ipv6_socket_serves_mapped_addresses() {
        let a = UdpSocket::bind("[::]:0").unwrap();
        receive_details(&a, true).unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        receive_details(&b, false).unwrap();
        let port = a.local_addr().unwrap().port();
        b.send_to(b"x", ("127.0.0.1", port)).unwrap();
        let got = recv_datagram(&a, &mut [0; 16]).unwrap();
        assert_eq!(got.from.ip().to_string(), "::ffff:127.0.0.1");
        assert_eq!(
            (got.ttl, got.local),
            (Some(64), Some("127.0.0.1".parse().unwrap()))
        );
        let options = SendOptions {
            hop_limit: Some(9),
            source: Some("127.0.0.8".parse().unwrap()),
            ..SendOptions::default()
        };
        send_datagram_with(&a, Some(got.from), &[IoSlice::new(b"y")], options).unwrap();
        let back = recv_datagram(&b, &mut [0; 16]).unwrap();
        assert_eq!(
            (back.ttl, back.from.ip().to_string()),
            (Some(9), "127.0.0.8".to_owned())
        );
    }

    #[test]
    fn truncation_is_told() {
        let (a, b) = pair(false);
        a.send(&[1; 100]).unwrap();
        let got = recv_datagram(&b, &mut [0; 10]).unwrap();
        assert!(got.truncated);
        assert_eq!(got.len, 10);
        a.send(&[]).unwrap();
        let got = recv_datagram(&b, &mut [0; 10]).unwrap();
        assert_eq!((got.len, got.truncated), (0, false));
    }
}
