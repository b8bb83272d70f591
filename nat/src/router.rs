//! The router of one network: what becomes of a packet that the switch gives it, of a socket's event,
//! of a deadline. It knows ports by number, and no switch.
//!
//! A packet goes where its destination says:
//!
//! 1. to the gateway's own addresses (ARP, neighbour discovery, DHCP, DNS, echo): answered by the
//!    [`crate::gateway`] on the spot (*hairpin*);
//! 2. anywhere else: a fragment waits for its datagram, a packet at its last hop is answered
//!    with an ICMP error, and TCP, UDP and ICMP become flows ([`crate::tcp`],
//!    [`crate::datagram`]).
//!
//! An address of the gateway that policy maps to the host's loopback is both: its services are
//! answered, the rest becomes a flow to the host.
//!
//! Every method follows the contract of the pure crates told in [`cnet_wire`]. A packet that goes
//! nowhere is the caller's to count.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::frame::{Frame, L3, protocol};
use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropCounters, DropReason, MacAddr, Packet, PortId};

use crate::datagram::{PingSessions, Quote, SocketOutcome, UdpSessions};
use crate::flow::Handle;
use crate::fragment::{Expired, Reassembly};
use crate::gateway::Gateway;
use crate::host::{HostError, QueryId, Readiness, SocketId, Token, TokenKind};
use crate::icmp_error::{IcmpErrorKind, RateLimit, emit_icmp_error, may_answer_with_error};
use crate::io::{Env, Io};
use crate::policy::Policy;
use crate::tcp::TcpSessions;
use cnet_wire::headers::Link;
use cnet_wire::stations::Stations;
use cnet_wire::tcp::is_opening;
use cnet_wire::udp::Datagram;

mod backlog;
mod clients;
mod config;
mod gateway_addresses;
mod port_lifecycle;
mod prefetch;
mod refusal;
mod solicit;

use backlog::{BACKLOG_ROUNDS, Backlog};
use clients::KnownClients;
pub use config::RouterConfig;
pub use port_lifecycle::PortFlows;
use solicit::{Solicited, link_to};

/// ICMP errors of the router itself a second, and at once (RFC 1812, section 4.3.2.8).
const ICMP_ERRORS_PER_SECOND: u32 = 1000;
const ICMP_ERROR_BURST: u32 = 100;
/// Silence after which a mapping of UDP or echo gives way to a TCP flow of its port.
const LENT_AFTER: Duration = Duration::from_secs(2);

/// Mappings that give way to one TCP flow: what the flow takes, and the part that has to be left free.
const MOST_BORROWED: usize = 2;

/// What becomes of a packet.
enum Path {
    /// It is for the gateway itself.
    Hairpin,
    /// It goes to a flow, or may open one.
    Flow,
    /// It is dropped, and its sender told.
    Error(IcmpErrorKind, DropReason),
    /// It is dropped.
    Drop(DropReason),
}

/// The router of one network, or of one worker's part of it.
pub struct Router {
    policy: Policy,
    gateway: Gateway,
    gateway_mac: MacAddr,
    gateway_v4: Option<IpAddr>,
    gateway_v6: Option<IpAddr>,
    reassembly: Reassembly,
    tcp: TcpSessions,
    udp: UdpSessions,
    ping: PingSessions,
    /// Datagram sockets that have more to receive.
    backlog: Backlog,
    /// Of connections that were accepted.
    drops: DropCounters,
    errors: RateLimit,
    /// Containers whose MAC address is asked for.
    solicited: Solicited,
    /// The socket of a client that is being taken in: of use only if that panics.
    accepted: Option<SocketId>,
}

impl Router {
    /// A router without ports. `secret` keys sequence numbers and tables and must be random.
    pub fn new(config: RouterConfig, secret: [u8; 32], now: Instant) -> Router {
        let (tcp_secret, rest) = secret.split_at(16);
        let word = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0x5bd1_e995, |w, b| w << 8 | u64::from(*b))
        };
        let mut key = [0; 16];
        key.copy_from_slice(tcp_secret);
        let (gateway_v4, gateway_v6) = (config.gateway.v4, config.gateway.v6);
        let gateway_mac = config.gateway.mac;
        let gateway = Gateway::new(config.gateway, word(&rest[..4]), now);
        Router {
            policy: config.policy,
            gateway_mac,
            gateway_v4: gateway_v4.map(|v4| v4.address.into()),
            gateway_v6: gateway_v6.map(|v6| v6.address.into()),
            gateway,
            reassembly: Reassembly::new(),
            tcp: TcpSessions::new(config.tcp, key, now),
            udp: UdpSessions::new(now, config.datagram.clone(), word(&rest[4..8])),
            ping: PingSessions::new(now, config.datagram, word(&rest[8..12])),
            backlog: Backlog::default(),
            drops: DropCounters::default(),
            errors: RateLimit::new(ICMP_ERRORS_PER_SECOND, ICMP_ERROR_BURST),
            solicited: Solicited::default(),
            accepted: None,
        }
    }

    /// The addresses that the gateway answers from, its link-local one included.
    pub fn gateway_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.gateway.unicast_addresses()
    }

    /// What was dropped so far of what came from the host or waited here, by reason. What came from a
    /// container and was dropped at once, [`Router::handle_frame`] has told.
    pub fn drops(&self) -> DropCounters {
        let mut all = self.drops.clone();
        all.add(self.udp.counters());
        all.add(self.ping.counters());
        all.add(self.reassembly.counters());
        all
    }

    /// TCP flows, UDP mappings and ICMP mappings in their tables.
    pub fn flows(&self) -> usize {
        self.tcp.len() + self.udp.len() + self.ping.len()
    }

    /// Whether all that containers have sent over TCP, and that was acknowledged to them, was taken
    /// by the host's sockets.
    pub fn is_delivered(&self) -> bool {
        self.tcp.unsent() == 0
    }

    /// The gateway, for its counters.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// The TCP engine, for its counters.
    pub fn tcp(&self) -> &TcpSessions {
        &self.tcp
    }

    /// Why the host would open no ping socket, if it would not.
    pub fn ping_unavailable(&self) -> Option<HostError> {
        self.ping.unavailable()
    }

    // ---- frames ----

    /// A frame from a container that the switch gives the router.
    ///
    /// # Errors
    ///
    /// Why nothing came of it.
    pub fn handle_frame<E: Env>(
        &mut self,
        now: Instant,
        ingress: PortId,
        frame: &Frame<'_>,
        stations: &impl Stations,
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        match &frame.l3 {
            L3::Arp => {
                let from = (now, ingress);
                let result = self.gateway.handle_arp(from, frame, stations, io);
                if !self.solicited.is_empty() {
                    self.meet_solicited(now, stations, io);
                }
                result
            }
            L3::Ip(ip) if ip.fragment.is_some() => {
                let Some(whole) = self.reassembly.handle_fragment(now, ingress, frame, ip)? else {
                    return Ok(());
                };
                let frame = whole.parse()?;
                match &frame.l3 {
                    L3::Ip(ip) => {
                        let packet = Packet::new(now, ingress, &frame, ip);
                        self.handle_packet(&packet, stations, io)
                    }
                    L3::Arp => Err(DropReason::BadFragment),
                }
            }
            L3::Ip(ip) => {
                let packet = Packet::new(now, ingress, frame, ip);
                self.handle_packet(&packet, stations, io)
            }
        }
    }

    /// A packet from a container, no fragment.
    ///
    /// # Errors
    ///
    /// Why nothing came of it.
    pub fn handle_packet<E: Env>(
        &mut self,
        packet: &Packet<'_>,
        stations: &impl Stations,
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        let link = Link {
            port: packet.ingress,
            gateway_mac: self.gateway_mac,
            container_mac: packet.frame.src,
        };
        match self.path(packet) {
            Path::Hairpin => self.hairpin(packet, &link, stations, io),
            Path::Flow => self.handle_flow(packet, &link, io),
            Path::Error(kind, reason) => {
                self.report(packet, &link, kind, io);
                Err(reason)
            }
            Path::Drop(reason) => Err(reason),
        }
    }

    #[inline]
    fn path(&self, packet: &Packet<'_>) -> Path {
        let dst = packet.frame.dst;
        let from = packet.ingress;
        if self.is_for_gateway(from, packet.ip.dst, packet.ip.protocol, packet.ports)
            && !self.answers_client(packet)
            && !self.is_echo_for_another(packet)
        {
            return Path::Hairpin;
        }
        if dst != self.gateway_mac {
            return Path::Drop(if dst.is_multicast() {
                DropReason::MartianDestination
            } else {
                DropReason::NoSuchPort
            });
        }
        if !packet.verified {
            return Path::Drop(why_unverified(packet));
        }
        if packet.ip.hop_limit <= 1 {
            return Path::Error(IcmpErrorKind::TtlExceeded, DropReason::TtlExpired);
        }
        // Containers find each other by their MAC addresses. What is sent this way all the same is not to
        // leave through the host, where the subnet may be another network's.
        if self.gateway.is_neighbour(packet.ip.dst) {
            return Path::Error(
                IcmpErrorKind::HostUnreachable,
                DropReason::MartianDestination,
            );
        }
        match packet.ip.protocol {
            protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6 => Path::Flow,
            _ => Path::Error(
                IcmpErrorKind::ProtocolUnreachable,
                DropReason::UnknownProtocol,
            ),
        }
    }

    fn handle_flow<E: Env>(
        &mut self,
        packet: &Packet<'_>,
        link: &Link,
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        let Router {
            tcp,
            udp,
            ping,
            policy,
            ..
        } = self;
        match packet.ip.protocol {
            protocol::TCP => {
                if is_opening(packet.l4()) {
                    self.borrow_descriptors(packet.now, link.port, io);
                }
                self.tcp.handle_packet(packet, link, &self.policy, io)
            }
            protocol::UDP => udp.handle_packet(packet, link, policy, io),
            _ => {
                let owns = |quote: &Quote| match quote.protocol {
                    protocol::TCP => tcp.owns(quote.destination, quote.source),
                    _ => udp.owns(link.port, quote),
                };
                ping.handle_packet(packet, link, policy, owns, io)
            }
        }
    }

    /// Where a TCP flow of `port` finds no room, has mappings of UDP and echo of the same port make it,
    /// as far as they were idle for a while.
    fn borrow_descriptors<E: Env>(&mut self, now: Instant, port: PortId, io: &mut Io<'_, E>) {
        for _ in 0..MOST_BORROWED {
            let enough = self.tcp.has_room(Some(port));
            let lent = !enough
                && (self.udp.give_way(now, port, LENT_AFTER, io.hosts)
                    || self.ping.give_way(now, port, LENT_AFTER, io.hosts));
            if !lent {
                return;
            }
        }
    }

    /// Whether there is a TCP flow between these ends.
    pub fn has_tcp_flow(&self, container: SocketAddr, remote: SocketAddr) -> bool {
        self.tcp.owns(container, remote)
    }

    /// A packet for the gateway itself.
    fn hairpin<E: Env>(
        &mut self,
        packet: &Packet<'_>,
        link: &Link,
        stations: &impl Stations,
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        let result = self.gateway.handle_packet(packet, stations, io);
        if !self.solicited.is_empty() {
            self.meet_solicited(packet.now, stations, io);
        }
        if !matches!(
            result,
            Err(DropReason::NotServed | DropReason::UnknownProtocol)
        ) {
            return result;
        }
        if !packet.verified {
            return Err(why_unverified(packet));
        }
        let kind = match packet.ip.protocol {
            // What the host's loopback would be behind the gateway's address is out of reach, and
            // slirp4netns's word for that is network unreachable.
            protocol::TCP | protocol::UDP if self.gateway.is_unreachable(packet.ip.dst) => {
                IcmpErrorKind::NetUnreachable
            }
            protocol::TCP => return self.tcp.refuse_packet(packet, link, io),
            protocol::UDP => IcmpErrorKind::PortUnreachable,
            protocol::ICMP | protocol::ICMPV6 => return result,
            _ => IcmpErrorKind::ProtocolUnreachable,
        };
        self.report(packet, link, kind, io);
        result
    }

    fn report<E: Env>(
        &mut self,
        packet: &Packet<'_>,
        link: &Link,
        kind: IcmpErrorKind,
        io: &mut Io<'_, E>,
    ) {
        let Packet { frame, ip, .. } = *packet;
        let from = if ip.src.is_ipv4() {
            self.gateway_v4
        } else {
            self.gateway_v6
        };
        let Some(from) = from else { return };
        if may_answer_with_error(frame, ip) && self.errors.allow(packet.now) {
            let quote = frame.ip_packet(ip);
            // An error that finds no room is as good as one that was limited.
            let _ = emit_icmp_error(io.sink, io.buf, link, from, ip.src, kind, quote);
        }
    }

    /// The router's turn at the end of a batch of frames (a few, so that acknowledgements are
    /// neither late nor many).
    pub fn end_batch<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        self.tcp.end_batch(now, io);
        self.udp.flush(now, io);
    }

    // ---- sockets ----

    /// Readiness of a flow's socket.
    pub fn handle_socket<E: Env>(
        &mut self,
        now: Instant,
        token: Token,
        ready: Readiness,
        stations: &impl Stations,
        io: &mut Io<'_, E>,
    ) {
        let handle = Handle {
            index: token.index(),
            generation: token.generation(),
        };
        let outcome = match token.kind() {
            TokenKind::Tcp => return self.tcp.handle_socket(now, token, ready, io),
            TokenKind::Udp => self.udp.handle_socket(now, handle, ready, io),
            TokenKind::Ping => self.ping.handle_socket(now, handle, ready, io),
            TokenKind::Forward => self.handle_forward(now, token, ready, stations, io),
            TokenKind::Shell | TokenKind::Splice => return,
        };
        self.backlog.push(token, outcome.left);
        if let Some(container) = outcome.unresolved {
            self.solicit(now, container, stations, io);
        }
    }

    /// Readiness of a published UDP port's socket.
    fn handle_forward<E: Env>(
        &mut self,
        now: Instant,
        token: Token,
        ready: Readiness,
        stations: &impl Stations,
        io: &mut Io<'_, E>,
    ) -> SocketOutcome {
        let clients = KnownClients {
            gateway: &self.gateway,
            policy: &self.policy,
            gateway_mac: self.gateway_mac,
            gateways: [self.gateway_v4, self.gateway_v6],
            stations,
            now,
        };
        (self.udp).handle_forward(now, token, ready, &clients, &self.policy, io)
    }

    /// The network's policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The network's policy, to be changed. Conversations that it has allowed go on.
    pub fn policy_mut(&mut self) -> &mut Policy {
        &mut self.policy
    }

    // ---- DNS ----

    /// Answers a query that was asked by [`HostSockets::ask_dns`](crate::host::HostSockets::ask_dns).
    pub fn answer_dns<E: Env>(
        &mut self,
        now: Instant,
        id: QueryId,
        message: &[u8],
        io: &mut Io<'_, E>,
    ) {
        self.gateway.answer(now, id, message, io);
    }

    // ---- time ----

    /// When [`Router::handle_timeout`] wants to be called; an instant in the past when there is
    /// work at once.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.backlog.is_empty() {
            return Some(Instant::ZERO);
        }
        [
            self.solicited.poll_timeout(),
            self.tcp.poll_timeout(),
            self.udp.poll_timeout(),
            self.ping.poll_timeout(),
            self.reassembly.poll_timeout(),
            self.gateway.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Acts on passed deadlines, and on work that had to wait for its turn.
    pub fn handle_timeout<E: Env>(
        &mut self,
        now: Instant,
        stations: &impl Stations,
        io: &mut Io<'_, E>,
    ) {
        self.tcp.handle_timeout(now, io);
        self.udp.handle_timeout(now, io);
        self.ping.handle_timeout(now, io);
        self.gateway.handle_timeout(now, io);
        self.expire_fragments(now, io);
        self.repeat_solicitations(now, stations, io);
        for _ in 0..BACKLOG_ROUNDS.min(self.backlog.len()) {
            if let Some((token, ready)) = self.backlog.pop() {
                self.handle_socket(now, token, ready, stations, io);
            }
        }
    }

    /// Gives up datagrams whose fragments did not all come, and tells their senders.
    fn expire_fragments<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        let Router {
            reassembly,
            errors,
            gateway_v4,
            gateway_v6,
            ..
        } = self;
        reassembly.handle_timeout(now, |expired| {
            let from = if expired.src.is_ipv4() {
                *gateway_v4
            } else {
                *gateway_v6
            };
            // No error about what came in a frame to a group (RFC 1122, section 3.2.2).
            let to_group = expired.link.gateway_mac.is_multicast();
            let Some(from) = from.filter(|_| !to_group && errors.allow(now)) else {
                return;
            };
            let kind = IcmpErrorKind::ReassemblyTimeExceeded;
            let Expired {
                link, src, quote, ..
            } = expired;
            // The sender has given up long ago; a full port costs it nothing.
            let _ = emit_icmp_error(io.sink, io.buf, &link, from, src, kind, quote);
        });
    }

    /// The network ends: closes connections that are through, and resets the rest.
    pub fn shut_down<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        self.tcp.shut_down(now, io);
    }
}

/// Why a packet's transport checksum does not verify: a UDP length that lies names no bytes to sum.
#[cold]
fn why_unverified(packet: &Packet<'_>) -> DropReason {
    let is_udp = packet.ip.protocol == protocol::UDP;
    let parsed = is_udp.then(|| Datagram::parse(packet.l4()).err());
    parsed.flatten().unwrap_or(DropReason::BadChecksum)
}

#[cfg(test)]
mod tests;
