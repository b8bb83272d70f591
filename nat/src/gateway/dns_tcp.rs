//! DNS over TCP (RFC 7766): connections to port 53, on smoltcp.
//!
//! # Theory of operation
//!
//! The stack sees IP packets only; [`DnsTcp`] remembers for each connection
//! which port and MAC address its SYN came from, and sends there. A socket is made for each SYN
//! that opens a connection and dropped with the connection, so that at rest there are none.
//! smoltcp looks at every socket of a set for each packet, so each connection has a set of its own:
//! a packet costs the same whether one connection is open or a thousand.
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
//! [`MAX_CONNECTIONS`] in all; one more takes the place of one of the port that has most: of the
//! oldest [`MAX_LOOKS`] of that port one that waits for nothing, or else the oldest. A newcomer of a
//! port that has as many as any other takes the place of one of its own.
//! [`MAX_PIPELINE`] unanswered queries a connection, and no more are read
//! while [`MAX_BACKLOG`] bytes of answers wait. A message may have 65,535 bytes; its memory grows
//! with what has come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use cnet_wire::addr::is_station;
use cnet_wire::frame::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use cnet_wire::headers::Link;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropReason, PortId};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp::State;
use smoltcp::wire::{HardwareAddress, IpCidr, TcpPacket};

use super::counters::DnsTcpCounters;
use super::dns::PORT;
use super::emit::Emitter;
use super::queries::{ConnectionId, Queries};
use super::{Endpoint, GatewayConfig, Packet};
use crate::in_hand::with_in_hand;
use crate::io::{Env, Io};
use connection::Connection;
use stack::{Device, packet, stack_instant};

mod connection;
mod stack;

/// Connections of all ports. Each has [`connection::RECEIVE_LEN`] and [`connection::SEND_LEN`]
/// bytes of buffers, 10 MiB together.
const MAX_CONNECTIONS: usize = 2048;
/// Connections of a port that are looked at for one that waits for nothing.
const MAX_LOOKS: usize = 64;
/// Queries of one connection that may wait for their answers.
const MAX_PIPELINE: u32 = 16;
/// Bytes of answers that may wait for the client before its next query is read.
const MAX_BACKLOG: usize = 65_536;
/// How long a connection may be quiet (RFC 7766 section 6.2.3: "on the order of a few seconds").
const IDLE: Duration = Duration::from_secs(5);
/// How long an answer may take: longer than the host's `resolv.conf` can have its resolver wait,
/// five attempts of 30 seconds (resolv.conf(5)).
const ANSWER_WAIT: Duration = Duration::from_secs(160);
/// Bounds the rounds of sending in one call; what is left is sent in the next.
const MAX_ROUNDS: usize = 32;
/// Connections whose deadlines are acted on in one call.
const MAX_DEADLINES: usize = 256;
/// The least time to the next call, which keeps a stack that wants one at once from spinning.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// A segment for port 53 of a DNS address, its checksum verified or to be trusted.
struct Segment<'a> {
    link: Link,
    ends: Ends,
    l4: &'a [u8],
}

/// The two ends of a connection; the server's port is [`PORT`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Ends {
    client: SocketAddr,
    server: IpAddr,
}

/// The server side of DNS over TCP.
pub(super) struct DnsTcp {
    iface: Interface,
    /// For segments of no connection.
    no_sockets: SocketSet<'static>,
    connections: BTreeMap<ConnectionId, Connection>,
    by_ends: BTreeMap<Ends, ConnectionId>,
    /// The connections of each port that has any, the oldest first: ids only rise.
    by_port: BTreeMap<PortId, BTreeSet<ConnectionId>>,
    /// When each connection is to be looked at.
    timeouts: BTreeSet<(Instant, ConnectionId)>,
    next_id: u64,
    mtu: usize,
    pub(super) counters: DnsTcpCounters,
    /// The connection that was in hand when a call panicked.
    torn: Option<ConnectionId>,
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
            no_sockets: SocketSet::new(Vec::new()),
            connections: BTreeMap::new(),
            by_ends: BTreeMap::new(),
            by_port: BTreeMap::new(),
            timeouts: BTreeSet::new(),
            next_id: 0,
            mtu,
            counters: DnsTcpCounters::default(),
            torn: None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timeouts.first().map(|(at, _)| *at)
    }

    pub(super) fn remove_port(&mut self, port: PortId) {
        let ids = self.by_port.get(&port).cloned();
        for id in ids.into_iter().flatten() {
            self.remove(id);
        }
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
        if ports[0] == 0 {
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
            ends: Ends {
                client: SocketAddr::new(ip.src, ports[0]),
                server: ip.dst,
            },
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
        let mut known = self.by_ends.get(&segment.ends).copied();
        if let Some(c) = known.and_then(|id| self.connections.get(&id)) {
            if c.link.port != segment.link.port {
                return Err(DropReason::Spoofed);
            }
            // The client's port is used again.
            if opens && matches!(c.state(), State::TimeWait | State::Closed) {
                let ended = c.id;
                self.remove(ended);
                known = None;
            }
        }
        if opens && known.is_none() {
            known = Some(self.listen(now, segment)?);
        }
        let packet = packet(segment);
        match known {
            Some(id) => self.run(now, id, Some(&packet), emitter, queries, io),
            None => self.refuse(now, segment, &packet, emitter, io),
        }
        Ok(())
    }

    /// Acts on deadlines, and retransmits.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        emitter: &Emitter,
        queries: &mut Queries,
        io: &mut Io<'_, impl Env>,
    ) {
        let due = self.timeouts.range(..=(now, ConnectionId(u64::MAX)));
        let due: Vec<ConnectionId> = due.take(MAX_DEADLINES).map(|(_, id)| *id).collect();
        for id in due {
            self.run(now, id, None, emitter, queries, io);
        }
    }

    /// Sends an answer on its connection, if that is there still.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        (id, message): (ConnectionId, &[u8]),
        emitter: &Emitter,
        queries: &mut Queries,
        io: &mut Io<'_, impl Env>,
    ) {
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        self.counters.answers += u64::from(c.queue_answer(now, message));
        self.run(now, id, None, emitter, queries, io);
    }

    fn remove(&mut self, id: ConnectionId) {
        let Some(c) = self.connections.remove(&id) else {
            return;
        };
        self.by_ends.remove(&c.ends);
        self.timeouts.remove(&(c.timeout, id));
        if let Some(ids) = self.by_port.get_mut(&c.link.port) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_port.remove(&c.link.port);
            }
        }
    }

    /// Makes a socket for the connection that `segment` opens.
    fn listen(&mut self, now: Instant, segment: &Segment<'_>) -> Result<ConnectionId, DropReason> {
        if self.connections.len() >= MAX_CONNECTIONS {
            let victim = self.victim(segment.link.port).ok_or(DropReason::Quota)?;
            // Its client learns of it when it next speaks.
            self.remove(victim);
            self.counters.aborts += 1;
        }
        let id = ConnectionId(self.next_id);
        let c = Connection::listen(id, segment.link, segment.ends, now)?;
        self.next_id += 1;
        self.by_ends.insert(segment.ends, id);
        self.by_port.entry(c.link.port).or_default().insert(id);
        self.timeouts.insert((c.timeout, id));
        self.connections.insert(id, c);
        Ok(id)
    }

    /// The connection that makes room for one from `newcomer`.
    fn victim(&self, newcomer: PortId) -> Option<ConnectionId> {
        let own = self.by_port.get(&newcomer);
        let most = self.by_port.values().max_by_key(|ids| ids.len())?;
        let ids = own.filter(|own| own.len() >= most.len()).unwrap_or(most);
        let oldest = || ids.iter().take(MAX_LOOKS).copied();
        let is = |id: &ConnectionId, what: fn(&Connection) -> bool| {
            self.connections.get(id).is_some_and(what)
        };
        oldest()
            .find(|id| is(id, Connection::is_half_open))
            .or_else(|| oldest().find(|id| is(id, Connection::at_rest)))
            .or_else(|| oldest().next())
    }

    /// Lets the stack and a connection work until neither has anything to do.
    fn run(
        &mut self,
        now: Instant,
        id: ConnectionId,
        incoming: Option<&[u8]>,
        emitter: &Emitter,
        queries: &mut Queries,
        io: &mut Io<'_, impl Env>,
    ) {
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        let stack_now = stack_instant(now);
        let mut device = Device {
            incoming,
            outgoing: Vec::new(),
            mtu: self.mtu,
        };
        with_in_hand(&mut self.torn, id, || {
            self.iface
                .poll_ingress_single(stack_now, &mut device, &mut c.sockets);
            for _ in 0..MAX_ROUNDS {
                c.serve(now, queries, &mut self.counters, io.hosts);
                let before = device.outgoing.len();
                self.iface
                    .poll_egress(stack_now, &mut device, &mut c.sockets);
                if device.outgoing.len() == before {
                    break;
                }
            }
        });
        // A socket that still listens got a SYN it did not like.
        let ended = matches!(c.state(), State::Closed | State::Listen | State::TimeWait);
        if !ended {
            let stack = self.iface.poll_at(stack_now, &c.sockets).map(|at| {
                let micros = u64::try_from(at.total_micros()).unwrap_or(0);
                Instant::from_nanos(micros.saturating_mul(1000))
            });
            let next = stack.into_iter().chain([c.deadline()]).min();
            let next = next.unwrap_or(now).max(now + MIN_WAIT);
            if next != c.timeout {
                self.timeouts.remove(&(c.timeout, id));
                self.timeouts.insert((next, id));
                c.timeout = next;
            }
        }
        let (link, ends) = (c.link, c.ends);
        if ended {
            self.remove(id);
        }
        send(&device.outgoing, &link, &ends, emitter, io);
    }

    /// A call has panicked: forgets the connection it was about. Its client learns of it when it next
    /// speaks.
    pub(super) fn recover(&mut self) {
        if let Some(torn) = self.torn.take() {
            self.remove(torn);
        }
    }

    /// Has the stack answer a segment of no connection, which it does with a RST.
    fn refuse(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        packet: &[u8],
        emitter: &Emitter,
        io: &mut Io<'_, impl Env>,
    ) {
        let mut device = Device {
            incoming: Some(packet),
            outgoing: Vec::new(),
            mtu: self.mtu,
        };
        let stack_now = stack_instant(now);
        self.iface
            .poll_ingress_single(stack_now, &mut device, &mut self.no_sockets);
        send(&device.outgoing, &segment.link, &segment.ends, emitter, io);
    }
}

/// Sends the stack's packets to the client.
fn send(
    packets: &[Vec<u8>],
    link: &Link,
    ends: &Ends,
    emitter: &Emitter,
    io: &mut Io<'_, impl Env>,
) {
    let ethertype = match ends.client {
        SocketAddr::V4(_) => ETHERTYPE_IPV4,
        SocketAddr::V6(_) => ETHERTYPE_IPV6,
    };
    for packet in packets {
        // A full port loses a segment; TCP repeats it.
        let _ = emitter.ip_packet(io, link, ethertype, packet);
    }
}

#[cfg(test)]
mod tests;
