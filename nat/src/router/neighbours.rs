//! Who is where: what the gateway is told of senders, and containers that are looked for.
//!
//! # Theory of operation
//!
//! Every packet to the gateway tells where its sender is. The gateway's table is asked only when a
//! port says something else than last time, in each family: containers that talk at the same time do
//! not drive each other out. Whatever takes an address from somebody clears these notes, as what was
//! refused or forgotten may be taken now.
//!
//! A published port may be asked for before its container has spoken. Then the container is solicited,
//! again and again for a few seconds, and the clients wait meanwhile.

use std::net::IpAddr;

use cnet_wire::MacAddr;
use cnet_wire::time::{Duration, Instant};

use super::Router;
use crate::gateway::Gateway;
use crate::io::{Env, Io};
use cnet_wire::headers::Link;

/// Containers whose address may be waited for at once.
const MAX_SOLICITED: usize = 256;
/// Wait between two solicitations of a container (RetransTimer, RFC 4861 section 10).
const SOLICIT_INTERVAL: Duration = Duration::from_secs(1);
/// Solicitations until a container is taken for absent. The RFC has three; a published port may well
/// be asked for while its container is still coming up.
const MAX_SOLICITS: u8 = 5;

/// A container whose link-layer address was asked for.
#[derive(Clone, Copy, Debug)]
struct Solicited {
    address: IpAddr,
    tries: u8,
    /// When to ask again, or to give up.
    again: Instant,
}

/// What the router remembers of its neighbours, beside the gateway's table.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// Containers whose link-layer address is waited for.
    solicited: Vec<Solicited>,
    /// The last IPv4 and the last IPv6 sender of each port that the gateway was told of, by the
    /// port's number.
    told: Vec<[Option<(IpAddr, Link)>; 2]>,
}

impl Neighbours {
    /// Whether the gateway has yet to be told that `address` is at `link`; it counts as told then.
    fn is_news(&mut self, address: IpAddr, link: Link) -> bool {
        let index = link.port.0 as usize;
        if self.told.len() <= index {
            self.told.resize(index + 1, [None; 2]);
        }
        let told = &mut self.told[index][usize::from(address.is_ipv6())];
        let new = Some((address, link));
        if *told == new {
            return false;
        }
        *told = new;
        true
    }

    /// Somebody lost an address, or a port is gone: all tell again.
    pub(super) fn forget_told(&mut self) {
        self.told.fill([None; 2]);
    }

    #[cfg(test)]
    pub(super) fn solicited(&self) -> usize {
        self.solicited.len()
    }

    /// When [`Router::repeat_solicitations`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.solicited.iter().map(|s| s.again).min()
    }
}

impl Router {
    /// `address` spoke from `link`.
    pub(super) fn learn(&mut self, address: IpAddr, link: Link) {
        if self.neighbours.is_news(address, link) {
            self.gateway.learn(address, link.port, link.container_mac);
        }
    }

    pub(super) fn link_to(&self, address: IpAddr) -> Option<Link> {
        link_to(&self.gateway, self.gateway_mac, address)
    }

    pub(super) fn solicit<E: Env>(&mut self, now: Instant, address: IpAddr, io: &mut Io<'_, E>) {
        let solicited = &mut self.neighbours.solicited;
        if solicited.iter().any(|s| s.address == address) {
            return;
        }
        if solicited.len() < MAX_SOLICITED {
            solicited.push(Solicited {
                address,
                tries: 1,
                again: now + SOLICIT_INTERVAL,
            });
        }
        self.gateway.solicit(now, address, io);
    }

    /// Asks again for containers that have not answered, and gives up those that never did.
    pub(super) fn repeat_solicitations<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        self.meet_solicited(now, io);
        let mut i = 0;
        while i < self.neighbours.solicited.len() {
            let waiting = &mut self.neighbours.solicited[i];
            let address = waiting.address;
            if waiting.again > now {
                i += 1;
            } else if waiting.tries < MAX_SOLICITS {
                waiting.tries += 1;
                waiting.again = now + SOLICIT_INTERVAL;
                self.gateway.solicit(now, address, io);
                i += 1;
            } else {
                self.neighbours.solicited.swap_remove(i);
                self.tcp.link_failed(now, address, io);
            }
        }
    }

    /// Gives up the container at `address`, and the clients that wait for it.
    pub(super) fn stop_soliciting<E: Env>(
        &mut self,
        now: Instant,
        address: IpAddr,
        io: &mut Io<'_, E>,
    ) {
        let solicited = &mut self.neighbours.solicited;
        solicited.retain(|waiting| waiting.address != address);
        self.tcp.link_failed(now, address, io);
    }

    /// Connections to containers that have shown their address meanwhile go on.
    pub(super) fn meet_solicited<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        let mut i = 0;
        while i < self.neighbours.solicited.len() {
            let address = self.neighbours.solicited[i].address;
            match self.link_to(address) {
                None => i += 1,
                Some(link) => {
                    self.neighbours.solicited.swap_remove(i);
                    self.tcp.link_resolved(now, address, link, io);
                }
            }
        }
    }
}

/// Where `address` is, if the gateway knows.
pub(super) fn link_to(gateway: &Gateway, gateway_mac: MacAddr, address: IpAddr) -> Option<Link> {
    let (port, container_mac) = gateway.neighbour(address)?;
    Some(Link {
        port,
        gateway_mac,
        container_mac,
    })
}

#[cfg(test)]
mod tests {
    use cnet_wire::PortId;

    use super::*;

    fn link(port: u32) -> Link {
        Link {
            port: PortId(port),
            gateway_mac: MacAddr([2; 6]),
            container_mac: MacAddr([2, 0, 0, 0, 0, port as u8]),
        }
    }

    #[test]
    fn each_port_tells_once_in_each_family() {
        let mut n = Neighbours::default();
        let v4 = |last| IpAddr::from([10, 0, 2, last]);
        let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
        let round = |n: &mut Neighbours| {
            [
                n.is_news(v4(1), link(1)),
                n.is_news(v6, link(1)),
                n.is_news(v4(2), link(7)),
            ]
        };
        assert_eq!(round(&mut n), [true; 3]);
        assert_eq!(round(&mut n), [false; 3]);
        assert!(n.is_news(v4(3), link(1)));
        assert_eq!(round(&mut n), [true, false, false]);
        n.forget_told();
        assert_eq!(round(&mut n), [true; 3]);
    }
}
