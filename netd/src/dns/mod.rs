//! The DNS service behind the gateway's DNS address.
//!
//! # Theory of operation
//!
//! The worker hands over every query that reaches port 53 of the DNS address, UDP and TCP alike
//! (over TCP one message at a time, its length taken off). [`Service::handle`] checks its header
//! and its one question, answers the few names it owns itself ([`names`]), and sends the rest to
//! the host's resolvers ([`forward`]) over the transport that the client chose, so that truncation
//! stays between client and server. Message bytes pass through untouched, apart from the id:
//! unknown types, EDNS and the AD and CD bits are none of our business (RFC 5625).
//!
//! # Invariants
//!
//! - A query gets one answer or none; none only if it is no query at all (shorter than a header,
//!   or itself a response).
//! - The number of queries in flight is bounded, in all ([`MAX_IN_FLIGHT`]) and for one client
//!   ([`MAX_PER_CLIENT`]). One over the bound gets SERVFAIL at once; those in flight are kept.
//! - Each query is over within [`forward::DEADLINE`].
//! - A service of an internal network ([`Service::internal`]) asks no server. What it does not
//!   answer itself does not exist (NXDOMAIN): the network is all there is, and only this answer
//!   ends a lookup at once everywhere. The C library musl waits for its timeout after REFUSED and
//!   SERVFAIL.
//!
//! # Limits
//!
//! No cache. Zone transfers are refused: their answers are several messages.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub mod forward;
pub(crate) mod member_names;
pub mod message;
pub mod names;
pub(crate) mod other_networks;
pub mod resolv_conf;
mod upstream;

pub use cnet_dataplane::Transport;
pub use names::{Host, LocalNames, Names, Zone};
pub use resolv_conf::{Nameserver, Servers};
pub use upstream::Sources;

use hickory_proto::op::ResponseCode;
use message::Inspected;
use tokio::sync::mpsc;

use cnet_dataplane::{Control, DnsQuery};

/// Queries in flight, over all clients. Each may hold a few sockets, for which
/// `cnet_dataplane` keeps descriptors free.
pub const MAX_IN_FLIGHT: usize = 128;

/// Queries in flight for one client address.
pub const MAX_PER_CLIENT: usize = 96;

/// What came of a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It asked for a name of the network, the host or the gateway, and was answered from the
    /// table.
    Local,
    /// A server was asked, and its answer passed on.
    Forwarded,
    /// No server answered in time, or none could be reached: SERVFAIL.
    Failed,
    /// On an internal network, a name that it does not have: NXDOMAIN.
    Unknown,
    /// Too many queries were in flight: SERVFAIL.
    OverLimit,
    /// It could not be understood, or is of a kind that is refused.
    Refused,
    /// It was no query at all, and got no answer.
    NoQuery,
}

impl Outcome {
    /// How many there are.
    pub const COUNT: usize = 7;

    /// All, with the names that people see.
    const ALL: [(Outcome, &'static str); Outcome::COUNT] = [
        (Outcome::Local, "local"),
        (Outcome::Forwarded, "forwarded"),
        (Outcome::Failed, "failed"),
        (Outcome::Unknown, "unknown"),
        (Outcome::OverLimit, "over_limit"),
        (Outcome::Refused, "refused"),
        (Outcome::NoQuery, "no_query"),
    ];
}

/// The DNS service of one network.
#[derive(Debug)]
pub struct Service {
    outcomes: [AtomicU64; Outcome::COUNT],
    names: LocalNames,
    /// `None` on an internal network.
    forwarder: Option<forward::Forwarder>,
    in_flight: Mutex<InFlight>,
}

#[derive(Debug, Default)]
struct InFlight {
    total: usize,
    per_client: HashMap<IpAddr, usize>,
}

impl Service {
    /// A service that answers `names` itself and asks `servers` for the rest, from the source
    /// addresses in `sources`.
    ///
    /// A server may have the very address that this service is reached at, as on a host that is a
    /// guest of QEMU, or of another such network, with the same subnet. That one is meant then:
    /// what the host sends never comes to this service.
    pub fn new(names: LocalNames, servers: Servers, sources: Sources) -> Arc<Service> {
        Service::with(names, Some(forward::Forwarder::new(servers, sources)))
    }

    /// A service that answers `names` and asks no server for the rest.
    pub fn internal(names: LocalNames) -> Arc<Service> {
        Service::with(names, None)
    }

    fn with(names: LocalNames, forwarder: Option<forward::Forwarder>) -> Arc<Service> {
        Arc::new(Service {
            outcomes: Default::default(),
            names,
            forwarder,
            in_flight: Mutex::default(),
        })
    }

    /// Takes one query. `reply` is called with the answer, at once or later from a task of the
    /// current tokio runtime; it is dropped uncalled if there is nothing to answer.
    pub fn handle(
        self: &Arc<Self>,
        transport: Transport,
        client: IpAddr,
        query: Vec<u8>,
        reply: impl FnOnce(Vec<u8>) + Send + 'static,
    ) {
        let question = match message::inspect(&query) {
            Inspected::Question(question) => question,
            Inspected::Answer(answer) => {
                self.count(Outcome::Refused);
                return reply(answer);
            }
            Inspected::Nothing => return self.count(Outcome::NoQuery),
        };
        let own = self.names.answer(&query, &question, transport);
        let elsewhere = || {
            self.names
                .answer_of_others(client, &query, &question, transport)
        };
        if let Some(answer) = own.or_else(elsewhere) {
            self.count(Outcome::Local);
            return reply(answer);
        }
        if self.forwarder.is_none() {
            self.count(Outcome::Unknown);
            return reply(message::error(&query, &question, ResponseCode::NXDomain));
        }
        let Some(ticket) = self.admit(client) else {
            self.count(Outcome::OverLimit);
            tracing::debug!(%client, "too many DNS queries in flight");
            return reply(message::error(&query, &question, ResponseCode::ServFail));
        };
        let service = self.clone();
        tokio::spawn(async move {
            if let Some(forwarder) = &service.forwarder {
                let (outcome, answer) = forwarder.resolve(transport, query, question).await;
                service.count(outcome);
                reply(answer);
            }
            drop(ticket);
        });
    }

    /// How often each outcome was, by its name.
    pub fn outcomes(&self) -> [(&'static str, u64); Outcome::COUNT] {
        Outcome::ALL.map(|(outcome, name)| {
            let counted = &self.outcomes[outcome as usize];
            (name, counted.load(Ordering::Relaxed))
        })
    }

    fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Ticket> {
        let mut in_flight = self.in_flight();
        let of_client = in_flight.per_client.get(&client).copied().unwrap_or(0);
        if in_flight.total >= MAX_IN_FLIGHT || of_client >= MAX_PER_CLIENT {
            return None;
        }
        in_flight.total += 1;
        in_flight.per_client.insert(client, of_client + 1);
        Some(Ticket {
            service: self.clone(),
            client,
        })
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Queries that are taken at once. Where so many waited, others may wait at the gateway.
const BATCH: usize = 64;

/// Has the service answer the queries of a running network, as long as there are any to come.
pub async fn serve(service: Arc<Service>, control: Control, mut queries: mpsc::Receiver<DnsQuery>) {
    let mut some = Vec::with_capacity(BATCH);
    while queries.recv_many(&mut some, BATCH).await > 0 {
        if some.len() == BATCH {
            control.take_dns_queries();
        }
        for query in some.drain(..) {
            let (id, control) = (query.id, control.clone());
            let reply = move |answer| control.answer_dns(id, answer);
            service.handle(query.transport, query.client.ip(), query.message, reply);
        }
    }
}

/// The right to have one query in flight, given back when dropped.
struct Ticket {
    service: Arc<Service>,
    client: IpAddr,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut in_flight = self.service.in_flight();
        in_flight.total -= 1;
        if let Some(count) = in_flight.per_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                in_flight.per_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::net::UdpSocket;
    use tokio::sync::mpsc;

    use super::*;
    use crate::dns::message::tests::{query, rcode};

    async fn service_towards(server: SocketAddr) -> Arc<Service> {
        let servers = Servers::fixed(vec![Nameserver::from(server)]);
        Service::new(LocalNames::default(), servers, Sources::default())
    }

    #[tokio::test]
    async fn the_number_in_flight_is_bounded_and_given_back() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let service = service_towards(server.local_addr().unwrap()).await;
        let client = IpAddr::from([10, 0, 2, 100]);
        let other = IpAddr::from([10, 0, 2, 101]);
        let (answers, mut answered) = mpsc::unbounded_channel();
        let ask = |client, id: u16| {
            let answers = answers.clone();
            let reply = move |answer: Vec<u8>| answers.send((client, answer)).unwrap();
            service.handle(Transport::Udp, client, query(id, "example.org", 1), reply);
        };

        for id in 0..MAX_PER_CLIENT as u16 {
            ask(client, id);
        }
        assert!(answered.try_recv().is_err());
        ask(client, 999);
        let (who, refused) = answered.try_recv().unwrap();
        assert_eq!((who, rcode(&refused)), (client, 2));
        for id in 0..(MAX_IN_FLIGHT - MAX_PER_CLIENT) as u16 {
            ask(other, id);
        }
        assert!(answered.try_recv().is_err());
        ask(other, 999);
        assert_eq!(answered.try_recv().unwrap().0, other);

        // The server answers everything, and there is room again.
        let mut buf = [0; 512];
        for _ in 0..MAX_IN_FLIGHT {
            let (length, from) = server.recv_from(&mut buf).await.unwrap();
            buf[2] |= 0x80;
            server.send_to(&buf[..length], from).await.unwrap();
            assert_eq!(rcode(&answered.recv().await.unwrap().1), 0);
        }
        tokio::task::yield_now().await;
        assert_eq!(service.in_flight().total, 0);
        assert!(service.in_flight().per_client.is_empty());
    }

    #[test]
    fn an_internal_network_asks_nobody() {
        let names = Names::new(Zone::default());
        names.join(
            "1",
            Host {
                name: "web".into(),
                ipv4: Some([10, 0, 2, 9].into()),
                ..Host::default()
            },
        );
        let service = Service::internal(LocalNames::default().with_containers(names));
        let ask = |name| {
            let (answers, answered) = std::sync::mpsc::channel();
            let reply = move |answer| answers.send(answer).unwrap();
            let client = IpAddr::from([10, 0, 2, 100]);
            // There is no runtime that it could ask from.
            service.handle(Transport::Udp, client, query(5, name, 1), reply);
            rcode(&answered.try_recv().unwrap())
        };
        assert_eq!((ask("web"), ask("example.org")), (0, 3));
        assert_eq!(service.in_flight().total, 0);
    }

    #[tokio::test]
    async fn what_is_no_query_gets_no_answer_and_a_broken_one_formerr() {
        let service = service_towards("127.0.0.1:9".parse().unwrap()).await;
        let (answers, mut answered) = mpsc::unbounded_channel();
        let ask = |message: Vec<u8>| {
            let answers = answers.clone();
            let reply = move |answer| answers.send(answer).unwrap();
            service.handle(
                Transport::Udp,
                IpAddr::from([10, 0, 2, 100]),
                message,
                reply,
            );
        };
        ask(vec![1, 2, 3]);
        let mut response = query(7, "example.org", 1);
        response[2] |= 0x80;
        ask(response);
        assert!(answered.try_recv().is_err());
        let mut broken = query(7, "example.org", 1);
        broken.truncate(20);
        ask(broken);
        assert_eq!(rcode(&answered.try_recv().unwrap()), 1);
    }
}
