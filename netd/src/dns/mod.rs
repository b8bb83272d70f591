//! The DNS service behind the gateway's DNS address.
//!
//! # Theory of operation
//!
//! The worker hands over every query that reaches port 53 of the DNS address, UDP and TCP alike
//! (over TCP one message at a time, its length taken off). [`Service::handle`] checks its header
//! and its one question ([`message`]) and answers the names that it owns itself ([`names`]). For the
//! rest it decides who is to be asked (`routes`), and answers from what these servers have said
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
use std::time::{Duration, SystemTime};

mod cache;
mod flights;
pub mod forward;
mod host_address;
mod log;
pub(crate) mod member_names;
pub mod message;
pub mod names;
pub(crate) mod other_networks;
pub mod resolv_conf;
mod routes;
mod times;
mod upstream;

pub use cnet_dataplane::Transport;
pub use flights::{MAX_OF_PORT, MAX_WAITERS};
pub use host_address::HostAddress;
pub use log::Entry;
pub use names::{Host, LocalNames, Names, Zone};
pub use other_networks::OtherNetwork;
pub use resolv_conf::{HostConf, Nameserver, Servers};
pub use upstream::Sources;

use hickory_proto::op::ResponseCode;
use tokio::time::{Instant, sleep};

use cache::Found;
use cnet::control::AnswerTimes;
use cnet::definition::DnsServer;
use cnet_dataplane::{Control, DnsQueries, PortId, QueryId};
use flights::{FlightId, Flights, Given, Waiter};
use forward::Resolved;
use log::QueryLog;
use message::{Inspected, Question};
use routes::{Route, Routes};
use times::Times;
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

    /// The name that people see.
    pub fn name(self) -> &'static str {
        Outcome::ALL[self as usize].1
    }

    /// All in their order, with the names that people see.
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

    /// What the host's name leads the client at this address to; `None` for what it does on the
    /// network.
    fn host(&self, client: IpAddr) -> Option<HostAddress>;
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
    times: Times,
    names: LocalNames,
    servers: Option<Vec<DnsServer>>,
    clients: Option<Arc<dyn Clients>>,
    routes: Routes,
    flights: Mutex<Flights>,
    log: QueryLog,
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

/// The end of a flight, however it ends: even if its task fails, those who wait are told, and the
/// next query like theirs starts another one.
struct Landing<'a> {
    service: &'a Service,
    id: FlightId,
    resolved: Resolved,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let waiters = self.service.flights().land(self.id);
        self.service.give(waiters, &self.resolved, Outcome::Failed);
    }
}

/// What the service can do about a query by itself.
enum Here {
    /// Answer it.
    Answer(Outcome, Vec<u8>),
    /// Ask these servers, with the key that their answer may be kept under, and an answer that
    /// serves where they have none.
    Ask(Arc<Route>, Option<Vec<u8>>, Option<Vec<u8>>),
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
            times: Times::default(),
            names: config.names,
            servers: config.servers,
            clients: config.clients,
            routes: Routes::new(config.host, config.sources, config.stale),
            flights: Mutex::default(),
            log: QueryLog::default(),
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
                self.done(&asker, None, Outcome::Refused, &answer);
                return reply(answer);
            }
            Inspected::Nothing => {
                self.outcomes[Outcome::NoQuery as usize].fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        let (route, key, stale) = match self.answer_here(&asker, &query, &question) {
            Here::Ask(route, key, stale) => (route, key, stale),
            Here::Answer(outcome, answer) => {
                self.done(&asker, Some(question), outcome, &answer);
                return reply(answer);
            }
        };
        let waiter = Waiter {
            port: asker.port,
            query,
            question,
            stale,
            transport: asker.transport,
            since: Instant::now(),
            reply: Box::new(reply),
        };
        self.wait(route, waiter, key);
    }

    /// The answer to a query, if there is one without asking; or else who is to be asked.
    fn answer_here(&self, asker: &Asker, query: &[u8], question: &Question) -> Here {
        let clients = self.clients.as_ref();
        let host = clients.filter(|_| names::is_host(question));
        let answer = match host.and_then(|c| c.host(asker.address)) {
            None => self.names.answer(query, question, asker.transport),
            Some(host) => {
                let names = self.names.clone().with_host(host);
                names.answer(query, question, asker.transport)
            }
        };
        if let Some(answer) = answer {
            return Here::Answer(Outcome::Local, answer);
        }
        let others = clients.map_or(Vec::new(), |c| c.other_networks(asker.address));
        let elsewhere = others.iter().find_map(|other| {
            let other = LocalNames::default().with_containers(other.names.clone());
            other.answer(query, question, asker.transport)
        });
        if let Some(answer) = elsewhere {
            return Here::Answer(Outcome::Local, answer);
        }
        let others_names = others.iter().map(|other| &other.names);
        let nowhere = self.names.nowhere(others_names, question);
        let route = self.route(asker.address, &others, question);
        let (None, Some(route)) = (nowhere, route) else {
            let answer = message::error(query, question, ResponseCode::NXDomain);
            return Here::Answer(Outcome::Unknown, answer);
        };
        let key = question.plain.then(|| question.key(query));
        let found = key.as_ref().map_or(Found::Nothing, |key| {
            route.with_cache(|cache| cache.find(key, query, question))
        });
        match found {
            Found::Fresh(answer) => Here::Answer(Outcome::Cached, answer),
            Found::Stale(answer) => Here::Ask(route, key, Some(answer)),
            Found::Nothing => Here::Ask(route, key, None),
        }
    }

    /// How often each outcome was, by its name.
    pub fn outcomes(&self) -> [(&'static str, u64); Outcome::COUNT] {
        Outcome::ALL.map(|(outcome, name)| {
            let counted = &self.outcomes[outcome as usize];
            (name, counted.load(Ordering::Relaxed))
        })
    }

    /// How often each outcome was at a port, by its name.
    pub fn outcomes_of(&self, port: PortId) -> [(&'static str, u64); Outcome::COUNT] {
        let counted = self.log.outcomes(port);
        Outcome::ALL.map(|(outcome, name)| (name, counted[outcome as usize]))
    }

    /// How long answers took so far.
    pub fn times(&self) -> AnswerTimes {
        self.times.report()
    }

    /// The last queries of a port, from behind number `after` on. Where there are none yet and
    /// `wait` is longer than nothing, the next one is waited for so long.
    pub async fn log(&self, port: PortId, after: u64, wait: Duration) -> Vec<Entry> {
        let next = async {
            loop {
                // Before it is looked, so that none is missed in between.
                let changed = self.log.changed();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let entries = self.log.entries(port, after);
                if !entries.is_empty() {
                    return entries;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(wait, next).await;
        waited.unwrap_or_default()
    }

    /// Forgets what a port has asked for.
    pub fn forget(&self, port: PortId) {
        self.log.forget(port);
    }

    /// Counts a query that was answered at once, and keeps it in the log.
    fn done(&self, asker: &Asker, question: Option<Question>, outcome: Outcome, answer: &[u8]) {
        let code = message::code_of(answer);
        self.keep(
            asker.port,
            asker.transport,
            question,
            (outcome, code),
            Duration::ZERO,
        );
    }

    fn keep(
        &self,
        port: PortId,
        transport: Transport,
        question: Option<Question>,
        (outcome, code): (Outcome, u8),
        took: Duration,
    ) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.times.keep(took);
        let kind = question.as_ref().map_or(0, |question| question.kind);
        let name = question.and_then(|question| question.name);
        tracing::debug!(?port, ?name, kind, ?outcome, code, "DNS query");
        let entry = Entry {
            number: 0,
            at: SystemTime::now(),
            transport,
            name,
            kind,
            outcome,
            code,
            took,
        };
        self.log.keep(port, entry);
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
    fn wait(self: &Arc<Self>, route: Arc<Route>, waiter: Waiter, key: Option<Vec<u8>>) {
        let asked = Asked {
            message: waiter.query.clone(),
            question_end: waiter.question.end,
        };
        let (question, transport) = (waiter.question.clone(), waiter.transport);
        let entered = self.flights().enter(route.id, waiter);
        if let Some(waiter) = entered.gave_way {
            self.give(vec![waiter], &Resolved::Failure(None), Outcome::OverLimit);
        }
        let Some(id) = entered.started else {
            return;
        };
        let service = Arc::clone(self);
        let flight = async move {
            let mut landing = Landing {
                service: &service,
                id,
                resolved: Resolved::Failure(None),
            };
            let asking = service.ask(id, &route, transport, asked, key.as_deref());
            landing.resolved = asking.await;
            if let Some(key) = key {
                route.with_cache(|cache| match &landing.resolved {
                    Resolved::Answer(answer) => cache.keep(key, answer, &question),
                    Resolved::Failure(_) => cache.failed(&key),
                });
            }
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
        self.give(impatient, &Resolved::Failure(None), Outcome::Failed);
        resolving.await
    }

    /// Gives waiters what came of their question. `failure` is the outcome where that is nothing.
    fn give(&self, waiters: Vec<Waiter>, resolved: &Resolved, failure: Outcome) {
        for waiter in waiters {
            let (port, transport, since) = (waiter.port, waiter.transport, waiter.since);
            let question = waiter.question.clone();
            let (given, code) = waiter.give(resolved);
            let outcome = match given {
                Given::Answer => Outcome::Forwarded,
                Given::Stale => Outcome::Stale,
                Given::Failure => failure,
            };
            self.keep(
                port,
                transport,
                Some(question),
                (outcome, code),
                since.elapsed(),
            );
        }
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Queries that are taken at once. Where so many waited, others may wait at the gateway.
const BATCH: usize = 64;

/// The way of answers to the worker. Those of a batch of queries that are there at once go together,
/// so that the worker is woken once for all of them.
struct Answers {
    control: Control,
    /// Those of the batch that is handled; `None` while there is none.
    batch: Mutex<Option<Batch>>,
}

/// Answers, with the queries that they are for.
type Batch = Vec<(QueryId, Vec<u8>)>;

impl Answers {
    fn batch(&self) -> MutexGuard<'_, Option<Batch>> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, queries: usize) {
        *self.batch() = Some(Vec::with_capacity(queries));
    }

    fn give(&self, id: QueryId, answer: Vec<u8>) {
        match &mut *self.batch() {
            Some(batch) => batch.push((id, answer)),
            None => self.control.answer_dns(vec![(id, answer)]),
        }
    }

    fn end(&self) {
        let answers = self.batch().take().unwrap_or_default();
        if !answers.is_empty() {
            self.control.answer_dns(answers);
        }
    }
}

/// Has the service answer the queries of a running network, as long as there are any to come.
pub async fn serve(service: Arc<Service>, control: Control, mut queries: DnsQueries) {
    let mut some = Vec::with_capacity(BATCH);
    let answers = Arc::new(Answers {
        control: control.clone(),
        batch: Mutex::default(),
    });
    while queries.recv_many(&mut some, BATCH).await > 0 {
        answers.begin(some.len());
        for query in some.drain(..) {
            let (id, answers) = (query.id, Arc::clone(&answers));
            let asker = Asker {
                transport: query.transport,
                port: query.port,
                address: query.client.ip(),
            };
            let reply = move |answer| answers.give(id, answer);
            service.handle(asker, query.message, reply);
        }
        answers.end();
    }
}

#[cfg(test)]
mod tests;
