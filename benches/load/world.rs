//! A router with its ports, driven as the shell's worker drives it.

use std::net::Ipv6Addr;

use cnet_core::Network;
use cnet_nat::datagram::DatagramConfig;
use cnet_nat::flow::Limits;
use cnet_nat::gateway::{GatewayConfig, Ipv4Gateway, Ipv6Gateway, Quirks};
use cnet_nat::host::{Readiness, Token, TokenKind};
use cnet_nat::io::Io;
use cnet_nat::policy::Policy;
use cnet_nat::router::RouterConfig;
use cnet_nat::tcp::TcpConfig;
use cnet_vswitch::PortConfig;
use cnet_wire::PortId;
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::time::{Duration, Instant};

use cnet_testkit::host::null::NullHosts;
use cnet_testkit::sink::NullSink;
use cnet_testkit::template::{GATEWAY_MAC, GATEWAY_V4, MTU, Template};

/// Frames between two ends of a batch; the shell's worker reads as many.
pub const BATCH: usize = 8;
/// How much time a frame takes on the virtual clock: a million frames a second.
const FRAME_TIME: Duration = Duration::from_micros(1);

/// Readable.
pub const READABLE: Readiness = Readiness {
    readable: true,
    writable: false,
    read_closed: false,
    error: false,
};
/// Writable.
pub const WRITABLE: Readiness = Readiness {
    readable: false,
    writable: true,
    read_closed: false,
    error: false,
};

/// Frames on their way into the next batch.
pub struct Outbox {
    frames: [(u32, Template); BATCH],
    filled: usize,
}

impl Outbox {
    /// All of them like `template`.
    pub fn new(template: &Template) -> Outbox {
        Outbox {
            frames: std::array::from_fn(|_| (1, template.clone())),
            filled: 0,
        }
    }

    /// The next frame of the batch, from the container at `port`, to be filled in.
    pub fn next(&mut self, port: u32) -> &mut Template {
        let next = &mut self.frames[self.filled];
        self.filled += 1;
        next.0 = port;
        &mut next.1
    }

    /// Sends the batch if it is complete.
    pub fn send(&mut self, world: &mut World) {
        if self.filled == BATCH {
            self.filled = 0;
            world.frames(&self.frames);
        }
    }
}

/// Sockets on their way into the next round of events.
pub struct Inbox {
    tokens: [Token; BATCH],
    filled: usize,
}

impl Default for Inbox {
    /// A round without sockets.
    fn default() -> Inbox {
        Inbox {
            tokens: [Token::new(TokenKind::Shell, 0, 0); BATCH],
            filled: 0,
        }
    }
}

impl Inbox {
    /// A socket has become readable. If it is the last of a round, the round is handled, `fill`
    /// telling the host before each event what has arrived; returns whether it was.
    pub fn receive(
        &mut self,
        token: Token,
        world: &mut World,
        fill: impl Fn(&mut NullHosts),
    ) -> bool {
        self.tokens[self.filled] = token;
        self.filled += 1;
        if self.filled < BATCH {
            return false;
        }
        self.filled = 0;
        world.network.prefetch_sockets(self.tokens.iter().copied());
        for token in self.tokens {
            fill(&mut world.hosts);
            world.event(token, READABLE);
        }
        true
    }
}

/// A network.
pub struct World {
    /// The core.
    pub network: Network,
    /// The host.
    pub sink: NullSink,
    /// The ports.
    pub hosts: NullHosts,
    out: Box<[u8]>,
    /// The time that everything happens at.
    pub now: Instant,
    in_batch: u32,
}

impl World {
    /// A network of `ports` containers that may hold any number of flows.
    /// `sockets` host sockets are expected.
    pub fn new(ports: u32, sockets: usize) -> World {
        let gateway_v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
        let now = Instant::from_millis(1_000);
        let config = RouterConfig {
            mtu: MTU,
            gateway: GatewayConfig {
                mac: GATEWAY_MAC,
                mtu: MTU as u16,
                v4: Some(Ipv4Gateway {
                    address: GATEWAY_V4,
                    prefix_len: 16,
                    dns: Some(GATEWAY_V4),
                }),
                v6: Some(Ipv6Gateway {
                    address: gateway_v6,
                    prefix_len: 64,
                    dns: None,
                    advertise_default_route: true,
                }),
                search: Vec::new(),
                dhcp_range: None,
                quirks: Quirks::default(),
            },
            policy: Policy::default(),
            tcp: TcpConfig {
                mtu: MTU,
                max_flows: usize::MAX,
                gateway_v4: Some(GATEWAY_V4.into()),
                gateway_v6: Some(gateway_v6.into()),
                ..TcpConfig::default()
            },
            datagram: DatagramConfig {
                mtu: MTU,
                limits: Limits {
                    udp_mappings: usize::MAX,
                    ping_mappings: usize::MAX,
                    ..Limits::default()
                },
                gateway_v4: Some(GATEWAY_V4),
                gateway_v6: Some(gateway_v6),
                uso: true,
                ..DatagramConfig::default()
            },
        };
        let secret = std::array::from_fn(|i| i as u8 ^ 0x5a);
        let mut network = Network::new(config, secret, now);
        for port in 1..=ports {
            network
                .add_port(id(port), PortConfig::default())
                .expect("a free port");
        }
        World {
            network,
            sink: NullSink::default(),
            hosts: NullHosts::new(sockets),
            out: vec![0; FRAME_BUFFER_LEN].into_boxed_slice(),
            now,
            in_batch: 0,
        }
    }

    fn with_io<T>(
        &mut self,
        f: impl FnOnce(&mut Network, Instant, &mut Io<'_, (NullSink, NullHosts)>) -> T,
    ) -> T {
        let mut io = Io::new(&mut self.sink, &mut self.hosts, &mut self.out);
        f(&mut self.network, self.now, &mut io)
    }

    /// A frame from the container at `port`; with every eighth, a batch ends.
    pub fn frame(&mut self, port: u32, bytes: &[u8]) {
        self.with_io(|r, now, io| r.handle_frame(now, id(port), bytes, io));
        self.in_batch += 1;
        if self.in_batch == BATCH as u32 {
            self.end_batch();
        }
    }

    /// A whole batch of frames, each from a container of its own.
    pub fn frames(&mut self, frames: &[(u32, Template); BATCH]) {
        let frames: [_; BATCH] = std::array::from_fn(|i| (id(frames[i].0), frames[i].1.bytes()));
        self.with_io(|r, now, io| r.handle_frames(now, &frames, io));
        self.in_batch += BATCH as u32;
        self.end_batch();
    }

    /// An event of a host socket.
    pub fn event(&mut self, token: Token, ready: Readiness) {
        self.with_io(|r, now, io| r.handle_socket(now, token, ready, io));
    }

    /// The batch is over: what it caused goes out, time passes and deadlines are acted on.
    pub fn end_batch(&mut self) {
        self.with_io(|r, now, io| r.end_batch(now, io));
        self.now += FRAME_TIME * self.in_batch.max(1);
        self.in_batch = 0;
        let now = self.now;
        if self.network.poll_timeout().is_some_and(|due| due <= now) {
            self.with_io(|r, now, io| r.handle_timeout(now, io));
        }
    }

    /// Lets time pass, acting on deadlines; returns how many times there was one to act on.
    pub fn sleep(&mut self, span: Duration) -> u64 {
        let until = self.now + span;
        let mut wakes = 0;
        while let Some(due) = self.network.poll_timeout().filter(|&due| due <= until) {
            self.now = self.now.max(due);
            self.with_io(|r, now, io| r.handle_timeout(now, io));
            wakes += 1;
        }
        self.now = until;
        wakes
    }

    /// Takes the waiting DNS query and answers it with `message`.
    pub fn answer_dns(&mut self, message: &[u8]) {
        let query = self.hosts.queries.pop_front().expect("a query");
        self.with_io(|r, now, io| r.answer_dns(now, query.id, message, io));
    }

    /// No packet may have been dropped: then something else was measured than meant.
    pub fn assert_no_drops(&self) {
        let drops: Vec<_> = self.network.drops().iter().collect();
        assert!(drops.is_empty(), "{drops:?}");
    }
}

/// The switch port of container `n`; containers are numbered from 1.
fn id(n: u32) -> PortId {
    PortId(n)
}
