//! Containers that are looked for.
//!
//! A published port may be asked for before its container has spoken. Then the container is solicited,
//! again and again for a few seconds, and the clients wait meanwhile.

use std::net::IpAddr;

use cnet_wire::MacAddr;
use cnet_wire::time::{Duration, Instant};

use super::Router;
use crate::io::{Env, Io};
use cnet_wire::headers::Link;
use cnet_wire::stations::Stations;

/// Containers whose address may be waited for at once.
const MAX_SOLICITED: usize = 256;
/// Wait between two solicitations of a container (RetransTimer, RFC 4861 section 10).
const SOLICIT_INTERVAL: Duration = Duration::from_secs(1);
/// Solicitations until a container is taken for absent. The RFC has three; a published port may well
/// be asked for while its container is still coming up.
const MAX_SOLICITS: u8 = 5;

/// A container whose MAC address was asked for.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    address: IpAddr,
    tries: u8,
    /// When to ask again, or to give up.
    again: Instant,
}

/// Containers whose MAC address is waited for.
#[derive(Debug, Default)]
pub(super) struct Solicited(Vec<Waiting>);

impl Solicited {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no container's MAC address is waited for.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When [`Router::repeat_solicitations`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.iter().map(|s| s.again).min()
    }
}

impl Router {
    pub(super) fn link_to(
        &self,
        now: Instant,
        address: IpAddr,
        stations: &impl Stations,
    ) -> Option<Link> {
        link_to(stations, now, self.gateway_mac, address)
    }

    pub(super) fn solicit<E: Env>(
        &mut self,
        now: Instant,
        address: IpAddr,
        stations: &impl Stations,
        io: &mut Io<'_, E>,
    ) {
        let Solicited(waiting) = &mut self.solicited;
        if waiting.iter().any(|s| s.address == address) {
            return;
        }
        if waiting.len() < MAX_SOLICITED {
            waiting.push(Waiting {
                address,
                tries: 1,
                again: now + SOLICIT_INTERVAL,
            });
        }
        self.gateway.solicit(now, address, stations, io);
    }

    /// Asks again for containers that have not answered, and gives up those that never did.
    pub(super) fn repeat_solicitations<E: Env>(
        &mut self,
        now: Instant,
        stations: &impl Stations,
        io: &mut Io<'_, E>,
    ) {
        self.meet_solicited(now, stations, io);
        let mut i = 0;
        while let Some(waiting) = self.solicited.0.get_mut(i) {
            let address = waiting.address;
            if waiting.again > now {
                i += 1;
            } else if waiting.tries < MAX_SOLICITS {
                waiting.tries += 1;
                waiting.again = now + SOLICIT_INTERVAL;
                self.gateway.solicit(now, address, stations, io);
                i += 1;
            } else {
                self.solicited.0.swap_remove(i);
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
        self.solicited
            .0
            .retain(|waiting| waiting.address != address);
        self.tcp.link_failed(now, address, io);
    }

    /// Connections to containers that have shown their address meanwhile go on.
    pub(super) fn meet_solicited<E: Env>(
        &mut self,
        now: Instant,
        stations: &impl Stations,
        io: &mut Io<'_, E>,
    ) {
        let mut i = 0;
        while let Some(&Waiting { address, .. }) = self.solicited.0.get(i) {
            match self.link_to(now, address, stations) {
                None => i += 1,
                Some(link) => {
                    self.solicited.0.swap_remove(i);
                    self.tcp.link_resolved(now, address, link, io);
                }
            }
        }
    }
}

/// Where `address` is, if its MAC address is known.
pub(super) fn link_to(
    stations: &impl Stations,
    now: Instant,
    gateway_mac: MacAddr,
    address: IpAddr,
) -> Option<Link> {
    let station = stations.by_address(now, address)?;
    Some(Link {
        port: station.port,
        gateway_mac,
        container_mac: station.mac?,
    })
}
