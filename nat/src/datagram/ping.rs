//! ICMP and ICMPv6 echo through the host's ping sockets.
//!
//! Theory of operation. A container's echo identifier is mapped to a ping socket, which needs no
//! privilege (icmp(7), `net.ipv4.ping_group_range`). The host's kernel puts an identifier of its own
//! into every request and passes on the replies that carry it; on the way in the container's is put
//! back, and the checksum computed anew, since in ICMPv6 it covers the addresses too. A request or
//! reply over the MTU travels in fragments on either side. Errors come back through the socket's
//! error queue, so `traceroute -I` sees its hops.
//!
//! A host may forbid ping sockets. Then requests are answered with "prohibited", and
//! [`PingSessions::unavailable`] says why.
//!
//! Invariants. No byte of a reply comes from anywhere but the socket, and no request shorter than an
//! echo header is sent (CVE-2020-10756). Nothing but echo requests leaves the container.
//!
//! RFC 792, RFC 4443, RFC 5508.

use std::net::SocketAddr;

use cnet_wire::frame::protocol;
use cnet_wire::icmp::{self, IcmpMessage};
use cnet_wire::time::Instant;
use cnet_wire::{DropReason, Packet, PortId};

use super::errors::{Inside, Sent};
use super::icmp_quote::{self, Quote};
use super::relay::{Outward, Relay};
use super::session::{DatagramSessions, Protocol};
use super::{DatagramConfig, MIN_PING_TIMEOUT, next_hop_limit};
use crate::fragment::{IP_OFFSET, emit_in_place};
use crate::host::{DatagramKind, HostError, Received};
use crate::io::{Env, Io};
use crate::policy::Policy;
use cnet_wire::headers::{IpOut, Link, l4_offset, max_packet};

/// Echo of all containers that one worker serves.
pub type PingSessions = DatagramSessions<Ping>;

/// Echo. It has nothing beside its mappings.
#[derive(Debug)]
pub struct Ping;

impl Protocol for Ping {
    const KIND: DatagramKind = DatagramKind::Ping;
    /// What a ping socket delivers starts with the ICMP header.
    const HEADER_LEN: usize = 0;

    fn deliver<E: Env>(
        relay: &mut Relay,
        io: &mut Io<'_, E>,
        inside: &Inside,
        received: &Received,
    ) -> Result<(), DropReason> {
        deliver(relay, io, inside, received)
    }
}

impl PingSessions {
    /// Echo without mappings. `seed` is secret and random.
    pub fn new(now: Instant, config: DatagramConfig, seed: u64) -> PingSessions {
        let timeout = config.ping_timeout.max(MIN_PING_TIMEOUT);
        DatagramSessions::with(now, config, timeout, seed, Ping)
    }

    /// Takes in the ICMP or ICMPv6 packet `ip` of `frame`, which is not a fragment, has a hop limit
    /// above 1 and is not for the gateway itself. `owns` tells whether a TCP or UDP flow of `link`'s
    /// port leads to where a quoted packet was sent.
    ///
    /// # Errors
    /// Why the packet was dropped. Where an ICMP error is due it has been sent.
    pub fn handle_packet<E: Env>(
        &mut self,
        packet: &Packet<'_>,
        link: &Link,
        policy: &Policy,
        owns: impl FnOnce(&Quote) -> bool,
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        let Packet { now, frame, ip, .. } = *packet;
        if ip.fragment.is_some() {
            return Err(DropReason::BadFragment);
        }
        let l4 = frame.l4(ip);
        let message = IcmpMessage::read(l4).ok_or(DropReason::BadIcmp)?;
        let identifier = message.echo_identifier().ok_or(DropReason::BadIcmp)?;
        if !packet.verified {
            return Err(DropReason::BadChecksum);
        }
        let request = match ip.protocol {
            protocol::ICMP => icmp::v4::ECHO_REQUEST,
            protocol::ICMPV6 => icmp::v6::ECHO_REQUEST,
            _ => return Err(DropReason::UnknownProtocol),
        };
        if (message.kind, message.code) != (request, 0) {
            return Err(icmp_quote::judge(frame, ip, |q| {
                self.owns(link.port, q) || owns(q)
            }));
        }
        let container = SocketAddr::new(ip.src, identifier);
        let admitted = (self.relay).admit(
            packet,
            io,
            link,
            [container, SocketAddr::new(ip.dst, 0)],
            policy,
        )?;
        let mapping = self.relay.mappings.get(admitted.handle);
        let mapping = mapping.ok_or(DropReason::NoFlow)?;
        let (inside, outward) = (
            mapping.inside,
            Outward {
                socket: mapping.socket,
                to: SocketAddr::new(admitted.to, 0),
                dont_fragment: self.relay.config().must_stay_whole(ip, frame.l4(ip).len()),
                source: None,
            },
        );
        let sent = Sent {
            to: SocketAddr::new(ip.dst, 0),
            hop_limit: ip.hop_limit,
            tos: ip.tos,
            payload: l4,
            len: l4.len(),
        };
        self.relay.send(now, io, &outward, &inside, &sent)
    }

    /// Whether a packet like that which `quote` quotes was sent to the container on `port`.
    pub fn owns(&self, port: PortId, quote: &Quote) -> bool {
        matches!(quote.protocol, protocol::ICMP | protocol::ICMPV6)
            && self.relay.mappings.contains(port, quote.destination)
    }

    /// Why the host opens no ping sockets: it does not know them, or forbids them.
    pub fn unavailable(&self) -> Option<HostError> {
        self.relay.unavailable
    }
}

/// Sends a reply, which stands at its place in `io.buf`, to the container.
fn deliver<E: Env>(
    relay: &mut Relay,
    io: &mut Io<'_, E>,
    inside: &Inside,
    received: &Received,
) -> Result<(), DropReason> {
    let v6 = inside.container.is_ipv6();
    let (at, len) = (l4_offset(v6), received.len);
    let (reply, protocol) = match v6 {
        true => (icmp::v6::ECHO_REPLY, protocol::ICMPV6),
        false => (icmp::v4::ECHO_REPLY, protocol::ICMP),
    };
    let src = relay.config().shown(received.from.ip(), inside.alias);
    let src = src.ok_or(DropReason::MartianSource)?;
    if at - IP_OFFSET + len > max_packet(v6) {
        return Err(DropReason::FrameTooLong);
    }
    let l4 = &mut io.buf[at..at + len];
    let is_reply = IcmpMessage::read(l4).is_some_and(|m| (m.kind, m.code) == (reply, 0));
    if len < icmp::HEADER_LEN || !is_reply || src.is_ipv6() != v6 {
        return Err(DropReason::BadIcmp);
    }
    let dst = inside.container.ip();
    icmp::rewrite_echo(l4, inside.container.port(), src, dst);
    let ip = IpOut {
        src,
        dst,
        protocol,
        hop_limit: next_hop_limit(received.fields.hop_limit),
        tos: received.fields.tos,
    };
    let (mtu, id) = (relay.config().mtu, relay.fragment_id());
    // What the port does not take, the sink counts.
    let _ = emit_in_place(io.sink, io.buf, &inside.link, &ip, mtu, id, len);
    Ok(())
}

#[cfg(test)]
mod tests;
