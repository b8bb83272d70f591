//! The DNS service behind the gateway's DNS address.
//!
//! # Theory of operation
//!
//! The worker hands over every query that reaches port 53 of the DNS address, UDP and TCP alike
//! (over TCP one message at a time, its length taken off). [`Service::handle`] checks its header
//! and its one question ([`message`]) and answers the names that it owns itself ([`names`]). For the
//! rest it decides who is to be asked ([`mod@routes`]), and answers from what these servers have said
//! before ([`cache`]), or joins those who wait for the same answer ([`flights`]). Otherwise it sends
//! the query on ([`forward`], [`upstream`]) over the transport that the client chose, so that
//! truncation stays between client and server. Message bytes pass through untouched, apart from the
//! id: unknown types, EDNS and the AD and CD bits are none of our business (RFC 5625).
//!
//! # Invariants
//!
//! - A query gets one answer or none; none only if it is no query at all (shorter than a header,
//!   or itself a response), or if its port has thousands of later ones that wait.
//! - No query is refused for want of a place ([`flights`]): a port's own oldest query gives way, with
//!   SERVFAIL.
//! - Each query is over within [`resolv_conf::Patience::deadline`].
//! - A network that asks no server ([`Config::servers`]) has NXDOMAIN for what it does not answer
//!   itself: the network is all there is, and only this answer ends a lookup at once everywhere. The
//!   C library musl waits for its timeout after REFUSED and SERVFAIL. A client that is on another
//!   network as well, which does ask, is served as it would be there.
//!
//! # Limits
//!
//! Zone transfers are refused: their answers are several messages.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

mod cache;
mod flights;
pub mod forward;
pub(crate) mod member_names;
pub mod message;
pub mod names;
pub(crate) mod other_networks;
pub mod resolv_conf;
mod routes;
mod upstream;

pub use cnet_dataplane::Transport;
pub use flights::{MAX_OF_PORT, MAX_WAITERS};
pub use names::{Host, LocalNames, Names, Zone};
pub use other_networks::OtherNetwork;
pub use resolv_conf::{HostConf, Nameserver, Servers};
pub use upstream::Sources;

use hickory_proto::op::ResponseCode;
use tokio::sync::mpsc;
use tokio::time::sleep;

use cache::Found;
use cnet::definition::DnsServer;
use cnet_dataplane::{Control, DnsQuery, PortId};
use flights::{FlightId, Flights, Given, Waiter};
use forward::Resolved;
use message::{Inspected, Question};
use routes::{Route, Routes};
use upstream::Asked;

/// How long a client waits for a fresh answer where there is a stale one (RFC 8767 section 5).
const STALE_WAIT: Duration = Duration::from_millis(1800);

/// What came of a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It asked for a name of the network, the host or the gateway, and was answered from the
    /// table.
    Local,
    /// A server was asked, and its answer passed on.
    Forwarded,
    /// It was answered by what a server had said before.
    Cached,
    /// No server answered in time, and an answer that is out of date was given.
    Stale,
    /// No server answered in time, or none could be reached: SERVFAIL.
    Failed,
    /// It asked for a name that the network does not have and that no server may be asked for:
    /// NXDOMAIN.
    Unknown,
    /// It gave way to a later query, since too many waited: SERVFAIL.
    OverLimit,
    /// It could not be understood, or is of a kind that is refused.
    Refused,
    /// It was no query at all, and got no answer.
    NoQuery,
}

impl Outcome {
    /// How many there are.
    pub const COUNT: usize = 9;

    /// All, with the names that people see.
    const ALL: [(Outcome, &'static str); Outcome::COUNT] = [
        (Outcome::Local, "local"),
        (Outcome::Forwarded, "forwarded"),
        (Outcome::Cached, "cached"),
        (Outcome::Stale, "stale"),
        (Outcome::Failed, "failed"),
        (Outcome::Unknown, "unknown"),
        (Outcome::OverLimit, "over_limit"),
        (Outcome::Refused, "refused"),
        (Outcome::NoQuery, "no_query"),
    ];
}

/// What is known of the clients of the service.
pub trait Clients: fmt::Debug + Send + Sync {
    /// The other networks that the client at this address is on. Called for each query that nothing
    /// else here answers; it must not wait.
    fn other_networks(&self, client: IpAddr) -> Vec<OtherNetwork>;

    /// The servers that are asked for the client at this address; with none, the network's.
    fn servers(&self, client: IpAddr) -> Arc<[DnsServer]>;
}

/// What a DNS service is to be.
#[derive(Debug, Default)]
pub struct Config {
    /// The names that it answers itself.
    pub names: LocalNames,
    /// The servers that it asks for all others: none for the host's, and `None` to ask nowhere.
    pub servers: Option<Vec<DnsServer>>,
    /// How the host's `resolv.conf` is read.
    pub host: HostConf,
    /// The addresses that it asks from.
    pub sources: Sources,
    /// How long an answer serves beyond its time where no server answers; zero for never.
    pub stale: Duration,
    /// What is known of its clients.
    pub clients: Option<Arc<dyn Clients>>,
}

/// The DNS service of one network.
pub struct Service {
    outcomes: [AtomicU64; Outcome::COUNT],
    names: LocalNames,
    servers: Option<Vec<DnsServer>>,
    clients: Option<Arc<dyn Clients>>,
    routes: Routes,
    flights: Mutex<Flights>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Service");
        shown.field("names", &self.names);
        shown
            .field("servers", &self.servers)
            .finish_non_exhaustive()
    }
}

/// Where a query came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// How it came.
    pub transport: Transport,
    /// The port that it came from.
    pub port: PortId,
    /// The client's address.
    pub address: IpAddr,
}

impl Service {
    /// A service as `config` says.
    ///
    /// A server may have the very address that this service is reached at, as on a host that is a
    /// guest of QEMU, or of another such network, with the same subnet. That one is meant then:
    /// what the host sends never comes to this service.
    pub fn new(config: Config) -> Arc<Service> {
        Arc::new(Service {
            outcomes: Default::default(),
            names: config.names,
            servers: config.servers,
            clients: config.clients,
            routes: Routes::new(config.host, config.sources, config.stale),
            flights: Mutex::default(),
        })
    }

    /// Takes one query. `reply` is called with the answer, at once or later from a task of the
    /// current tokio runtime; it is dropped uncalled if there is nothing to answer.
    pub fn handle(
        self: &Arc<Self>,
        asker: Asker,
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
        if let Some(answer) = self.names.answer(&query, &question, asker.transport) {
            self.count(Outcome::Local);
            return reply(answer);
        }
        let clients = self.clients.as_ref();
        let others = clients.map_or(Vec::new(), |c| c.other_networks(asker.address));
        let elsewhere = others.iter().find_map(|other| {
            let other = LocalNames::default().with_containers(other.names.clone());
            other.answer(&query, &question, asker.transport)
        });
        if let Some(answer) = elsewhere {
            self.count(Outcome::Local);
            return reply(answer);
        }
        let nowhere = self
            .names
            .nowhere(others.iter().map(|o| &o.names), &question);
        let route = self.route(asker.address, &others, &question);
        let (None, Some(route)) = (nowhere, route) else {
            self.count(Outcome::Unknown);
            return reply(message::error(&query, &question, ResponseCode::NXDomain));
        };
        let key = question.plain.then(|| question.key(&query));
        let found = key.as_ref().map_or(Found::Nothing, |key| {
            route.with_cache(|cache| cache.find(key, &query, &question))
        });
        let stale = match found {
            Found::Fresh(answer) => {
                self.count(Outcome::Cached);
                return reply(answer);
            }
            Found::Stale(answer) => Some(answer),
            Found::Nothing => None,
        };
        let waiter = Waiter {
            port: asker.port,
            query,
            question,
            stale,
            reply: Box::new(reply),
        };
        self.wait(route, asker.transport, waiter, key);
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

    /// Who is asked for a name; `None` if no server is, for this client.
    fn route(
        &self,
        client: IpAddr,
        others: &[OtherNetwork],
        question: &Question,
    ) -> Option<Arc<Route>> {
        let name = question.name.as_deref();
        let Some(servers) = &self.servers else {
            let elsewhere = others.iter().find_map(|other| other.servers.as_ref())?;
            return Some(self.routes.find(elsewhere, name));
        };
        let of_client = self.clients.as_ref().map(|c| c.servers(client));
        Some(match of_client {
            Some(of_client) if !of_client.is_empty() => self.routes.find(&of_client, name),
            _ => self.routes.find(servers, name),
        })
    }

    /// Has a query wait for the answer of a server. What may be kept is kept under `key`.
    fn wait(
        self: &Arc<Self>,
        route: Arc<Route>,
        transport: Transport,
        waiter: Waiter,
        key: Option<Vec<u8>>,
    ) {
        let asked = Asked {
            message: waiter.query.clone(),
            question_end: waiter.question.end,
        };
        let question = waiter.question.clone();
        let entered = self.flights().enter(route.id, transport, waiter);
        if let Some(waiter) = entered.gave_way {
            tracing::debug!(port = ?waiter.port, "too many DNS queries wait");
            waiter.give(&Resolved::Failure(None));
            self.count(Outcome::OverLimit);
        }
        let Some(id) = entered.started else {
            return;
        };
        let service = Arc::clone(self);
        let flight = async move {
            let asking = service.ask(id, &route, transport, asked, key.as_deref());
            let resolved = asking.await;
            if let Some(key) = key {
                route.with_cache(|cache| match &resolved {
                    Resolved::Answer(answer) => cache.keep(key, answer, &question),
                    Resolved::Failure(_) => cache.failed(&key),
                });
            }
            let waiters = service.flights().land(id);
            service.give(waiters, &resolved);
        };
        let task = tokio::spawn(flight).abort_handle();
        self.flights().set_task(id, task);
    }

    /// Asks the servers. Those who can be given a stale answer meanwhile are, after a while.
    async fn ask(
        &self,
        id: FlightId,
        route: &Route,
        transport: Transport,
        asked: Asked,
        key: Option<&[u8]>,
    ) -> Resolved {
        let servers = route.forwarder.servers();
        let resolving = route
            .forwarder
            .resolve(&servers, transport, Arc::new(asked));
        tokio::pin!(resolving);
        tokio::select! {
            resolved = &mut resolving => return resolved,
            () = sleep(STALE_WAIT), if self.routes.serves_stale() => {}
        }
        if let Some(key) = key {
            route.with_cache(|cache| cache.failed(key));
        }
        let impatient = self.flights().take_impatient(id);
        self.give(impatient, &Resolved::Failure(None));
        resolving.await
    }

    fn give(&self, waiters: Vec<Waiter>, resolved: &Resolved) {
        for waiter in waiters {
            self.count(match waiter.give(resolved) {
                Given::Answer => Outcome::Forwarded,
                Given::Stale => Outcome::Stale,
                Given::Failure => Outcome::Failed,
            });
        }
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
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
            let asker = Asker {
                transport: query.transport,
                port: query.port,
                address: query.client.ip(),
            };
            let reply = move |answer| control.answer_dns(id, answer);
            service.handle(asker, query.message, reply);
        }
    }
}

#[cfg(test)]
mod tests;
