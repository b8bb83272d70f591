//! Whose turn it is to send, of the flows that have more than one turn allows.
//!
//! # Theory of operation
//!
//! A readiness event has its flow send at once all it may; so do some deadlines, and the end of a batch
//! for each flow that the batch touched. A turn is up to sixteen frames ([`super::transmit`]), which
//! may be a megabyte. A flow with more left than that joins the queue, once, and goes on in its order.
//!
//! # Limits
//!
//! [`TcpEngine::handle_timeout`] serves [`TURNS`] flows of the queue. So these leftovers are bounded,
//! whatever the number of long transfers, and they alone: before all else is looked at again, each
//! event, deadline and flow of a batch may cost a turn besides.

use std::collections::VecDeque;

use cnet_wire::FrameSink;
use cnet_wire::time::Instant;

use super::TcpEngine;
use super::flow::Cx;
use super::segment::Route;
use crate::flow::Handle;
use crate::host::HostSockets;
use crate::io::Io;

/// Flows of the queue that go on in one call: a turn may be a megabyte.
const TURNS: usize = 4;

/// Flows that had more to send than their turn allowed. Those that have ended since are passed over.
pub(super) type Backlog = VecDeque<Handle>;

impl TcpEngine {
    /// Has a flow do what is due: it has its turn.
    pub(super) fn serve<S: FrameSink, H: HostSockets>(
        &mut self,
        now: Instant,
        handle: Handle,
        io: &mut Io<'_, S, H>,
    ) {
        let enlist = with_flow!(self, handle, now, io, |flow, cx| {
            flow.service(cx) && !std::mem::replace(&mut flow.queued, true)
        });
        if enlist == Some(true) {
            self.backlog.push_back(handle);
        }
        self.settle(handle);
    }

    /// Gives the next of the queue their turns.
    pub(super) fn give_turns<S: FrameSink, H: HostSockets>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, S, H>,
    ) {
        let mut turns = 0;
        // None has two: those that have still more queue up again.
        for _ in 0..self.backlog.len() {
            let Some(handle) = self.backlog.pop_front() else {
                return;
            };
            // Of those that have ended any number is passed over, lest they pile up.
            let Some(flow) = self.flows.get_mut(handle) else {
                continue;
            };
            flow.queued = false;
            self.serve(now, handle, io);
            turns += 1;
            if turns == TURNS {
                return;
            }
        }
    }
}
