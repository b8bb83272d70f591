//! Flows whose container is gone.
//!
//! # Theory of operation
//!
//! An acknowledgement tells the container that its bytes are on their way. So what it had sent to
//! its end goes on without it: a socket that has taken all is closed, and its kernel delivers; one
//! that has not keeps its flow, an *orphan*, until it has taken the unsent bytes. Whatever else a container
//! leaves behind was cut short, and is reset, so that its far end does not take it for whole.
//!
//! An orphan belongs to no port: nothing is sent for it, and of the packets between its ends, which
//! must be another container's, a SYN ends it and takes its place; the others are strays. It counts
//! as one of the flows whose container is not known.
//!
//! # Limits
//!
//! A container that comes and goes shall not hold more than one that stays, nor its far ends hold
//! the memory of those that are there. So orphans have a part of the table ([`MOST`], [`PART_OF_FLOWS`],
//! and no more than the share of a port) and of the budget of unsent bytes ([`PART_OF_UNSENT`]); past it flows
//! are reset, though what they carried was acknowledged. A far end that takes nothing for
//! [`PROGRESS_TIMEOUT`] is reset, and any after [`LIFETIME`]. The oldest orphan ends when a new flow finds no
//! room otherwise, in the table or, if it goes out, among the host's descriptors. When the process ends, so do its
//! orphans.
//!
//! # Invariants
//!
//! The list has each orphan of the table once, in the order they became such, and nothing else.

use cnet_wire::time::{Duration, Instant};

use super::flow::{Alarm, Cx, State, TcpFlow};
use super::table::TcpSessions;
use crate::flow::Handle;
use crate::host::Readiness;
use crate::io::{Env, Io};

/// How long the host's socket may take nothing: what the drain of a command waits in all.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an orphan may take in all, however often it takes something: far ends that take little
/// at a time keep the memory of what they have not taken.
const LIFETIME: Duration = Duration::from_secs(60);
/// Orphans of an engine: few enough to be looked through when one ends.
const MOST: usize = 1024;
/// Orphans are at most one of so many flows that the table has room for.
const PART_OF_FLOWS: usize = 16;
/// All orphans' unsent buffers together are at most one of so many parts of the budget: with less than half
/// of it used, windows may still grow.
const PART_OF_UNSENT: usize = 4;

impl TcpSessions {
    /// Ends `flows`, whose port is gone, but for those that become orphans.
    pub(super) fn disown<E: Env>(&mut self, now: Instant, flows: &[Handle], io: &mut Io<'_, E>) {
        let most = MOST.min(self.config.max_flows / PART_OF_FLOWS);
        let held = self.orphans.iter().filter_map(|&h| self.flows.get(h));
        let held: usize = held.map(|flow| flow.unsent.len()).sum();
        let mut room = (self.config.unsent_limit / PART_OF_UNSENT).saturating_sub(held);
        for &handle in flows {
            // It is in the table already.
            let used = self.flows.len();
            let admitted = self.orphans.len() < most && self.quotas.admits_in_place(None, used);
            let room_here = if admitted { room } else { 0 };
            let kept = with_flow!(self, handle, now, io, |flow, cx| {
                flow.lose_container(room_here, cx);
                flow.unsent.len()
            });
            if let Some(kept) = kept.filter(|&kept| kept > 0) {
                room -= kept;
                self.quotas.adopt(None);
                self.orphans.push_back(handle);
            }
            self.settle(handle);
        }
    }

    /// Ends the oldest orphan. `false` if there is none.
    pub(super) fn end_orphan<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) -> bool {
        let Some(&handle) = self.orphans.front() else {
            return false;
        };
        with_flow!(self, handle, now, io, |flow, cx| flow.reset_host(cx));
        self.counters.evicted += 1;
        self.settle(handle);
        true
    }
}

impl TcpFlow {
    /// The container is gone: leaves to the host's kernel what it had sent to its end, and ends the
    /// flow unless some of that is still to be taken, at most `room` bytes.
    fn lose_container<E: Env>(&mut self, room: usize, cx: &mut Cx<'_, '_, E>) {
        let whole = self.state == State::Established && self.fin_received;
        if whole && !self.unsent.is_empty() && self.unsent.len() <= room {
            self.state = State::Orphaned;
            self.link = None;
            self.ack_due = false;
            self.last_heard = cx.now;
            self.wait_for_host(cx.now);
            return;
        }
        self.leave_to_host(cx);
        self.reset_host(cx);
    }

    /// Sets the alarm of an orphan whose socket took something now. Its container was heard for the
    /// last time when it went.
    fn wait_for_host(&mut self, now: Instant) {
        let until = (now + PROGRESS_TIMEOUT).min(self.last_heard + LIFETIME);
        self.alarm = Some((Alarm::Orphan, until));
    }

    /// The host's socket may have taken some of an orphan's unsent bytes.
    pub(super) fn on_readiness_orphaned<E: Env>(
        &mut self,
        ready: Readiness,
        cx: &mut Cx<'_, '_, E>,
    ) {
        let before = self.unsent.len();
        if ready.error || ready.writable && self.on_writable(cx).is_err() {
            return self.reset_host(cx);
        }
        if self.unsent.len() < before {
            self.wait_for_host(cx.now);
        }
        if self.host_shut {
            self.leave_to_host(cx);
            self.reset_host(cx);
        }
    }
}
