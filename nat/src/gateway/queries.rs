//! DNS queries that the service is asked, and the ways back of their answers.
//!
//! # Theory of operation
//!
//! Every query gets a number, under which its answer comes back. The way back is kept for the last
//! [`MAX_PENDING`] queries of each port that are not answered yet: a port that floods the gateway
//! loses only its own answers, and a query that is never answered needs no timer. The service is an
//! effect ([`HostSockets::ask_dns`]): what it does not take is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use cnet_wire::headers::Link;
use cnet_wire::{DropReason, PortId};

use crate::host::{DnsQuery, HostSockets, QueryId, Transport};

/// Queries of one port that may wait for their answer.
pub(super) const MAX_PENDING: usize = 2048;
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
    pending: BTreeMap<QueryId, (PortId, WayBack)>,
    /// The queries of each port that are pending.
    by_port: BTreeMap<PortId, BTreeSet<QueryId>>,
}

impl Queries {
    /// Asks the service the query of `client` on `port`.
    ///
    /// # Errors
    /// [`DropReason::RateLimit`] while too many of the port wait for the service.
    pub(super) fn ask(
        &mut self,
        client: SocketAddr,
        port: PortId,
        message: Vec<u8>,
        back: WayBack,
        hosts: &mut impl HostSockets,
    ) -> Result<(), DropReason> {
        let id = QueryId(self.next);
        let transport = match back {
            WayBack::Udp(_) => Transport::Udp,
            WayBack::Tcp(_) => Transport::Tcp,
        };
        let asked = hosts.ask_dns(DnsQuery {
            id,
            transport,
            client,
            port,
            message,
        });
        asked.map_err(|_| DropReason::RateLimit)?;
        self.next += 1;
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
    }

    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }
}
