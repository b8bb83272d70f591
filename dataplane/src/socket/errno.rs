//! From the kernel's errors to what the core knows of them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use cnet_nat::host::HostError;
use rustix::io::Errno;

/// What an errno means to the core.
pub(super) fn from_errno(e: Errno) -> HostError {
    match e {
        Errno::AGAIN | Errno::INPROGRESS | Errno::ALREADY | Errno::INTR => HostError::WouldBlock,
        Errno::CONNREFUSED => HostError::Refused,
        Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED | Errno::NOTCONN => HostError::Reset,
        Errno::TIMEDOUT => HostError::TimedOut,
        Errno::NETUNREACH | Errno::NETDOWN => HostError::NetUnreachable,
        Errno::HOSTUNREACH | Errno::HOSTDOWN => HostError::HostUnreachable,
        Errno::ACCESS | Errno::PERM => HostError::Prohibited,
        Errno::MSGSIZE => HostError::TooBig,
        Errno::MFILE
        | Errno::NFILE
        | Errno::NOMEM
        | Errno::NOBUFS
        | Errno::NOSPC
        | Errno::ADDRNOTAVAIL
        | Errno::ADDRINUSE => HostError::Exhausted,
        Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT | Errno::PROTOTYPE => {
            HostError::Unsupported
        }
        _ => HostError::Other,
    }
}

/// Why connect(2) to `to` failed. A socket that finds no address to come from is not short of anything
/// that another flow could give up for it: where IPv6 is switched off that is every one to IPv6,
/// otherwise all ports towards this destination are in use. EINVAL is a blackhole route's
/// (ip-route(8)). No ICMP error makes that errno of it in the container: that there is no way to there
/// is the nearest.
pub(super) fn from_connect(errno: Errno, to: IpAddr) -> HostError {
    match errno {
        Errno::INVAL => HostError::NetUnreachable,
        Errno::ADDRNOTAVAIL if to.is_ipv6() => HostError::NetUnreachable,
        Errno::ADDRNOTAVAIL => HostError::Other,
        other => from_errno(other),
    }
}

/// Why sendmsg(2) of one datagram to `to` failed. EINVAL is what a blackhole route says, or the host's
/// own address to send from where it has gone; and with UDP, port 0, where nothing can listen.
pub(super) fn from_send(e: &io::Error, to: SocketAddr, udp: bool) -> HostError {
    match e.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::INVAL) if udp && to.port() == 0 => HostError::Refused,
        Some(Errno::INVAL) => HostError::NetUnreachable,
        _ => from_io(e),
    }
}

pub(super) fn from_io(e: &io::Error) -> HostError {
    e.raw_os_error().map_or(HostError::Other, |n| {
        from_errno(Errno::from_raw_os_error(n))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_address_to_come_from_takes_nobodys_descriptor() {
        let [v4, v6]: [IpAddr; 2] = [[192, 0, 2, 1].into(), "2001:db8::1".parse().unwrap()];
        assert_eq!(
            from_connect(Errno::ADDRNOTAVAIL, v6),
            HostError::NetUnreachable
        );
        assert_eq!(from_connect(Errno::ADDRNOTAVAIL, v4), HostError::Other);
        assert_eq!(from_connect(Errno::MFILE, v4), HostError::Exhausted);
        assert_eq!(from_connect(Errno::INPROGRESS, v6), HostError::WouldBlock);
    }

    #[test]
    fn a_blackhole_is_a_network_without_a_way_and_nothing_listens_on_port_0() {
        let to: SocketAddr = "192.0.2.1:0".parse().unwrap();
        let refused = io::Error::from(Errno::INVAL);
        let unreachable = HostError::NetUnreachable;
        assert_eq!(from_connect(Errno::INVAL, to.ip()), unreachable);
        assert_eq!(from_send(&refused, to, false), unreachable);
        assert_eq!(from_send(&refused, to, true), HostError::Refused);
        let to = SocketAddr::new(to.ip(), 9);
        assert_eq!(from_send(&refused, to, true), unreachable);
    }
}
