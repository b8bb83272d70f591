//! When the container is acknowledged, so that it notices a far end that is gone as a program of the
//! host would.
//!
//! # Theory of operation
//!
//! Bytes are acknowledged as soon as the host's kernel has them, but for the last segment: that one,
//! and a FIN, is acknowledged when the far end has acknowledged all (`SIOCOUTQ`, tcp(7)). So the
//! container's window and congestion window follow the local link, and yet something stays
//! unacknowledged as long as anything is on its way: TCP_USER_TIMEOUT, SIOCOUTQ and close(2) with
//! SO_LINGER mean in the container what they mean on the host. No event tells that the far end has
//! acknowledged: what is held back is looked at when the flow sends something anyway, and by a deadline,
//! first after a millisecond or few ([`held`](super::held)), then less and less often. A flow whose answers
//! come before that learns to look later.
//!
//! A keepalive probe of the container becomes one of the host's socket, and is answered once the far end
//! has answered that; or at once, if it was heard within the last second. So a container's keepalive
//! notices a dead far end by its own settings, and its kernel says ETIMEDOUT.
//!
//! # Invariants
//!
//! - An acknowledgement never goes back.
//! - What repeats bytes that were acknowledged is answered; what repeats those held back is not, until
//!   they are acknowledged.
//! - Once both directions have ended all is acknowledged, as the flow ends with that.
//!
//! # Limits
//!
//! A container whose retransmission timeout is shorter than the far end's answers repeats the segment
//! that is held back; the copy is dropped. Probes of a closed window are answered by us alone. Inwards,
//! the far end's bytes are acknowledged by the host's kernel, and a container that is gone is noticed by
//! [`transmit`](super::transmit).

use cnet_wire::tcp::{Segment, Seq};
use cnet_wire::time::Duration;

use super::flow::{Cx, State, TcpFlow};
use crate::host::HostSockets;
use crate::io::Env;

/// A far end that was heard within this time is there; the host's kernel probes no sooner either.
const HEARD_LATELY: Duration = Duration::from_secs(1);

impl TcpFlow {
    /// The acknowledgement to send now: of everything, or of all but what is held back.
    #[inline]
    pub(super) fn ack_number<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> Seq {
        if self.held.acked == self.rcv_nxt {
            return self.rcv_nxt;
        }
        self.ack_of_new(cx)
    }

    fn ack_of_new<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> Seq {
        let Some(socket) = self.socket.filter(|_| self.may_hold()) else {
            self.held.clear();
            return self.rcv_nxt;
        };
        if cx.io.hosts.tcp_unacknowledged(socket) == 0 {
            if self.held.is_set() && self.held.is_first_look() {
                // It need not have been looked at so soon.
                self.held.learn_to_wait();
            }
            self.held.clear();
            return self.rcv_nxt;
        }
        if !self.held.is_set() || self.held.is_probe() {
            self.held.start(cx.now, false);
        }
        let all_but_tail = Seq(self.rcv_nxt.0.wrapping_sub(self.held.tail.into()));
        self.held.acked.max(all_but_tail)
    }

    /// Both directions open, or one of them.
    fn may_hold(&self) -> bool {
        self.state == State::Established && !(self.fin_received && self.fin.is_some())
    }

    /// Notes the length of what was received last, of which the last segment may be held back.
    pub(super) fn note_tail(&mut self, len: usize, fin: bool) {
        let mss = usize::from(self.mss);
        self.held.tail = match fin {
            true => 1,
            false => ((len.max(1) - 1) % mss + 1) as u16,
        };
    }

    /// Whether an unacceptable segment is a keepalive probe, or repeats what is held back. Both are
    /// answered when the far end has answered.
    pub(super) fn waits_for_far_end<E: Env>(
        &mut self,
        seg: &Segment<'_>,
        cx: &mut Cx<'_, '_, E>,
    ) -> bool {
        if !self.may_hold() || self.rcv_adv == self.rcv_nxt || seg.flags.syn {
            return false;
        }
        let end = seg.seq + seg.sequence_len();
        if self.held.acked != self.rcv_nxt {
            return self.held.is_set() && end.after(self.held.acked) && !end.after(self.rcv_nxt);
        }
        let probe = seg.seq + 1 == self.rcv_nxt && seg.sequence_len() <= 1 && seg.flags.ack;
        probe && self.probe_far_end(cx)
    }

    /// Has the host ask the far end, on a keepalive probe. `false` if it was heard lately.
    fn probe_far_end<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> bool {
        let Some(socket) = self.socket else {
            return false;
        };
        cx.io.hosts.tcp_probe(socket);
        if cx.io.hosts.tcp_silence(socket) < HEARD_LATELY {
            self.held.clear();
            return false;
        }
        self.held.start(cx.now, true);
        true
    }

    /// Looks whether the far end has answered; whether the container is to be acknowledged then.
    pub(super) fn look_at_held<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> bool {
        if cx.now < self.held.deadline() {
            return false;
        }
        let Some(socket) = self.socket.filter(|_| self.may_hold()) else {
            self.held.clear();
            return true;
        };
        let answered = match self.held.is_probe() {
            true => cx.io.hosts.tcp_silence(socket) < HEARD_LATELY,
            false => cx.io.hosts.tcp_unacknowledged(socket) == 0,
        };
        if !answered {
            self.held.wait_on(cx.now);
            return false;
        }
        if self.held.is_first_look() {
            self.held.learn_to_hurry();
        }
        self.ack_due = true;
        self.ack_forced |= self.held.is_probe();
        self.held.clear();
        true
    }
}
