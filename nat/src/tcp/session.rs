//! The order of work among the TCP flows of one worker: which flow an event concerns, and when it is
//! served.
//!
//! # Theory of operation
//!
//! A *batch* is the frames that are read from ports at one time; [`TcpSessions::end_batch`] ends it. A
//! *round* is the service of one flow ([`TcpSessions::serve`]): it sends, acknowledges and discards, at
//! most [`ROUND_FRAMES`](super::transmit::ROUND_FRAMES) frames, which may be a megabyte. A segment
//! changes its flow at once, and the flow is served at the end of the batch. An event of a host socket
//! and some deadlines serve their flow at once. A flow with more left to send than one round allows joins
//! the *backlog* once and is served again in the order of the backlog. After every operation
//! [`TcpSessions::settle`](super::TcpSessions::settle) frees a flow that has ended, or updates its timer.
//!
//! How flows begin is told in [`open`](super::open), how they outlive their container in
//! [`orphan`](super::orphan).
//!
//! # Limits
//!
//! [`TcpSessions::handle_timeout`] serves at most [`BACKLOG_ROUNDS`] flows of the backlog. This bounds
//! the backlog's work however many long transfers there are. It does not bound the rounds that events,
//! deadlines and batches cause before the worker looks at its other work again.

use std::net::SocketAddr;

use cnet_wire::frame::protocol;
use cnet_wire::headers::Link;
use cnet_wire::tcp::Segment;
use cnet_wire::time::Instant;
use cnet_wire::{DropReason, Packet, PortId};

use super::emit::refuse;
use super::flow::{State, TcpFlow, said_in};
use super::held::NEVER;
use super::open::on_connected;
use super::table::{TcpSessions, touch};
use crate::flow::{Ends, Handle, PREFETCH_DEPTH};
use crate::host::{Readiness, Token};
use crate::icmp_error::IcmpErrorKind;
use crate::io::{Env, Io};
use crate::policy::{Policy, is_routable};
use cnet_wire::conversation::{Conversation, Decision, Direction, Refusal};

/// Flows of the backlog that one call serves.
const BACKLOG_ROUNDS: usize = 4;

impl TcpSessions {
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
            return self.handle_stray(packet, link, &seg, ends, policy, io);
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
            // To other containers than its own an orphan is not there.
            (!orphaned).then(|| {
                flow.follow_fields(said_in(ip), cx);
                flow.on_segment(&seg, cx)
            })
        });
        let Some(Some(result)) = result else {
            self.settle(handle);
            return self.handle_stray(packet, link, &seg, ends, policy, io);
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
        packet: &Packet<'_>,
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
            Decision::Allow(host) => self.open(packet, link, seg, ends, host, io),
            Decision::Refuse(why) => {
                let kind = match why {
                    Refusal::NetUnreachable => IcmpErrorKind::NetUnreachable,
                    Refusal::Prohibited => IcmpErrorKind::Prohibited,
                };
                self.report_unreachable(link, &ends, seg.seq, (kind, None), io);
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

    /// Gives a flow one round; it joins the backlog if it has more to send.
    pub(super) fn serve<E: Env>(&mut self, now: Instant, handle: Handle, io: &mut Io<'_, E>) {
        let enlist = with_flow!(self, handle, now, io, |flow, cx| {
            flow.service(cx) && !std::mem::replace(&mut flow.queued, true)
        });
        if enlist == Some(true) {
            self.backlog.push_back(handle);
        }
        self.settle(handle);
    }

    /// Serves the next flows of the backlog.
    fn serve_backlog<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        let mut rounds = 0;
        // No flow is served twice in one call: one with more to send goes to the end.
        for _ in 0..self.backlog.len() {
            let Some(handle) = self.backlog.pop_front() else {
                return;
            };
            // Skipping an ended flow costs no round, so that ended flows do not pile up.
            let Some(flow) = self.flows.get_mut(handle) else {
                continue;
            };
            flow.queued = false;
            self.serve(now, handle, io);
            rounds += 1;
            if rounds == BACKLOG_ROUNDS {
                return;
            }
        }
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
            |flow| flow.wheel_at = NEVER,
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
        let mut due = [0; PREFETCH_DEPTH];
        loop {
            let mut n = 0;
            while n < PREFETCH_DEPTH
                && let Some(slot) = expire(self)
            {
                due[n] = slot;
                n += 1;
            }
            if n == 0 {
                return;
            }
            self.flows.prefetch_at(&due[..n], touch);
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

    /// Ends the flows of `port` that are not `allowed` any more, with a reset on both sides.
    pub fn end_refused<E: Env>(
        &mut self,
        now: Instant,
        port: PortId,
        allowed: impl Fn(&Conversation) -> bool,
        io: &mut Io<'_, E>,
    ) {
        let is_refused = |ends: &Ends, flow: &TcpFlow| {
            let conversation = Conversation {
                direction: match flow.opened_inwards {
                    true => Direction::Inwards,
                    false => Direction::Outwards,
                },
                port: Some(port),
                protocol: protocol::TCP,
                container: ends.container(),
                remote: ends.remote(),
            };
            flow.link.is_some_and(|link| link.port == port) && !allowed(&conversation)
        };
        let flows = self.flows.iter();
        let refused = flows.filter(|(_, ends, flow)| is_refused(ends, flow));
        let handles: Vec<Handle> = refused.map(|(handle, ..)| handle).collect();
        for handle in handles {
            with_flow!(self, handle, now, io, |flow, cx| flow.abort(cx));
            self.settle(handle);
        }
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
