//! The mappings of one protocol, UDP or echo, as the router sees them.
//!
//! Both protocols have the same mappings, sockets and deadlines ([`DatagramSessions`]). What differs is a
//! [`Protocol`]: the header of what is received, how it is delivered, and what the protocol keeps beside
//! its mappings. How a container's packet is taken in differs most, and stands in
//! [`udp`](super::udp) and [`ping`](super::ping).

use std::net::SocketAddr;

use cnet_wire::headers::l4_offset;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropCounters, DropReason, PortId};

use super::errors::Inside;
use super::relay::Relay;
use super::{DatagramConfig, SocketOutcome};
use crate::flow::Handle;
use crate::host::{DatagramKind, HostSockets, Readiness, Received};
use crate::io::{Env, Io};

/// In what UDP and echo differ.
pub trait Protocol {
    /// The kind of the host's sockets.
    const KIND: DatagramKind;
    /// Bytes of transport header that are missing before what such a socket delivers.
    const HEADER_LEN: usize;

    /// Sends what was received, which stands behind the room for headers in `io.buf`, to a container.
    ///
    /// # Errors
    /// Why it was dropped.
    fn deliver<E: Env>(
        relay: &mut Relay,
        io: &mut Io<'_, E>,
        inside: &Inside,
        received: &Received,
    ) -> Result<(), DropReason>;

    /// The protocol's own deadline, beside those of its mappings.
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Acts on that deadline.
    fn handle_timeout(&mut self, _now: Instant) {}

    /// A call has panicked: forgets what it may have half done.
    fn recover(&mut self) {}

    /// Forgets what it has of a port that is gone, beside its mappings.
    fn remove_port(&mut self, _port: PortId) {}
}

/// One protocol of all containers that one worker serves.
#[derive(Debug)]
pub struct DatagramSessions<P> {
    pub(super) relay: Relay,
    pub(super) protocol: P,
}

impl<P: Protocol> DatagramSessions<P> {
    pub(super) fn with(
        now: Instant,
        config: DatagramConfig,
        timeout: Duration,
        seed: u64,
        protocol: P,
    ) -> DatagramSessions<P> {
        DatagramSessions {
            relay: Relay::new(now, config, P::KIND, timeout, seed),
            protocol,
        }
    }

    /// Takes in an event of a mapping's socket, whose token is of this protocol's kind.
    #[inline]
    pub fn handle_socket<E: Env>(
        &mut self,
        now: Instant,
        handle: Handle,
        readiness: Readiness,
        io: &mut Io<'_, E>,
    ) -> SocketOutcome {
        let offset = |inside: &Inside| l4_offset(inside.container.is_ipv6()) + P::HEADER_LEN;
        let relay = &mut self.relay;
        SocketOutcome {
            left: relay.handle_socket(now, handle, readiness, offset, io, P::deliver),
            unresolved: None,
        }
    }

    /// Reads mappings ahead of their containers' packets ([`crate::flow::FlowTable::prefetch`]). For
    /// echo the identifier stands in the port's place.
    pub fn prefetch(&self, ends: impl IntoIterator<Item = (PortId, SocketAddr)>) {
        self.relay.mappings.prefetch(ends);
    }

    /// Reads mappings ahead of their sockets' events, by their slots.
    pub fn prefetch_at(&self, slots: &[u32]) {
        self.relay.mappings.prefetch_at(slots);
    }

    /// When [`DatagramSessions::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let mappings = self.relay.mappings.poll_timeout();
        mappings
            .into_iter()
            .chain(self.protocol.poll_timeout())
            .min()
    }

    /// Ends what has not been used for its lifetime.
    pub fn handle_timeout<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        self.relay.handle_timeout(now, io.hosts);
        self.protocol.handle_timeout(now);
    }

    /// Ends all mappings of a port that is gone, and drops what it has staged.
    pub fn remove_port<E: Env>(&mut self, port: PortId, io: &mut Io<'_, E>) {
        self.protocol.remove_port(port);
        self.relay.remove_port(port, io.hosts);
    }

    /// A call has panicked. Ends the mapping whose socket's event it was, if it was one's; a packet that
    /// was on its way out is lost, and those that were staged with it.
    pub fn recover<E: Env>(&mut self, now: Instant, io: &mut Io<'_, E>) {
        self.protocol.recover();
        self.relay.mappings.recover(now, io.hosts);
    }

    /// The ports that have mappings.
    pub fn ports(&self) -> impl Iterator<Item = PortId> {
        self.relay.mappings.ports()
    }

    /// Ends a mapping of `port`, idle for `least`, in whose place the port may have a flow of another
    /// protocol. `false` if there is none.
    pub fn give_way(
        &mut self,
        now: Instant,
        port: PortId,
        least: Duration,
        hosts: &mut impl HostSockets,
    ) -> bool {
        self.relay.mappings.give_way(now, port, least, hosts)
    }

    /// Mappings of `port`.
    pub fn held(&self, port: PortId) -> usize {
        self.relay.mappings.held(port)
    }

    /// Mappings.
    pub fn len(&self) -> usize {
        self.relay.mappings.len()
    }

    /// There are no mappings.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops of staged and of received datagrams.
    pub fn counters(&self) -> &DropCounters {
        &self.relay.drops
    }
}
