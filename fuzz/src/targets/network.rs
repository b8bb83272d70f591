//! A network of two containers on virtual time, whose every effect is checked.
//!
//! # Invariants
//! - A frame that the parser refuses is counted once, under the reason that the parser names. Any
//!   other is counted at most twice: one to everybody may be lost at the other container's port and
//!   refused by the gateway.
//! - A frame that leaves is either the one that came in, byte for byte, at another port and at each
//!   port once; or it is the gateway's and holds against [`offload::cut`], which reads it as a kernel
//!   does, and parses.
//! - Flows, sockets and unsent bytes keep within their limits, of the network and of one port.
//! - No socket of the host is misused ([`cnet_testkit::host::simulated`]).
//! - When the network ends, no flow, socket or byte stays.

use std::collections::HashMap;
use std::rc::Rc;

use cnet_nat::datagram::DatagramConfig;
use cnet_nat::flow::Limits;
use cnet_nat::gateway::{GatewayConfig, Ipv4Gateway, Ipv6Gateway, Quirks};
use cnet_nat::host::{DnsQuery, QueryId};
use cnet_nat::io::Io;
use cnet_nat::policy::Policy;
use cnet_nat::router::RouterConfig;
use cnet_nat::tcp::TcpConfig;
use cnet_testkit::addresses::{
    DNS_V4, DNS_V6, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, IPV4, IPV6, MAC, address,
};
use cnet_testkit::app::{App, AppPlan, Ending};
use cnet_testkit::host::simulated::{Fate, Host, HostPlan, Service};
use cnet_testkit::offload;
use cnet_testkit::rng::Rng;
use cnet_vswitch::port::{Lease, PortConfig};
use cnet_wire::frame::Frame;
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{DropReason, FrameSink, PortFull, PortId};

use crate::feedback;

/// The container with a lease.
pub const PORT: PortId = PortId(1);
/// Another container, of which nothing is known.
pub const NEIGHBOUR: PortId = PortId(2);
/// The first and the last address for containers without a lease, by their last byte.
pub const DHCP_RANGE: (u8, u8) = (15, 30);

/// Small, so that they are met.
const LIMITS: Limits = Limits {
    tcp_flows: 24,
    udp_mappings: 12,
    ping_mappings: 6,
};
const FLOWS_PER_PORT: usize = 16;
const UNSENT_LIMIT: usize = 16_000;
/// The length of the far application's stream, and the most of a socket's buffers.
const FAR_BYTES: usize = 6_000;
const SOCKET_BUFFER: usize = 4_000;
/// Virtual time in which everything comes to its end after the network was told to.
const END_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// Deadlines until then.
const END_STEPS: usize = 20_000;

/// What differs from input to input: its first byte.
#[derive(Clone, Copy)]
pub struct Settings(pub u8);

impl Settings {
    /// All frames get their checksums completed, so that they get deeper.
    pub const COMPLETE: u8 = 1;
    const GUARDED: u8 = 1 << 1;
    const USO: u8 = 1 << 2;
    const SLOW_PORTS: u8 = 1 << 3;
    const POOR_HOST: u8 = 1 << 4;
    const SMALL_MTU: u8 = 1 << 5;
    /// The network is brought to its end, and nothing may be left.
    const WIND_UP: u8 = 1 << 6;

    /// Whether `bit` is set.
    pub fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// Takes the network's frames and checks them.
pub struct Sink {
    mtu: usize,
    slow: bool,
    /// The frame that is being handled, and where it came in.
    current: Option<(PortId, Vec<u8>)>,
    /// Ports that have got it.
    reached: Vec<PortId>,
    /// The gateway's frames since the last [`Network::sent`], cut as a kernel cuts them.
    sent: Vec<(PortId, Vec<u8>)>,
    /// First sequence numbers of the far ends, by the ports of container and far end.
    bases: HashMap<(u16, u16), u32>,
    count: u64,
}

impl FrameSink for Sink {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        self.count += 1;
        if frame[VNET_HDR_LEN + 6..].starts_with(&GATEWAY_MAC.0) {
            // A connection to an address that nobody can have is refused in that address's name.
            let parsed = Frame::parse(frame, self.mtu);
            // And an unguarded container that sends from the gateway's own address is told so there.
            let refusal = matches!(parsed, Err(DropReason::MartianSource | DropReason::Land));
            assert!(parsed.is_ok() || refusal, "{parsed:?}: {frame:02x?}");
            let parts =
                offload::cut(frame, self.mtu).unwrap_or_else(|what| panic!("{what}: {frame:02x?}"));
            parts.iter().for_each(|part| self.learn(part));
            self.sent.extend(parts.into_iter().map(|part| (port, part)));
        } else {
            let Some((ingress, bytes)) = &self.current else {
                panic!("a container's frame, but none came in: {frame:02x?}");
            };
            assert_ne!(*ingress, port, "a frame goes back to where it came from");
            assert_eq!(bytes, frame, "a frame is changed between containers");
            assert!(!self.reached.contains(&port), "a frame is delivered twice");
            self.reached.push(port);
            feedback::note(48);
        }
        match self.slow && self.count.is_multiple_of(4) {
            true => Err(PortFull),
            false => Ok(()),
        }
    }
}

impl Sink {
    fn learn(&mut self, frame: &[u8]) {
        let Ok(Some(at)) = offload::ip_at(frame) else {
            return feedback::note(49);
        };
        let l4 = &frame[at.l4..];
        match at.protocol {
            6 if !at.fragment => {
                feedback::note(64 + u32::from(l4[13] & 31));
                if l4[13] & 2 != 0 {
                    let ports = (be16(l4, 2), be16(l4, 0));
                    let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
                    self.bases.insert(ports, sequence);
                }
            }
            1 | 58 if !at.fragment => feedback::note(96 + u32::from(l4[0] & 15)),
            other => feedback::note(112 + u32::from(other & 15)),
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The network.
pub struct Network {
    core: cnet_core::Network,
    host: Host,
    sink: Sink,
    now: Instant,
    mtu: usize,
    guarded: bool,
    buf: Vec<u8>,
}

fn config(mtu: usize, uso: bool) -> RouterConfig {
    RouterConfig {
        mtu,
        gateway: GatewayConfig {
            mac: GATEWAY_MAC,
            mtu: mtu as u16,
            v4: Some(Ipv4Gateway {
                address: GATEWAY_V4,
                prefix_len: 24,
                dns: Some(DNS_V4),
            }),
            v6: Some(Ipv6Gateway {
                address: GATEWAY_V6,
                prefix_len: 64,
                dns: Some(DNS_V6),
                advertise_default_route: true,
            }),
            search: vec!["net.example".into()],
            dhcp_range: Some((
                [10, 0, 2, DHCP_RANGE.0].into(),
                [10, 0, 2, DHCP_RANGE.1].into(),
            )),
            quirks: Quirks::default(),
        },
        policy: Policy::default(),
        tcp: TcpConfig {
            mtu,
            gateway_v4: Some(GATEWAY_V4.into()),
            gateway_v6: Some(GATEWAY_V6.into()),
            max_flows: LIMITS.tcp_flows,
            max_flows_per_port: FLOWS_PER_PORT,
            unsent_limit: UNSENT_LIMIT,
            ..TcpConfig::default()
        },
        datagram: DatagramConfig {
            mtu,
            gateway_v4: Some(GATEWAY_V4),
            gateway_v6: Some(GATEWAY_V6),
            limits: LIMITS,
            uso,
            ..DatagramConfig::default()
        },
    }
}

fn port_config(guarded: bool) -> PortConfig {
    PortConfig {
        lease: Lease {
            mac: Some(MAC),
            ipv4: vec![IPV4],
            ipv6: vec![IPV6],
            ..Lease::default()
        },
        spoof_protection: guarded,
        ..PortConfig::default()
    }
}

/// Sends something, takes anything, closes last.
fn far_end() -> Service {
    let out: Rc<[u8]> = vec![0x5a; FAR_BYTES].into();
    let plan = AppPlan {
        write_chunk: 3_000,
        read_chunk: 2_000,
        pace: Duration::from_millis(1),
        speak_after: 0,
        stalls: vec![(300, Duration::from_secs(60))],
        rests: Vec::new(),
        ending: Ending::AfterPeer,
    };
    Service {
        fate: Fate::Accept,
        delay: Duration::from_micros(500),
        receive_buffer: SOCKET_BUFFER,
        send_buffer: SOCKET_BUFFER,
        app: Box::new(move || App::trusting("far end".into(), plan.clone(), out.clone())),
    }
}

impl Network {
    /// A network as `settings` have it.
    pub fn new(settings: Settings) -> Network {
        let mtu = match settings.has(Settings::SMALL_MTU) {
            true => 1280,
            false => 1500,
        };
        let poor = settings.has(Settings::POOR_HOST);
        let plan = HostPlan {
            exhausted: if poor { 200 } else { 0 },
            spurious: if poor { 200 } else { 0 },
            event_delay: Duration::from_micros(100),
            ack_delay: Duration::ZERO,
            leak: false,
        };
        let mut host = Host::new(plan, Rng::new(u64::from(settings.0)));
        let anywhere = ([192, 0, 2, 1], 1).into();
        host.add_service(anywhere, far_end());
        host.answer_anywhere(anywhere);
        let config = config(mtu, settings.has(Settings::USO));
        let mut network = Network {
            core: cnet_core::Network::new(config, [7; 32], Instant::ZERO),
            host,
            sink: Sink {
                mtu,
                slow: settings.has(Settings::SLOW_PORTS),
                current: None,
                reached: Vec::new(),
                sent: Vec::new(),
                bases: HashMap::new(),
                count: 0,
            },
            now: Instant::ZERO,
            mtu,
            guarded: settings.has(Settings::GUARDED),
            buf: vec![0; FRAME_BUFFER_LEN],
        };
        network.plug_in();
        let added = network.core.add_port(NEIGHBOUR, PortConfig::default());
        assert_eq!(added, Ok(()));
        network
    }

    fn plug_in(&mut self) {
        let added = self.core.add_port(PORT, port_config(self.guarded));
        assert_eq!(added, Ok(()));
    }

    fn with_core<R>(
        &mut self,
        f: impl FnOnce(&mut cnet_core::Network, Instant, &mut Io<'_, (Sink, Host)>) -> R,
    ) -> R {
        let mut io = Io::new(&mut self.sink, &mut self.host, &mut self.buf);
        f(&mut self.core, self.now, &mut io)
    }

    /// A frame of the container at `port`, virtio-net header first.
    pub fn frame(&mut self, port: PortId, frame: &[u8]) {
        let before = self.core.drops().clone();
        self.sink.current = Some((port, frame.to_vec()));
        self.with_core(|core, now, io| core.handle_frame(now, port, frame, io));
        self.sink.current = None;
        let reached = std::mem::take(&mut self.sink.reached);
        let after = self.core.drops();
        let counted = after.total() - before.total();
        for &reason in DropReason::ALL {
            if after.get(reason) != before.get(reason) {
                feedback::note(reason as u32);
            }
        }
        if let Err(reason) = Frame::parse(frame, self.mtu) {
            let named = after.get(reason) - before.get(reason);
            assert_eq!((counted, named), (1, 1), "{reason:?}: {frame:02x?}");
            assert!(reached.is_empty(), "refused, and delivered: {frame:02x?}");
        }
        assert!(counted <= 2, "{counted} drops for {frame:02x?}");
        self.with_core(|core, now, io| core.end_batch(now, io));
        self.check_limits();
    }

    /// Where the sequence numbers of the far end begin that container port and far port speak with.
    pub fn base(&self, ports: (u16, u16)) -> u32 {
        self.sink.bases.get(&ports).copied().unwrap_or(0)
    }

    /// Lets `span` pass, and acts once on what is due then.
    pub fn pass(&mut self, span: Duration) {
        self.now += span;
        assert_eq!(self.host.advance(self.now), Ok(()));
        while let Some((token, ready)) = self.host.event(self.now) {
            self.with_core(|core, now, io| core.handle_socket(now, token, ready, io));
        }
        if self.core.poll_timeout().is_some_and(|due| due <= self.now) {
            self.with_core(|core, now, io| core.handle_timeout(now, io));
        }
        assert_eq!(self.host.advance(self.now), Ok(()));
        self.check_limits();
    }

    /// A client of a published port of the container.
    pub fn accept(&mut self, v6: bool) {
        let guest = (address(v6), 80).into();
        let peer = match v6 {
            true => ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9], 7).into(),
            false => ([198, 51, 100, 9], 7).into(),
        };
        let socket = self.host.incoming(([192, 0, 2, 1], 1).into());
        self.with_core(|core, now, io| core.handle_accept(now, guest, peer, socket, io));
    }

    /// The container goes, and another one comes in its place.
    pub fn replug(&mut self) {
        let counters = self.with_core(|core, now, io| core.remove_port(now, PORT, io));
        assert!(counters.is_some());
        assert_eq!(self.core.port_flows(PORT), Default::default());
        self.plug_in();
    }

    /// The next DNS query.
    pub fn query(&mut self) -> Option<DnsQuery> {
        self.host.queries.pop_front()
    }

    /// Answers a DNS query.
    pub fn answer(&mut self, id: QueryId, message: &[u8]) {
        self.with_core(|core, now, io| core.answer_dns(now, id, message, io));
    }

    /// The gateway's frames to `port` since the last call, without virtio-net headers. Those to other
    /// ports are forgotten.
    pub fn sent(&mut self, port: PortId) -> Vec<Vec<u8>> {
        let sent = self.sink.sent.drain(..);
        sent.filter(|(to, _)| *to == port).map(|s| s.1).collect()
    }

    fn check_limits(&self) {
        for port in [PORT, NEIGHBOUR] {
            let held = self.core.port_flows(port).tcp;
            assert!(held <= FLOWS_PER_PORT, "{port:?} has {held} flows");
        }
        let flows = LIMITS.tcp_flows + 2 * (LIMITS.udp_mappings + LIMITS.ping_mappings);
        assert!(self.core.flows() <= flows);
        assert!(self.host.open_sockets() <= flows);
        assert!(self.core.unsent() <= UNSENT_LIMIT);
    }

    /// The end of every input.
    pub fn finish(mut self, settings: Settings) {
        if !settings.has(Settings::WIND_UP) {
            return;
        }
        let end = self.now + END_LIMIT;
        self.with_core(|core, now, io| core.shut_down(now, io));
        for _ in 0..END_STEPS {
            let next = [self.host.next(), self.core.poll_timeout()];
            let Some(next) = next.into_iter().flatten().min().filter(|&at| at <= end) else {
                break;
            };
            let span = next.max(self.now) - self.now;
            self.pass(span);
        }
        let left = (
            self.core.flows(),
            self.host.open_sockets(),
            self.core.unsent(),
        );
        assert_eq!(left, (0, 0, 0), "flows, sockets and bytes left");
    }
}
