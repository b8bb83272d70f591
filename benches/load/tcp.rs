//! Many TCP flows of one container, visited in random order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cnet_nat::host::Token;

use super::world::{BATCH, Inbox, Outbox, WRITABLE, World};
use cnet_testkit::host::null::NullHosts;
use cnet_testkit::rng::Rng;
use cnet_testkit::template::{
    self, MSS, SUPER_PAYLOAD, SUPER_PAYLOAD_V6, Station, Template, station,
};

/// Flows to one remote address, each from a port of its own.
const FLOWS_PER_REMOTE: u32 = 50_000;
const FIRST_PORT: u16 = 10_000;
const REMOTE_PORT: u16 = 443;
/// The first remote address.
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Where connections that come and go lead to.
const PASSING: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The prefix under which those addresses stand in IPv6.
const PREFIX_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0);
/// Bytes of a frame that a socket with a full buffer still takes.
const LAST_ROOM: usize = 1000;
/// Bytes that come in at once from the host; less than a super-frame may carry.
pub const INBOUND: usize = 40 * MSS;

/// The container's end of a flow. Peers lie in the order in which they are visited, so that the
/// next one is in the cache and what misses it is the core's.
struct Peer {
    flow: u32,
    token: Token,
    seq: u32,
    ack: u32,
}

/// A network with established flows.
pub struct TcpFlows {
    /// The network.
    pub world: World,
    peers: Vec<Peer>,
    at: usize,
    passed: u32,
    v6: bool,
    container: Station,
    data: Outbox,
    acks: Outbox,
    inbox: Inbox,
    /// Peers whose data is on its way in.
    receiving: Vec<usize>,
    ack: Template,
    syn: Template,
    rst: Template,
    alone: Template,
}

impl TcpFlows {
    /// `count` established flows.
    pub fn new(count: usize) -> TcpFlows {
        let mut flows = TcpFlows::unopened(count);
        flows.open_all();
        flows
    }

    /// The same over IPv6.
    pub fn new_v6(count: usize) -> TcpFlows {
        let data = template::tcp_data_v6();
        let mut flows = TcpFlows {
            v6: true,
            data: Outbox::new(&data),
            acks: Outbox::new(&template::tcp_ack_v6()),
            ack: template::tcp_ack_v6(),
            syn: template::tcp_syn_v6(),
            rst: template::tcp_rst_v6(),
            alone: data,
            ..TcpFlows::unopened(count)
        };
        flows.open_all();
        flows
    }

    /// The container and its peers before their connections are opened.
    pub fn unopened(count: usize) -> TcpFlows {
        let peers = (0..count as u32).map(|flow| Peer {
            flow,
            token: Token::new(cnet_nat::host::TokenKind::Tcp, 0, 0),
            seq: 0,
            ack: 0,
        });
        TcpFlows {
            world: World::new(1, count + 16),
            peers: peers.collect(),
            at: 0,
            passed: 0,
            v6: false,
            container: station(1),
            data: Outbox::new(&template::tcp_data()),
            acks: Outbox::new(&template::tcp_ack()),
            inbox: Inbox::default(),
            receiving: Vec::with_capacity(BATCH),
            ack: template::tcp_ack(),
            syn: template::tcp_syn(),
            rst: template::tcp_rst(),
            alone: template::tcp_data(),
        }
    }

    /// Opens all connections, in order, and then puts them into random order.
    pub fn open_all(&mut self) {
        for i in 0..self.peers.len() {
            let (port, remote) = ends(self.peers[i].flow, self.v6);
            let (token, ack) = self.open(port, remote, 0);
            let peer = &mut self.peers[i];
            peer.token = token;
            (peer.seq, peer.ack) = (1, ack);
        }
        self.world.end_batch();
        assert_eq!(self.world.network.flows(), self.peers.len());
        self.world.assert_no_drops();
        if self.peers.len() < BATCH {
            self.open_windows();
        }
        Rng::from_state(1).shuffle(&mut self.peers);
    }

    /// Has few flows send frame by frame until their windows take a whole batch of super-frames.
    fn open_windows(&mut self) {
        for _ in 0..self.peers.len() * 8 * BATCH {
            self.send_alone();
            self.world.end_batch();
        }
        self.world.hosts.sent = 0;
    }

    /// Opens one connection with the sequence number `seq`; returns its token and what the next
    /// acknowledgement number is.
    fn open(&mut self, port: u16, remote: IpAddr, seq: u32) -> (Token, u32) {
        self.syn
            .set_ends(&self.container, port, remote, REMOTE_PORT);
        self.syn.set_tcp(seq, 0);
        self.world.frame(1, self.syn.bytes());
        let socket = self.world.hosts.last_opened();
        let token = self.world.hosts.tokens[socket];
        self.world.sink.keep = true;
        self.world.event(token, WRITABLE);
        self.world.sink.keep = false;
        let at = template::l4(&self.world.sink.last) + 4;
        let iss = &self.world.sink.last[at..at + 4];
        let ack = u32::from_be_bytes([iss[0], iss[1], iss[2], iss[3]]).wrapping_add(1);
        self.ack
            .set_ends(&self.container, port, remote, REMOTE_PORT);
        self.ack.set_tcp(seq + 1, ack);
        self.world.frame(1, self.ack.bytes());
        (token, ack)
    }

    /// Whether the flows are IPv6.
    pub fn is_v6(&self) -> bool {
        self.v6
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

    /// The next flow sends a super-frame.
    pub fn data_out(&mut self) {
        let i = self.next();
        let peer = &mut self.peers[i];
        peer.write(self.data.next(1), &self.container);
        peer.seq = peer.seq.wrapping_add(super_payload(self.v6) as u32);
        self.data.send(&mut self.world);
    }

    /// The next flow sends a super-frame of which its socket takes no more than a part before its
    /// buffer is full; then there is room again.
    pub fn stall(&mut self) {
        self.world.hosts.room = LAST_ROOM;
        let token = self.send_alone();
        self.world.hosts.room = usize::MAX;
        self.world.event(token, WRITABLE);
    }

    /// The next flow sends a super-frame in no batch; returns its token.
    fn send_alone(&mut self) -> Token {
        let i = self.next();
        let peer = &mut self.peers[i];
        peer.write(&mut self.alone, &self.container);
        peer.seq = peer.seq.wrapping_add(super_payload(self.v6) as u32);
        self.world.frame(1, self.alone.bytes());
        self.peers[i].token
    }

    /// The next flow sends an acknowledgement that brings no news.
    pub fn pure_ack(&mut self) {
        let i = self.next();
        self.send_ack(i);
    }

    fn send_ack(&mut self, i: usize) {
        self.peers[i].write(self.acks.next(1), &self.container);
        self.acks.send(&mut self.world);
    }

    /// The next flow's socket has data, which goes to the container and is acknowledged: one
    /// super-frame out, one acknowledgement in, one discard.
    pub fn data_in(&mut self) {
        let i = self.next();
        self.receiving.push(i);
        let arrive = |hosts: &mut NullHosts| hosts.arrived = INBOUND;
        let token = self.peers[i].token;
        if self.inbox.receive(token, &mut self.world, arrive) {
            for k in 0..BATCH {
                let i = self.receiving[k];
                self.peers[i].ack = self.peers[i].ack.wrapping_add(INBOUND as u32);
                self.send_ack(i);
            }
            self.receiving.clear();
        }
    }

    /// A SYN, and the RST of a container that thinks better of it before the host has connected.
    pub fn syn(&mut self) {
        let (port, remote) = self.next_passing();
        self.syn
            .set_ends(&self.container, port, remote, REMOTE_PORT);
        self.syn.set_tcp(7, 0);
        self.world.frame(1, self.syn.bytes());
        self.reset(port, remote, 8);
    }

    /// A connection from its SYN to its handshake's end, and a RST that ends it: three frames in,
    /// an event, a frame out.
    pub fn open_and_reset(&mut self) {
        let (port, remote) = self.next_passing();
        self.open(port, remote, 7);
        self.reset(port, remote, 8);
    }

    fn next_passing(&mut self) -> (u16, IpAddr) {
        self.passed = self.passed.wrapping_add(1);
        let n = self.passed;
        let port = FIRST_PORT + (n % FLOWS_PER_REMOTE) as u16;
        (port, address(u32::from(PASSING) + n % 13, self.v6))
    }

    fn reset(&mut self, port: u16, remote: IpAddr, seq: u32) {
        self.rst
            .set_ends(&self.container, port, remote, REMOTE_PORT);
        self.rst.set_tcp(seq, 0);
        self.world.frame(1, self.rst.bytes());
    }

    /// What this harness itself costs for a frame: the next flow's frame is made, and not sent.
    pub fn nothing(&mut self) {
        let i = self.next();
        self.peers[i].write(&mut self.ack, &self.container);
        std::hint::black_box(self.ack.bytes());
    }
}

impl Peer {
    /// Makes `frame` one of this flow's.
    fn write(&self, frame: &mut Template, from: &Station) {
        let (port, remote) = ends(self.flow, template::is_v6(frame.bytes()));
        frame.set_ends(from, port, remote, REMOTE_PORT);
        frame.set_tcp(self.seq, self.ack);
    }
}

/// Payload of the largest super-frame.
pub fn super_payload(v6: bool) -> usize {
    if v6 { SUPER_PAYLOAD_V6 } else { SUPER_PAYLOAD }
}

fn address(v4: u32, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::from(u128::from(PREFIX_V6) | u128::from(v4)).into()
    } else {
        Ipv4Addr::from(v4).into()
    }
}

/// Container's port and remote address of flow number `flow`.
fn ends(flow: u32, v6: bool) -> (u16, IpAddr) {
    let port = FIRST_PORT + (flow % FLOWS_PER_REMOTE) as u16;
    (
        port,
        address(u32::from(REMOTE) + flow / FLOWS_PER_REMOTE, v6),
    )
}
