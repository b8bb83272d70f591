//! Segments to the container: what they acknowledge, the window they announce, and resets.
//!
//! Every segment of a flow leaves through [`TcpFlow::send_segment`], which acknowledges what was
//! received and announces the receive window, except SYNs, whose window is not scaled. Segments that
//! belong to no flow are answered by [`refuse`].

use cnet_wire::FrameSink;
use cnet_wire::headers::Link;
use cnet_wire::tcp::{Flags, Route, Segment, SegmentOut, Seq, SynOptions, mss_for, write_segment};
use cnet_wire::time::{Duration, Instant};

use super::alarm::HANDSHAKE_TRIES;
use super::flow::{Alarm, Cx, State, TcpFlow};
use crate::flow::Ends;
use crate::host::HeaderFields;
use crate::io::{Env, Io};

/// Window shift we announce: 16 MiB can be expressed, of which [`MAX_GRANT`](super::flow::MAX_GRANT) is used.
pub(super) const OUR_WINDOW_SCALE: u8 = 8;
/// Smallest receive window of a flow whose socket takes data, when other flows have used the room
/// for unsent bytes up.
const LEAST_GRANT: u32 = 16 * 1024;
/// First wait for an answer to a SYN or SYN/ACK (RFC 6298, section 2.1).
pub(super) const HANDSHAKE_RTO: Duration = Duration::from_secs(1);
/// Least time between two challenge ACKs of a flow (RFC 5961, section 7; Linux's
/// tcp_invalid_ratelimit). The limit is the flow's own: one that flows share tells a blind attacker
/// about others (CVE-2016-5696).
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(500);

impl TcpFlow {
    /// The window field to send behind `ack`, and the edge it announces. `room` is what the unsent buffer
    /// could take.
    fn window_field(&mut self, ack: Seq, room: usize) -> u16 {
        let open = self.rcv_adv.bytes_since(self.rcv_nxt) as u32;
        let window = if self.unsent.is_empty() {
            let room = u32::try_from(room).unwrap_or(u32::MAX);
            open.max(self.grant.min(room.max(LEAST_GRANT)))
        } else {
            open
        };
        // What is held back is received, and yet in the window.
        let window = window + self.rcv_nxt.bytes_since(ack) as u32;
        // Rounded up: the announced edge must not move back (RFC 9293, section 3.8.6), and there
        // are stacks that never repeat what a window has closed over. So the edge of a window that
        // stands still may yet follow small segments, until the budget of unsent bytes stops it.
        let scaled = window
            .div_ceil(1 << self.rcv_scale)
            .min(u32::from(u16::MAX));
        self.rcv_adv = self
            .rcv_adv
            .max(ack + ((scaled << self.rcv_scale) as usize));
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
        let ack = self.ack_number(cx);
        let seg = SegmentOut {
            seq,
            ack,
            flags,
            window: self.window_field(ack, room),
            syn: None,
            payload_len,
            mss: usize::from(self.mss),
            fields: self.fields_in,
        };
        let len = write_segment(cx.io.buf, &link, &cx.route, &seg);
        let sent = cx.io.sink.emit(link.port, &cx.io.buf[..len]).is_ok();
        if sent && flags.ack {
            self.ack_due = false;
            self.ack_forced = false;
            self.held.acked = ack;
        }
        sent
    }

    /// A pure acknowledgement.
    pub(super) fn send_ack<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        self.send_segment(cx, self.snd_nxt, Flags::ACK, 0);
        self.ack_due = false;
        self.ack_forced = false;
    }

    /// The acknowledgement that is due, if it is to say anything: what is held back is not.
    pub(super) fn send_due_ack<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        if self.ack_forced || self.ack_number(cx) != self.held.acked {
            self.send_ack(cx);
        }
        self.ack_due = false;
    }

    /// A segment that is not acceptable, so that the container answers with an ACK: zero-window
    /// and keepalive probe in the form Linux uses (`tcp_xmit_probe_skb`, net/ipv4/tcp_output.c).
    pub(super) fn send_probe<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        self.send_segment(cx, Seq(self.snd_una.0.wrapping_sub(1)), Flags::ACK, 0);
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
            mss: mss_for(cx.config.mtu, cx.route.src.ip()) as u16,
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
                fields: self.fields_in,
            };
            self.held.acked = self.rcv_nxt;
            let len = write_segment(cx.io.buf, &link, &cx.route, &seg);
            // A SYN the port does not take is repeated by the alarm like one that was lost.
            let _ = cx.io.sink.emit(link.port, &cx.io.buf[..len]);
        }
        self.snd_nxt = self.snd_una + 1;
        self.snd_max = self.snd_nxt;
    }

    /// A segment that a blind attacker could have sent too: its sender, if it is our peer, is told
    /// where we stand (RFC 5961).
    pub(super) fn challenge(&mut self, now: Instant) {
        if now >= self.next_challenge {
            self.next_challenge = now + CHALLENGE_INTERVAL;
            self.ack_due = true;
            self.ack_forced = true;
        }
    }
}

/// Answers a segment that belongs to no flow with a RST (RFC 9293, section 3.10.7.1).
pub(super) fn refuse<E: Env>(link: &Link, seg: &Segment<'_>, ends: &Ends, io: &mut Io<'_, E>) {
    if seg.flags.ack {
        emit_reset(link, ends, seg.ack, None, io);
    } else {
        reset_syn(link, ends, seg.seq + seg.sequence_len(), io);
    }
}

/// Refuses a SYN: `ack` is the number behind it.
pub(super) fn reset_syn<E: Env>(link: &Link, ends: &Ends, ack: Seq, io: &mut Io<'_, E>) {
    emit_reset(link, ends, Seq(0), Some(ack), io);
}

fn emit_reset<E: Env>(link: &Link, ends: &Ends, seq: Seq, ack: Option<Seq>, io: &mut Io<'_, E>) {
    let route = Route::from(ends);
    let seg = SegmentOut {
        seq,
        ack: ack.unwrap_or_default(),
        flags: Flags {
            rst: true,
            ack: ack.is_some(),
            ..Flags::default()
        },
        window: 0,
        syn: None,
        payload_len: 0,
        mss: usize::MAX,
        fields: HeaderFields::default(),
    };
    let len = write_segment(io.buf, link, &route, &seg);
    // A lost RST is asked for again by the container's next segment.
    let _ = io.sink.emit(link.port, &io.buf[..len]);
}
