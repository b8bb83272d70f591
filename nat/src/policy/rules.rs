//! Rules of an administrator: what is refused, by direction, switch port, protocol and both ends.
//!
//! The first rule that matches a conversation decides. A rule that allows ends the search and no more:
//! what [`super::addresses`] keeps out stays out. Without a matching rule a conversation is allowed.
//!
//! # Limits
//!
//! Rules have no memory. Outwards and inwards they are asked once a flow, or once a datagram of a
//! published port, and answers pass unasked. Between containers every packet is asked, answers too: a
//! rule without a service refuses both ways. Only address resolution (ARP, neighbour discovery) is not
//! asked about, and the router hears what is sent to all. A later fragment shows no service: without
//! its first, which does, it completes nothing, but under a rule that allows only a service it is
//! refused.

use std::ops::RangeInclusive;

use cnet_wire::PortId;
use cnet_wire::access::Prefix;
use cnet_wire::conversation::{Conversation, Direction, Refusal};

/// One rule. What is `None` matches everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Which way the conversation is opened.
    pub direction: Direction,
    /// The container's switch port.
    pub port: Option<PortId>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// The container's address.
    pub container: Option<Prefix>,
    /// The other end's address.
    pub remote: Option<Prefix>,
    /// The port of the end that is spoken to.
    pub service: Option<RangeInclusive<u16>>,
    /// What a conversation that matches is told; `None` allows it.
    pub refusal: Option<Refusal>,
}

impl Rule {
    /// A rule that matches every conversation of `direction`.
    pub fn all(direction: Direction, refusal: Option<Refusal>) -> Rule {
        Rule {
            direction,
            port: None,
            protocol: None,
            container: None,
            remote: None,
            service: None,
            refusal,
        }
    }

    /// Whether the rule is about `conversation`.
    pub fn matches(&self, conversation: &Conversation) -> bool {
        let Conversation {
            direction,
            port,
            protocol,
            container,
            remote,
        } = *conversation;
        self.direction == direction
            && self.port.is_none_or(|own| port == Some(own))
            && self.protocol.is_none_or(|own| own == protocol)
            && self
                .container
                .is_none_or(|own| own.contains(container.ip()))
            && self.remote.is_none_or(|own| own.contains(remote.ip()))
            && (self.service.as_ref()).is_none_or(|own| own.contains(&conversation.service()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(direction: Direction) -> Conversation {
        Conversation {
            direction,
            port: Some(PortId(3)),
            protocol: 6,
            container: "10.0.2.100:80".parse().unwrap(),
            remote: "192.0.2.1:443".parse().unwrap(),
        }
    }

    // Longer than 60 lines: one rule after the other, each with all that it must not match.
    #[test]
    fn every_part_of_a_rule_must_match() {
        let outwards = conversation(Direction::Outwards);
        let all = Rule::all(Direction::Outwards, None);
        assert!(all.matches(&outwards));
        assert!(!all.matches(&conversation(Direction::Inwards)));
        let prefix = |address: &str, len| {
            let address = address.parse().unwrap();
            Some(Prefix { address, len })
        };
        for (matches, differs) in [
            (
                Rule {
                    port: Some(PortId(3)),
                    ..all.clone()
                },
                Rule {
                    port: Some(PortId(4)),
                    ..all.clone()
                },
            ),
            (
                Rule {
                    protocol: Some(6),
                    ..all.clone()
                },
                Rule {
                    protocol: Some(17),
                    ..all.clone()
                },
            ),
            (
                Rule {
                    container: prefix("10.0.2.0", 24),
                    ..all.clone()
                },
                Rule {
                    container: prefix("10.0.2.0", 26),
                    ..all.clone()
                },
            ),
            (
                Rule {
                    remote: prefix("192.0.2.1", 200),
                    ..all.clone()
                },
                Rule {
                    remote: prefix("::", 0),
                    ..all.clone()
                },
            ),
            (
                Rule {
                    service: Some(443..=443),
                    ..all.clone()
                },
                Rule {
                    service: Some(80..=80),
                    ..all.clone()
                },
            ),
        ] {
            assert!(matches.matches(&outwards), "{matches:?}");
            assert!(!differs.matches(&outwards), "{differs:?}");
        }
    }

    #[test]
    fn the_service_is_at_the_end_that_is_spoken_to() {
        for (direction, service) in [
            (Direction::Outwards, 443),
            (Direction::Inwards, 80),
            (Direction::Between, 443),
        ] {
            assert_eq!(conversation(direction).service(), service);
        }
    }
}
