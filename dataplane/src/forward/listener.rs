//! Opening the socket of a rule, and telling why that failed in words that say what to do.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use cnet_wire::Protocol;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::{ForwardError, Rule};

/// Connections that may wait to be accepted (`net.core.somaxconn` caps it).
const BACKLOG: i32 = 4096;

/// The socket of a rule.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) fd: OwnedFd,
    /// Where it is bound, by the kernel's word.
    pub(super) at: SocketAddr,
}

/// Opens the socket of `rule`, bound and, for TCP, listening.
pub(super) fn open(rule: &Rule) -> Result<Bound, ForwardError> {
    let mut host = rule.host;
    let mut opened = try_open(rule, host);
    if rule.both_families && matches!(opened, Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)) {
        // A kernel without IPv6 has all its addresses in one family.
        host = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), host.port());
        opened = try_open(rule, host);
    }
    let fd = opened.map_err(|errno| explain(rule, errno))?;
    let at = rustix::net::getsockname(&fd).map_err(|errno| explain(rule, errno))?;
    // It is of the family that it was opened in.
    let at = SocketAddr::try_from(at).unwrap_or(host);
    Ok(Bound { fd, at })
}

fn try_open(rule: &Rule, host: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if host.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let kind = match rule.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family, kind, flags, None)?;
    if host.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, !rule.both_families)?;
    }
    if rule.protocol == Protocol::Tcp {
        // A port whose connections are still in TIME-WAIT may be opened again.
        sockopt::set_socket_reuseaddr(&fd, true)?;
    }
    rustix::net::bind(&fd, &host)?;
    if rule.protocol == Protocol::Tcp {
        rustix::net::listen(&fd, BACKLOG)?;
    }
    Ok(fd)
}

fn explain(rule: &Rule, errno: Errno) -> ForwardError {
    let Rule { protocol, host, .. } = *rule;
    match errno {
        Errno::ADDRINUSE => ForwardError::InUse { protocol, host },
        Errno::ACCESS | Errno::PERM => ForwardError::Privileged { port: host.port() },
        Errno::ADDRNOTAVAIL => ForwardError::NotLocal { address: host.ip() },
        Errno::AFNOSUPPORT => ForwardError::NoFamily { host },
        errno => ForwardError::other(rule, errno.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(host: &str) -> Rule {
        let container: SocketAddr = "10.0.2.100:80".parse().unwrap();
        Rule::new(Protocol::Tcp, host.parse().unwrap(), container)
    }

    #[test]
    fn one_socket_serves_both_families() {
        let container: SocketAddr = "10.0.2.100:80".parse().unwrap();
        let rule = Rule::on_all(Protocol::Tcp, 0, container.into());
        let bound = open(&rule).unwrap();
        let port = bound.at.port();
        for host in ["127.0.0.1", "::1"] {
            let at = SocketAddr::new(host.parse().unwrap(), port);
            std::net::TcpStream::connect(at).unwrap();
            assert!(open(&super::Rule::new(Protocol::Tcp, at, container)).is_err());
        }
    }

    #[test]
    fn a_taken_port_and_a_foreign_address_are_named() {
        let first = open(&rule("127.0.0.1:0")).unwrap();
        let error = open(&rule(&first.at.to_string())).unwrap_err();
        assert_eq!(
            error,
            ForwardError::InUse {
                protocol: Protocol::Tcp,
                host: first.at
            }
        );
        assert!(error.to_string().contains("already in use"));
        let error = open(&rule("192.0.2.77:8080")).unwrap_err();
        assert_eq!(
            error,
            ForwardError::NotLocal {
                address: "192.0.2.77".parse().unwrap()
            }
        );
    }
}
