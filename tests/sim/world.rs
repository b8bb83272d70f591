//! One simulated world: a container, a wire, the core, a host, and the clock that drives them.
//!
//! # Theory of operation
//! Time is a number. Each step moves it to the next thing that happens anywhere (a frame arrives,
//! an event is due, a deadline passes, an application wakes) and lets every part act once. All
//! chance comes from the seed, so a seed is a schedule, and a failing seed fails again.
//!
//! # Properties
//! For every seed:
//! - every byte arrives once and in order, both directions, and each end of file is the peer's own
//!   ([`cnet_testkit::app`] checks while it reads);
//! - or the connection ends with the right error on both sides ([`World::judge`]);
//! - every frame the core emits is one a kernel takes at its word ([`cnet_testkit::offload::cut`]), and no
//!   socket is misused ([`cnet_testkit::host::simulated`]);
//! - all this in bounded virtual time and a bounded number of steps;
//! - afterwards no flow, socket, timer or buffer is left.

mod judge;

pub use judge::{Evidence, Excuse, Excuses};

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use cnet_core::Network;
use cnet_nat::datagram::DatagramConfig;
use cnet_nat::gateway::{GatewayConfig, Ipv4Gateway, Ipv6Gateway, Quirks};
use cnet_nat::io::Io;
use cnet_nat::policy::Policy;
use cnet_nat::router::RouterConfig;
use cnet_nat::tcp::TcpConfig;
use cnet_vswitch::port::{Lease, PortConfig};
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{FrameSink, PortFull, PortId};

use crate::hostile::Hostile;
use crate::plan::{FlowPlan, HostilePlan, Opening, Plan};
use crate::record::{Keep, Recorded, Recorder, unless_injected};
use cnet_testkit::addresses::{self, GATEWAY_MAC};
use cnet_testkit::app::{App, End};
use cnet_testkit::container::{Container, Endpoint};
use cnet_testkit::host::simulated::{Fate, Host, Service};
use cnet_testkit::link::Lane;
use cnet_testkit::offload;
use cnet_testkit::rng::Rng;

/// The port the container is plugged in.
pub const PORT: PortId = PortId(1);
/// Virtual time within which every application has come to its end: established flows are probed
/// after 2 h 4 min of silence and given up some minutes later.
const TIME_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// Virtual time within which everything is given back after that.
const REST_LIMIT: Duration = Duration::from_secs(3 * 3600);
/// Virtual time a timer may outlive the last flow.
const TIMER_LIMIT: Duration = Duration::from_secs(10);
/// Steps of a world: reached only by parts that keep each other busy for nothing.
const STEP_LIMIT: u64 = 3_000_000;
/// Frames of one batch.
const BATCH: usize = 8;

/// The configuration of a router for one container.
pub fn router_config(mtu: usize) -> RouterConfig {
    RouterConfig {
        mtu,
        gateway: GatewayConfig {
            mac: GATEWAY_MAC,
            mtu: mtu as u16,
            v4: Some(Ipv4Gateway {
                address: addresses::GATEWAY_V4,
                prefix_len: 24,
                dns: None,
            }),
            v6: Some(Ipv6Gateway {
                address: addresses::GATEWAY_V6,
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
            mtu,
            gateway_v4: Some(addresses::GATEWAY_V4.into()),
            gateway_v6: Some(addresses::GATEWAY_V6.into()),
            ..TcpConfig::default()
        },
        datagram: DatagramConfig {
            mtu,
            gateway_v4: Some(addresses::GATEWAY_V4),
            gateway_v6: Some(addresses::GATEWAY_V6),
            ..DatagramConfig::default()
        },
    }
}

/// The container's port.
pub fn port_config(guarded: bool) -> PortConfig {
    PortConfig {
        lease: Lease {
            // Unguarded it stands for a virtual machine, whose address is known once it has spoken.
            mac: guarded.then_some(addresses::MAC),
            ipv4: vec![addresses::IPV4],
            ipv6: vec![addresses::IPV6],
            ..Lease::default()
        },
        spoof_protection: guarded,
        ..PortConfig::default()
    }
}

/// A network as the plan wants it.
fn network(plan: &Plan, rng: &mut Rng) -> Network {
    let mut config = router_config(plan.mtu);
    config.tcp.unsent_limit = plan.unsent_limit;
    let mut secret = [0; 32];
    secret.copy_from_slice(&rng.bytes(32));
    let mut network = Network::new(config, secret, Instant::ZERO);
    network
        .add_port(PORT, port_config(plan.guarded))
        .expect("the first port of a new network");
    network
}

/// Where the core's frames go: through the oracle and onto the wire.
pub struct Sink<'a> {
    pub now: Instant,
    pub mtu: usize,
    pub lane: &'a mut Lane,
    pub violation: &'a mut Option<String>,
    pub frames: &'a mut u64,
    pub trace: bool,
}

impl FrameSink for Sink<'_> {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        *self.frames += 1;
        if port != PORT {
            self.violation.get_or_insert(format!("a frame to {port:?}"));
            return Err(PortFull);
        }
        if self.trace {
            trace(self.now, "<-", &frame[VNET_HDR_LEN..]);
        }
        match offload::cut(frame, self.mtu) {
            Err(what) => {
                self.violation
                    .get_or_insert(format!("a frame to the container: {what}"));
                Err(PortFull)
            }
            Ok(_) if self.lane.is_full() => Err(PortFull),
            Ok(parts) => {
                for part in parts {
                    // The last segments of a super-frame may find the queue full: a loss.
                    let _ = self.lane.send(self.now, part);
                }
                Ok(())
            }
        }
    }
}

/// What the core is lent: sink and host, with the recorder before both.
type CoreIo<'a, 'b> = Io<'a, (Recorded<'a, Sink<'b>>, Recorded<'a, Host>)>;

/// One line for a frame without virtio-net header.
fn trace(now: Instant, arrow: &str, frame: &[u8]) {
    let time = now.as_nanos() / 1000;
    let Ok(Some(at)) = offload::ip_at(frame) else {
        return eprintln!("{time:>12} {arrow} {} bytes, not IP", frame.len());
    };
    let len = at.end - at.payload;
    if at.protocol != 6 {
        return eprintln!("{time:>12} {arrow} protocol {}, {len} bytes", at.protocol);
    }
    let l4 = &frame[at.l4..];
    let be32 = |i: usize| u32::from_be_bytes([l4[i], l4[i + 1], l4[i + 2], l4[i + 3]]);
    let be16 = |i: usize| u16::from_be_bytes([l4[i], l4[i + 1]]);
    let flags: String = ["F", "S", "R", "P", "A", "U"]
        .iter()
        .enumerate()
        .filter(|(bit, _)| l4[13] & 1 << bit != 0)
        .map(|(_, name)| *name)
        .collect();
    eprintln!(
        "{time:>12} {arrow} {}>{} {flags:3} seq {} ack {} win {} len {len}",
        be16(0),
        be16(2),
        be32(4),
        be32(8),
        be16(14),
    );
}

/// What a run did, for those who want to know that it did something.
#[derive(Clone, Copy, Default, Debug)]
pub struct Summary {
    pub steps: u64,
    pub frames: u64,
    pub lost: u64,
    pub bytes: u64,
    pub done: u64,
    pub failed: u64,
    /// Panics that were injected.
    pub defects: u64,
    /// What the judge forgave.
    pub excuses: Excuses,
}

/// A world.
pub struct World {
    plan: Plan,
    now: Instant,
    rng: Rng,
    network: Network,
    container: Container,
    host: Host,
    hostiles: Vec<Hostile>,
    up: Lane,
    down: Lane,
    buf: Vec<u8>,
    violation: Option<String>,
    /// The core has kept bytes that a socket did not take.
    kept_unsent: bool,
    /// Incoming clients that have not come yet.
    to_come: Vec<usize>,
    steps: u64,
    frames: u64,
    excuses: Excuses,
    trace: bool,
    recorder: RefCell<Recorder>,
    panic_distance: Option<u64>,
    defects: u64,
}

impl World {
    pub fn new(plan: Plan, trace: bool) -> World {
        let mut rng = Rng::new(plan.seed ^ 0x5eed);
        let (address, gateway) = (addresses::address(plan.v6), addresses::gateway(plan.v6));
        let mut container = Container::new(
            plan.v6,
            plan.mtu,
            rng.next_u64(),
            address,
            gateway,
            addresses::MAC,
        );
        let mut host = Host::new(plan.host, rng.fork());
        for (n, flow) in plan.flows.iter().enumerate() {
            add_flow(flow, n, &mut container, &mut host, &mut rng);
        }
        let hostiles = plan
            .hostiles
            .iter()
            .map(|h| add_hostile(h, address, &mut host, &mut rng))
            .collect();
        let to_come = (0..plan.flows.len())
            .filter(|&n| plan.flows[n].opening != Opening::Out)
            .collect();
        World {
            network: network(&plan, &mut rng),
            now: Instant::ZERO,
            container,
            host,
            hostiles,
            up: Lane::new(plan.up, rng.fork()),
            down: Lane::new(plan.down, rng.fork()),
            buf: vec![0; FRAME_BUFFER_LEN],
            violation: None,
            kept_unsent: false,
            to_come,
            steps: 0,
            frames: 0,
            excuses: Excuses::default(),
            trace,
            recorder: RefCell::new(Recorder::new(Keep::Nothing)),
            panic_distance: None,
            defects: 0,
            rng,
            plan,
        }
    }

    /// Runs the world to its end. An error is a violated property.
    pub fn run(mut self) -> Result<Summary, String> {
        self.run_to_end()?;
        Ok(self.summary())
    }

    /// As [`World::run`]; returns `recorder` with all that passed between the core and the rest.
    pub fn run_recorded(mut self, recorder: Recorder) -> Result<Recorder, String> {
        self.recorder = RefCell::new(recorder);
        self.run_to_end()?;
        let mut recorder = self.recorder.into_inner();
        recorder.drop_counters(&self.network.report().drops);
        Ok(recorder)
    }

    /// As [`World::run`], for those who want to look at the world afterwards.
    pub fn run_to_end(&mut self) -> Result<(), String> {
        let end = Instant::ZERO + TIME_LIMIT;
        while !self.applications_ended() {
            if !self.step(end)? {
                return Err(format!("at {:?} these hang: {}", self.now, self.hanging()));
            }
        }
        let end = self.now + REST_LIMIT;
        while self.is_in_use() && self.step(end)? {}
        // Nothing in use, so there is nothing to wait for but the end of a guest's solicitation.
        let end = self.now + TIMER_LIMIT;
        while self.leftovers().is_some() && self.step(end)? {}
        if let Some(left) = self.leftovers() {
            return Err(format!("left over: {left}"));
        }
        self.excuses = self.judge()?;
        self.judge_hostiles()
    }

    /// Puts a frame of the container's on the wire.
    pub fn send_up(&mut self, frame: Vec<u8>) {
        let _ = self.up.send(self.now, frame);
    }

    /// How long the container's end of flow `n` took.
    pub fn duration_of(&self, n: usize) -> Option<Duration> {
        let ended = self.container.endpoints[n].app.ended_at?;
        Some(ended - (Instant::ZERO + self.plan.flows[n].start))
    }

    /// Has each `distance`th call and frame of the core panic.
    pub fn with_panics(mut self, distance: u64) -> World {
        self.panic_distance = Some(distance);
        self
    }

    /// Has the core do something; where that panics, as it was injected, has it recover.
    fn with_core(&mut self, f: impl FnOnce(&mut Network, Instant, &mut CoreIo<'_, '_>)) {
        let distance = self.panic_distance;
        if unless_injected(|| self.lend(distance, f)).is_none() {
            self.defects += 1;
            self.lend(None, |network, now, io| network.recover(now, None, io));
        }
    }

    /// Lends the core its surroundings, in which each `distance`th call panics.
    fn lend<R>(
        &mut self,
        distance: Option<u64>,
        f: impl FnOnce(&mut Network, Instant, &mut CoreIo<'_, '_>) -> R,
    ) -> R {
        self.recorder.get_mut().inject_panics(distance);
        let mut sink = Sink {
            now: self.now,
            mtu: self.plan.mtu,
            lane: &mut self.down,
            violation: &mut self.violation,
            frames: &mut self.frames,
            trace: self.trace,
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

    /// Moves time to the next thing that happens and lets it happen. `false` when that lies beyond
    /// `end`, or nothing ever will.
    fn step(&mut self, end: Instant) -> Result<bool, String> {
        self.steps += 1;
        if self.steps > STEP_LIMIT {
            return Err(format!(
                "busy for nothing at {:?}: {}",
                self.now,
                self.hanging()
            ));
        }
        let Some(next) = self.next().filter(|&t| t <= end) else {
            return Ok(false);
        };
        self.now = self.now.max(next);
        self.recorder.get_mut().set_time(self.now);
        self.incoming();
        self.host.advance(self.now)?;
        while let Some((token, readiness)) = self.host.event(self.now) {
            if self.trace {
                eprintln!(
                    "{:>12} -- {token:?} {readiness:?}",
                    self.now.as_nanos() / 1000
                );
            }
            self.recorder.get_mut().readiness(readiness);
            self.with_core(|network, now, io| network.handle_socket(now, token, readiness, io));
        }
        self.container_turn()?;
        self.frames_up();
        if self.network.poll_timeout().is_some_and(|t| t <= self.now) {
            self.recorder.get_mut().event(|| "timeout".into());
            self.with_core(|network, now, io| network.handle_timeout(now, io));
        }
        self.host.advance(self.now)?;
        self.check_acknowledgements()?;
        match self.violation.take() {
            Some(what) => Err(what),
            None => Ok(true),
        }
    }

    /// While the far kernel has not acknowledged all, neither has the core: what is unacknowledged there is
    /// seen by the container (TCP_USER_TIMEOUT). Not so where a socket had no room and the core has kept
    /// bytes itself: those are acknowledged before they are sent.
    fn check_acknowledgements(&mut self) -> Result<(), String> {
        self.kept_unsent |= self.network.unsent() > 0;
        if self.kept_unsent || self.defects > 0 {
            return Ok(());
        }
        for (n, flow) in self.plan.flows.iter().enumerate() {
            if self.container.has_all_acknowledged(n)
                && self.host.awaits_acknowledgement(flow.remote)
            {
                return Err(format!(
                    "flow {n} at {:?}: all is acknowledged to the container, and not by the far end",
                    self.now
                ));
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Instant> {
        let clients = self
            .to_come
            .iter()
            .map(|&n| Instant::ZERO + self.plan.flows[n].start)
            .min();
        let hostiles = self.hostiles.iter().filter_map(Hostile::next).min();
        [
            clients,
            hostiles,
            self.host.next(),
            self.container.next(self.now),
            self.up.next(),
            self.down.next(),
            self.network.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn incoming(&mut self) {
        let due = |w: &World, n: usize| Instant::ZERO + w.plan.flows[n].start <= w.now;
        while let Some(i) = self.to_come.iter().position(|&n| due(self, n)) {
            let n = self.to_come.swap_remove(i);
            let flow = &self.plan.flows[n];
            let guest = SocketAddr::new(addresses::address(self.plan.v6), flow.port);
            let peer = flow.remote;
            let socket = self.host.incoming(peer);
            let recorder = self.recorder.get_mut();
            recorder.event(|| format!("accepted socket {} {peer} for {guest}", socket.0));
            self.with_core(|network, now, io| network.handle_accept(now, guest, peer, socket, io));
        }
    }

    fn container_turn(&mut self) -> Result<(), String> {
        let mut forged = Vec::new();
        while let Some(frame) = self.down.receive(self.now) {
            let at = offload::tcp_at(&frame).ok();
            let port = at.map(|at| u16::from_be_bytes([frame[at.l4 + 2], frame[at.l4 + 3]]));
            let attacker = self.hostiles.iter_mut().find(|h| Some(h.port()) == port);
            match (attacker, at) {
                (Some(h), Some(at)) => h.receive(self.now, &frame, &at, &mut forged),
                _ => self.container.deliver(self.now, frame),
            }
        }
        for h in &mut self.hostiles {
            h.poll(self.now, &mut forged);
            if let Some(what) = h.violation.take() {
                return Err(format!("hostile flow to {}: {what}", h.remote()));
            }
        }
        let mut frames = Vec::new();
        self.container.poll(self.now, &mut frames)?;
        if self.trace {
            let plain = forged.iter().map(|f| &f[VNET_HDR_LEN..]);
            let all = frames.iter().map(Vec::as_slice).chain(plain);
            all.for_each(|f| trace(self.now, "->", f));
        }
        let joined = offload::join(frames, self.plan.offloads, &mut self.rng);
        for frame in joined.into_iter().chain(forged) {
            let _ = self.up.send(self.now, frame);
        }
        Ok(())
    }

    fn frames_up(&mut self) {
        loop {
            let mut batch = 0;
            while batch < BATCH
                && let Some(frame) = self.up.receive(self.now)
            {
                batch += 1;
                self.recorder.get_mut().frame_in(PORT, &frame);
                self.with_core(|network, now, io| network.handle_frame(now, PORT, &frame, io));
            }
            if batch == 0 {
                return;
            }
            self.with_core(|network, now, io| network.end_batch(now, io));
        }
    }

    /// Whether the endpoint of flow `n` will not do anything more.
    fn endpoint_ended(&self, n: usize) -> bool {
        let e = &self.container.endpoints[n];
        // One that listens in vain has ended when its client has.
        e.app.end.is_some() || self.plan.flows[n].opening != Opening::Out && !e.was_connected()
    }

    fn applications_ended(&self) -> bool {
        self.to_come.is_empty()
            && self.hostiles.iter().all(Hostile::is_over)
            && (0..self.plan.flows.len()).all(|n| self.endpoint_ended(n))
            && self.host.running().next().is_none()
    }

    fn hanging(&self) -> String {
        let mut out = String::new();
        for h in self.hostiles.iter().filter(|h| !h.is_over()) {
            out += &format!("\n  {}", h.brief());
        }
        for (n, e) in self.container.endpoints.iter().enumerate() {
            if !self.endpoint_ended(n) {
                out += &format!(
                    "\n  flow {n} container: {} [{}]",
                    e.app.brief(),
                    self.container.state(n)
                );
            }
        }
        for (at, app) in self.host.running() {
            out += &format!("\n  {at}: {}", app.brief());
        }
        out
    }

    fn summary(&self) -> Summary {
        let ends = self.container.endpoints.iter().map(|e| e.app.end);
        let done = ends.clone().filter(|&e| e == Some(End::Done)).count() as u64;
        let received =
            |apps: &mut dyn Iterator<Item = &App>| apps.map(|a| a.received as u64).sum::<u64>();
        Summary {
            steps: self.steps,
            frames: self.frames,
            lost: self.up.lost + self.down.lost,
            bytes: received(&mut self.container.endpoints.iter().map(|e| &e.app))
                + received(&mut self.host.finished.iter().map(|f| &f.1)),
            done,
            failed: ends.count() as u64 - done,
            defects: self.defects,
            excuses: self.excuses,
        }
    }
}

/// An attacker, and the service it attacks.
fn add_hostile(plan: &HostilePlan, address: IpAddr, host: &mut Host, rng: &mut Rng) -> Hostile {
    let out: Rc<[u8]> = rng.bytes(plan.bytes_out).into();
    let back: Rc<[u8]> = rng.bytes(plan.bytes_in).into();
    let from = SocketAddr::new(address, plan.port);
    let hostile = Hostile::new(rng.fork(), from, plan.remote, out.clone(), back.clone());
    let script = plan.far.clone();
    let name = format!("far end of hostile {from}");
    let service = Service {
        fate: Fate::Accept,
        delay: Duration::from_millis(3),
        receive_buffer: 10_000,
        send_buffer: 10_000,
        app: Box::new(move || App::new(name.clone(), script.clone(), back.clone(), out.clone())),
    };
    host.add_service(plan.remote, service);
    hostile
}

/// Puts both ends of a flow in place.
pub fn add_flow(
    flow: &FlowPlan,
    n: usize,
    container: &mut Container,
    host: &mut Host,
    rng: &mut Rng,
) {
    let out: Rc<[u8]> = rng.bytes(flow.bytes_out).into();
    let back: Rc<[u8]> = rng.bytes(flow.bytes_in).into();
    let near = App::new(
        format!("flow {n}, container"),
        flow.container.clone(),
        out.clone(),
        back.clone(),
    );
    let start = Instant::ZERO + flow.start;
    let endpoint = match flow.opening {
        Opening::Out => Endpoint::connecting(flow.remote, flow.port, start, flow.socket, near),
        Opening::In { listening: true } => {
            Endpoint::listening(flow.port, Instant::ZERO, flow.socket, near)
        }
        // Far in the future: it never listens.
        Opening::In { listening: false } => {
            Endpoint::listening(flow.port, Instant::ZERO + Duration::MAX, flow.socket, near)
        }
    };
    container.endpoints.push(endpoint);
    let plan = flow.far.clone();
    host.add_service(
        flow.remote,
        Service {
            fate: flow.fate,
            delay: flow.fate_delay,
            receive_buffer: flow.receive_buffer,
            send_buffer: flow.send_buffer,
            app: Box::new(move || {
                App::new(
                    format!("flow {n}, far end"),
                    plan.clone(),
                    back.clone(),
                    out.clone(),
                )
            }),
        },
    );
}
