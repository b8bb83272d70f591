//! DNS queries on their way to the service that resolves them, and the ways back of their answers.
//!
//! # Theory of operation
//!
//! Every query gets a number, under which its answer comes back. The way back is kept for the last
//! [`MAX_PENDING`] queries of each port: a port that floods the gateway loses only its own answers,
//! and a query that is never answered needs no timer.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use cnet_wire::headers::Link;
use cnet_wire::{DropReason, PortId};

/// Queries of one port that may wait for their answer.
pub(super) const MAX_PENDING: usize = 1024;
/// Queries of all ports that may wait to be taken.
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    queue: VecDeque<DnsQuery>,
    pending: BTreeMap<QueryId, WayBack>,
    /// The last queries of each port, the oldest first, answered ones included.
    recent: BTreeMap<PortId, VecDeque<QueryId>>,
}

impl Queries {
    /// Takes in a query of `client` on `port`.
    ///
    /// # Errors
    /// [`DropReason::RateLimit`] while too many wait to be taken.
    pub(super) fn push(
        &mut self,
        client: SocketAddr,
        port: PortId,
        message: Vec<u8>,
        back: WayBack,
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
        let transport = match back {
            WayBack::Udp(_) => Transport::Udp,
            WayBack::Tcp(_) => Transport::Tcp,
        };
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

    /// The next query to be resolved.
    pub(super) fn take(&mut self) -> Option<DnsQuery> {
        self.queue.pop_front()
    }

    /// The way back of the answer to `id`; `None` if it was given up or has been answered.
    pub(super) fn take_way_back(&mut self, id: QueryId) -> Option<WayBack> {
        self.pending.remove(&id)
    }

    pub(super) fn remove_port(&mut self, port: PortId) {
        for id in self.recent.remove(&port).into_iter().flatten() {
            self.pending.remove(&id);
        }
        self.queue.retain(|q| q.port != port);
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }
}
