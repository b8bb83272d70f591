//! The table of open forwards of one worker: opened and closed by difference, and served.
//!
//! # Theory of operation
//!
//! [`Forwards::set`] is the one way in: it compares the forwards that it replaces with the new rules,
//! keeps those that stay, closes those that are gone, and opens the rest.
//!
//! A forward's place in the table and its id make the epoll token of its socket. Listeners are edge
//! triggered: one that was not accepted from until it was empty is looked at again when `paused`
//! says so, and so is every listener, because one may be held up by another's lack of descriptors.
//!
//! Longer than 600 lines: opening, closing and serving a forward each change its one place in the table.
//!
//! # Invariants
//!
//! A UDP forward's socket is in the core and in the host table for as long as its place is taken.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use cnet_nat::datagram::UdpForward;
use cnet_nat::forward::ClientPath;
use cnet_nat::host::{DatagramKind, HostSockets, Readiness, Token, TokenKind};
use cnet_tap::socket as sys;
use cnet_tap::socket::Diagnostics;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::{PortId, Protocol};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::listener::{self, Bound};
use super::presence::Presence;
use super::splice::{Client, Splices};
use super::{
    BoundSockets, ContainerEnd, ForwardCounters, ForwardError, ForwardId, OpenForward, Rule,
    canonical,
};
use crate::budget::ACCEPTS_A_ROUND;
use crate::driver::Driver;
use crate::fd_budget::most_forwards;

/// Wait before accepting again when the process has no descriptor left.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(250);

/// Marks the tokens that tell of containers' listeners; a place in the table never has this bit.
const PRESENCE: u32 = 1 << 23;

/// Which open forwards a list of rules takes the place of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Replaced {
    /// All that there are.
    All,
    /// These; an id that is not open any more is passed over.
    These(HashSet<ForwardId>),
}

impl Replaced {
    /// Whether it is none of them, so that they need not be looked through.
    fn is_none(&self) -> bool {
        matches!(self, Replaced::These(ids) if ids.is_empty())
    }

    fn contains(&self, id: ForwardId) -> bool {
        match self {
            Replaced::All => true,
            Replaced::These(ids) => ids.contains(&id),
        }
    }
}

/// The published ports of one worker.
#[derive(Debug)]
pub(crate) struct Forwards {
    epoll: Rc<OwnedFd>,
    slots: Vec<Option<Forward>>,
    /// Places of `slots` that are free.
    free: Vec<usize>,
    /// The most forwards.
    limit: usize,
    last_id: u32,
    /// No listener is accepted from until then.
    paused: Option<Instant>,
    splices: Splices,
    /// The containers that can be asked where they listen.
    presences: Vec<Presence>,
    last_presence: u32,
    counters: ForwardCounters,
}

/// A forward in its place.
#[derive(Debug)]
struct Forward {
    open: OpenForward,
    socket: ForwardSocket,
}

/// What clients come to.
#[derive(Debug)]
enum ForwardSocket {
    /// A TCP socket, the table's own. It holds its port, and listens or not.
    Listener { fd: OwnedFd, listens: bool },
    /// A UDP socket, the core's.
    Datagram,
}

impl Forwards {
    /// None yet; their sockets will report to `epoll`.
    pub(crate) fn new(epoll: Rc<OwnedFd>) -> Forwards {
        Forwards {
            splices: Splices::new(Rc::clone(&epoll)),
            epoll,
            slots: Vec::new(),
            free: Vec::new(),
            limit: most_forwards(),
            last_id: 0,
            paused: None,
            presences: Vec::new(),
            last_presence: 0,
            counters: ForwardCounters::default(),
        }
    }

    // ---- the table ----

    /// The open forwards, in no order.
    pub(crate) fn list(&self) -> impl Iterator<Item = OpenForward> {
        self.slots.iter().flatten().map(|forward| forward.open)
    }

    /// Has `rules` take the place of the forwards that are `replaced`, and gives a result for each
    /// rule, in their order. A rule that stays keeps its id and its socket.
    pub(crate) fn set(
        &mut self,
        now: Instant,
        replaced: &Replaced,
        rules: &[Rule],
        driver: &mut Driver,
    ) -> Vec<Result<OpenForward, ForwardError>> {
        // A specification may stand for as many rules as there are ports: each is looked up once.
        let mut before: HashMap<Rule, Vec<usize>> = HashMap::new();
        let replaced = match replaced.is_none() {
            true => Vec::new(),
            false => self.slots_where(|open| replaced.contains(open.id)),
        };
        for slot in replaced {
            if let Some(Forward { open, .. }) = &self.slots[slot] {
                before.entry(open.rule).or_default().push(slot);
            }
        }
        let kept: Vec<Option<usize>> = rules
            .iter()
            .map(|rule| before.get_mut(rule)?.pop())
            .collect();
        for gone in before.into_values().flatten() {
            self.close(gone, driver);
        }
        let each = rules.iter().zip(kept);
        each.map(|(rule, kept)| {
            let kept = kept.and_then(|slot| self.slots[slot].as_ref());
            match kept.map(|forward| forward.open) {
                Some(open) => Ok(open),
                None => self.open(now, *rule, driver),
            }
        })
        .collect()
    }

    /// The places of the open forwards that `wanted` is true for.
    fn slots_where(&self, wanted: impl Fn(&OpenForward) -> bool) -> Vec<usize> {
        let wanted = |slot: &Option<Forward>| slot.as_ref().is_some_and(|f| wanted(&f.open));
        let numbered = self.slots.iter().enumerate();
        let found = numbered.filter(|(_, slot)| wanted(slot));
        found.map(|(index, _)| index).collect()
    }

    /// Closes what leads to a container whose port is gone, with its `addresses`, and its spliced
    /// connections.
    pub(crate) fn remove_port(&mut self, port: PortId, addresses: &[IpAddr], driver: &mut Driver) {
        let to_it = |open: &OpenForward| addresses.iter().any(|a| open.rule.container.has(*a));
        for gone in self.slots_where(to_it) {
            self.close(gone, driver);
        }
        self.splices.remove_port(port, addresses);
        for gone in self
            .presences
            .extract_if(.., |presence| presence.port == port)
        {
            forget(&self.epoll, &gone);
        }
        driver.hosts.remove_port(port);
    }

    fn open(
        &mut self,
        now: Instant,
        rule: Rule,
        driver: &mut Driver,
    ) -> Result<OpenForward, ForwardError> {
        if self.slots.len() - self.free.len() >= self.limit {
            return Err(ForwardError::TooMany { limit: self.limit });
        }
        let Bound { fd, at } = open_socket(&rule, driver)?;
        let slot = self.free.last().copied().unwrap_or(self.slots.len());
        let id = ForwardId(self.last_id + 1);
        let token = Token::new(TokenKind::Forward, slot as u32, id.0);
        let socket = match rule.protocol {
            Protocol::Tcp => self.hold(now, fd, token, &rule),
            Protocol::Udp => publish_datagrams(now, (fd, token), &rule, at, driver),
        };
        let socket = socket.map_err(|reason| ForwardError::other(&rule, reason))?;
        self.last_id = id.0;
        let open = OpenForward {
            id,
            rule,
            bound: at,
        };
        let forward = Some(Forward { open, socket });
        match self.free.pop() {
            Some(slot) => self.slots[slot] = forward,
            None => self.slots.push(forward),
        }
        Ok(open)
    }

    /// A TCP port that listens as soon as its container does; at once if that cannot be known.
    fn hold(
        &mut self,
        now: Instant,
        fd: OwnedFd,
        token: Token,
        rule: &Rule,
    ) -> Result<ForwardSocket, String> {
        let mut socket = ForwardSocket::Listener { fd, listens: false };
        match self.presences.iter_mut().find(|p| p.is_behind(rule)) {
            Some(presence) => presence.expect(now),
            None => {
                let started = socket.set_listening(&self.epoll, token, true);
                started.map_err(|errno| errno.to_string())?;
            }
        }
        Ok(socket)
    }

    /// Closes the forward in the place `slot`.
    fn close(&mut self, slot: usize, driver: &mut Driver) {
        let Some(Forward { open, socket }) = self.slots[slot].take() else {
            return;
        };
        self.free.push(slot);
        if let ForwardSocket::Datagram = socket {
            let token = Token::new(TokenKind::Forward, slot as u32, open.id.0);
            driver.with_core(|core, io| core.unpublish_udp(token, io));
        }
    }

    /// What came to published TCP ports so far.
    pub(crate) fn counters(&self) -> ForwardCounters {
        let [to_containers, from_containers] = self.splices.carried();
        ForwardCounters {
            spliced: self.splices.opened(),
            spliced_bytes_to_containers: to_containers,
            spliced_bytes_from_containers: from_containers,
            ..self.counters
        }
    }

    // ---- clients ----

    /// Acts on readiness of a forward's socket.
    pub(crate) fn handle_event(
        &mut self,
        now: Instant,
        token: Token,
        ready: Readiness,
        driver: &mut Driver,
    ) {
        if token.index() & PRESENCE != 0 {
            let generation = token.generation();
            let told = self
                .presences
                .iter_mut()
                .find(|p| p.generation == generation);
            if let Some(presence) = told
                && presence.diagnostics().is_some_and(|d| d.take_ends())
            {
                presence.expect(now);
            }
            return;
        }
        let slot = token.index() as usize;
        match self.slots.get(slot).and_then(Option::as_ref) {
            Some(forward) if forward.open.id.0 != token.generation() => {}
            Some(Forward {
                socket: ForwardSocket::Listener { .. },
                ..
            }) => self.accept_from(now, slot, driver),
            Some(_) => driver.with_core(|core, io| core.handle_socket(now, token, ready, io)),
            None => {}
        }
    }

    /// Accepts again from all listeners, if it is time to, and asks containers where they listen.
    pub(crate) fn handle_timeout(&mut self, now: Instant, driver: &mut Driver) {
        self.ask_containers(now);
        if self.paused.is_some_and(|until| until <= now) {
            self.paused = None;
            for slot in 0..self.slots.len() {
                self.accept_from(now, slot, driver);
            }
        }
    }

    /// Accepts the clients that wait at a listener. Without a free descriptor all listeners pause:
    /// the kernel keeps the clients in their queues.
    fn accept_from(&mut self, now: Instant, slot: usize, driver: &mut Driver) {
        for round in 0.. {
            let Some(Some(Forward {
                open,
                socket:
                    ForwardSocket::Listener {
                        fd: listener,
                        listens: true,
                    },
            })) = self.slots.get(slot)
            else {
                return;
            };
            let (end, to_loopback) = (open.rule.container, open.rule.to_loopback);
            if self.paused.is_some_and(|until| until > now) {
                return;
            }
            if round == ACCEPTS_A_ROUND {
                // Edge triggered: no event tells of the clients that still wait. This holds no other
                // listener up, so that a flood at one does not starve the rest.
                self.paused.get_or_insert(now);
                return;
            }
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::acceptfrom_with(listener, flags) {
                Ok((fd, address)) => {
                    let address = address.and_then(|a| SocketAddr::try_from(a).ok());
                    let Some(address) = address.map(canonical) else {
                        continue;
                    };
                    let Some(container) = self.end_for(now, end, address.ip()) else {
                        continue;
                    };
                    let spliced_to = match to_loopback {
                        true => loopback_of(container),
                        false => container,
                    };
                    let client = Client {
                        fd,
                        address,
                        container,
                        spliced_to,
                    };
                    self.route_client(now, client, driver);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.paused = Some(now + ACCEPT_INTERVAL);
                    return;
                }
                // The client is gone already, or its packet was refused: the next one.
                Err(_) => {}
            }
        }
    }

    /// The container's end that a client is brought to: that of its own family, unless the container
    /// is known to listen at the other one alone.
    fn end_for(&mut self, now: Instant, end: ContainerEnd, client: IpAddr) -> Option<SocketAddr> {
        let near = end.in_order(client).next()?;
        let presence = self.presences.iter_mut();
        let mut asked = presence.filter(|presence| presence.diagnostics().is_some());
        let Some(presence) = asked.find(|presence| presence.addresses.contains(&near.ip())) else {
            return Some(near);
        };
        presence.choose(now, end, client)
    }

    /// Does with an accepted client what the core decides.
    fn route_client(&mut self, now: Instant, client: Client, driver: &mut Driver) {
        self.counters.accepted += 1;
        let can_splice = self.splices.can_take(client.container.ip());
        let path = driver
            .core
            .client_path(now, client.address, client.container, can_splice);
        match path {
            ClientPath::Splice => self.splices.admit(now, client),
            ClientPath::Frames => self.bring_by_frames(now, client, driver),
            ClientPath::Refuse => {
                self.counters.refused += 1;
                // Without it the client gets a FIN, which is all that can be lost.
                let _ = sys::reset_on_close(&client.fd);
            }
        }
    }

    /// The ordinary way of a client: through the core's TCP and the container's device.
    fn bring_by_frames(&mut self, now: Instant, client: Client, driver: &mut Driver) {
        self.counters.by_frames += 1;
        let Client {
            fd,
            address,
            container,
            ..
        } = client;
        let socket = driver.hosts.insert(fd, address.is_ipv6(), false);
        driver.with_core(|core, io| core.handle_accept(now, container, address, socket, io));
    }

    // ---- spliced connections ----

    /// Splices connections from the host's loopback to a port's `addresses`, with sockets that
    /// `helper` makes, and asks the container where it listens by what the helper sends.
    pub(crate) fn use_socket_helper(
        &mut self,
        now: Instant,
        port: PortId,
        addresses: Vec<IpAddr>,
        helper: cnet_tap::SocketHelper,
    ) {
        self.last_presence += 1;
        let awaited = Presence::awaited(now, port, addresses.clone(), self.last_presence);
        self.presences.push(awaited);
        self.splices.use_helper(port, addresses, helper);
    }

    // ---- where containers listen ----

    /// Asks the container of `port`, which has `addresses`, where it listens.
    pub(crate) fn use_diagnostics(
        &mut self,
        now: Instant,
        port: PortId,
        addresses: Vec<IpAddr>,
        diagnostics: Diagnostics,
        driver: &mut Driver,
    ) {
        let diagnostics = Rc::new(diagnostics);
        let at = self.presences.iter().position(|p| p.port == port);
        let at = at.unwrap_or_else(|| {
            self.last_presence += 1;
            let awaited = Presence::awaited(now, port, addresses, self.last_presence);
            self.presences.push(awaited);
            self.presences.len() - 1
        });
        let presence = &mut self.presences[at];
        let token = Token::new(TokenKind::Forward, PRESENCE, presence.generation);
        let data = epoll::EventData::new_u64(token.to_bits());
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        // Unwatched, an end would be noticed by no one: better to listen always.
        if epoll::add(&*self.epoll, diagnostics.as_fd(), data, flags).is_err() {
            return;
        }
        let addresses = presence.addresses.clone();
        presence.use_kernel(now, Rc::clone(&diagnostics));
        driver.hosts.use_diagnostics(port, addresses, diagnostics);
    }

    /// Asks the containers that it is time to ask, and has their ports listen or not.
    fn ask_containers(&mut self, now: Instant) {
        let is_due = |p: &Presence| p.poll_timeout().is_some_and(|due| due <= now);
        for index in (0..self.presences.len()).rev() {
            if !is_due(&self.presences[index]) {
                continue;
            }
            let presence = &mut self.presences[index];
            if presence.is_late(now) || !presence.ask(now) {
                let gone = self.presences.swap_remove(index);
                forget(&self.epoll, &gone);
                self.listen_as_told(&gone, |_| true);
                continue;
            }
            let presence = self.presences.swap_remove(index);
            let missed = self.listen_as_told(&presence, |end| presence.serves(end));
            self.presences.push(presence);
            if let Some(presence) = self.presences.last_mut() {
                presence.set_next(now, missed);
            }
        }
    }

    /// What the container of `port` has bound; `None` if it cannot be asked.
    pub(crate) fn bound_in(&self, port: PortId) -> Option<BoundSockets> {
        let presence = self.presences.iter().find(|p| p.port == port)?;
        let diagnostics = presence.diagnostics()?;
        Some(BoundSockets {
            tcp: diagnostics.listeners().ok()?,
            udp: diagnostics.udp_holders().ok()?,
        })
    }

    /// Has the TCP ports that lead to a container listen where `serves` says that it does; whether
    /// there is one that does not listen.
    fn listen_as_told(&mut self, to: &Presence, serves: impl Fn(SocketAddr) -> bool) -> bool {
        let mut missed = false;
        for (slot, forward) in self.slots.iter_mut().enumerate() {
            let Some(Forward { open, socket }) = forward else {
                continue;
            };
            let ForwardSocket::Listener { listens, .. } = *socket else {
                continue;
            };
            if !to.is_behind(&open.rule) {
                continue;
            }
            let ends = open.rule.container.in_order(open.bound.ip());
            let to_loopback = open.rule.to_loopback;
            let wanted = { ends }.any(|end| serves(end) || to_loopback && serves(loopback_of(end)));
            let token = Token::new(TokenKind::Forward, slot as u32, open.id.0);
            if wanted != listens
                && let Err(error) = socket.set_listening(&self.epoll, token, wanted)
            {
                tracing::warn!(%error, port = %open.bound, "a published port cannot listen now");
            }
            missed |= !matches!(socket, ForwardSocket::Listener { listens: true, .. });
        }
        missed
    }

    /// Acts on an event of a spliced connection or of a socket helper.
    pub(crate) fn handle_splice_event(&mut self, token: Token, flags: epoll::EventFlags) {
        self.splices.handle_event(token, flags);
    }

    /// Gives spliced connections their turns, and those that cannot be spliced to the core.
    pub(crate) fn serve_splices(&mut self, now: Instant, driver: &mut Driver) {
        self.splices.serve(now);
        while let Some((port, diagnostics)) = self.splices.take_diagnostics() {
            self.use_diagnostics(now, port, Vec::new(), diagnostics, driver);
        }
        while let Some(client) = self.splices.take_refused() {
            self.bring_by_frames(now, client, driver);
        }
    }

    /// Whether there is work that no event will tell of.
    pub(crate) fn has_turns(&self) -> bool {
        self.splices.has_turns()
    }

    /// Whether all that containers have sent over spliced connections was passed on.
    pub(crate) fn is_delivered(&self) -> bool {
        self.splices.is_delivered()
    }

    /// When listeners are to be accepted from again, a client has waited long enough for a socket, or
    /// a container is to be asked where it listens.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = [self.paused, self.splices.poll_timeout()];
        let presences = self.presences.iter().filter_map(Presence::poll_timeout);
        due.into_iter().flatten().chain(presences).min()
    }
}

impl ForwardSocket {
    /// Has a TCP port listen, with its clients told under `token`, or hold its port alone.
    fn set_listening(
        &mut self,
        epoll: &OwnedFd,
        token: Token,
        wanted: bool,
    ) -> rustix::io::Result<()> {
        let ForwardSocket::Listener { fd, listens } = self else {
            return Ok(());
        };
        if wanted {
            listener::start_listening(fd)?;
            let data = epoll::EventData::new_u64(token.to_bits());
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(epoll, fd.as_fd(), data, flags)?;
        } else {
            epoll::delete(epoll, fd.as_fd())?;
            listener::stop_listening(fd)?;
        }
        *listens = wanted;
        Ok(())
    }
}

/// The same port of the loopback address of the same family.
fn loopback_of(end: SocketAddr) -> SocketAddr {
    let address: IpAddr = match end {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(address, end.port())
}

/// Hears no more of a container's listeners.
fn forget(epoll: &OwnedFd, presence: &Presence) {
    if let Some(diagnostics) = presence.diagnostics() {
        // Closing it is not enough: others may hold it.
        let _ = epoll::delete(epoll, diagnostics.as_fd());
    }
}

/// Opens the socket of `rule`, whose port a mapping of UDP gives back if it took it.
fn open_socket(rule: &Rule, driver: &mut Driver) -> Result<Bound, ForwardError> {
    match listener::open(rule) {
        Err(ForwardError::InUse { .. }) if rule.protocol == Protocol::Udp => {
            let port = rule.host.port();
            driver.with_core(|core, io| core.release_udp_port(port, io));
            listener::open(rule)
        }
        opened => opened,
    }
}

/// Gives the core a bound UDP socket, whose readiness is reported under `token`.
fn publish_datagrams(
    now: Instant,
    (fd, token): (OwnedFd, Token),
    rule: &Rule,
    bound: SocketAddr,
    driver: &mut Driver,
) -> Result<ForwardSocket, String> {
    let Driver { core, hosts, .. } = driver;
    let v6 = bound.is_ipv6();
    let prepared = hosts.prepare_datagram(&fd, DatagramKind::Udp, v6);
    prepared.map_err(|e| format!("{e:?}"))?;
    if bound.ip().is_unspecified() {
        // An answer comes from the address that was asked. The other details cost as little.
        sys::receive_details(&fd, v6).map_err(|e| e.to_string())?;
    }
    let socket = hosts.insert(fd, v6, true);
    let forward = UdpForward {
        bound,
        both_families: rule.both_families && v6,
        container: rule.container,
    };
    let published = core
        .publish_udp(now, token, socket, forward)
        .map_err(|e| e.to_string())
        .and_then(|()| hosts.watch(socket, token).map_err(|e| format!("{e:?}")));
    if let Err(reason) = published {
        driver.with_core(|core, io| core.unpublish_udp(token, io));
        driver.hosts.close(socket);
        return Err(reason);
    }
    Ok(ForwardSocket::Datagram)
}
