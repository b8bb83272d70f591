//! Mappings of containers' UDP ports and echo identifiers to host sockets.
//!
//! Theory of operation. A mapping is found by the switch port and the container's address and UDP
//! port (or identifier), and named towards the host by its [`Handle`], which is in the socket's
//! token. Every packet from the container renews it; that only notes the time. The timer is set
//! once, and when it fires either the mapping is old or the timer is set again for what is left:
//! a busy mapping costs one wake-up in a whole lifetime.
//!
//! Invariants.
//! - The switch port is part of the key: a container that sends with another's address gets a
//!   mapping of its own, never the other's.
//! - A live mapping is never taken away for a new one (RFC 6888 REQ-4 and the quota's reason).
//! - Only what the container sends renews a mapping; what arrives does not, and errors do not end it
//!   (RFC 4787 REQ-6 and REQ-12).
//! - Each mapping owns its socket, and closes it at its end.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use cnet_wire::PortId;
use cnet_wire::time::{Duration, Instant};

use crate::flow::{FairShare, FlowTable, Handle, TimerWheel};
use crate::host::{DatagramKind, HostError, HostSockets, SocketId, Token, TokenKind};
use cnet_wire::headers::Link;

use super::errors::Inside;

/// Whose mapping it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    pub(super) port: PortId,
    /// Address and UDP port; for echo the identifier stands in the port's place.
    pub(super) container: SocketAddr,
}

/// A container's end point and its host socket.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) inside: Inside,
    pub(super) socket: SocketId,
    /// Largest datagram, in bytes of payload, that may still be tried in a segmented send.
    pub(super) largest_segment: usize,
    last_used: Instant,
}

/// Reads something of each cache line that a mapping and its key lie in.
fn touch(key: &Key, mapping: &Mapping) -> u64 {
    u64::from(key.container.port())
        ^ mapping.last_used.as_nanos()
        ^ u64::from(mapping.socket.0)
        ^ u64::from(mapping.inside.container.port())
        ^ u64::from(mapping.inside.link.port.0)
}

/// Why there is no mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoMapping {
    /// The container holds as many as it may.
    Quota,
    /// The host opened no socket.
    Host(HostError),
}

/// The mappings of one protocol.
#[derive(Debug)]
pub(super) struct Mappings {
    kind: DatagramKind,
    share: FairShare,
    timeout: Duration,
    table: FlowTable<Key, Mapping>,
    timers: TimerWheel,
    /// Mappings of each switch port that has any.
    held: BTreeMap<PortId, usize>,
}

impl Mappings {
    /// No mappings yet; ports may have as many as `share` says, each of which lives `timeout` after
    /// its last use.
    pub(super) fn new(
        now: Instant,
        kind: DatagramKind,
        share: FairShare,
        timeout: Duration,
        seed: u64,
    ) -> Mappings {
        Mappings {
            kind,
            share,
            timeout,
            table: FlowTable::new(Token::MAX_INDEX as usize, seed),
            timers: TimerWheel::new(now),
            held: BTreeMap::new(),
        }
    }

    /// The mapping of `container` on `link`, renewed; opened if there is none.
    pub(super) fn find_or_open(
        &mut self,
        now: Instant,
        link: &Link,
        container: SocketAddr,
        hosts: &mut impl HostSockets,
    ) -> Result<(Handle, &mut Mapping), NoMapping> {
        let key = Key {
            port: link.port,
            container,
        };
        let handle = match self.table.find(&key) {
            Some(handle) => handle,
            None => self.open(now, link, key, hosts)?,
        };
        let mapping = self.table.get_mut(handle).ok_or(NoMapping::Quota)?;
        mapping.inside.link = *link;
        mapping.last_used = now;
        Ok((handle, mapping))
    }

    fn open(
        &mut self,
        now: Instant,
        link: &Link,
        key: Key,
        hosts: &mut impl HostSockets,
    ) -> Result<Handle, NoMapping> {
        if !self.share.admits(self.held(key.port), self.table.len()) {
            return Err(NoMapping::Quota);
        }
        let mapping = Mapping {
            inside: Inside {
                link: *link,
                container: key.container,
                alias: None,
            },
            // The token needs the slot, so the socket comes second.
            socket: SocketId(u32::MAX),
            largest_segment: usize::MAX,
            last_used: now,
        };
        let handle = self
            .table
            .insert(key, mapping)
            .map_err(|_| NoMapping::Quota)?;
        let kind = match self.kind {
            DatagramKind::Udp => TokenKind::Udp,
            DatagramKind::Ping => TokenKind::Ping,
        };
        let token = Token::new(kind, handle.index, handle.generation);
        match hosts.datagram_open(token, self.kind, key.container.ip()) {
            Ok(socket) => {
                if let Some(mapping) = self.table.get_mut(handle) {
                    mapping.socket = socket;
                }
                *self.held.entry(key.port).or_default() += 1;
                self.timers.set(handle.index, now + self.timeout);
                Ok(handle)
            }
            Err(e) => {
                self.table.remove(handle);
                Err(NoMapping::Host(e))
            }
        }
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&Mapping> {
        self.table.get(handle)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Mapping> {
        self.table.get_mut(handle)
    }

    /// Reads mappings ahead of their use ([`FlowTable::prefetch`]).
    pub(super) fn prefetch(&self, ends: impl IntoIterator<Item = (PortId, SocketAddr)>) {
        let keys = ends.into_iter();
        let keys = keys.map(|(port, container)| Key { port, container });
        self.table.prefetch(keys, touch);
    }

    /// The same by their slots.
    pub(super) fn prefetch_at(&self, slots: &[u32]) {
        self.table.prefetch_at(slots, touch);
    }

    /// Whether `container` on `port` has a mapping.
    pub(super) fn contains(&self, port: PortId, container: SocketAddr) -> bool {
        self.table.find(&Key { port, container }).is_some()
    }

    /// How many `port` has.
    pub(super) fn held(&self, port: PortId) -> usize {
        self.held.get(&port).copied().unwrap_or(0)
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Ends the mappings whose time is over.
    pub(super) fn handle_timeout(&mut self, now: Instant, hosts: &mut impl HostSockets) {
        while let Some(index) = self.timers.expire(now) {
            let Some(handle) = self.table.at(index) else {
                continue;
            };
            let Some(mapping) = self.table.get(handle) else {
                continue;
            };
            let deadline = mapping.last_used + self.timeout;
            if deadline > now {
                self.timers.set(index, deadline);
            } else {
                self.remove(handle, hosts);
            }
        }
    }

    /// Ends all mappings of `port`.
    pub(super) fn remove_port(&mut self, port: PortId, hosts: &mut impl HostSockets) {
        let of_port = self.table.iter().filter(|(_, key, _)| key.port == port);
        let handles: Vec<Handle> = of_port.map(|(handle, ..)| handle).collect();
        for handle in handles {
            self.remove(handle, hosts);
        }
    }

    fn remove(&mut self, handle: Handle, hosts: &mut impl HostSockets) {
        let Some((key, mapping)) = self.table.remove(handle) else {
            return;
        };
        self.timers.cancel(handle.index);
        hosts.close(mapping.socket);
        if let Some(n) = self.held.get_mut(&key.port) {
            *n -= 1;
            if *n == 0 {
                self.held.remove(&key.port);
            }
        }
    }
}
