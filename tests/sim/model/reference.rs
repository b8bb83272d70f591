//! The reference: what is known of the network, what a step must lead to, and what is counted.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cnet_testkit::offload;
use cnet_wire::host::SocketId;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{DropReason, MacAddr, PortId};

/// IP MTU of the links.
pub const MTU: usize = 1500;
/// Addresses that policy denies.
pub const DENIED_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// See [`DENIED_V4`].
pub const DENIED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 1);
/// The UDP port of the first container that is published.
pub const CLIENTS_PORT: u16 = 8053;
/// Life of a UDP mapping after its last use.
const UDP_LIFE: Duration = Duration::from_secs(300);
/// Life of an echo mapping.
const PING_LIFE: Duration = Duration::from_secs(120);
/// Idle time after which a mapping of more than one exchange may make room for another of its port.
const LASTING_IDLE: Duration = Duration::from_secs(30);
/// Idle time after which a mapping makes room for a TCP flow of its port.
const LENT_AFTER: Duration = Duration::from_secs(2);
/// How many do for one flow.
const MOST_LENT: usize = 2;

/// How many mappings there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// UDP mappings of a container.
    pub udp: usize,
    /// Echo mappings of a container.
    pub ping: usize,
    /// Flows of all protocols and containers.
    pub total: usize,
}

/// More than any seed needs.
pub const ROOMY: Limits = Limits {
    udp: 1000,
    ping: 1000,
    total: usize::MAX,
};
/// Fewer than most seeds ask for.
pub const TIGHT: Limits = Limits {
    udp: 4,
    ping: 2,
    total: 9,
};

/// There is no room for a mapping, and none of the port's own makes any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// What a step led to.
#[derive(Default)]
pub struct Observed {
    /// Frames that left, by port.
    pub frames: Vec<(PortId, Vec<u8>)>,
    /// Datagrams that the host was given, one by one.
    pub sent: Vec<Sent>,
}

/// A container.
#[derive(Clone, Copy, Debug)]
pub struct Container {
    /// Its port.
    pub port: PortId,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// It exchanges frames with the gateway alone.
    pub isolated: bool,
}

const fn container(n: u8, isolated: bool) -> Container {
    Container {
        port: PortId(n as u32),
        mac: MacAddr([0x52, 0x54, 0, 0, 1, n]),
        v4: Ipv4Addr::new(10, 0, 2, 100 + n),
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100 + n as u16),
        isolated,
    }
}

/// The containers.
pub const CONTAINERS: [Container; 4] = [
    container(1, false),
    container(2, false),
    container(3, false),
    container(4, true),
];

impl Container {
    /// Its address in one family.
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

/// A datagram that the host was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sent {
    /// By which socket.
    pub socket: SocketId,
    /// Where to.
    pub to: SocketAddr,
    /// With which hop limit.
    pub hop_limit: u8,
    /// What.
    pub payload: Vec<u8>,
}

/// A frame that left, as far as the model has an opinion.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// A container's frame, as it came.
    Copy(Vec<u8>),
    /// A datagram.
    Udp(SocketAddr, SocketAddr, Vec<u8>),
    /// An ICMP message, with its type and code.
    Icmp(IpAddr, IpAddr, (u8, u8)),
    /// A TCP segment without data, with its flags.
    Tcp(SocketAddr, SocketAddr, u8),
    /// An ARP answer: whose address is told, and to whom.
    Arp(Ipv4Addr, Ipv4Addr),
}

/// What a step must lead to.
#[derive(Default, Debug)]
pub struct Expected {
    /// Frames that leave. The order among ports says nothing.
    pub frames: Vec<(PortId, Seen)>,
    /// Datagrams that the host is given; `None` for a socket that is opened for them.
    pub sent: Vec<(Option<SocketId>, SocketAddr, Vec<u8>)>,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a frame of the gateway's.
fn read(with_header: &[u8]) -> Result<Seen, String> {
    let mut parts = offload::cut(with_header, MTU)?;
    let frame = parts.pop().ok_or("no packet")?;
    if !parts.is_empty() {
        return Err("more packets than one".into());
    }
    let Some(at) = offload::ip_at(&frame)? else {
        let ip = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        return Ok(Seen::Arp(ip(28), ip(38)));
    };
    let l4 = &frame[at.l4..at.end];
    let ends = || {
        let src = SocketAddr::new(at.src, be16(l4, 0));
        (src, SocketAddr::new(at.dst, be16(l4, 2)))
    };
    match at.protocol {
        17 => Ok(Seen::Udp(ends().0, ends().1, l4[8..].to_vec())),
        6 if at.payload == at.end => Ok(Seen::Tcp(ends().0, ends().1, l4[13])),
        1 | 58 => Ok(Seen::Icmp(at.src, at.dst, (l4[0], l4[1]))),
        other => Err(format!("protocol {other}")),
    }
}

impl Expected {
    /// Whether a step led to this and to nothing else.
    pub fn compare(&self, observed: &Observed) -> Result<(), String> {
        let mut left = self.frames.clone();
        for (port, frame) in &observed.frames {
            let copy = Seen::Copy(frame.clone());
            let seen = match left.iter().any(|(_, seen)| *seen == copy) {
                true => copy,
                false => read(frame)?,
            };
            let found = left.iter().position(|one| *one == (*port, seen.clone()));
            let found =
                found.ok_or_else(|| format!("unexpected at {port:?}: {seen:?}; {left:?}"))?;
            left.remove(found);
        }
        if !left.is_empty() {
            return Err(format!("frames that did not leave: {left:?}"));
        }
        let agree = |(want, got): (&(Option<SocketId>, SocketAddr, Vec<u8>), &Sent)| {
            want.0.is_none_or(|socket| socket == got.socket)
                && (want.1, &want.2, 63) == (got.to, &got.payload, got.hop_limit)
        };
        if self.sent.len() != observed.sent.len()
            || !self.sent.iter().zip(&observed.sent).all(agree)
        {
            return Err(format!(
                "sent: expected {:?}, found {:?}",
                self.sent, observed.sent
            ));
        }
        Ok(())
    }
}

/// The counters of a port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortBooks {
    /// Frames of the container.
    pub frames_in: u64,
    /// Their bytes without virtio-net headers.
    pub bytes_in: u64,
    /// Drops, by the reason's name.
    pub drops: BTreeMap<&'static str, u64>,
    /// UDP mappings.
    pub udp: usize,
    /// Echo mappings.
    pub ping: usize,
    /// TCP flows.
    pub tcp: usize,
}

/// All counters of a network.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Books {
    /// By port.
    pub ports: BTreeMap<PortId, PortBooks>,
    /// Drops of the network, by the reason's name.
    pub drops: BTreeMap<&'static str, u64>,
    /// What the gateway's services did, by the counter's name.
    pub gateway: BTreeMap<&'static str, u64>,
    /// TCP flows that containers opened.
    pub tcp_opened: u64,
    /// TCP flows that were accepted or evicted.
    pub tcp_others: u64,
    /// Flows and mappings of all tables.
    pub flows: usize,
    /// Connects that the host was asked for.
    pub connects: u64,
    /// Sockets of the host.
    pub sockets: usize,
}

impl Books {
    /// Whether all counters agree.
    pub fn compare(&self, found: &Books) -> Result<(), String> {
        fn differ(what: &dyn Debug, want: &dyn Debug, got: &dyn Debug) -> String {
            format!("counters of {what:?}\n  expected {want:?}\n  found    {got:?}")
        }
        for (port, want) in &self.ports {
            let got = &found.ports[port];
            if want != got {
                return Err(differ(port, want, got));
            }
        }
        let rest = |books: &Books| Books {
            ports: BTreeMap::new(),
            ..books.clone()
        };
        match self == found {
            true => Ok(()),
            false => Err(differ(&"the network", &rest(self), &rest(found))),
        }
    }
}

/// Whose mapping it is: the container, whether it is for echo, and its address with its port or
/// identifier.
pub type Inside = (usize, bool, SocketAddr);

/// A mapping.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// Whose it is.
    pub inside: Inside,
    /// Its socket; `None` until it is opened.
    pub socket: Option<SocketId>,
    last_used: Instant,
    /// Packets or runs of them, and how often their direction changed.
    packets: usize,
    turns: usize,
    inwards: bool,
}

impl Mapping {
    /// More than a question and its answer has passed.
    fn is_lasting(&self) -> bool {
        self.turns >= 2 || self.packets > 16
    }

    fn used(&mut self, now: Instant, times: usize, inwards: bool) {
        self.last_used = now;
        self.packets += times;
        self.turns += usize::from(self.inwards != inwards);
        self.inwards = inwards;
    }
}

/// What is known of the network.
pub struct Model {
    workers: usize,
    limits: Limits,
    /// The last connect found room.
    pub connected: bool,
    now: Instant,
    /// The mappings, in the order in which they were opened.
    pub mappings: Vec<Mapping>,
    books: Books,
}

impl Model {
    /// A network in which nothing has happened.
    pub fn new(workers: usize, limits: Limits) -> Model {
        let books = Books {
            ports: CONTAINERS
                .iter()
                .map(|c| (c.port, PortBooks::default()))
                .collect(),
            // That of the published port.
            sockets: 1,
            ..Books::default()
        };
        Model {
            workers,
            limits,
            connected: false,
            now: Instant::ZERO,
            mappings: Vec::new(),
            books,
        }
    }

    /// The counters as they must be.
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// The books of a container's port.
    pub fn port(&mut self, container: usize) -> &mut PortBooks {
        let port = CONTAINERS[container].port;
        self.books.ports.get_mut(&port).expect("a port")
    }

    /// Whether the container's frames come in at another worker than the primary.
    pub fn is_steered(&self, container: usize) -> bool {
        !container.is_multiple_of(self.workers)
    }

    /// A frame of the container came in.
    pub fn count_in(&mut self, container: usize, frame: &[u8]) {
        let port = self.port(container);
        port.frames_in += 1;
        port.bytes_in += (frame.len() - VNET_HDR_LEN) as u64;
    }

    /// What the host delivered was dropped.
    fn count_drop(&mut self, reason: DropReason) {
        *self.books.drops.entry(reason.name()).or_default() += 1;
    }

    /// A frame of the container was dropped, by the switch or by the router.
    pub fn count_port_drop(&mut self, container: usize, reason: DropReason) {
        *self.port(container).drops.entry(reason.name()).or_default() += 1;
        self.count_drop(reason);
    }

    /// The gateway's service did something.
    pub fn count_service(&mut self, counter: &'static str) {
        *self.books.gateway.entry(counter).or_default() += 1;
    }

    /// A container's frame goes to another one, or to all.
    pub fn copy(&mut self, to: usize, frame: &[u8], expected: &mut Expected) {
        let seen = Seen::Copy(frame.to_vec());
        expected.frames.push((CONTAINERS[to].port, seen));
    }

    /// The mapping of `inside`, used so many times outwards, and opened if there is none: its socket, if
    /// it is known yet.
    pub fn map(&mut self, inside: Inside, times: usize) -> Result<Option<SocketId>, Refused> {
        let now = self.now;
        if let Some(mapping) = self.mappings.iter_mut().find(|m| m.inside == inside) {
            mapping.used(now, times, false);
            return Ok(mapping.socket);
        }
        let (container, is_echo, _) = inside;
        if !self.admits(container, is_echo) && !self.give_way(container, is_echo, Duration::ZERO) {
            return Err(Refused);
        }
        self.mappings.push(Mapping {
            inside,
            socket: None,
            last_used: now,
            packets: times,
            turns: 0,
            inwards: false,
        });
        self.resize(inside, 1);
        Ok(None)
    }

    /// Something has arrived for a mapping.
    pub fn arrived(&mut self, inside: Inside) {
        let now = self.now;
        if let Some(mapping) = self.mappings.iter_mut().find(|m| m.inside == inside) {
            mapping.used(now, 1, true);
        }
    }

    /// Whether the container may have one more mapping of a protocol: no more than its limit, and of what
    /// all may have no more than eight times what is left.
    fn admits(&self, container: usize, is_echo: bool) -> bool {
        let own = |m: &&Mapping| (m.inside.0, m.inside.1) == (container, is_echo);
        let held = self.mappings.iter().filter(own).count();
        let each = match is_echo {
            true => self.limits.ping,
            false => self.limits.udp,
        };
        held < each && held < self.free().saturating_mul(8)
    }

    fn free(&self) -> usize {
        self.limits.total.saturating_sub(self.mappings.len())
    }

    /// Ends the container's mapping of a protocol that is idle longest, for `least` at any rate: first
    /// those of one exchange.
    fn give_way(&mut self, container: usize, is_echo: bool, least: Duration) -> bool {
        for (is_lasting, least) in [(false, least), (true, least.max(LASTING_IDLE))] {
            let of_kind = |m: &Mapping| {
                (m.inside.0, m.inside.1) == (container, is_echo) && m.is_lasting() == is_lasting
            };
            let numbered = self.mappings.iter().enumerate();
            let oldest = numbered
                .filter(|(_, m)| of_kind(m))
                .min_by_key(|(_, m)| m.last_used);
            if let Some((n, mapping)) = oldest
                && self.now - mapping.last_used >= least
            {
                let ended = self.mappings.remove(n);
                self.resize(ended.inside, -1);
                return true;
            }
        }
        false
    }

    /// A connection of the container's is opened, and refused by the far end; unless there is no room for
    /// it, nor made.
    pub fn connect(&mut self, container: usize) {
        // Mappings are the primary worker's, which alone can have them make room.
        for _ in 0..MOST_LENT {
            let enough = self.free() > 0 || self.is_steered(container);
            let lent = !enough
                && (self.give_way(container, false, LENT_AFTER)
                    || self.give_way(container, true, LENT_AFTER));
            if !lent {
                break;
            }
        }
        self.connected = self.free() > 0;
        if self.connected {
            self.books.connects += 1;
            self.books.tcp_opened += 1;
        } else {
            self.count_port_drop(container, DropReason::Quota);
        }
    }

    /// Notes the socket of the mapping that was opened last, if it is not known.
    pub fn opened(&mut self, socket: SocketId) {
        if let Some(mapping) = self.mappings.last_mut() {
            mapping.socket.get_or_insert(socket);
        }
    }

    fn resize(&mut self, (container, is_echo, _): Inside, by: isize) {
        let add = |n: usize| n.saturating_add_signed(by);
        self.books.flows = add(self.books.flows);
        self.books.sockets = add(self.books.sockets);
        let port = self.port(container);
        match is_echo {
            true => port.ping = add(port.ping),
            false => port.udp = add(port.udp),
        }
    }

    /// Time passes, and mappings and clients with it.
    pub fn pass(&mut self, span: Duration) {
        self.now += span;
        let now = self.now;
        let life = |m: &Mapping| if m.inside.1 { PING_LIFE } else { UDP_LIFE };
        let (over, rest) = self
            .mappings
            .drain(..)
            .partition::<Vec<_>, _>(|m| now - m.last_used >= life(m));
        self.mappings = rest;
        for mapping in over {
            self.resize(mapping.inside, -1);
        }
    }
}
