//! Local splice: a published TCP port reached from the host's loopback, without the TAP.
//!
//! # Theory of operation
//!
//! Client and server are on one machine, so no packet is needed between them: two kernel sockets,
//! one accepted on the host and one connected inside the container's network namespace, and
//! splice(2) from one to the other ([`connection`]). The second comes from a process that stands in
//! the namespace (*socket helper*, [`SocketHelper`]), through a small pool that is refilled while
//! connections come ([`socket_pool`]), so that a connection waits for no other process in the
//! ordinary case. The pool is empty until the first client.
//!
//! # Which connections
//!
//! Those for which the core decides so ([`cnet_nat::forward`]): the client has a loopback address.
//!
//! The connection is made to the container's own address, as through the TAP, and not to its
//! loopback unless the rule asks for that: a service that listens on loopback alone has not been published, and one that trusts
//! loopback must not meet a stranger there. The kernel takes the address that is connected to as
//! the source as well, so that the container sees itself as the client. That also tells whether the
//! container has the address at all: if the source is another, the connection would leave through
//! the TAP, and is left to the ordinary way.
//!
//! # When it cannot be done
//!
//! Whatever fails before the container has answered sends the client through the TAP: no helper,
//! one that does not answer within [`SOCKET_TIMEOUT`], no descriptor, too many connections, no free
//! source port. A container that refuses is asked no second time.
//!
//! # Limits
//!
//! A source port of the container that was used stays in TIME-WAIT for a minute, and tcp(7) reuses
//! it early for 127.0.0.0/8 alone. After some 28,000 connections in a minute to one port of the
//! container, further ones go through the TAP.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use cnet_nat::host::{Token, TokenKind};
use cnet_tap::helper::socket_helper::Answer;
use cnet_tap::socket as sys;
use cnet_tap::socket::Diagnostics;
use cnet_tap::{Namespaces, SocketHelper};
use cnet_wire::PortId;
use cnet_wire::time::{Duration, Instant};
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit};

mod connection;
mod pipe_pool;
mod socket_pool;

use crate::budget::SPLICE_TURNS_A_ROUND;
use crate::socket::allowed;
use connection::{CLIENT, CONTAINER, Connection, Turn};
use pipe_pool::Pipes;
use socket_pool::{SocketPool, make_room};

/// How long a client waits for a socket before it goes through the TAP: much longer than a helper
/// takes, and short of what a person notices.
const SOCKET_TIMEOUT: Duration = Duration::from_millis(100);

/// Connections at most, where descriptors permit.
const CONNECTIONS: usize = 1024;
/// Two sockets, and two pipes of two ends.
const DESCRIPTORS_EACH: usize = 6;
/// The part of the process's descriptors that connections may take, as its divisor. It is half of
/// what flows leave.
const PART: usize = 8;

/// Marks the tokens of helpers; connections have two tokens each, from 0 on.
const HELPER: u32 = 1 << 23;

/// Starts a socket helper in a container's namespaces, for
/// [`Control::use_socket_helper`](crate::Control::use_socket_helper). `None` where that fails, which
/// is logged, or the environment variable `CNET_WITHOUT` names `splice`: published ports work without.
///
/// To be called while the process has one thread.
pub fn start_socket_helper(namespaces: &Namespaces) -> Option<SocketHelper> {
    if !allowed("splice") {
        return None;
    }
    match SocketHelper::start(namespaces) {
        Ok(helper) => Some(helper),
        Err(error) => {
            tracing::warn!(%error, "connections from the host's loopback are not spliced");
            None
        }
    }
}

/// A client of a published port.
#[derive(Debug)]
pub(crate) struct Client {
    /// Its connection.
    pub(crate) fd: OwnedFd,
    /// Its address, [`canonical`](super::canonical).
    pub(crate) address: SocketAddr,
    /// Where in the container it is to come.
    pub(crate) container: SocketAddr,
    /// Where it comes by a splice: there, or to the same port of the container's loopback.
    pub(crate) spliced_to: SocketAddr,
}

/// A port's socket helper.
#[derive(Debug)]
struct Helper {
    generation: u32,
    port: PortId,
    /// The container's addresses.
    addresses: Vec<IpAddr>,
    process: SocketHelper,
    /// IPv4, IPv6.
    pools: [SocketPool; 2],
}

/// A place for a connection.
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    /// Waits for its turn.
    queued: bool,
    connection: Option<(PortId, Connection)>,
}

/// All spliced connections of one worker.
#[derive(Debug)]
pub(crate) struct Splices {
    epoll: Rc<OwnedFd>,
    helpers: Vec<Option<Helper>>,
    next_generation: u32,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Connections, and sockets in pools, at most.
    capacity: usize,
    /// Clients that there were.
    clients: u64,
    ready: VecDeque<u32>,
    pipes: Pipes,
    refused: Vec<Client>,
    /// What helpers have sent to ask their containers by.
    diagnostics: Vec<(PortId, Diagnostics)>,
    /// Connections that there were.
    opened: u64,
    /// Bytes that they carried: to containers, and from them.
    carried: [u64; 2],
    /// Some client may wait for a socket: without it no helper is looked through.
    may_wait: bool,
}

impl Splices {
    /// None yet; they will report to `epoll`.
    pub(crate) fn new(epoll: Rc<OwnedFd>) -> Splices {
        let descriptors = getrlimit(Resource::Nofile).current;
        let descriptors = descriptors.map_or(usize::MAX, |n| n.try_into().unwrap_or(usize::MAX));
        Splices {
            epoll,
            helpers: Vec::new(),
            next_generation: 0,
            slots: Vec::new(),
            free: Vec::new(),
            capacity: CONNECTIONS.min(descriptors / PART / DESCRIPTORS_EACH),
            clients: 0,
            ready: VecDeque::new(),
            pipes: Pipes::default(),
            refused: Vec::new(),
            diagnostics: Vec::new(),
            opened: 0,
            carried: [0; 2],
            may_wait: false,
        }
    }

    /// Has `process` make the sockets for connections to `addresses`, which are those of `port`.
    pub(crate) fn use_helper(
        &mut self,
        port: PortId,
        addresses: Vec<IpAddr>,
        process: SocketHelper,
    ) {
        let index = match self.helpers.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.helpers.push(None);
                self.helpers.len() - 1
            }
        };
        self.next_generation += 1;
        let generation = self.next_generation;
        let token = Token::new(TokenKind::Splice, HELPER | index as u32, generation);
        let data = epoll::EventData::new_u64(token.to_bits());
        // Unwatched it would be asked and never heard: better none.
        if epoll::add(&*self.epoll, process.as_fd(), data, EventFlags::IN).is_ok() {
            self.helpers[index] = Some(Helper {
                generation,
                port,
                addresses,
                process,
                pools: Default::default(),
            });
        }
    }

    /// The container of `port`, which had `addresses`, is gone: so are its connections, and the
    /// clients that have none yet.
    pub(crate) fn remove_port(&mut self, port: PortId, addresses: &[IpAddr]) {
        let to_it = |client: &Client| addresses.contains(&client.container.ip());
        let refused = std::mem::take(&mut self.refused);
        let (mut gone, others): (Vec<Client>, _) = refused.into_iter().partition(to_it);
        self.refused = others;
        for index in 0..self.helpers.len() {
            if self.helpers[index].as_ref().is_some_and(|s| s.port == port) {
                gone.extend(self.dismiss(index));
            }
        }
        for client in gone {
            // Not by way of frames: the address may be another container's at once. Without the reset
            // the client gets a FIN, which tells as much.
            let _ = sys::reset_on_close(&client.fd);
        }
        for index in 0..self.slots.len() {
            // Closing the last one takes all places away.
            let Some(Slot { connection, .. }) = self.slots.get(index) else {
                break;
            };
            if connection.as_ref().is_some_and(|(p, _)| *p == port) {
                self.close(index as u32);
            }
        }
    }

    /// Whether a client of a container that has `address` can be taken: the container has a helper,
    /// and there are not too many connections.
    pub(crate) fn can_take(&self, address: IpAddr) -> bool {
        let helpers = self.helpers.iter().flatten();
        let waiting: usize = helpers.map(Helper::waiting).sum();
        let room = self.slots.len() - self.free.len() + waiting < self.capacity;
        room && self.helper_of(address).is_some()
    }

    fn helper_of(&self, address: IpAddr) -> Option<usize> {
        let has = |h: &Option<Helper>| h.as_ref().is_some_and(|h| h.addresses.contains(&address));
        self.helpers.iter().position(has)
    }

    /// Takes a client over.
    pub(crate) fn admit(&mut self, now: Instant, client: Client) {
        let address = client.container.ip();
        let Some(index) = self.helper_of(address) else {
            self.refused.push(client);
            return;
        };
        if let Some(helper) = &mut self.helpers[index] {
            let pool = &mut helper.pools[usize::from(address.is_ipv6())];
            self.clients += 1;
            pool.used = Some(self.clients);
            pool.waiting.push_back((now + SOCKET_TIMEOUT, client));
            self.may_wait = true;
        }
        self.match_up(index);
    }

    /// Connects waiting clients while there are sockets, and asks for more.
    fn match_up(&mut self, index: usize) {
        for family in 0..2 {
            while let Some((port, client, socket)) = self.next_pair(index, family) {
                if let Err(client) = self.open(port, client, socket) {
                    self.refused.push(client);
                }
            }
            if self.refill(index, family).is_err() {
                tracing::debug!("the socket helper does not listen");
                self.lose(index);
            }
        }
    }

    /// Asks for more sockets of a family that is used and running low.
    fn refill(&mut self, index: usize, family: usize) -> std::io::Result<()> {
        let Some(Some(helper)) = self.helpers.get_mut(index) else {
            return Ok(());
        };
        let Some(short) = helper.pools[family].short() else {
            return Ok(());
        };
        let mut pool = std::mem::take(&mut helper.pools[family]);
        let others = self.helpers.iter_mut().flatten();
        let others = others.flat_map(|helper| &mut helper.pools);
        let limit = self.capacity.saturating_sub(pool.sockets.len());
        let count = make_room(others, short, limit);
        pool.asked = count;
        let Some(Some(helper)) = self.helpers.get_mut(index) else {
            return Ok(());
        };
        helper.pools[family] = pool;
        helper.process.ask(family == 1, count as u8)
    }

    fn next_pair(&mut self, index: usize, family: usize) -> Option<(PortId, Client, OwnedFd)> {
        let helper = self.helpers.get_mut(index)?.as_mut()?;
        let pool = &mut helper.pools[family];
        if pool.waiting.is_empty() {
            return None;
        }
        let socket = pool.sockets.pop()?;
        let (_, client) = pool.waiting.pop_front()?;
        Some((helper.port, client, socket))
    }

    /// Starts a connection; gives the client back where that fails.
    fn open(&mut self, port: PortId, client: Client, socket: OwnedFd) -> Result<(), Client> {
        for fd in [&client.fd, &socket] {
            // All of them only better a connection that works without: what was written goes on at
            // once, and urgent data does not tear the stream.
            let _ = sockopt::set_tcp_nodelay(fd, true);
            let _ = sockopt::set_socket_keepalive(fd, true);
            let _ = sockopt::set_socket_oobinline(fd, true);
        }
        match rustix::net::connect(&socket, &client.spliced_to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(_) => return Err(client),
        }
        let source = rustix::net::getsockname(&socket);
        let source = source.ok().and_then(|a| SocketAddr::try_from(a).ok());
        if source.is_none_or(|source| source.ip() != client.spliced_to.ip()) {
            return Err(client);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot::default());
                self.slots.len() as u32 - 1
            }
        };
        let connection = Connection::new(client.fd, socket);
        self.opened += 1;
        let slot = &mut self.slots[index as usize];
        self.next_generation += 1;
        slot.generation = self.next_generation;
        let mut watched = Ok(());
        for side in [CLIENT, CONTAINER] {
            let token = Token::new(TokenKind::Splice, 2 * index + side as u32, slot.generation);
            let data = epoll::EventData::new_u64(token.to_bits());
            let flags = EventFlags::IN
                | EventFlags::OUT
                | EventFlags::RDHUP
                | EventFlags::PRI
                | EventFlags::ET;
            watched = watched.and(epoll::add(&*self.epoll, connection.fd(side), data, flags));
        }
        slot.connection = Some((port, connection));
        if watched.is_err() {
            // The container has the connection already: a second one would be one too many.
            self.close(index);
        }
        Ok(())
    }

    /// Takes what epoll tells under one of our tokens.
    pub(crate) fn handle_event(&mut self, token: Token, events: EventFlags) {
        let index = token.index();
        if index & HELPER != 0 {
            self.refill_from_answer((index & !HELPER) as usize, token.generation());
            return;
        }
        let (slot, side) = ((index / 2) as usize, (index % 2) as usize);
        let Some(slot) = self.slots.get_mut(slot) else {
            return;
        };
        if slot.generation != token.generation() {
            return;
        }
        if let Some((_, connection)) = &mut slot.connection {
            connection.note(side, events);
            if !std::mem::replace(&mut slot.queued, true) {
                self.ready.push_back(index / 2);
            }
        }
    }

    /// A helper has answered, or is gone.
    fn refill_from_answer(&mut self, index: usize, generation: u32) {
        let Some(Some(helper)) = self.helpers.get_mut(index) else {
            return;
        };
        if helper.generation != generation {
            return;
        }
        match helper.process.take() {
            Ok(None) => return,
            Ok(Some(Answer::Diagnostics(diagnostics))) => {
                self.diagnostics.push((helper.port, diagnostics));
                return;
            }
            Ok(Some(Answer::Sockets(came))) => {
                let pool = &mut helper.pools[usize::from(came.v6)];
                pool.asked = 0;
                let short = came.sockets.is_empty();
                pool.sockets.extend(came.sockets);
                if short {
                    // At a limit of descriptors, here or there: asking on would go on for ever.
                    let waiting = pool.waiting.drain(..).map(|(_, client)| client);
                    self.refused.extend(waiting);
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the socket helper is gone");
                self.lose(index);
                return;
            }
        }
        self.match_up(index);
    }

    /// Does without a helper from now on. Its clients go through the TAP.
    fn lose(&mut self, index: usize) {
        let waiting = self.dismiss(index);
        self.refused.extend(waiting);
    }

    /// Ends a helper and gives back the clients that wait for its sockets.
    fn dismiss(&mut self, index: usize) -> impl Iterator<Item = Client> + use<> {
        let helper = self.helpers[index].take();
        if let Some(helper) = &helper {
            // Closing it is not enough: a process that was forked meanwhile may hold the same
            // socket, and epoll would tell of its end for ever.
            let _ = epoll::delete(&*self.epoll, helper.process.as_fd());
        }
        let pools = helper.into_iter().flat_map(|helper| helper.pools);
        pools.flat_map(|pool| pool.waiting.into_iter().map(|(_, client)| client))
    }

    /// Gives connections their turns, and clients that have waited long enough up.
    pub(crate) fn serve(&mut self, now: Instant) {
        for _ in 0..SPLICE_TURNS_A_ROUND.min(self.ready.len()) {
            let Some(index) = self.ready.pop_front() else {
                break;
            };
            let Slot {
                queued, connection, ..
            } = &mut self.slots[index as usize];
            *queued = false;
            let Some((_, connection)) = connection else {
                continue;
            };
            match connection.turn(&mut self.pipes, &mut self.carried) {
                Turn::Waiting => {}
                Turn::More => {
                    *queued = true;
                    self.ready.push_back(index);
                }
                Turn::Over => self.close(index),
            }
        }
        if self.may_wait {
            self.give_up_late(now);
        }
    }

    /// Refuses the clients that have waited long enough.
    fn give_up_late(&mut self, now: Instant) {
        self.may_wait = false;
        let helpers = self.helpers.iter_mut().flatten();
        for pool in helpers.flat_map(|s| &mut s.pools) {
            let waiting = &mut pool.waiting;
            let late = waiting.partition_point(|(until, _)| *until <= now);
            let late = waiting.drain(..late).map(|(_, client)| client);
            self.refused.extend(late);
            self.may_wait |= !waiting.is_empty();
        }
    }

    /// Connections so far.
    pub(crate) fn opened(&self) -> u64 {
        self.opened
    }

    /// Bytes that connections have carried so far: to containers, and from them.
    pub(crate) fn carried(&self) -> [u64; 2] {
        self.carried
    }

    /// What a helper has sent to ask the container of its port by.
    pub(crate) fn take_diagnostics(&mut self) -> Option<(PortId, Diagnostics)> {
        self.diagnostics.pop()
    }

    /// A client that is to go through the TAP after all.
    pub(crate) fn take_refused(&mut self) -> Option<Client> {
        self.refused.pop()
    }

    /// Whether there is work that no event will tell of.
    pub(crate) fn has_turns(&self) -> bool {
        !self.ready.is_empty() || !self.refused.is_empty()
    }

    /// When [`serve`](Self::serve) is due for a client that waits.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if !self.may_wait {
            return None;
        }
        let pools = self.helpers.iter().flatten().flat_map(|s| &s.pools);
        pools
            .filter_map(|s| s.waiting.front())
            .map(|(at, _)| *at)
            .min()
    }

    /// Whether everything that the container has sent, the ends of its streams included, was passed
    /// on.
    pub(crate) fn is_delivered(&self) -> bool {
        let mut open = self
            .slots
            .iter()
            .filter_map(|slot| slot.connection.as_ref());
        open.all(|(_, connection)| connection.is_delivered())
    }

    fn close(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.connection.take().is_some() {
            self.free.push(index);
        }
        // A burst of connections must not leave its table behind. Events of a slot that is gone
        // find no slot; the generations go on.
        if self.free.len() == self.slots.len() && self.ready.is_empty() {
            self.slots = Vec::new();
            self.free = Vec::new();
        }
    }
}

impl Helper {
    fn waiting(&self) -> usize {
        self.pools.iter().map(|pool| pool.waiting.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none_yet() -> Splices {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        Splices::new(Rc::new(epoll))
    }

    fn client() -> Client {
        let (fd, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let [address, container] = ["127.0.0.1:9", "10.0.2.100:80"].map(|a| a.parse().unwrap());
        Client {
            fd: fd.into(),
            address,
            container,
            spliced_to: container,
        }
    }

    #[test]
    fn a_client_that_is_refused_waits_for_no_event() {
        let mut splices = none_yet();
        assert!(!splices.has_turns());
        splices.refused.push(client());
        assert!(splices.has_turns());
        assert!(splices.take_refused().is_some() && !splices.has_turns());
    }

    #[test]
    fn a_client_that_is_refused_goes_with_its_container() {
        let mut splices = none_yet();
        splices.refused.push(client());
        splices.remove_port(PortId(1), &["10.0.2.101".parse().unwrap()]);
        assert!(splices.has_turns());
        splices.remove_port(PortId(2), &[client().container.ip()]);
        assert!(splices.take_refused().is_none());
    }

    #[test]
    fn a_port_goes_whichever_of_its_connections_went_before() {
        for gone in 0..3 {
            let mut splices = none_yet();
            for _ in 0..3 {
                let (client, _) = std::os::unix::net::UnixStream::pair().unwrap();
                let (container, _) = std::os::unix::net::UnixStream::pair().unwrap();
                let connection = Connection::new(client.into(), container.into());
                splices.slots.push(Slot {
                    connection: Some((PortId(1), connection)),
                    ..Slot::default()
                });
            }
            splices.close(gone);
            splices.remove_port(PortId(2), &[]);
            assert_eq!(splices.slots.len() - splices.free.len(), 2);
            splices.remove_port(PortId(1), &[]);
            assert!(splices.slots.is_empty() && splices.free.is_empty());
        }
    }
}
