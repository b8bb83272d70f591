//! Published UDP ports: which client spoke to a container through which host socket.
//!
//! Theory of operation. A published port is a host socket that the shell bound. What arrives there
//! goes to the container's address and port with the client's address as source, and the client is
//! remembered: when the container sends from that port to that client, it answers, and the answer
//! leaves through the socket the client spoke to, from the address the client spoke to. So several
//! published ports may lead to one container port (8080 and 8081, or two addresses of the host), and
//! each client hears from the port it knows.
//!
//! To any other end the container's port speaks through its published port as well, so that what it is
//! heard from is what it is reached at ([`Forwards::speaks_for`]); only where no published port can
//! reach the destination does it have an ordinary mapping.
//!
//! A client is remembered twice: under the address that the container was shown, by which answers
//! are recognised, and under what the host calls it, by which it is recognised when it speaks again.
//! The two may differ: a loopback client looks like the gateway, a client of the other family too,
//! and a socket of both families calls an IPv4 client `::ffff:a.b.c.d`. Where two clients would look
//! alike to the container, the later one is shown with another port.
//!
//! Invariants. A peer is linked into the list of its forward, most recently used first, and there
//! are at most [`PEERS_PER_FORWARD`] in it; a new one takes the place of the oldest. A peer ends
//! after the time of a mapping without traffic either way, by one timer a forward. Peers of a forward
//! end with it. `by_host` holds each peer once.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use cnet_wire::PortId;
use cnet_wire::time::{Duration, Instant};

use crate::flow::{FlowTable, Handle, TableFull, TimerWheel};
use crate::forward::ContainerEnd;
use crate::host::{SocketId, Token};

/// Why a port could not be published.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The token is in use.
    #[error("this UDP port is published already")]
    AlreadyPublished,
    /// There is no room for another.
    #[error("too many UDP ports are published")]
    TooMany,
}

/// Clients that a forward remembers.
pub(super) const PEERS_PER_FORWARD: usize = 1024;

/// Ports that are tried for a client which would look like another one.
const SHOWN_PORT_ATTEMPTS: u16 = 64;

/// How long a client whose datagrams were not answered stays with one family of the container.
const CHOICE_TIME: Duration = Duration::from_secs(1);

/// A published UDP port, as the shell has opened it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpForward {
    /// The host's address and port that it is bound to. One of IPv6 may serve IPv4 as well.
    pub bound: SocketAddr,
    /// Whether it serves IPv4 though it is bound to an IPv6 address.
    pub both_families: bool,
    /// Where it leads.
    pub container: ContainerEnd,
}

impl UdpForward {
    /// Whether the container may speak first to `to`, an address that is not IPv4-mapped, by its
    /// socket. Not to the host's loopback, which a mapping knows by the name that the container does.
    fn reaches(&self, to: IpAddr) -> bool {
        let family = self.both_families || self.bound.is_ipv4() == to.is_ipv4();
        family && !to.is_loopback() && !self.bound.ip().is_loopback()
    }
}

/// A published port.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) socket: SocketId,
    pub(super) is: UdpForward,
    /// The switch port that has the container's addresses, if that is known: only what comes from
    /// there speaks for the container before a client did.
    owner: Option<PortId>,
    /// As of a mapping.
    pub(super) largest_segment: usize,
    peers: usize,
    newest: Option<Handle>,
    oldest: Option<Handle>,
}

/// A client, as the container sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct PeerKey {
    /// The container's switch port: only from there can the answer come.
    pub(super) port: PortId,
    pub(super) container: SocketAddr,
    pub(super) client: SocketAddr,
}

/// A client, as the host sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct HostKey {
    pub(super) forward: Handle,
    /// The client, as the forward's socket names it.
    pub(super) client: SocketAddr,
    /// The host's address that it spoke to.
    pub(super) local: Option<IpAddr>,
}

#[derive(Debug)]
struct Peer {
    host: HostKey,
    last_used: Instant,
    /// When the container's family was chosen.
    chosen: Instant,
    answered: bool,
    newer: Option<Handle>,
    older: Option<Handle>,
}

/// How the container answers a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) forward: Handle,
    /// The client, as the forward's socket names it.
    pub(super) client: SocketAddr,
    /// The host's address that the client spoke to.
    pub(super) source: Option<IpAddr>,
}

/// The published UDP ports.
#[derive(Debug)]
pub(super) struct Forwards {
    forwards: FlowTable<Token, Forward>,
    /// The forwards of each container's end.
    of_container: BTreeMap<SocketAddr, Vec<Handle>>,
    peers: FlowTable<PeerKey, Peer>,
    by_host: FlowTable<HostKey, Handle>,
    /// Keyed by the forward's slot: when its oldest peer may be over.
    timers: TimerWheel,
    timeout: Duration,
}

impl Forwards {
    pub(super) fn new(now: Instant, timeout: Duration, seed: u64) -> Forwards {
        Forwards {
            forwards: FlowTable::new(Token::MAX_INDEX as usize, seed),
            of_container: BTreeMap::new(),
            peers: FlowTable::new(Token::MAX_INDEX as usize, seed),
            by_host: FlowTable::new(Token::MAX_INDEX as usize, seed),
            timers: TimerWheel::new(now),
            timeout,
        }
    }

    /// Enters a forward. `owner` is the port that has the container's addresses, if that is known.
    pub(super) fn publish(
        &mut self,
        token: Token,
        socket: SocketId,
        is: UdpForward,
        owner: Option<PortId>,
    ) -> Result<(), PublishError> {
        if self.forwards.find(&token).is_some() {
            return Err(PublishError::AlreadyPublished);
        }
        let forward = Forward {
            socket,
            is,
            owner,
            largest_segment: usize::MAX,
            peers: 0,
            newest: None,
            oldest: None,
        };
        let handle = match self.forwards.insert(token, forward) {
            Ok(handle) => handle,
            Err(TableFull) => return Err(PublishError::TooMany),
        };
        for end in is.container.in_order(is.bound.ip()) {
            self.of_container.entry(end).or_default().push(handle);
        }
        Ok(())
    }

    /// Takes a forward and its peers out.
    pub(super) fn unpublish(&mut self, token: Token) -> Option<Forward> {
        let handle = self.forwards.find(&token)?;
        while let Some(oldest) = self.forwards.get(handle)?.oldest {
            self.forget(oldest);
        }
        self.timers.cancel(handle.index);
        let (_, forward) = self.forwards.remove(handle)?;
        for end in forward.is.container.in_order(forward.is.bound.ip()) {
            if let Some(handles) = self.of_container.get_mut(&end) {
                handles.retain(|other| *other != handle);
                if handles.is_empty() {
                    self.of_container.remove(&end);
                }
            }
        }
        Some(forward)
    }

    pub(super) fn find(&self, token: Token) -> Option<(Handle, &Forward)> {
        let handle = self.forwards.find(&token)?;
        Some((handle, self.forwards.get(handle)?))
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&Forward> {
        self.forwards.get(handle)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Forward> {
        self.forwards.get_mut(handle)
    }

    pub(super) fn peers(&self) -> usize {
        self.peers.len()
    }

    /// The forward by which the container's end `container` on `port` speaks to `to`, whom it has not
    /// heard: one that is bound to the same port and to all addresses before others, and of two alike
    /// the older one.
    pub(super) fn speaks_for(
        &self,
        port: PortId,
        container: SocketAddr,
        to: IpAddr,
    ) -> Option<Handle> {
        if self.of_container.is_empty() {
            return None;
        }
        let handles = self.of_container.get(&container)?;
        let usable = handles.iter().filter_map(|handle| {
            let forward = self.forwards.get(*handle)?;
            (forward.owner == Some(port) && forward.is.reaches(to)).then_some((*handle, forward))
        });
        let rank = |(_, forward): &(Handle, &Forward)| {
            let bound = forward.is.bound;
            (
                bound.port() != container.port(),
                !bound.ip().is_unspecified(),
            )
        };
        usable.min_by_key(rank).map(|(handle, _)| handle)
    }

    /// The client that the host calls `host`, if it has spoken before, as the container sees it. It is
    /// renewed. `None` as well when it is time to choose the container's family again.
    pub(super) fn known(&mut self, now: Instant, host: &HostKey) -> Option<PeerKey> {
        let index = self.by_host.find(host)?;
        let handle = *self.by_host.get(index)?;
        let key = *self.peers.key(handle)?;
        let peer = self.peers.get(handle)?;
        let forward = self.forwards.get(host.forward)?;
        let unsure = !peer.answered && forward.is.container.has_both();
        if unsure && now.saturating_since(peer.chosen) >= CHOICE_TIME {
            return None;
        }
        self.renew(now, handle);
        Some(key)
    }

    /// Notes that the client `host` spoke to the container's end `container` on `port`, and gives it
    /// as the container is to see it: as `shown`, or with another port if there is such a client.
    /// `None` if there is no room.
    pub(super) fn remember(
        &mut self,
        now: Instant,
        host: HostKey,
        port: PortId,
        container: SocketAddr,
        shown: SocketAddr,
    ) -> Option<PeerKey> {
        if let Some(index) = self.by_host.find(&host)
            && let Some(handle) = self.by_host.get(index).copied()
        {
            let key = *self.peers.key(handle)?;
            if (key.port, key.container) == (port, container) {
                if let Some(peer) = self.peers.get_mut(handle) {
                    peer.chosen = now;
                }
                self.renew(now, handle);
                return Some(key);
            }
            self.forget(handle);
        }
        let key = self.free_key(PeerKey {
            port,
            container,
            client: shown,
        })?;
        let f = self.forwards.get(host.forward)?;
        if let (PEERS_PER_FORWARD.., Some(oldest)) = (f.peers, f.oldest) {
            self.forget(oldest);
        }
        let peer = Peer {
            host,
            last_used: now,
            chosen: now,
            answered: false,
            newer: None,
            older: None,
        };
        let peer = self.peers.insert(key, peer).ok()?;
        if self.by_host.insert(host, peer).is_err() {
            self.peers.remove(peer);
            return None;
        }
        self.link(peer);
        let forward = host.forward;
        if self.forwards.get(forward).is_some_and(|f| f.peers == 1) {
            self.timers.set(forward.index, now + self.timeout);
        }
        Some(key)
    }

    /// `key`, or one like it with a port that no client has.
    fn free_key(&self, mut key: PeerKey) -> Option<PeerKey> {
        for _ in 0..SHOWN_PORT_ATTEMPTS {
            if self.peers.find(&key).is_none() {
                return Some(key);
            }
            let next = key.client.port().checked_add(1).unwrap_or(1024);
            key.client.set_port(next);
        }
        None
    }

    /// How the container of `key` answers the client. `None` if that client did not speak first.
    pub(super) fn answer(&mut self, now: Instant, key: &PeerKey) -> Option<Answer> {
        let handle = self.peers.find(key)?;
        self.renew(now, handle);
        let peer = self.peers.get_mut(handle)?;
        peer.answered = true;
        Some(Answer {
            forward: peer.host.forward,
            client: peer.host.client,
            source: peer.host.local,
        })
    }

    /// Whether the container of `key` was spoken to by the client.
    pub(super) fn contains(&self, key: &PeerKey) -> bool {
        self.peers.find(key).is_some()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Forgets the peers whose time is over.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some(index) = self.timers.expire(now) {
            let forward = self.forwards.at(index).and_then(|h| self.forwards.get(h));
            let mut oldest = forward.and_then(|f| f.oldest);
            while let Some(handle) = oldest {
                let Some(peer) = self.peers.get(handle) else {
                    break;
                };
                let deadline = peer.last_used + self.timeout;
                if deadline > now {
                    self.timers.set(index, deadline);
                    break;
                }
                oldest = peer.newer;
                self.forget(handle);
            }
        }
    }

    /// Forgets the clients that spoke to a container on `port`. Those who speak again are new ones.
    pub(super) fn remove_port(&mut self, port: PortId) {
        let of_port = self.peers.iter().filter(|(_, key, _)| key.port == port);
        let peers: Vec<Handle> = of_port.map(|(handle, ..)| handle).collect();
        for peer in peers {
            self.forget(peer);
        }
    }

    fn renew(&mut self, now: Instant, peer: Handle) {
        let Some(p) = self.peers.get_mut(peer) else {
            return;
        };
        p.last_used = now;
        if p.newer.is_some() {
            self.unlink(peer);
            self.link(peer);
        }
    }

    /// Puts `peer` at the head of its forward's list.
    fn link(&mut self, peer: Handle) {
        let Some(p) = self.peers.get_mut(peer) else {
            return;
        };
        let Some(f) = self.forwards.get_mut(p.host.forward) else {
            return;
        };
        p.newer = None;
        p.older = f.newest.replace(peer);
        f.peers += 1;
        match p.older {
            Some(older) => {
                if let Some(older) = self.peers.get_mut(older) {
                    older.newer = Some(peer);
                }
            }
            None => f.oldest = Some(peer),
        }
    }

    /// Takes `peer` out of its forward's list.
    fn unlink(&mut self, peer: Handle) {
        let Some(p) = self.peers.get(peer) else {
            return;
        };
        let (forward, newer, older) = (p.host.forward, p.newer, p.older);
        if let Some(p) = newer.and_then(|h| self.peers.get_mut(h)) {
            p.older = older;
        }
        if let Some(p) = older.and_then(|h| self.peers.get_mut(h)) {
            p.newer = newer;
        }
        if let Some(f) = self.forwards.get_mut(forward) {
            f.peers -= 1;
            if newer.is_none() {
                f.newest = older;
            }
            if older.is_none() {
                f.oldest = newer;
            }
        }
    }

    fn forget(&mut self, peer: Handle) {
        self.unlink(peer);
        let Some((_, gone)) = self.peers.remove(peer) else {
            return;
        };
        if let Some(index) = self.by_host.find(&gone.host) {
            self.by_host.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::TokenKind;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const TIMEOUT: Duration = Duration::from_secs(300);
    const PORT: PortId = PortId(3);

    fn token(n: u32) -> Token {
        Token::new(TokenKind::Forward, n, 0)
    }

    fn addr(n: u32) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, (n >> 16) as u8], n as u16 + 1))
    }

    fn key(client: u32) -> PeerKey {
        PeerKey {
            port: PORT,
            container: addr(0),
            client: addr(client),
        }
    }

    fn is(bound: &str, container: SocketAddr) -> UdpForward {
        let bound: SocketAddr = bound.parse().unwrap();
        UdpForward {
            bound,
            both_families: bound.ip() == IpAddr::from([0_u16; 8]),
            container: container.into(),
        }
    }

    fn publish(f: &mut Forwards, n: u32, bound: &str) -> Handle {
        let published = f.publish(token(n), SocketId(n), is(bound, addr(0)), Some(PORT));
        published.unwrap();
        f.find(token(n)).unwrap().0
    }

    fn host(forward: Handle, client: u32) -> HostKey {
        HostKey {
            forward,
            client: addr(client),
            local: None,
        }
    }

    fn remember(f: &mut Forwards, now: Instant, forward: Handle, client: u32) -> Option<PeerKey> {
        f.remember(now, host(forward, client), PORT, addr(0), addr(client))
    }

    /// The list of `forward`, newest first, checked backwards too.
    fn list(f: &Forwards, forward: Handle) -> Vec<SocketAddr> {
        let head = f.get(forward).unwrap();
        let mut list = Vec::new();
        let (mut at, mut newer) = (head.newest, None);
        while let Some(h) = at {
            let p = f.peers.get(h).unwrap();
            assert_eq!((p.newer, p.host.forward), (newer, forward));
            let index = f.by_host.find(&p.host).unwrap();
            assert_eq!(f.by_host.get(index), Some(&h));
            list.push(p.host.client);
            (newer, at) = (at, p.older);
        }
        assert_eq!((head.oldest, head.peers), (newer, list.len()));
        list
    }

    #[test]
    fn the_oldest_peer_gives_way() {
        let mut f = Forwards::new(Instant::ZERO, TIMEOUT, 1);
        let forward = publish(&mut f, 0, "0.0.0.0:1");
        let again = f.publish(token(0), SocketId(2), is("0.0.0.0:1", addr(0)), None);
        assert_eq!(again, Err(PublishError::AlreadyPublished));
        for n in 0..5000 {
            assert!(remember(&mut f, Instant::ZERO, forward, n).is_some());
            // The container goes on talking to the first client.
            assert!(f.answer(Instant::ZERO, &key(0)).is_some());
        }
        assert_eq!(f.peers(), PEERS_PER_FORWARD);
        assert_eq!(f.by_host.len(), PEERS_PER_FORWARD);
        assert_eq!(f.answer(Instant::ZERO, &key(1)), None);
        assert_eq!(f.unpublish(token(0)).unwrap().socket, SocketId(0));
        assert_eq!((f.peers(), f.poll_timeout()), (0, None));
        assert!(f.by_host.is_empty() && f.of_container.is_empty());
    }

    #[test]
    fn clients_that_look_alike_are_told_apart() {
        let mut f = Forwards::new(Instant::ZERO, TIMEOUT, 1);
        let forward = publish(&mut f, 0, "0.0.0.0:1");
        let gateway = addr(77);
        let mut shown = |client, local: Option<IpAddr>| {
            let host = HostKey {
                local,
                ..host(forward, client)
            };
            let key = f.remember(Instant::ZERO, host, PORT, addr(0), gateway);
            let key = key.unwrap();
            let answer = f.answer(Instant::ZERO, &key).unwrap();
            assert_eq!((answer.client, answer.source), (addr(client), local));
            assert_eq!(f.known(Instant::ZERO, &host), Some(key));
            key.client.port() - gateway.port()
        };
        assert_eq!((shown(1, None), shown(2, None), shown(1, None)), (0, 1, 0));
        // The same client at another address of the host is another conversation.
        let local = Some(IpAddr::from([127, 0, 0, 2]));
        assert_eq!((shown(1, local), shown(1, local)), (2, 2));
    }

    #[test]
    fn a_container_speaks_by_the_port_that_it_is_reached_at() {
        let mut f = Forwards::new(Instant::ZERO, TIMEOUT, 1);
        let same_port = format!("0.0.0.0:{}", addr(0).port());
        let bounds = ["127.0.0.1:7", "192.0.2.9:8", "0.0.0.0:9", &same_port];
        for (n, bound) in bounds.iter().enumerate() {
            publish(&mut f, n as u32, bound);
        }
        let by = |f: &Forwards, port, to: &str| {
            let handle = f.speaks_for(port, addr(0), to.parse().unwrap())?;
            Some(f.get(handle).unwrap().socket.0)
        };
        assert_eq!(by(&f, PORT, "198.51.100.1"), Some(3));
        assert_eq!(by(&f, PORT, "127.0.0.1"), None);
        assert_eq!(by(&f, PORT, "2001:db8::1"), None);
        assert_eq!(by(&f, PortId(4), "198.51.100.1"), None, "another's port");
        for (gone, next) in [(3, Some(2)), (2, Some(1)), (1, None)] {
            f.unpublish(token(gone)).unwrap();
            assert_eq!(by(&f, PORT, "198.51.100.1"), next);
        }
    }

    #[test]
    fn the_family_is_chosen_again_until_the_container_answers() {
        let mut f = Forwards::new(Instant::ZERO, TIMEOUT, 1);
        let end = ContainerEnd {
            ipv4: Some([10, 0, 2, 100].into()),
            ipv6: Some("fd00::100".parse().unwrap()),
            port: 1,
        };
        let mut both = is("[::]:1", addr(0));
        both.container = end;
        f.publish(token(0), SocketId(1), both, None).unwrap();
        let (forward, _) = f.find(token(0)).unwrap();
        let client = host(forward, 7);
        let [v4, v6] = ["10.0.2.100:1", "[fd00::100]:1"].map(|end| end.parse().unwrap());
        let at = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        let first = f.remember(at(0), client, PORT, v4, addr(7)).unwrap();
        assert_eq!(f.known(at(0), &client), Some(first));
        assert_eq!(f.known(at(1), &client), None, "it may be refused");
        let second = f.remember(at(1), client, PORT, v6, addr(8)).unwrap();
        assert_eq!((second.container, f.peers()), (v6, 1));
        assert!(f.answer(at(1), &second).is_some());
        assert_eq!(f.known(at(100), &client), Some(second));
    }

    proptest! {
        #[test]
        fn behaves_as_a_list_of_recent_clients(
            ops in proptest::collection::vec((0u32..4, 0u32..2, 0u32..6, 0u64..200_000), 1..200),
        ) {
            let mut f = Forwards::new(Instant::ZERO, TIMEOUT, 1);
            let handles = [0, 1].map(|n| publish(&mut f, n, "0.0.0.0:1"));
            // By forward and client: how the container sees it, and when it was last used.
            let mut model: HashMap<(usize, u32), (PeerKey, Instant)> = HashMap::new();
            let mut now = Instant::ZERO;
            for (op, forward, client, pause) in ops {
                let i = forward as usize;
                match op {
                    0 | 1 => {
                        let key = remember(&mut f, now, handles[i], client).unwrap();
                        let before = model.insert((i, client), (key, now));
                        prop_assert!(before.is_none_or(|(before, _)| before == key));
                        let alike = model.values().filter(|(other, _)| *other == key);
                        prop_assert_eq!(alike.count(), 1);
                    }
                    2 => {
                        let known = model.get_mut(&(i, client));
                        let (shown, want) = match known {
                            Some((shown, used)) => {
                                *used = now;
                                (*shown, Some((handles[i], addr(client))))
                            }
                            None => (key(1000), None),
                        };
                        let answer = f.answer(now, &shown).map(|a| (a.forward, a.client));
                        prop_assert_eq!(answer, want);
                    }
                    _ => {
                        now += Duration::from_millis(pause);
                        f.handle_timeout(now);
                        model.retain(|_, (_, used)| *used + TIMEOUT > now);
                    }
                }
                for (i, &handle) in handles.iter().enumerate() {
                    let clients = list(&f, handle);
                    let ours: HashMap<_, _> = (0..6)
                        .filter_map(|n| Some((addr(n), model.get(&(i, n))?.1)))
                        .collect();
                    prop_assert_eq!(clients.len(), ours.len());
                    let times: Vec<_> = clients.iter().map(|c| ours[c]).collect();
                    prop_assert!(times.is_sorted_by(|a, b| a >= b));
                }
                prop_assert_eq!(f.poll_timeout().is_some(), !model.is_empty());
            }
        }
    }
}
