//! DNS queries on their way to the service that resolves them, and the ways back of their answers.
//!
//! # Theory of operation
//!
//! Every query gets a number, under which its answer comes back. The way back is kept for the last
//! [`MAX_PENDING`] queries of each port that are not answered yet: a port that floods the gateway
//! loses only its own answers, and a query that is never answered needs no timer.
//!
//! Queries that wait to be taken are taken from the ports in turn, so that the queue of one does not
//! hold up another's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;

use cnet_wire::headers::Link;
use cnet_wire::{DropReason, PortId};

/// Queries of one port that may wait for their answer.
pub(super) const MAX_PENDING: usize = 2048;
/// Queries of one port that may wait to be taken.
pub(super) const MAX_QUEUED: usize = 1024;

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
    /// For [`super::Gateway::answer`].
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

/// A client that waits for an answer over UDP.
pub(super) struct Asker {
    pub(super) link: Link,
    /// The address that was asked.
    pub(super) server: IpAddr,
    pub(super) client: SocketAddr,
    /// Longest answer, in bytes.
    pub(super) limit: usize,
}

/// Names a connection; not used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ConnectionId(pub(super) u64);

/// The way back of an answer.
pub(super) enum WayBack {
    /// In a datagram.
    Udp(Asker),
    /// On a connection.
    Tcp(ConnectionId),
}

/// Queries on their way.
#[derive(Default)]
pub(super) struct Queries {
    next: u64,
    /// Those to be taken, of each port that has any, the oldest first.
    queues: BTreeMap<PortId, VecDeque<DnsQuery>>,
    /// The port that a query was last taken of.
    turn: Option<PortId>,
    pending: BTreeMap<QueryId, (PortId, WayBack)>,
    /// The queries of each port that are pending.
    by_port: BTreeMap<PortId, BTreeSet<QueryId>>,
}

impl Queries {
    /// Takes in a query of `client` on `port`.
    ///
    /// # Errors
    /// [`DropReason::RateLimit`] while too many of the port wait to be taken.
    pub(super) fn push(
        &mut self,
        client: SocketAddr,
        port: PortId,
        message: Vec<u8>,
        back: WayBack,
    ) -> Result<(), DropReason> {
        let queue = self.queues.entry(port).or_default();
        if queue.len() >= MAX_QUEUED {
            return Err(DropReason::RateLimit);
        }
        let id = QueryId(self.next);
        self.next += 1;
        let transport = match back {
            WayBack::Udp(_) => Transport::Udp,
            WayBack::Tcp(_) => Transport::Tcp,
        };
        queue.push_back(DnsQuery {
            id,
            transport,
            client,
            port,
            message,
        });
        let of_port = self.by_port.entry(port).or_default();
        if of_port.len() >= MAX_PENDING
            && let Some(oldest) = of_port.pop_first()
        {
            self.pending.remove(&oldest);
        }
        of_port.insert(id);
        self.pending.insert(id, (port, back));
        Ok(())
    }

    /// The next query to be resolved: the oldest of the next port in turn.
    pub(super) fn take(&mut self) -> Option<DnsQuery> {
        let after = self.turn.map_or(Bound::Unbounded, Bound::Excluded);
        let after = (after, Bound::Unbounded);
        let next = self.queues.range(after).next();
        let port = *next.or_else(|| self.queues.first_key_value())?.0;
        self.turn = Some(port);
        let queue = self.queues.get_mut(&port)?;
        let query = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&port);
        }
        query
    }

    /// The way back of the answer to `id`; `None` if it was given up or has been answered.
    pub(super) fn take_way_back(&mut self, id: QueryId) -> Option<WayBack> {
        let (port, back) = self.pending.remove(&id)?;
        if let Some(of_port) = self.by_port.get_mut(&port) {
            of_port.remove(&id);
            if of_port.is_empty() {
                self.by_port.remove(&port);
            }
        }
        Some(back)
    }

    pub(super) fn remove_port(&mut self, port: PortId) {
        for id in self.by_port.remove(&port).into_iter().flatten() {
            self.pending.remove(&id);
        }
        self.queues.remove(&port);
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }

    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }
}
