//! UDP: containers' ports to host sockets and back.
//!
//! Theory of operation, out. Consecutive packets of one flow that are alike (destination, length,
//! TOS, TTL, DF) make a *run*: their payloads are copied one behind the other and leave in one
//! segmented send when a packet differs, the run is full, or the batch from the TAP ends
//! ([`UdpSessions::flush`]). The last packet of a run may be shorter. A super-frame from the TAP is a
//! run already and is sent from where it lies, as is what is too long to be joined by anything. What
//! a packet of a run would be asked (peers, policy, mapping) was asked for its first one. If the host
//! takes no segmented send, of that size or at all, the datagrams go one by one, and the size, or
//! segmentation, is not tried again.
//!
//! In. `inbound` writes headers before what was received.
//!
//! Published ports share all of this; `forward` tells which socket an answer takes.
//!
//! Invariants.
//! - Nothing is staged between batches, if the caller flushes.
//! - A datagram from the container's network looks to the host as it did to us, hop limit less one,
//!   and the other way round but for the sender's address: loopback is shown as a gateway address
//!   ([`DatagramConfig::host_alias_v4`]), and no other source is (CVE-2021-20199).
//! - DF is asked of the host only if the packet had it. What came in fragments did not
//!   ([`crate::fragment::ReassembledFrame::parse`]).
//!
//! Limits. When a container reaches the host's loopback by two addresses from one port, answers come
//! from the one it used last.
//!
//! RFC 768, RFC 4787, RFC 6888; udp(7) for UDP_SEGMENT and UDP_GRO.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::frame::protocol;
use cnet_wire::time::Instant;
use cnet_wire::udp::{Datagram, UDP_HEADER_LEN};
use cnet_wire::vnet::{GSO_NONE, GSO_UDP_L4};
use cnet_wire::{DropReason, IpHeader, Packet, PortId};

use super::errors::{Inside, Sent};
use super::forward::{Answer, Forwards, HostKey, PeerKey, PublishError, UdpForward};
use super::icmp_quote::Quote;
use super::relay::{Outward, Relay};
use super::session::{DatagramSessions, Protocol};
use super::{DatagramConfig, MIN_UDP_TIMEOUT, SocketOutcome, next_hop_limit};
use crate::flow::Handle;
use crate::host::{
    DatagramKind, HostError, HostSockets, Readiness, Received, SendOptions, SocketId, Token,
};
use crate::io::{Env, Io};
use crate::policy::Policy;
use cnet_wire::headers::{IPV6_HEADER_LEN, Link, MAX_IP_PACKET, l4_offset};

mod inbound;
mod incoming;

use inbound::{deliver, shown_to};
pub use incoming::Clients;
use incoming::Incoming;

/// Datagrams in one segmented send (`UDP_MAX_SEGMENTS` in `include/linux/udp.h` before 6.9).
const MAX_SEGMENTS: usize = 64;
/// Bytes of payload in one segmented send: an IPv6 packet as large as an IPv4 one may be.
const MAX_RUN: usize = MAX_IP_PACKET - IPV6_HEADER_LEN - UDP_HEADER_LEN;

/// What sends for a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outlet {
    Mapping(Handle),
    Forward(Handle),
}

/// What the packets of a run have in common.
#[derive(Clone, Copy, Debug)]
struct Flow {
    outlet: Outlet,
    link: Link,
    src: SocketAddr,
    /// Destination as the container knows it.
    dst: SocketAddr,
    /// Destination on the host's network.
    to: SocketAddr,
    /// Bytes of payload of each datagram but the last.
    size: usize,
    hop_limit: u8,
    tos: u8,
    dont_fragment: bool,
    /// The host's address to send from; `None` for the kernel's choice.
    source: Option<IpAddr>,
}

/// How a packet leaves.
struct Way {
    outlet: Outlet,
    /// Destination on the host's network.
    to: SocketAddr,
    source: Option<IpAddr>,
}

/// A checked UDP packet.
struct Datagrams<'a> {
    src: SocketAddr,
    dst: SocketAddr,
    payload: &'a [u8],
    /// Bytes of payload of each datagram, if it is a super-frame.
    segment: Option<usize>,
}

/// UDP of all containers that one worker serves.
pub type UdpSessions = DatagramSessions<Udp>;

/// What UDP has beside its mappings: published ports, and datagrams that wait for others like them.
#[derive(Debug)]
pub struct Udp {
    forwards: Forwards,
    /// The flow of the datagrams in `staging`.
    run: Option<Flow>,
    /// Allocated when it is first needed.
    staging: Vec<u8>,
    /// Segmented sends are worth trying.
    segmentation: bool,
}

impl Protocol for Udp {
    const KIND: DatagramKind = DatagramKind::Udp;
    const HEADER_LEN: usize = UDP_HEADER_LEN;

    fn deliver<E: Env>(
        relay: &mut Relay,
        io: &mut Io<'_, E>,
        inside: &Inside,
        received: &Received,
    ) -> Result<(), DropReason> {
        let from = shown_to(relay, received, inside.alias, inside.container)?;
        deliver(relay, io, &inside.link, from, inside.container, received)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.forwards.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.forwards.handle_timeout(now);
    }

    fn recover(&mut self) {
        self.run = None;
        self.staging.clear();
    }

    fn remove_port(&mut self, port: PortId) {
        if self.run.is_some_and(|run| run.link.port == port) {
            self.run = None;
            self.staging.clear();
        }
        self.forwards.remove_port(port);
    }
}

impl UdpSessions {
    /// UDP without mappings. `seed` is secret and random.
    pub fn new(now: Instant, config: DatagramConfig, seed: u64) -> UdpSessions {
        let timeout = config.udp_timeout.max(MIN_UDP_TIMEOUT);
        let udp = Udp {
            forwards: Forwards::new(now, timeout, seed),
            run: None,
            staging: Vec::new(),
            segmentation: true,
        };
        DatagramSessions::with(now, config, timeout, seed, udp)
    }

    /// Takes in the UDP packet `ip` of `frame`, which is not a fragment and has a hop limit above 1.
    /// It may be held back until [`UdpSessions::flush`].
    ///
    /// # Errors
    /// Why the packet was dropped. Where an ICMP error is due it has been sent. Staged packets that
    /// are lost later are counted in [`UdpSessions::counters`] instead.
    pub fn handle_packet<E: Env>(
        &mut self,
        packet: &Packet<'_>,
        link: &Link,
        policy: &Policy,
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        let Packet { now, ip, .. } = *packet;
        let read = Datagrams::read(packet)?;
        if self.join_run(link, ip, &read) {
            return Ok(());
        }
        self.flush_run(now, io);
        let Way { outlet, to, source } = self.way(packet, link, &read, policy, io)?;
        let size = read.segment.unwrap_or(read.payload.len());
        let flow = Flow {
            outlet,
            link: *link,
            src: read.src,
            dst: read.dst,
            to,
            size,
            hop_limit: ip.hop_limit,
            tos: ip.tos,
            dont_fragment: self
                .relay
                .config()
                .must_stay_whole(ip, UDP_HEADER_LEN + size),
            source,
        };
        if read.segment.is_some() || !self.may_start_run(&flow) {
            return self.send(now, io, &flow, read.payload);
        }
        self.protocol.staging.reserve_exact(MAX_RUN);
        self.protocol.staging.extend_from_slice(read.payload);
        self.protocol.run = Some(flow);
        Ok(())
    }

    /// The way of a container's packet: an answer leaves by the published port that its client spoke
    /// to; what the container says first, by a published port that leads to where it speaks from, or
    /// by its mapping.
    fn way<E: Env>(
        &mut self,
        packet: &Packet<'_>,
        link: &Link,
        read: &Datagrams<'_>,
        policy: &Policy,
        io: &mut Io<'_, E>,
    ) -> Result<Way, DropReason> {
        let key = PeerKey {
            port: link.port,
            container: read.src,
            client: read.dst,
        };
        let forwards = &mut self.protocol.forwards;
        if let Some(answer) = forwards.answer(packet.now, &key) {
            let Answer {
                forward,
                client,
                source,
            } = answer;
            return Ok(Way {
                outlet: Outlet::Forward(forward),
                to: client,
                source,
            });
        }
        let speaks = forwards.speaks_for(link.port, read.src, packet.ip.dst);
        let (outlet, to) = match speaks {
            Some(forward) => {
                let to = self.relay.permit(packet, io, link, policy)?;
                (Outlet::Forward(forward), to)
            }
            None => {
                let admitted = self
                    .relay
                    .admit(packet, io, link, [read.src, read.dst], policy)?;
                (Outlet::Mapping(admitted.handle), admitted.to)
            }
        };
        Ok(Way {
            outlet,
            to: SocketAddr::new(to, read.dst.port()),
            source: None,
        })
    }

    /// Sends what is staged. To be called at the end of every batch of packets.
    pub fn flush<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        self.flush_run(now, io);
    }

    /// Takes in an event of a published port's socket. `clients` knows what the network knows of
    /// containers and their clients.
    pub fn handle_forward<E: Env>(
        &mut self,
        now: Instant,
        token: Token,
        readiness: Readiness,
        clients: &impl Clients,
        policy: &Policy,
        io: &mut Io<'_, E>,
    ) -> SocketOutcome {
        let mut outcome = SocketOutcome::default();
        let Some((handle, forward)) = self.protocol.forwards.find(token) else {
            return outcome;
        };
        let (socket, end) = (forward.socket, forward.is.container);
        let inside = |client: IpAddr| {
            let container = end.in_order(client).next()?;
            Some(Inside {
                link: clients.link_to(container.ip())?,
                container,
                alias: None,
            })
        };
        let primary = inside(forward.is.bound.ip());
        let relay = &mut self.relay;
        if readiness.error {
            let drained = relay.errors.drain_for(now, io, socket, inside);
            outcome.left.error = drained.more;
        }
        if !readiness.readable {
            return outcome;
        }
        let forwards = &mut self.protocol.forwards;
        let unresolved = &mut outcome.unresolved;
        // Room for the longer headers, where either may be needed.
        let offset = l4_offset(end.ipv6.is_some()) + UDP_HEADER_LEN;
        let more = relay.receive(now, io, socket, offset, primary.as_ref(), |relay, io, r| {
            let host = HostKey {
                forward: handle,
                client: r.from,
                local: r.local,
            };
            let client = Incoming { now, end, host };
            let (key, link) = client.meet(forwards, clients, policy, io.hosts, unresolved)?;
            // An IPv4 packet starts so much later that its payload is where it is.
            let room = offset - UDP_HEADER_LEN - l4_offset(key.container.is_ipv6());
            let mut io = Io::<E> {
                sink: &mut *io.sink,
                hosts: &mut *io.hosts,
                buf: &mut io.buf[room..],
            };
            deliver(relay, &mut io, &link, key.client, key.container, r)
        });
        outcome.left.readable = more;
        outcome
    }

    /// Publishes: what arrives at `socket`, which the shell bound and watches under `token` (of
    /// [`crate::host::TokenKind::Forward`]), goes where `forward` says. `owner` is the port that has
    /// the container's addresses, if that is known. The engine owns the socket from here on.
    ///
    /// # Errors
    /// [`PublishError`]; the socket is the caller's still.
    pub fn publish_udp(
        &mut self,
        token: Token,
        socket: SocketId,
        forward: UdpForward,
        owner: Option<PortId>,
    ) -> Result<(), PublishError> {
        self.protocol
            .forwards
            .publish(token, socket, forward, owner)
    }

    /// Ends a published port and closes its socket; `false` if there was none of that token.
    pub fn unpublish_udp<E: Env>(&mut self, token: Token, io: &mut Io<'_, E>) -> bool {
        let Some(forward) = self.protocol.forwards.unpublish(token) else {
            return false;
        };
        io.hosts.close(forward.socket);
        true
    }

    /// Gives the host's port `host_port` back where mappings took it, because it is to be published. They
    /// are opened anew, with another port, by their containers' next packets.
    pub fn release_port(&mut self, host_port: u16, hosts: &mut impl HostSockets) {
        self.relay.mappings.release_port(host_port, hosts);
    }

    /// Whether `client` was heard on a published port of `container`, which may answer it.
    pub fn has_client(&self, port: PortId, container: SocketAddr, client: SocketAddr) -> bool {
        self.protocol.forwards.contains(&PeerKey {
            port,
            container,
            client,
        })
    }

    /// Whether a packet like that which `quote` quotes was sent to the container on `port`.
    pub fn owns(&self, port: PortId, quote: &Quote) -> bool {
        let key = PeerKey {
            port,
            container: quote.destination,
            client: quote.source,
        };
        quote.protocol == protocol::UDP
            && (self.relay.mappings.contains(port, quote.destination)
                || self.protocol.forwards.contains(&key))
    }

    /// Clients of published ports that are remembered.
    pub fn clients(&self) -> usize {
        self.protocol.forwards.peers()
    }

    /// Puts the packet behind the run, if it continues it.
    fn join_run(&mut self, link: &Link, ip: &IpHeader, packet: &Datagrams<'_>) -> bool {
        let Some(run) = &self.protocol.run else {
            return false;
        };
        let (len, room) = (packet.payload.len(), MAX_RUN - self.protocol.staging.len());
        let alike = run.src == packet.src
            && run.dst == packet.dst
            && run.link == *link
            && run.tos == ip.tos
            && run.hop_limit == ip.hop_limit
            && run.dont_fragment
                == (self.relay.config()).must_stay_whole(ip, UDP_HEADER_LEN + packet.payload.len());
        // A shorter datagram can only be the last.
        let open = self.protocol.staging.len().is_multiple_of(run.size);
        let fits = (1..=run.size.min(room)).contains(&len)
            && self.protocol.staging.len() / run.size < MAX_SEGMENTS;
        if !alike || !open || !fits || packet.segment.is_some() {
            return false;
        }
        self.protocol.staging.extend_from_slice(packet.payload);
        true
    }

    /// Whether waiting for more datagrams of `flow` may pay.
    fn may_start_run(&mut self, flow: &Flow) -> bool {
        let joinable = (1..=MAX_RUN / 2).contains(&flow.size);
        joinable && self.may_segment(flow)
    }

    fn may_segment(&mut self, flow: &Flow) -> bool {
        let largest = self.largest_segment(flow.outlet).map_or(0, |l| *l);
        self.protocol.segmentation && flow.size <= largest
    }

    fn largest_segment(&mut self, outlet: Outlet) -> Option<&mut usize> {
        match outlet {
            Outlet::Mapping(h) => Some(&mut self.relay.mappings.get_mut(h)?.largest_segment),
            Outlet::Forward(h) => Some(&mut self.protocol.forwards.get_mut(h)?.largest_segment),
        }
    }

    /// The socket that `flow` leaves by, and its container's side.
    fn outlet(&self, flow: &Flow) -> Option<(SocketId, Inside)> {
        match flow.outlet {
            Outlet::Mapping(h) => {
                let mapping = self.relay.mappings.get(h)?;
                Some((mapping.socket, mapping.inside))
            }
            Outlet::Forward(h) => {
                let inside = Inside {
                    link: flow.link,
                    container: flow.src,
                    alias: None,
                };
                Some((self.protocol.forwards.get(h)?.socket, inside))
            }
        }
    }

    fn flush_run<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        let Some(flow) = self.protocol.run.take() else {
            return;
        };
        let mut staging = std::mem::take(&mut self.protocol.staging);
        if let Err(reason) = self.send(now, io, &flow, &staging) {
            self.relay.drops.count(reason);
        }
        staging.clear();
        self.protocol.staging = staging;
    }

    /// Sends `payload`, one datagram or several of `flow.size` bytes. Of several, those that are
    /// lost are counted here.
    fn send<E: Env>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, E>,
        flow: &Flow,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        if payload.len() <= flow.size {
            return self.send_one(now, io, flow, payload);
        }
        let most = flow.size * MAX_SEGMENTS.min(MAX_RUN / flow.size).max(1);
        for several in payload.chunks(most) {
            self.send_several(now, io, flow, several);
        }
        Ok(())
    }

    fn send_several<E: Env>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, E>,
        flow: &Flow,
        payload: &[u8],
    ) {
        let count = payload.len().div_ceil(flow.size);
        if count > 1 && self.may_segment(flow) {
            let Some((socket, _)) = self.outlet(flow) else {
                return;
            };
            let options = SendOptions {
                to: flow.to,
                segment: u16::try_from(flow.size).ok(),
                hop_limit: next_hop_limit(flow.hop_limit),
                tos: flow.tos,
                dont_fragment: flow.dont_fragment,
                source: flow.source,
            };
            match io.hosts.datagram_send(socket, options, payload) {
                Ok(()) => return,
                Err(HostError::WouldBlock | HostError::Exhausted) => {
                    return self.count_lost(DropReason::HostResource, count);
                }
                Err(HostError::Unsupported) => self.protocol.segmentation = false,
                // Larger than the path takes: such a datagram is sent in fragments or refused.
                Err(HostError::TooBig | HostError::Other) => {
                    if let Some(largest) = self.largest_segment(flow.outlet) {
                        *largest = flow.size - 1;
                    }
                }
                // Perhaps an earlier datagram's error; sending one by one finds out.
                Err(_) => {}
            }
        }
        for (i, one) in payload.chunks(flow.size).enumerate() {
            if let Err(reason) = self.send_one(now, io, flow, one) {
                // The others are for the same destination, and the container has been told.
                return self.count_lost(reason, count - i);
            }
        }
    }

    fn count_lost(&mut self, reason: DropReason, count: usize) {
        for _ in 0..count {
            self.relay.drops.count(reason);
        }
    }

    fn send_one<E: Env>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, E>,
        flow: &Flow,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let (socket, inside) = self.outlet(flow).ok_or(DropReason::NoFlow)?;
        let outward = Outward {
            socket,
            to: flow.to,
            dont_fragment: flow.dont_fragment,
            source: flow.source,
        };
        let sent = Sent {
            to: flow.dst,
            hop_limit: flow.hop_limit,
            tos: flow.tos,
            payload,
            len: payload.len(),
        };
        self.relay.send(now, io, &outward, &inside, &sent)
    }
}

impl<'a> Datagrams<'a> {
    /// Reads the UDP header of `packet`, and how a super-frame is to be cut.
    fn read(packet: &Packet<'a>) -> Result<Datagrams<'a>, DropReason> {
        let Packet { frame, ip, .. } = *packet;
        if ip.fragment.is_some() {
            return Err(DropReason::BadFragment);
        }
        let datagram = Datagram::parse(packet.l4())?;
        if !packet.verified {
            return Err(DropReason::BadChecksum);
        }
        let segment = match frame.vnet.gso() {
            GSO_NONE => None,
            GSO_UDP_L4 if frame.vnet.gso_size != 0 => Some(usize::from(frame.vnet.gso_size)),
            _ => return Err(DropReason::BadVnetHeader),
        };
        Ok(Datagrams {
            src: SocketAddr::new(ip.src, datagram.src_port),
            dst: SocketAddr::new(ip.dst, datagram.dst_port),
            payload: datagram.payload,
            segment,
        })
    }
}

#[cfg(test)]
mod tests;
