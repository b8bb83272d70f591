//! What uplinks change: which questions stay on this side of them, and which are answered in the place
//! of a station behind them.
//!
//! # Theory of operation
//!
//! Every host of a network that spans several has a gateway of its own, at the same addresses. So what
//! a container asks of the gateway ([`stays_here`]) does not leave by an uplink, and what comes in by
//! one never reaches this host's router (`switch.rs`).
//!
//! A question of address resolution for a station behind an uplink would go to every other host. It is
//! answered here ([`question`]) while that station was heard of a moment ago, as the kernel's bridge does
//! with `neigh_suppress` (bridge(8)). One that was silent for longer is asked itself: a station's kernel
//! asks all only when its last neighbour did not answer, so an old answer would only repeat the mistake.

use std::net::{IpAddr, Ipv6Addr};

use crate::stations::Stations;
use cnet_wire::addr::{MacAddr, PortId};
use cnet_wire::arp::{self, ArpPacket, OP_REQUEST};
use cnet_wire::dhcp;
use cnet_wire::frame::{Frame, L3, protocol};
use cnet_wire::icmp::v6;
use cnet_wire::ndp::{self, NdpOptions};

/// Whether a frame to many is for the gateway alone: a question for one of its addresses, a router
/// solicitation, or a message to a DHCP server.
pub(crate) fn stays_here(frame: &Frame<'_>, stations: &Stations) -> bool {
    match &frame.l3 {
        L3::Arp => frame
            .arp()
            .is_some_and(|arp| is_gateway(stations, IpAddr::V4(arp.target_ip))),
        L3::Ip(ip) if ip.protocol == protocol::ICMPV6 => match frame.l4(ip) {
            [v6::ROUTER_SOLICITATION, ..] => true,
            l4 @ [v6::NEIGHBOUR_SOLICITATION, ..] => {
                let target = ndp::target(l4).map(IpAddr::V6);
                target.is_some_and(|target| is_gateway(stations, target))
            }
            _ => false,
        },
        L3::Ip(ip) if ip.protocol == protocol::UDP => {
            let server = match ip.src {
                IpAddr::V4(_) => dhcp::v4::SERVER_PORT,
                IpAddr::V6(_) => dhcp::v6::SERVER_PORT,
            };
            frame.ports(ip).is_some_and(|[_, to]| to == server)
        }
        L3::Ip(_) => false,
    }
}

fn is_gateway(stations: &Stations, address: IpAddr) -> bool {
    stations.addresses.pinned(address) == Some(PortId::ROUTER)
}

/// Who has an address, as a station that has one of its own asks all others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// By ARP.
    Arp(ArpPacket),
    /// By neighbour discovery: the address that is asked for, and who asks.
    Ndp {
        /// The address.
        target: Ipv6Addr,
        /// The asker's.
        asker: (Ipv6Addr, MacAddr),
    },
}

impl Question {
    /// The address that is asked for.
    pub fn target(&self) -> IpAddr {
        match self {
            Question::Arp(asked) => IpAddr::V4(asked.target_ip),
            Question::Ndp { target, .. } => IpAddr::V6(*target),
        }
    }

    /// Gives `take` the frame by which the station at `mac` answers, virtio-net header first.
    pub fn answer<T>(&self, mac: MacAddr, take: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Question::Arp(asked) => take(&arp::answer(asked, mac)),
            Question::Ndp { target, asker } => take(&ndp::answer(*target, mac, *asker)),
        }
    }
}

/// The question in a frame to many. Probes for duplicate addresses are none: whose they are is still
/// open, and the other end is to hear of it.
pub(crate) fn question(frame: &Frame<'_>) -> Option<Question> {
    if !frame.dst.is_multicast() {
        return None;
    }
    match &frame.l3 {
        L3::Arp => {
            let asked = frame.arp()?;
            let is_question = asked.operation == OP_REQUEST
                && !asked.sender_ip.is_unspecified()
                && asked.sender_ip != asked.target_ip;
            is_question.then_some(Question::Arp(asked))
        }
        L3::Ip(ip) if ip.protocol == protocol::ICMPV6 && ip.fragment.is_none() => {
            let l4 = frame.l4(ip);
            let IpAddr::V6(from) = ip.src else {
                return None;
            };
            if l4.first() != Some(&v6::NEIGHBOUR_SOLICITATION) || from.is_unspecified() {
                return None;
            }
            let mut told = NdpOptions::of(l4).ok()?;
            let mac = told.find_map(|option| option.ok()?.link_layer_address());
            Some(Question::Ndp {
                target: ndp::target(l4)?,
                asker: (from, mac.unwrap_or(frame.src)),
            })
        }
        L3::Ip(_) => None,
    }
}
