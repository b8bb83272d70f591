//! DNS queries on their way from the primary worker to the service that resolves them.
//!
//! # Theory of operation
//!
//! The gateway hands each query out as it comes ([`HostSockets::ask_dns`]). The service takes as many
//! as there are, on a thread of its own ([`DnsQueries::recv_many`]). Each port has a queue, of
//! [`MAX_QUEUED`] at most, and queries are taken from the ports in turn, so that the queue of one does not
//! hold up another's. A query that finds its port's queue full is refused, and dropped at the gateway.
//!
//! # Invariants
//!
//! The mutex is held to put one query in or to take some out, and never while waiting.
//!
//! [`HostSockets::ask_dns`]: cnet_nat::host::HostSockets::ask_dns

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cnet_nat::host::{DnsQuery, QueueFull};
use cnet_wire::PortId;
use tokio::sync::Notify;

/// Queries of one port that may wait for the service.
const MAX_QUEUED: usize = 1024;

/// A queue's two ends.
pub(crate) fn queue() -> (DnsOutlet, DnsQueries) {
    let shared = Arc::<Shared>::default();
    (DnsOutlet(Arc::clone(&shared)), DnsQueries(shared))
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// A query came, or the worker has ended.
    changed: Notify,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing here panics half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Queries that wait.
#[derive(Debug, Default)]
struct Waiting {
    /// Those of each port that has any, the oldest first.
    queues: BTreeMap<PortId, VecDeque<DnsQuery>>,
    /// The port that a query was last taken of.
    turn: Option<PortId>,
    ended: bool,
}

impl Waiting {
    /// The oldest query of the next port in turn.
    fn take(&mut self) -> Option<DnsQuery> {
        let after = self.turn.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.queues.range((after, Bound::Unbounded)).next();
        let port = *next.or_else(|| self.queues.first_key_value())?.0;
        self.turn = Some(port);
        let queue = self.queues.get_mut(&port)?;
        let query = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&port);
        }
        query
    }
}

/// The worker's end. Dropping it ends the queue.
#[derive(Debug)]
pub(crate) struct DnsOutlet(Arc<Shared>);

impl DnsOutlet {
    /// Puts a query in.
    ///
    /// # Errors
    ///
    /// [`QueueFull`] while too many of its port wait.
    pub(crate) fn push(&self, query: DnsQuery) -> Result<(), QueueFull> {
        let mut waiting = self.0.waiting();
        let queue = waiting.queues.entry(query.port).or_default();
        if queue.len() >= MAX_QUEUED {
            return Err(QueueFull);
        }
        queue.push_back(query);
        drop(waiting);
        self.0.changed.notify_one();
        Ok(())
    }

    /// Forgets the queries of a port that is gone.
    pub(crate) fn remove_port(&self, port: PortId) {
        self.0.waiting().queues.remove(&port);
    }
}

impl Drop for DnsOutlet {
    fn drop(&mut self) {
        self.0.waiting().ended = true;
        self.0.changed.notify_one();
    }
}

/// DNS queries of a network's containers, to be resolved. The answers go back by
/// [`Control::answer_dns`](crate::Control::answer_dns).
#[derive(Debug)]
pub struct DnsQueries(Arc<Shared>);

impl DnsQueries {
    /// Waits for queries and puts up to `most` of them behind those in `queries`. Tells how many: none
    /// once the network has ended.
    pub async fn recv_many(&mut self, queries: &mut Vec<DnsQuery>, most: usize) -> usize {
        loop {
            let before = queries.len();
            {
                let mut waiting = self.0.waiting();
                let some = std::iter::from_fn(|| waiting.take());
                queries.extend(some.take(most));
                if queries.len() > before || waiting.ended {
                    return queries.len() - before;
                }
            }
            self.0.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use cnet_nat::host::{QueryId, Transport};

    use super::*;

    const A: PortId = PortId(1);
    const B: PortId = PortId(2);

    fn query(port: PortId, id: u64) -> DnsQuery {
        DnsQuery {
            id: QueryId(id),
            transport: Transport::Udp,
            client: ([10, 0, 2, 100], 4000).into(),
            port,
            message: vec![0; 12],
        }
    }

    async fn ids(queries: &mut DnsQueries, most: usize) -> Vec<u64> {
        let mut some = Vec::new();
        let count = queries.recv_many(&mut some, most).await;
        assert_eq!(count, some.len());
        some.iter().map(|q| q.id.0).collect()
    }

    #[tokio::test]
    async fn ports_take_turns_and_a_flood_fills_its_own_queue_alone() {
        let (outlet, mut queries) = queue();
        let taken = (0..2 * MAX_QUEUED as u64).filter(|id| outlet.push(query(A, *id)).is_ok());
        assert_eq!(taken.count(), MAX_QUEUED);
        for id in [10_000, 10_001] {
            assert_eq!(outlet.push(query(B, id)), Ok(()));
        }
        assert_eq!(ids(&mut queries, 3).await, [0, 10_000, 1]);
        assert_eq!(ids(&mut queries, 3).await, [10_001, 2, 3]);
        // There is room for as many as were taken.
        let taken = (0..9).filter(|id| outlet.push(query(A, *id)).is_ok());
        assert_eq!(taken.count(), 4);
        outlet.remove_port(A);
        assert_eq!(outlet.push(query(B, 7)), Ok(()));
        assert_eq!(ids(&mut queries, 64).await, [7]);
    }

    #[tokio::test]
    async fn the_service_is_woken_by_a_query_and_by_the_end() {
        let (outlet, mut queries) = queue();
        let waiting = tokio::spawn(async move {
            let first = ids(&mut queries, 64).await;
            (first, ids(&mut queries, 64).await)
        });
        tokio::task::yield_now().await;
        assert_eq!(outlet.push(query(A, 5)), Ok(()));
        tokio::task::yield_now().await;
        drop(outlet);
        assert_eq!(waiting.await.unwrap(), (vec![5], vec![]));
    }
}
