//! The network under test: a core a worker, each with a host of its own, as the dataplane has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use cnet_core::Network as Core;
use cnet_nat::datagram::{DatagramConfig, UdpForward};
use cnet_nat::flow::{FlowBudget, Limits as FlowLimits};
use cnet_nat::gateway::{GatewayConfig, GatewayCounters, Ipv4Gateway, Ipv6Gateway, Quirks};
use cnet_nat::io::Io;
use cnet_nat::policy::{PeerFilter, Policy};
use cnet_nat::router::RouterConfig;
use cnet_nat::tcp::TcpConfig;
use cnet_testkit::addresses::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};
use cnet_testkit::host::scripted::Scripted;
use cnet_vswitch::port::{Lease, PortConfig};
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::host::{HostError, Readiness, SocketId, Token, TokenKind};
use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropCounters, DropReason, FrameSink, PortFull, PortId};

use super::reference::{
    Books, CLIENTS_PORT, CONTAINERS, Container, DENIED_V4, DENIED_V6, Limits, MTU, Observed,
    PortBooks, Sent,
};

/// Readable.
const READABLE: Readiness = Readiness {
    readable: true,
    writable: false,
    read_closed: false,
    error: false,
};

/// What epoll tells of a connection that failed.
const FAILED: Readiness = Readiness {
    readable: true,
    writable: true,
    read_closed: true,
    error: true,
};

/// What a core is lent.
type CoreIo<'a, 'b> = Io<'a, (Sink<'b>, Scripted)>;

/// Takes what a worker emits.
struct Sink<'a> {
    frames: &'a mut Vec<(PortId, Vec<u8>)>,
    handed: &'a mut Vec<(PortId, Vec<u8>)>,
    full: Option<PortId>,
    lost: &'a mut BTreeMap<PortId, u64>,
    no_room_at_the_primary: bool,
}

impl FrameSink for Sink<'_> {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        if self.full == Some(port) {
            *self.lost.entry(port).or_default() += 1;
            return Err(PortFull);
        }
        self.frames.push((port, frame.to_vec()));
        Ok(())
    }

    fn hand_over(&mut self, ingress: PortId, frame: &[u8]) -> Result<(), PortFull> {
        if self.no_room_at_the_primary {
            return Err(PortFull);
        }
        self.handed.push((ingress, frame.to_vec()));
        Ok(())
    }
}

struct Worker {
    core: Core,
    host: Scripted,
}

/// The network.
pub struct Network {
    workers: Vec<Worker>,
    now: Instant,
    buf: Vec<u8>,
    /// This port takes no frame.
    pub full: Option<PortId>,
    /// Frames that a port did not take: the devices count them, not the core.
    lost: BTreeMap<PortId, u64>,
    /// The primary worker takes none of another worker's frames.
    pub no_room_at_the_primary: bool,
    frames: Vec<(PortId, Vec<u8>)>,
}

fn config(limits: Limits, budget: &FlowBudget) -> RouterConfig {
    RouterConfig {
        mtu: MTU,
        gateway: GatewayConfig {
            mac: GATEWAY_MAC,
            mtu: MTU as u16,
            v4: Some(Ipv4Gateway {
                address: GATEWAY_V4,
                prefix_len: 24,
                dns: None,
            }),
            v6: Some(Ipv6Gateway {
                address: GATEWAY_V6,
                prefix_len: 64,
                dns: None,
                advertise_default_route: true,
            }),
            search: Vec::new(),
            dhcp_range: None,
            quirks: Quirks::default(),
        },
        policy: Policy {
            filter: PeerFilter {
                no_host: true,
                ..PeerFilter::default()
            },
            host_addresses: vec![DENIED_V4.into(), DENIED_V6.into()],
            ..Policy::default()
        },
        tcp: TcpConfig {
            mtu: MTU,
            gateway_v4: Some(GATEWAY_V4.into()),
            gateway_v6: Some(GATEWAY_V6.into()),
            budget: budget.clone(),
            ..TcpConfig::default()
        },
        datagram: DatagramConfig {
            mtu: MTU,
            gateway_v4: Some(GATEWAY_V4),
            gateway_v6: Some(GATEWAY_V6),
            limits: FlowLimits {
                udp_mappings: limits.udp,
                ping_mappings: limits.ping,
                ..FlowLimits::default()
            },
            budget: budget.clone(),
            ..DatagramConfig::default()
        },
    }
}

fn port_config(container: &Container) -> PortConfig {
    PortConfig {
        lease: Lease {
            mac: Some(container.mac),
            ipv4: vec![container.v4],
            ipv6: vec![container.v6],
            ..Lease::default()
        },
        spoof_protection: true,
        isolated: container.isolated,
        ..PortConfig::default()
    }
}

impl Network {
    /// The socket of the published port: the first that was opened.
    pub const PUBLISHED: SocketId = SocketId(1);

    /// A network of [`CONTAINERS`], and the published UDP port of the first of them.
    pub fn new(workers: usize, limits: Limits) -> Network {
        let now = Instant::from_millis(1_000);
        let budget = FlowBudget::new(limits.total);
        let config = || config(limits, &budget);
        let mut primary = Core::new(config(), [7; 32], now);
        let mut cores: Vec<Core> = (1..workers)
            .map(|_| primary.further(config(), [7; 32], now))
            .collect();
        for core in std::iter::once(&mut primary).chain(&mut cores) {
            for container in &CONTAINERS {
                let added = core.add_port(container.port, port_config(container));
                assert_eq!(added, Ok(()));
            }
        }
        cores.insert(0, primary);
        let mut workers: Vec<Worker> = cores
            .into_iter()
            .map(|core| Worker {
                core,
                host: Scripted::default(),
            })
            .collect();
        let token = Token::new(TokenKind::Forward, 0, 0);
        let first = &mut workers[0];
        let socket = first.host.bind(token, false);
        let guest = SocketAddr::from((CONTAINERS[0].v4, CLIENTS_PORT));
        let forward = UdpForward {
            bound: SocketAddr::from(([0, 0, 0, 0], CLIENTS_PORT)),
            both_families: false,
            container: guest.into(),
        };
        assert_eq!(socket, Self::PUBLISHED);
        let published = first.core.publish_udp(now, token, socket, forward);
        assert_eq!(published, Ok(()));
        Network {
            workers,
            now,
            buf: vec![0; FRAME_BUFFER_LEN],
            full: None,
            lost: BTreeMap::new(),
            no_room_at_the_primary: false,
            frames: Vec::new(),
        }
    }

    /// Has worker `n` do something, and the primary worker what it leaves to that.
    fn with_worker(
        &mut self,
        n: usize,
        f: &mut dyn FnMut(&mut Core, Instant, &mut CoreIo<'_, '_>),
    ) {
        let mut handed = Vec::new();
        let worker = &mut self.workers[n];
        let mut sink = Sink {
            frames: &mut self.frames,
            handed: &mut handed,
            full: self.full,
            lost: &mut self.lost,
            no_room_at_the_primary: self.no_room_at_the_primary,
        };
        let mut io = Io::new(&mut sink, &mut worker.host, &mut self.buf);
        f(&mut worker.core, self.now, &mut io);
        worker.core.end_batch(self.now, &mut io);
        assert!(n > 0 || handed.is_empty(), "the primary hands a frame over");
        if !handed.is_empty() {
            self.with_worker(0, &mut |core, now, io| {
                for (port, frame) in &handed {
                    core.handle_frame(now, *port, frame, io);
                }
            });
        }
    }

    /// A batch of frames that the container at `port` sends, to the worker that has its port.
    pub fn frames(&mut self, container: usize, frames: &[Vec<u8>]) {
        let port = CONTAINERS[container].port;
        let worker = container % self.workers.len();
        let batch: Vec<_> = frames.iter().map(|f| (port, f.as_slice())).collect();
        self.with_worker(worker, &mut |core, now, io| {
            core.handle_frames(now, &batch, io)
        });
    }

    /// A datagram arrives at a socket of the primary worker.
    pub fn datagram(&mut self, socket: SocketId, from: std::net::SocketAddr, payload: &[u8]) {
        let host = &mut self.workers[0].host;
        host.deliver(socket, &from.to_string(), None, payload);
        let token = host.socket(socket).token.expect("a token");
        self.with_worker(0, &mut |core, now, io| {
            core.handle_socket(now, token, READABLE, io)
        });
    }

    /// The far end refuses the connection that the container's worker opened last.
    pub fn refuse(&mut self, container: usize) {
        let n = container % self.workers.len();
        let host = &mut self.workers[n].host;
        let id = host.newest_socket();
        let socket = host.socket(id);
        socket.fail(HostError::Refused);
        let token = socket.token.expect("a token");
        self.with_worker(n, &mut |core, now, io| {
            core.handle_socket(now, token, FAILED, io)
        });
    }

    /// The socket that the primary worker opened last.
    pub fn newest_socket(&self) -> SocketId {
        self.workers[0].host.newest_socket()
    }

    /// Lets time pass, each worker acting on its deadlines.
    pub fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        for n in 0..self.workers.len() {
            while let Some(due) = self.workers[n].core.poll_timeout().filter(|&t| t <= end) {
                self.now = self.now.max(due);
                self.with_worker(n, &mut |core, now, io| core.handle_timeout(now, io));
            }
        }
        self.now = end;
    }

    /// What happened since the last call.
    pub fn observed(&mut self) -> Observed {
        let mut sent = Vec::new();
        for worker in &mut self.workers {
            for (socket, options, payload) in worker.host.sent.drain(..) {
                let size = options.segment.map_or(payload.len(), usize::from).max(1);
                let mut push = |part: &[u8]| {
                    sent.push(Sent {
                        socket,
                        to: options.to,
                        hop_limit: options.hop_limit,
                        payload: part.to_vec(),
                    });
                };
                match payload.is_empty() {
                    true => push(&[]),
                    false => payload.chunks(size).for_each(push),
                }
            }
        }
        Observed {
            frames: std::mem::take(&mut self.frames),
            sent,
        }
    }

    /// All counters, summed over the workers.
    pub fn books(&self) -> Books {
        let mut books = Books::default();
        let mut drops = DropCounters::default();
        let mut gateway = GatewayCounters::default();
        for worker in &self.workers {
            drops.add(&worker.core.report().drops);
            gateway.add(&worker.core.report().gateway);
            let tcp = worker.core.report().tcp;
            books.tcp_opened += tcp.opened;
            books.tcp_others += tcp.accepted + tcp.evicted;
            books.flows += worker.core.flows();
            books.connects += worker.host.connects as u64;
            books.sockets += worker.host.sockets.len();
        }
        books.gateway = gateway.iter().filter(|(_, n)| *n > 0).collect();
        drops.set(DropReason::PortFull, self.lost.values().sum());
        books.drops = named(&drops);
        for container in &CONTAINERS {
            let mut sum = PortBooks::default();
            let mut drops = DropCounters::default();
            for worker in &self.workers {
                let counters = worker.core.port_counters(container.port).expect("a port");
                sum.frames_in += counters.frames_in;
                sum.bytes_in += counters.bytes_in;
                drops.add(&counters.drops);
                let flows = worker.core.port_flows(container.port);
                sum.udp += flows.udp;
                sum.ping += flows.ping;
                sum.tcp += flows.tcp;
            }
            let lost = self.lost.get(&container.port);
            drops.set(DropReason::PortFull, lost.copied().unwrap_or(0));
            sum.drops = named(&drops);
            books.ports.insert(container.port, sum);
        }
        books
    }

    /// Time until every mapping has expired; then nothing but the published port is left.
    pub fn finish(mut self) -> Result<(), String> {
        for n in 0..self.workers.len() {
            self.with_worker(n, &mut |core, now, io| core.shut_down(now, io));
        }
        self.pass(Duration::from_secs(3600));
        let books = self.books();
        match (books.flows, books.sockets) {
            (0, 1) => Ok(()),
            left => Err(format!("left at the end, flows and sockets: {left:?}")),
        }
    }
}

fn named(drops: &DropCounters) -> BTreeMap<&'static str, u64> {
    let named = drops.iter().map(|(reason, n)| (reason.name(), n));
    named.filter(|(_, n)| *n > 0).collect()
}
