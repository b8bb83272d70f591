//! One spliced TCP connection: its state, and how segments leave for the container.
//!
//! The two directions live in files of their own: [`super::receive`] takes the container's segments
//! to the host's socket, [`super::transmit`] takes what the socket received to the container.

use cnet_wire::FrameSink;
use cnet_wire::time::{Duration, Instant};

use super::unsent::{Unsent, UnsentBudget};
use super::{TcpConfig, rto::RttEstimator};
use crate::host::{HostError, HostSockets, Readiness, SocketId};
use crate::io::{Env, Io};
use cnet_wire::headers::Link;
use cnet_wire::tcp::Seq;
use cnet_wire::tcp::{Flags, Route, SegmentOut, SynOptions, write_segment};

/// Window shift we announce: 16 MiB can be expressed, of which [`MAX_GRANT`] is used.
pub(super) const OUR_WINDOW_SCALE: u8 = 8;
/// Receive window granted to the container before the host's socket showed its pace, in bytes.
pub(super) const INITIAL_GRANT: u32 = 256 * 1024;
/// Smallest receive window while the host's socket takes data at all, in bytes.
pub(super) const MIN_GRANT: u32 = 64 * 1024;
/// Smallest receive window of a flow whose socket takes data, when other flows have used the room
/// for unsent bytes up.
const LEAST_GRANT: u32 = 16 * 1024;
/// Largest receive window, in bytes: what a fast host path needs to stay busy.
pub(super) const MAX_GRANT: u32 = 8 * 1024 * 1024;
/// Congestion window at the start: the TAP is a wire of no delay, only the container's receive
/// window limits what may be in flight until the first loss tells of a full queue.
pub(super) const INITIAL_CWND: u32 = 16 * 1024 * 1024;
/// Tries of a SYN or SYN/ACK before the connection is given up.
const HANDSHAKE_TRIES: u8 = 6;
/// First wait for an answer to a SYN or SYN/ACK (RFC 6298, section 2.1).
pub(super) const HANDSHAKE_RTO: Duration = Duration::from_secs(1);
/// Wait between keepalive probes, and how many may stay unanswered (Linux's defaults, tcp(7)).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
const KEEPALIVE_PROBES: u8 = 9;
/// Zero-window probes that may stay unanswered: over three minutes, like retransmissions.
const UNANSWERED_PROBES: u8 = 11;
/// Wait before trying a port again whose queue was full; doubles up to [`MAX_STALL_DOUBLINGS`].
const RESUME_DELAY: Duration = Duration::from_millis(1);
/// Doublings of [`RESUME_DELAY`]: a little over a second.
const MAX_STALL_DOUBLINGS: u8 = 10;
/// Times in a row that a port may be found full before it is taken for dead: over three minutes.
const MAX_STALLS: u8 = 200;
/// Least time between two challenge ACKs of a flow (RFC 5961, section 7; Linux's
/// tcp_invalid_ratelimit). The limit is the flow's own: one that flows share tells a blind attacker
/// about others (CVE-2016-5696).
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(500);

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

/// What every flow operation needs from outside.
pub(super) struct Cx<'a, 'io, E: Env> {
    pub now: Instant,
    pub io: &'a mut Io<'io, E>,
    pub route: Route,
    pub config: &'a TcpConfig,
    pub unsent: &'a mut UnsentBudget,
}

/// One spliced TCP connection.
#[derive(Debug)]
pub struct TcpFlow {
    pub(super) state: State,
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
    /// Last challenge ACK.
    challenged: Option<Instant>,

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
    pub(super) cwnd: u32,
    pub(super) ssthresh: u32,
    pub(super) dup_acks: u8,
    /// While set, a loss is being repaired: it ends when everything sent before is acknowledged.
    pub(super) recover: Option<Seq>,
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
    /// What the timer wheel holds for this flow.
    pub(super) wheel_at: Option<Instant>,
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
            challenged: None,
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
            cwnd: INITIAL_CWND,
            ssthresh: INITIAL_CWND,
            dup_acks: 0,
            recover: None,
            rtt: RttEstimator::default(),
            sack_permitted: false,
            alarm: None,
            tries: 0,
            probes: 0,
            stalls: 0,
            last_heard: now,
            wheel_at: None,
            in_rto_queue: false,
            dirty: false,
            queued: false,
        }
    }

    /// Reads something of each cache line that the flow lies in.
    pub(super) fn touch(&self) -> u64 {
        u64::from(self.wheel_at.is_some())
            ^ u64::from(self.recover.is_some())
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

    // ---- segments to the container ----

    /// The window field to send, and the edge it announces. `room` is the unsent buffer could take.
    fn window_field(&mut self, room: usize) -> u16 {
        let open = self.rcv_adv.bytes_since(self.rcv_nxt) as u32;
        let window = if self.unsent.is_empty() {
            let room = u32::try_from(room).unwrap_or(u32::MAX);
            open.max(self.grant.min(room.max(LEAST_GRANT)))
        } else {
            open
        };
        // Rounded up: the announced edge must not move back (RFC 9293, section 3.8.6), and there
        // are stacks that never repeat what a window has closed over. So the edge of a window that
        // stands still may yet follow small segments, until the budget of unsent bytes stops it.
        let scaled = window
            .div_ceil(1 << self.rcv_scale)
            .min(u32::from(u16::MAX));
        self.rcv_adv = self
            .rcv_adv
            .max(self.rcv_nxt + ((scaled << self.rcv_scale) as usize));
        scaled as u16
    }

    /// Sends a segment whose payload of `payload_len` bytes stands in the frame buffer already.
    /// Acknowledges on the way. `false` when the port took it not.
    pub(super) fn send_segment<E: Env>(
        &mut self,
        cx: &mut Cx<'_, '_, E>,
        seq: Seq,
        flags: Flags,
        payload_len: usize,
    ) -> bool {
        let Some(link) = self.link else { return false };
        let room = cx.unsent.room(0);
        let seg = SegmentOut {
            seq,
            ack: self.rcv_nxt,
            flags,
            window: self.window_field(room),
            syn: None,
            payload_len,
            mss: usize::from(self.mss),
        };
        let len = write_segment(cx.io.buf, &link, &cx.route, &seg);
        let sent = cx.io.sink.emit(link.port, &cx.io.buf[..len]).is_ok();
        if sent && flags.ack {
            self.ack_due = false;
        }
        sent
    }

    /// A pure acknowledgement.
    pub(super) fn send_ack<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        self.send_segment(cx, self.snd_nxt, Flags::ACK, 0);
        self.ack_due = false;
    }

    /// A segment that is not acceptable, so that the container answers with an ACK: zero-window
    /// and keepalive probe in the form Linux uses (`tcp_xmit_probe_skb`, net/ipv4/tcp_output.c).
    pub(super) fn send_probe<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        self.send_segment(cx, Seq(self.snd_una.0.wrapping_sub(1)), Flags::ACK, 0);
    }

    /// A segment that a blind attacker could have sent too: its sender, if it is our peer, is told
    /// where we stand (RFC 5961).
    pub(super) fn challenge(&mut self, now: Instant) {
        if self
            .challenged
            .is_none_or(|last| now >= last + CHALLENGE_INTERVAL)
        {
            self.challenged = Some(now);
            self.ack_due = true;
        }
    }

    /// Answers a segment of another connection between the same ends, which its sender has not
    /// forgotten yet (RFC 9293, section 3.10.7.3).
    pub(super) fn send_reset_for<E: Env>(&mut self, ack: Seq, cx: &mut Cx<'_, '_, E>) {
        let flags = Flags {
            rst: true,
            ..Flags::default()
        };
        self.send_segment(cx, ack, flags, 0);
    }

    /// Sends our SYN or SYN/ACK and sets the alarm for its answer.
    pub(super) fn open_handshake<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        self.send_syn(cx);
        let wait = HANDSHAKE_RTO * (1 << self.tries.min(HANDSHAKE_TRIES));
        self.alarm = Some((Alarm::Handshake, cx.now + wait));
    }

    /// Sends our SYN (`SynSent`) or SYN/ACK (`SynReceived`).
    pub(super) fn send_syn<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        let answering = self.state == State::SynReceived;
        let options = SynOptions {
            mss: cnet_wire::tcp::mss_for(cx.config.mtu, cx.route.src.ip()) as u16,
            window_scale: (!answering || self.rcv_scale > 0).then_some(OUR_WINDOW_SCALE),
            sack_permitted: !answering || self.sack_permitted,
        };
        if let Some(link) = self.link {
            // The window of a SYN is never scaled (RFC 7323, section 2.2).
            let window = u16::MAX;
            self.rcv_adv = self.rcv_adv.max(self.rcv_nxt + usize::from(window));
            let seg = SegmentOut {
                seq: self.snd_una,
                ack: self.rcv_nxt,
                flags: Flags {
                    syn: true,
                    ack: answering,
                    ..Flags::default()
                },
                window,
                syn: Some(options),
                payload_len: 0,
                mss: usize::from(self.mss),
            };
            let len = write_segment(cx.io.buf, &link, &cx.route, &seg);
            // A SYN the port does not take is repeated by the alarm like one that was lost.
            let _ = cx.io.sink.emit(link.port, &cx.io.buf[..len]);
        }
        self.snd_nxt = self.snd_una + 1;
        self.snd_max = self.snd_nxt;
    }

    // ---- ends ----

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
        }
        self.reset_host(cx);
    }

    /// Ends the host's side with a RST; the container knows already or needs no word.
    pub(super) fn reset_host<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        if let Some(socket) = self.socket.take() {
            cx.io.hosts.tcp_reset(socket);
        }
        self.finish(cx);
    }

    /// The network ends. What the container has sent to its end is still delivered by the host's
    /// kernel; a stream that was cut short is reset, so that nobody takes it for whole.
    pub(super) fn shut_down<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        self.leave_to_host(cx);
        self.abort(cx);
    }

    /// Closes a socket that has all the container sent, so that its kernel delivers it.
    pub(super) fn leave_to_host<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        if self.host_shut
            && let Some(socket) = self.socket.take()
        {
            cx.io.hosts.close(socket);
        }
    }

    /// Frees what the flow holds.
    fn finish<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        self.unsent.consume(self.unsent.len(), cx.unsent);
        self.alarm = None;
        self.state = State::Closed;
    }

    /// The container has sent its FIN and acknowledged ours: for it the connection is over, whatever
    /// the host has yet to take.
    pub(super) fn container_done(&self) -> bool {
        self.fin_received && self.fin.is_some_and(|fin| self.snd_una == fin + 1)
    }

    /// Both streams ended and both ends know: close without noise.
    fn finish_if_done<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        if self.host_shut && self.container_done() {
            if let Some(socket) = self.socket.take() {
                cx.io.hosts.close(socket);
            }
            self.finish(cx);
        }
    }

    // ---- service ----

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
            self.send_ack(cx);
        }
        self.finish_if_done(cx);
        more && self.state == State::Established
    }

    // ---- time ----

    /// How long the container may be silent before it is probed (RFC 5382, REQ-5; RFC 7857).
    fn idle_limit(&self, config: &TcpConfig) -> Duration {
        if self.container_done() {
            // Only the far end's reader is waited for.
            config.established_timeout
        } else if self.is_embryonic() || self.fin_received || self.fin.is_some() {
            config.transitory_timeout
        } else {
            config.established_timeout
        }
    }

    /// When the flow wants [`TcpFlow::on_timeout`].
    pub(super) fn deadline(&self, config: &TcpConfig) -> Instant {
        match self.alarm {
            Some((_, at)) => at,
            None => self.last_heard + self.idle_limit(config),
        }
    }

    /// Will wait for acknowledgements no longer than the shortest timeout.
    pub(super) fn has_shortest_rto(&self) -> bool {
        self.tries == 0 && self.rtt.is_shortest()
    }

    /// Waits for an acknowledgement, and not a moment longer than the shortest timeout.
    pub(super) fn awaits_shortest_rto(&self) -> bool {
        self.has_shortest_rto() && matches!(self.alarm, Some((Alarm::Retransmit, _)))
    }

    /// Waits for the port: the one deadline that may come before the shortest timeout.
    pub(super) fn is_stalled(&self) -> bool {
        matches!(self.alarm, Some((Alarm::Resume, _)))
    }

    /// Acts on a deadline that has passed. Returns whether the flow wants service.
    pub(super) fn on_timeout<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> bool {
        let Some((alarm, at)) = self.alarm else {
            if cx.now >= self.last_heard + self.idle_limit(cx.config) {
                self.on_idle(cx);
            }
            return false;
        };
        if cx.now < at {
            return false;
        }
        match alarm {
            Alarm::Handshake => {
                self.tries += 1;
                if self.tries >= HANDSHAKE_TRIES {
                    self.abort(cx)
                } else {
                    self.open_handshake(cx)
                }
                false
            }
            Alarm::Retransmit => {
                self.on_retransmit_timeout(cx);
                self.state == State::Established
            }
            Alarm::Probe => {
                self.on_probe_timeout(cx);
                false
            }
            Alarm::Resume if self.stalls >= MAX_STALLS => {
                self.abort(cx);
                false
            }
            Alarm::Resume => {
                self.stalls += 1;
                self.alarm = None;
                if self.snd_una.before(self.snd_max) {
                    self.arm_retransmit(cx);
                }
                true
            }
            Alarm::Keepalive => {
                self.on_idle(cx);
                false
            }
            Alarm::Orphan => {
                self.reset_host(cx);
                false
            }
        }
    }

    /// The window is still closed. A container that answers probes may keep it closed for as long
    /// as it likes (RFC 9293, section 3.8.6.1).
    fn on_probe_timeout<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        if self.tries >= UNANSWERED_PROBES {
            self.abort(cx);
            return;
        }
        self.send_probe(cx);
        self.tries += 1;
        self.probes = self.probes.saturating_add(1);
        self.arm_probe(cx.now);
    }

    /// Sets the alarm for the next zero-window probe.
    pub(super) fn arm_probe(&mut self, now: Instant) {
        self.alarm = Some((Alarm::Probe, now + self.rtt.backed_off(self.probes)));
    }

    /// The port took no frame: try again soon, though less and less so.
    pub(super) fn stall(&mut self, now: Instant) {
        if !matches!(self.alarm, Some((Alarm::Resume, _))) {
            let wait = RESUME_DELAY * (1 << self.stalls.min(MAX_STALL_DOUBLINGS));
            self.alarm = Some((Alarm::Resume, now + wait));
        }
    }

    /// The container was silent for long: probe it, and give up when it does not answer. An
    /// established flow ends in no other way for want of traffic.
    fn on_idle<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        let silent = self.tries >= KEEPALIVE_PROBES || self.container_done();
        if self.state != State::Established || silent {
            self.abort(cx);
            return;
        }
        self.tries += 1;
        self.send_probe(cx);
        self.alarm = Some((Alarm::Keepalive, cx.now + KEEPALIVE_INTERVAL));
    }

    /// The container spoke: whatever waited for a sign of life is satisfied.
    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        match self.alarm {
            Some((Alarm::Keepalive, _)) => {
                self.alarm = None;
                self.tries = 0;
            }
            Some((Alarm::Probe, _)) => self.tries = 0,
            _ => {}
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn touch_reaches_every_cache_line() {
        let mut at = [
            0,
            offset_of!(TcpFlow, wheel_at),
            offset_of!(TcpFlow, recover),
            offset_of!(TcpFlow, last_heard),
            offset_of!(TcpFlow, snd_una),
            offset_of!(TcpFlow, dirty),
            size_of::<TcpFlow>(),
        ];
        at.sort_unstable();
        assert!(at.windows(2).all(|w| w[1] - w[0] <= 64), "{at:?}");
    }
}
