//! Container to host: what the container sends becomes bytes of the host's socket.
//!
//! A segment is checked in the order of RFC 9293, section 3.10.7.4, with the challenge ACKs of
//! RFC 5961. Data is taken in order only: the TAP keeps the order, so anything else is a loss that
//! the container repeats, and of overlapping bytes the first wins.
//!
//! Payload goes from the frame straight into the socket. An ACK means that the host's kernel has
//! the bytes, or that they are in the flow's *unsent* buffer: the socket's buffer fills up in every
//! upload to a slower network, and what was on its way at that moment within the window we
//! announced is kept rather than dropped, because the container would notice the drop only by its
//! timer. While that buffer is not empty the window's right edge stands still. How much window is
//! announced (the *grant*) follows the socket: doubled when that many bytes passed without a
//! stop, halved at each stop. All unsent buffers of an engine share one budget, and no more window is
//! announced than the budget has room for; past it bytes are dropped unacknowledged, as any
//! receiver may.

use cnet_wire::DropReason;
use cnet_wire::tcp::{Route, Segment, Seq, mss_for};

use super::TcpConfig;
use super::flow::{Cx, MAX_GRANT, MIN_GRANT, State, TcpFlow};
use crate::host::{HostError, HostSockets};
use crate::io::Env;

impl TcpFlow {
    /// Takes a segment of a connection whose handshake with the container is under way or done.
    pub(super) fn on_segment<E: Env>(
        &mut self,
        seg: &Segment<'_>,
        cx: &mut Cx<'_, '_, E>,
    ) -> Result<(), DropReason> {
        match self.state {
            State::Connecting => return self.on_segment_connecting(seg, cx),
            State::SynSent => return self.on_segment_syn_sent(seg, cx),
            State::SynReceived if self.is_repeated_syn(seg) => {
                self.send_syn(cx);
                return Ok(());
            }
            _ => {}
        }
        if !self.acceptable(seg) {
            // An old duplicate, a probe, or a guess: answer with what we expect.
            if !seg.flags.rst && !self.waits_for_far_end(seg, cx) {
                self.ack_due = true;
                self.ack_forced = true;
            }
            return Err(DropReason::OutOfWindow);
        }
        if seg.flags.rst {
            return self.on_reset(seg, cx);
        }
        if seg.flags.syn {
            // RFC 5961, section 4: never a reason to give up a connection.
            self.challenge(cx.now);
            return Err(DropReason::OutOfWindow);
        }
        if self.state == State::SynReceived {
            if seg.ack != self.snd_una + 1 {
                self.send_reset_for(seg.ack, cx);
                return Err(DropReason::OutOfWindow);
            }
            self.establish(seg, cx);
        }
        if !self.ack_acceptable(seg) {
            self.challenge(cx.now);
            return Err(DropReason::OutOfWindow);
        }
        self.heard(cx.now);
        if self.on_ack(seg, cx).is_err() {
            self.abort(cx);
            return Err(DropReason::HostRefused);
        }
        self.on_payload(seg, cx)
    }

    fn on_segment_connecting<E: Env>(
        &mut self,
        seg: &Segment<'_>,
        cx: &mut Cx<'_, '_, E>,
    ) -> Result<(), DropReason> {
        if self.is_repeated_syn(seg) {
            // The container's kernel grows impatient; the host's is still trying.
            return Ok(());
        }
        // Nothing of ours has been acknowledged, so only the sequence number can prove the sender.
        if seg.flags.rst && seg.seq == self.rcv_nxt {
            self.reset_host(cx);
            return Ok(());
        }
        Err(DropReason::OutOfWindow)
    }

    fn on_segment_syn_sent<E: Env>(
        &mut self,
        seg: &Segment<'_>,
        cx: &mut Cx<'_, '_, E>,
    ) -> Result<(), DropReason> {
        // Before the link was found no SYN was sent, and nothing can be its answer.
        let answer = self.link.is_some() && seg.flags.ack && seg.ack == self.snd_una + 1;
        if !answer {
            if seg.flags.ack && !seg.flags.rst {
                self.send_reset_for(seg.ack, cx);
            }
            return Err(DropReason::OutOfWindow);
        }
        if seg.flags.rst {
            // No socket listens: the client learns it by a RST of its own.
            self.reset_host(cx);
            return Ok(());
        }
        if !seg.flags.syn {
            return Err(DropReason::BadTcpFlags);
        }
        self.heard(cx.now);
        self.rcv_nxt = seg.seq + 1;
        self.rcv_adv = self.rcv_nxt;
        self.take_syn_options(seg, cx.config, &cx.route);
        self.held.acked = self.rcv_nxt;
        self.ack_due = true;
        self.ack_forced = true;
        self.establish(seg, cx);
        Ok(())
    }

    /// Takes what the container's SYN or SYN/ACK says of segments and windows.
    pub(super) fn take_syn_options(
        &mut self,
        seg: &Segment<'_>,
        config: &TcpConfig,
        route: &Route,
    ) {
        let link = mss_for(config.mtu, route.dst.ip());
        // Without the option 536 or 1220 bytes (RFC 9293, section 3.7.1).
        let default = if route.is_v6() { 1220 } else { 536 };
        let offered = seg.mss.unwrap_or(default).max(MIN_MSS);
        self.mss = usize::from(offered).min(link) as u16;
        self.sack_permitted = seg.sack_permitted;
        if let Some(shift) = seg.window_scale {
            self.snd_scale = shift;
            self.rcv_scale = super::emit::OUR_WINDOW_SCALE;
        }
    }

    /// The container has acknowledged our SYN.
    fn establish<E: Env>(&mut self, seg: &Segment<'_>, cx: &mut Cx<'_, '_, E>) {
        self.state = State::Established;
        self.alarm = None;
        self.tries = 0;
        self.snd_una = seg.ack;
        self.snd_nxt = seg.ack;
        self.snd_max = seg.ack;
        // The window of a SYN/ACK is not scaled.
        self.snd_wnd = u32::from(seg.window) << if seg.flags.syn { 0 } else { self.snd_scale };
        self.snd_wl1 = seg.seq;
        self.snd_wl2 = seg.ack;
        self.last_heard = cx.now;
    }

    fn is_repeated_syn(&self, seg: &Segment<'_>) -> bool {
        seg.flags.syn && !seg.flags.ack && seg.seq + 1 == self.rcv_nxt
    }

    /// RFC 9293, section 3.10.7.4, first check: some of the segment lies in the window.
    fn acceptable(&self, seg: &Segment<'_>) -> bool {
        let len = seg.sequence_len();
        let in_window = |s: Seq| !s.before(self.rcv_nxt) && s.before(self.rcv_adv);
        if len == 0 {
            // The edge itself, too: there stand the ACKs of a container that has used the whole
            // window while some of it is still missing here.
            return in_window(seg.seq) || seg.seq == self.rcv_nxt || seg.seq == self.rcv_adv;
        }
        // A segment that starts at the edge of a closed window still carries its ACK.
        seg.seq == self.rcv_nxt || in_window(seg.seq) || in_window(seg.seq + (len - 1))
    }

    /// RFC 5961, section 5.2: an ACK for what was never sent, or for what is long gone, is not
    /// from our peer.
    fn ack_acceptable(&self, seg: &Segment<'_>) -> bool {
        let oldest = Seq(self.snd_una.0.wrapping_sub(MAX_GRANT.max(1 << 30)));
        seg.flags.ack && !seg.ack.after(self.snd_max) && !seg.ack.before(oldest)
    }

    /// RFC 5961, section 3.2: only the exact next byte resets. A container that has closed both
    /// directions forgets the connection and answers a late duplicate's ACK with just that RST,
    /// while its last bytes still wait for the host's socket: it resets nothing.
    fn on_reset<E: Env>(
        &mut self,
        seg: &Segment<'_>,
        cx: &mut Cx<'_, '_, E>,
    ) -> Result<(), DropReason> {
        if seg.seq != self.rcv_nxt {
            self.challenge(cx.now);
            return Err(DropReason::OutOfWindow);
        }
        if !self.container_done() {
            self.reset_host(cx);
        }
        Ok(())
    }

    fn on_payload<E: Env>(
        &mut self,
        seg: &Segment<'_>,
        cx: &mut Cx<'_, '_, E>,
    ) -> Result<(), DropReason> {
        if seg.payload.is_empty() && !seg.flags.fin {
            // A pure ACK that is not where we expect it tells that something was lost on the way.
            if seg.seq != self.rcv_nxt {
                self.ack_due = true;
                self.ack_forced = true;
            }
            return Ok(());
        }
        self.ack_due = true;
        if seg.seq.after(self.rcv_nxt) {
            self.ack_forced = true;
            return Err(DropReason::OutOfOrder);
        }
        if self.fin_received {
            return Err(DropReason::OutOfWindow);
        }
        let seen = self.rcv_nxt.bytes_since(seg.seq);
        let fresh = seg.payload.get(seen..).unwrap_or(&[]);
        let room = self.rcv_adv.bytes_since(self.rcv_nxt);
        let whole = fresh.len() <= room;
        let fresh = &fresh[..fresh.len().min(room)];
        let taken = self.take(fresh, cx).map_err(|_| {
            self.abort(cx);
            DropReason::HostRefused
        })?;
        self.rcv_nxt += taken;
        self.note_tail(taken, false);
        // What is not taken is asked for again.
        self.ack_forced |= !whole || taken < fresh.len();
        let complete = whole && taken == fresh.len() && seen <= seg.payload.len();
        if seg.flags.fin && complete {
            self.rcv_nxt += 1;
            // A FIN is taken though the window is closed.
            self.rcv_adv = self.rcv_adv.max(self.rcv_nxt);
            self.fin_received = true;
            self.note_tail(1, true);
            self.shut_host(cx);
        }
        Ok(())
    }

    /// Hands bytes to the socket, the rest to the unsent buffer. Returns how many were taken in all.
    fn take<E: Env>(&mut self, data: &[u8], cx: &mut Cx<'_, '_, E>) -> Result<usize, HostError> {
        let mut sent = 0;
        if self.unsent.is_empty() && !data.is_empty() {
            sent = self.send_to_host(data, cx)?;
            self.grow_grant(sent, cx);
            if sent < data.len() {
                self.grant = (self.grant / 2).max(MIN_GRANT);
                self.taken = 0;
            }
        }
        let rest = &data[sent..];
        Ok(sent + self.unsent.append(rest, cx.unsent))
    }

    fn send_to_host<E: Env>(
        &mut self,
        data: &[u8],
        cx: &mut Cx<'_, '_, E>,
    ) -> Result<usize, HostError> {
        let Some(socket) = self.socket else {
            return Err(HostError::Reset);
        };
        let mut sent = 0;
        // A socket's buffer may take a part and have room again at once: ask until it says no, so
        // that its readiness event is owed to us.
        while sent < data.len() {
            match cx.io.hosts.tcp_send(socket, &data[sent..]) {
                Ok(n) => sent += n,
                Err(HostError::WouldBlock) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(sent)
    }

    fn grow_grant<E: Env>(&mut self, sent: usize, cx: &Cx<'_, '_, E>) {
        self.taken = self.taken.saturating_add(sent as u32);
        if self.taken >= self.grant && cx.unsent.is_relaxed() {
            self.grant = (self.grant * 2).min(MAX_GRANT);
            self.taken = 0;
        }
    }

    /// The socket has room again: give it the unsent bytes.
    pub(super) fn on_writable<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> Result<(), HostError> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let unsent = std::mem::take(&mut self.unsent);
        let sent = self.send_to_host(&unsent, cx);
        self.unsent = unsent;
        let sent = sent?;
        if self.state == State::Established && self.container_done() && sent > 0 {
            // Nothing else shows that the flow is alive.
            self.last_heard = cx.now;
        }
        self.unsent.consume(sent, cx.unsent);
        if !self.unsent.is_empty() {
            return Ok(());
        }
        // The window may open again.
        self.ack_due = true;
        self.ack_forced = true;
        self.shut_host(cx);
        Ok(())
    }

    /// Passes the end of the container's stream on, once everything before it is passed on.
    fn shut_host<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        if self.fin_received && self.unsent.is_empty() && !self.host_shut {
            self.host_shut = true;
            if let Some(socket) = self.socket {
                cx.io.hosts.tcp_shutdown(socket);
            }
        }
    }
}

/// Smallest MSS taken from a container (Linux's `tcp_min_snd_mss`): less would let it make the
/// host cut megabytes into single bytes.
const MIN_MSS: u16 = 48;
