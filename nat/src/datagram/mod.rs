//! Datagrams: UDP and ICMP echo through sockets of the host, and the fragments they may come in.
//!
//! Theory of operation. A container's UDP port, or its echo identifier, is *mapped* to one host
//! socket, whatever it talks to: endpoint-independent mapping (RFC 4787 REQ-1), so what a STUN
//! server saw is what every peer can answer to. Whatever arrives at that socket is passed on:
//! endpoint-independent filtering (REQ-8), which games, QUIC migration and hole punching count on.
//! It opens no more than a program of the host opens that binds a port for itself; a container that
//! wants less has `connect(2)`.
//!
//! `mapping` holds the mappings, their quota and their expiry, `give_way` says which one makes room for
//! another. `relay` does with them what is alike
//! for both protocols: it admits a packet, sends it on and receives answers. `errors` turns what the
//! host's sockets report into ICMP. [`DatagramSessions`] is the whole of one protocol for the router;
//! in what [`udp`], with its published ports (`forward`), and [`ping`] differ stands in those files.
//! [`icmp_quote`] reads the ICMP errors that containers send. What is too long for the container's MTU
//! leaves in fragments ([`crate::fragment`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cnet_wire::IpHeader;
use cnet_wire::time::Duration;

use crate::flow::{FlowBudget, Limits};
use crate::host::Readiness;
use cnet_wire::headers::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};

mod errors;
mod forward;
mod give_way;
pub mod icmp_quote;
mod mapping;
pub mod ping;
mod relay;
mod session;
#[cfg(test)]
pub(crate) mod testing;
pub mod udp;

pub use forward::{PublishError, UdpForward};
pub use icmp_quote::Quote;
pub use ping::PingSessions;
pub use session::DatagramSessions;
pub use udp::UdpSessions;

/// Shortest life of a UDP mapping (RFC 4787 REQ-5).
pub const MIN_UDP_TIMEOUT: Duration = Duration::from_secs(120);
/// Shortest life of an echo mapping: that of UDP, more than the 60 s of RFC 5508 REQ-2.
pub const MIN_PING_TIMEOUT: Duration = MIN_UDP_TIMEOUT;

/// What the datagram engines are told at construction.
#[derive(Clone, Debug)]
pub struct DatagramConfig {
    /// MTU of the containers' links, in bytes of IP packet.
    pub mtu: usize,
    /// Mappings a container may hold.
    pub limits: Limits,
    /// Flows of every protocol that all containers together may hold.
    pub budget: FlowBudget,
    /// Life of a UDP mapping after the last packet in either direction; raised to
    /// [`MIN_UDP_TIMEOUT`].
    pub udp_timeout: Duration,
    /// The same for echo; raised to [`MIN_PING_TIMEOUT`].
    pub ping_timeout: Duration,
    /// What the host's IPv4 loopback addresses look like to containers that did not themselves
    /// send to one of [`crate::policy::Policy::host_loopback`]. Without it, their datagrams are
    /// dropped.
    pub host_alias_v4: Option<Ipv4Addr>,
    /// The same for `::1`.
    pub host_alias_v6: Option<Ipv6Addr>,
    /// As [`crate::policy::Policy::host_own`]: the host's own address is shown as the one that
    /// stands for it.
    pub host_own: Vec<(IpAddr, IpAddr)>,
    /// Source of ICMP errors that the router makes itself. Without it there are none.
    pub gateway_v4: Option<Ipv4Addr>,
    /// Source of such ICMPv6 errors.
    pub gateway_v6: Option<Ipv6Addr>,
    /// Ports that take UDP super-frames get them ([`cnet_wire::FrameSink::takes_uso`]).
    pub uso: bool,
}

impl Default for DatagramConfig {
    fn default() -> Self {
        DatagramConfig {
            mtu: 1500,
            limits: Limits::default(),
            budget: FlowBudget::default(),
            udp_timeout: Duration::from_secs(300),
            ping_timeout: MIN_PING_TIMEOUT,
            host_alias_v4: None,
            host_alias_v6: None,
            host_own: Vec::new(),
            gateway_v4: None,
            gateway_v6: None,
            uso: false,
        }
    }
}

/// The largest MTU of a link that has a path of that width behind it, if any has: Ethernet's with jumbo
/// frames.
const LARGEST_LINK_MTU: usize = 9216;
/// Where the container's link is wider than that, the largest packet whose Don't Fragment bit is taken
/// at its word. A container's kernel sets the bit on whatever fits its link: a datagram that it would
/// have cut itself on an ordinary link is cut by the host instead.
const ORDINARY_MTU: usize = 1500;

impl DatagramConfig {
    /// Whether the host is to report that a datagram of `ip`, of `l4_len` bytes with its transport
    /// header, is too large for the path, rather than cut it.
    #[inline]
    fn must_stay_whole(&self, ip: &IpHeader, l4_len: usize) -> bool {
        let header = if ip.src.is_ipv6() {
            IPV6_HEADER_LEN
        } else {
            IPV4_HEADER_LEN
        };
        let is_ordinary = header + l4_len <= ORDINARY_MTU;
        ip.dont_fragment && (is_ordinary || self.mtu <= LARGEST_LINK_MTU)
    }

    /// Source of ICMP errors to an address of `family_of`'s family.
    fn gateway(&self, family_of: IpAddr) -> Option<IpAddr> {
        match family_of {
            IpAddr::V4(_) => self.gateway_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.gateway_v6.map(IpAddr::V6),
        }
    }

    /// The address a container is shown for a sender on the host's side; `None` if it cannot be
    /// shown: the host's loopback without an alias, or a neighbour on another link. `alias` is the
    /// address by which the container itself last reached the host's loopback.
    fn shown(&self, sender: IpAddr, alias: Option<IpAddr>) -> Option<IpAddr> {
        // A socket of both families reports IPv4 senders as ::ffff:a.b.c.d.
        let sender = sender.to_canonical();
        if sender.is_loopback() {
            let configured = match sender {
                IpAddr::V4(_) => self.host_alias_v4.map(IpAddr::V4),
                IpAddr::V6(_) => self.host_alias_v6.map(IpAddr::V6),
            };
            return alias
                .filter(|a| a.is_ipv4() == sender.is_ipv4())
                .or(configured);
        }
        if let Some((alias, _)) = self.host_own.iter().find(|(_, own)| *own == sender) {
            return Some(*alias);
        }
        match sender {
            IpAddr::V6(a) if a.is_unicast_link_local() => None,
            _ => Some(sender),
        }
    }
}

/// The hop limit behind us of a packet that came with `hop_limit`: we are a router, but what the host
/// has delivered does not end here.
fn next_hop_limit(hop_limit: u8) -> u8 {
    hop_limit.saturating_sub(1).max(1)
}

/// What became of a socket's event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketOutcome {
    /// What the budget did not reach: call again with this, after other sockets had their round, unless
    /// nothing is set in it. The socket will not report it again.
    pub left: Readiness,
    /// A published port's container whose link is unknown: its datagrams were dropped. The router
    /// solicits it.
    pub unresolved: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dont_fragment_counts_up_to_an_ordinary_packet_on_a_link_that_no_path_is_as_wide_as() {
        let ip = |src: &str, dont_fragment| IpHeader {
            src: src.parse().unwrap(),
            dst: src.parse().unwrap(),
            protocol: 17,
            hop_limit: 64,
            tos: 0,
            dont_fragment,
            l4: 0,
            end: 0,
            fragment: None,
        };
        let on = |mtu| DatagramConfig {
            mtu,
            ..DatagramConfig::default()
        };
        for (src, ordinary) in [("192.0.2.1", 1480), ("2001:db8::1", 1460)] {
            let whole = ip(src, true);
            for mtu in [1500, 9000, 9216, 65_520] {
                assert!(on(mtu).must_stay_whole(&whole, ordinary));
                assert!(!on(mtu).must_stay_whole(&ip(src, false), ordinary));
                let longer = on(mtu).must_stay_whole(&whole, ordinary + 1);
                assert_eq!(longer, mtu <= 9216, "{src} {mtu}");
            }
        }
    }
}
