//! DNS queries to port 53 of the DNS addresses, over UDP and (in [`super::dns_tcp`]) TCP.
//!
//! Every query gets a number under which its answer comes back. What must be remembered to send
//! the answer is kept for the last [`MAX_PENDING`] queries of each port, so that a port that
//! floods us only loses answers of its own, and answers that never come need no timer.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::io::{Env, Io};
use cnet_wire::dns::{is_query, truncate, udp_size};
use cnet_wire::time::Instant;
use cnet_wire::vnet::GSO_UDP_L4;
use cnet_wire::{DropReason, Frame, IpHeader, PortId};

use super::dns_tcp::{ConnectionId, DnsTcp, Segment};
use super::output::{Output, UDP_HEADER_LEN};
use super::{Gateway, GatewayCounters, is_station};
use cnet_wire::headers::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, Link};

/// The DNS port.
pub(super) const PORT: u16 = 53;
/// Queries of one port that may wait for their answer.
const MAX_PENDING: usize = 1024;
/// Queries of all ports that may wait to be taken.
const MAX_QUEUED: usize = 1024;

/// Names a query until it is answered. Numbers are not used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct QueryId(pub u64);

/// How a query came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

/// A query to be resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsQuery {
    /// For [`Gateway::answer`].
    pub id: QueryId,
    /// How it came.
    pub transport: Transport,
    /// Who asks.
    pub client: SocketAddr,
    /// Where it came from.
    pub port: PortId,
    /// The message, at least a DNS header with QR clear; nothing else of it is checked.
    pub message: Vec<u8>,
}

/// The way back of an answer.
enum Pending {
    Udp {
        link: Link,
        server: IpAddr,
        client: SocketAddr,
        /// Longest answer, in bytes.
        limit: usize,
    },
    Tcp(ConnectionId),
}

/// Queries on their way.
#[derive(Default)]
pub(super) struct Queries {
    next: u64,
    queue: VecDeque<DnsQuery>,
    pending: BTreeMap<QueryId, Pending>,
    /// The last queries of each port, the oldest first, answered ones included.
    recent: BTreeMap<PortId, VecDeque<QueryId>>,
}

impl Queries {
    fn push(
        &mut self,
        transport: Transport,
        client: SocketAddr,
        port: PortId,
        message: Vec<u8>,
        back: Pending,
    ) -> Result<(), DropReason> {
        if self.queue.len() >= MAX_QUEUED {
            return Err(DropReason::RateLimit);
        }
        let id = QueryId(self.next);
        self.next += 1;
        let recent = self.recent.entry(port).or_default();
        if recent.len() >= MAX_PENDING
            && let Some(oldest) = recent.pop_front()
        {
            self.pending.remove(&oldest);
        }
        recent.push_back(id);
        self.pending.insert(id, back);
        self.queue.push_back(DnsQuery {
            id,
            transport,
            client,
            port,
            message,
        });
        Ok(())
    }

    /// Takes in a query from a connection.
    pub(super) fn push_tcp(
        &mut self,
        connection: ConnectionId,
        client: SocketAddr,
        port: PortId,
        message: Vec<u8>,
    ) -> Result<(), DropReason> {
        let back = Pending::Tcp(connection);
        self.push(Transport::Tcp, client, port, message, back)
    }

    fn remove_port(&mut self, port: PortId) {
        for id in self.recent.remove(&port).into_iter().flatten() {
            self.pending.remove(&id);
        }
        self.queue.retain(|q| q.port != port);
    }
}

/// The DNS side of the gateway.
pub(super) struct Dns {
    queries: Queries,
    tcp: DnsTcp,
    mtu: usize,
}

impl Dns {
    pub(super) fn new(
        addresses: (Option<Ipv4Addr>, Option<Ipv6Addr>),
        mtu: usize,
        seed: u64,
        now: Instant,
    ) -> Dns {
        Dns {
            queries: Queries::default(),
            tcp: DnsTcp::new(addresses, mtu, seed, now),
            mtu,
        }
    }

    pub(super) fn take_query(&mut self) -> Option<DnsQuery> {
        self.queries.queue.pop_front()
    }

    #[cfg(test)]
    pub(super) fn tcp(&self) -> &DnsTcp {
        &self.tcp
    }

    #[cfg(test)]
    pub(super) fn queries_queued(&self) -> usize {
        self.queries.queue.len()
    }

    pub(super) fn remove_port(&mut self, port: PortId) {
        self.queries.remove_port(port);
        self.tcp.remove_port(port);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.tcp.poll_timeout()
    }

    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        out: &mut Output,
        counters: &mut GatewayCounters,
        io: &mut Io<'_, impl Env>,
    ) {
        self.tcp
            .handle_timeout(now, &mut self.queries, out, counters, io);
    }

    pub(super) fn answer(
        &mut self,
        now: Instant,
        id: QueryId,
        message: &[u8],
        out: &mut Output,
        counters: &mut GatewayCounters,
        io: &mut Io<'_, impl Env>,
    ) {
        match self.queries.pending.remove(&id) {
            None => {}
            Some(Pending::Tcp(connection)) => {
                let queries = &mut self.queries;
                if self.tcp.queue_answer(now, connection, message) {
                    counters.dns_answers += 1;
                    self.tcp.handle_timeout(now, queries, out, counters, io);
                }
            }
            Some(Pending::Udp {
                link,
                server,
                client,
                limit,
            }) => {
                let short = if message.len() > limit {
                    counters.dns_truncated += 1;
                    truncate(message, limit)
                } else {
                    None
                };
                let message = short.as_deref().unwrap_or(message);
                // An answer that is too long and cannot be cut is none.
                if message.len() <= limit {
                    let server = SocketAddr::new(server, PORT);
                    // A full port loses the answer as it would lose any frame.
                    if out.udp(io.sink, &link, server, client, message).is_ok() {
                        counters.dns_answers += 1;
                    }
                }
            }
        }
    }
}

impl Gateway {
    pub(super) fn handle_dns_udp(
        &mut self,
        port: PortId,
        frame: &Frame<'_>,
        ip: &IpHeader,
        source: u16,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        if !self.is_dns(ip.dst) {
            return Err(DropReason::NotServed);
        }
        if !is_station(ip.src) {
            return Err(DropReason::MartianSource);
        }
        let header = UDP_HEADER_LEN
            + if ip.src.is_ipv6() {
                IPV6_HEADER_LEN
            } else {
                IPV4_HEADER_LEN
            };
        let room = self.dns.mtu.saturating_sub(header);
        // A super-frame is several queries of one size.
        let size = match frame.vnet.gso() {
            GSO_UDP_L4 => usize::from(frame.vnet.gso_size).max(1),
            _ => payload.len().max(1),
        };
        if payload.is_empty() || !payload.chunks(size).all(is_query) {
            return Err(DropReason::BadDns);
        }
        let client = SocketAddr::new(ip.src, source);
        for query in payload.chunks(size) {
            let back = Pending::Udp {
                link: self.out.link(port, frame.src),
                server: ip.dst,
                client,
                limit: udp_size(query).min(room),
            };
            let queries = &mut self.dns.queries;
            queries.push(Transport::Udp, client, port, query.to_vec(), back)?;
            self.counters.dns_udp_queries += 1;
        }
        Ok(())
    }

    pub(super) fn handle_tcp(
        &mut self,
        now: Instant,
        port: PortId,
        frame: &Frame<'_>,
        ip: &IpHeader,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let l4 = frame.l4(ip);
        let Some((&[s0, s1, d0, d1], _)) = l4.split_first_chunk::<4>() else {
            return Err(DropReason::BadTcpHeader);
        };
        let ports = [u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])];
        if ports.contains(&0) {
            return Err(DropReason::PortZero);
        }
        if ports[1] != PORT || !self.is_dns(ip.dst) {
            return Err(DropReason::NotServed);
        }
        if !is_station(ip.src) {
            return Err(DropReason::MartianSource);
        }
        let segment = Segment {
            link: self.out.link(port, frame.src),
            client: SocketAddr::new(ip.src, ports[0]),
            server: ip.dst,
            l4,
        };
        let Dns { queries, tcp, .. } = &mut self.dns;
        let (out, counters) = (&mut self.out, &mut self.counters);
        tcp.handle_segment(now, &segment, queries, out, counters, io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::testing::*;
    use cnet_wire::MacAddr;

    const QUESTION: &[u8] = b"\x07example\x03org\x00\x00\x01\x00\x01";

    fn query(id: u16, edns: Option<u16>) -> Vec<u8> {
        let mut m = id.to_be_bytes().to_vec();
        m.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())]);
        m.extend(QUESTION);
        if let Some(size) = edns {
            m.extend([0, 0, 41]);
            m.extend(size.to_be_bytes());
            m.extend([0; 6]);
        }
        m
    }

    fn answer(id: u16, len: usize) -> Vec<u8> {
        let mut m = query(id, None);
        m[2] |= 0x80;
        m[7] = 1;
        m.extend(b"\xc0\x0c\x00\x10\x00\x01\x00\x00\x00\x3c");
        let data = len - m.len() - 2;
        m.extend((data as u16).to_be_bytes());
        m.resize(len, b'x');
        m
    }

    fn addresses(v6: bool) -> (SocketAddr, SocketAddr, usize) {
        if v6 {
            let client = SocketAddr::from((A6, 4000));
            (client, SocketAddr::from((DNS6, PORT)), 62)
        } else {
            let client = SocketAddr::from((A4, 4000));
            (client, SocketAddr::from((DNS4, PORT)), 42)
        }
    }

    #[test]
    fn a_query_goes_out_unchanged_and_its_answer_comes_back() {
        for v6 in [false, true] {
            let mut bench = Bench::new();
            let (client, server, header) = addresses(v6);
            let sent = query(7, None);
            assert_eq!(bench.send(A, &udp(MAC_A, client, server, &sent)), Ok(()));
            let q = bench.gw.take_query().unwrap();
            assert_eq!(q.message, sent);
            assert_eq!((q.client, q.port, q.transport), (client, A, Transport::Udp));
            assert_eq!(bench.gw.take_query(), None);
            bench.answer(q.id, &answer(7, 300));
            let reply = bench.reply(A);
            assert!(checksum_ok(&reply));
            assert_eq!(reply[..6], MAC_A.0);
            assert_eq!(reply[header - 8..header - 4], [0, 53, 0x0f, 0xa0]);
            assert_eq!(reply[header..], answer(7, 300));
            // An answer is given once.
            bench.answer(q.id, &answer(7, 300));
            bench.assert_silent();
            assert_eq!(bench.gw.counters().dns_udp_queries, 1);
            assert_eq!(bench.gw.counters().dns_answers, 1);
        }
    }

    #[test]
    fn answers_are_cut_to_what_client_and_link_take() {
        for (v6, edns, len, whole) in [
            (false, None, 512, true),
            (false, None, 513, false),
            (true, Some(1232), 1232, true),
            (true, Some(1232), 1233, false),
            (false, Some(4096), 1472, true),
            (false, Some(4096), 1473, false),
            (true, Some(65535), 1452, true),
            (true, Some(65535), 1453, false),
        ] {
            let mut bench = Bench::new();
            let (client, server, header) = addresses(v6);
            let frame = udp(MAC_A, client, server, &query(7, edns));
            bench.send(A, &frame).unwrap();
            let id = bench.gw.take_query().unwrap().id;
            bench.answer(id, &answer(7, len));
            let reply = bench.reply(A);
            let message = &reply[header..];
            assert_eq!(bench.gw.counters().dns_truncated, u64::from(!whole));
            if whole {
                assert_eq!(message, answer(7, len));
            } else {
                let mut want = query(7, None);
                want[2] = 0x83;
                assert_eq!(message, want);
            }
        }
    }

    #[test]
    fn what_is_no_query_is_dropped() {
        let mut bench = Bench::new();
        let (client, server, _) = addresses(false);
        let mut response = query(7, None);
        response[2] |= 0x80;
        for m in [&response[..], &response[..11], &[]] {
            let sent = bench.send(A, &udp(MAC_A, client, server, m));
            assert_eq!(sent, Err(DropReason::BadDns));
        }
        assert_eq!(bench.gw.take_query(), None);
        bench.answer(QueryId(0), &answer(7, 100));
        bench.assert_silent();
    }

    #[test]
    fn a_flood_costs_only_its_own_port() {
        let mut bench = Bench::new();
        let (client, server, header) = addresses(false);
        let patient = SocketAddr::from((B4, 5000));
        let frame = udp(MAC_B, patient, server, &query(1, None));
        bench.send(B, &frame).unwrap();
        let id = bench.gw.take_query().unwrap().id;
        let frame = udp(MAC_A, client, server, &query(2, None));
        for _ in 0..10 * MAX_PENDING {
            bench.send(A, &frame).unwrap();
            bench.gw.take_query().unwrap();
        }
        assert_eq!(bench.gw.dns.queries.pending.len(), MAX_PENDING + 1);
        bench.answer(id, &answer(1, 100));
        assert_eq!(bench.reply(B)[header..], answer(1, 100));
        // Without anybody to take them, queries are not hoarded.
        let refused = (0..2 * MAX_QUEUED).filter(|_| bench.send(A, &frame).is_err());
        assert_eq!(refused.count(), MAX_QUEUED);
        bench.gw.remove_port(A);
        assert_eq!(bench.gw.take_query(), None);
        assert_eq!(bench.gw.dns.queries.pending.len(), 0);
    }

    #[test]
    fn the_answer_goes_to_the_station_that_asked() {
        let mut bench = Bench::new();
        let (client, server, _) = addresses(false);
        // The same address and port on two links, as after a move.
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        bench
            .send(A, &udp(mac, client, server, &query(1, None)))
            .unwrap();
        bench
            .send(B, &udp(MAC_B, client, server, &query(1, None)))
            .unwrap();
        let first = bench.gw.take_query().unwrap();
        let second = bench.gw.take_query().unwrap();
        bench.answer(second.id, &answer(1, 100));
        assert_eq!(bench.reply(B)[..6], MAC_B.0);
        bench.answer(first.id, &answer(1, 100));
        assert_eq!(bench.reply(A)[..6], mac.0);
    }
}
