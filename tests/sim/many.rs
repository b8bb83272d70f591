//! Several containers on one network, served by several workers, over wires that lose, double and
//! reorder.
//!
//! # Theory of operation
//! Each container has a wire of its own and flows of its own, drawn as those of [`crate::plan`]: it
//! connects to the world, and clients come to its published ports. Besides, containers connect to each
//! other. Each worker has the ports whose numbers fall to it, a core and a host; what a core leaves to
//! the primary worker waits in a bounded queue. Frames are handled in batches, as the workers do.
//!
//! # Properties
//! For every seed, as for [`crate::world`]: every byte arrives once and in order, each flow ends as its
//! plan and the other side say ([`crate::world::Evidence`]), all in bounded time, and nothing is left.
//! Besides:
//! - every frame that a container sent is counted once as having come in, by whichever worker;
//! - every frame between containers that left is counted as having gone out, and no other;
//! - nothing passes between an isolated container and another.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use cnet_core::Network;
use cnet_nat::io::Io;
use cnet_testkit::addresses::{self, GATEWAY_MAC};
use cnet_testkit::app::{App, AppPlan, End, Ending};
use cnet_testkit::container::{Container, Endpoint, SocketPlan};
use cnet_testkit::host::simulated::Host;
use cnet_testkit::link::Lane;
use cnet_testkit::offload::{self, Offloads};
use cnet_testkit::rng::Rng;
use cnet_vswitch::port::{Lease, PortConfig};
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{FrameSink, MacAddr, PortFull, PortId};

use crate::plan::{FlowPlan, Opening, Plan};
use crate::seeds::{self, number};
use crate::world::{self, Evidence, Excuse, Excuses, Summary};

/// Containers of a network.
const CONTAINERS: usize = 4;
/// The last one is isolated in every other network.
const ISOLATED: usize = CONTAINERS - 1;
/// Flows of one container to the world and from it.
const FLOWS: usize = 3;
/// Connections between containers.
const BETWEEN: usize = 3;
/// Frames of one batch, and frames that wait for the primary worker.
const BATCH: usize = 8;
const HANDED: usize = 64;
/// As in [`crate::world`].
const TIME_LIMIT: Duration = Duration::from_secs(4 * 3600);
const REST_LIMIT: Duration = Duration::from_secs(3 * 3600);
const STEP_LIMIT: u64 = 3_000_000;
/// Seeds of the test command.
const SEEDS: u64 = 400;
/// Flows in a thousand whose stack may hang.
const STUCK: u64 = 20;

/// A container with its wire.
struct Site {
    port: PortId,
    container: Container,
    up: Lane,
    down: Lane,
    offloads: Offloads,
    flows: Vec<FlowPlan>,
    isolated: bool,
}

/// A connection between two containers, by container and endpoint.
struct Between {
    opens: (usize, usize),
    listens: (usize, usize),
    plan: FlowPlan,
}

struct Worker {
    core: Network,
    host: Host,
}

/// What a core is lent.
type CoreIo<'a, 'b> = Io<'a, (Sink<'b>, Host)>;

/// Where the cores' frames go.
struct Sink<'a> {
    now: Instant,
    mtu: usize,
    sites: &'a mut [Site],
    handed: &'a mut VecDeque<(PortId, Vec<u8>)>,
    violation: &'a mut Option<String>,
    frames: &'a mut u64,
}

impl FrameSink for Sink<'_> {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        *self.frames += 1;
        let Some(site) = self.sites.iter_mut().find(|s| s.port == port) else {
            self.violation.get_or_insert(format!("a frame to {port:?}"));
            return Err(PortFull);
        };
        let from_gateway = frame[VNET_HDR_LEN + 6..].starts_with(&GATEWAY_MAC.0);
        if site.isolated && !from_gateway {
            let what = format!("another container's frame to {port:?}, which is isolated");
            self.violation.get_or_insert(what);
        }
        match offload::cut(frame, self.mtu) {
            Err(what) => {
                self.violation
                    .get_or_insert(format!("a frame to {port:?}: {what}"));
                Err(PortFull)
            }
            Ok(_) if site.down.is_full() => Err(PortFull),
            Ok(parts) => {
                for part in parts {
                    // The last segments of a super-frame may find the queue full: a loss.
                    let _ = site.down.send(self.now, part);
                }
                Ok(())
            }
        }
    }

    fn hand_over(&mut self, ingress: PortId, frame: &[u8]) -> Result<(), PortFull> {
        if self.handed.len() >= HANDED {
            return Err(PortFull);
        }
        self.handed.push_back((ingress, frame.to_vec()));
        Ok(())
    }
}

/// The network and all around it.
struct Many {
    v6: bool,
    mtu: usize,
    now: Instant,
    rng: Rng,
    sites: Vec<Site>,
    workers: Vec<Worker>,
    between: Vec<Between>,
    /// Incoming clients that have not come yet, by container and flow.
    to_come: Vec<(usize, usize)>,
    buf: Vec<u8>,
    violation: Option<String>,
    handed: VecDeque<(PortId, Vec<u8>)>,
    steps: u64,
    frames: u64,
    /// Frames that the containers sent and the workers got.
    given: u64,
    excuses: Excuses,
}

fn mac(n: usize) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 2, 1 + n as u8])
}

fn v4(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, 100 + n as u8)
}

fn v6(n: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100 + n as u16)
}

fn address(n: usize, is_v6: bool) -> IpAddr {
    if is_v6 { v6(n).into() } else { v4(n).into() }
}

/// The far end of container `n`'s flow: no other container's.
fn apart(remote: SocketAddr, n: usize) -> SocketAddr {
    let ip: IpAddr = match remote.ip() {
        IpAddr::V4(a) => Ipv4Addr::from(u32::from(a) + 20 * n as u32).into(),
        IpAddr::V6(a) => Ipv6Addr::from(u128::from(a) + 20 * n as u128).into(),
    };
    SocketAddr::new(ip, remote.port())
}

/// The plan of container `n`: of the network's family.
fn plan_of(seed: u64, n: usize, is_v6: bool) -> Plan {
    let draws = (0..).map(|k| Plan::draw(seed * 1_000 + 100 * n as u64 + k));
    let mut plan = draws
        .into_iter()
        .find(|plan| plan.v6 == is_v6)
        .expect("every other plan is");
    plan.flows.truncate(FLOWS);
    for flow in &mut plan.flows {
        flow.remote = apart(flow.remote, n);
    }
    plan
}

impl Many {
    fn new(seed: u64, workers: usize) -> Many {
        // Longer than 60 lines: a network and what it is made of, in the order of their making.
        let base = Plan::draw(seed);
        let mut rng = Rng::new(!seed);
        let mut cores = Vec::new();
        let mut config = world::router_config(base.mtu);
        config.tcp.unsent_limit = base.unsent_limit;
        let mut secret = [0; 32];
        secret.copy_from_slice(&rng.bytes(32));
        let primary = Network::new(config.clone(), secret, Instant::ZERO);
        for _ in 1..workers {
            cores.push(primary.further(config.clone(), secret, Instant::ZERO));
        }
        cores.insert(0, primary);
        let mut workers: Vec<Worker> = cores
            .into_iter()
            .map(|core| Worker {
                core,
                host: Host::new(base.host, rng.fork()),
            })
            .collect();
        let mut sites = Vec::new();
        let mut to_come = Vec::new();
        for n in 0..CONTAINERS {
            let isolated = n == ISOLATED && seed.is_multiple_of(2);
            let port = PortId(n as u32 + 1);
            for worker in &mut workers {
                let added = worker.core.add_port(port, port_config(n, &base, isolated));
                assert_eq!(added, Ok(()));
            }
            let plan = plan_of(seed, n, base.v6);
            let (own, gateway) = (address(n, base.v6), addresses::gateway(base.v6));
            let mut container =
                Container::new(base.v6, base.mtu, rng.next_u64(), own, gateway, mac(n));
            for (f, flow) in plan.flows.iter().enumerate() {
                let worker = match flow.opening {
                    Opening::Out => n % workers.len(),
                    Opening::In { .. } => {
                        to_come.push((n, f));
                        0
                    }
                };
                let host = &mut workers[worker].host;
                world::add_flow(flow, f, &mut container, host, &mut rng);
            }
            sites.push(Site {
                port,
                container,
                up: Lane::new(plan.up, rng.fork()),
                down: Lane::new(plan.down, rng.fork()),
                offloads: plan.offloads,
                flows: plan.flows,
                isolated,
            });
        }
        let mut many = Many {
            v6: base.v6,
            mtu: base.mtu,
            now: Instant::ZERO,
            rng,
            sites,
            workers,
            between: Vec::new(),
            to_come,
            buf: vec![0; FRAME_BUFFER_LEN],
            violation: None,
            handed: VecDeque::new(),
            steps: 0,
            frames: 0,
            given: 0,
            excuses: Excuses::default(),
        };
        (0..BETWEEN).for_each(|k| many.connect_two(k));
        many
    }

    /// A connection from one container to another, neither of them isolated.
    fn connect_two(&mut self, k: usize) {
        let a = self.rng.below(ISOLATED);
        let b = (a + self.rng.within(1..ISOLATED)) % ISOLATED;
        let (len_out, len_back) = (self.rng.below(40_000), self.rng.below(40_000));
        let out: Rc<[u8]> = self.rng.bytes(len_out).into();
        let back: Rc<[u8]> = self.rng.bytes(len_back).into();
        let app = AppPlan {
            write_chunk: 10_000,
            read_chunk: 10_000,
            pace: Duration::ZERO,
            speak_after: 0,
            stalls: vec![(1000, Duration::from_secs(2))],
            rests: Vec::new(),
            ending: Ending::AfterSending,
        };
        let socket = SocketPlan {
            rx_buffer: 20_000,
            tx_buffer: 20_000,
            nagle: self.rng.chance(500),
            ack_delay: None,
        };
        let start = Duration::from_micros(self.rng.below(200_000) as u64);
        let (port, listening) = (25_000 + k as u16, 26_000 + k as u16);
        let remote = SocketAddr::new(address(b, self.v6), listening);
        let name = |side: &str| format!("between {a} and {b}, {side}");
        let near = App::new(name("client"), app.clone(), out.clone(), back.clone());
        let far = App::new(name("server"), app.clone(), back, out);
        let plan = FlowPlan {
            start,
            remote,
            port,
            container: app.clone(),
            far: app,
            socket,
            ..FlowPlan::fair(k, len_out, len_back)
        };
        let near = Endpoint::connecting(remote, port, Instant::ZERO + start, socket, near);
        let far = Endpoint::listening(listening, Instant::ZERO, socket, far);
        let mut push = |n: usize, endpoint| {
            let endpoints = &mut self.sites[n].container.endpoints;
            endpoints.push(endpoint);
            (n, endpoints.len() - 1)
        };
        let (opens, listens) = (push(a, near), push(b, far));
        self.between.push(Between {
            opens,
            listens,
            plan,
        });
    }

    fn with_worker(
        &mut self,
        n: usize,
        f: &mut dyn FnMut(&mut Network, Instant, &mut CoreIo<'_, '_>),
    ) {
        let worker = &mut self.workers[n];
        let mut sink = Sink {
            now: self.now,
            mtu: self.mtu,
            sites: &mut self.sites,
            handed: &mut self.handed,
            violation: &mut self.violation,
            frames: &mut self.frames,
        };
        let mut io = Io::new(&mut sink, &mut worker.host, &mut self.buf);
        f(&mut worker.core, self.now, &mut io);
    }

    fn run(mut self) -> Result<Summary, String> {
        let end = Instant::ZERO + TIME_LIMIT;
        while !self.applications_ended() {
            if !self.step(end)? {
                return Err(format!("at {:?} these hang: {}", self.now, self.hanging()));
            }
        }
        let end = self.now + REST_LIMIT;
        while self.leftovers() != (0, 0, 0) && self.step(end)? {}
        if self.leftovers() != (0, 0, 0) {
            return Err(format!(
                "left over, flows, sockets and unsent bytes: {:?}",
                self.leftovers()
            ));
        }
        self.check_counters()?;
        self.judge()?;
        Ok(self.summary())
    }

    fn leftovers(&self) -> (usize, usize, usize) {
        self.workers.iter().fold((0, 0, 0), |sum, worker| {
            (
                sum.0 + worker.core.flows(),
                sum.1 + worker.host.open_sockets(),
                sum.2 + worker.core.unsent(),
            )
        })
    }

    /// Moves time to the next thing that happens and lets it happen. `false` when that lies beyond
    /// `end`, or nothing ever will.
    fn step(&mut self, end: Instant) -> Result<bool, String> {
        self.steps += 1;
        if self.steps > STEP_LIMIT {
            return Err(format!("busy for nothing: {}", self.hanging()));
        }
        let Some(next) = self.next().filter(|&t| t <= end) else {
            return Ok(false);
        };
        self.now = self.now.max(next);
        self.incoming();
        for n in 0..self.workers.len() {
            self.workers[n].host.advance(self.now)?;
            while let Some((token, ready)) = self.workers[n].host.event(self.now) {
                self.with_worker(n, &mut |core, now, io| {
                    core.handle_socket(now, token, ready, io);
                });
            }
        }
        self.containers_turn()?;
        for n in 0..self.workers.len() {
            self.frames_up(n);
            let due = self.workers[n].core.poll_timeout();
            if due.is_some_and(|t| t <= self.now) {
                self.with_worker(n, &mut |core, now, io| core.handle_timeout(now, io));
            }
        }
        self.handed_over();
        for worker in &mut self.workers {
            worker.host.advance(self.now)?;
        }
        match self.violation.take() {
            Some(what) => Err(what),
            None => Ok(true),
        }
    }

    fn next(&mut self) -> Option<Instant> {
        let now = self.now;
        let clients = self
            .to_come
            .iter()
            .map(|&(n, f)| Instant::ZERO + self.sites[n].flows[f].start)
            .min();
        let sites = self
            .sites
            .iter_mut()
            .flat_map(|s| [s.container.next(now), s.up.next(), s.down.next()])
            .flatten()
            .min();
        let workers = self
            .workers
            .iter()
            .flat_map(|w| [w.host.next(), w.core.poll_timeout()])
            .flatten()
            .min();
        [clients, sites, workers].into_iter().flatten().min()
    }

    fn incoming(&mut self) {
        let now = self.now;
        let due = |many: &Many, (n, f): (usize, usize)| {
            Instant::ZERO + many.sites[n].flows[f].start <= now
        };
        while let Some(i) = self.to_come.iter().position(|&at| due(self, at)) {
            let (n, f) = self.to_come.swap_remove(i);
            let flow = &self.sites[n].flows[f];
            let (guest, peer) = (SocketAddr::new(address(n, self.v6), flow.port), flow.remote);
            let socket = self.workers[0].host.incoming(peer);
            self.with_worker(0, &mut |core, now, io| {
                core.handle_accept(now, guest, peer, socket, io);
            });
        }
    }

    fn containers_turn(&mut self) -> Result<(), String> {
        for site in &mut self.sites {
            while let Some(frame) = site.down.receive(self.now) {
                site.container.deliver(self.now, frame);
            }
            let mut frames = Vec::new();
            site.container.poll(self.now, &mut frames)?;
            for frame in offload::join(frames, site.offloads, &mut self.rng) {
                let _ = site.up.send(self.now, frame);
            }
        }
        Ok(())
    }

    /// What has arrived for worker `n`, in batches that mix its ports.
    fn frames_up(&mut self, n: usize) {
        let workers = self.workers.len();
        loop {
            let mut batch = Vec::new();
            for site in &mut self.sites {
                if (site.port.0 as usize - 1) % workers != n {
                    continue;
                }
                while batch.len() < BATCH
                    && let Some(frame) = site.up.receive(self.now)
                {
                    batch.push((site.port, frame));
                }
            }
            if batch.is_empty() {
                return;
            }
            self.given += batch.len() as u64;
            let frames: Vec<_> = batch.iter().map(|(p, f)| (*p, f.as_slice())).collect();
            self.with_worker(n, &mut |core, now, io| {
                core.handle_frames(now, &frames, io);
                core.end_batch(now, io);
            });
        }
    }

    fn handed_over(&mut self) {
        while let Some((port, frame)) = self.handed.pop_front() {
            self.with_worker(0, &mut |core, now, io| {
                core.handle_frame(now, port, &frame, io);
            });
        }
        self.with_worker(0, &mut |core, now, io| core.end_batch(now, io));
    }

    fn endpoint_ended(&self, n: usize, e: usize) -> bool {
        let endpoint = &self.sites[n].container.endpoints[e];
        let listens = match self.sites[n].flows.get(e) {
            Some(flow) => flow.opening != Opening::Out,
            None => self.between.iter().any(|b| b.listens == (n, e)),
        };
        // One that listens in vain has ended when its client has.
        endpoint.app.end.is_some() || listens && !endpoint.was_connected()
    }

    fn applications_ended(&self) -> bool {
        let hosts = || self.workers.iter().flat_map(|w| w.host.running());
        self.to_come.is_empty()
            && self.open_endpoints().next().is_none()
            && hosts().next().is_none()
    }

    fn open_endpoints(&self) -> impl Iterator<Item = (usize, usize)> {
        let all = (0..self.sites.len())
            .flat_map(|n| (0..self.sites[n].container.endpoints.len()).map(move |e| (n, e)));
        all.filter(|&(n, e)| !self.endpoint_ended(n, e))
    }

    fn hanging(&self) -> String {
        let endpoints = self.open_endpoints().map(|(n, e)| {
            let container = &self.sites[n].container;
            let app = container.endpoints[e].app.brief();
            format!("\n  container {n}, {e}: {app} [{}]", container.state(e))
        });
        let hosts = self.workers.iter().flat_map(|w| w.host.running());
        let far = hosts.map(|(at, app)| format!("\n  {at}: {}", app.brief()));
        endpoints.chain(far).collect()
    }

    /// What the switch counted of the frames that passed it.
    fn check_counters(&self) -> Result<(), String> {
        let mut came = 0;
        for site in &self.sites {
            for worker in &self.workers {
                let counters = worker.core.port_counters(site.port).expect("a port");
                came += counters.frames_in;
            }
        }
        match came == self.given {
            true => Ok(()),
            false => Err(format!("frames in: counted {came}, passed {}", self.given)),
        }
    }

    fn judge(&mut self) -> Result<(), String> {
        let mut excuses = Excuses::default();
        for (n, site) in self.sites.iter().enumerate() {
            for (f, flow) in site.flows.iter().enumerate() {
                let worker = match flow.opening {
                    Opening::Out => &self.workers[n % self.workers.len()],
                    Opening::In { .. } => &self.workers[0],
                };
                let finished = worker.host.finished.iter();
                let far: Vec<&App> = finished
                    .filter(|(at, _)| *at == flow.remote)
                    .map(|(_, app)| app)
                    .collect();
                let evidence = Evidence {
                    refused_opens: &worker.host.refused_opens,
                    evicted: worker.core.report().tcp.evicted > 0,
                    lost: site.up.lost + site.down.lost,
                };
                let endpoint = &site.container.endpoints[f];
                evidence
                    .judge(flow, endpoint, &far, &mut excuses)
                    .map_err(|what| format!("container {n}, flow {f}: {what}"))?;
            }
        }
        for between in &self.between {
            let at = |(n, e): (usize, usize)| &self.sites[n].container.endpoints[e];
            let (near, far) = (at(between.opens), at(between.listens));
            if near.stuck || far.stuck {
                excuses.count(Excuse::StuckStack);
                continue;
            }
            let connected = far.was_connected();
            let far = Vec::from_iter(connected.then_some(&far.app));
            let lost = [between.opens.0, between.listens.0]
                .map(|n| self.sites[n].up.lost + self.sites[n].down.lost);
            let evidence = Evidence {
                refused_opens: &[],
                evicted: false,
                lost: lost.iter().sum(),
            };
            evidence
                .judge(&between.plan, near, &far, &mut excuses)
                .map_err(|what| format!("between {:?}: {what}", between.opens))?;
        }
        self.excuses = excuses;
        Ok(())
    }

    fn summary(&self) -> Summary {
        let apps = || {
            let endpoints = self.sites.iter().flat_map(|s| &s.container.endpoints);
            endpoints.map(|e| &e.app)
        };
        let done = apps().filter(|a| a.end == Some(End::Done)).count() as u64;
        Summary {
            steps: self.steps,
            frames: self.frames,
            lost: self.sites.iter().map(|s| s.up.lost + s.down.lost).sum(),
            bytes: apps().map(|a| a.received as u64).sum(),
            done,
            failed: apps().count() as u64 - done,
            defects: 0,
            excuses: self.excuses,
        }
    }
}

fn port_config(n: usize, plan: &Plan, isolated: bool) -> PortConfig {
    PortConfig {
        lease: Lease {
            mac: Some(mac(n)),
            ipv4: vec![v4(n)],
            ipv6: vec![v6(n)],
            ..Lease::default()
        },
        spoof_protection: plan.guarded,
        isolated,
        ..PortConfig::default()
    }
}

#[test]
fn any_seed_with_many_containers_and_workers() {
    let count = number("CNET_SIM_SEEDS").unwrap_or(SEEDS).min(SEEDS);
    let run = |seed: u64| Many::new(seed, 1 + seed as usize % 3).run();
    let again = |seed| {
        format!(
            "CNET_SIM_FIRST={seed} CNET_SIM_SEEDS=1 cargo test -p cnet-tests --test sim -- many_containers"
        )
    };
    let total = seeds::run_all(count, run, again);
    assert!(total.done > count * 4, "{total:?}");
    // smoltcp talks to itself here, and either end may hang by its own fault.
    seeds::assert_bounded(&total, &[(Excuse::StuckStack, STUCK)]);
}
