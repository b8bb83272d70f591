//! DNS over TCP (RFC 7766): connections to port 53, on smoltcp.
//!
//! # Theory of operation
//!
//! The stack sees IP packets only; [`DnsTcp`] remembers for each connection
//! which port and MAC address its SYN came from, and sends there. A socket is made for each SYN
//! that opens a connection and dropped with the connection, so that at rest there are none.
//! Queries on one connection are passed on as they come (pipelining), and their answers go back
//! in whatever order they arrive.
//!
//! A connection ends by a FIN once the client has closed its side and has all its answers, or was
//! quiet for [`IDLE`] between queries; and by a RST when it is quiet in the middle of one: before
//! the handshake is done, with a query cut short (CVE-2026-35406, CVE-2024-8418), with an answer
//! it does not read. An answer that does not come within [`ANSWER_WAIT`] ends it likewise.
//!
//! # Limits
//!
//! [`MAX_CONNECTIONS`] in all; one more takes the place of one that waits for nothing, of
//! the port that has most. [`MAX_PIPELINE`] unanswered queries a connection, and no more are read
//! while [`MAX_BACKLOG`] bytes of answers wait. A message may have 65,535 bytes; its memory grows
//! with what has come of it.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};

use cnet_wire::dns;
use cnet_wire::headers::Link;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropReason, PortId};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr, TcpPacket};

use super::addresses::is_station;
use super::counters::DnsTcpCounters;
use super::dns::PORT;
use super::emit::Emitter;
use super::queries::{ConnectionId, Queries, WayBack};
use super::{Endpoint, GatewayConfig, Packet};
use crate::io::{Env, Io};
use stack::{Device, Ends, packet, stack_instant};

mod stack;

/// Connections of all ports.
const MAX_CONNECTIONS: usize = 16;
/// Queries of one connection that may wait for their answers.
const MAX_PIPELINE: u32 = 16;
/// Bytes of answers that may wait for the client before its next query is read.
const MAX_BACKLOG: usize = 65_536;
/// Bytes a socket buffers, each way.
const BUFFER_LEN: usize = 4096;
/// How long a connection may be quiet (RFC 7766 section 6.2.3: "on the order of a few seconds").
const IDLE: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// Bounds the rounds of sending in one call; what is left is sent in the next.
const MAX_ROUNDS: usize = 32;
/// The least time to the next call, which keeps a stack that wants one at once from spinning.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// A segment for port 53 of a DNS address, its checksum verified or to be trusted.
struct Segment<'a> {
    link: Link,
    client: SocketAddr,
    server: IpAddr,
    l4: &'a [u8],
}

struct Connection {
    id: ConnectionId,
    handle: SocketHandle,
    link: Link,
    client: SocketAddr,
    server: IpAddr,
    /// What has come of the next query, length prefix included.
    partial: Vec<u8>,
    /// Answers with their length prefixes; sent up to `sent`.
    answers: Vec<u8>,
    sent: usize,
    /// Queries without an answer yet.
    outstanding: u32,
    /// The last sign of life: bytes in, bytes out, or an answer for it.
    active: Instant,
    /// We have sent a FIN, or decided to.
    closing: bool,
}

impl Connection {
    fn deadline(&self) -> Instant {
        let wait = if self.outstanding > 0 && self.backlog() == 0 {
            ANSWER_WAIT
        } else {
            IDLE
        };
        self.active + wait
    }

    fn backlog(&self) -> usize {
        self.answers.len() - self.sent
    }

    /// Nothing asked, nothing to be told.
    fn at_rest(&self) -> bool {
        self.partial.is_empty() && self.backlog() == 0 && self.outstanding == 0
    }
}

/// The server side of DNS over TCP.
pub(super) struct DnsTcp {
    iface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    next_id: u64,
    mtu: usize,
    timeout: Option<Instant>,
    pub(super) counters: DnsTcpCounters,
}

impl DnsTcp {
    pub(super) fn new(cfg: &GatewayConfig, seed: u64, now: Instant) -> DnsTcp {
        // smoltcp subtracts header lengths from the MTU without a check.
        let mtu = usize::from(cfg.mtu).max(576);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut device = Device {
            incoming: None,
            outgoing: Vec::new(),
            mtu,
        };
        let mut iface = Interface::new(config, &mut device, stack_instant(now));
        // The prefix of length 0 makes every client directly reachable. Each family has one
        // address, which is smoltcp's limit of two.
        iface.update_ip_addrs(|addrs| {
            let v4 = cfg.v4.and_then(|v4| v4.dns).map(IpAddr::V4);
            let v6 = cfg.v6.and_then(|v6| v6.dns).map(IpAddr::V6);
            for a in v4.into_iter().chain(v6).filter(|&a| is_station(a)) {
                // Full only if the limit were one.
                let _ = addrs.push(IpCidr::new(a.into(), 0));
            }
        });
        DnsTcp {
            iface,
            sockets: SocketSet::new(Vec::new()),
            connections: Vec::new(),
            next_id: 0,
            mtu,
            timeout: None,
            counters: DnsTcpCounters::default(),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timeout
    }

    pub(super) fn remove_port(&mut self, port: PortId) {
        let sockets = &mut self.sockets;
        self.connections.retain(|c| {
            let keep = c.link.port != port;
            if !keep {
                sockets.remove(c.handle);
            }
            keep
        });
    }

    /// Takes in the segment in `packet`.
    pub(super) fn handle_packet(
        &mut self,
        packet: &Packet<'_>,
        endpoint: &Endpoint,
        queries: &mut Queries,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let Packet { frame, ip, .. } = packet;
        let l4 = frame.l4(ip);
        let ports = frame.ports(ip).ok_or(DropReason::BadTcpHeader)?;
        if ports.contains(&0) {
            return Err(DropReason::PortZero);
        }
        if ports[1] != PORT || !endpoint.addresses.is_dns(ip.dst) {
            return Err(DropReason::NotServed);
        }
        if !is_station(ip.src) {
            return Err(DropReason::MartianSource);
        }
        let segment = Segment {
            link: endpoint.emitter.link(packet.ingress, frame.src),
            client: SocketAddr::new(ip.src, ports[0]),
            server: ip.dst,
            l4,
        };
        self.handle_segment(packet.now, &segment, &endpoint.emitter, queries, io)
    }

    fn handle_segment(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        emitter: &Emitter,
        queries: &mut Queries,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let tcp = TcpPacket::new_checked(segment.l4).map_err(|_| DropReason::BadTcpHeader)?;
        let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
        let known = self
            .connections
            .iter()
            .position(|c| c.client == segment.client && c.server == segment.server);
        if let Some(c) = known.and_then(|i| self.connections.get(i))
            && c.link.port != segment.link.port
        {
            return Err(DropReason::Spoofed);
        }
        if opens {
            let ended = |s: State| matches!(s, State::TimeWait | State::Closed);
            match known {
                // The client's port is used again.
                Some(i) if ended(self.state(i)) => {
                    self.remove(i);
                    self.listen(now, segment)?;
                }
                Some(_) => {}
                None => self.listen(now, segment)?,
            }
        }
        let packet = packet(segment);
        let incoming = Some((&packet[..], segment.link));
        self.run(now, incoming, emitter, queries, io);
        Ok(())
    }

    /// Acts on deadlines, retransmits, and sends answers that were queued.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        emitter: &Emitter,
        queries: &mut Queries,
        io: &mut Io<'_, impl Env>,
    ) {
        self.run(now, None, emitter, queries, io);
    }

    /// Puts an answer on its way; false if the connection is gone.
    pub(super) fn queue_answer(&mut self, now: Instant, id: ConnectionId, message: &[u8]) -> bool {
        let Some(c) = self.connections.iter_mut().find(|c| c.id == id) else {
            return false;
        };
        c.outstanding = c.outstanding.saturating_sub(1);
        c.active = now;
        let fits = dns::put_with_length(&mut c.answers, message);
        self.counters.answers += u64::from(fits);
        fits
    }

    fn state(&self, i: usize) -> State {
        match self.connections.get(i) {
            Some(c) => self.sockets.get::<Socket>(c.handle).state(),
            None => State::Closed,
        }
    }

    fn remove(&mut self, i: usize) {
        let c = self.connections.swap_remove(i);
        self.sockets.remove(c.handle);
    }

    /// Makes a socket for the connection that `segment` opens.
    fn listen(&mut self, now: Instant, segment: &Segment<'_>) -> Result<(), DropReason> {
        if self.connections.len() >= MAX_CONNECTIONS {
            let i = self.victim(segment.link.port).ok_or(DropReason::Quota)?;
            // Its client learns of it when it next speaks.
            self.remove(i);
            self.counters.aborts += 1;
        }
        let buffer = || SocketBuffer::new(vec![0; BUFFER_LEN]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        // Fails for port 0 and open sockets only.
        socket.listen(PORT).map_err(|_| DropReason::NotServed)?;
        let handle = self.sockets.add(socket);
        self.connections.push(Connection {
            id: ConnectionId(self.next_id),
            handle,
            link: segment.link,
            client: segment.client,
            server: segment.server,
            partial: Vec::new(),
            answers: Vec::new(),
            sent: 0,
            outstanding: 0,
            active: now,
            closing: false,
        });
        self.next_id += 1;
        Ok(())
    }

    /// The connection that makes room for one from `port`: of those at rest or not yet open, or of
    /// a port that has at least two more than `port`, the longest quiet of the port with most.
    fn victim(&self, port: PortId) -> Option<usize> {
        let count = |p: PortId| self.connections.iter().filter(|c| c.link.port == p).count();
        let own = count(port);
        self.connections
            .iter()
            .enumerate()
            .filter(|(_, c)| c.at_rest() || count(c.link.port) > own + 1)
            .max_by_key(|(i, c)| {
                let half_open = self.state(*i) == State::SynReceived;
                let busy = !c.at_rest();
                (count(c.link.port), half_open, !busy, Reverse(c.active))
            })
            .map(|(i, _)| i)
    }

    /// Lets the stack and the connections work until neither has anything to do.
    fn run(
        &mut self,
        now: Instant,
        incoming: Option<(&[u8], Link)>,
        emitter: &Emitter,
        queries: &mut Queries,
        io: &mut Io<'_, impl Env>,
    ) {
        let stack_now = stack_instant(now);
        let mut device = Device {
            incoming: incoming.map(|(packet, _)| packet),
            outgoing: Vec::new(),
            mtu: self.mtu,
        };
        self.iface
            .poll_ingress_single(stack_now, &mut device, &mut self.sockets);
        for _ in 0..MAX_ROUNDS {
            for c in &mut self.connections {
                let socket = self.sockets.get_mut::<Socket>(c.handle);
                serve(now, c, socket, queries, &mut self.counters);
            }
            let before = device.outgoing.len();
            self.iface
                .poll_egress(stack_now, &mut device, &mut self.sockets);
            if device.outgoing.len() == before {
                break;
            }
        }
        for packet in device.outgoing {
            let from = incoming.map(|(_, link)| link);
            if let Some((link, ethertype)) = self.way(&packet, from) {
                // A full port loses a segment; TCP repeats it.
                let _ = emitter.ip_packet(io, &link, ethertype, &packet);
            }
        }
        for i in (0..self.connections.len()).rev() {
            // A socket that still listens got a SYN it did not like.
            if matches!(
                self.state(i),
                State::Closed | State::Listen | State::TimeWait
            ) {
                self.remove(i);
            }
        }
        self.timeout = self.next_timeout(now);
    }

    /// Where the stack's `packet` goes: to its connection's client, or, if it has none, back where
    /// the packet it answers came from.
    fn way(&self, packet: &[u8], from: Option<Link>) -> Option<(Link, u16)> {
        let Ends {
            server,
            client,
            ethertype,
        } = Ends::of(packet)?;
        let known = self
            .connections
            .iter()
            .find(|c| c.client == client && c.server == server);
        Some((known.map(|c| c.link).or(from)?, ethertype))
    }

    fn next_timeout(&mut self, now: Instant) -> Option<Instant> {
        if self.connections.is_empty() {
            return None;
        }
        let stack = self.iface.poll_at(stack_instant(now), &self.sockets);
        let stack = stack.map(|t| {
            let micros = u64::try_from(t.total_micros()).unwrap_or(0);
            Instant::from_nanos(micros.saturating_mul(1000))
        });
        let deadlines = self.connections.iter().map(Connection::deadline);
        let next = deadlines.chain(stack).min()?;
        Some(next.max(now + MIN_WAIT))
    }
}

/// Moves queries in and answers out of one connection, and ends it when its time has come.
fn serve(
    now: Instant,
    c: &mut Connection,
    socket: &mut Socket<'static>,
    queries: &mut Queries,
    counters: &mut DnsTcpCounters,
) {
    if matches!(
        socket.state(),
        State::Listen | State::Closed | State::TimeWait
    ) {
        return;
    }
    if read_queries(now, c, socket, queries, counters).is_err() {
        socket.abort();
        counters.aborts += 1;
        return;
    }
    if c.backlog() > 0 && socket.can_send() {
        let sent = socket.send_slice(&c.answers[c.sent..]).unwrap_or(0);
        c.sent += sent;
        if sent > 0 {
            c.active = now;
        }
        if c.backlog() == 0 {
            c.answers = Vec::new();
            c.sent = 0;
        }
    }
    let expired = now >= c.deadline();
    // The client will ask no more: what it has begun to ask is void.
    let finished = socket.state() == State::CloseWait && socket.recv_queue() == 0;
    if !c.closing
        && c.backlog() == 0
        && c.outstanding == 0
        && (finished || (expired && c.at_rest() && socket.state() == State::Established))
    {
        c.closing = true;
        c.active = now;
        socket.close();
    } else if expired {
        socket.abort();
        counters.aborts += 1;
    }
}

/// Reads as many queries as may be outstanding. An error is a message that is none.
fn read_queries(
    now: Instant,
    c: &mut Connection,
    socket: &mut Socket<'static>,
    queries: &mut Queries,
    counters: &mut DnsTcpCounters,
) -> Result<(), DropReason> {
    while socket.can_recv() && c.outstanding < MAX_PIPELINE && c.backlog() < MAX_BACKLOG {
        let missing = dns::missing(&c.partial);
        let partial = &mut c.partial;
        let taken = socket.recv(|data| {
            let n = missing.min(data.len());
            partial.extend(&data[..n]);
            (n, n)
        });
        // The other side's end of stream, or nothing yet.
        if !matches!(taken, Ok(1..)) {
            return Ok(());
        }
        c.active = now;
        if let Some(body) = dns::whole(&c.partial) {
            if !dns::is_query(body) {
                return Err(DropReason::BadDns);
            }
            let back = WayBack::Tcp(c.id);
            queries.push(c.client, c.link.port, body.to_vec(), back)?;
            counters.queries += 1;
            c.outstanding += 1;
            c.partial = Vec::new();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
