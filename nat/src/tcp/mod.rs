//! TCP: the container's connection spliced to a socket of the host.
//!
//! # Theory of operation
//!
//! There are two TCPs already, the container's kernel and the host's, and both are better than a
//! third would be. This engine speaks just enough TCP on the TAP to carry bytes, windows,
//! acknowledgements and ends between them.
//!
//! - **Open, outwards.** A SYN asks policy, enters the table and starts a non-blocking connect.
//!   The container hears nothing until the host's kernel knows: connected is a SYN/ACK, refused a
//!   RST, unreachable an ICMP error. When the host's connect times out nothing is said either: no
//!   ICMP error means ETIMEDOUT, and the container's own kernel, whose SYNs go unanswered, says
//!   just that. **Inwards**, an accepted client becomes a SYN with the client's own address.
//! - **Container to host** ([`receive`]): payload goes from the frame into the socket.
//! - **Host to container** ([`transmit`]): bytes are peeked from the socket, and discarded there
//!   when the container acknowledged them. A flow with much to send goes on in the `backlog`.
//! - **Ends.** A FIN of either side becomes the other side's FIN once all bytes before it are
//!   through; a RST of either side resets the other. The flow is over when both FINs are
//!   acknowledged. There is no TIME-WAIT here: whichever kernel closed first keeps it.
//!
//! # What an ACK means
//!
//! That the host's kernel has the bytes, or that they are in the flow's unsent buffer (see
//! [`receive`]), not that the far end has them: waiting for `tcpi_bytes_acked` would cost a system call a batch
//! and tie the container's window to the far round trip. If the far end then resets, the container
//! gets the RST, as with any proxy.
//!
//! # Time and limits
//!
//! One deadline a flow ([`flow`]). An established flow that is silent for
//! [`TcpConfig::established_timeout`] is probed and ends only if the container does not answer. When
//! a port has as many flows as it may (`quotas`) its oldest flow whose handshake is not done makes
//! room, and then the oldest one whose container is gone (`orphan`); an established flow never does,
//! nor does one of another port.
//!
//! # What is left out
//!
//! Timestamps, ECN and urgent data: the link is local, urgent bytes are passed in line. Segments
//! out of order are not kept (the TAP keeps order).

use std::collections::VecDeque;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropReason, Packet, PortId};
use siphasher::sip::SipHasher24;

use crate::flow::{Ends, FairShare, FlowTable, Handle, LOOK_AHEAD, TimerWheel};
use crate::host::{Readiness, Token};
use crate::icmp_error::IcmpErrorKind;
use crate::io::{Env, Io};
use crate::policy::{Decision, Policy, Refusal, is_routable};
use cnet_wire::headers::Link;

/// Runs one flow operation with the engine's parts lent out. What it did to the flow's state and
/// deadline is for [`TcpEngine::settle`] to take up.
macro_rules! with_flow {
    ($self:ident, $handle:expr, $now:expr, $io:expr, |$flow:ident, $cx:ident| $body:expr) => {{
        let TcpEngine {
            config,
            flows,
            unsent,
            ..
        } = &mut *$self;
        flows.entry_mut($handle).map(|(ends, $flow)| {
            let mut cx = Cx {
                now: $now,
                io: $io,
                route: Route::from(ends),
                config,
                unsent,
            };
            let $cx = &mut cx;
            $body
        })
    }};
}

mod backlog;
pub mod flow;
mod isn;
mod open;
mod orphan;
mod quota;
pub mod receive;
mod rto;
mod rto_queue;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod transmit;
mod unsent;

use backlog::Backlog;
use cnet_wire::tcp::{Route, Segment};
use flow::{Cx, State, TcpFlow};
use isn::IsnGenerator;
use open::{on_connected, refuse};
use quota::Quotas;
use rto_queue::RtoQueue;
use unsent::UnsentBudget;

/// Constants of the engine.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// IP MTU of the link, in bytes.
    pub mtu: usize,
    /// Flows in the table.
    pub max_flows: usize,
    /// Flows of one port.
    pub max_flows_per_port: usize,
    /// Silence after which an established flow is probed; at least 2 h 4 min (RFC 5382, REQ-5).
    pub established_timeout: Duration,
    /// Silence after which a half-open or half-closed flow is probed or dropped; at least 4 min.
    pub transitory_timeout: Duration,
    /// Bytes all unsent buffers together may hold.
    pub unsent_limit: usize,
    /// Source of ICMP errors, and what a client on the host's loopback looks like.
    pub gateway_v4: Option<IpAddr>,
    /// The same for IPv6.
    pub gateway_v6: Option<IpAddr>,
}

impl Default for TcpConfig {
    fn default() -> Self {
        TcpConfig {
            mtu: 1500,
            max_flows: 200_000,
            max_flows_per_port: usize::MAX,
            established_timeout: Duration::from_secs(2 * 3600 + 4 * 60),
            transitory_timeout: Duration::from_secs(240),
            unsent_limit: 64 << 20,
            gateway_v4: None,
            gateway_v6: None,
        }
    }
}

impl TcpConfig {
    /// Our address in the family of `a`.
    fn gateway(&self, a: IpAddr) -> Option<IpAddr> {
        if a.is_ipv4() {
            self.gateway_v4
        } else {
            self.gateway_v6
        }
    }
}

/// Numbers the engine counts, all since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Flows opened by containers.
    pub opened: u64,
    /// Flows opened through published ports.
    pub accepted: u64,
    /// Flows that made room for others: half-open ones, and those whose container was gone.
    pub evicted: u64,
}

impl TcpCounters {
    /// Adds what was counted elsewhere.
    pub fn add(&mut self, others: &TcpCounters) {
        self.opened += others.opened;
        self.accepted += others.accepted;
        self.evicted += others.evicted;
    }
}

/// Reads something of each cache line that a flow and its key lie in.
fn touch(ends: &Ends, flow: &TcpFlow) -> u64 {
    u64::from(ends.container().port() ^ ends.remote().port()) ^ flow.touch()
}

/// All TCP flows of one worker.
#[derive(Debug)]
pub struct TcpEngine {
    config: TcpConfig,
    flows: FlowTable<Ends, TcpFlow>,
    timers: TimerWheel,
    rto_queue: RtoQueue,
    isn: IsnGenerator,
    unsent: UnsentBudget,
    /// Flows to be served at the end of the batch.
    dirty: Vec<Handle>,
    backlog: Backlog,
    quotas: Quotas,
    /// Flows whose container is gone, oldest first.
    orphans: VecDeque<Handle>,
    counters: TcpCounters,
}

impl TcpEngine {
    /// An engine without flows. `secret` keys sequence numbers and the table's hash and must be
    /// random.
    pub fn new(config: TcpConfig, secret: [u8; 16], now: Instant) -> Self {
        // Not a part of the secret itself: the table's hash is no cryptographic one, and what leaks
        // through it must not help to predict sequence numbers.
        let mut seed = SipHasher24::new_with_key(&secret);
        seed.write(b"flow table");
        TcpEngine {
            flows: FlowTable::new(config.max_flows, seed.finish()),
            timers: TimerWheel::new(now),
            rto_queue: RtoQueue::default(),
            isn: IsnGenerator::new(secret),
            quotas: Quotas::new(FairShare {
                each: config.max_flows_per_port,
                total: config.max_flows,
            }),
            unsent: UnsentBudget::new(config.unsent_limit),
            config,
            dirty: Vec::new(),
            backlog: Backlog::new(),
            orphans: VecDeque::new(),
            counters: TcpCounters::default(),
        }
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// No flows.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Flows of `port`.
    pub fn held(&self, port: PortId) -> usize {
        self.quotas.flows(Some(port))
    }

    /// Whether a container has a flow between these two ends. One whose container is gone is
    /// nobody's.
    pub fn owns(&self, container: SocketAddr, remote: SocketAddr) -> bool {
        let handle = self.flows.find(&Ends::new(container, remote));
        let flow = handle.and_then(|handle| self.flows.get(handle));
        flow.is_some_and(|flow| flow.state() != State::Orphaned)
    }

    /// What the engine counted.
    pub fn counters(&self) -> TcpCounters {
        self.counters
    }

    /// Bytes in all unsent buffers.
    pub fn unsent(&self) -> usize {
        self.unsent.used()
    }

    /// Reads flows ahead of their packets ([`FlowTable::look_ahead`]).
    pub fn look_ahead(&self, ends: impl IntoIterator<Item = Ends>) {
        self.flows.look_ahead(ends, touch);
    }

    /// Reads flows ahead of their sockets' events, by their slots; and what it takes to set the
    /// timers of those that will.
    pub fn look_ahead_at(&self, slots: &[u32]) {
        if !self.flows.look_ahead_at(slots, touch) {
            return;
        }
        let mut timed = [0; LOOK_AHEAD];
        let uses_wheel = |&&slot: &&u32| {
            let flow = self.flows.at(slot).and_then(|h| self.flows.get(h));
            flow.is_some_and(|f| !f.has_shortest_rto())
        };
        let slots = slots.iter().filter(uses_wheel);
        let count = timed.iter_mut().zip(slots).map(|(t, s)| *t = *s).count();
        self.timers.look_ahead(&timed[..count]);
    }

    /// A TCP packet from a container, its checksum verified.
    pub fn handle_packet<E: Env>(
        &mut self,
        packet: &Packet<'_>,
        link: &Link,
        policy: &Policy,
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        let Packet { now, ip, .. } = *packet;
        let seg = Segment::parse(packet.l4())?;
        let ends = Ends::new(
            SocketAddr::new(ip.src, seg.src_port),
            SocketAddr::new(ip.dst, seg.dst_port),
        );
        let Some(handle) = self.flows.find(&ends) else {
            return self.handle_stray(now, link, &seg, ends, policy, io);
        };
        let opens = seg.flags.syn && !seg.flags.ack;
        let result = with_flow!(self, handle, now, io, |flow, cx| {
            if flow.link.is_some_and(|l| l.port != link.port) {
                return Some(Err(DropReason::Spoofed));
            }
            let orphaned = flow.state() == State::Orphaned;
            // A container that gave up tries again from the same port.
            let again = flow.state() == State::Connecting && seg.seq + 1 != flow.rcv_nxt;
            if opens && (orphaned || again) {
                flow.reset_host(cx);
                return None;
            }
            // To anybody but its own container an orphan is not there.
            (!orphaned).then(|| flow.on_segment(&seg, cx))
        });
        let Some(Some(result)) = result else {
            self.settle(handle);
            return self.handle_stray(now, link, &seg, ends, policy, io);
        };
        self.touched(handle);
        result
    }

    /// A TCP packet to an address where nothing listens: refuses it.
    pub fn refuse_packet<E: Env>(
        &self,
        packet: &Packet<'_>,
        link: &Link,
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        let ip = packet.ip;
        let seg = Segment::parse(packet.l4())?;
        if !seg.flags.rst {
            let ends = Ends::new(
                SocketAddr::new(ip.src, seg.src_port),
                SocketAddr::new(ip.dst, seg.dst_port),
            );
            refuse(link, &seg, &ends, io);
        }
        Err(DropReason::NotServed)
    }

    /// A segment of no flow: a SYN opens one, anything else is told that there is none.
    fn handle_stray<E: Env>(
        &mut self,
        now: Instant,
        link: &Link,
        seg: &Segment<'_>,
        ends: Ends,
        policy: &Policy,
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        if seg.flags.rst {
            return Err(DropReason::NoFlow);
        }
        if !seg.flags.syn || seg.flags.ack {
            if is_routable(ends.remote().ip()) {
                refuse(link, seg, &ends, io);
            }
            return Err(DropReason::NoFlow);
        }
        match policy.decide(ends.remote().ip()) {
            // RFC 9293, section 3.9.2.3: a SYN to a group or broadcast address gets no answer.
            Decision::Allow(host) if !is_routable(host) => Err(DropReason::MartianDestination),
            Decision::Allow(host) => self.open(now, link, seg, ends, host, io),
            Decision::Refuse(why) => {
                let kind = match why {
                    Refusal::NetUnreachable => IcmpErrorKind::NetUnreachable,
                    Refusal::Prohibited => IcmpErrorKind::Prohibited,
                };
                self.report_unreachable(link, &ends, seg.seq, kind, io);
                Err(DropReason::Policy)
            }
        }
    }

    /// Readiness of a flow's socket.
    pub fn handle_socket<E: Env>(
        &mut self,
        now: Instant,
        token: Token,
        ready: Readiness,
        io: &mut Io<'_, E>,
    ) {
        let handle = Handle {
            index: token.index(),
            generation: token.generation(),
        };
        let failed = with_flow!(self, handle, now, io, |flow, cx| {
            flow.readable |= ready.readable || ready.read_closed || ready.error;
            flow.read_closed |= ready.read_closed || ready.error;
            match flow.state() {
                State::Connecting if ready.writable || ready.error => on_connected(flow, cx).err(),
                State::Connecting | State::Closed => None,
                State::Orphaned => {
                    flow.on_readiness_orphaned(ready, cx);
                    None
                }
                _ => {
                    if flow.on_readiness(ready, cx).is_err() {
                        flow.abort(cx);
                    }
                    None
                }
            }
        });
        if let Some(Some(error)) = failed {
            self.connect_failed(handle, error, io);
            return;
        }
        self.serve(now, handle, io);
    }

    /// The batch of frames is over: acknowledge, discard and send for the flows it touched.
    pub fn end_batch<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        for i in 0..self.dirty.len() {
            let handle = self.dirty[i];
            if let Some(flow) = self.flows.get_mut(handle) {
                flow.dirty = false;
            }
            self.serve(now, handle, io);
        }
        self.dirty.clear();
    }

    /// A segment came for the flow: it is served at the end of the batch. One that is over makes
    /// room at once, as the next segment may well be a SYN between the same ends.
    fn touched(&mut self, handle: Handle) {
        let Some(flow) = self.flows.get_mut(handle) else {
            return;
        };
        if flow.state() == State::Closed {
            self.settle(handle);
        } else if !flow.dirty {
            flow.dirty = true;
            self.dirty.push(handle);
        }
    }

    /// Frees a flow that is over, or brings its timer up to date.
    fn settle(&mut self, handle: Handle) {
        let Some(flow) = self.flows.get_mut(handle) else {
            return;
        };
        if flow.state() == State::Closed {
            self.take(handle);
            return;
        }
        // The wheel is only ever moved to an earlier time here: an entry that fires too early is
        // set anew then, which is far rarer than packets are.
        let at = flow.deadline(&self.config);
        if flow.wheel_at.is_some_and(|set| set <= at) {
            return;
        }
        if flow.wheel_at.is_some() {
            let listed = flow.in_rto_queue && !flow.is_stalled();
            if listed || flow.awaits_shortest_rto() && self.rto_queue.push(at, handle.index) {
                flow.in_rto_queue = true;
                return;
            }
        }
        flow.wheel_at = Some(at);
        self.timers.set(handle.index, at);
    }

    fn take(&mut self, handle: Handle) -> Option<(Ends, TcpFlow)> {
        let taken = self.flows.remove(handle)?;
        self.timers.cancel(handle.index);
        self.quotas.leave(taken.1.link.map(|link| link.port));
        if taken.1.link.is_none() && !self.orphans.is_empty() {
            self.orphans.retain(|&orphan| orphan != handle);
        }
        if self.flows.is_empty() {
            self.rto_queue.clear();
            self.unsent.forget_spares();
        }
        Some(taken)
    }

    /// When [`TcpEngine::handle_timeout`] wants to be called; the origin of time when it has work
    /// at once.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.backlog.is_empty() {
            return Some(Instant::ZERO);
        }
        let wheel = self.timers.next();
        wheel.into_iter().chain(self.rto_queue.next()).min()
    }

    /// Acts on passed deadlines, and serves a few flows of the `backlog`.
    pub fn handle_timeout<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        self.act_on_due(
            now,
            io,
            |engine| engine.rto_queue.expire(now),
            |flow| flow.in_rto_queue = false,
        );
        self.act_on_due(
            now,
            io,
            |engine| engine.timers.expire(now),
            |flow| flow.wheel_at = None,
        );
        self.serve_backlog(now, io);
    }

    /// Takes slots from `expire` until there are no more. The time of the flow in each has come, or
    /// was moved; `unset` notes that it is to be woken anew.
    fn act_on_due<E: Env>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, E>,
        mut expire: impl FnMut(&mut Self) -> Option<u32>,
        unset: impl Fn(&mut TcpFlow),
    ) {
        let mut due = [0; LOOK_AHEAD];
        loop {
            let mut n = 0;
            while n < LOOK_AHEAD
                && let Some(slot) = expire(self)
            {
                due[n] = slot;
                n += 1;
            }
            if n == 0 {
                return;
            }
            self.flows.look_ahead_at(&due[..n], touch);
            for &slot in &due[..n] {
                let Some(handle) = self.flows.at(slot) else {
                    continue;
                };
                let serve = with_flow!(self, handle, now, io, |flow, cx| {
                    unset(flow);
                    flow.on_timeout(cx)
                });
                if serve == Some(true) {
                    self.serve(now, handle, io);
                } else {
                    self.settle(handle);
                }
            }
        }
    }

    /// Ends all flows of a port that is gone: the far ends are reset, but for those to whom it had
    /// sent all, its end included, as far as there is room for what they have yet to take
    /// (`orphan`).
    pub fn remove_port<E: Env>(&mut self, now: Instant, port: PortId, io: &mut Io<'_, E>) {
        if self.held(port) > 0 {
            let of_port = |flow: &TcpFlow| flow.link.is_some_and(|link| link.port == port);
            let flows = self.flows.iter().filter(|(_, _, flow)| of_port(flow));
            let handles: Vec<Handle> = flows.map(|(handle, ..)| handle).collect();
            self.disown(now, &handles, io);
        }
        self.quotas.remove_port(port);
    }

    /// Ends all flows, because the network ends.
    pub fn shut_down<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        let handles: Vec<Handle> = self.flows.iter().map(|(handle, ..)| handle).collect();
        for handle in handles {
            with_flow!(self, handle, now, io, |flow, cx| flow.shut_down(cx));
            self.settle(handle);
        }
    }
}
