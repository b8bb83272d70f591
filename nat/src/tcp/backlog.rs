//! The backlog: flows that have more to send than one round allows.
//!
//! # Theory of operation
//!
//! A *batch* is the frames that are read from ports at one time; [`TcpSessions::end_batch`] ends it. A
//! *round* is the service of one flow ([`TcpSessions::serve`]): it sends at most
//! [`ROUND_FRAMES`](super::transmit::ROUND_FRAMES) frames, which may be a megabyte. A flow is served
//! at once after each event of its socket, after some deadlines, and at the end of each batch that
//! held a segment of it. A flow with more left to send than one round allows joins the *backlog* once
//! and is served again in the order of the backlog.
//!
//! # Limits
//!
//! [`TcpSessions::handle_timeout`] serves at most [`BACKLOG_ROUNDS`] flows of the backlog. This bounds
//! the backlog's work however many long transfers there are. It does not bound the rounds that events,
//! deadlines and batches cause before the worker looks at its other work again.

use cnet_wire::time::Instant;

use super::table::TcpSessions;
use crate::flow::Handle;
use crate::io::{Env, Io};

/// Flows of the backlog that one call serves.
const BACKLOG_ROUNDS: usize = 4;

impl TcpSessions {
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
    pub(super) fn serve_backlog<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
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
}
