//! What policies allow to a container that they select, as the data path asks it.
//!
//! # Theory of operation
//!
//! A container that no policy selects has no [`Access`]. One that some select, in a direction, is closed in
//! that direction but for what is [`Allowed`]. Whoever compiles policies resolves selectors to addresses
//! beforehand, so the cost of a question goes with what is allowed to this container, not with how many
//! policies or containers there are.
//!
//! The semantics are those of `networking.k8s.io/v1`: what is allowed adds up, and nothing denies.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::conversation::Refusal;

/// Addresses with a common prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// Any of them.
    pub address: IpAddr,
    /// How many bits are common; more than the address has are all.
    pub len: u8,
}

impl Prefix {
    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (differ, bits) = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a) ^ u32::from(b)), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b), 128),
            _ => return false,
        };
        differ.leading_zeros() + bits - 128 >= u32::from(self.len).min(bits)
    }
}

/// Which way a conversation is opened, as the selected container sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Way {
    /// To it.
    Ingress,
    /// By it.
    Egress,
}

/// What is allowed to a container. A direction that is `None` is open.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// What others may open to it.
    pub ingress: Option<Vec<Allowed>>,
    /// What it may open.
    pub egress: Option<Vec<Allowed>>,
}

/// Conversations that are allowed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Allowed {
    /// With whom; `None` for all.
    pub peers: Option<Peers>,
    /// Which services; all, and protocols without ports, where there is none.
    pub services: Vec<Service>,
}

/// Far ends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peers {
    /// The addresses of containers, in order.
    pub addresses: Vec<IpAddr>,
    /// Blocks of addresses.
    pub blocks: Vec<Block>,
}

/// A block of addresses, without some within.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// The block.
    pub prefix: Prefix,
    /// What is not of it.
    pub except: Vec<Prefix>,
}

/// A service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// IP protocol number.
    pub protocol: u8,
    /// The ports of the end that is spoken to.
    pub ports: RangeInclusive<u16>,
}

/// A conversation that one end wants to open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The other end.
    pub peer: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The port of the end that is spoken to; `None` for protocols without ports.
    pub service: Option<u16>,
}

impl Access {
    /// Whether the container may have the conversation `asked`, opened that way.
    pub fn allows(&self, way: Way, asked: &Asked) -> bool {
        let list = match way {
            Way::Ingress => &self.ingress,
            Way::Egress => &self.egress,
        };
        list.as_ref()
            .is_none_or(|list| list.iter().any(|allowed| allowed.contains(asked)))
    }

    /// What an end is told that it refuses.
    pub const REFUSAL: Refusal = Refusal::Prohibited;

    /// Whether what is allowed beyond the network's containers is the same as in `other`: blocks,
    /// services and which direction is open.
    pub fn is_alike_outside(&self, other: &Access) -> bool {
        let outside = |list: &Option<Vec<Allowed>>| {
            let blocks = |allowed: &Allowed| {
                let blocks = allowed.peers.as_ref().map(|peers| peers.blocks.clone());
                (blocks, allowed.services.clone())
            };
            let concerns = |(blocks, _): &(Option<Vec<Block>>, _)| {
                blocks.as_ref().is_none_or(|blocks| !blocks.is_empty())
            };
            let list = list.as_ref();
            list.map(|list| list.iter().map(blocks).filter(concerns).collect::<Vec<_>>())
        };
        outside(&self.ingress) == outside(&other.ingress)
            && outside(&self.egress) == outside(&other.egress)
    }
}

impl Allowed {
    fn contains(&self, asked: &Asked) -> bool {
        let is_it = |service: &Service| {
            let Some(port) = asked.service else {
                return false;
            };
            service.protocol == asked.protocol && service.ports.contains(&port)
        };
        (self.services.is_empty() || self.services.iter().any(is_it))
            && (self.peers.as_ref()).is_none_or(|peers| peers.contain(asked.peer))
    }
}

impl Peers {
    fn contain(&self, address: IpAddr) -> bool {
        let in_block = |block: &Block| {
            block.prefix.contains(address) && !block.except.iter().any(|e| e.contains(address))
        };
        self.addresses.binary_search(&address).is_ok() || self.blocks.iter().any(in_block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(peer: &str, protocol: u8, service: Option<u16>) -> Asked {
        Asked {
            peer: peer.parse().unwrap(),
            protocol,
            service,
        }
    }

    fn prefix(address: &str, len: u8) -> Prefix {
        Prefix {
            address: address.parse().unwrap(),
            len,
        }
    }

    #[test]
    fn a_direction_is_open_or_closed_but_for_what_is_allowed() {
        let web = Allowed {
            peers: Some(Peers {
                addresses: vec!["10.0.0.2".parse().unwrap(), "10.0.0.9".parse().unwrap()],
                blocks: vec![Block {
                    prefix: prefix("192.0.2.0", 24),
                    except: vec![prefix("192.0.2.128", 25)],
                }],
            }),
            services: vec![Service {
                protocol: 6,
                ports: 80..=81,
            }],
        };
        let access = Access {
            ingress: Some(vec![web, Allowed::default()]),
            egress: None,
        };
        assert!(access.allows(Way::Ingress, &asked("198.51.100.1", 1, None)));
        assert!(access.allows(Way::Egress, &asked("198.51.100.1", 17, Some(1))));
        let mut closed = access;
        closed.ingress.as_mut().unwrap().pop();
        for (peer, protocol, service, allowed) in [
            ("10.0.0.2", 6, Some(80), true),
            ("10.0.0.9", 6, Some(81), true),
            ("10.0.0.3", 6, Some(80), false),
            ("10.0.0.2", 6, Some(82), false),
            ("10.0.0.2", 17, Some(80), false),
            ("10.0.0.2", 1, None, false),
            ("192.0.2.1", 6, Some(80), true),
            ("192.0.2.200", 6, Some(80), false),
            ("fd00::2", 6, Some(80), false),
        ] {
            let asked = asked(peer, protocol, service);
            assert_eq!(closed.allows(Way::Ingress, &asked), allowed, "{asked:?}");
        }
        closed.ingress = Some(Vec::new());
        assert!(!closed.allows(Way::Ingress, &asked("10.0.0.2", 6, Some(80))));
    }
}
