//! Who may speak to whom, and what address of the host that becomes.
//!
//! Policy sees a whole conversation: which way it is opened, the container's switch port, the protocol
//! and both ends ([`Conversation`]). It is asked before anything enters a table: outwards once a flow,
//! for TCP, UDP and ICMP alike; inwards for every accepted client and every datagram of a published
//! port; between containers for every packet that the switch would deliver, where there are rules for
//! that ([`Policy::has_rules`]).
//!
//! A rule that has to see each packet of a conversation, or its answers, is none of policy's: checks on
//! frames stand with the switch's admission (`vswitch/src/admit`).
//!
//! Its default is the safe one: the host's loopback under any of its names, and the instance metadata
//! services of clouds, cannot be reached (CVE-2020-13401 and the like start here).

mod addresses;
mod filter;
mod host_access;
mod rules;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use cnet_wire::access::{Access, Asked, Way};
use cnet_wire::conversation::{Conversation, Decision, Direction, Refusal};
use cnet_wire::frame::protocol;
use cnet_wire::{Packet, PortId};

pub(crate) use addresses::is_routable;
use addresses::{embedded_ipv4, is_metadata, is_this_host};
pub use cnet_wire::access::Prefix;
pub use filter::PeerFilter;
pub use host_access::HostAccess;
pub use rules::Rule;

/// The rules of one network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Addresses that stand for the host's loopback (slirp4netns: the gateway's own), when the
    /// host's loopback may be reached at all.
    pub host_loopback: Vec<IpAddr>,
    /// Addresses that stand for the host's loopback for those ports alone that a filter opens
    /// ([`PeerFilter::host_access`]).
    pub host_access_at: Vec<IpAddr>,
    /// Addresses that stand for an address of the host's own, each with that one: the container has
    /// that address itself, and reaches the host under the first alone.
    pub host_own: Vec<(IpAddr, IpAddr)>,
    /// Whether the instance metadata and credential services of clouds may be reached: the
    /// link-local addresses, and the further ones where clouds have them.
    pub allow_metadata: bool,
    /// The far ends that all containers of the network may talk with.
    pub filter: PeerFilter,
    /// The same for single containers, by their switch ports: both are asked.
    pub port_filters: BTreeMap<PortId, PeerFilter>,
    /// What is allowed to containers that policies select, by their switch ports. Between containers the
    /// switch asks the same.
    pub access: BTreeMap<PortId, Arc<Access>>,
    /// The addresses that the host has now, for filters that refuse them.
    pub host_addresses: Vec<IpAddr>,
    /// IPv4 egress.
    pub ipv4: bool,
    /// IPv6 egress.
    pub ipv6: bool,
    /// Rules of an administrator; the first that matches decides.
    pub rules: Vec<Rule>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            host_loopback: Vec::new(),
            host_access_at: Vec::new(),
            host_own: Vec::new(),
            allow_metadata: false,
            filter: PeerFilter::default(),
            port_filters: BTreeMap::new(),
            access: BTreeMap::new(),
            host_addresses: Vec::new(),
            ipv4: true,
            ipv6: true,
            rules: Vec::new(),
        }
    }
}

impl Policy {
    /// Whether any rule or filter is about conversations of `direction`.
    #[inline]
    pub fn has_rules(&self, direction: Direction) -> bool {
        let filters =
            !self.filter.is_empty() || !self.port_filters.is_empty() || !self.access.is_empty();
        (direction != Direction::Between && filters)
            || !self.rules.is_empty() && self.rules.iter().any(|rule| rule.direction == direction)
    }

    /// Has `filter` decide about the container at `port`, and no longer what was there before.
    pub fn set_port_filter(&mut self, port: PortId, filter: PeerFilter) {
        match filter.is_empty() {
            true => self.port_filters.remove(&port),
            false => self.port_filters.insert(port, filter),
        };
    }

    /// Whether a filter refuses the far end at `address` to the container at `port`; without a port
    /// the network's filter alone is asked.
    pub fn filters_refuse(
        &self,
        port: Option<PortId>,
        direction: Direction,
        address: IpAddr,
    ) -> bool {
        let canonical = embedded_ipv4(address).map_or(address, IpAddr::V4);
        self.filters_of(port).any(|f| {
            f.refuses(direction, canonical, &self.host_addresses)
                || canonical != address && f.refuses(direction, address, &self.host_addresses)
        })
    }

    /// Whether what is allowed to the container forbids the conversation, whose far end is `peer`.
    fn access_refuses(&self, way: Way, peer: IpAddr, conversation: &Conversation) -> bool {
        let access = conversation.port.and_then(|port| self.access.get(&port));
        let has_ports = matches!(conversation.protocol, protocol::TCP | protocol::UDP);
        let asked = Asked {
            peer,
            protocol: conversation.protocol,
            service: has_ports.then(|| conversation.service()),
        };
        access.is_some_and(|access| !access.allows(way, &asked))
    }

    /// Whether a filter, or what is allowed to the container, refuses a client at `peer` of a published
    /// port. It is asked with the client's own address: the one that the container is shown, which is
    /// in `conversation`, may be the gateway's.
    pub fn refuses_client(&self, conversation: &Conversation, peer: IpAddr) -> bool {
        self.filters_refuse(conversation.port, Direction::Inwards, peer)
            || self.access_refuses(Way::Ingress, peer, conversation)
    }

    /// Whether a conversation that was allowed once still is, by what is allowed to the container.
    pub(crate) fn still_allows(&self, conversation: &Conversation) -> bool {
        let way = match conversation.direction {
            Direction::Inwards => Way::Ingress,
            Direction::Outwards | Direction::Between => Way::Egress,
        };
        !self.access_refuses(way, conversation.remote.ip(), conversation)
    }

    /// Decides on the conversation that `packet` opens or goes on with. Without rules for that
    /// direction the address alone decides.
    #[inline]
    pub fn decide_packet(&self, packet: &Packet<'_>, direction: Direction) -> Decision {
        if self.has_rules(direction) {
            return self.decide(&packet.conversation(direction));
        }
        match direction {
            Direction::Outwards => self.decide_address(packet.ip.dst),
            Direction::Inwards | Direction::Between => Decision::Allow(packet.ip.dst),
        }
    }

    /// Decides on `conversation`. Whether a filter refuses a client is asked beforehand
    /// ([`Policy::refuses_client`]).
    pub fn decide(&self, conversation: &Conversation) -> Decision {
        let rule = self.rules.iter().find(|rule| rule.matches(conversation));
        if let Some(refusal) = rule.and_then(|rule| rule.refusal) {
            return Decision::Refuse(refusal);
        }
        let (direction, remote) = (conversation.direction, conversation.remote.ip());
        match direction {
            Direction::Outwards if self.access_refuses(Way::Egress, remote, conversation) => {
                Decision::Refuse(Refusal::Prohibited)
            }
            Direction::Outwards if self.opens_host(conversation) => {
                self.decide_host_access(conversation.port, remote)
            }
            Direction::Outwards if self.filters_refuse(conversation.port, direction, remote) => {
                Decision::Refuse(Refusal::Prohibited)
            }
            Direction::Outwards => self.decide_address(remote),
            Direction::Inwards | Direction::Between => Decision::Allow(remote),
        }
    }

    /// Whether `remote`, as the container at `port` speaks to it by `protocol`, is a port of the host's
    /// loopback that was opened to it.
    pub fn opens_host_port(&self, port: Option<PortId>, protocol: u8, remote: SocketAddr) -> bool {
        let transport = matches!(protocol, protocol::TCP | protocol::UDP);
        if !transport || !self.host_access_at.contains(&remote.ip()) {
            return false;
        }
        let mut filters = self.filters_of(port);
        filters.any(|filter| filter.host_access.opens(remote.port()))
    }

    fn opens_host(&self, conversation: &Conversation) -> bool {
        let Conversation {
            port,
            protocol,
            remote,
            ..
        } = *conversation;
        self.opens_host_port(port, protocol, remote)
    }

    /// Decides on a port of the host's loopback that was opened: only prefixes that deny it, under
    /// either name, are before that.
    fn decide_host_access(&self, port: Option<PortId>, gateway: IpAddr) -> Decision {
        let loopback = loopback_of(gateway);
        let mut filters = self.filters_of(port);
        match filters.any(|f| f.denies(gateway) == Some(true) || f.denies(loopback) == Some(true)) {
            true => Decision::Refuse(Refusal::Prohibited),
            false if !self.has_family(gateway) => Decision::Refuse(Refusal::NetUnreachable),
            false => Decision::Allow(loopback),
        }
    }

    /// The network's filter, and that of a port.
    fn filters_of(&self, port: Option<PortId>) -> impl Iterator<Item = &PeerFilter> {
        let of_port = port.and_then(|port| self.port_filters.get(&port));
        [Some(&self.filter), of_port].into_iter().flatten()
    }

    fn has_family(&self, address: IpAddr) -> bool {
        match address.is_ipv4() {
            true => self.ipv4,
            false => self.ipv6,
        }
    }

    /// Decides on a destination outside of the network, whatever the protocol.
    fn decide_address(&self, destination: IpAddr) -> Decision {
        if !self.has_family(destination) {
            return Decision::Refuse(Refusal::NetUnreachable);
        }
        if self.host_loopback.contains(&destination) {
            return Decision::Allow(loopback_of(destination));
        }
        if let Some((_, own)) = self.host_own.iter().find(|(a, _)| *a == destination) {
            return Decision::Allow(*own);
        }
        let canonical = embedded_ipv4(destination).map_or(destination, IpAddr::V4);
        if is_this_host(canonical) {
            return Decision::Refuse(Refusal::NetUnreachable);
        }
        if is_metadata(canonical) && !self.allow_metadata {
            return Decision::Refuse(Refusal::Prohibited);
        }
        Decision::Allow(destination)
    }
}

/// The host's loopback, in the family of `like`.
fn loopback_of(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(direction: Direction, remote: &str) -> Conversation {
        Conversation {
            direction,
            port: None,
            protocol: 6,
            container: "10.0.2.100:1".parse().unwrap(),
            remote: (remote.parse::<IpAddr>().unwrap(), 80).into(),
        }
    }

    fn decide(p: &Policy, a: &str) -> Decision {
        p.decide(&conversation(Direction::Outwards, a))
    }

    #[test]
    fn the_first_rule_that_matches_decides_and_opens_nothing() {
        let refused = Decision::Refuse(Refusal::Prohibited);
        let loopback = Prefix {
            address: "127.0.0.1".parse().unwrap(),
            len: 8,
        };
        let allowed = Rule {
            remote: Some(loopback),
            ..Rule::all(Direction::Outwards, None)
        };
        let p = Policy {
            rules: vec![
                allowed,
                Rule::all(Direction::Outwards, Some(Refusal::Prohibited)),
                Rule::all(Direction::Between, Some(Refusal::Prohibited)),
            ],
            ..Policy::default()
        };
        assert_eq!(decide(&p, "192.0.2.1"), refused);
        let this_host = Decision::Refuse(Refusal::NetUnreachable);
        assert_eq!(decide(&p, "127.0.0.1"), this_host);
        let inwards = conversation(Direction::Inwards, "192.0.2.1");
        assert_eq!(p.decide(&inwards), Decision::Allow(inwards.remote.ip()));
        assert_eq!(
            p.decide(&conversation(Direction::Between, "10.0.2.5")),
            refused
        );
        assert!(p.has_rules(Direction::Between) && !p.has_rules(Direction::Inwards));
    }

    #[test]
    fn filters_of_the_network_and_of_the_port_both_decide_under_all_names_of_an_address() {
        let prefix = |address: &str, len| Prefix {
            address: address.parse().unwrap(),
            len,
        };
        let deny = |address: &str, len| PeerFilter {
            deny: vec![prefix(address, len)],
            ..PeerFilter::default()
        };
        let mut p = Policy {
            filter: deny("192.0.2.0", 24),
            host_addresses: vec!["198.51.100.9".parse().unwrap()],
            ..Policy::default()
        };
        p.set_port_filter(PortId(3), deny("203.0.113.0", 24));
        let refused = Decision::Refuse(Refusal::Prohibited);
        let at = |p: &Policy, port, address: &str| {
            p.decide(&Conversation {
                port: Some(PortId(port)),
                ..conversation(Direction::Outwards, address)
            })
        };
        for name in ["192.0.2.1", "::ffff:192.0.2.1", "64:ff9b::c000:201"] {
            assert_eq!(at(&p, 1, name), refused, "{name}");
        }
        assert_eq!(at(&p, 3, "203.0.113.1"), refused);
        let elsewhere = Decision::Allow("203.0.113.1".parse().unwrap());
        assert_eq!(at(&p, 1, "203.0.113.1"), elsewhere);
        assert!(p.filters_refuse(
            Some(PortId(3)),
            Direction::Inwards,
            "203.0.113.1".parse().unwrap()
        ));
        assert!(p.has_rules(Direction::Inwards) && !p.has_rules(Direction::Between));
        assert!(at(&p, 3, "198.51.100.9") != refused);
        let no_host = PeerFilter {
            no_host: true,
            ..PeerFilter::default()
        };
        p.set_port_filter(PortId(3), no_host);
        assert_eq!(at(&p, 3, "198.51.100.9"), refused);
        assert_eq!(at(&p, 3, "203.0.113.1"), elsewhere);
        p.set_port_filter(PortId(3), PeerFilter::default());
        assert!(p.port_filters.is_empty());
    }

    #[test]
    fn ports_of_the_hosts_loopback_are_open_to_whom_they_were_opened() {
        let gateway: IpAddr = "10.0.2.2".parse().unwrap();
        let prefix = |address: &str, len| Prefix {
            address: address.parse().unwrap(),
            len,
        };
        let mut p = Policy {
            host_access_at: vec![gateway],
            ..Policy::default()
        };
        let access = PeerFilter {
            allow: vec![prefix("192.0.2.0", 24)],
            no_host: true,
            host_access: HostAccess::Ports(vec![80..=80, 8000..=8010]),
            ..PeerFilter::default()
        };
        p.set_port_filter(PortId(3), access.clone());
        let at = |p: &Policy, port: u16, protocol: u8, to: u16| {
            p.decide(&Conversation {
                port: Some(PortId(port.into())),
                protocol,
                remote: (gateway, to).into(),
                ..conversation(Direction::Outwards, "10.0.2.2")
            })
        };
        let loopback = Decision::Allow(Ipv4Addr::LOCALHOST.into());
        for protocol in [protocol::TCP, protocol::UDP] {
            for open in [80, 8000, 8010] {
                assert_eq!(at(&p, 3, protocol, open), loopback);
                assert_ne!(at(&p, 4, protocol, open), loopback, "a neighbour");
            }
            assert_ne!(at(&p, 3, protocol, 81), loopback);
        }
        assert_ne!(at(&p, 3, protocol::ICMP, 80), loopback);
        assert!(p.has_rules(Direction::Outwards));
        for denied in [prefix("10.0.2.0", 24), prefix("127.0.0.0", 8)] {
            let mut access = access.clone();
            access.deny = vec![denied];
            p.set_port_filter(PortId(3), access);
            let refused = Decision::Refuse(Refusal::Prohibited);
            assert_eq!(at(&p, 3, protocol::TCP, 80), refused);
        }
        p.filter.host_access = HostAccess::All;
        p.set_port_filter(PortId(3), PeerFilter::default());
        assert_eq!(at(&p, 4, protocol::TCP, 1), loopback);
    }

    #[test]
    fn loopback_is_refused_under_all_its_names() {
        let p = Policy::default();
        for a in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:0.0.0.0",
            "64:ff9b::7f00:1",
            "::127.0.0.1",
        ] {
            assert_eq!(
                decide(&p, a),
                Decision::Refuse(Refusal::NetUnreachable),
                "{a}"
            );
        }
    }

    #[test]
    fn metadata_is_refused_unless_allowed() {
        let mut p = Policy::default();
        let names = [
            "169.254.169.254",
            "fe80::a9fe:a9fe",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "169.254.170.2",
            "100.100.100.200",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
        ];
        for a in names {
            assert_eq!(decide(&p, a), Decision::Refuse(Refusal::Prohibited), "{a}");
        }
        p.allow_metadata = true;
        for a in names {
            assert_eq!(decide(&p, a), Decision::Allow(a.parse().unwrap()), "{a}");
        }
    }

    #[test]
    fn only_named_addresses_become_loopback() {
        let p = Policy {
            host_loopback: vec!["10.0.2.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            ..Policy::default()
        };
        assert_eq!(
            decide(&p, "10.0.2.2"),
            Decision::Allow(Ipv4Addr::LOCALHOST.into())
        );
        assert_eq!(
            decide(&p, "fd00::2"),
            Decision::Allow(Ipv6Addr::LOCALHOST.into())
        );
        assert_eq!(
            decide(&p, "127.0.0.1"),
            Decision::Refuse(Refusal::NetUnreachable)
        );
        assert_eq!(
            decide(&p, "10.0.2.9"),
            Decision::Allow("10.0.2.9".parse().unwrap())
        );
    }

    #[test]
    fn an_address_may_stand_for_the_hosts_own() {
        let p = Policy {
            host_own: vec![("169.254.1.2".parse().unwrap(), "192.0.2.7".parse().unwrap())],
            ..Policy::default()
        };
        let own = Decision::Allow("192.0.2.7".parse().unwrap());
        assert_eq!(decide(&p, "169.254.1.2"), own);
        let refused = Decision::Refuse(Refusal::Prohibited);
        assert_eq!(decide(&p, "169.254.1.3"), refused);
    }

    #[test]
    fn a_family_that_is_off_is_unreachable() {
        let p = Policy {
            ipv6: false,
            ..Policy::default()
        };
        assert_eq!(
            decide(&p, "2001:db8::1"),
            Decision::Refuse(Refusal::NetUnreachable)
        );
        assert_eq!(
            decide(&p, "198.51.100.1"),
            Decision::Allow("198.51.100.1".parse().unwrap())
        );
    }
}
