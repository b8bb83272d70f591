//! A quick fuzz of the pure core: a million mutated frames.
//!
//! Frames of every family ([`cnet_testkit::corpus`]), and segments for the connections that are open at
//! the moment, are mutated and given to the network. Half of them get their checksums put right
//! again, so that the deeper code sees them too.
//!
//! # Properties
//! No panic; every frame the router refuses is counted once, under the reason the parser names
//! where it is the parser that refuses; every frame it emits itself stands up to the oracle; flows,
//! sockets and unsent bytes stay within their limits; what a port had is given back when it goes, and
//! all in the end.

use std::cell::RefCell;
use std::rc::Rc;

use cnet_core::Network;
use cnet_nat::flow::{FlowBudget, Limits};
use cnet_nat::gateway::{Ipv4Gateway, Ipv6Gateway};
use cnet_nat::host::SocketId;
use cnet_nat::io::Io;
use cnet_nat::router::PortFlows;
use cnet_vswitch::port::PortConfig;
use cnet_wire::frame::Frame;
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vnet::{self, VNET_HDR_LEN, VnetHeader};
use cnet_wire::{FrameSink, PortFull, PortId};

use crate::record::{self, Keep, Recorded, Recorder, unless_injected};
use crate::seeds::number;
use crate::world::{self, PORT};
use cnet_testkit::addresses::{self, GATEWAY_MAC};
use cnet_testkit::app::{App, AppPlan, Ending};
use cnet_testkit::corpus;
use cnet_testkit::frames::{self, Tcp, flag};
use cnet_testkit::host::simulated::{Fate, Host, HostPlan, Service};
use cnet_testkit::offload;
use cnet_testkit::rng::Rng;

/// Frames of the test command.
const FRAMES: u64 = 1_000_000;
const MTU: usize = 1500;
/// Another container on the same switch.
const NEIGHBOUR: PortId = PortId(2);
/// Small, so that every limit is met.
const LIMITS: Limits = Limits {
    tcp_flows: 100,
    udp_mappings: 50,
    ping_mappings: 20,
};
/// Descriptors for flows of all protocols: more than the limits.
const BUDGET: usize = 10_000;
const UNSENT_LIMIT: usize = 100_000;
/// TCP flows of one port.
const FLOWS_PER_PORT: usize = 60;
/// Segments for open connections that are kept for mutation.
const LIVE: usize = 200;

/// What the core is lent: sink and host, with the recorder before both.
type CoreIo<'a, 'b> = Io<'a, (Recorded<'a, Sink<'b>>, Recorded<'a, Host>)>;

/// Takes the router's frames, checks them, and learns from them how to go on.
struct Sink<'a> {
    rng: &'a mut Rng,
    live: &'a mut Vec<Vec<u8>>,
    emitted: &'a mut u64,
}

impl FrameSink for Sink<'_> {
    fn emit(&mut self, _: PortId, frame: &[u8]) -> Result<(), PortFull> {
        *self.emitted += 1;
        if frame[VNET_HDR_LEN + 6..].starts_with(&GATEWAY_MAC.0) {
            let parts =
                offload::cut(frame, MTU).unwrap_or_else(|what| panic!("{what}: {frame:02x?}"));
            parts.iter().for_each(|part| self.answer(part));
        }
        if self.rng.chance(20) {
            Err(PortFull)
        } else {
            Ok(())
        }
    }
}

impl Sink<'_> {
    /// Keeps the segments with which an honest container could answer.
    fn answer(&mut self, frame: &[u8]) {
        let Ok(at) = offload::tcp_at(frame) else {
            return;
        };
        let l4 = &frame[at.l4..];
        let be16 = |i: usize| u16::from_be_bytes([l4[i], l4[i + 1]]);
        let be32 = |i: usize| u32::from_be_bytes([l4[i], l4[i + 1], l4[i + 2], l4[i + 3]]);
        let len = (at.end - at.payload) as u32 + u32::from(l4[13] & 3 != 0);
        let honest = Tcp {
            from: (at.dst, be16(2)).into(),
            to: (at.src, be16(0)).into(),
            seq: be32(8),
            ack: be32(4).wrapping_add(len),
            flags: flag::ACK,
            window: 5000,
            urgent: 0,
            options: &[],
            payload: &[],
        };
        let data = Tcp {
            payload: &[0x55; 100],
            ..honest.clone()
        };
        let fin = Tcp {
            flags: flag::ACK | flag::FIN,
            ..honest.clone()
        };
        let rst = Tcp {
            flags: flag::RST,
            ..honest.clone()
        };
        let syn_ack = Tcp {
            flags: flag::SYN | flag::ACK,
            seq: 77,
            ..honest.clone()
        };
        for segment in [&honest, &data, &fin, &rst, &syn_ack] {
            if self.live.len() < LIVE {
                self.live.push(segment.frame());
            } else {
                let place = self.rng.below(LIVE);
                self.live[place] = segment.frame();
            }
        }
    }
}

/// The router, its host, and what is being done to it.
struct Bench {
    rng: Rng,
    now: Instant,
    network: Network,
    host: Host,
    corpus: Vec<Vec<u8>>,
    live: Vec<Vec<u8>>,
    buf: Vec<u8>,
    emitted: u64,
    refused: u64,
    recorder: RefCell<Recorder>,
    /// What flows of all protocols take of the host's descriptors.
    budget: FlowBudget,
    /// Calls and frames of the core from one injected panic to the next.
    panic_distance: Option<u64>,
    /// Panics that were injected.
    defects: u64,
}

impl Bench {
    fn new(seed: u64, recorder: Recorder) -> Self {
        let mut rng = Rng::new(seed);
        let mut config = world::router_config(MTU);
        config.tcp.max_flows = LIMITS.tcp_flows;
        config.tcp.max_flows_per_port = FLOWS_PER_PORT;
        config.tcp.unsent_limit = UNSENT_LIMIT;
        config.datagram.limits = LIMITS;
        let budget = FlowBudget::new(BUDGET);
        config.tcp.budget = budget.clone();
        config.datagram.budget = budget.clone();
        config.datagram.uso = rng.chance(500);
        let gateway = &mut config.gateway;
        gateway.v4 = gateway.v4.map(|v4| Ipv4Gateway {
            dns: Some(addresses::DNS_V4),
            ..v4
        });
        gateway.v6 = gateway.v6.map(|v6| Ipv6Gateway {
            dns: Some(addresses::DNS_V6),
            ..v6
        });
        gateway.dhcp_range = Some(([10, 0, 2, 15].into(), [10, 0, 2, 30].into()));
        let mut network = Network::new(config, [7; 32], Instant::ZERO);
        let guarded = rng.chance(300);
        network
            .add_port(PORT, world::port_config(guarded))
            .expect("the first port");
        network
            .add_port(NEIGHBOUR, PortConfig::default())
            .expect("the second port");
        let plan = HostPlan {
            exhausted: 20,
            spurious: 50,
            event_delay: Duration::from_millis(2),
            ack_delay: Duration::ZERO,
            leak: false,
        };
        let mut host = Host::new(plan, rng.fork());
        let anywhere = "192.0.2.1:1".parse().expect("an address");
        host.add_service(anywhere, echo_service(&mut rng));
        host.answer_anywhere(anywhere);
        Bench {
            rng,
            now: Instant::ZERO,
            network,
            host,
            corpus: corpus::all(),
            live: Vec::new(),
            buf: vec![0; FRAME_BUFFER_LEN],
            emitted: 0,
            refused: 0,
            recorder: RefCell::new(recorder),
            budget,
            panic_distance: None,
            defects: 0,
        }
    }

    fn event(&mut self, what: &str) {
        self.recorder.get_mut().event(|| what.into());
    }

    /// Has the core do something. Where that panics, as it was injected, the core recovers, and the
    /// default stands for the result.
    fn with_core<R: Default>(
        &mut self,
        f: impl FnOnce(&mut Network, Instant, &mut CoreIo<'_, '_>) -> R,
    ) -> R {
        let distance = self.panic_distance;
        unless_injected(|| self.lend(distance, f)).unwrap_or_else(|| {
            self.defects += 1;
            self.lend(None, |network, now, io| network.recover(now, None, io));
            R::default()
        })
    }

    /// Lends the core its surroundings, in which each `distance`th call panics.
    fn lend<R>(
        &mut self,
        distance: Option<u64>,
        f: impl FnOnce(&mut Network, Instant, &mut CoreIo<'_, '_>) -> R,
    ) -> R {
        self.recorder.get_mut().inject_panics(distance);
        let mut sink = Sink {
            rng: &mut self.rng,
            live: &mut self.live,
            emitted: &mut self.emitted,
        };
        let mut io = Io {
            sink: &mut Recorded {
                inner: &mut sink,
                recorder: &self.recorder,
            },
            hosts: &mut Recorded {
                inner: &mut self.host,
                recorder: &self.recorder,
            },
            buf: &mut self.buf,
        };
        f(&mut self.network, self.now, &mut io)
    }

    /// One frame, and now and then what happens between batches.
    fn turn(&mut self, n: u64) {
        let frame = self.draw();
        self.give(&frame);
        if n.is_multiple_of(8) {
            self.between_batches();
        }
    }

    fn give(&mut self, frame: &[u8]) {
        let before = self.network.drops().clone();
        let port = if self.rng.chance(50) { NEIGHBOUR } else { PORT };
        self.recorder.get_mut().frame_in(port, frame);
        self.with_core(|network, now, io| network.handle_frame(now, port, frame, io));
        let counted = self.network.drops().total() - before.total();
        match Frame::parse(frame, MTU) {
            Err(reason) => {
                self.refused += 1;
                let named = self.network.drops().get(reason) - before.get(reason);
                assert_eq!((counted, named), (1, 1), "{reason:?}: {frame:02x?}");
            }
            // What a port did not take, the sink counts.
            Ok(_) => assert!(counted <= 1, "{counted} drops for {frame:02x?}"),
        }
    }

    fn between_batches(&mut self) {
        self.with_core(|network, now, io| network.end_batch(now, io));
        // Mostly a moment, so that flows pile up; rarely long enough for all of them to expire.
        let rare = self.rng.chance(2);
        let most = if rare {
            1_000_000
        } else {
            self.rng.pick(&[1, 1, 10, 300])
        };
        self.now += self
            .rng
            .duration(Duration::ZERO, Duration::from_millis(most));
        self.recorder.get_mut().set_time(self.now);
        let advanced = self.host.advance(self.now);
        assert_eq!(advanced, Ok(()));
        while let Some((token, ready)) = self.host.event(self.now) {
            self.recorder.get_mut().readiness(ready);
            self.with_core(|network, now, io| network.handle_socket(now, token, ready, io));
        }
        if self.network.poll_timeout().is_some_and(|t| t <= self.now) {
            self.event("timeout");
            self.with_core(|network, now, io| network.handle_timeout(now, io));
        }
        while let Some(query) = self.host.queries.pop_front() {
            let recorder = self.recorder.get_mut();
            recorder.event(|| format!("query {}", record::bytes(&query.message)));
            let mut answer = query.message;
            if let Some(flags) = answer.get_mut(2) {
                *flags |= 0x80;
            }
            self.with_core(|network, now, io| network.answer_dns(now, query.id, &answer, io));
        }
        if self.rng.chance(20) {
            self.accept();
        }
        if self.rng.chance(1) {
            self.replug();
        }
        for port in [PORT, NEIGHBOUR] {
            let held = self.network.port_flows(port).tcp;
            assert!(held <= FLOWS_PER_PORT, "{port:?} has {held} flows");
        }
        let flows = LIMITS.tcp_flows + 2 * (LIMITS.udp_mappings + LIMITS.ping_mappings);
        assert!(
            self.network.flows() <= flows,
            "{} flows",
            self.network.flows()
        );
        assert!(self.host.open_sockets() <= flows);
        assert_eq!(self.budget.used(), self.network.flows());
        assert!(self.network.unsent() <= UNSENT_LIMIT);
    }

    /// One container goes, or both do, and others come in their places.
    fn replug(&mut self) {
        let gone: &[PortId] = self
            .rng
            .pick(&[&[PORT][..], &[NEIGHBOUR], &[PORT, NEIGHBOUR]]);
        for &port in gone {
            self.event(&format!("port {} goes", port.0));
            let defects = self.defects;
            let counters = self.with_core(|network, now, io| network.remove_port(now, port, io));
            let panicked = self.defects > defects;
            assert!(
                panicked || counters.is_some_and(|c| c.frames_in > 0),
                "{port:?}"
            );
            assert_eq!(self.network.port_flows(port), PortFlows::default());
            let again = self.with_core(|network, now, io| network.remove_port(now, port, io));
            assert!(again.is_none());
        }
        if gone.len() == 2 {
            // Clients whose guest is looked for are all that is left, and connections whose far end
            // has yet to take what their container had sent to its end.
            assert_eq!(self.network.flows(), self.network.tcp_flows());
            assert_eq!(self.host.open_sockets(), self.network.flows());
        }
        for &port in gone {
            let guarded = self.rng.chance(300);
            let config = match port {
                PORT => world::port_config(guarded),
                _ => PortConfig::default(),
            };
            self.event(&format!("port {} comes", port.0));
            let added = self.network.add_port(port, config);
            assert_eq!(added, Ok(()));
        }
    }

    /// A client of a published port.
    fn accept(&mut self) {
        let v6 = self.rng.chance(500);
        let guest = (addresses::address(v6), 80).into();
        let service = "192.0.2.1:1".parse().expect("an address");
        let peer = if v6 {
            "[2001:db8::9]:7"
        } else {
            "198.51.100.9:7"
        };
        let peer = peer.parse().expect("an address");
        let socket: SocketId = self.host.incoming(service);
        let recorder = self.recorder.get_mut();
        recorder.event(|| format!("accepted socket {} {peer} for {guest}", socket.0));
        self.with_core(|network, now, io| network.handle_accept(now, guest, peer, socket, io));
    }

    // ---- mutation ----

    fn draw(&mut self) -> Vec<u8> {
        let live = !self.live.is_empty() && self.rng.chance(400);
        let source = if live { &self.live } else { &self.corpus };
        let mut frame = source[self.rng.below(source.len())].clone();
        if self.rng.chance(150) {
            return frame;
        }
        for _ in 0..self.rng.pick(&[1, 1, 1, 2, 4]) {
            self.mutate(&mut frame);
        }
        if self.rng.chance(500) {
            frames::complete_ip(&mut frame);
            if frame.len() > VNET_HDR_LEN {
                offload::complete_checksum(&mut frame[VNET_HDR_LEN..]);
            }
        }
        if self.rng.chance(100) {
            self.claim_offload(&mut frame);
        }
        frame
    }

    fn mutate(&mut self, frame: &mut Vec<u8>) {
        if frame.is_empty() {
            return;
        }
        let at = self.rng.below(frame.len());
        match self.rng.below(9) {
            0 | 1 => frame[at] ^= 1 << self.rng.below(8),
            2 => frame[at] = self.rng.next_u64() as u8,
            3 => frame.truncate(at),
            4 => {
                let more = self.rng.below(100);
                let tail = self.rng.bytes(more);
                frame.extend_from_slice(&tail);
            }
            5 => self.change_length(frame),
            7 => {
                // Another source port.
                let at = if frame.get(22) == Some(&8) { 44 } else { 64 };
                let port = self.rng.within(1000..1300) as u16;
                if let Some(place) = frame.get_mut(at..at + 2) {
                    place.copy_from_slice(&port.to_be_bytes());
                }
            }
            6 => {
                // The head of one, the tail of another.
                let other = &self.corpus[self.rng.below(self.corpus.len())];
                let from = self.rng.below(other.len());
                frame.truncate(at);
                frame.extend_from_slice(&other[from..]);
            }
            _ => {
                let n = self.rng.below(8);
                let value = self.rng.pick(&[0, 0xff, 0x80, 1]);
                frame.iter_mut().skip(at).take(n).for_each(|b| *b = value);
            }
        }
    }

    /// Lengths and offsets: of IPv4, of IPv6, of fragments, of UDP, of the TCP header and options.
    fn change_length(&mut self, frame: &mut [u8]) {
        let at = self
            .rng
            .pick(&[24, 26, 27, 28, 29, 30, 48, 49, 56, 65, 66, 68, 69, 76, 85]);
        if let Some(byte) = frame.get_mut(at) {
            *byte = match self.rng.below(4) {
                0 => byte.wrapping_add(1),
                1 => byte.wrapping_sub(1),
                2 => 0,
                _ => self.rng.next_u64() as u8,
            };
        }
    }

    /// A virtio-net header that may or may not be true.
    fn claim_offload(&mut self, frame: &mut [u8]) {
        let at = match frame.get(VNET_HDR_LEN..).map(offload::ip_at) {
            Some(Ok(Some(at))) => at,
            _ => return,
        };
        let mut header = VnetHeader {
            flags: vnet::F_NEEDS_CSUM,
            gso_type: self.rng.pick(&[0, 0, 1, 3, 4, 5, 0x81, 77]),
            hdr_len: at.payload as u16,
            gso_size: self.rng.pick(&[0, 1, 100, 1000, 1460, 65535]),
            csum_start: at.l4 as u16,
            csum_offset: if at.protocol == 6 { 16 } else { 6 },
        };
        match self.rng.below(6) {
            0 => header.hdr_len = self.rng.next_u64() as u16,
            1 => header.csum_start = self.rng.next_u64() as u16,
            2 => header.csum_offset = self.rng.next_u64() as u16,
            _ => {}
        }
        frame[..VNET_HDR_LEN].copy_from_slice(&header.encode());
    }

    /// Lets everything come to its end.
    fn wind_up(&mut self) {
        self.panic_distance = None;
        let end = self.now + Duration::from_secs(4 * 3600);
        self.event("shut-down");
        self.with_core(|network, now, io| network.shut_down(now, io));
        for _ in 0..1_000_000 {
            let next = [self.host.next(), self.network.poll_timeout()];
            let Some(next) = next.into_iter().flatten().min().filter(|&t| t <= end) else {
                break;
            };
            self.now = self.now.max(next);
            self.recorder.get_mut().set_time(self.now);
            assert_eq!(self.host.advance(self.now), Ok(()));
            while let Some((token, ready)) = self.host.event(self.now) {
                self.recorder.get_mut().readiness(ready);
                self.with_core(|network, now, io| network.handle_socket(now, token, ready, io));
            }
            self.event("timeout");
            self.with_core(|network, now, io| network.handle_timeout(now, io));
        }
        let left = (
            self.network.flows(),
            self.host.open_sockets(),
            self.network.unsent(),
        );
        assert_eq!(left, (0, 0, 0), "flows, sockets and bytes left");
        assert_eq!(self.budget.used(), 0);
    }
}

/// Takes anything, sends something, closes last.
fn echo_service(rng: &mut Rng) -> Service {
    let out: Rc<[u8]> = rng.bytes(20_000).into();
    let plan = AppPlan {
        write_chunk: 3_000,
        read_chunk: 1_000,
        pace: Duration::from_millis(1),
        speak_after: 0,
        stalls: vec![(300, Duration::from_secs(60))],
        rests: Vec::new(),
        ending: Ending::AfterPeer,
    };
    Service {
        fate: Fate::Accept,
        delay: Duration::from_millis(2),
        receive_buffer: 8_000,
        send_buffer: 4_000,
        app: Box::new(move || App::trusting("anything".into(), plan.clone(), out.clone())),
    }
}

/// Has the core panic at each `distance`th of its calls; returns how often it did.
pub fn run_with_panics(seed: u64, frames: u64, distance: u64) -> u64 {
    let mut bench = Bench::new(seed, Recorder::new(Keep::Nothing));
    bench.panic_distance = Some(distance);
    (0..frames).for_each(|n| bench.turn(n));
    bench.wind_up();
    bench.defects
}

/// Gives `frames` frames of one seed to a network.
fn run(seed: u64, frames: u64, recorder: Recorder) -> Bench {
    let mut bench = Bench::new(seed, recorder);
    (0..frames).for_each(|n| bench.turn(n));
    bench
}

/// As [`fuzz`]; returns `recorder` with all that passed between the core and the rest.
pub fn run_recorded(seed: u64, frames: u64, recorder: Recorder) -> Recorder {
    let mut bench = run(seed, frames, recorder);
    bench.wind_up();
    let mut recorder = bench.recorder.into_inner();
    recorder.drop_counters(&bench.network.report().drops);
    recorder
}

/// Gives `frames` frames of one seed to a router; returns how many it emitted and how many its
/// parser refused.
fn fuzz(seed: u64, frames: u64) -> (u64, u64) {
    let mut bench = run(seed, frames, Recorder::new(Keep::Nothing));
    let drops = bench.network.drops();
    let drops: Vec<_> = drops.iter().map(|(r, n)| (r.name(), n)).collect();
    eprintln!("seed {seed}: {drops:?}");
    let done = (bench.emitted, bench.refused);
    bench.wind_up();
    done
}

/// One seed a processor; or the one in `CNET_FUZZ_SEED`.
#[test]
fn a_million_mutated_frames() {
    mutated_frames(FRAMES);
}

/// The long form (`cargo xtask test mutations`).
#[test]
#[ignore = "takes an hour; run by cargo xtask test mutations"]
fn long_a_hundred_million_mutated_frames() {
    mutated_frames(100 * FRAMES);
}

fn mutated_frames(frames: u64) {
    if let Some(seed) = number("CNET_FUZZ_SEED") {
        fuzz(seed, frames);
        return;
    }
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let (emitted, refused) = std::thread::scope(|scope| {
        let run = |seed| (seed, scope.spawn(move || fuzz(seed, frames / threads)));
        let running: Vec<_> = (0..threads).map(run).collect();
        running.into_iter().fold((0, 0), |sum, (seed, thread)| {
            let Ok(done) = thread.join() else {
                panic!("CNET_FUZZ_SEED={seed} cargo test -p cnet-tests --test sim -- mutated --nocapture");
            };
            (sum.0 + done.0, sum.1 + done.1)
        })
    });
    eprintln!("{emitted} frames emitted, {refused} refused by the parser");
    // Neither everything nor nothing got through.
    assert!(emitted > frames / 20 && refused > frames / 20);
}
