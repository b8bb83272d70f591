//! Host to container: what the host's socket received becomes segments and super-frames.
//!
//! Bytes are peeked from the socket straight behind prepared headers and stay in the socket's
//! receive queue, which is the retransmission buffer, until the container acknowledged them. To
//! repeat is to peek again from further back.
//!
//! A loss is repaired one hole at a time ([`congestion`](super::congestion)), its right edge told by
//! SACK where the container sends it. A timeout goes back to the first unacknowledged byte, and
//! whatever the container held out of order is skipped as its ACK jumps.

use cnet_wire::headers::{IPV6_HEADER_LEN, MAX_IP_PACKET};
use cnet_wire::tcp::{Flags, Segment, Seq, TCP_HEADER_LEN};

use super::flow::{Alarm, Cx, State, TcpFlow};
use crate::host::{HostError, HostSockets};
use crate::io::Env;

/// Payload of the largest super-frame, in bytes, either family.
const MAX_PAYLOAD: usize = MAX_IP_PACKET - IPV6_HEADER_LEN - TCP_HEADER_LEN;
/// Segments in the largest super-frame: bounds what a tiny MSS makes the container's kernel do.
const MAX_SEGMENTS: usize = 128;
/// Frames one flow may send in a round.
pub(super) const ROUND_FRAMES: usize = 16;
/// Timeouts in a row before the container is taken for dead: at 200 ms doubling to 60 s, a little
/// over three minutes (RFC 9293, section 3.8.3 asks for at least 100 s).
const MAX_RETRANSMITS: u8 = 11;

/// What a look into the host's socket found.
enum Peeked {
    Bytes(usize),
    Nothing,
    End,
}

impl TcpFlow {
    /// Largest payload to send in one frame, a multiple of the MSS where it is more than one.
    fn max_payload(&self) -> usize {
        let mss = usize::from(self.mss);
        (MAX_PAYLOAD / mss).clamp(1, MAX_SEGMENTS) * mss
    }

    fn peek<E: Env>(
        &mut self,
        cx: &mut Cx<'_, '_, E>,
        from: Seq,
        max: usize,
    ) -> Result<Peeked, HostError> {
        let Some(socket) = self.socket else {
            return Err(HostError::Reset);
        };
        let start = cx.route.payload_offset();
        let buf = &mut cx.io.buf[start..start + max];
        match cx
            .io
            .hosts
            .tcp_peek(socket, from.bytes_since(self.discarded), buf)
        {
            Ok(0) => Ok(Peeked::End),
            Ok(n) => Ok(Peeked::Bytes(n)),
            Err(HostError::WouldBlock) => Ok(Peeked::Nothing),
            Err(e) => Err(e),
        }
    }

    /// Whether the host's socket has bytes that were not sent yet.
    pub(super) fn has_unread<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> Result<bool, HostError> {
        let end = self.fin.unwrap_or(self.snd_max);
        Ok(matches!(self.peek(cx, end, 1)?, Peeked::Bytes(_)))
    }

    /// Consumes from the socket what the container acknowledged.
    pub(super) fn discard<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> Result<(), HostError> {
        // Our FIN takes a sequence number but no byte of the socket's stream.
        let acked = self
            .fin
            .filter(|fin| self.snd_una.after(*fin))
            .unwrap_or(self.snd_una);
        let n = acked.bytes_since(self.discarded);
        if n > 0
            && let Some(socket) = self.socket
        {
            cx.io.hosts.tcp_discard(socket, n)?;
            self.discarded = acked;
        }
        Ok(())
    }

    /// Sends what window, congestion window and socket allow. Returns whether more is left.
    pub(super) fn pump<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> Result<bool, HostError> {
        for _ in 0..ROUND_FRAMES {
            if self.fin.is_some_and(|fin| self.snd_nxt.after(fin)) {
                return Ok(false);
            }
            let at_fin = self.fin == Some(self.snd_nxt);
            if !self.readable && self.snd_nxt == self.snd_max && !at_fin {
                return Ok(false);
            }
            let usable = (self.snd_wnd.min(self.congestion.window()) as usize)
                .saturating_sub(self.in_flight());
            // Sender's silly window avoidance (RFC 9293, section 3.8.6.2.1): a small segment goes
            // out only when nothing else is on its way.
            let silly = usable < usize::from(self.mss) && self.in_flight() > 0 && !at_fin;
            if usable == 0 || silly {
                self.watch_window(cx)?;
                return Ok(false);
            }
            if at_fin {
                self.send_fin(cx);
                return Ok(false);
            }
            let max = usable.min(self.max_payload());
            match self.peek(cx, self.snd_nxt, max)? {
                // What was shown once is there until it is discarded.
                Peeked::Nothing | Peeked::End if self.snd_nxt != self.snd_max => {
                    return Err(HostError::Other);
                }
                Peeked::Nothing => {
                    self.readable = false;
                    return Ok(false);
                }
                Peeked::End => {
                    // A connection that failed reads as one that ended, once its error was told.
                    self.check_host(cx)?;
                    self.fin = Some(self.snd_nxt);
                    self.readable = false;
                }
                Peeked::Bytes(n) => {
                    if !self.send_data(cx, n, n < max) {
                        self.stall(cx.now);
                        return Ok(false);
                    }
                    // A short read means that the socket is drained, but not once the far end has
                    // closed: then its end of stream is still to be read, and no event tells.
                    if n < max && !self.read_closed && self.snd_nxt == self.snd_max {
                        self.readable = false;
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Sends `n` peeked bytes from `snd_nxt` on.
    fn send_data<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>, n: usize, last: bool) -> bool {
        let flags = Flags {
            psh: last,
            ..Flags::ACK
        };
        if !self.send_segment(cx, self.snd_nxt, flags, n) {
            return false;
        }
        if self.snd_nxt == self.snd_max {
            self.rtt.start(self.snd_nxt, cx.now);
        } else {
            cx.counters.retransmissions += 1;
        }
        self.advance(cx, n);
        true
    }

    fn send_fin<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        let flags = Flags {
            fin: true,
            ..Flags::ACK
        };
        if self.send_segment(cx, self.snd_nxt, flags, 0) {
            self.advance(cx, 1);
        } else {
            self.stall(cx.now);
        }
    }

    fn advance<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>, n: usize) {
        if self.snd_una == self.snd_max {
            self.tries = 0;
        }
        self.snd_nxt += n;
        self.snd_max = self.snd_max.max(self.snd_nxt);
        self.stalls = 0;
        if !matches!(self.alarm, Some((Alarm::Retransmit, _))) {
            self.arm_retransmit(cx);
        }
    }

    pub(super) fn arm_retransmit<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        self.alarm = Some((Alarm::Retransmit, cx.now + self.rtt.backed_off(self.tries)));
    }

    /// Nothing may be sent. If nothing is on its way either, no ACK will come by itself: probe.
    fn watch_window<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> Result<(), HostError> {
        if self.in_flight() > 0 || self.alarm.is_some() {
            return Ok(());
        }
        let unsent = self.snd_nxt == self.snd_max && self.fin.is_none();
        if unsent && matches!(self.peek(cx, self.snd_nxt, 1)?, Peeked::Nothing) {
            self.readable = false;
            return Ok(());
        }
        self.tries = 0;
        self.probes = 0;
        self.arm_probe(cx.now);
        Ok(())
    }

    /// Takes the acknowledgement and window of an acceptable segment.
    pub(super) fn on_ack<E: Env>(
        &mut self,
        seg: &Segment<'_>,
        cx: &mut Cx<'_, '_, E>,
    ) -> Result<(), HostError> {
        if seg.ack.after(self.snd_una) {
            self.on_new_ack(seg, cx)?;
        } else if self.is_duplicate_ack(seg)
            && self.congestion.on_duplicate_ack(self.snd_una, self.snd_max)
        {
            self.rtt.spoil();
            self.repeat_hole(seg, cx)?;
        }
        self.update_window(seg);
        Ok(())
    }

    fn on_new_ack<E: Env>(
        &mut self,
        seg: &Segment<'_>,
        cx: &mut Cx<'_, '_, E>,
    ) -> Result<(), HostError> {
        let acked = seg.ack.bytes_since(self.snd_una) as u32;
        self.snd_una = seg.ack;
        self.snd_nxt = self.snd_nxt.max(self.snd_una);
        self.rtt.acked(self.snd_una, cx.now);
        self.tries = 0;
        if self.snd_una == self.snd_max {
            self.alarm = None;
        } else {
            self.arm_retransmit(cx);
        }
        let another_hole = (self.congestion).on_new_ack(self.snd_una, acked, self.mss);
        // After a timeout everything from here on is sent again anyway.
        if another_hole && self.snd_nxt == self.snd_max {
            self.repeat_hole(seg, cx)?;
        }
        Ok(())
    }

    fn is_duplicate_ack(&self, seg: &Segment<'_>) -> bool {
        seg.ack == self.snd_una
            && self.snd_una.before(self.snd_max)
            && seg.sequence_len() == 0
            && (u32::from(seg.window) << self.snd_scale == self.snd_wnd || seg.sack[0].is_some())
    }

    fn update_window(&mut self, seg: &Segment<'_>) {
        let newer = self.snd_wl1.before(seg.seq)
            || self.snd_wl1 == seg.seq && !seg.ack.before(self.snd_wl2);
        if newer && !seg.ack.before(self.snd_una) {
            self.snd_wnd = u32::from(seg.window) << self.snd_scale;
            self.snd_wl1 = seg.seq;
            self.snd_wl2 = seg.ack;
            if self.snd_wnd > 0 && matches!(self.alarm, Some((Alarm::Probe, _))) {
                self.alarm = None;
            }
        }
    }

    /// Repeats what is missing at `snd_una`, one frame at most.
    fn repeat_hole<E: Env>(
        &mut self,
        seg: &Segment<'_>,
        cx: &mut Cx<'_, '_, E>,
    ) -> Result<(), HostError> {
        cx.counters.retransmissions += 1;
        if self.fin == Some(self.snd_una) {
            self.send_segment(
                cx,
                self.snd_una,
                Flags {
                    fin: true,
                    ..Flags::ACK
                },
                0,
            );
            return Ok(());
        }
        let end = self.fin.unwrap_or(self.snd_max);
        let hole_end = seg
            .sack
            .iter()
            .flatten()
            .map(|block| block.0)
            .filter(|left| left.after(self.snd_una) && left.before(end))
            .min_by_key(|left| left.bytes_since(self.snd_una))
            .unwrap_or(end);
        let max = hole_end.bytes_since(self.snd_una).min(self.max_payload());
        if max > 0
            && let Peeked::Bytes(n) = self.peek(cx, self.snd_una, max)?
        {
            self.send_segment(cx, self.snd_una, Flags::ACK, n);
        }
        Ok(())
    }

    /// No ACK came in time: start again from the first unacknowledged byte.
    pub(super) fn on_retransmit_timeout<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        self.tries += 1;
        if self.tries > MAX_RETRANSMITS || self.state != State::Established {
            self.abort(cx);
            return;
        }
        cx.counters.timeouts += 1;
        self.congestion.on_timeout(self.snd_una, self.snd_max);
        self.rtt.spoil();
        self.snd_nxt = self.snd_una;
        if self.snd_wnd == 0 {
            // The window closed over what was in flight: only a probe gets an answer, and a
            // container that answers may keep its window closed for as long as it likes.
            self.send_probe(cx);
            self.probes = self.tries;
            self.arm_probe(cx.now);
        } else {
            self.arm_retransmit(cx);
        }
    }
}
