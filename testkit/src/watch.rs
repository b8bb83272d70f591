//! A look over the stack's shoulder: keepalives as a kernel sends them, and proof of its mistakes.
//!
//! smoltcp's own keepalives carry a byte of garbage at the last sequence number it used, which is a
//! new byte to the peer when that number was a FIN's that got lost. So the stack's are off, and
//! these are sent in its stead, in the form Linux uses: no data, one before the first
//! unacknowledged byte.
//!
//! smoltcp (0.14) also loses its retransmission timer: when a zero window opens again over data in
//! flight (the probe timer took its place), and when duplicate ACKs ask for a FIN that stands
//! alone. Such a connection hangs for no fault of the core, and is given up here
//! ([`Watch::is_stuck`]) on evidence from the wire alone: unacknowledged data, an open window, and
//! no repetition for longer than any retransmission timer may wait.

use cnet_wire::checksum;
use cnet_wire::time::{Duration, Instant};

use crate::offload::{self, At};

/// Silence after which a keepalive is sent, and between two.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// More than three times the longest retransmission timeout, of smoltcp as of the core; less than
/// any patience of the core.
const PATIENCE: Duration = Duration::from_secs(200);

/// What was seen of one connection on the wire, from the container's side.
#[derive(Debug, Default)]
pub struct Watch {
    /// The last segment sent: its headers without options.
    template: Option<Vec<u8>>,
    /// One after the highest sequence number sent.
    sent_max: u32,
    /// The peer's last acknowledgement and window, if any came.
    answer: Option<(u32, u16)>,
    /// When it last sent something that is to be acknowledged.
    last_segment: Instant,
    /// Since when it has bytes to send.
    queued_since: Option<Instant>,
    next_keepalive: Instant,
}

fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Watch {
    /// The stack sends `frame`.
    pub fn sent(&mut self, now: Instant, frame: &[u8], at: &At) {
        let flags = frame[at.l4 + 13];
        let sequence_len =
            (at.end - at.payload) as u32 + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
        let end = be32(frame, at.l4 + 4).wrapping_add(sequence_len);
        if self.template.is_none() || before(self.sent_max, end) {
            self.sent_max = end;
        }
        let mut template = frame[..at.l4 + 20].to_vec();
        template[at.l4 + 12] = 5 << 4;
        self.template = Some(template);
        if sequence_len > 0 {
            self.last_segment = now;
        }
        self.next_keepalive = now + KEEPALIVE;
    }

    /// The stack receives `frame`.
    pub fn received(&mut self, now: Instant, frame: &[u8], at: &At) {
        let ack = be32(frame, at.l4 + 8);
        let has_ack = frame[at.l4 + 13] & 0x10 != 0;
        if has_ack && self.answer.is_none_or(|(last, _)| !before(ack, last)) {
            let window = u16::from_be_bytes([frame[at.l4 + 14], frame[at.l4 + 15]]);
            self.answer = Some((ack, window));
        }
        self.next_keepalive = now + KEEPALIVE;
    }

    /// When the next keepalive is due, on a connection that stands.
    pub fn next(&self) -> Option<Instant> {
        self.answer.map(|_| self.next_keepalive)
    }

    /// A keepalive, if it is time for one.
    pub fn keepalive(&mut self, now: Instant) -> Option<Vec<u8>> {
        let (ack, _) = self.answer.filter(|_| now >= self.next_keepalive)?;
        let mut frame = self.template.clone()?;
        self.next_keepalive = now + KEEPALIVE;
        let v4 = frame[12..14] == [8, 0];
        let l4 = if v4 { 34 } else { 54 };
        frame[l4 + 4..l4 + 8].copy_from_slice(&ack.wrapping_sub(1).to_be_bytes());
        frame[l4 + 13] = 0x10;
        if v4 {
            frame[16..18].copy_from_slice(&40u16.to_be_bytes());
            frame[24..26].fill(0);
            let sum = checksum::finish(0, &frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        } else {
            frame[18..20].copy_from_slice(&20u16.to_be_bytes());
        }
        offload::complete_checksum(&mut frame);
        Some(frame)
    }

    /// Whether the stack owes a repetition, or has bytes `queued` that it could send, and does
    /// nothing.
    pub fn is_stuck(&mut self, now: Instant, queued: bool) -> bool {
        // With nothing queued the time never runs out.
        let since = *self.queued_since.get_or_insert(now);
        if !queued {
            self.queued_since = None;
        }
        let Some((ack, window)) = self.answer else {
            return false;
        };
        let idle_since = if before(ack, self.sent_max) {
            self.last_segment
        } else {
            self.last_segment.max(since)
        };
        window > 0 && now >= idle_since + PATIENCE
    }
}
