//! Mappings of containers' UDP ports and echo identifiers to host sockets.
//!
//! Theory of operation. A mapping is found by the switch port and the container's address and UDP
//! port (or identifier), and named towards the host by its [`Handle`], which is in the socket's
//! token. Every packet renews it; that only notes the time. The timer is set
//! once, and when it fires either the mapping is old or the timer is set again for what is left:
//! a busy mapping costs one wake-up in a whole lifetime. A mapping that only asks DNS servers lives
//! for [`DNS_TIMEOUT`] alone.
//!
//! Invariants.
//! - The switch port is part of the key: a container that sends with another's address gets a
//!   mapping of its own, never the other's.
//! - At its limit a port loses a mapping of its own for a new one ([`give_way`](super::give_way)), never
//!   another port's. Where all of its own are in use, the new one is refused.
//! - Packets of either direction renew a mapping (RFC 4787 REQ-6). Errors do not, nor do they end it
//!   (REQ-12).
//! - Each mapping owns its socket, and closes it at its end.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use cnet_wire::PortId;
use cnet_wire::time::{Duration, Instant};

use crate::flow::{FlowBudget, FlowTable, Handle, TimerWheel};
use crate::host::{DatagramKind, HostError, HostSockets, SocketId, Token, TokenKind};
use crate::in_hand::with_in_hand;
use cnet_wire::headers::Link;

use super::errors::Inside;
use super::give_way::{GiveWay, Usage};

/// Life of a UDP mapping that sent to port 53 alone, after its last packet (RFC 4787 REQ-5 a allows
/// less than two minutes for well-known ports; resolvers give up sooner).
const DNS_TIMEOUT: Duration = Duration::from_secs(10);
/// The DNS servers' port.
const DNS_PORT: u16 = 53;
/// Packets after which a mapping counts as one of several exchanges though they all went one way, as a
/// stream does.
const STREAM_PACKETS: u8 = 16;

/// Of a mapping whose socket is not open yet.
const NO_SOCKET: SocketId = SocketId(u32::MAX);

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
    /// The last packet, in either direction.
    last_used: Instant,
    /// Packets, or batches of them, up to a point.
    packets: u8,
    /// Times that the direction changed, up to a point.
    turns: u8,
    /// The last packet went to the container.
    inwards: bool,
    /// All that was sent went to port 53.
    dns_only: bool,
}

impl Mapping {
    /// Notes a packet.
    #[inline]
    fn used(&mut self, now: Instant, inwards: bool) {
        self.last_used = now;
        self.packets = self.packets.saturating_add(1);
        self.turns = self.turns.saturating_add(u8::from(self.inwards != inwards));
        self.inwards = inwards;
    }

    /// More was sent after an answer, or it is a stream.
    fn usage(&self) -> Usage {
        Usage {
            last_used: self.last_used,
            lasting: self.turns >= 2 || self.packets > STREAM_PACKETS,
        }
    }

    /// How long it lives after its last packet, of a kind whose mappings live for `timeout`.
    fn lifetime(&self, timeout: Duration) -> Duration {
        if self.dns_only {
            DNS_TIMEOUT.min(timeout)
        } else {
            timeout
        }
    }
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
    /// The container holds as many as it may, and all are in use.
    Quota,
    /// The host opened no socket.
    Host(HostError),
}

/// The mappings of one protocol.
#[derive(Debug)]
pub(super) struct Mappings {
    kind: DatagramKind,
    /// What one port may have.
    each: usize,
    budget: FlowBudget,
    timeout: Duration,
    table: FlowTable<Key, Mapping>,
    timers: TimerWheel,
    /// Mappings of each switch port that has any.
    held: BTreeMap<PortId, Held>,
    /// The mapping whose socket is acted on, or is being opened.
    in_hand: Option<Handle>,
    /// The one whose socket was being closed when that panicked.
    torn: Option<Handle>,
}

/// The mappings of one switch port.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    order: GiveWay,
}

impl Mappings {
    /// No mappings yet; a port may have `each`, as far as the `budget` allows. Each lives `timeout`
    /// after its last use.
    pub(super) fn new(
        now: Instant,
        kind: DatagramKind,
        each: usize,
        budget: FlowBudget,
        timeout: Duration,
        seed: u64,
    ) -> Mappings {
        Mappings {
            kind,
            each,
            budget,
            timeout,
            table: FlowTable::new(Token::MAX_INDEX as usize, seed),
            timers: TimerWheel::new(now),
            held: BTreeMap::new(),
            in_hand: None,
            torn: None,
        }
    }

    /// The mapping of `container` on `link` for a packet to `to_port`, renewed; opened if there is none.
    pub(super) fn find_or_open(
        &mut self,
        now: Instant,
        link: &Link,
        container: SocketAddr,
        to_port: u16,
        hosts: &mut impl HostSockets,
    ) -> Result<(Handle, &mut Mapping), NoMapping> {
        let key = Key {
            port: link.port,
            container,
        };
        let handle = match self.table.find(&key) {
            Some(handle) => handle,
            None => self.open(now, link, key, to_port, hosts)?,
        };
        let mapping = self.table.get_mut(handle).ok_or(NoMapping::Quota)?;
        mapping.inside.link = *link;
        mapping.used(now, false);
        mapping.dns_only &= to_port == DNS_PORT;
        Ok((handle, mapping))
    }

    fn open(
        &mut self,
        now: Instant,
        link: &Link,
        key: Key,
        to_port: u16,
        hosts: &mut impl HostSockets,
    ) -> Result<Handle, NoMapping> {
        if !self.admits(key.port) && !self.give_way(now, key.port, Duration::ZERO, hosts) {
            return Err(NoMapping::Quota);
        }
        let mapping = Mapping {
            inside: Inside {
                link: *link,
                container: key.container,
                alias: None,
            },
            // The token needs the slot, so the socket comes second.
            socket: NO_SOCKET,
            largest_segment: usize::MAX,
            last_used: now,
            packets: 0,
            turns: 0,
            inwards: false,
            dns_only: to_port == DNS_PORT,
        };
        let handle = self
            .table
            .insert(key, mapping)
            .map_err(|_| NoMapping::Quota)?;
        self.in_hand = Some(handle);
        let opened = self.open_socket(now, handle, &key, hosts);
        self.in_hand = None;
        match opened {
            Ok(socket) => {
                if let Some(mapping) = self.table.get_mut(handle) {
                    mapping.socket = socket;
                }
                self.enter(now, key.port, handle);
                Ok(handle)
            }
            Err(e) => {
                self.table.remove(handle);
                Err(NoMapping::Host(e))
            }
        }
    }

    /// The host's socket for a mapping; where the host has no more, in the place of another's of the
    /// same port.
    fn open_socket(
        &mut self,
        now: Instant,
        handle: Handle,
        key: &Key,
        hosts: &mut impl HostSockets,
    ) -> Result<SocketId, HostError> {
        let kind = match self.kind {
            DatagramKind::Udp => TokenKind::Udp,
            DatagramKind::Ping => TokenKind::Ping,
        };
        let token = Token::new(kind, handle.index, handle.generation);
        match hosts.datagram_open(token, self.kind, key.container) {
            Err(HostError::Exhausted) if self.give_way(now, key.port, Duration::ZERO, hosts) => {
                hosts.datagram_open(token, self.kind, key.container)
            }
            result => result,
        }
    }

    /// Counts a new mapping of `port` and sets its timer.
    fn enter(&mut self, now: Instant, port: PortId, mapping: Handle) {
        self.budget.take();
        let table = &self.table;
        let usage = |mapping| table.get(mapping).map(Mapping::usage);
        let held = self.held.entry(port).or_default();
        held.count += 1;
        held.order.enter(now, mapping, usage);
        let lifetime = table.get(mapping).map(|m| m.lifetime(self.timeout));
        self.timers
            .set(mapping.index, now + lifetime.unwrap_or(self.timeout));
    }

    /// Whether `port` may have one more.
    fn admits(&self, port: PortId) -> bool {
        let held = self.held(port);
        held < self.each && self.budget.admits(held, 0)
    }

    /// Ends the mapping of `port` that is the next to give way, of those that were idle for `least`.
    /// `false` if there is none.
    pub(super) fn give_way(
        &mut self,
        now: Instant,
        port: PortId,
        least: Duration,
        hosts: &mut impl HostSockets,
    ) -> bool {
        let table = &self.table;
        let usage = |mapping| table.get(mapping).map(Mapping::usage);
        let held = self.held.get_mut(&port);
        let next = held.and_then(|held| held.order.take_next(now, least, usage));
        if let Some(mapping) = next {
            self.remove(mapping, hosts);
        }
        next.is_some()
    }

    /// Ends the mappings whose sockets take the host's port `host_port`, which something else is to have.
    /// Only a port of the same number as the container's is ever held on purpose.
    pub(super) fn release_port(&mut self, host_port: u16, hosts: &mut impl HostSockets) {
        let of_number = self.table.iter().filter(|(_, key, mapping)| {
            key.container.port() == host_port && hosts.datagram_takes(mapping.socket, host_port)
        });
        let handles: Vec<Handle> = of_number.map(|(handle, ..)| handle).collect();
        for handle in handles {
            self.remove(handle, hosts);
        }
    }

    /// The mapping of a socket for which something has arrived, which renews it.
    pub(super) fn arrived(&mut self, now: Instant, handle: Handle) -> Option<&Mapping> {
        let mapping = self.table.get_mut(handle)?;
        mapping.used(now, true);
        Some(mapping)
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
        self.held.get(&port).map_or(0, |held| held.count)
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
            let deadline = mapping.last_used + mapping.lifetime(self.timeout);
            if deadline > now {
                self.timers.set(index, deadline);
            } else {
                self.remove(handle, hosts);
            }
        }
    }

    /// A call has panicked. Ends the mapping it was about, if it was about one, and makes anew what is
    /// derived from the mappings.
    pub(super) fn recover(&mut self, now: Instant, hosts: &mut impl HostSockets) {
        let counted: usize = self.held.values().map(|held| held.count).sum();
        (0..counted).for_each(|_| self.budget.give_back());
        self.held.clear();
        self.timers = TimerWheel::new(now);
        for torn in [self.torn.take(), self.in_hand.take()]
            .into_iter()
            .flatten()
        {
            if let Some((_, mapping)) = self.table.remove(torn)
                && mapping.socket != NO_SOCKET
            {
                hosts.close(mapping.socket);
            }
        }
        let left = self.table.iter().map(|(handle, key, _)| (handle, key.port));
        let left: Vec<(Handle, PortId)> = left.collect();
        for (handle, port) in left {
            self.enter(now, port, handle);
        }
    }

    /// The socket of this mapping has an event, until [`Mappings::put_down`].
    pub(super) fn take_in_hand(&mut self, handle: Handle) {
        self.in_hand = Some(handle);
    }

    /// The event was acted on.
    pub(super) fn put_down(&mut self) {
        self.in_hand = None;
    }

    /// The switch ports that have mappings.
    pub(super) fn ports(&self) -> impl Iterator<Item = PortId> {
        self.held.keys().copied()
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
        if let Some(mapping) = self.table.get(handle) {
            // While it is in the table: recovery closes what a panic has left open.
            with_in_hand(&mut self.torn, handle, || hosts.close(mapping.socket));
        }
        let Some((key, _)) = self.table.remove(handle) else {
            return;
        };
        self.timers.cancel(handle.index);
        self.budget.give_back();
        if let Some(held) = self.held.get_mut(&key.port) {
            held.count -= 1;
            if held.count == 0 {
                self.held.remove(&key.port);
            }
        }
    }
}
