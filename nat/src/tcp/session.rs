//! All TCP flows of one worker: which of them an event concerns, and the order of work.
//!
//! The order of work. A segment changes its flow at once; the flow is served (it sends, acknowledges
//! and discards) at the end of the batch ([`TcpSessions::end_batch`]). An event of a host socket and a
//! deadline serve their flow at once. A flow that has more to send than one round allows goes on in the
//! [`backlog`](super::backlog). After every operation [`TcpSessions::settle`] frees a flow that has
//! ended, or updates its timer.
//!
//! How flows begin is told in [`open`](super::open), how they outlive their container in
//! [`orphan`](super::orphan).

use std::collections::VecDeque;
use std::hash::Hasher;
use std::net::SocketAddr;

use cnet_wire::frame::protocol;
use cnet_wire::headers::Link;
use cnet_wire::tcp::Segment;
use cnet_wire::time::Instant;
use cnet_wire::{DropReason, Packet, PortId};
use siphasher::sip::SipHasher24;

use super::backlog::Backlog;
use super::emit::refuse;
use super::flow::{State, TcpFlow};
use super::isn::IsnGenerator;
use super::open::on_connected;
use super::quota::Quotas;
use super::rto_queue::RtoQueue;
use super::unsent::UnsentBudget;
use super::{TcpConfig, TcpCounters};
use crate::flow::{Ends, FairShare, FlowTable, Handle, LOOK_AHEAD, TimerWheel};
use crate::host::{Readiness, Token};
use crate::icmp_error::IcmpErrorKind;
use crate::io::{Env, Io};
use crate::policy::{Policy, is_routable};
use cnet_wire::conversation::{Conversation, Decision, Direction, Refusal};

/// Reads something of each cache line that a flow and its key lie in.
fn touch(ends: &Ends, flow: &TcpFlow) -> u64 {
    u64::from(ends.container().port() ^ ends.remote().port()) ^ flow.touch()
}

/// All TCP flows of one worker.
#[derive(Debug)]
pub struct TcpSessions {
    pub(super) config: TcpConfig,
    pub(super) flows: FlowTable<Ends, TcpFlow>,
    pub(super) timers: TimerWheel,
    pub(super) rto_queue: RtoQueue,
    pub(super) isn: IsnGenerator,
    pub(super) unsent: UnsentBudget,
    /// Flows to be served at the end of the batch.
    pub(super) dirty: Vec<Handle>,
    pub(super) backlog: Backlog,
    pub(super) quotas: Quotas,
    /// Flows whose container is gone, oldest first.
    pub(super) orphans: VecDeque<Handle>,
    pub(super) counters: TcpCounters,
}

impl TcpSessions {
    /// An engine without flows. `secret` keys sequence numbers and the table's hash and must be
    /// random.
    pub fn new(config: TcpConfig, secret: [u8; 16], now: Instant) -> Self {
        // Not a part of the secret itself: the table's hash is no cryptographic one, and what leaks
        // through it must not help to predict sequence numbers.
        let mut seed = SipHasher24::new_with_key(&secret);
        seed.write(b"flow table");
        TcpSessions {
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
        let conversation = Conversation {
            direction: Direction::Outwards,
            port: Some(link.port),
            protocol: protocol::TCP,
            container: ends.container(),
            remote: ends.remote(),
        };
        match policy.decide(&conversation) {
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
    pub(super) fn touched(&mut self, handle: Handle) {
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
    pub(super) fn settle(&mut self, handle: Handle) {
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

    pub(super) fn take(&mut self, handle: Handle) -> Option<(Ends, TcpFlow)> {
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

    /// When [`TcpSessions::handle_timeout`] wants to be called; the origin of time when it has work
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
