//! Many UDP and echo mappings, visited in random order.
//!
//! A container's address has no more than 65,535 ports, so a million mappings need several
//! containers: always [`CONTAINERS`], that only the number of mappings differs.

use std::net::{Ipv4Addr, SocketAddr};

use cnet_nat::host::{Received, Token};

use super::craft::{self, DATAGRAM, DATAGRAMS, Station, Template, station};
use super::rng::Rng;
use super::world::{READABLE, World};

/// Containers that share the mappings.
pub const CONTAINERS: u32 = 20;
const FIRST_PORT: u16 = 10_000;
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const REMOTE_PORT: u16 = 443;
/// Type of an echo reply.
const ECHO_REPLY: u8 = 0;
/// Bytes of an echo message and its header.
const ECHO_LEN: usize = 64;

struct Peer {
    number: u32,
    token: Token,
}

/// What is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Udp,
    Ping,
}

/// A network with mappings.
pub struct Mappings {
    pub world: World,
    kind: Kind,
    containers: u32,
    stations: Vec<Station>,
    peers: Vec<Peer>,
    at: usize,
    small: Template,
    large: Template,
}

impl Mappings {
    /// `count` mappings.
    pub fn new(kind: Kind, count: usize) -> Mappings {
        let mut mappings = Mappings::unopened(kind, count);
        mappings.open_all();
        mappings
    }

    /// The containers before they have sent anything.
    pub fn unopened(kind: Kind, count: usize) -> Mappings {
        let containers = CONTAINERS.min(count as u32);
        let peers = (0..count as u32).map(|number| Peer {
            number,
            token: Token::new(cnet_nat::host::TokenKind::Udp, 0, 0),
        });
        Mappings {
            world: World::new(containers, count),
            kind,
            containers,
            stations: (0..=containers).map(station).collect(),
            peers: peers.collect(),
            at: 0,
            small: match kind {
                Kind::Udp => craft::udp_small(),
                Kind::Ping => craft::ping(),
            },
            large: craft::udp_super(),
        }
    }

    /// Opens all mappings and puts them into random order.
    pub fn open_all(&mut self) {
        for i in 0..self.peers.len() {
            self.small_from(i);
            let socket = self.world.hosts.last_opened();
            self.peers[i].token = self.world.hosts.tokens[socket];
        }
        self.world.end_batch();
        assert_eq!(self.world.router.flows(), self.peers.len());
        self.world.assert_no_drops();
        Rng::new(2).shuffle(&mut self.peers);
    }

    fn next(&mut self) -> usize {
        let at = self.at;
        self.at = if at + 1 == self.peers.len() {
            0
        } else {
            at + 1
        };
        at
    }

    fn small_from(&mut self, i: usize) {
        let number = self.peers[i].number;
        let (container, port) = (1 + number % self.containers, number / self.containers);
        let port = FIRST_PORT + port as u16;
        let from = &self.stations[container as usize];
        match self.kind {
            Kind::Udp => self.small.set_ends(from, port, REMOTE, REMOTE_PORT),
            Kind::Ping => {
                self.small.set_ends(from, 8 << 8, REMOTE, 0);
                self.small.set_echo_id(port);
            }
        }
        self.world.frame(container, self.small.bytes());
    }

    /// The next mapping's container sends a small datagram, or an echo request.
    pub fn small_out(&mut self) {
        let i = self.next();
        self.small_from(i);
    }

    /// The next mapping's container sends a super-frame.
    pub fn super_out(&mut self) {
        let i = self.next();
        let number = self.peers[i].number;
        let (container, port) = (1 + number % self.containers, number / self.containers);
        let from = &self.stations[container as usize];
        self.large
            .set_ends(from, FIRST_PORT + port as u16, REMOTE, REMOTE_PORT);
        self.world.frame(container, self.large.bytes());
    }

    fn receive(&mut self, len: usize, segment: Option<u16>) {
        let i = self.next();
        self.world.hosts.icmp_type = (self.kind == Kind::Ping).then_some(ECHO_REPLY);
        self.world.hosts.datagram = Some(Received {
            len,
            from: SocketAddr::from((REMOTE, REMOTE_PORT)),
            segment,
            tos: 0,
        });
        self.world.event(self.peers[i].token, READABLE);
    }

    /// The next mapping's socket has a small datagram, or an echo reply.
    pub fn small_in(&mut self) {
        self.receive(ECHO_LEN, None);
    }

    /// The next mapping's socket has many datagrams of one size.
    pub fn super_in(&mut self) {
        self.receive(DATAGRAM * DATAGRAMS, Some(DATAGRAM as u16));
    }
}
