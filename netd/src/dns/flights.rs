//! Questions on their way to a server, and those who wait for their answers.
//!
//! # Theory of operation
//!
//! A question that is on its way already is not asked again: a further query that is the same in
//! every byte but its id and the case of its name waits for the same answer. What is on its way is a
//! *flight*; each query that waits for it is a *waiter*, which belongs to a port.
//!
//! # Invariants
//!
//! - At most [`MAX_WAITERS`] queries wait, and [`MAX_OF_PORT`] of one port. One more is always
//!   taken: the oldest of its own port gives way, or, where all ports together have too many, the
//!   oldest of the port that has most.
//! - A flight without waiters is ended, unless it is to refresh a stale answer.

use std::collections::{BTreeMap, HashMap};

use cnet_dataplane::{PortId, Transport};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::forward::Resolved;
use super::message::{self, HEADER_LEN, Question};
use hickory_proto::op::ResponseCode;

/// Queries that may wait, of all ports.
pub const MAX_WAITERS: usize = 4096;

/// Queries of one port that may wait: as many as the gateway keeps the ways back of.
pub const MAX_OF_PORT: usize = 2048;

/// Takes an answer.
pub(super) type Reply = Box<dyn FnOnce(Vec<u8>) + Send>;

/// A query that waits.
pub(super) struct Waiter {
    pub(super) port: PortId,
    pub(super) query: Vec<u8>,
    pub(super) question: Question,
    /// An answer that serves if no server has one.
    pub(super) stale: Option<Vec<u8>>,
    pub(super) transport: Transport,
    pub(super) since: Instant,
    pub(super) reply: Reply,
}

/// What a waiter was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Given {
    /// A server's answer.
    Answer,
    /// An answer out of date, since no server answered.
    Stale,
    /// That no server answered.
    Failure,
}

impl Waiter {
    /// What makes another query the same: all but the id, the name in lower case.
    fn sameness(&self) -> Vec<u8> {
        let mut bytes = self.query[2..].to_vec();
        let name = HEADER_LEN - 2..self.question.end - 6;
        if let Some(name) = bytes.get_mut(name) {
            name.make_ascii_lowercase();
        }
        bytes
    }

    /// Gives it what came of its question, and tells the answer's code.
    pub(super) fn give(self, resolved: &Resolved) -> (Given, u8) {
        let (answer, given) = match resolved {
            Resolved::Answer(answer) => (self.own(answer), Given::Answer),
            Resolved::Failure(_) if self.stale.is_some() => {
                (self.stale.clone().unwrap_or_default(), Given::Stale)
            }
            // A server that failed has answered all the same, and says how.
            Resolved::Failure(Some(answer)) => (self.own(answer), Given::Answer),
            Resolved::Failure(None) => {
                let code = ResponseCode::ServFail;
                let answer = message::error(&self.query, &self.question, code);
                (answer, Given::Failure)
            }
        };
        let code = message::code_of(&answer);
        (self.reply)(answer);
        (given, code)
    }

    /// `answer` under the query's id, with its question as it is spelled there.
    fn own(&self, answer: &[u8]) -> Vec<u8> {
        let mut answer = answer.to_vec();
        message::set_id(&mut answer, message::id_of(&self.query));
        let question = HEADER_LEN..self.question.end;
        let has_question = answer.get(4..6) == Some(&[0, 1]);
        if let (true, Some(echoed)) = (has_question, answer.get_mut(question.clone())) {
            echoed.copy_from_slice(&self.query[question]);
        }
        answer
    }
}

/// Names a flight; not used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct FlightId(u64);

/// What a question is the same by: who is asked, how, and the question.
type Key = (u64, Transport, Vec<u8>);

struct Flight {
    key: Key,
    /// The waiters and their numbers, which only rise.
    waiters: Vec<(u64, Waiter)>,
    task: Option<AbortHandle>,
    /// It goes on without waiters.
    refreshes: bool,
}

/// All flights.
#[derive(Default)]
pub(super) struct Flights {
    next: u64,
    flights: HashMap<FlightId, Flight>,
    by_key: HashMap<Key, FlightId>,
    /// The waiters of each port that has any, by number.
    by_port: HashMap<PortId, BTreeMap<u64, FlightId>>,
    waiting: usize,
}

/// What came of a waiter that entered.
pub(super) struct Entered {
    /// A flight that is to be started for it; `None` if there is one.
    pub(super) started: Option<FlightId>,
    /// The waiter that gave way to it, which is to be told.
    pub(super) gave_way: Option<Waiter>,
}

impl Flights {
    /// Takes in a query for the servers `route`.
    pub(super) fn enter(&mut self, route: u64, waiter: Waiter) -> Entered {
        let gave_way = self.make_room(waiter.port);
        let key = (route, waiter.transport, waiter.sameness());
        let number = self.next;
        self.next += 1;
        let known = self.by_key.get(&key).copied();
        let id = known.unwrap_or(FlightId(number));
        self.waiting += 1;
        let of_port = self.by_port.entry(waiter.port).or_default();
        of_port.insert(number, id);
        if known.is_none() {
            self.by_key.insert(key.clone(), id);
        }
        let flight = self.flights.entry(id).or_insert_with(|| Flight {
            key,
            waiters: Vec::with_capacity(1),
            task: None,
            refreshes: false,
        });
        flight.waiters.push((number, waiter));
        Entered {
            started: known.is_none().then_some(id),
            gave_way,
        }
    }

    /// The task that the flight is.
    pub(super) fn set_task(&mut self, id: FlightId, task: AbortHandle) {
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.task = Some(task);
        }
    }

    /// The flight is over: gives those who wait for it.
    pub(super) fn land(&mut self, id: FlightId) -> Vec<Waiter> {
        let Some(flight) = self.flights.remove(&id) else {
            return Vec::new();
        };
        self.by_key.remove(&flight.key);
        self.forget(flight.waiters)
    }

    /// Gives those waiters of a flight that have a stale answer; the flight goes on.
    pub(super) fn take_impatient(&mut self, id: FlightId) -> Vec<Waiter> {
        let Some(flight) = self.flights.get_mut(&id) else {
            return Vec::new();
        };
        flight.refreshes = true;
        let all = std::mem::take(&mut flight.waiters);
        let (some, rest) = all.into_iter().partition(|(_, w)| w.stale.is_some());
        flight.waiters = rest;
        self.forget(some)
    }

    fn forget(&mut self, waiters: Vec<(u64, Waiter)>) -> Vec<Waiter> {
        let forget = |(number, waiter): (u64, Waiter)| {
            self.waiting -= 1;
            if let Some(of_port) = self.by_port.get_mut(&waiter.port) {
                of_port.remove(&number);
                if of_port.is_empty() {
                    self.by_port.remove(&waiter.port);
                }
            }
            waiter
        };
        waiters.into_iter().map(forget).collect()
    }

    /// Takes a waiter out where one of `newcomer` would be too many.
    fn make_room(&mut self, newcomer: PortId) -> Option<Waiter> {
        let own = self.by_port.get(&newcomer).map_or(0, BTreeMap::len);
        let port = match own >= MAX_OF_PORT {
            true => newcomer,
            false if self.waiting < MAX_WAITERS => return None,
            false => {
                let most = self
                    .by_port
                    .iter()
                    .max_by_key(|(_, of_port)| of_port.len())?;
                match most.1.len() > own {
                    true => *most.0,
                    false => newcomer,
                }
            }
        };
        let (&number, &id) = self.by_port.get(&port)?.first_key_value()?;
        let flight = self.flights.get_mut(&id)?;
        let at = flight.waiters.iter().position(|(n, _)| *n == number)?;
        let numbered = flight.waiters.swap_remove(at);
        if flight.waiters.is_empty() && !flight.refreshes {
            if let Some(task) = &flight.task {
                task.abort();
            }
            let key = self.flights.remove(&id)?.key;
            self.by_key.remove(&key);
        }
        self.forget(vec![numbered]).pop()
    }

    #[cfg(test)]
    pub(super) fn abort_all(&self) {
        let tasks = self.flights.values().filter_map(|f| f.task.as_ref());
        tasks.for_each(AbortHandle::abort);
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let maps = self.flights.is_empty() && self.by_key.is_empty();
        maps && self.by_port.is_empty() && self.waiting == 0
    }
}
