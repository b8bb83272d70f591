//! What UDP and echo do alike: admit a packet to a mapping, send it on with an
//! answer for every way in which that fails, and receive within a budget.
//!
//! Theory of operation. A packet is admitted if its destination can be reached through a router at
//! all, policy allows it and its sender has a mapping or may have one. A send may fail for two
//! reasons that look the same: the datagram itself cannot be sent, or an error that an earlier one
//! met is reported now (`SO_ERROR` is taken by any call on the socket). So after a failure the error
//! queue is emptied, which answers for the earlier ones, and the send is tried once more; only a
//! second failure is the datagram's own.
//!
//! A receive that fails is treated the same way. It ends when the socket has no more (readiness is
//! edge-triggered), or with the budget, so that one busy socket does not starve the others.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropCounters, DropReason, Packet, PortId};

use super::errors::{Errors, Inside, Sent, local_kind, too_big};
use super::mapping::{Mappings, NoMapping};
use super::{DatagramConfig, next_hop_limit};
use crate::flow::Handle;
use crate::host::{
    DatagramKind, HostError, HostSockets, Readiness, Received, SendOptions, SocketId,
};
use crate::icmp_error::IcmpErrorKind;
use crate::io::{Env, Io};
use crate::policy::{Policy, is_routable};
use cnet_wire::conversation::{Decision, Direction, Refusal};
use cnet_wire::headers::Link;

/// Receive calls on one socket in one round.
const RECEIVE_BUDGET: usize = 64;
/// Bytes received from one socket in one round.
const RECEIVE_BUDGET_BYTES: usize = 1 << 20;

/// The mappings of one protocol and the errors about them.
#[derive(Debug)]
pub struct Relay {
    pub(super) mappings: Mappings,
    pub(super) errors: Errors,
    /// Drops that no caller is told of: of staged and of received datagrams.
    pub(super) drops: DropCounters,
    /// Why the host would open no socket at all, if it would not.
    pub(super) unavailable: Option<HostError>,
    kind: DatagramKind,
    next_id: u32,
}

/// A packet that may be sent: by whose mapping, to which address of the host's network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admitted {
    pub(super) handle: Handle,
    pub(super) to: IpAddr,
}

/// How to send a datagram on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outward {
    pub(super) socket: SocketId,
    /// Destination on the host's network.
    pub(super) to: SocketAddr,
    pub(super) dont_fragment: bool,
    /// The host's address to send from; `None` for the kernel's choice.
    pub(super) source: Option<IpAddr>,
}

impl Relay {
    pub(super) fn new(
        now: Instant,
        config: DatagramConfig,
        kind: DatagramKind,
        timeout: Duration,
        seed: u64,
    ) -> Relay {
        let each = match kind {
            DatagramKind::Udp => config.limits.udp_mappings,
            DatagramKind::Ping => config.limits.ping_mappings,
        };
        let budget = config.budget.clone();
        Relay {
            mappings: Mappings::new(now, kind, each, budget, timeout, seed),
            errors: Errors::new(config, kind),
            drops: DropCounters::default(),
            unavailable: None,
            kind,
            // The identification of the first fragmented datagram; any number is as good.
            next_id: (seed >> 32) as u32,
        }
    }

    pub(super) fn config(&self) -> &DatagramConfig {
        &self.errors.config
    }

    /// An identification for a datagram that is to be fragmented.
    pub(super) fn fragment_id(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Where on the host's network `packet` may be sent to. A refusal is answered.
    pub(super) fn permit<E: Env>(
        &mut self,
        packet: &Packet<'_>,
        io: &mut Io<'_, E>,
        link: &Link,
        policy: &Policy,
    ) -> Result<IpAddr, DropReason> {
        let Packet { now, frame, ip, .. } = *packet;
        // RFC 1812 section 5.3.4: what came as a link-layer broadcast is not forwarded.
        if frame.dst.is_multicast() {
            return Err(DropReason::MartianDestination);
        }
        let to = match policy.decide_packet(packet, Direction::Outwards) {
            Decision::Allow(to) => to,
            Decision::Refuse(refusal) => {
                let kind = match refusal {
                    Refusal::NetUnreachable => IcmpErrorKind::NetUnreachable,
                    Refusal::Prohibited => IcmpErrorKind::Prohibited,
                };
                self.errors.refuse(now, io, link, frame, ip, kind);
                return Err(DropReason::Policy);
            }
        };
        match is_routable(to) {
            true => Ok(to),
            false => Err(DropReason::MartianDestination),
        }
    }

    /// The mapping for `packet`, which `container` sends to `remote`, and its destination on the host's network.
    /// A refusal is answered.
    pub(super) fn admit<E: Env>(
        &mut self,
        packet: &Packet<'_>,
        io: &mut Io<'_, E>,
        link: &Link,
        [container, remote]: [SocketAddr; 2],
        policy: &Policy,
    ) -> Result<Admitted, DropReason> {
        let Packet { now, frame, ip, .. } = *packet;
        let to = self.permit(packet, io, link, policy)?;
        let found = (self.mappings).find_or_open(now, link, container, remote.port(), io.hosts);
        match found {
            Ok((handle, mapping)) => {
                if to != ip.dst && to.is_loopback() {
                    mapping.inside.alias = Some(ip.dst);
                }
                Ok(Admitted { handle, to })
            }
            Err(why) => {
                let (kind, reason) = self.no_mapping(why);
                self.errors.refuse(now, io, link, frame, ip, kind);
                Err(reason)
            }
        }
    }

    fn no_mapping(&mut self, why: NoMapping) -> (IcmpErrorKind, DropReason) {
        let e = match why {
            NoMapping::Quota => return (IcmpErrorKind::Prohibited, DropReason::Quota),
            NoMapping::Host(HostError::Exhausted) => {
                return (IcmpErrorKind::HostUnreachable, DropReason::HostResource);
            }
            NoMapping::Host(e) => e,
        };
        let kind = match (self.kind, e) {
            // Ping sockets are an administrator's to allow (net.ipv4.ping_group_range, icmp(7)).
            (DatagramKind::Ping, HostError::Unsupported | HostError::Prohibited) => {
                self.unavailable = Some(e);
                IcmpErrorKind::Prohibited
            }
            // A host without IPv6 has no route to it.
            (_, HostError::Unsupported) => IcmpErrorKind::NetUnreachable,
            _ => local_kind(e).unwrap_or(IcmpErrorKind::HostUnreachable),
        };
        (kind, DropReason::HostRefused)
    }

    /// Sends one datagram, and answers for it if the host refuses. `sent.payload` is all of it.
    pub(super) fn send<E: Env>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, E>,
        outward: &Outward,
        inside: &Inside,
        sent: &Sent<'_>,
    ) -> Result<(), DropReason> {
        let options = SendOptions {
            to: outward.to,
            segment: None,
            hop_limit: next_hop_limit(sent.hop_limit),
            tos: sent.tos,
            dont_fragment: outward.dont_fragment,
            source: outward.source,
        };
        let mut result = io
            .hosts
            .datagram_send(outward.socket, options, sent.payload);
        let mut mtu = None;
        if !matches!(
            result,
            Ok(()) | Err(HostError::WouldBlock | HostError::Exhausted)
        ) {
            let drained = self.errors.drain(now, io, outward.socket, Some(inside));
            mtu = drained.mtu;
            if result != Err(HostError::TooBig) {
                result = io
                    .hosts
                    .datagram_send(outward.socket, options, sent.payload);
            }
        }
        let kind = match result {
            Ok(()) => return Ok(()),
            Err(HostError::WouldBlock | HostError::Exhausted) => {
                return Err(DropReason::HostResource);
            }
            Err(HostError::TooBig) => outward
                .dont_fragment
                .then(|| too_big(sent.to.is_ipv6(), mtu)),
            Err(e) => local_kind(e),
        };
        if let Some(kind) = kind {
            self.errors.report(now, io, inside, sent, kind, None);
        }
        Err(DropReason::HostRefused)
    }

    /// Receives from `socket` to `offset` in the frame buffer and has each batch delivered, within a
    /// budget. Returns whether more may be there.
    pub(super) fn receive<E: Env>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, E>,
        socket: SocketId,
        offset: usize,
        inside: Option<&Inside>,
        mut deliver: impl FnMut(&mut Relay, &mut Io<'_, E>, &Received) -> Result<(), DropReason>,
    ) -> bool {
        let mut bytes = 0;
        for _ in 0..RECEIVE_BUDGET {
            match io.hosts.datagram_receive(socket, &mut io.buf[offset..]) {
                Ok(received) => {
                    bytes += received.len;
                    if let Err(reason) = deliver(self, io, &received) {
                        self.drops.count(reason);
                    }
                }
                Err(HostError::WouldBlock) => return false,
                Err(_) => {
                    self.errors.drain(now, io, socket, inside);
                }
            }
            if bytes >= RECEIVE_BUDGET_BYTES {
                return true;
            }
        }
        true
    }

    /// Takes in an event of a mapping's socket: errors first, then data as [`Relay::receive`].
    /// Returns what is left to do.
    pub(super) fn handle_socket<E: Env>(
        &mut self,
        now: Instant,
        handle: Handle,
        readiness: Readiness,
        offset: impl FnOnce(&Inside) -> usize,
        io: &mut Io<'_, E>,
        mut deliver: impl FnMut(
            &mut Relay,
            &mut Io<'_, E>,
            &Inside,
            &Received,
        ) -> Result<(), DropReason>,
    ) -> Readiness {
        let mut left = Readiness::default();
        let mapping = match readiness.readable {
            true => self.mappings.arrived(now, handle),
            false => self.mappings.get(handle),
        };
        let Some(mapping) = mapping else {
            return left;
        };
        let (socket, inside) = (mapping.socket, mapping.inside);
        self.mappings.take_in_hand(handle);
        if readiness.error {
            left.error = self.errors.drain(now, io, socket, Some(&inside)).more;
        }
        if readiness.readable {
            let offset = offset(&inside);
            left.readable = self.receive(now, io, socket, offset, Some(&inside), |relay, io, r| {
                deliver(relay, io, &inside, r)
            });
        }
        self.mappings.put_down();
        left
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, hosts: &mut impl HostSockets) {
        self.mappings.handle_timeout(now, hosts);
    }

    pub(super) fn remove_port(&mut self, port: PortId, hosts: &mut impl HostSockets) {
        self.mappings.remove_port(port, hosts);
        self.errors.remove_port(port);
    }
}
