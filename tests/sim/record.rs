//! A record of all that passes between the core and its surroundings, for comparing two trees.
//!
//! [`Recorded`] stands before a sink and a host and passes every call on; the world and the fuzz
//! tell the [`Recorder`] what they give to the core. Each frame and each call becomes one line that
//! starts with the virtual time in nanoseconds. The digest is taken of the lines, so that where two
//! digests differ, the lines show why.
//!
//! # What a line may say
//! Bytes, numbers, addresses, and words that are spelled out here. Names of types and of their
//! variants do not go in, and neither do the core's own handles (tokens, query numbers): both may
//! change without a change of behaviour. Sockets are numbered by the simulated host, in the order
//! in which they are opened. Of long bytes a line has the start, and a digest of them all.

use std::cell::RefCell;
use std::fmt::Write;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use cnet_nat::host::{
    DatagramError, DatagramErrorKind, DatagramKind, DnsQuery, HeaderFields, HostError, HostSockets,
    QueueFull, Readiness, Received, SendOptions, SocketId, Token,
};
use cnet_wire::drops::DropCounters;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::{FrameSink, PortFull, PortId};

/// Bytes that a line spells out: all headers of a frame, with a few of its payload.
const SPELLED_OUT: usize = 128;

/// FNV-1a with 64 bits (Fowler, Noll and Vo; draft-eastlake-fnv): the same on every machine and in
/// every build, which the standard library does not promise of its hashers.
#[derive(Clone, Copy)]
struct Fnv(u64);

impl Fnv {
    const NEW: Fnv = Fnv(0xcbf2_9ce4_8422_2325);

    fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn of(bytes: &[u8]) -> u64 {
        let mut fnv = Fnv::NEW;
        fnv.update(bytes);
        fnv.0
    }
}

/// What a recorder keeps of the lines.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing; they are not even made.
    Nothing,
    /// Digest and counts.
    Digest,
    /// The lines as well.
    Lines,
}

/// The record of one run.
pub struct Recorder {
    keep: Keep,
    now: Instant,
    digest: Fnv,
    /// Digest of the drop counters, apart from the rest: a drop that is counted elsewhere does not
    /// change what happens to any frame.
    drops: Fnv,
    /// Frames to the core and from it.
    frames: u64,
    /// Calls of the host.
    calls: u64,
    lines: String,
    /// Calls and frames of the core from one panic to the next.
    panic_distance: Option<u64>,
    /// How many there were since the last one.
    since_panic: u64,
}

/// What unwinds where a panic is injected.
struct Injected;

/// Makes `call`; `None` if it unwound where a panic is injected. Other panics go on.
pub fn unless_injected<R>(call: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => Some(result),
        Err(panic) if panic.is::<Injected>() => None,
        Err(panic) => resume_unwind(panic),
    }
}

impl Recorder {
    pub fn new(keep: Keep) -> Recorder {
        Recorder {
            keep,
            now: Instant::ZERO,
            digest: Fnv::NEW,
            drops: Fnv::NEW,
            frames: 0,
            calls: 0,
            lines: String::new(),
            panic_distance: None,
            since_panic: 0,
        }
    }

    /// Has each `distance`th call or frame of the core unwind instead, or none.
    pub fn inject_panics(&mut self, distance: Option<u64>) {
        self.panic_distance = distance;
    }

    /// Whether this call is to unwind.
    fn panics_here(&mut self) -> bool {
        self.since_panic += 1;
        let here = self.panic_distance.is_some_and(|d| self.since_panic >= d);
        if here {
            self.since_panic = 0;
        }
        here
    }

    /// What comes happens at `now`.
    pub fn set_time(&mut self, now: Instant) {
        self.now = now;
    }

    /// Something that is given to the core or taken from it and is neither frame nor call.
    pub fn event(&mut self, what: impl FnOnce() -> String) {
        if self.keep != Keep::Nothing {
            self.line(what());
        }
    }

    /// A frame that the core is given.
    pub fn frame_in(&mut self, port: PortId, frame: &[u8]) {
        self.frames += 1;
        self.event(|| format!("-> port {} {}", port.0, bytes(frame)));
    }

    /// A host socket's event.
    pub fn readiness(&mut self, ready: Readiness) {
        let bits = [
            (ready.readable, "readable"),
            (ready.writable, "writable"),
            (ready.read_closed, "read-closed"),
            (ready.error, "error"),
        ];
        let set = bits.iter().filter(|bit| bit.0);
        self.event(|| set.fold("ready".into(), |line, bit| format!("{line} {}", bit.1)));
    }

    /// How many frames were dropped for which reason, at the end of a run.
    pub fn drop_counters(&mut self, counters: &DropCounters) {
        if self.keep == Keep::Nothing {
            return;
        }
        let mut drops: Vec<_> = counters.iter().map(|(why, n)| (why.name(), n)).collect();
        // By name: the order of the reasons says nothing.
        drops.sort_unstable();
        for (reason, n) in drops {
            let line = format!("drops {reason} {n}\n");
            self.drops.update(line.as_bytes());
            self.keep_line(&line);
        }
    }

    /// The run in one line: digest, frames, calls, digest of the drop counters.
    pub fn summary(&self) -> String {
        format!(
            "{:016x} {} {} {:016x}",
            self.digest.0, self.frames, self.calls, self.drops.0
        )
    }

    /// The lines, if they were kept.
    pub fn lines(&self) -> &str {
        &self.lines
    }

    fn line(&mut self, what: String) {
        let line = format!("{} {what}\n", self.now.as_nanos());
        self.digest.update(line.as_bytes());
        self.keep_line(&line);
    }

    fn keep_line(&mut self, line: &str) {
        if self.keep == Keep::Lines {
            self.lines.push_str(line);
        }
    }
}

/// A sink or a host, and who writes down what is asked of it.
pub struct Recorded<'a, T> {
    pub inner: &'a mut T,
    /// Shared, because sink and host are lent to the core side by side.
    pub recorder: &'a RefCell<Recorder>,
}

impl<S: FrameSink> FrameSink for Recorded<'_, S> {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        self.maybe_panic();
        let result = self.inner.emit(port, frame);
        let mut recorder = self.recorder.borrow_mut();
        recorder.frames += 1;
        recorder.event(|| {
            let outcome = if result.is_ok() { "" } else { " full" };
            format!("<- port {} {}{outcome}", port.0, bytes(frame))
        });
        result
    }
}

impl<T> Recorded<'_, T> {
    /// Unwinds without the panic hook, which would print each.
    fn maybe_panic(&self) {
        if self.recorder.borrow_mut().panics_here() {
            resume_unwind(Box::new(Injected));
        }
    }

    fn call(&self, what: impl FnOnce() -> String) {
        let mut recorder = self.recorder.borrow_mut();
        recorder.calls += 1;
        recorder.event(what);
    }
}

impl<H: HostSockets> HostSockets for Recorded<'_, H> {
    /// Not recorded: the worlds resolve no names, and what the fuzzer answers it records itself.
    fn ask_dns(&mut self, query: DnsQuery) -> Result<(), QueueFull> {
        self.inner.ask_dns(query)
    }

    fn tcp_connect(
        &mut self,
        token: Token,
        from: Option<u16>,
        to: SocketAddr,
        fields: HeaderFields,
    ) -> Result<SocketId, HostError> {
        self.maybe_panic();
        let result = self.inner.tcp_connect(token, from, to, fields);
        let HeaderFields { hop_limit, tos } = fields;
        self.call(|| match fields == HeaderFields::default() {
            true => format!("connect {to} = {}", outcome(result, socket_name)),
            false => format!(
                "connect {to} hops {hop_limit} tos {tos} = {}",
                outcome(result, socket_name)
            ),
        });
        result
    }

    fn tcp_adopt(&mut self, token: Token, socket: SocketId) -> Result<HeaderFields, HostError> {
        self.maybe_panic();
        let result = self.inner.tcp_adopt(token, socket);
        self.call(|| {
            let told = outcome(result.map(|_| ()), nothing);
            format!("adopt {} = {told}", socket.0)
        });
        result
    }

    fn tcp_set_fields(&mut self, socket: SocketId, fields: HeaderFields) {
        let HeaderFields { hop_limit, tos } = fields;
        self.maybe_panic();
        self.call(|| format!("fields {} hops {hop_limit} tos {tos}", socket.0));
        self.inner.tcp_set_fields(socket, fields);
    }

    fn tcp_unacknowledged(&mut self, socket: SocketId) -> usize {
        self.inner.tcp_unacknowledged(socket)
    }

    fn tcp_probe(&mut self, socket: SocketId) {
        self.maybe_panic();
        self.call(|| format!("probe {}", socket.0));
        self.inner.tcp_probe(socket);
    }

    fn tcp_silence(&mut self, socket: SocketId) -> Duration {
        self.inner.tcp_silence(socket)
    }

    fn tcp_connected(&mut self, socket: SocketId) -> Result<(), HostError> {
        self.maybe_panic();
        let result = self.inner.tcp_connected(socket);
        self.call(|| format!("connected {} = {}", socket.0, outcome(result, nothing)));
        result
    }

    fn tcp_send(&mut self, socket: SocketId, data: &[u8]) -> Result<usize, HostError> {
        self.maybe_panic();
        let result = self.inner.tcp_send(socket, data);
        let taken = outcome(result, |n| n.to_string());
        self.call(|| format!("send {} {} = {taken}", socket.0, bytes(data)));
        result
    }

    fn tcp_peek(
        &mut self,
        socket: SocketId,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<usize, HostError> {
        self.maybe_panic();
        let result = self.inner.tcp_peek(socket, offset, buf);
        self.call(|| {
            let read = outcome(result, |n| bytes(&buf[..n]));
            format!("peek {} at {offset} of {} = {read}", socket.0, buf.len())
        });
        result
    }

    fn tcp_discard(&mut self, socket: SocketId, n: usize) -> Result<(), HostError> {
        self.maybe_panic();
        let result = self.inner.tcp_discard(socket, n);
        self.call(|| format!("discard {} {n} = {}", socket.0, outcome(result, nothing)));
        result
    }

    fn tcp_shutdown(&mut self, socket: SocketId) {
        self.maybe_panic();
        self.inner.tcp_shutdown(socket);
        self.call(|| format!("shutdown {}", socket.0));
    }

    fn tcp_reset(&mut self, socket: SocketId) {
        self.maybe_panic();
        self.inner.tcp_reset(socket);
        self.call(|| format!("reset {}", socket.0));
    }

    fn datagram_open(
        &mut self,
        token: Token,
        kind: DatagramKind,
        container: SocketAddr,
    ) -> Result<SocketId, HostError> {
        self.maybe_panic();
        let result = self.inner.datagram_open(token, kind, container);
        let kind = match kind {
            DatagramKind::Udp => "udp",
            DatagramKind::Ping => "ping",
        };
        self.call(|| {
            format!(
                "open {kind} {} = {}",
                container.ip(),
                outcome(result, socket_name)
            )
        });
        result
    }

    fn datagram_send(
        &mut self,
        socket: SocketId,
        options: SendOptions,
        payload: &[u8],
    ) -> Result<(), HostError> {
        self.maybe_panic();
        let result = self.inner.datagram_send(socket, options, payload);
        self.call(|| {
            format!(
                "send-to {} {} segment {} hops {} tos {} df {} {} = {}",
                socket.0,
                options.to,
                options.segment.unwrap_or(0),
                options.hop_limit,
                options.tos,
                u8::from(options.dont_fragment),
                bytes(payload),
                outcome(result, nothing),
            )
        });
        result
    }

    fn datagram_receive(
        &mut self,
        socket: SocketId,
        buf: &mut [u8],
    ) -> Result<Received, HostError> {
        self.maybe_panic();
        let result = self.inner.datagram_receive(socket, buf);
        self.call(|| {
            let received = outcome(result, |r| {
                let (from, segment) = (r.from, r.segment.unwrap_or(0));
                let data = bytes(&buf[..r.len]);
                format!("{from} segment {segment} tos {} {data}", r.fields.tos)
            });
            format!("receive {} of {} = {received}", socket.0, buf.len())
        });
        result
    }

    fn datagram_error(
        &mut self,
        socket: SocketId,
        quote: &mut [u8],
    ) -> Result<DatagramError, HostError> {
        self.maybe_panic();
        let result = self.inner.datagram_error(socket, quote);
        self.call(|| {
            let error = outcome(result, |e| {
                format!("{} {}", datagram_error(&e), bytes(&quote[..e.quote_len]))
            });
            format!("error {} of {} = {error}", socket.0, quote.len())
        });
        result
    }

    fn close(&mut self, socket: SocketId) {
        self.maybe_panic();
        self.inner.close(socket);
        self.call(|| format!("close {}", socket.0));
    }
}

// ---- how values are written ----

/// Length, digest, and the first bytes.
pub fn bytes(b: &[u8]) -> String {
    let mut text = format!("{} bytes {:016x} ", b.len(), Fnv::of(b));
    for byte in b.iter().take(SPELLED_OUT) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn outcome<T>(result: Result<T, HostError>, value: impl FnOnce(T) -> String) -> String {
    result.map_or_else(|e| error_name(e).into(), value)
}

fn nothing((): ()) -> String {
    "ok".into()
}

fn socket_name(socket: SocketId) -> String {
    format!("socket {}", socket.0)
}

fn error_name(error: HostError) -> &'static str {
    match error {
        HostError::WouldBlock => "would-block",
        HostError::Refused => "refused",
        HostError::Reset => "reset",
        HostError::TimedOut => "timed-out",
        HostError::NetUnreachable => "net-unreachable",
        HostError::HostUnreachable => "host-unreachable",
        HostError::Prohibited => "prohibited",
        HostError::TooBig => "too-big",
        HostError::Exhausted => "exhausted",
        HostError::Unsupported => "unsupported",
        HostError::Other => "other",
    }
}

fn datagram_error(error: &DatagramError) -> String {
    let offender = error.offender.map_or("-".into(), |a| a.to_string());
    let what = match error.kind {
        DatagramErrorKind::Icmp {
            icmp_type,
            code,
            info,
        } => format!("icmp {icmp_type} {code} {info}"),
        DatagramErrorKind::Local(error, info) => format!("local {} {info}", error_name(error)),
    };
    format!("{} offender {offender} {what}", error.destination)
}
