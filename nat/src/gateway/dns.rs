//! DNS over UDP to port 53 of the DNS addresses.
//!
//! # Theory of operation
//!
//! The service is asked every datagram that is a query, each segment of a super-frame included, unchanged
//! ([`super::queries`]). The answer goes to the port and MAC address the query came from, with the
//! address it was sent to as source. An answer longer than the client's EDNS size (RFC 6891) or the
//! MTU is truncated (TC, RFC 2181 section 9), and the client asks again over TCP.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::DropReason;
use cnet_wire::dns::{is_query, truncate, udp_size};
use cnet_wire::headers::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};
use cnet_wire::udp::UDP_HEADER_LEN;
use cnet_wire::vnet::GSO_UDP_L4;

use super::counters::DnsCounters;
use super::emit::Emitter;
use super::queries::{Asker, Queries, WayBack};
use super::{Endpoint, GatewayConfig, Packet};
use crate::host::HostSockets;
use crate::io::{Env, Io};
use cnet_wire::addr::is_station;

/// The DNS port, of UDP and TCP.
pub(super) const PORT: u16 = 53;

/// The protocol at the gateway.
pub(super) struct Dns {
    /// The links' IP MTU in bytes.
    mtu: usize,
    pub(super) counters: DnsCounters,
}

impl Dns {
    pub(super) fn new(cfg: &GatewayConfig) -> Dns {
        Dns {
            mtu: usize::from(cfg.mtu),
            counters: DnsCounters::default(),
        }
    }

    /// Takes in the datagrams in `packet`, which came from UDP port `source` and have `payload`
    /// together.
    pub(super) fn handle_datagram(
        &mut self,
        packet: &Packet<'_>,
        source: u16,
        payload: &[u8],
        endpoint: &Endpoint,
        queries: &mut Queries,
        hosts: &mut impl HostSockets,
    ) -> Result<(), DropReason> {
        let Packet { frame, ip, .. } = packet;
        if !endpoint.addresses.is_dns(ip.dst) {
            return Err(DropReason::NotServed);
        }
        if !is_station(ip.src) {
            return Err(DropReason::MartianSource);
        }
        let header = match ip.src {
            IpAddr::V4(_) => IPV4_HEADER_LEN + UDP_HEADER_LEN,
            IpAddr::V6(_) => IPV6_HEADER_LEN + UDP_HEADER_LEN,
        };
        let room = self.mtu.saturating_sub(header);
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
            let asker = Asker {
                link: endpoint.emitter.link(packet.ingress, frame.src),
                server: ip.dst,
                client,
                limit: udp_size(query).min(room),
            };
            let back = WayBack::Udp(asker);
            queries.ask(client, packet.ingress, query.to_vec(), back, hosts)?;
            self.counters.queries += 1;
        }
        Ok(())
    }

    /// Sends the answer `message`. One that is too long and cannot be cut is none.
    pub(super) fn answer(
        &mut self,
        asker: &Asker,
        message: &[u8],
        emitter: &mut Emitter,
        io: &mut Io<'_, impl Env>,
    ) {
        let short = match message.len() > asker.limit {
            true => truncate(message, asker.limit),
            false => None,
        };
        let message = short.as_deref().unwrap_or(message);
        if message.len() > asker.limit {
            return;
        }
        let server = SocketAddr::new(asker.server, PORT);
        let ends = (server, asker.client);
        // A full port loses the answer as it would lose any frame.
        if emitter.udp(io, &asker.link, ends, message).is_ok() {
            self.counters.answers += 1;
            self.counters.truncated += u64::from(short.is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::queries::MAX_PENDING;
    use crate::gateway::testing::*;
    use crate::host::{QueryId, Transport};
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
            let q = bench.take_query().unwrap();
            assert_eq!(q.message, sent);
            assert_eq!((q.client, q.port, q.transport), (client, A, Transport::Udp));
            assert_eq!(bench.take_query(), None);
            bench.answer(q.id, &answer(7, 300));
            let reply = bench.reply(A);
            assert!(checksum_ok(&reply));
            assert_eq!(reply[..6], MAC_A.0);
            assert_eq!(reply[header - 8..header - 4], [0, 53, 0x0f, 0xa0]);
            assert_eq!(reply[header..], answer(7, 300));
            // An answer is given once.
            bench.answer(q.id, &answer(7, 300));
            bench.assert_silent();
            assert_eq!(bench.gw.counters().dns.queries, 1);
            assert_eq!(bench.gw.counters().dns.answers, 1);
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
            let id = bench.take_query().unwrap().id;
            bench.answer(id, &answer(7, len));
            let reply = bench.reply(A);
            let message = &reply[header..];
            assert_eq!(bench.gw.counters().dns.truncated, u64::from(!whole));
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
        assert_eq!(bench.take_query(), None);
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
        let id = bench.take_query().unwrap().id;
        let frame = udp(MAC_A, client, server, &query(2, None));
        for _ in 0..10 * MAX_PENDING {
            bench.send(A, &frame).unwrap();
            bench.take_query().unwrap();
        }
        assert_eq!(bench.gw.queries.pending(), MAX_PENDING + 1);
        bench.answer(id, &answer(1, 100));
        assert_eq!(bench.reply(B)[header..], answer(1, 100));
        bench.gw.remove_port(A);
        bench.gw.remove_port(B);
        assert_eq!(bench.gw.queries.pending(), 0);
    }

    #[test]
    fn a_query_that_the_service_does_not_take_is_dropped() {
        let mut bench = Bench::new();
        let (client, server, _) = addresses(false);
        bench.wire.2.takes_no_queries = true;
        let sent = bench.send(A, &udp(MAC_A, client, server, &query(1, None)));
        assert_eq!(sent, Err(DropReason::RateLimit));
        assert_eq!(bench.gw.queries.pending(), 0);
        assert_eq!(bench.gw.counters().dns.queries, 0);
    }

    #[test]
    fn a_slow_answer_arrives_however_many_quick_ones_come_before_it() {
        let mut bench = Bench::new();
        let (client, server, header) = addresses(false);
        let slow = SocketAddr::from((A4, 5000));
        let frame = udp(MAC_A, slow, server, &query(1, None));
        bench.send(A, &frame).unwrap();
        let id = bench.take_query().unwrap().id;
        let frame = udp(MAC_A, client, server, &query(2, None));
        for _ in 0..2 * MAX_PENDING {
            bench.send(A, &frame).unwrap();
            let quick = bench.take_query().unwrap().id;
            bench.answer(quick, &answer(2, 100));
            bench.reply(A);
        }
        bench.answer(id, &answer(1, 100));
        assert_eq!(bench.reply(A)[header..], answer(1, 100));
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
        let first = bench.take_query().unwrap();
        let second = bench.take_query().unwrap();
        bench.answer(second.id, &answer(1, 100));
        assert_eq!(bench.reply(B)[..6], MAC_B.0);
        bench.answer(first.id, &answer(1, 100));
        assert_eq!(bench.reply(A)[..6], mac.0);
    }
}
