//! One spliced TCP connection: its state, its service, and how it ends.
//!
//! What is done with the state stands in files of their own, in the order of a transfer: `receive`
//! takes the container's segments to the host's socket, `transmit` takes what the socket received to
//! the container, `emit` writes the segments, `alarm` holds the deadline.

use cnet_wire::IpHeader;
use cnet_wire::time::Instant;

use super::congestion::Congestion;
use super::held::{Held, NEVER};
use super::unsent::{Unsent, UnsentBudget};
use super::{TcpConfig, TcpCounters, rto::RttEstimator};
use crate::host::{HeaderFields, HostError, HostSockets, Readiness, SocketId};
use crate::io::{Env, Io};
use cnet_wire::headers::Link;
use cnet_wire::tcp::{Flags, Route, Seq};

/// Receive window granted to the container before the host's socket showed its pace, in bytes.
pub(super) const INITIAL_GRANT: u32 = 256 * 1024;
/// Smallest receive window while the host's socket takes data at all, in bytes.
pub(super) const MIN_GRANT: u32 = 64 * 1024;
/// Largest receive window, in bytes: what a fast host path needs to stay busy.
pub(super) const MAX_GRANT: u32 = 8 * 1024 * 1024;

/// The ECN bits of a type of service.
const ECN: u8 = 0x03;

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The container's SYN came; the host's socket is connecting. Nothing was sent to the
    /// container. Segments other than SYN and RST are refused.
    Connecting,
    /// The host's socket is connected, our SYN/ACK waits for its ACK. Data is not forwarded yet.
    SynReceived,
    /// A published port accepted a client; our SYN to the container waits for its SYN/ACK.
    SynSent,
    /// Data flows, either direction possibly closed already.
    Established,
    /// The container is gone; what it had sent to its end still waits for the host's socket.
    Orphaned,
    /// Over: the host's socket is closed, the slot is to be freed.
    Closed,
}

/// What every flow operation needs from outside.
pub(super) struct Cx<'a, 'io, E: Env> {
    pub now: Instant,
    pub io: &'a mut Io<'io, E>,
    pub route: Route,
    pub config: &'a TcpConfig,
    pub unsent: &'a mut UnsentBudget,
    pub counters: &'a mut TcpCounters,
}

/// What the flow's deadline is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Alarm {
    /// SYN or SYN/ACK unanswered.
    Handshake,
    /// Data or FIN unacknowledged.
    Retransmit,
    /// The container's window is closed and data waits.
    Probe,
    /// The port's queue was full; try to go on.
    Resume,
    /// A keepalive probe waits for its answer.
    Keepalive,
    /// The host's socket takes nothing of what a container left behind, or takes too long.
    Orphan,
}

/// One spliced TCP connection.
#[derive(Debug)]
pub struct TcpFlow {
    pub(super) state: State,
    /// A client of a published port has opened it.
    pub(super) opened_inwards: bool,
    /// Unknown for a published port until the container's address is resolved.
    pub(super) link: Option<Link>,
    pub(super) socket: Option<SocketId>,

    // Container to host.
    /// Next byte expected from the container.
    pub(super) rcv_nxt: Seq,
    /// Right edge of the window we announced; never moves back.
    pub(super) rcv_adv: Seq,
    pub(super) rcv_scale: u8,
    /// Window to announce while the host's socket takes everything.
    pub(super) grant: u32,
    /// Bytes the socket took since `grant` last changed.
    pub(super) taken: u32,
    /// Bytes acknowledged to the container that the host's socket has not taken yet.
    pub(super) unsent: Unsent,
    pub(super) fin_received: bool,
    /// Our end of the host's stream is shut.
    pub(super) host_shut: bool,
    pub(super) ack_due: bool,
    /// An ACK is due even if it acknowledges nothing new.
    pub(super) ack_forced: bool,
    /// What is received and not acknowledged until the far end has answered.
    pub(super) held: Held,
    /// What the container's packets said last; and what is said to it.
    pub(super) fields_out: HeaderFields,
    pub(super) fields_in: HeaderFields,
    /// From when on there may be another challenge ACK.
    pub(super) next_challenge: Instant,

    // Host to container.
    /// First byte the container has not acknowledged.
    pub(super) snd_una: Seq,
    /// Next byte to send; moves back to repeat.
    pub(super) snd_nxt: Seq,
    /// Highest byte sent so far.
    pub(super) snd_max: Seq,
    /// First byte not yet discarded from the host's socket: its receive queue starts here.
    pub(super) discarded: Seq,
    pub(super) snd_wnd: u32,
    pub(super) snd_wl1: Seq,
    pub(super) snd_wl2: Seq,
    pub(super) snd_scale: u8,
    pub(super) mss: u16,
    /// The host's socket may have bytes beyond `snd_nxt`, or its end of stream.
    pub(super) readable: bool,
    /// The far end closed: a short read does not mean that nothing follows.
    pub(super) read_closed: bool,
    /// Sequence number of our FIN, once the host's stream has ended.
    pub(super) fin: Option<Seq>,
    pub(super) congestion: Congestion,
    pub(super) rtt: RttEstimator,
    pub(super) sack_permitted: bool,

    // Time.
    pub(super) alarm: Option<(Alarm, Instant)>,
    /// Unanswered tries of what the alarm stands for.
    pub(super) tries: u8,
    /// Zero-window probes in a row, answered or not: each doubles the wait for the next.
    pub(super) probes: u8,
    /// Times in a row that the port was found full.
    pub(super) stalls: u8,
    /// Last time the container was heard; when it went, of an orphan.
    pub(super) last_heard: Instant,
    /// What the timer wheel holds for this flow, or [`NEVER`].
    pub(super) wheel_at: Instant,
    /// Has an entry in the [`rto_queue`](super::rto_queue), which wakes it within the shortest timeout.
    pub(super) in_rto_queue: bool,
    /// Listed for service at the end of the batch.
    pub(super) dirty: bool,
    /// In the backlog.
    pub(super) queued: bool,
}

impl TcpFlow {
    pub(super) fn new(now: Instant, state: State, link: Option<Link>, iss: Seq) -> Self {
        TcpFlow {
            state,
            opened_inwards: state == State::SynSent,
            link,
            socket: None,
            rcv_nxt: Seq(0),
            rcv_adv: Seq(0),
            rcv_scale: 0,
            grant: INITIAL_GRANT,
            taken: 0,
            unsent: Unsent::default(),
            fin_received: false,
            host_shut: false,
            ack_due: false,
            ack_forced: false,
            held: Held::default(),
            fields_out: HeaderFields::default(),
            fields_in: HeaderFields::default(),
            next_challenge: Instant::ZERO,
            snd_una: iss,
            snd_nxt: iss,
            snd_max: iss,
            discarded: iss + 1,
            snd_wnd: 0,
            snd_wl1: Seq(0),
            snd_wl2: Seq(0),
            snd_scale: 0,
            mss: 536,
            readable: false,
            read_closed: false,
            fin: None,
            congestion: Congestion::default(),
            rtt: RttEstimator::default(),
            sack_permitted: false,
            alarm: None,
            tries: 0,
            probes: 0,
            stalls: 0,
            last_heard: now,
            wheel_at: NEVER,
            in_rto_queue: false,
            dirty: false,
            queued: false,
        }
    }

    /// Reads something of each cache line that the flow lies in.
    pub(super) fn touch(&self) -> u64 {
        self.wheel_at.as_nanos()
            ^ u64::from(self.alarm.is_some())
            ^ self.last_heard.as_nanos()
            ^ u64::from(self.snd_una.0)
            ^ u64::from(self.dirty)
    }

    /// Where the connection stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Neither end has finished its handshake: the flow may be evicted.
    pub fn is_embryonic(&self) -> bool {
        matches!(
            self.state,
            State::Connecting | State::SynReceived | State::SynSent
        )
    }

    /// Bytes sent and not acknowledged.
    pub(super) fn in_flight(&self) -> usize {
        self.snd_nxt.bytes_since(self.snd_una)
    }

    /// The container has sent its FIN and acknowledged ours: for it the connection is over, whatever
    /// the host has yet to take.
    pub(super) fn container_done(&self) -> bool {
        self.fin_received && self.fin.is_some_and(|fin| self.snd_una == fin + 1)
    }

    /// Ends the connection with a RST on both sides.
    pub(super) fn abort<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        if self.state != State::Connecting {
            let flags = Flags {
                rst: true,
                ack: self.state != State::SynSent,
                ..Flags::default()
            };
            // The container expects no byte behind `snd_max`: there the RST is taken, or it is in
            // the window and the challenge ACK brings the exact one. `snd_nxt` may lie before what
            // the container has received already, and would be ignored.
            self.send_segment(cx, self.snd_max, flags, 0);
            cx.counters.resets += 1;
        }
        self.reset_host(cx);
    }

    /// Ends the host's side with a RST; the container knows already or needs no word.
    pub(super) fn reset_host<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        // Forgotten after the call, not before: if that panics, recovery has yet to free it.
        if let Some(socket) = self.socket {
            cx.io.hosts.tcp_reset(socket);
            self.socket = None;
        }
        self.finish(cx);
    }

    /// The network ends. What the container has sent to its end is still delivered by the host's
    /// kernel; a stream that was cut short is reset, so that its far end does not take it for whole.
    pub(super) fn shut_down<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        self.leave_to_host(cx);
        self.abort(cx);
    }

    /// Closes a socket that has all the container sent, so that its kernel delivers it.
    pub(super) fn leave_to_host<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        if self.host_shut
            && let Some(socket) = self.socket
        {
            cx.io.hosts.close(socket);
            self.socket = None;
        }
    }

    /// Frees what the flow holds.
    fn finish<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        self.unsent.consume(self.unsent.len(), cx.unsent);
        self.alarm = None;
        self.state = State::Closed;
    }

    /// Both streams ended and both ends know: close without noise.
    fn finish_if_done<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        if self.host_shut && self.container_done() {
            if let Some(socket) = self.socket {
                cx.io.hosts.close(socket);
                self.socket = None;
            }
            self.finish(cx);
        }
    }

    /// Brings the flow up to date after a batch of events: discards what was acknowledged, sends
    /// what may be sent, acknowledges what was received. Returns whether more could be sent at
    /// once.
    pub(super) fn service<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> bool {
        if self.state != State::Established {
            if self.ack_due && self.state == State::SynReceived {
                self.send_ack(cx);
            }
            return false;
        }
        let more = match self.discard(cx).and_then(|()| self.pump(cx)) {
            Ok(more) => more,
            Err(_) => {
                self.abort(cx);
                return false;
            }
        };
        if self.ack_due {
            self.send_due_ack(cx);
        }
        self.finish_if_done(cx);
        more && self.state == State::Established
    }

    /// The host's socket may be readable, writable or failed. An error means that the flow is over.
    pub(super) fn on_readiness<E: Env>(
        &mut self,
        ready: Readiness,
        cx: &mut Cx<'_, '_, E>,
    ) -> Result<(), HostError> {
        if ready.error && self.has_unread(cx)? {
            // What came before the error is the container's. The error stands behind it.
            return Ok(());
        }
        if ready.error {
            self.check_host(cx)?;
        }
        if ready.writable {
            self.on_writable(cx)?;
        }
        Ok(())
    }

    /// Has the host's packets say what the container's say.
    #[inline]
    pub(super) fn follow_fields<E: Env>(&mut self, said: HeaderFields, cx: &mut Cx<'_, '_, E>) {
        if self.fields_out != said {
            self.fields_out = said;
            if let Some(socket) = self.socket {
                cx.io.hosts.tcp_set_fields(socket, passed_on(said));
            }
        }
    }

    /// Whether the host's socket has an error pending.
    pub(super) fn check_host<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> Result<(), HostError> {
        let Some(socket) = self.socket else {
            return Ok(());
        };
        match cx.io.hosts.tcp_connected(socket) {
            Ok(()) | Err(HostError::WouldBlock) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// What the container's packets say of a TCP connection: all but ECN, which is between two kernels.
#[inline]
pub(super) fn said_in(ip: &IpHeader) -> HeaderFields {
    HeaderFields {
        hop_limit: ip.hop_limit,
        tos: ip.tos & !ECN,
    }
}

/// What the host's packets are to say for it: one hop less. The usual limit stays as it is, so that
/// an ordinary connection needs no option set.
pub(super) fn passed_on(said: HeaderFields) -> HeaderFields {
    let usual = said.hop_limit == HeaderFields::default().hop_limit;
    HeaderFields {
        hop_limit: said.hop_limit.saturating_sub(u8::from(!usual)).max(1),
        ..said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn touch_reaches_every_cache_line() {
        let mut at = [
            0,
            offset_of!(TcpFlow, wheel_at),
            offset_of!(TcpFlow, alarm),
            offset_of!(TcpFlow, last_heard),
            offset_of!(TcpFlow, snd_una),
            offset_of!(TcpFlow, dirty),
            size_of::<TcpFlow>(),
        ];
        at.sort_unstable();
        assert!(at.windows(2).all(|w| w[1] - w[0] <= 64), "{at:?}");
    }
}
