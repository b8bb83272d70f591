//! Flows whose container is gone.
//!
//! # Theory of operation
//!
//! An acknowledgement tells the container that its bytes are on their way. So what it had sent to
//! its end goes on without it: a socket that has taken all is closed, and its kernel delivers; one
//! that has not keeps its flow, an *orphan*, until it has taken the stash. Whatever else a container
//! leaves behind was cut short, and is reset, so that nobody takes it for whole.
//!
//! An orphan belongs to no port: nothing is sent for it, and a packet between its ends, which must be
//! another container's, ends it. It counts as one of the flows whose guest is not known.
//!
//! # Limits
//!
//! A far end that takes nothing for [`PATIENCE`] is reset. When the process ends, so do its orphans.

use cnet_vswitch::FrameSink;
use cnet_vswitch::time::Duration;

use super::TcpEngine;
use super::flow::{Alarm, Cx, State, TcpFlow};
use crate::flow::Handle;
use crate::host::{HostSockets, Readiness};

/// How long the host's socket may take nothing: what the drain of a command waits in all.
const PATIENCE: Duration = Duration::from_secs(10);

impl TcpEngine {
    /// `flow`, whose port is gone, is nobody's now.
    pub(super) fn disown(&mut self, handle: Handle) {
        if let Some(flow) = self.flows.get_mut(handle)
            && flow.state() == State::Orphaned
        {
            flow.link = None;
            self.holders.adopt(None);
        }
    }
}

impl TcpFlow {
    /// The container is gone: leaves to the host's kernel what it had sent to its end, and ends the
    /// flow unless something of that is still to be taken.
    pub(super) fn orphan<S: FrameSink, H: HostSockets>(&mut self, cx: &mut Cx<'_, '_, S, H>) {
        if self.state == State::Established && self.fin_received && !self.host_shut {
            self.state = State::Orphaned;
            self.ack_due = false;
            self.alarm = Some((Alarm::Orphan, cx.now + PATIENCE));
            return;
        }
        self.leave_to_host(cx);
        self.reset_host(cx);
    }

    /// The host's socket may have taken something of an orphan's stash.
    pub(super) fn on_readiness_orphaned<S: FrameSink, H: HostSockets>(
        &mut self,
        ready: Readiness,
        cx: &mut Cx<'_, '_, S, H>,
    ) {
        let before = self.stash.len();
        if ready.error || ready.writable && self.on_writable(cx).is_err() {
            return self.reset_host(cx);
        }
        if self.stash.len() < before {
            self.alarm = Some((Alarm::Orphan, cx.now + PATIENCE));
        }
        if self.host_shut {
            self.leave_to_host(cx);
            self.reset_host(cx);
        }
    }
}
