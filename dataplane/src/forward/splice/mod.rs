//! Local splice: a published TCP port reached from the host's loopback, without the TAP.
//!
//! # Theory of operation
//!
//! Client and server are on one machine, so no packet is needed between them: two kernel sockets,
//! one accepted on the host and one connected inside the container's network namespace, and
//! splice(2) from one to the other ([`connection`]). The second comes from the port's
//! [`SocketHelper`], through a small stock that is refilled while connections come, so that a
//! connection waits for nobody in the ordinary case. The stock is empty until the first.
//!
//! # Which connections
//!
//! Those whose client has a loopback address. The container cannot be shown that address anyway:
//! on its link it means itself. A client with any other address, one of the host's own included,
//! goes through the TAP and is shown as what it is (CVE-2021-20199 was the opposite).
//!
//! The connection is made to the container's own address, as through the TAP, and never to its
//! loopback: a service that listens on loopback alone has not been published, and one that trusts
//! loopback must not meet a stranger there. The kernel takes the address that is connected to as
//! the source as well, so that the container sees itself as the client. That also tells whether the
//! container has the address at all: if the source is another, the connection would leave through
//! the TAP, and is left to the ordinary way.
//!
//! # When it cannot be done
//!
//! Whatever fails before the container has answered sends the client through the TAP: no supplier,
//! one that does not answer within [`PATIENCE`], no descriptor, too many connections, no free
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
use cnet_tap::socket as sys;
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

use crate::socket::allowed;
use connection::{CLIENT, Connection, GUEST, Turn};
use pipe_pool::Pipes;
use socket_pool::{Stock, make_room};

/// How long a client waits for a socket before it goes through the TAP: much longer than a supplier
/// takes, and short of what a person notices.
const PATIENCE: Duration = Duration::from_millis(100);

/// Connections at most, where descriptors permit.
const CONNECTIONS: usize = 1024;
/// Two sockets, and two pipes of two ends.
const DESCRIPTORS_EACH: usize = 6;
/// The part of the process's descriptors that connections may take, as its divisor. It is half of
/// what flows leave.
const PART: usize = 8;

/// Turns given before other events are looked at.
const TURNS_A_ROUND: usize = 8;

/// Marks the tokens of suppliers; connections have two tokens each, from 0 on.
const SUPPLY: u32 = 1 << 23;

/// Starts a supplier of sockets in a container's namespaces, for
/// [`Control::supply`](crate::Control::supply). `None` where that fails, which is logged, or the
/// environment variable `CNET_WITHOUT` names `splice`: published ports work without.
///
/// To be called while the process has one thread.
pub fn supplier(namespaces: &Namespaces) -> Option<SocketHelper> {
    if !allowed("splice") {
        return None;
    }
    match SocketHelper::start(namespaces) {
        Ok(supplier) => Some(supplier),
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
    /// Its address, [`canonical`](crate::canonical).
    pub(crate) peer: SocketAddr,
    /// Where in the container it is to come.
    pub(crate) guest: SocketAddr,
}

/// A port's supplier.
#[derive(Debug)]
struct Supply {
    generation: u32,
    port: PortId,
    guests: Vec<IpAddr>,
    supplier: SocketHelper,
    /// IPv4, IPv6.
    stocks: [Stock; 2],
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
    supplies: Vec<Option<Supply>>,
    next_generation: u32,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Connections, and sockets in stock, at most.
    capacity: usize,
    /// Clients that there were.
    clients: u64,
    ready: VecDeque<u32>,
    pipes: Pipes,
    refused: Vec<Client>,
    /// Some client may wait for a socket: without it no supply is looked through.
    may_wait: bool,
}

impl Splices {
    /// None yet; they will report to `epoll`.
    pub(crate) fn new(epoll: Rc<OwnedFd>) -> Splices {
        let descriptors = getrlimit(Resource::Nofile).current;
        let descriptors = descriptors.map_or(usize::MAX, |n| n.try_into().unwrap_or(usize::MAX));
        Splices {
            epoll,
            supplies: Vec::new(),
            next_generation: 0,
            slots: Vec::new(),
            free: Vec::new(),
            capacity: CONNECTIONS.min(descriptors / PART / DESCRIPTORS_EACH),
            clients: 0,
            ready: VecDeque::new(),
            pipes: Pipes::default(),
            refused: Vec::new(),
            may_wait: false,
        }
    }

    /// Has `supplier` make the sockets for connections to `guests`, which are addresses of `port`.
    pub(crate) fn supply(&mut self, port: PortId, guests: Vec<IpAddr>, supplier: SocketHelper) {
        let index = match self.supplies.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.supplies.push(None);
                self.supplies.len() - 1
            }
        };
        self.next_generation += 1;
        let generation = self.next_generation;
        let token = Token::new(TokenKind::Splice, SUPPLY | index as u32, generation);
        let data = epoll::EventData::new_u64(token.to_bits());
        // Unwatched it would be asked and never heard: better none.
        if epoll::add(&*self.epoll, supplier.as_fd(), data, EventFlags::IN).is_ok() {
            self.supplies[index] = Some(Supply {
                generation,
                port,
                guests,
                supplier,
                stocks: Default::default(),
            });
        }
    }

    /// The container of `port` is gone: so are its connections.
    pub(crate) fn withdraw(&mut self, port: PortId) {
        for index in 0..self.supplies.len() {
            if self.supplies[index]
                .as_ref()
                .is_some_and(|s| s.port == port)
            {
                for client in self.dismiss(index) {
                    // Not by way of frames: the address may be another container's at once.
                    // Without it the client gets a FIN, which tells as much.
                    let _ = sys::reset_on_close(&client.fd);
                }
            }
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

    /// Takes a client over, or gives it back to go through the TAP.
    pub(crate) fn admit(&mut self, now: Instant, client: Client) -> Option<Client> {
        let guest = client.guest.ip();
        let supplies = self.supplies.iter().flatten();
        let waiting: usize = supplies.map(Supply::waiting).sum();
        let room = self.slots.len() - self.free.len() + waiting < self.capacity;
        let supplied = |s: &Option<Supply>| s.as_ref().is_some_and(|s| s.guests.contains(&guest));
        let Some(index) = self.supplies.iter().position(supplied) else {
            return Some(client);
        };
        if !room || !client.peer.ip().is_loopback() {
            return Some(client);
        }
        if let Some(supply) = &mut self.supplies[index] {
            let stock = &mut supply.stocks[usize::from(guest.is_ipv6())];
            self.clients += 1;
            stock.used = Some(self.clients);
            stock.waiting.push_back((now + PATIENCE, client));
            self.may_wait = true;
        }
        self.match_up(index);
        None
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
                tracing::debug!("the supplier of sockets does not listen");
                self.lose(index);
            }
        }
    }

    /// Asks for more sockets of a family that is used and running low.
    fn refill(&mut self, index: usize, family: usize) -> std::io::Result<()> {
        let Some(Some(supply)) = self.supplies.get_mut(index) else {
            return Ok(());
        };
        let Some(short) = supply.stocks[family].short() else {
            return Ok(());
        };
        let mut stock = std::mem::take(&mut supply.stocks[family]);
        let others = self.supplies.iter_mut().flatten();
        let others = others.flat_map(|supply| &mut supply.stocks);
        let limit = self.capacity.saturating_sub(stock.sockets.len());
        let count = make_room(others, short, limit);
        stock.asked = count;
        let Some(Some(supply)) = self.supplies.get_mut(index) else {
            return Ok(());
        };
        supply.stocks[family] = stock;
        supply.supplier.ask(family == 1, count as u8)
    }

    fn next_pair(&mut self, index: usize, family: usize) -> Option<(PortId, Client, OwnedFd)> {
        let supply = self.supplies.get_mut(index)?.as_mut()?;
        let stock = &mut supply.stocks[family];
        if stock.waiting.is_empty() {
            return None;
        }
        let socket = stock.sockets.pop()?;
        let (_, client) = stock.waiting.pop_front()?;
        Some((supply.port, client, socket))
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
        match rustix::net::connect(&socket, &client.guest) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(_) => return Err(client),
        }
        let source = rustix::net::getsockname(&socket);
        let source = source.ok().and_then(|a| SocketAddr::try_from(a).ok());
        if source.is_none_or(|source| source.ip() != client.guest.ip()) {
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
        let slot = &mut self.slots[index as usize];
        self.next_generation += 1;
        slot.generation = self.next_generation;
        let mut watched = Ok(());
        for side in [CLIENT, GUEST] {
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
    pub(crate) fn handle(&mut self, token: Token, events: EventFlags) {
        let index = token.index();
        if index & SUPPLY != 0 {
            self.restock((index & !SUPPLY) as usize, token.generation());
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

    /// A supplier has answered, or is gone.
    fn restock(&mut self, index: usize, generation: u32) {
        let Some(Some(supply)) = self.supplies.get_mut(index) else {
            return;
        };
        if supply.generation != generation {
            return;
        }
        match supply.supplier.take() {
            Ok(None) => return,
            Ok(Some(came)) => {
                let stock = &mut supply.stocks[usize::from(came.v6)];
                stock.asked = 0;
                let short = came.sockets.is_empty();
                stock.sockets.extend(came.sockets);
                if short {
                    // At a limit of descriptors, here or there: asking on would go on for ever.
                    let waiting = stock.waiting.drain(..).map(|(_, client)| client);
                    self.refused.extend(waiting);
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the supplier of sockets is gone");
                self.lose(index);
                return;
            }
        }
        self.match_up(index);
    }

    /// Does without a supplier from now on. Its clients go through the TAP.
    fn lose(&mut self, index: usize) {
        let waiting = self.dismiss(index);
        self.refused.extend(waiting);
    }

    /// Ends a supplier and gives back the clients that wait for its sockets.
    fn dismiss(&mut self, index: usize) -> impl Iterator<Item = Client> + use<> {
        let supply = self.supplies[index].take();
        if let Some(supply) = &supply {
            // Closing it is not enough: a process that was forked meanwhile may hold the same
            // socket, and epoll would tell of its end for ever.
            let _ = epoll::delete(&*self.epoll, supply.supplier.as_fd());
        }
        let stocks = supply.into_iter().flat_map(|supply| supply.stocks);
        stocks.flat_map(|stock| stock.waiting.into_iter().map(|(_, client)| client))
    }

    /// Gives connections their turns, and clients that have waited long enough up.
    pub(crate) fn serve(&mut self, now: Instant) {
        for _ in 0..TURNS_A_ROUND.min(self.ready.len()) {
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
            match connection.turn(&mut self.pipes) {
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
        let supplies = self.supplies.iter_mut().flatten();
        for stock in supplies.flat_map(|s| &mut s.stocks) {
            let waiting = &mut stock.waiting;
            let late = waiting.partition_point(|(until, _)| *until <= now);
            let late = waiting.drain(..late).map(|(_, client)| client);
            self.refused.extend(late);
            self.may_wait |= !waiting.is_empty();
        }
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
        let stocks = self.supplies.iter().flatten().flat_map(|s| &s.stocks);
        stocks
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

impl Supply {
    fn waiting(&self) -> usize {
        self.stocks.iter().map(|stock| stock.waiting.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_refused_waits_for_no_event() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut splices = Splices::new(Rc::new(epoll));
        assert!(!splices.has_turns());
        let (fd, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let [peer, guest] = ["127.0.0.1:9", "10.0.2.100:80"].map(|a| a.parse().unwrap());
        let fd = fd.into();
        splices.refused.push(Client { fd, peer, guest });
        assert!(splices.has_turns());
        assert!(splices.take_refused().is_some() && !splices.has_turns());
    }

    #[test]
    fn a_port_goes_whichever_of_its_connections_went_before() {
        for gone in 0..3 {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let mut splices = Splices::new(Rc::new(epoll));
            for _ in 0..3 {
                let (client, _) = std::os::unix::net::UnixStream::pair().unwrap();
                let (guest, _) = std::os::unix::net::UnixStream::pair().unwrap();
                let connection = Connection::new(client.into(), guest.into());
                splices.slots.push(Slot {
                    connection: Some((PortId(1), connection)),
                    ..Slot::default()
                });
            }
            splices.close(gone);
            splices.withdraw(PortId(2));
            assert_eq!(splices.slots.len() - splices.free.len(), 2);
            splices.withdraw(PortId(1));
            assert!(splices.slots.is_empty() && splices.free.is_empty());
        }
    }
}
