//! Published ports of the host, of every protocol, and the ways their clients take to a container.
//!
//! # Theory of operation
//!
//! A published port is a [`Rule`]: one address and port of the host, one protocol, one address and
//! port of a container. The primary worker holds the table of open rules ([`table`]). A list of rules
//! replaces the table, or a part of it, by difference: rules that stay are not bound again, so their
//! listeners lose no waiting client; rules that are gone are closed, and then new ones are opened, so
//! that an address may change hands within one list. Each rule has a result of its own; a caller that
//! wants all or none closes what was opened.
//!
//! [`listener`] opens the socket of a rule. One of TCP is the table's. It holds its port from the
//! start, and listens while a program in the container does ([`presence`]). A UDP socket becomes the
//! core's, which maps its clients (`cnet_nat::datagram`).
//!
//! # The way of a TCP client
//!
//! What becomes of an accepted client is one decision of the core
//! ([`cnet_nat::forward::client_path`]): *splice* it to a socket inside the container's namespace
//! ([`splice`]), bring it to the container by *frames* under an address that the container can
//! answer, or *refuse* it.
//!
//! # What closes a rule
//!
//! Its removal, or the removal of the port whose container has the address that it leads to: that
//! address may be another container's at once. Connections made through a rule go on without it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use cnet_nat::forward::ContainerEnd;
use cnet_tap::socket::BoundSocket;
use cnet_wire::Protocol;

mod counters;
mod listener;
mod presence;
pub(crate) mod splice;
mod table;

pub use counters::ForwardCounters;
pub use splice::start_socket_helper;
pub(crate) use table::{Forwards, Replaced};

/// Names an open forward. The same number is never given twice by one network.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ForwardId(pub u32);

/// A port of the host to be opened, and where in the container it leads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Rule {
    /// Transport.
    pub protocol: Protocol,
    /// Address and port of the host; port 0 lets the kernel choose one.
    pub host: SocketAddr,
    /// Whether the socket serves IPv4 as well, though `host` is `[::]`. On a host without IPv6 it
    /// serves IPv4 alone.
    pub both_families: bool,
    /// Port and addresses of the container.
    pub container: ContainerEnd,
    /// Whether clients of the host's loopback are brought to the container's loopback, and not to its
    /// own addresses.
    pub to_loopback: bool,
}

impl Rule {
    /// A rule that leads from `host` to `container`.
    pub fn new(protocol: Protocol, host: SocketAddr, container: impl Into<ContainerEnd>) -> Rule {
        Rule {
            protocol,
            host,
            both_families: false,
            container: container.into(),
            to_loopback: false,
        }
    }

    /// A rule that leads from the port `host` of all the host's addresses, of both families, to
    /// `container`.
    pub fn on_all(protocol: Protocol, host: u16, container: ContainerEnd) -> Rule {
        Rule {
            both_families: true,
            ..Rule::new(
                protocol,
                SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), host),
                container,
            )
        }
    }
}

/// A rule whose socket is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct OpenForward {
    /// What names it.
    pub id: ForwardId,
    /// What was asked for.
    pub rule: Rule,
    /// The host's address and port that it has: the port is the kernel's choice if the rule's is 0.
    pub bound: SocketAddr,
}

impl OpenForward {
    /// The open forward `id` of `rule`, which is bound to `bound`.
    pub fn new(id: ForwardId, rule: Rule, bound: SocketAddr) -> OpenForward {
        OpenForward { id, rule, bound }
    }

    /// Each of the host's addresses that it is open at, an unspecified one for all of a family, and
    /// the container's end that its clients are first brought to.
    pub fn ends(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> + use<> {
        let OpenForward { rule, bound, .. } = *self;
        let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), bound.port());
        let as_v4 = (rule.both_families && bound.is_ipv6()).then_some(v4);
        let hosts = as_v4.into_iter().chain([bound]);
        hosts.filter_map(move |host| Some((host, rule.container.in_order(host.ip()).next()?)))
    }
}

/// The sockets of a container that programs elsewhere can send to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BoundSockets {
    /// Those of TCP that listen.
    pub tcp: Vec<BoundSocket>,
    /// Those of UDP without a far end.
    pub udp: Vec<BoundSocket>,
}

/// Why a rule was not opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// Another socket has the port.
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
        address: IpAddr,
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
    /// More ports than the process may have descriptors for.
    #[error(
        "no more than {limit} ports can be published here: each takes a descriptor, and others need some too. Publish fewer, or raise the limit of descriptors (`ulimit -n`, LimitNOFILE= of systemd)"
    )]
    TooMany {
        /// The most ports.
        limit: usize,
    },
    /// The network has stopped.
    #[error("the network has stopped")]
    Ended,
}

impl ForwardError {
    /// The kernel, or the core, refuses `rule` for a reason without a way out of its own.
    fn other(rule: &Rule, reason: String) -> ForwardError {
        ForwardError::Other {
            protocol: rule.protocol,
            host: rule.host,
            reason,
        }
    }
}

/// An address as a peer is known by: IPv4-mapped IPv6 addresses are IPv4.
fn canonical(a: SocketAddr) -> SocketAddr {
    SocketAddr::new(a.ip().to_canonical(), a.port())
}
