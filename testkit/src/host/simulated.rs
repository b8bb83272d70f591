//! The host: an implementation of [`HostSockets`] on virtual time, with a fake kernel's buffers and
//! remote applications behind them.
//!
//! # Theory of operation
//! A connection is two bounded byte queues, one each way, standing for the kernel's buffers, the
//! network and the remote kernel's buffers together. The remote application reads and writes at its
//! own pace. Readiness is told as epoll tells it with EPOLLET: an *edge* (bytes arrived, room came
//! back after a refusal, the end, an error) triggers one event, and the event carries whatever is
//! true when it is delivered, some time later. Now and then an event comes for nothing.
//!
//! # What a caller must not do
//! Every use of a socket that is closed, discarding bytes that were never peeked, peeking past the
//! received bytes, sending after shutdown, shutting a stream down that the container did not end:
//! all are recorded as violations. Sockets are counted, so a leak is seen.
//!
//! # Kernel behaviour kept
//! - Bytes received before a RST can still be read; then the error, once; then end of file. Whoever
//!   misses the error sees a clean end that never was.
//! - An orderly close with unread bytes is a RST to the far end (RFC 1122, section 4.2.2.13), and
//!   bytes not yet sent are still sent.
//! - What was sent is acknowledged by the far kernel some time later, in order, whether its application
//!   reads or not; never once that far end has fallen silent. No event tells of it.
//! - The writable edge comes only after a refused or short write, when a third of the buffer is
//!   free again (`sk_stream_write_space`).
//!
//! Longer than 600 lines: what a socket's calls do and what the kernel does behind them are read
//! together.

mod datagram;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::net::SocketAddr;

use cnet_wire::host::{
    DatagramError, DatagramKind, DnsQuery, HeaderFields, HostError, HostSockets, QueueFull,
    Readiness, Received, SendOptions, SocketId, Token,
};
use cnet_wire::time::{Duration, Instant};

use crate::app::{App, Pipe, Read};
use crate::rng::Rng;
pub use datagram::CLOSED_PORT;
use datagram::DatagramSocket;

/// What becomes of a connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The remote application accepts.
    Accept,
    /// The kernel reports this after the delay.
    Fail(HostError),
    /// The call itself fails.
    FailAtOnce(HostError),
}

/// A remote address the container may connect to.
pub struct Service {
    /// How a connect ends.
    pub fate: Fate,
    /// Until the connect's end is known.
    pub delay: Duration,
    /// Bytes that wait for the core.
    pub receive_buffer: usize,
    /// Bytes that the core may send ahead of the remote application.
    pub send_buffer: usize,
    /// Starts the application for one connection.
    pub app: Box<dyn Fn() -> App>,
}

/// How the host behaves.
#[derive(Clone, Copy, Debug)]
pub struct HostPlan {
    /// Thousandths of opens that fail for want of descriptors.
    pub exhausted: u32,
    /// Thousandths of events that are followed by one without cause.
    pub spurious: u32,
    /// From an edge to its event, at most.
    pub event_delay: Duration,
    /// From a send to the far kernel's acknowledgement of it, at most.
    pub ack_delay: Duration,
    /// Closed sockets stay counted as open: a leak, to show that it is seen.
    pub leak: bool,
}

/// How long a vanished remote takes to be noticed by the host's kernel (tcp(7), tcp_retries2).
const VANISHED_AFTER: Duration = Duration::from_secs(924);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Connecting(Fate, Instant),
    Connected,
}

/// The core's end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Near {
    Open,
    /// Closed in the ordinary way; the kernel still sends.
    Closed,
    Reset,
}

/// One TCP connection of the host.
struct Connection {
    token: Option<Token>,
    phase: Phase,
    near: Near,
    /// Towards the core.
    rx: VecDeque<u8>,
    rx_limit: usize,
    rx_end: bool,
    /// Bytes the core has peeked, from the front of `rx`.
    peeked: usize,
    /// Towards the remote application.
    tx: VecDeque<u8>,
    tx_limit: usize,
    tx_end: bool,
    /// The core was refused room.
    wants_room: bool,
    error: Option<HostError>,
    dead: bool,
    /// The remote falls silent; the kernel notices then.
    vanished_at: Option<Instant>,
    /// When what was sent will be acknowledged, and how much that is; an answered probe is nothing.
    unacknowledged: VecDeque<(Instant, usize)>,
    /// When the far kernel was heard last.
    heard_at: Instant,
    /// An edge has occurred that no event has told yet.
    triggered: bool,
    app: Option<App>,
    service: SocketAddr,
}

/// The remote application's view of a connection.
struct Far<'a>(&'a mut Connection, Instant);

impl Pipe for Far<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Read {
        let c = &mut *self.0;
        if c.near == Near::Reset {
            return Read::Reset;
        }
        let n = buf.len().min(c.tx.len());
        if n > 0 {
            for (to, from) in buf.iter_mut().zip(c.tx.drain(..n)) {
                *to = from;
            }
            return Read::Data(n);
        }
        if c.tx_end { Read::Eof } else { Read::Empty }
    }

    fn write(&mut self, data: &[u8]) -> Option<usize> {
        let c = &mut *self.0;
        match c.near {
            Near::Reset => None,
            // Nobody reads any more: a RST answers.
            Near::Closed => {
                c.near = Near::Reset;
                None
            }
            Near::Open => {
                let n = data.len().min(c.rx_limit.saturating_sub(c.rx.len()));
                c.rx.extend(&data[..n]);
                c.triggered |= n > 0;
                c.heard_at = self.1;
                Some(n)
            }
        }
    }

    fn shutdown(&mut self) {
        self.0.rx_end = true;
        self.0.triggered = true;
    }

    fn reset(&mut self) {
        self.0.fail(HostError::Reset);
    }

    fn vanish(&mut self) {
        self.0.vanished_at = Some(self.1 + VANISHED_AFTER);
    }
}

impl Connection {
    fn fail(&mut self, error: HostError) {
        self.error = Some(error);
        self.dead = true;
        self.tx.clear();
        self.triggered = true;
    }

    /// The far kernel will have what was sent now after `delay`, and not before what was sent earlier.
    fn acknowledge_after(&mut self, now: Instant, delay: Duration, n: usize) {
        let last = self.unacknowledged.back().map_or(now, |&(at, _)| at);
        self.unacknowledged.push_back((last.max(now + delay), n));
    }

    /// Takes in the acknowledgements that have come.
    fn hear(&mut self, now: Instant) {
        while let Some(&(at, _)) = self.unacknowledged.front()
            && at <= now
            && self.vanished_at.is_none()
        {
            self.heard_at = at;
            self.unacknowledged.pop_front();
        }
    }

    fn readiness(&self) -> Readiness {
        let connected = self.phase == Phase::Connected;
        let over = self.dead;
        Readiness {
            readable: connected && (!self.rx.is_empty() || self.rx_end) || over,
            writable: connected && self.tx.len() * 3 <= self.tx_limit * 2 || over,
            read_closed: self.rx_end || over,
            error: over,
        }
    }

    /// Neither end has further use for it.
    fn is_over(&self) -> bool {
        self.near != Near::Open && self.app.as_ref().is_none_or(|a| a.end.is_some())
    }
}

/// The host.
pub struct Host {
    plan: HostPlan,
    rng: Rng,
    now: Instant,
    services: HashMap<SocketAddr, Service>,
    /// What answers at every other address.
    anywhere: Option<SocketAddr>,
    connections: BTreeMap<u32, Connection>,
    datagrams: BTreeMap<u32, DatagramSocket>,
    /// Applications whose connections are over, by the service's address.
    pub finished: Vec<(SocketAddr, App)>,
    /// Events under way.
    events: BinaryHeap<Reverse<(Instant, u64, u32)>>,
    next_id: u32,
    next_event: u64,
    open: usize,
    /// Refusals for want of descriptors, by the address they were for.
    pub refused_opens: Vec<SocketAddr>,
    /// DNS queries that were asked.
    pub queries: VecDeque<DnsQuery>,
    /// What the core did that no caller may do; the first of it.
    pub violations: Vec<String>,
}

impl Host {
    /// A host without services.
    pub fn new(plan: HostPlan, rng: Rng) -> Self {
        Host {
            plan,
            rng,
            now: Instant::ZERO,
            services: HashMap::new(),
            anywhere: None,
            connections: BTreeMap::new(),
            datagrams: BTreeMap::new(),
            finished: Vec::new(),
            events: BinaryHeap::new(),
            next_id: 0,
            next_event: 0,
            open: 0,
            refused_opens: Vec::new(),
            queries: VecDeque::new(),
            violations: Vec::new(),
        }
    }

    /// Puts a service at an address.
    pub fn add_service(&mut self, at: SocketAddr, service: Service) {
        self.services.insert(at, service);
    }

    /// The service at `at` answers at every address that has none.
    pub fn answer_anywhere(&mut self, at: SocketAddr) {
        self.anywhere = Some(at);
    }

    /// Sockets the core has open.
    pub fn open_sockets(&self) -> usize {
        self.open
    }

    /// Applications that have not come to an end.
    pub fn running(&self) -> impl Iterator<Item = (SocketAddr, &App)> {
        self.connections
            .values()
            .filter_map(|c| Some((c.service, c.app.as_ref()?)))
            .filter(|(_, app)| app.end.is_none())
    }

    fn new_id(&mut self) -> SocketId {
        self.next_id += 1;
        self.open += 1;
        SocketId(self.next_id)
    }

    /// A client has connected to a published port; what `service` says is its side.
    pub fn incoming(&mut self, service: SocketAddr) -> SocketId {
        let id = self.new_id();
        let s = &self.services[&service];
        let mut c = Self::connection(service, s, None);
        c.phase = Phase::Connected;
        c.app = Some((s.app)());
        self.connections.insert(id.0, c);
        id
    }

    fn connection(at: SocketAddr, s: &Service, token: Option<Token>) -> Connection {
        Connection {
            token,
            phase: Phase::Connected,
            near: Near::Open,
            rx: VecDeque::new(),
            rx_limit: s.receive_buffer,
            rx_end: false,
            peeked: 0,
            tx: VecDeque::new(),
            tx_limit: s.send_buffer,
            tx_end: false,
            wants_room: false,
            error: None,
            dead: false,
            vanished_at: None,
            unacknowledged: VecDeque::new(),
            heard_at: Instant::ZERO,
            triggered: false,
            app: None,
            service: at,
        }
    }

    /// When [`Host::advance`] wants to be called.
    pub fn next(&self) -> Option<Instant> {
        let of = |c: &Connection| {
            let connect = match c.phase {
                Phase::Connecting(_, at) => Some(at),
                Phase::Connected => None,
            };
            let app = c.app.as_ref().and_then(|a| a.wake(self.now));
            [connect, app, c.vanished_at].into_iter().flatten().min()
        };
        let connections = self.connections.values().filter_map(of);
        let event = self.events.peek().map(|e| e.0.0);
        connections.chain(event).min()
    }

    /// Lets time pass: connects end, applications run, edges become events.
    pub fn advance(&mut self, now: Instant) -> Result<(), String> {
        self.now = now;
        for c in self.connections.values_mut() {
            c.hear(now);
            Self::end_connect(c, now, &self.services);
            if c.vanished_at.is_some_and(|at| at <= now) {
                c.vanished_at = None;
                c.fail(HostError::TimedOut);
            }
            if let Some(mut app) = c.app.take() {
                app.run(now, &mut Far(c, now))?;
                c.app = Some(app);
            }
            if c.wants_room && c.tx.len() * 3 <= c.tx_limit * 2 {
                c.wants_room = false;
                c.triggered = true;
            }
        }
        let over: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, c)| c.is_over())
            .map(|(&id, _)| id)
            .collect();
        for id in over {
            if let Some(Connection {
                app: Some(app),
                service,
                ..
            }) = self.connections.remove(&id)
            {
                self.finished.push((service, app));
            }
        }
        self.schedule_events();
        match self.violations.pop() {
            Some(what) => Err(format!("host: {what}")),
            None => Ok(()),
        }
    }

    fn end_connect(c: &mut Connection, now: Instant, services: &HashMap<SocketAddr, Service>) {
        let Phase::Connecting(fate, at) = c.phase else {
            return;
        };
        if now < at || c.near != Near::Open {
            return;
        }
        c.phase = Phase::Connected;
        match fate {
            Fate::Accept => {
                c.heard_at = now;
                c.app = services.get(&c.service).map(|s| (s.app)());
                c.triggered = true;
            }
            Fate::Fail(error) | Fate::FailAtOnce(error) => c.fail(error),
        }
    }

    fn schedule_events(&mut self) {
        let mut edges = Vec::new();
        for (&id, c) in &mut self.connections {
            if c.triggered && c.token.is_some() && c.near == Near::Open {
                c.triggered = false;
                edges.push(id);
            }
        }
        for (&id, d) in &mut self.datagrams {
            if std::mem::take(&mut d.triggered) {
                edges.push(id);
            }
        }
        for id in edges {
            self.schedule_event(id);
            if self.rng.chance(self.plan.spurious) {
                self.schedule_event(id);
            }
        }
    }

    fn schedule_event(&mut self, id: u32) {
        let at = self.now + self.rng.duration(Duration::ZERO, self.plan.event_delay);
        self.next_event += 1;
        self.events.push(Reverse((at, self.next_event, id)));
    }

    /// An event that is due.
    pub fn event(&mut self, now: Instant) -> Option<(Token, Readiness)> {
        while self.events.peek().is_some_and(|e| e.0.0 <= now) {
            let Reverse((_, _, id)) = self.events.pop()?;
            if let Some(c) = self.connections.get(&id) {
                // One for a socket that is closed can still come out of the same epoll_wait.
                let stale = c.near != Near::Open && !self.rng.chance(500);
                if let (Some(token), false) = (c.token, stale) {
                    return Some((token, c.readiness()));
                }
            } else if let Some(d) = self.datagrams.get(&id) {
                let readiness = Readiness {
                    readable: !d.rx.is_empty(),
                    writable: true,
                    read_closed: false,
                    error: !d.errors.is_empty(),
                };
                return Some((d.token, readiness));
            }
        }
        None
    }

    /// Whether the far kernel of an open connection to `service` has yet to acknowledge something.
    pub fn awaits_acknowledgement(&self, service: SocketAddr) -> bool {
        let mut connections = self.connections.values();
        connections.any(|c| {
            let sent = c.unacknowledged.iter().any(|&(_, n)| n > 0);
            c.service == service && c.near == Near::Open && !c.dead && sent
        })
    }

    /// A span up to that of the plan. Draws nothing where there is none.
    fn ack_delay(&mut self) -> Duration {
        match self.plan.ack_delay {
            Duration::ZERO => Duration::ZERO,
            most => self.rng.duration(Duration::ZERO, most),
        }
    }

    fn violation(&mut self, what: String) {
        if self.violations.is_empty() {
            self.violations.push(what);
        }
    }

    /// The connection of an open socket; anything else is a violation.
    fn open_connection(&mut self, socket: SocketId, call: &str) -> Option<&mut Connection> {
        let state = self.connections.get(&socket.0).map(|c| c.near);
        if state != Some(Near::Open) {
            self.violation(format!("{call} on {socket:?}, which is {state:?}"));
            return None;
        }
        self.connections.get_mut(&socket.0)
    }

    /// The core has sent `n` bytes, its end counted as one.
    fn sent(&mut self, socket: SocketId, n: usize) {
        let (now, delay) = (self.now, self.ack_delay());
        if let Some(c) = self.connections.get_mut(&socket.0) {
            c.acknowledge_after(now, delay, n);
            c.hear(now);
        }
    }

    fn forget(&mut self) {
        if !self.plan.leak {
            self.open -= 1;
        }
    }
}

impl HostSockets for Host {
    fn ask_dns(&mut self, query: DnsQuery) -> Result<(), QueueFull> {
        self.queries.push_back(query);
        Ok(())
    }

    fn tcp_connect(
        &mut self,
        token: Token,
        _: Option<u16>,
        to: SocketAddr,
        _: HeaderFields,
    ) -> Result<SocketId, HostError> {
        if self.rng.chance(self.plan.exhausted) {
            self.refused_opens.push(to);
            return Err(HostError::Exhausted);
        }
        let at = if self.services.contains_key(&to) {
            to
        } else {
            self.anywhere.unwrap_or(to)
        };
        let Some(s) = self.services.get(&at) else {
            return Err(HostError::NetUnreachable);
        };
        if let Fate::FailAtOnce(error) = s.fate {
            return Err(error);
        }
        let mut c = Self::connection(at, s, Some(token));
        c.phase = Phase::Connecting(s.fate, self.now + s.delay);
        let id = self.new_id();
        self.connections.insert(id.0, c);
        Ok(id)
    }

    fn tcp_adopt(&mut self, token: Token, socket: SocketId) -> Result<HeaderFields, HostError> {
        if let Some(c) = self.open_connection(socket, "adopt") {
            if c.token.replace(token).is_some() {
                self.violation(format!("{socket:?} adopted twice"));
            } else {
                // EPOLL_CTL_ADD tells what is ready already.
                c.triggered = true;
            }
        }
        Ok(HeaderFields::default())
    }

    fn tcp_connected(&mut self, socket: SocketId) -> Result<(), HostError> {
        let Some(c) = self.open_connection(socket, "connected") else {
            return Err(HostError::Other);
        };
        match (c.phase, c.error.take()) {
            (_, Some(error)) => Err(error),
            (Phase::Connecting(..), None) => Err(HostError::WouldBlock),
            (Phase::Connected, None) => Ok(()),
        }
    }

    fn tcp_send(&mut self, socket: SocketId, data: &[u8]) -> Result<usize, HostError> {
        let Some(c) = self.open_connection(socket, "send") else {
            return Err(HostError::Other);
        };
        if c.tx_end {
            self.violation(format!("send on {socket:?} after shutdown"));
            return Err(HostError::Reset);
        }
        if let Some(error) = c.error.take() {
            return Err(error);
        }
        if c.dead {
            return Err(HostError::Reset);
        }
        if c.phase != Phase::Connected {
            c.wants_room = true;
            return Err(HostError::WouldBlock);
        }
        let n = data.len().min(c.tx_limit.saturating_sub(c.tx.len()));
        c.tx.extend(&data[..n]);
        c.wants_room |= n < data.len();
        if n == 0 {
            return Err(HostError::WouldBlock);
        }
        self.sent(socket, n);
        Ok(n)
    }

    fn tcp_unacknowledged(&mut self, socket: SocketId) -> usize {
        let connection = self.connections.get(&socket.0).filter(|c| !c.dead);
        connection.map_or(0, |c| c.unacknowledged.iter().map(|&(_, n)| n).sum())
    }

    fn tcp_probe(&mut self, socket: SocketId) {
        self.sent(socket, 0);
    }

    fn tcp_silence(&mut self, socket: SocketId) -> Duration {
        let connection = self.connections.get(&socket.0);
        connection.map_or(Duration::ZERO, |c| self.now.saturating_since(c.heard_at))
    }

    fn tcp_peek(
        &mut self,
        socket: SocketId,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<usize, HostError> {
        let Some(c) = self.open_connection(socket, "peek") else {
            return Err(HostError::Other);
        };
        if offset > c.rx.len() || buf.is_empty() {
            let what = format!(
                "peek of {} at {offset} of {} received on {socket:?}",
                buf.len(),
                c.rx.len()
            );
            self.violation(what);
            return Err(HostError::Other);
        }
        let n = buf.len().min(c.rx.len() - offset);
        if n == 0 {
            if let Some(error) = c.error.take() {
                return Err(error);
            }
            return if c.rx_end || c.dead {
                Ok(0)
            } else {
                Err(HostError::WouldBlock)
            };
        }
        let (front, back) = c.rx.as_slices();
        let from_front = front.len().saturating_sub(offset).min(n);
        if from_front > 0 {
            buf[..from_front].copy_from_slice(&front[offset..offset + from_front]);
        }
        let in_back = (offset + from_front).saturating_sub(front.len());
        buf[from_front..n].copy_from_slice(&back[in_back..in_back + n - from_front]);
        c.peeked = c.peeked.max(offset + n);
        Ok(n)
    }

    fn tcp_discard(&mut self, socket: SocketId, n: usize) -> Result<(), HostError> {
        let Some(c) = self.open_connection(socket, "discard") else {
            return Err(HostError::Other);
        };
        if n > c.peeked {
            let what = format!("discard of {n}, {} peeked, on {socket:?}", c.peeked);
            self.violation(what);
            return Err(HostError::Other);
        }
        c.peeked -= n;
        c.rx.drain(..n);
        Ok(())
    }

    fn tcp_shutdown(&mut self, socket: SocketId) {
        if let Some(c) = self.open_connection(socket, "shutdown") {
            c.tx_end = true;
            self.sent(socket, 1);
        }
    }

    fn tcp_reset(&mut self, socket: SocketId) {
        if let Some(c) = self.open_connection(socket, "reset") {
            c.near = Near::Reset;
            c.tx.clear();
            self.forget();
        }
    }

    fn datagram_open(
        &mut self,
        token: Token,
        kind: DatagramKind,
        container: SocketAddr,
    ) -> Result<SocketId, HostError> {
        self.open_datagram(token, kind, container.ip())
    }

    fn datagram_send(
        &mut self,
        socket: SocketId,
        options: SendOptions,
        payload: &[u8],
    ) -> Result<(), HostError> {
        self.send_datagram(socket, options, payload)
    }

    fn datagram_receive(
        &mut self,
        socket: SocketId,
        buf: &mut [u8],
    ) -> Result<Received, HostError> {
        self.receive_datagram(socket, buf)
    }

    fn datagram_error(
        &mut self,
        socket: SocketId,
        quote: &mut [u8],
    ) -> Result<DatagramError, HostError> {
        self.receive_error(socket, quote)
    }

    fn close(&mut self, socket: SocketId) {
        if self.datagrams.remove(&socket.0).is_some() {
            self.forget();
            return;
        }
        if let Some(c) = self.open_connection(socket, "close") {
            let unread = !c.rx.is_empty();
            if unread || c.dead || c.phase != Phase::Connected {
                c.near = Near::Reset;
                c.tx.clear();
            } else {
                c.near = Near::Closed;
                c.tx_end = true;
            }
            self.forget();
        }
    }
}
