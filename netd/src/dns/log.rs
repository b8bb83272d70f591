//! What each port has asked for: its last queries, and how often each outcome was.
//!
//! # Invariants
//!
//! The last [`MAX_ENTRIES`] queries of a port are kept, those of each port apart: a port that asks
//! much drops only its own. What is kept of a port goes with it ([`QueryLog::forget`]).

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use cnet_dataplane::{PortId, Transport};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::Outcome;

/// Queries of a port that are kept.
const MAX_ENTRIES: usize = 256;

/// A query, and what came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Counted from 1 for the port.
    pub number: u64,
    /// When it was answered.
    pub at: SystemTime,
    /// How it came.
    pub transport: Transport,
    /// The name in lower case; `None` if it could not be read.
    pub name: Option<String>,
    /// The type that was asked for; 0 if it could not be read.
    pub kind: u16,
    /// What came of it.
    pub outcome: Outcome,
    /// The code of the answer, its lower four bits (RFC 1035 section 4.1.1).
    pub code: u8,
    /// How long it took.
    pub took: Duration,
}

/// What is kept of all ports.
#[derive(Debug, Default)]
pub(super) struct QueryLog {
    ports: Mutex<HashMap<PortId, OfPort>>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct OfPort {
    outcomes: [u64; Outcome::COUNT],
    entries: VecDeque<Entry>,
    last: u64,
}

impl QueryLog {
    /// Keeps a query of `port`, and gives it its number.
    pub(super) fn keep(&self, port: PortId, mut entry: Entry) {
        let mut ports = self.lock();
        let of_port = ports.entry(port).or_default();
        of_port.outcomes[entry.outcome as usize] += 1;
        of_port.last += 1;
        entry.number = of_port.last;
        if of_port.entries.len() >= MAX_ENTRIES {
            of_port.entries.pop_front();
        }
        of_port.entries.push_back(entry);
        drop(ports);
        self.changed.notify_waiters();
    }

    /// Forgets a port: the next container at it is another one.
    pub(super) fn forget(&self, port: PortId) {
        self.lock().remove(&port);
        self.changed.notify_waiters();
    }

    /// How often each outcome was at `port`.
    pub(super) fn outcomes(&self, port: PortId) -> [u64; Outcome::COUNT] {
        let ports = self.lock();
        ports.get(&port).map_or(Default::default(), |p| p.outcomes)
    }

    /// The queries of `port` that are kept, from behind number `after` on.
    pub(super) fn entries(&self, port: PortId, after: u64) -> Vec<Entry> {
        let ports = self.lock();
        let entries = ports.get(&port).map(|of_port| &of_port.entries);
        let later = entries.into_iter().flatten().filter(|e| e.number > after);
        later.cloned().collect()
    }

    /// Waits until a query is kept, or a port is forgotten.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PortId, OfPort>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, outcome: Outcome) -> Entry {
        Entry {
            number: 0,
            at: SystemTime::UNIX_EPOCH,
            transport: Transport::Udp,
            name: Some(name.to_owned()),
            kind: 1,
            outcome,
            code: 0,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn a_port_drops_only_its_own() {
        let log = QueryLog::default();
        let (quiet, busy) = (PortId(1), PortId(2));
        log.keep(quiet, entry("one", Outcome::Local));
        for n in 0..2 * MAX_ENTRIES {
            log.keep(busy, entry(&n.to_string(), Outcome::Cached));
        }
        assert_eq!(log.entries(quiet, 0).len(), 1);
        let kept = log.entries(busy, 0);
        assert_eq!(
            (kept.len(), kept[0].number),
            (MAX_ENTRIES, MAX_ENTRIES as u64 + 1)
        );
        let after = log.entries(busy, 2 * MAX_ENTRIES as u64 - 1);
        assert_eq!(after.len(), 1);
        assert_eq!(
            log.outcomes(busy)[Outcome::Cached as usize],
            2 * MAX_ENTRIES as u64
        );
        log.forget(busy);
        assert!(log.entries(busy, 0).is_empty() && log.outcomes(busy) == [0; Outcome::COUNT]);
        assert_eq!(log.outcomes(quiet)[Outcome::Local as usize], 1);
    }
}
