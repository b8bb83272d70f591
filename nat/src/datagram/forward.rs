//! Published UDP ports: which client spoke to a container through which host socket.
//!
//! Theory of operation. A published port is a host socket that the shell bound. What arrives there
//! goes to the container's address and port with the client's address as source, and the client is
//! remembered: when the container sends from that port to that client, it answers, and the answer leaves
//! through the socket the client spoke to. So several published ports may lead to one container port
//! (0.0.0.0 and ::, or 8080 and 8081), and each client hears from the port it knows. To any other end
//! the container's port speaks through its ordinary mapping.
//!
//! The client is remembered under the address the container was shown. It may differ from the host's
//! name for it: a loopback client looks like the gateway, and a socket of both families calls an
//! IPv4 client `::ffff:a.b.c.d`.
//!
//! Invariants. A peer is linked into the list of its forward, most recently used first, and there
//! are at most [`PEERS_PER_FORWARD`] in it; a new one takes the place of the oldest. A peer ends
//! after the time of a mapping without traffic either way, by one timer a forward. Peers of a forward
//! end with it.
//!
//! Limits. If one client speaks from one port to two forwards of one container port, answers go through
//! the socket it used last: the container's packets do not say which one they mean.

use std::net::SocketAddr;

use cnet_wire::PortId;
use cnet_wire::time::{Duration, Instant};

use crate::flow::{FlowTable, Handle, TableFull, TimerWheel};
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

/// A published port.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) socket: SocketId,
    pub(super) container: SocketAddr,
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

#[derive(Debug)]
struct Peer {
    forward: Handle,
    /// The client, as the forward's socket names it.
    host: SocketAddr,
    last_used: Instant,
    newer: Option<Handle>,
    older: Option<Handle>,
}

/// The published UDP ports.
#[derive(Debug)]
pub(super) struct Forwards {
    forwards: FlowTable<Token, Forward>,
    peers: FlowTable<PeerKey, Peer>,
    /// Keyed by the forward's slot: when its oldest peer may be over.
    timers: TimerWheel,
    timeout: Duration,
}

impl Forwards {
    pub(super) fn new(now: Instant, timeout: Duration, seed: u64) -> Forwards {
        Forwards {
            forwards: FlowTable::new(Token::MAX_INDEX as usize, seed),
            peers: FlowTable::new(Token::MAX_INDEX as usize, seed),
            timers: TimerWheel::new(now),
            timeout,
        }
    }

    /// Enters a forward.
    pub(super) fn publish(
        &mut self,
        token: Token,
        socket: SocketId,
        container: SocketAddr,
    ) -> Result<(), PublishError> {
        if self.forwards.find(&token).is_some() {
            return Err(PublishError::AlreadyPublished);
        }
        let forward = Forward {
            socket,
            container,
            largest_segment: usize::MAX,
            peers: 0,
            newest: None,
            oldest: None,
        };
        match self.forwards.insert(token, forward) {
            Ok(_) => Ok(()),
            Err(TableFull) => Err(PublishError::TooMany),
        }
    }

    /// Takes a forward and its peers out.
    pub(super) fn unpublish(&mut self, token: Token) -> Option<Forward> {
        let handle = self.forwards.find(&token)?;
        while let Some(oldest) = self.forwards.get(handle)?.oldest {
            self.forget(oldest);
        }
        self.timers.cancel(handle.index);
        self.forwards.remove(handle).map(|(_, forward)| forward)
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

    /// Notes that the client `key`, which the host calls `host`, spoke through `forward`. `false` if
    /// there is no room to do so.
    pub(super) fn remember(
        &mut self,
        now: Instant,
        forward: Handle,
        key: PeerKey,
        host: SocketAddr,
    ) -> bool {
        if let Some(known) = self.peers.find(&key) {
            if self.peers.get(known).is_some_and(|p| p.forward == forward) {
                if let Some(peer) = self.peers.get_mut(known) {
                    peer.host = host;
                }
                self.renew(now, known);
                return true;
            }
            self.forget(known);
        }
        let Some(f) = self.forwards.get(forward) else {
            return false;
        };
        if let (PEERS_PER_FORWARD.., Some(oldest)) = (f.peers, f.oldest) {
            self.forget(oldest);
        }
        let peer = Peer {
            forward,
            host,
            last_used: now,
            newer: None,
            older: None,
        };
        let Ok(peer) = self.peers.insert(key, peer) else {
            return false;
        };
        self.link(peer);
        if self.forwards.get(forward).is_some_and(|f| f.peers == 1) {
            self.timers.set(forward.index, now + self.timeout);
        }
        true
    }

    /// The forward through which the container of `key` answers the client, and the client as the host
    /// names it. `None` if that client did not speak first.
    pub(super) fn answer(&mut self, now: Instant, key: &PeerKey) -> Option<(Handle, SocketAddr)> {
        let peer = self.peers.find(key)?;
        self.renew(now, peer);
        let peer = self.peers.get(peer)?;
        Some((peer.forward, peer.host))
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
        let Some(f) = self.forwards.get_mut(p.forward) else {
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
        let (forward, newer, older) = (p.forward, p.newer, p.older);
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
        self.peers.remove(peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::TokenKind;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const TIMEOUT: Duration = Duration::from_secs(300);

    fn token(n: u32) -> Token {
        Token::new(TokenKind::Forward, n, 0)
    }

    fn addr(n: u32) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, (n >> 16) as u8], n as u16 + 1))
    }

    fn key(client: u32) -> PeerKey {
        PeerKey {
            port: PortId(3),
            container: addr(0),
            client: addr(client),
        }
    }

    /// The list of `forward`, newest first, checked backwards too.
    fn list(f: &Forwards, forward: Handle) -> Vec<SocketAddr> {
        let head = f.get(forward).unwrap();
        let mut list = Vec::new();
        let (mut at, mut newer) = (head.newest, None);
        while let Some(h) = at {
            let p = f.peers.get(h).unwrap();
            assert_eq!((p.newer, p.forward), (newer, forward));
            list.push(f.peers.key(h).unwrap().client);
            (newer, at) = (at, p.older);
        }
        assert_eq!((head.oldest, head.peers), (newer, list.len()));
        list
    }

    #[test]
    fn the_oldest_peer_gives_way() {
        let mut f = Forwards::new(Instant::ZERO, TIMEOUT, 1);
        f.publish(token(0), SocketId(1), addr(0)).unwrap();
        let again = f.publish(token(0), SocketId(2), addr(0));
        assert_eq!(again, Err(PublishError::AlreadyPublished));
        let (forward, _) = f.find(token(0)).unwrap();
        for n in 0..5000 {
            assert!(f.remember(Instant::ZERO, forward, key(n), addr(n)));
            // The container goes on talking to the first client.
            assert!(f.answer(Instant::ZERO, &key(0)).is_some());
        }
        assert_eq!(f.peers(), PEERS_PER_FORWARD);
        assert_eq!(f.answer(Instant::ZERO, &key(1)), None);
        assert_eq!(f.unpublish(token(0)).unwrap().socket, SocketId(1));
        assert_eq!((f.peers(), f.poll_timeout()), (0, None));
    }

    proptest! {
        #[test]
        fn behaves_as_a_list_of_recent_clients(
            ops in proptest::collection::vec((0u32..4, 0u32..2, 0u32..6, 0u64..200_000), 1..200),
        ) {
            let mut f = Forwards::new(Instant::ZERO, TIMEOUT, 1);
            let handles = [0, 1].map(|n| {
                f.publish(token(n), SocketId(n), addr(0)).unwrap();
                f.find(token(n)).unwrap().0
            });
            let mut model: HashMap<SocketAddr, (usize, Instant)> = HashMap::new();
            let mut now = Instant::ZERO;
            for (op, forward, client, pause) in ops {
                match op {
                    0 | 1 => {
                        let i = forward as usize;
                        prop_assert!(f.remember(now, handles[i], key(client), addr(client)));
                        model.insert(addr(client), (i, now));
                    }
                    2 => {
                        let want = model.get_mut(&addr(client)).map(|(i, used)| {
                            *used = now;
                            (handles[*i], addr(client))
                        });
                        prop_assert_eq!(f.answer(now, &key(client)), want);
                    }
                    _ => {
                        now += Duration::from_millis(pause);
                        f.handle_timeout(now);
                        model.retain(|_, (_, used)| *used + TIMEOUT > now);
                    }
                }
                for (i, &handle) in handles.iter().enumerate() {
                    let list = list(&f, handle);
                    let times: Vec<_> = list.iter().map(|c| model[c].1).collect();
                    prop_assert!(times.is_sorted_by(|a, b| a >= b));
                    prop_assert_eq!(list.len(), model.values().filter(|m| m.0 == i).count());
                }
                prop_assert_eq!(f.poll_timeout().is_some(), !model.is_empty());
            }
        }
    }
}
