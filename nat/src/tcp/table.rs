//! All TCP flows of one worker, and what is kept beside them: timers, quotas, budgets, counters.
//!
//! Events change flows in [`session`](super::session), [`open`](super::open) and
//! [`orphan`](super::orphan). What has changed one calls [`TcpSessions::touched`] or
//! [`TcpSessions::settle`].

use std::collections::VecDeque;
use std::hash::Hasher;
use std::net::SocketAddr;

use cnet_wire::PortId;
use cnet_wire::time::Instant;
use siphasher::sip::SipHasher24;

use super::flow::{State, TcpFlow};
use super::held::NEVER;
use super::isn::IsnGenerator;
use super::quota::Quotas;
use super::rto_queue::RtoQueue;
use super::unsent::UnsentBudget;
use super::{TcpConfig, TcpCounters};
use crate::flow::{Ends, FairShare, FlowTable, Handle, PREFETCH_DEPTH, TimerWheel};

/// Reads something of each cache line that a flow and its key lie in.
pub(super) fn touch(ends: &Ends, flow: &TcpFlow) -> u64 {
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
    /// Flows that have more to send, in the order of their next rounds. Those that have ended are
    /// skipped.
    pub(super) backlog: VecDeque<Handle>,
    pub(super) quotas: Quotas,
    /// Flows whose container is gone, oldest first.
    pub(super) orphans: VecDeque<Handle>,
    pub(super) counters: TcpCounters,
    /// The flow that was in hand when a call panicked.
    pub(super) torn: Option<Handle>,
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
            quotas: Quotas::new(
                FairShare {
                    each: config.max_flows_per_port,
                    total: config.max_flows,
                },
                config.budget.clone(),
            ),
            unsent: UnsentBudget::new(config.unsent_limit),
            config,
            dirty: Vec::new(),
            backlog: VecDeque::new(),
            orphans: VecDeque::new(),
            counters: TcpCounters::default(),
            torn: None,
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
    /// no port's.
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

    /// Reads flows ahead of their packets ([`FlowTable::prefetch`]).
    pub fn prefetch(&self, ends: impl IntoIterator<Item = Ends>) {
        self.flows.prefetch(ends, touch);
    }

    /// Reads flows ahead of their sockets' events, by their slots; and what it takes to set the
    /// timers of those that will.
    pub fn prefetch_at(&self, slots: &[u32]) {
        if !self.flows.prefetch_at(slots, touch) {
            return;
        }
        let mut timed = [0; PREFETCH_DEPTH];
        let uses_wheel = |&&slot: &&u32| {
            let flow = self.flows.at(slot).and_then(|h| self.flows.get(h));
            flow.is_some_and(|f| !f.has_shortest_rto())
        };
        let slots = slots.iter().filter(uses_wheel);
        let count = timed.iter_mut().zip(slots).map(|(t, s)| *t = *s).count();
        self.timers.prefetch(&timed[..count]);
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
        if flow.wheel_at <= at {
            return;
        }
        if flow.wheel_at != NEVER {
            let listed = flow.in_rto_queue && !flow.is_pressed();
            if listed || flow.awaits_shortest_rto() && self.rto_queue.push(at, handle.index) {
                flow.in_rto_queue = true;
                return;
            }
        }
        flow.wheel_at = at;
        self.timers.set(handle.index, at);
    }

    /// Takes a flow out, with all that refers to it.
    pub(super) fn take(&mut self, handle: Handle) -> Option<(Ends, TcpFlow)> {
        let taken = self.flows.remove(handle)?;
        self.config.budget.give_back();
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
}
