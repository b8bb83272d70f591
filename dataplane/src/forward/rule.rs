//! Published ports: the sockets of the host that listen for the container.

use cnet_wire::Protocol;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Connections that may wait to be accepted (`net.core.somaxconn` caps it).
const BACKLOG: i32 = 4096;

/// Names a published port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ForwardId(pub u32);

/// A port of the host to be opened, and where in the container it leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Publish {
    /// Transport.
    pub protocol: Protocol,
    /// Address and port of the host; port 0 lets the kernel choose.
    pub host: SocketAddr,
    /// Address and port of the container.
    pub guest: SocketAddr,
}

/// Why a port was not published.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PublishError {
    /// Somebody has it.
    #[error(
        "{protocol} port {host} is already in use on the host; choose another one, or stop what listens there (`ss -lnp` names it)"
    )]
    InUse {
        /// Transport.
        protocol: Protocol,
        /// What was asked for.
        host: SocketAddr,
    },
    /// A port that only privileged processes may open.
    #[error(
        "port {port} may not be opened by this user; choose one from net.ipv4.ip_unprivileged_port_start on (`sysctl net.ipv4.ip_unprivileged_port_start`), lower that limit, or grant CAP_NET_BIND_SERVICE"
    )]
    Privileged {
        /// What was asked for.
        port: u16,
    },
    /// Not an address of this host.
    #[error(
        "{address} is not an address of this host; `ip address` lists them, 0.0.0.0 and [::] stand for all"
    )]
    NotLocal {
        /// What was asked for.
        address: std::net::IpAddr,
    },
    /// The host has no such protocol family.
    #[error("the host has no IPv6, so {host} cannot be opened")]
    NoFamily {
        /// What was asked for.
        host: SocketAddr,
    },
    /// Anything else.
    #[error("cannot open {protocol} port {host}: {reason}")]
    Other {
        /// Transport.
        protocol: Protocol,
        /// What was asked for.
        host: SocketAddr,
        /// The system's own word.
        reason: String,
    },
    /// No forward of that id.
    #[error("there is no published port with id {0}")]
    Unknown(u32),
    /// The network has stopped.
    #[error("the network has stopped")]
    Ended,
}

/// An open forward.
#[derive(Debug)]
pub(crate) struct Forward {
    pub id: ForwardId,
    pub publish: Publish,
    pub socket: ForwardSocket,
}

/// What listens.
#[derive(Debug)]
pub(crate) enum ForwardSocket {
    /// A TCP listener, the worker's own.
    Listener(OwnedFd),
    /// A UDP socket, the router's.
    Datagram,
}

/// Opens the socket of `publish`, bound and, for TCP, listening.
pub(crate) fn open(publish: &Publish) -> Result<OwnedFd, PublishError> {
    try_open(publish).map_err(|e| explain(publish, e))
}

fn try_open(publish: &Publish) -> Result<OwnedFd, Errno> {
    let host = publish.host;
    let family = if host.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let kind = match publish.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family, kind, flags, None)?;
    if host.is_ipv6() {
        // IPv4 clients come to the IPv4 socket, with an IPv4 address.
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    if publish.protocol == Protocol::Tcp {
        // A port whose connections are still in TIME-WAIT may be opened again.
        sockopt::set_socket_reuseaddr(&fd, true)?;
    }
    rustix::net::bind(&fd, &host)?;
    if publish.protocol == Protocol::Tcp {
        rustix::net::listen(&fd, BACKLOG)?;
    }
    Ok(fd)
}

fn explain(publish: &Publish, e: Errno) -> PublishError {
    let Publish { protocol, host, .. } = *publish;
    match e {
        Errno::ADDRINUSE => PublishError::InUse { protocol, host },
        Errno::ACCESS | Errno::PERM => PublishError::Privileged { port: host.port() },
        Errno::ADDRNOTAVAIL => PublishError::NotLocal { address: host.ip() },
        Errno::AFNOSUPPORT => PublishError::NoFamily { host },
        e => PublishError::Other {
            protocol,
            host,
            reason: e.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(host: &str) -> Publish {
        Publish {
            protocol: Protocol::Tcp,
            host: host.parse().unwrap(),
            guest: "10.0.2.100:80".parse().unwrap(),
        }
    }

    #[test]
    fn a_taken_port_and_a_foreign_address_are_named() {
        let first = open(&publish("127.0.0.1:0")).unwrap();
        let at: SocketAddr = rustix::net::getsockname(&first)
            .unwrap()
            .try_into()
            .unwrap();
        let e = open(&publish(&at.to_string())).unwrap_err();
        assert_eq!(
            e,
            PublishError::InUse {
                protocol: Protocol::Tcp,
                host: at
            }
        );
        assert!(e.to_string().contains("already in use"));
        let e = open(&publish("192.0.2.77:8080")).unwrap_err();
        assert_eq!(
            e,
            PublishError::NotLocal {
                address: "192.0.2.77".parse().unwrap()
            }
        );
    }
}
