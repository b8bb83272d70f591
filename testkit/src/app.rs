//! The applications at both ends of a flow: scripts that send, read, stall, half-close and reset,
//! and check every byte they are given.
//!
//! One script drives both ends; what differs is the [`Pipe`] it holds: a smoltcp socket in the
//! container, the buffers of a fake kernel on the host.
//!
//! # Safety properties
//! Checked as they happen: a byte that is not the next one of the peer's stream, a byte too many,
//! an end of file before the stream's end. Whether an end of file or a reset was justified is for
//! the world to say, which knows both ends.

use std::rc::Rc;

use cnet_wire::time::{Duration, Instant};

/// What the application's side of a connection can do.
pub trait Pipe {
    /// Reads into `buf`.
    fn read(&mut self, buf: &mut [u8]) -> Read;
    /// Writes from `data`; `None` when the connection was reset.
    fn write(&mut self, data: &[u8]) -> Option<usize>;
    /// Ends our stream.
    fn shutdown(&mut self);
    /// Resets the connection.
    fn reset(&mut self);
    /// Falls silent for good, without a word to the peer.
    fn vanish(&mut self);
}

/// Outcome of [`Pipe::read`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// So many bytes were read.
    Data(usize),
    /// Nothing now; more may come.
    Empty,
    /// The peer has ended its stream.
    Eof,
    /// The connection was reset.
    Reset,
}

/// When an application ends its part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Half-closes as soon as everything is written.
    AfterSending,
    /// Closes when the peer has.
    AfterPeer,
    /// Resets when this much was written and read.
    Reset {
        /// Bytes written.
        sent: usize,
        /// Bytes read.
        received: usize,
    },
    /// Falls silent when this much was written and read.
    Vanish {
        /// Bytes written.
        sent: usize,
        /// Bytes read.
        received: usize,
    },
}

impl Ending {
    /// Both directions are to be completed.
    pub fn is_orderly(self) -> bool {
        matches!(self, Ending::AfterSending | Ending::AfterPeer)
    }
}

/// An application's script.
#[derive(Clone, Debug)]
pub struct AppPlan {
    /// Bytes of one write at most.
    pub write_chunk: usize,
    /// Bytes of one read at most.
    pub read_chunk: usize,
    /// Rest between two rounds of reading and writing.
    pub pace: Duration,
    /// Bytes to be read before the first write.
    pub speak_after: usize,
    /// At so many bytes read, no reading for so long. In order.
    pub stalls: Vec<(usize, Duration)>,
    /// At so many bytes written, no writing for so long. In order.
    pub rests: Vec<(usize, Duration)>,
    /// How it ends.
    pub ending: Ending,
}

/// How it went, as the application saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Everything written, end of file read.
    Done,
    /// Reset or failed by the other side.
    Reset,
    /// Reset by itself.
    Aborted,
    /// Fell silent.
    Vanished,
    /// Never connected: a RST answered.
    Refused,
    /// Never connected: an ICMP error answered.
    Unreachable,
    /// Never connected: nothing answered.
    TimedOut,
}

/// A running script.
#[derive(Debug)]
pub struct App {
    plan: AppPlan,
    name: String,
    out: Rc<[u8]>,
    /// The peer's stream; `None` takes whatever comes.
    expected: Option<Rc<[u8]>>,
    /// Bytes written so far.
    pub sent: usize,
    /// Bytes read and checked so far.
    pub received: usize,
    stalls_done: usize,
    stalled_until: Instant,
    rests_done: usize,
    resting_until: Instant,
    not_before: Instant,
    /// Our stream is ended.
    pub shut: bool,
    /// The peer's stream is ended.
    pub eof: bool,
    /// How it went; `None` while it runs.
    pub end: Option<End>,
    /// When it came to its end.
    pub ended_at: Option<Instant>,
}

/// Rounds of one call, so that a fast pipe cannot hold the world up.
const ROUNDS: usize = 64;

impl App {
    /// A script that writes `out` and expects to read `expected`; `name` is for messages.
    pub fn new(name: String, plan: AppPlan, out: Rc<[u8]>, expected: Rc<[u8]>) -> Self {
        App {
            plan,
            name,
            out,
            expected: Some(expected),
            sent: 0,
            received: 0,
            stalls_done: 0,
            stalled_until: Instant::ZERO,
            rests_done: 0,
            resting_until: Instant::ZERO,
            not_before: Instant::ZERO,
            shut: false,
            eof: false,
            end: None,
            ended_at: None,
        }
    }

    /// The same script for a peer that may send anything.
    pub fn trusting(name: String, plan: AppPlan, out: Rc<[u8]>) -> Self {
        App {
            expected: None,
            ..App::new(name, plan, out, Rc::new([]))
        }
    }

    fn total(&self) -> usize {
        self.expected.as_ref().map_or(self.received, |e| e.len())
    }

    /// When the script wants to run again by itself.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        if self.end.is_some() {
            return None;
        }
        [self.not_before, self.stalled_until, self.resting_until]
            .into_iter()
            .filter(|&t| t > now)
            .min()
    }

    /// Runs as far as the pipe and the script's pace allow; returns whether anything was done. An
    /// error is a violated property.
    pub fn run(&mut self, now: Instant, pipe: &mut impl Pipe) -> Result<bool, String> {
        let mut moved = false;
        for _ in 0..ROUNDS {
            if self.end.is_some() || now < self.not_before {
                return Ok(moved);
            }
            let before = self.shut;
            let round = self
                .round(now, pipe)
                .map_err(|what| format!("{}: {what} ({})", self.name, self.brief()))?;
            if self.end.is_some() {
                self.ended_at = Some(now);
            }
            moved |= round || self.shut != before || self.end.is_some();
            if !round {
                return Ok(moved);
            }
            self.not_before = now + self.plan.pace;
        }
        self.not_before = now + Duration::from_micros(1);
        Ok(moved)
    }

    /// For messages: the counters without the streams.
    pub fn brief(&self) -> String {
        format!(
            "sent {}/{} received {}/{} shut {} eof {} end {:?} {:?}",
            self.sent,
            self.out.len(),
            self.received,
            self.total(),
            self.shut,
            self.eof,
            self.end,
            self.plan.ending,
        )
    }

    fn round(&mut self, now: Instant, pipe: &mut impl Pipe) -> Result<bool, String> {
        let mut moved = self.read(now, pipe)?;
        if self.end.is_none() {
            moved |= self.write(now, pipe);
        }
        if self.end.is_none() {
            self.finish(now, pipe);
        }
        Ok(moved)
    }

    fn read(&mut self, now: Instant, pipe: &mut impl Pipe) -> Result<bool, String> {
        if let Some(&(at, pause)) = self.plan.stalls.get(self.stalls_done)
            && self.received >= at
        {
            self.stalls_done += 1;
            self.stalled_until = now + pause;
        }
        if self.eof || now < self.stalled_until {
            return Ok(false);
        }
        let mut buf = vec![0; self.plan.read_chunk];
        match pipe.read(&mut buf) {
            Read::Empty => Ok(false),
            Read::Reset => {
                self.end = Some(End::Reset);
                Ok(false)
            }
            Read::Eof if self.received < self.total() => Err(format!(
                "end of file after {} of {} bytes",
                self.received,
                self.total()
            )),
            Read::Eof => {
                self.eof = true;
                Ok(true)
            }
            Read::Data(n) => {
                let place = self.received..self.received + n;
                let expected = self.expected.as_ref();
                if expected.is_some_and(|e| e.get(place) != Some(&buf[..n])) {
                    return Err(format!(
                        "wrong bytes among the {n} behind offset {}",
                        self.received
                    ));
                }
                self.received += n;
                Ok(n > 0)
            }
        }
    }

    fn write(&mut self, now: Instant, pipe: &mut impl Pipe) -> bool {
        if let Some(&(at, pause)) = self.plan.rests.get(self.rests_done)
            && self.sent >= at
        {
            self.rests_done += 1;
            self.resting_until = now + pause;
        }
        if now < self.resting_until {
            return false;
        }
        if self.shut || self.sent == self.out.len() || self.received < self.plan.speak_after {
            return false;
        }
        let upto = self.out.len().min(self.sent + self.plan.write_chunk);
        match pipe.write(&self.out[self.sent..upto]) {
            None => {
                self.end = Some(End::Reset);
                false
            }
            Some(n) => {
                self.sent += n;
                n > 0
            }
        }
    }

    fn finish(&mut self, now: Instant, pipe: &mut impl Pipe) {
        let all_sent = self.sent == self.out.len() && now >= self.resting_until;
        match self.plan.ending {
            Ending::AfterSending if all_sent && !self.shut => {
                pipe.shutdown();
                self.shut = true;
            }
            Ending::AfterPeer if all_sent && self.eof && !self.shut => {
                pipe.shutdown();
                self.shut = true;
            }
            Ending::Reset { sent, received } if self.sent >= sent && self.received >= received => {
                pipe.reset();
                self.end = Some(End::Aborted);
            }
            Ending::Vanish { sent, received } if self.sent >= sent && self.received >= received => {
                pipe.vanish();
                self.end = Some(End::Vanished);
            }
            _ => {}
        }
        if self.shut && self.eof {
            self.end = Some(End::Done);
        }
    }
}
