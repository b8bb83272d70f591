//! Opening the socket of a rule, and telling why that failed in words that say what to do; and having
//! the socket of a TCP port listen, or only hold its port.
//!
//! # How a port is held
//!
//! A socket that is bound and does not listen refuses clients, since the kernel finds no listener. It
//! keeps its port from other programs if `SO_REUSEADDR` is off, whatever those have set. But with it
//! off, the port could not be bound, nor listened on, while connections of earlier listeners are
//! open or in TIME-WAIT; and connections inherit the option from their listener. So it is on while
//! the socket is bound and while it listens, when no other program can listen there anyway, and off
//! while the port is only held. The kernel remembers for a port whether all its sockets could be
//! shared (`fastreuse` in `struct inet_bind_bucket`) and then looks no closer; listening once makes
//! it forget that, so each port is listened on when it is opened, for an instant.
//!
//! shutdown(2) for reading ends listening (`inet_shutdown` in `net/ipv4/af_inet.c`). The port stays
//! if it was bound by its number and not chosen by the kernel, so a chosen one is bound again.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use cnet_wire::Protocol;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};

use super::{ForwardError, Rule};

/// Connections that may wait to be accepted (`net.core.somaxconn` caps it).
const BACKLOG: i32 = 4096;

/// How often a port that the kernel has chosen is bound by its number, when another program takes it
/// in between.
const PORT_ATTEMPTS: usize = 16;

/// The socket of a rule.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) fd: OwnedFd,
    /// Where it is bound, by the kernel's word.
    pub(super) at: SocketAddr,
}

/// Opens the socket of `rule`, bound. One of TCP holds its port and does not listen.
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
    let is_tcp = rule.protocol == Protocol::Tcp;
    if is_tcp && host.port() == 0 {
        return open_any(rule, host);
    }
    let fd = bind(rule, host)?;
    if is_tcp {
        start_listening(&fd)?;
        stop_listening(&fd)?;
    }
    Ok(fd)
}

/// A socket for `rule`, bound to `host`.
fn bind(rule: &Rule, host: SocketAddr) -> Result<OwnedFd, Errno> {
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
        // Containers see what a client's SYN said.
        let _ = cnet_tap::socket::save_syn(&fd);
    }
    Ok(fd)
}

/// Has the socket of a TCP port listen.
pub(super) fn start_listening(fd: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_socket_reuseaddr(fd, true)?;
    rustix::net::listen(fd, BACKLOG)
}

/// Has the socket hold its port and refuse clients. Those who wait to be accepted are reset.
pub(super) fn stop_listening(fd: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_socket_reuseaddr(fd, false)?;
    rustix::net::shutdown(fd, Shutdown::Read)
}

/// Opens the socket of a TCP rule that leaves the port to the kernel.
fn open_any(rule: &Rule, host: SocketAddr) -> Result<OwnedFd, Errno> {
    let mut last = Errno::ADDRINUSE;
    for _ in 0..PORT_ATTEMPTS {
        let chosen = bind(rule, host)?;
        let at = rustix::net::getsockname(&chosen)?;
        let port = SocketAddr::try_from(at).map_or(0, |at| at.port());
        drop(chosen);
        match try_open(rule, SocketAddr::new(host.ip(), port)) {
            Err(Errno::ADDRINUSE) => last = Errno::ADDRINUSE,
            opened => return opened,
        }
    }
    Err(last)
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

    /// Whether another program could take the port, with SO_REUSEADDR.
    fn is_taken(at: SocketAddr) -> bool {
        let fd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_reuseaddr(&fd, true).unwrap();
        rustix::net::bind(&fd, &at).is_err()
    }

    #[test]
    fn a_port_is_held_whether_it_listens_or_not() {
        let Bound { fd, at } = open(&rule("127.0.0.1:0")).unwrap();
        let connect = || std::net::TcpStream::connect(at);
        let accept = || rustix::net::accept(&fd).unwrap();
        let mut kept = Vec::new();
        for round in 0..3 {
            let refused = connect().unwrap_err().kind();
            assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
            assert!(is_taken(at), "held, in round {round}");
            start_listening(&fd).unwrap();
            let client = connect().unwrap();
            // One connection goes on, the other ends here first, and is in TIME-WAIT.
            kept.push((client, accept()));
            let client = connect().unwrap();
            drop(accept());
            drop(client);
            assert!(is_taken(at), "listening, in round {round}");
            stop_listening(&fd).unwrap();
        }
        drop(fd);
        // The next one opens it though connections are left.
        open(&rule(&at.to_string())).unwrap();
    }

    #[test]
    fn one_socket_serves_both_families() {
        let container: SocketAddr = "10.0.2.100:80".parse().unwrap();
        let rule = Rule::on_all(Protocol::Tcp, 0, container.into());
        let bound = open(&rule).unwrap();
        let port = bound.at.port();
        start_listening(&bound.fd).unwrap();
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
