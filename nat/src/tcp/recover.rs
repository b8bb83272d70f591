//! After a panic: the flow that was in hand ends, and the others go on.
//!
//! # Theory of operation
//!
//! A panic may have come from the middle of any operation. The table of flows itself is whole, since
//! nothing that it calls can panic between its own changes. What is kept beside it is derived from the
//! flows: so it is not trusted, but made anew from them. That costs a look at every flow, which a defect
//! may cost.
//!
//! # Limits
//!
//! The order in which half-open flows make room is lost; from then on it is that of the table.

use cnet_wire::PortId;
use cnet_wire::time::Instant;

use super::flow::{State, TcpFlow};
use super::table::TcpSessions;
use crate::flow::{Handle, TimerWheel};
use crate::host::SocketId;
use crate::io::{Env, Io};

impl TcpSessions {
    /// A call has panicked. Ends the flow it was about, if it was about one, with a reset on both
    /// sides, and brings all else in order.
    pub fn recover<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        self.count_anew();
        // One without a socket was about to get one.
        let unfinished = |flow: &TcpFlow| flow.socket.is_none();
        let flows = self.flows.iter().filter(|(_, _, flow)| unfinished(flow));
        let unfinished: Vec<Handle> = flows.map(|(handle, ..)| handle).collect();
        for handle in self.torn.take().into_iter().chain(unfinished) {
            with_flow!(self, handle, now, io, |flow, cx| flow.abort(cx));
            self.take(handle);
        }
        self.set_timers_anew(now);
    }

    /// Quotas, the budget of unsent bytes, and the lists of flows.
    fn count_anew(&mut self) {
        self.quotas = self.quotas.emptied();
        let mut unsent = 0;
        for (handle, _, flow) in self.flows.iter() {
            let owner = flow.link.map(|link| link.port);
            match flow.is_embryonic() {
                true => self.quotas.enter(owner, handle, |_| true),
                false => {
                    self.quotas.adopt(owner);
                }
            }
            unsent += flow.unsent.len();
        }
        self.unsent.recount(unsent);
        let flows = &self.flows;
        let is_orphan = |h: &Handle| flows.get(*h).is_some_and(|f| f.state() == State::Orphaned);
        self.orphans.retain(is_orphan);
    }

    /// Every flow is looked at once soon, by the end of the batch and by its own deadline: what woke
    /// it may have been taken off a queue already.
    fn set_timers_anew(&mut self, now: Instant) {
        self.rto_queue.clear();
        self.timers = TimerWheel::new(now);
        self.backlog.clear();
        self.dirty.clear();
        let handles: Vec<Handle> = self.flows.iter().map(|(handle, ..)| handle).collect();
        for handle in handles {
            let Some(flow) = self.flows.get_mut(handle) else {
                continue;
            };
            flow.wheel_at = super::held::NEVER;
            flow.in_rto_queue = false;
            flow.dirty = true;
            flow.queued = true;
            self.dirty.push(handle);
            self.backlog.push_back(handle);
            self.settle(handle);
        }
    }

    /// Whether a flow has `socket`. Looks at every flow.
    pub fn has_socket(&self, socket: SocketId) -> bool {
        (self.flows.iter()).any(|(_, _, flow)| flow.socket == Some(socket))
    }

    /// The ports that flows are on, each at least once.
    pub fn ports(&self) -> impl Iterator<Item = PortId> {
        self.quotas.ports()
    }
}
