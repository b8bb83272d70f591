//! The corridor of a frame: parse, switch, router. And the way of all other events, which is shorter.
//!
//! # Theory of operation
//!
//! [`Network::handle_frames`] is the way of every frame. The switch admits it, writes it to the ports it
//! goes to and says whether the router is to have it; the router answers it or makes it a flow. What
//! drops it says why, and it is counted here, once, at the port it came in by
//! ([`Switch::count_drop`]).
//!
//! Where policy has rules about what containers say to each other, it is asked between the switch's
//! verdict and its delivery. Refused frames are dropped in silence, as a switch drops; of a frame to
//! all, the router still has its copy. Address resolution, ARP and neighbour discovery alike, is not
//! asked about.
//!
//! With more flows than a processor's caches hold, the router reads the flows of a whole batch side by
//! side before the first packet of it is handled ([`Router::prefetch`]), and those of several sockets'
//! events. With fewer flows nothing of this is done.
//!
//! With several workers each has a network of its own. Those of further workers share the switch's
//! tables and hand the primary worker what is not theirs (`steering`).

use std::net::{IpAddr, SocketAddr};

use cnet_nat::datagram::{PublishError, UdpForward};
use cnet_nat::flow::PREFETCH_DEPTH;
use cnet_nat::forward::ClientPath;
use cnet_nat::host::{QueryId, Readiness, SocketId, Token};
use cnet_nat::io::{Env, Io};
use cnet_nat::router::{Router, RouterConfig};
use cnet_vswitch::{Delivery, Lease, Neighbours, RouterPort, Switch, SwitchConfig, Verdict};
use cnet_wire::conversation::{Decision, Direction};
use cnet_wire::frame::protocol;
use cnet_wire::icmp::v6;
use cnet_wire::time::Instant;
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{DropReason, Frame, FrameSink, IpHeader, L3, MacAddr, Packet, PortId};

/// The network's effects as the router has them: what it sends comes into the switch by its port.
type AtPort<'a, E> = (RouterPort<'a, <E as Env>::Sink>, <E as Env>::Hosts);

/// A network as one worker has it.
pub struct Network {
    pub(crate) mtu: usize,
    pub(crate) gateway_mac: MacAddr,
    pub(crate) switch: Switch,
    pub(crate) router: Router,
    /// Of a further worker: it hands the primary one what is not its own.
    pub(crate) is_further: bool,
    /// Of the last call of [`Network::handle_frames`].
    frame_in_hand: usize,
}

impl Network {
    /// A network without ports. `secret` keys sequence numbers and tables and must be random.
    pub fn new(config: RouterConfig, secret: [u8; 32], now: Instant) -> Network {
        let (mtu, gateway_mac, v6) = (config.mtu, config.gateway.mac, config.gateway.v6);
        let router = Router::new(config, secret, now);
        let [.., a, b, c, d] = secret;
        let switch = Switch::new(SwitchConfig {
            router: Lease::of(gateway_mac, router.gateway_addresses()),
            ipv6_prefixes: v6.iter().map(|v6| (v6.address, v6.prefix_len)).collect(),
            seed: u64::from(u32::from_be_bytes([a, b, c, d])),
        });
        Network {
            mtu,
            gateway_mac,
            switch,
            router,
            is_further: false,
            frame_in_hand: 0,
        }
    }

    // ---- frames ----

    /// Frames from containers, virtio-net header first, in the order they came in.
    pub fn handle_frames<E: Env>(
        &mut self,
        now: Instant,
        frames: &[(PortId, &[u8])],
        io: &mut Io<'_, E>,
    ) {
        self.frame_in_hand = 0;
        if !self.prefetches() {
            for &(ingress, bytes) in frames {
                self.handle_frame(now, ingress, bytes, io);
                self.frame_in_hand += 1;
            }
            return;
        }
        for frames in frames.chunks(PREFETCH_DEPTH) {
            let parsed = self.prefetch(frames);
            for (&(ingress, bytes), parsed) in frames.iter().zip(parsed) {
                self.handle_parsed(now, ingress, bytes, parsed, io);
                self.frame_in_hand += 1;
            }
        }
    }

    /// A frame from a container, virtio-net header first.
    #[inline]
    pub fn handle_frame<E: Env>(
        &mut self,
        now: Instant,
        ingress: PortId,
        bytes: &[u8],
        io: &mut Io<'_, E>,
    ) {
        let parsed = Frame::parse(bytes, self.mtu);
        self.handle_parsed(now, ingress, bytes, parsed, io);
    }

    fn handle_parsed<E: Env>(
        &mut self,
        now: Instant,
        ingress: PortId,
        bytes: &[u8],
        parsed: Result<Frame<'_>, DropReason>,
        io: &mut Io<'_, E>,
    ) {
        let done = match &parsed {
            Ok(frame) if self.is_further && self.is_for_primary(ingress, frame) => {
                self.hand_over(ingress, bytes, io)
            }
            Ok(frame) => self.pass(now, ingress, frame, bytes, io),
            Err(reason) => self.refuse(ingress, bytes, *reason),
        };
        if let Err(reason) = done {
            self.switch.count_drop(ingress, reason);
            if let (DropReason::Spoofed, Ok(frame)) = (reason, &parsed) {
                self.note_foreign_source(ingress, frame, io);
            }
        }
    }

    /// Tells of the first of a port's frames that is dropped for its source, or for what it claims.
    #[cold]
    fn note_foreign_source<E: Env>(&self, ingress: PortId, frame: &Frame<'_>, io: &mut Io<'_, E>) {
        let counters = self.switch.counters(ingress);
        if counters.is_some_and(|counters| counters.drops.get(DropReason::Spoofed) == 1) {
            let ip = match &frame.l3 {
                L3::Ip(ip) => Some(ip.src),
                L3::Arp => frame.arp().map(|arp| arp.sender_ip.into()),
            };
            io.sink.note_foreign_source(ingress, frame.src, ip);
        }
    }

    /// Whether there are so many flows that to hand over several frames at a time is of use.
    pub fn prefetches(&self) -> bool {
        self.router.prefetches()
    }

    /// Parses `frames`, of which the first [`PREFETCH_DEPTH`] count, and reads their flows.
    #[inline]
    fn prefetch<'a>(
        &self,
        frames: &[(PortId, &'a [u8])],
    ) -> [Result<Frame<'a>, DropReason>; PREFETCH_DEPTH] {
        let mut parsed = [Err(DropReason::FrameTooShort); PREFETCH_DEPTH];
        for (parsed, (_, bytes)) in parsed.iter_mut().zip(frames) {
            *parsed = Frame::parse(bytes, self.mtu);
        }
        let whole = frames.iter().zip(&parsed);
        self.router
            .prefetch(whole.filter_map(|(&(port, _), frame)| Some((port, frame.as_ref().ok()?))));
        parsed
    }

    /// From the switch to the router.
    #[inline]
    fn pass<E: Env>(
        &mut self,
        now: Instant,
        ingress: PortId,
        frame: &Frame<'_>,
        raw: &[u8],
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        let mut verdict = self.switch.judge(now, ingress, frame);
        if verdict == Verdict::Refuse {
            self.tell_refusal(now, ingress, frame, io);
        }
        if self.router.policy().has_rules(Direction::Between) {
            verdict = self.ask_policy(now, ingress, frame, verdict)?;
        }
        if self.switch.has_uplinks()
            && let Verdict::Flood { .. } = verdict
            && let Some((question, mac)) = self.switch.answer_in_place(now, ingress, frame)
        {
            // A port that is full misses the answer as it would any frame.
            let _ = question.answer(mac, |answer| io.sink.emit(ingress, answer));
            return Ok(());
        }
        match self
            .switch
            .deliver(ingress, (frame, raw), verdict, io.sink)?
        {
            Delivery::Done => Ok(()),
            Delivery::Router => self.at_router(io, |router, stations, io| {
                router.handle_frame(now, ingress, frame, stations, io)
            }),
        }
    }

    /// Asks policy about what the switch would deliver to another container. What is refused there
    /// and is for the router, too, goes to the router alone: policy between containers does not keep
    /// them from DHCP and router solicitations.
    #[cold]
    fn ask_policy(
        &self,
        now: Instant,
        ingress: PortId,
        frame: &Frame<'_>,
        verdict: Verdict,
    ) -> Result<Verdict, DropReason> {
        let ip = match (verdict, &frame.l3) {
            (Verdict::Port(PortId::ROUTER) | Verdict::Drop(_) | Verdict::Refuse, _)
            | (_, L3::Arp) => {
                return Ok(verdict);
            }
            (_, L3::Ip(ip)) => ip,
        };
        if resolves_address(frame, ip) {
            return Ok(verdict);
        }
        let packet = Packet {
            now,
            ingress,
            frame,
            ip,
            ports: match ip.fragment {
                Some(later) if later.offset > 0 => None,
                _ => frame.transport_ports(ip),
            },
            // To the switch a checksum means nothing.
            verified: false,
        };
        let policy = self.router.policy();
        match (policy.decide_packet(&packet, Direction::Between), verdict) {
            (Decision::Allow(_), _) => Ok(verdict),
            (Decision::Refuse(_), Verdict::Flood { router: true }) => {
                Ok(Verdict::Port(PortId::ROUTER))
            }
            (Decision::Refuse(_), _) => Err(DropReason::Policy),
        }
    }

    /// The switch has refused the frame by what is allowed to containers: the sender is told.
    #[cold]
    fn tell_refusal<E: Env>(
        &mut self,
        now: Instant,
        ingress: PortId,
        frame: &Frame<'_>,
        io: &mut Io<'_, E>,
    ) {
        let L3::Ip(ip) = &frame.l3 else { return };
        if ip.fragment.is_none() {
            let packet = Packet::new(now, ingress, frame, ip);
            self.at_router(io, |router, _, io| router.tell_refusal(&packet, io));
        }
    }

    /// A frame that the switch does not get to see counts as come in all the same.
    pub(crate) fn refuse(
        &mut self,
        ingress: PortId,
        bytes: &[u8],
        reason: DropReason,
    ) -> Result<(), DropReason> {
        let len = bytes.len().saturating_sub(VNET_HDR_LEN);
        self.switch.count_refused(ingress, len);
        Err(reason)
    }

    /// To be called at the end of a batch of frames (a few, so that acknowledgements are neither late
    /// nor many).
    pub fn end_batch<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        self.at_router(io, |router, _, io| router.end_batch(now, io));
    }

    /// Calls the router, which is behind its port of the switch.
    #[inline]
    pub(crate) fn at_router<E: Env, T>(
        &mut self,
        io: &mut Io<'_, E>,
        call: impl FnOnce(&mut Router, &Neighbours<'_>, &mut Io<'_, AtPort<'_, E>>) -> T,
    ) -> T {
        let (neighbours, mut port) = self.switch.router_port(&mut *io.sink);
        let mut io = Io::new(&mut port, &mut *io.hosts, &mut *io.buf);
        call(&mut self.router, &neighbours, &mut io)
    }

    // ---- the host ----

    /// Reads the flows of sockets that are ready, of which the first [`PREFETCH_DEPTH`] count, ahead of
    /// [`Network::handle_socket`] for each.
    pub fn prefetch_sockets(&self, tokens: impl Iterator<Item = Token>) {
        self.router.prefetch_sockets(tokens);
    }

    /// Readiness of a flow's socket.
    pub fn handle_socket<E: Env>(
        &mut self,
        now: Instant,
        token: Token,
        ready: Readiness,
        io: &mut Io<'_, E>,
    ) {
        self.at_router(io, |router, stations, io| {
            router.handle_socket(now, token, ready, stations, io);
        });
    }

    /// As [`Router::client_path`].
    pub fn client_path(
        &self,
        now: Instant,
        peer: SocketAddr,
        container: SocketAddr,
        can_splice: bool,
    ) -> ClientPath {
        let stations = &self.switch.neighbours();
        self.router
            .client_path(now, peer, container, can_splice, stations)
    }

    /// A client was accepted on the published TCP port of `container`.
    pub fn handle_accept<E: Env>(
        &mut self,
        now: Instant,
        container: SocketAddr,
        peer: SocketAddr,
        socket: SocketId,
        io: &mut Io<'_, E>,
    ) {
        self.at_router(io, |router, stations, io| {
            router.handle_accept(now, container, peer, socket, stations, io);
        });
    }

    /// As [`Router::publish_udp`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn publish_udp(
        &mut self,
        now: Instant,
        token: Token,
        socket: SocketId,
        forward: UdpForward,
    ) -> Result<(), PublishError> {
        let stations = &self.switch.neighbours();
        self.router
            .publish_udp(now, token, socket, forward, stations)
    }

    /// Has mappings of UDP give the host's port `host_port` back, because it is to be published.
    pub fn release_udp_port<E: Env>(&mut self, host_port: u16, io: &mut Io<'_, E>) {
        self.router.release_udp_port(host_port, io);
    }

    /// Closes the published UDP port of `token`; `false` if there is none.
    pub fn unpublish_udp<E: Env>(&mut self, token: Token, io: &mut Io<'_, E>) -> bool {
        self.at_router(io, |router, _, io| router.unpublish_udp(token, io))
    }

    /// Answers a query that was asked by [`HostSockets::ask_dns`](cnet_nat::host::HostSockets::ask_dns).
    pub fn answer_dns<E: Env>(
        &mut self,
        now: Instant,
        id: QueryId,
        message: &[u8],
        io: &mut Io<'_, E>,
    ) {
        self.at_router(io, |router, _, io| router.answer_dns(now, id, message, io));
    }

    /// A call has panicked. Ends the flow that it was about, if there was one, with a reset on both
    /// sides ([`Router::recover`]). If the call was [`Network::handle_frames`], `frame` tells the port
    /// that the frame in hand came in by, where the frame counts as dropped.
    pub fn recover<E: Env>(&mut self, now: Instant, frame: Option<PortId>, io: &mut Io<'_, E>) {
        if let Some(ingress) = frame {
            self.switch.count_drop(ingress, DropReason::Defect);
        }
        self.at_router(io, |router, stations, io| router.recover(now, stations, io));
    }

    /// The frame that the last call of [`Network::handle_frames`] has come to, by its place there.
    pub fn frame_in_hand(&self) -> usize {
        self.frame_in_hand
    }

    /// The host has these addresses now; for filters that refuse them.
    pub fn set_host_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.router.policy_mut().host_addresses = addresses;
    }

    // ---- time ----

    /// When [`Network::handle_timeout`] wants to be called; an instant in the past when there is
    /// work at once.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.router.poll_timeout()
    }

    /// Acts on passed deadlines, and on work that had to wait for its turn.
    pub fn handle_timeout<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        self.at_router(io, |router, stations, io| {
            router.handle_timeout(now, stations, io)
        });
    }

    /// The network ends: closes connections that are through, and resets the rest.
    pub fn shut_down<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        self.at_router(io, |router, _, io| router.shut_down(now, io));
    }

    // ---- state ----

    /// TCP flows, UDP mappings and ICMP mappings in their tables.
    pub fn flows(&self) -> usize {
        self.router.flows()
    }

    /// TCP flows, of all ports and of none yet.
    pub fn tcp_flows(&self) -> usize {
        self.router.tcp().len()
    }

    /// Bytes that containers have sent over TCP and that wait for the host's sockets.
    pub fn unsent(&self) -> usize {
        self.router.tcp().unsent()
    }

    /// Whether all that containers have sent over TCP, and that was acknowledged to them, was taken
    /// by the host's sockets.
    pub fn is_delivered(&self) -> bool {
        self.router.is_delivered()
    }
}

/// Whether the packet asks or tells where an address is. As with ARP, that is no conversation yet, and
/// without it none of those that policy allows could begin.
fn resolves_address(frame: &Frame<'_>, ip: &IpHeader) -> bool {
    ip.protocol == protocol::ICMPV6
        && ip.fragment.is_none()
        && matches!(
            frame.l4(ip).first(),
            Some(&(v6::NEIGHBOUR_SOLICITATION | v6::NEIGHBOUR_ADVERTISEMENT))
        )
}
