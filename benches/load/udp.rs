//! Many UDP and echo mappings, visited in random order.
//!
//! A container's address has no more than 65,535 ports, so a million mappings need several
//! containers: always [`CONTAINERS`], that only the number of mappings differs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cnet_nat::datagram::UdpForward;
use cnet_nat::host::{HeaderFields, Received, SocketId, Token, TokenKind};

use super::world::{Inbox, Outbox, READABLE, World};
use cnet_testkit::host::null::NullHosts;
use cnet_testkit::rng::Rng;
use cnet_testkit::template::{self, DATAGRAM, DATAGRAMS, Station, Template, station};

/// Containers that share the mappings.
pub const CONTAINERS: u32 = 20;
const FIRST_PORT: u16 = 10_000;
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const REMOTE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const REMOTE_PORT: u16 = 443;
/// Types of echo messages.
const ECHO_REQUEST: u16 = 8;
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
    /// UDP over IPv4.
    Udp,
    /// UDP over IPv6.
    UdpV6,
    /// ICMP echo over IPv4.
    Ping,
}

impl Kind {
    /// A small packet, and a super-frame.
    fn templates(self) -> (Template, Template) {
        match self {
            Kind::Udp => (template::udp_small(), template::udp_super()),
            Kind::UdpV6 => (template::udp_small_v6(), template::udp_super_v6()),
            Kind::Ping => (template::ping(), template::udp_super()),
        }
    }

    fn remote(self) -> IpAddr {
        match self {
            Kind::Udp | Kind::Ping => REMOTE.into(),
            Kind::UdpV6 => REMOTE_V6.into(),
        }
    }
}

/// A network with mappings.
pub struct Mappings {
    /// The network.
    pub world: World,
    kind: Kind,
    containers: u32,
    stations: Vec<Station>,
    peers: Vec<Peer>,
    at: usize,
    small: Outbox,
    large: Outbox,
    inbox: Inbox,
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
        let (small, large) = kind.templates();
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
            small: Outbox::new(&small),
            large: Outbox::new(&large),
            inbox: Inbox::default(),
        }
    }

    /// Opens all mappings and puts them into random order.
    pub fn open_all(&mut self) {
        let (mut opening, _) = self.kind.templates();
        for i in 0..self.peers.len() {
            let peer = &self.peers[i];
            let container = peer.container(self.containers);
            peer.write(self.kind, self.containers, &self.stations, &mut opening);
            self.world.frame(container, opening.bytes());
            let socket = self.world.hosts.last_opened();
            self.peers[i].token = self.world.hosts.tokens[socket];
        }
        self.world.end_batch();
        assert_eq!(self.world.network.flows(), self.peers.len());
        self.world.assert_no_drops();
        Rng::from_state(2).shuffle(&mut self.peers);
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

    /// The next mapping's container sends a small datagram, or an echo request.
    pub fn small_out(&mut self) {
        let i = self.next();
        let peer = &self.peers[i];
        let container = peer.container(self.containers);
        let frame = self.small.next(container);
        peer.write(self.kind, self.containers, &self.stations, frame);
        self.small.send(&mut self.world);
    }

    /// The next mapping's container sends a super-frame.
    pub fn super_out(&mut self) {
        let i = self.next();
        let peer = &self.peers[i];
        let container = peer.container(self.containers);
        let frame = self.large.next(container);
        peer.write(self.kind, self.containers, &self.stations, frame);
        self.large.send(&mut self.world);
    }

    fn receive(&mut self, len: usize, segment: Option<u16>) {
        let i = self.next();
        let from = SocketAddr::new(self.kind.remote(), REMOTE_PORT);
        let icmp_type = (self.kind == Kind::Ping).then_some(ECHO_REPLY);
        let arrive = |hosts: &mut NullHosts| {
            hosts.icmp_type = icmp_type;
            hosts.datagram = Some(Received {
                len,
                from,
                segment,
                fields: HeaderFields::default(),
                local: None,
            });
        };
        self.inbox
            .receive(self.peers[i].token, &mut self.world, arrive);
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

impl Peer {
    fn container(&self, containers: u32) -> u32 {
        1 + self.number % containers
    }

    /// Makes `frame` one of this mapping's.
    fn write(&self, kind: Kind, containers: u32, stations: &[Station], frame: &mut Template) {
        let from = &stations[self.container(containers) as usize];
        let port = FIRST_PORT + (self.number / containers) as u16;
        match kind {
            Kind::Udp | Kind::UdpV6 => frame.set_ends(from, port, kind.remote(), REMOTE_PORT),
            Kind::Ping => {
                // Where UDP has its ports, ICMP has its type and checksum.
                frame.set_ends(from, ECHO_REQUEST << 8, REMOTE, 0);
                frame.set_echo_id(port);
            }
        }
    }
}

/// A published UDP port of one container, with clients that are visited in turn.
pub struct Published {
    /// The network.
    pub world: World,
    token: Token,
    clients: u16,
    at: u16,
    answer: Template,
}

impl Published {
    /// All `clients` have spoken once.
    pub fn new(clients: u16) -> Published {
        let mut world = World::new(1, 1);
        let token = Token::new(TokenKind::Forward, 0, 1);
        let guest = SocketAddr::from((station(1).v4, FIRST_PORT));
        world.hosts.tokens.push(token);
        let forward = UdpForward {
            bound: SocketAddr::from(([0, 0, 0, 0], FIRST_PORT)),
            both_families: false,
            container: guest.into(),
        };
        world
            .network
            .publish_udp(world.now, token, SocketId(0), forward)
            .expect("the first published port");
        // The container is known by its first packet.
        let mut hello = template::arp(template::GATEWAY_V4);
        hello.set_arp_sender(&station(1));
        world.frame(1, hello.bytes());
        let mut published = Published {
            world,
            token,
            clients,
            at: 0,
            answer: template::udp_small(),
        };
        for _ in 0..clients {
            published.ask();
            published.turn_to_next();
        }
        published
    }

    fn turn_to_next(&mut self) {
        self.at = (self.at + 1) % self.clients;
    }

    fn ask(&mut self) {
        self.world.hosts.datagram = Some(Received {
            len: ECHO_LEN,
            from: SocketAddr::from((REMOTE, FIRST_PORT + self.at)),
            segment: None,
            fields: HeaderFields::default(),
            local: None,
        });
        self.world.event(self.token, READABLE);
    }

    /// The next client asks, and the container answers.
    pub fn ask_and_answer(&mut self) {
        self.ask();
        self.answer
            .set_ends(&station(1), FIRST_PORT, REMOTE, FIRST_PORT + self.at);
        self.world.frame(1, self.answer.bytes());
        self.turn_to_next();
    }
}
