//! A container that forges segments: an attacker with a script from the seed.
//!
//! It opens a connection by hand and then sends what no honest stack sends: old bytes with other
//! contents, data beyond the window, acknowledgements of the past and of the future, closed and
//! shrinking windows, SYN, RST and FIN where they do not belong, urgent pointers, broken options
//! and checksums. In between it makes enough honest progress that the connection is worth
//! attacking.
//!
//! # Properties
//! - What reaches the far end is the stream, of overlapping bytes the first.
//! - What comes back is the far end's stream; nothing is acknowledged that was not sent.
//! - None of the forgeries ends the connection: a script that ends in good order does so at the far
//!   end as well. One that ends with a RST, or in silence, leaves nothing behind.

use std::net::SocketAddr;
use std::rc::Rc;

use cnet_wire::time::{Duration, Instant};

use cnet_testkit::frames::{Tcp, flag};
use cnet_testkit::offload::At;
use cnet_testkit::rng::Rng;

/// How the script ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finale {
    /// Both streams complete, FIN both ways.
    Fin,
    /// An exact RST.
    Rst,
    /// Nothing more is said, nothing answered.
    Silence,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// SYNs sent so far.
    Opening(u32),
    /// Forgeries left.
    Open(u32),
    /// Honest from here on.
    Finishing,
    Over,
}

/// Wait for an answer before an honest repetition.
const PATIENCE: Duration = Duration::from_millis(300);
/// SYNs before the attacker gives up.
const SYNS: u32 = 40;

/// A forged connection.
#[derive(Debug)]
pub struct Hostile {
    rng: Rng,
    from: SocketAddr,
    to: SocketAddr,
    out: Rc<[u8]>,
    back: Rc<[u8]>,
    pub finale: Finale,
    state: State,
    isn: u32,
    /// The peer's initial sequence number, once known.
    irs: Option<u32>,
    /// Offsets in our stream; the FIN counts as one byte.
    acked: usize,
    /// Where the script is; may go back.
    sent: usize,
    sent_max: usize,
    /// Offset in the peer's stream.
    got: usize,
    peer_fin: bool,
    next: Instant,
    was_reset: bool,
    pub violation: Option<String>,
}

impl Hostile {
    pub fn new(
        mut rng: Rng,
        from: SocketAddr,
        to: SocketAddr,
        out: Rc<[u8]>,
        back: Rc<[u8]>,
    ) -> Self {
        let near_wrap = u32::MAX - rng.below(3000) as u32;
        Hostile {
            finale: rng.pick(&[Finale::Fin, Finale::Fin, Finale::Rst, Finale::Silence]),
            state: State::Opening(0),
            isn: rng
                .pick(&[near_wrap, 0, u32::MAX / 2])
                .wrapping_add(rng.next_u64() as u32 % 2),
            irs: None,
            acked: 0,
            sent: 0,
            sent_max: 0,
            got: 0,
            peer_fin: false,
            next: Instant::ZERO + rng.duration(Duration::ZERO, Duration::from_millis(100)),
            was_reset: false,
            violation: None,
            rng,
            from,
            to,
            out,
            back,
        }
    }

    pub fn port(&self) -> u16 {
        self.from.port()
    }

    /// Where it connects to.
    pub fn remote(&self) -> SocketAddr {
        self.to
    }

    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Both streams and both FINs are through.
    fn is_complete(&self) -> bool {
        self.has_all() && self.acked == self.out.len() + 1
    }

    /// The far end's stream and FIN are through. Whether ours are is for the far end to say: the
    /// core keeps no TIME-WAIT, so after a lost last ACK a RST answers.
    pub fn has_all(&self) -> bool {
        self.peer_fin && self.got == self.back.len()
    }

    pub fn next(&self) -> Option<Instant> {
        (self.state != State::Over).then_some(self.next)
    }

    /// For messages.
    pub fn brief(&self) -> String {
        format!(
            "hostile to {} {:?} {:?}: sent {} acked {} of {}, got {} of {}, fin {} reset {}",
            self.to,
            self.finale,
            self.state,
            self.sent_max,
            self.acked,
            self.out.len(),
            self.got,
            self.back.len(),
            self.peer_fin,
            self.was_reset,
        )
    }

    /// Sequence number of offset `at` of our stream.
    fn seq(&self, at: usize) -> u32 {
        self.isn.wrapping_add(1).wrapping_add(at as u32)
    }

    /// The acknowledgement of everything received.
    fn ack(&self) -> u32 {
        let base = self.irs.map_or(0, |irs| irs.wrapping_add(1));
        base.wrapping_add((self.got + usize::from(self.peer_fin)) as u32)
    }

    fn segment<'a>(&self, seq: u32, flags: u8, payload: &'a [u8]) -> Tcp<'a> {
        Tcp {
            from: self.from,
            to: self.to,
            seq,
            ack: if flags & flag::ACK != 0 {
                self.ack()
            } else {
                0
            },
            flags,
            window: u16::MAX,
            urgent: 0,
            options: &[],
            payload,
        }
    }

    // ---- frames in ----

    /// A segment from the core; `frame` is plain.
    pub fn receive(&mut self, now: Instant, frame: &[u8], at: &At, out: &mut Vec<Vec<u8>>) {
        let l4 = &frame[at.l4..];
        let be32 = |i: usize| u32::from_be_bytes([l4[i], l4[i + 1], l4[i + 2], l4[i + 3]]);
        let (seq, ack, flags) = (be32(4), be32(8), l4[13]);
        if self.state == State::Over {
            match self.finale {
                _ if flags & flag::RST != 0 => {}
                // TIME-WAIT.
                Finale::Fin => out.push(self.segment(self.seq(self.sent), flag::ACK, &[]).frame()),
                // A kernel that knows of no such connection.
                Finale::Rst => out.push(self.segment(ack, flag::RST, &[]).frame()),
                Finale::Silence => {}
            }
            return;
        }
        if flags & flag::RST != 0 {
            // One that answers a forged acknowledgement stands elsewhere.
            if self.irs.is_none() || seq == self.ack() {
                self.was_reset = true;
                self.state = State::Over;
            }
            return;
        }
        if flags & flag::ACK != 0 {
            self.take_ack(ack);
        }
        if flags & flag::SYN != 0 {
            self.take_syn(now, seq, ack, out);
            return;
        }
        self.take_data(seq, flags, &frame[at.payload..at.end]);
        if !matches!(self.state, State::Open(_)) || self.rng.chance(700) {
            out.push(self.segment(self.seq(self.sent), flag::ACK, &[]).frame());
        }
    }

    fn take_ack(&mut self, ack: u32) {
        let acked = ack.wrapping_sub(self.isn.wrapping_add(1)) as usize;
        // Answers to forgeries may repeat an acknowledgement from before, never one ahead.
        if acked <= self.sent_max {
            self.acked = self.acked.max(acked);
        } else if acked < 1 << 31 {
            self.violation = Some(format!("{acked} acknowledged of {} sent", self.sent_max));
        }
    }

    fn take_syn(&mut self, now: Instant, seq: u32, ack: u32, out: &mut Vec<Vec<u8>>) {
        if ack != self.isn.wrapping_add(1) || self.irs.is_some_and(|irs| irs != seq) {
            self.violation = Some("a SYN/ACK that does not fit the SYN".into());
            return;
        }
        if let State::Opening(_) = self.state {
            self.irs = Some(seq);
            self.state = State::Open(20 + self.rng.below(80) as u32);
            self.next = now;
        }
        out.push(self.segment(self.seq(self.sent), flag::ACK, &[]).frame());
    }

    fn take_data(&mut self, seq: u32, flags: u8, payload: &[u8]) {
        let Some(irs) = self.irs else { return };
        let at = seq.wrapping_sub(irs.wrapping_add(1)) as i32;
        // A probe stands before the window.
        let Ok(at) = usize::try_from(at) else { return };
        if !payload.is_empty() && self.back.get(at..at + payload.len()) != Some(payload) {
            self.violation = Some(format!("wrong bytes at {at} of the far end's stream"));
        }
        if at <= self.got {
            self.got = self.got.max(at + payload.len());
            if flags & flag::FIN != 0 && at + payload.len() == self.got {
                self.peer_fin = true;
            }
        }
        if self.peer_fin && self.got < self.back.len() {
            self.violation = Some(format!("FIN after {} of {}", self.got, self.back.len()));
        }
    }

    // ---- frames out ----

    /// What the script sends now.
    pub fn poll(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        if now < self.next {
            return;
        }
        match self.state {
            State::Over => {}
            State::Opening(SYNS) => self.state = State::Over,
            State::Opening(n) => {
                out.push(self.opening_syn());
                self.state = State::Opening(n + 1);
                self.next = now + Duration::from_secs(1);
            }
            State::Open(0) => {
                self.next = now;
                self.begin_finale(out);
            }
            State::Open(left) => {
                self.forge(out);
                self.state = State::Open(left - 1);
                let most = Duration::from_millis(self.rng.pick(&[1, 1, 20, 500]));
                self.next = now + self.rng.duration(Duration::from_micros(10), most);
            }
            State::Finishing => {
                self.continue_honestly(out);
                self.next = now + PATIENCE;
            }
        }
    }

    fn opening_syn(&mut self) -> Vec<u8> {
        // One window scale for all repetitions would be honest; so would be one MSS.
        let options: &[u8] = self.rng.pick(&[
            &[][..],
            &[2, 4, 0, 0][..],       // MSS 0
            &[2, 4, 0, 1][..],       // MSS 1
            &[2, 4, 0xff, 0xff][..], // MSS 65535
            &[3, 3, 0, 1][..],       // no shift
            &[2, 4, 5, 0xb4, 3, 3, 0, 1, 4, 2, 1, 1][..],
            &[1, 1, 1, 0][..],
            &[254, 4, 1, 2][..], // experimental
        ]);
        let mut syn = self.segment(self.isn, flag::SYN, &[]);
        syn.options = options;
        syn.frame()
    }

    fn begin_finale(&mut self, out: &mut Vec<Vec<u8>>) {
        match self.finale {
            Finale::Fin => self.state = State::Finishing,
            Finale::Silence => self.state = State::Over,
            Finale::Rst => {
                // Whatever was acknowledged last is what the core expects next, or a RST answers
                // its next segment.
                out.push(self.segment(self.seq(self.acked), flag::RST, &[]).frame());
                self.state = State::Over;
            }
        }
    }

    /// Sends again from the first unacknowledged byte, a little more each time, and the FIN.
    fn continue_honestly(&mut self, out: &mut Vec<Vec<u8>>) {
        if self.is_complete() {
            self.state = State::Over;
            return;
        }
        let all = self.out.clone();
        let from = self.acked.min(all.len());
        let mut at = from;
        while at < all.len().min(from + 4000) {
            let end = all.len().min(at + 500);
            out.push(self.segment(self.seq(at), flag::ACK, &all[at..end]).frame());
            at = end;
        }
        self.sent = at;
        self.sent_max = self.sent_max.max(at);
        if at == all.len() {
            self.sent = at + 1;
            self.sent_max = at + 1;
            out.push(
                self.segment(self.seq(at), flag::FIN | flag::ACK, &[])
                    .frame(),
            );
        }
    }

    /// The next bytes, honestly.
    fn progress(&mut self, out: &mut Vec<Vec<u8>>) {
        let all = self.out.clone();
        let n = 1 + self.rng.below(500);
        if self.rng.chance(200) {
            self.sent = self.acked;
        }
        let end = all.len().min(self.sent + n);
        out.push(
            self.segment(
                self.seq(self.sent),
                flag::ACK | flag::PSH,
                &all[self.sent..end],
            )
            .frame(),
        );
        self.sent = end;
        self.sent_max = self.sent_max.max(end);
    }

    fn forge(&mut self, out: &mut Vec<Vec<u8>>) {
        let ahead = 2 + self.rng.below(1000);
        let also = self.rng.pick(&[flag::ACK, flag::FIN, flag::RST]);
        let beyond = self.seq(self.out.len() + ahead);
        let here = self.seq(self.sent);
        let anywhere = self.rng.next_u64() as u32;
        let frame = match self.rng.below(20) {
            0..6 => return self.progress(out),
            6 | 7 => self.other_bytes(),
            8 => self.far_data(),
            9 => self.with_window(0),
            10 => {
                let window = self.rng.pick(&[1, 7, 100, 1000]);
                self.with_window(window)
            }
            11 => self.with_ack(self.ack().wrapping_add(1 << 24 | anywhere >> 12)),
            12 => self.with_ack(self.ack().wrapping_sub(1 + (anywhere >> 12))),
            13 => self.segment(beyond, flag::RST, &[]).frame(),
            14 => {
                let outside = here.wrapping_add(1 << 30).wrapping_add(anywhere >> 2);
                self.segment(outside, flag::RST | flag::ACK, &[]).frame()
            }
            15 => self.segment(beyond, flag::SYN, &[]).frame(),
            16 => self.segment(here, flag::SYN | also, &[]).frame(),
            17 => self.segment(beyond, flag::FIN | flag::ACK, &[]).frame(),
            18 => self.bent(here),
            _ => self.urgent(),
        };
        out.push(frame);
    }

    /// Bytes that were acknowledged, with other contents, and a few good ones behind them.
    fn other_bytes(&mut self) -> Vec<u8> {
        let back = self.rng.below(self.acked.min(1000) + 1);
        let new = self
            .rng
            .below(200)
            .min(self.out.len() - self.acked.min(self.out.len()));
        let mut bytes = vec![0xee; back];
        bytes.extend_from_slice(&self.out[self.acked..self.acked + new]);
        self.sent_max = self.sent_max.max(self.acked + new);
        self.segment(self.seq(self.acked - back), flag::ACK, &bytes)
            .frame()
    }

    /// Good bytes with a hole before them, possibly past any window.
    fn far_data(&mut self) -> Vec<u8> {
        let at = (self.sent + 1 + self.rng.below(2000)).min(self.out.len());
        let end = self.out.len().min(at + 300);
        // What seems a hole may have been filled, the acknowledgement lost.
        self.sent_max = self.sent_max.max(end);
        let out = self.out.clone();
        self.segment(self.seq(at), flag::ACK, &out[at..end]).frame()
    }

    fn with_window(&self, window: u16) -> Vec<u8> {
        let mut s = self.segment(self.seq(self.sent), flag::ACK, &[]);
        s.window = window;
        s.frame()
    }

    fn with_ack(&self, ack: u32) -> Vec<u8> {
        let mut s = self.segment(self.seq(self.sent), flag::ACK, &[]);
        s.ack = ack;
        s.window = 3;
        s.frame()
    }

    fn urgent(&mut self) -> Vec<u8> {
        let all = self.out.clone();
        let end = all.len().min(self.sent + 10);
        let mut s = self.segment(
            self.seq(self.sent),
            flag::ACK | flag::URG,
            &all[self.sent..end],
        );
        s.urgent = self.rng.next_u64() as u16;
        self.sent = end;
        self.sent_max = self.sent_max.max(end);
        s.frame()
    }

    /// A RST, with something wrong about the segment that has to make it void.
    fn bent(&mut self, seq: u32) -> Vec<u8> {
        let options: &[u8] = self.rng.pick(&[
            &[2, 0, 0, 0][..],
            &[2, 1, 0, 0][..],
            &[8, 40, 0, 0][..],
            &[][..],
        ]);
        let mut rst = self.segment(seq, flag::RST | flag::ACK, &[]);
        rst.options = options;
        let mut frame = rst.frame();
        if options.is_empty() {
            let len = frame.len();
            // Data offset under five words, past the end, or a wrong checksum.
            let (byte, value) = self.rng.pick(&[(8, 0x40), (8, 0xf0), (4, 0xa5)]);
            frame[len - byte] ^= value;
        }
        frame
    }
}
