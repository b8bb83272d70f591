//! The socket error queue: what ICMP, or the kernel itself, said about a datagram that was sent.
//!
//! With `IP_RECVERR` or `IPV6_RECVERR` every such message is queued with the payload of the
//! datagram it is about, its type and code, and the sender's address: enough to build the ICMP
//! message that the container should have received. The queue's presence shows as `EPOLLERR`. The
//! errors are also reported by the next call on the socket, once each; reading the queue first takes
//! them from there.
//!
//! Source: ip(7) on `IP_RECVERR`, ipv6(7), `include/uapi/linux/errqueue.h`.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use super::ancillary::{Control, receive, socket_address};
use super::options::set_int;

// include/uapi/linux/errqueue.h
const SO_EE_ORIGIN_LOCAL: u8 = 1;
const SO_EE_ORIGIN_ICMP: u8 = 2;
const SO_EE_ORIGIN_ICMP6: u8 = 3;

/// Bytes of `struct sock_extended_err`; the offender's address follows.
const EXTENDED_ERR_LEN: usize = 16;

/// Switches the error queue on. `v6` is the socket's family; an IPv6 socket gets it for the IPv4
/// packets it may send, too.
///
/// # Errors
///
/// As setsockopt(2).
pub fn enable_recverr(fd: impl AsFd, v6: bool) -> io::Result<()> {
    let fd = fd.as_fd();
    if v6 {
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
        // For mapped addresses only, so a kernel without IPv4 may refuse.
        let _ = set_int(fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1);
        return Ok(());
    }
    set_int(fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
}

/// Switches the error queue off again.
///
/// # Errors
///
/// As setsockopt(2).
pub fn disable_recverr(fd: impl AsFd, v6: bool) -> io::Result<()> {
    match v6 {
        true => set_int(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 0),
        false => set_int(fd.as_fd(), libc::IPPROTO_IP, libc::IP_RECVERR, 0),
    }
}

/// Which part of the network reported an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorOrigin {
    /// This host's kernel, such as `EMSGSIZE` for a datagram over the path's MTU.
    Local,
    /// An ICMP message.
    Icmp4,
    /// An ICMPv6 message.
    Icmp6,
    /// Anything else, such as a timestamp.
    Other,
}

/// One entry of the error queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketErrorReport {
    /// The errno the kernel makes of it.
    pub errno: i32,
    /// Which part of the network reported it.
    pub origin: ErrorOrigin,
    /// The ICMP type, if it was ICMP.
    pub icmp_type: u8,
    /// The ICMP code, if it was ICMP.
    pub icmp_code: u8,
    /// The MTU in bytes for `EMSGSIZE`.
    pub info: u32,
    /// The sender of the ICMP message: the router of a traceroute, or the destination.
    pub offender: Option<IpAddr>,
    /// Where the datagram was going; the unspecified address if the kernel does not say.
    pub destination: SocketAddr,
    /// Bytes of the datagram's payload in `quote`. An ICMP message may quote only its first bytes.
    pub quote_len: usize,
}

/// Takes one entry from the error queue, with the payload of the datagram it is about; `None` when
/// the queue is empty.
///
/// # Errors
///
/// As recvmsg(2).
pub fn recv_error(fd: impl AsFd, quote: &mut [u8]) -> io::Result<Option<SocketErrorReport>> {
    let mut control = Control::new();
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // An entry that is no error (a timestamp, say) is skipped; the queue is finite.
    loop {
        let mut pieces = [IoSliceMut::new(quote)];
        let got = match receive(fd.as_fd(), &mut pieces, &mut control, flags) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other?,
        };
        let report = control
            .messages()
            .filter(|(level, kind, _)| is_recverr(*level, *kind))
            .find_map(|(_, _, data)| decode(data));
        if let Some(mut report) = report {
            report.quote_len = got.length.min(quote.len());
            report.destination = got.address.unwrap_or(report.destination);
            return Ok(Some(report));
        }
    }
}

fn is_recverr(level: libc::c_int, kind: libc::c_int) -> bool {
    (level, kind) == (libc::IPPROTO_IP, libc::IP_RECVERR)
        || (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
}

/// Reads `struct sock_extended_err` and the offender's address after it.
fn decode(data: &[u8]) -> Option<SocketErrorReport> {
    let header = data.first_chunk::<EXTENDED_ERR_LEN>()?;
    let word = |at: usize| {
        u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let origin = match header[4] {
        SO_EE_ORIGIN_LOCAL => ErrorOrigin::Local,
        SO_EE_ORIGIN_ICMP => ErrorOrigin::Icmp4,
        SO_EE_ORIGIN_ICMP6 => ErrorOrigin::Icmp6,
        _ => ErrorOrigin::Other,
    };
    // The family is AF_UNSPEC where there is no offender.
    let offender = socket_address(&data[EXTENDED_ERR_LEN..]).map(|a| a.ip().to_canonical());
    Some(SocketErrorReport {
        errno: word(0) as i32,
        origin,
        icmp_type: header[5],
        icmp_code: header[6],
        info: word(8),
        offender,
        destination: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        quote_len: 0,
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::socket::set_dont_fragment;

    fn wait_for_report(socket: &UdpSocket, quote: &mut [u8]) -> SocketErrorReport {
        for _ in 0..2000 {
            if let Some(report) = recv_error(socket, quote).unwrap() {
                return report;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("no report came");
    }

    /// A loopback address without a listener. That of IPv4 is one that no other test binds a port of.
    fn closed_port(v6: bool) -> SocketAddr {
        let ip = if v6 { "[::1]:0" } else { "127.0.0.77:0" };
        UdpSocket::bind(ip).unwrap().local_addr().unwrap()
    }

    #[test]
    fn a_closed_port_is_reported_with_its_quote() {
        for (v6, connected) in [(false, false), (false, true), (true, false), (true, true)] {
            let socket = UdpSocket::bind(if v6 { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
            enable_recverr(&socket, v6).unwrap();
            let mut quote = [0; 64];
            assert_eq!(recv_error(&socket, &mut quote).unwrap(), None);
            let to = closed_port(v6);
            if connected {
                socket.connect(to).unwrap();
                socket.send(b"hello").unwrap();
            } else {
                socket.send_to(b"hello", to).unwrap();
            }
            let report = wait_for_report(&socket, &mut quote);
            let (origin, kind, code) = if v6 {
                (ErrorOrigin::Icmp6, 1, 4)
            } else {
                (ErrorOrigin::Icmp4, 3, 3)
            };
            assert_eq!(report.errno, libc::ECONNREFUSED);
            assert_eq!(
                (report.origin, report.icmp_type, report.icmp_code),
                (origin, kind, code)
            );
            assert_eq!(report.destination, to);
            assert_eq!(report.offender, Some(to.ip()));
            assert_eq!(&quote[..report.quote_len], b"hello");
            assert_eq!(recv_error(&socket, &mut quote).unwrap(), None);
        }
    }

    #[test]
    fn an_ipv6_socket_reports_ipv4_errors() {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        enable_recverr(&socket, true).unwrap();
        let to = closed_port(false);
        let mapped: SocketAddr = format!("[::ffff:{}]:{}", to.ip(), to.port())
            .parse()
            .unwrap();
        socket.send_to(b"hello", mapped).unwrap();
        let report = wait_for_report(&socket, &mut [0; 8]);
        assert_eq!(
            (report.origin, report.offender),
            (ErrorOrigin::Icmp4, Some(to.ip()))
        );
        assert_eq!(report.destination, mapped);
    }

    #[test]
    fn dont_fragment_is_reported_with_the_mtu() {
        // The loopback's MTU is 65536. Only IPv6 has datagrams over it: 65,527 bytes and 48 of
        // headers.
        let a = UdpSocket::bind("[::1]:0").unwrap();
        let to = closed_port(true);
        enable_recverr(&a, true).unwrap();
        set_dont_fragment(&a, true, true).unwrap();
        let payload = vec![0; 65_527];
        assert_eq!(
            a.send_to(&payload, to).unwrap_err().raw_os_error(),
            Some(libc::EMSGSIZE)
        );
        let mut quote = vec![0; 65_536];
        let report = wait_for_report(&a, &mut quote);
        assert_eq!(
            (report.errno, report.origin),
            (libc::EMSGSIZE, ErrorOrigin::Local)
        );
        assert_eq!(report.info, 65_536);
        set_dont_fragment(&a, true, false).unwrap();
        assert_eq!(a.send_to(&payload, to).unwrap(), 65_527);
    }

    #[test]
    fn short_and_strange_reports() {
        assert!(decode(&[0; 15]).is_none());
        let report = decode(&[0; 16]).unwrap();
        assert_eq!((report.origin, report.offender), (ErrorOrigin::Other, None));
        let mut data = [0; 19];
        data[4] = SO_EE_ORIGIN_ICMP;
        data[16] = libc::AF_INET as u8;
        assert_eq!(decode(&data).unwrap().offender, None);
    }
}
