//! From a seed to a schedule: which flows, how they behave, and over what wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cnet_nat::host::HostError;
use cnet_wire::time::Duration;

use cnet_testkit::app::{AppPlan, Ending};
use cnet_testkit::container::SocketPlan;
use cnet_testkit::host::simulated::{Fate, HostPlan};
use cnet_testkit::link::Schedule;
use cnet_testkit::offload::Offloads;
use cnet_testkit::rng::Rng;

/// Who opens a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// The container connects.
    Out,
    /// A client connects to a published port. The container listens, or refuses.
    In { listening: bool },
}

/// One flow.
#[derive(Clone, Debug)]
pub struct FlowPlan {
    pub opening: Opening,
    pub start: Duration,
    pub fate: Fate,
    pub fate_delay: Duration,
    /// The address and port of the far end, unique to the flow.
    pub remote: SocketAddr,
    /// The container's port, unique to the flow.
    pub port: u16,
    pub container: AppPlan,
    pub far: AppPlan,
    /// Bytes from the container, and to it.
    pub bytes_out: usize,
    pub bytes_in: usize,
    pub socket: SocketPlan,
    pub receive_buffer: usize,
    pub send_buffer: usize,
}

/// A forged connection, over a wire that loses at most: then no forgery can arrive late and be
/// honest by then.
#[derive(Clone, Debug)]
pub struct HostilePlan {
    pub remote: SocketAddr,
    pub port: u16,
    pub bytes_out: usize,
    pub bytes_in: usize,
    pub far: AppPlan,
}

/// Everything a seed stands for.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub v6: bool,
    pub mtu: usize,
    pub up: Schedule,
    pub down: Schedule,
    pub offloads: Offloads,
    pub host: HostPlan,
    /// Bytes the core may keep that the host's sockets do not take.
    pub unsent_limit: usize,
    /// The port drops what does not come from its own addresses.
    pub guarded: bool,
    pub flows: Vec<FlowPlan>,
    pub hostiles: Vec<HostilePlan>,
}

/// How late the far kernels acknowledge. By a generator of its own, so that the seeds' other draws stay.
fn draw_ack_delay(seed: u64) -> Duration {
    let mut rng = Rng::new(seed ^ 0xacc0_1ade);
    Duration::from_micros(rng.pick(&[0, 0, 1_000, 10_000, 40_000]))
}

impl Plan {
    pub fn draw(seed: u64) -> Plan {
        let mut rng = Rng::new(seed);
        let rng = &mut rng;
        let v6 = rng.chance(500);
        let flows = rng.pick(&[1, 1, 1, 2, 3, 6]);
        Plan {
            seed,
            v6,
            mtu: rng.pick(if v6 {
                &[1280, 1500, 1500, 9000, 65520]
            } else {
                &[576, 1500, 1500, 9000, 65520]
            }),
            up: Schedule::draw(rng),
            down: Schedule::draw(rng),
            offloads: Offloads {
                checksum: rng.chance(500),
                segmentation: rng.chance(600),
            },
            host: HostPlan {
                exhausted: rng.pick(&[0, 0, 0, 0, 100]),
                spurious: rng.pick(&[0, 100]),
                event_delay: Duration::from_micros(rng.pick(&[1, 50, 5_000])),
                ack_delay: draw_ack_delay(seed),
                leak: false,
            },
            unsent_limit: rng.pick(&[64 << 20, 64 << 20, 200_000]),
            guarded: rng.chance(500),
            flows: (0..flows).map(|n| draw_flow(rng, v6, n)).collect(),
            hostiles: Vec::new(),
        }
    }

    /// A plan without misfortune.
    pub fn fair(flows: Vec<FlowPlan>) -> Plan {
        Plan {
            seed: 0,
            v6: false,
            mtu: 1500,
            up: Schedule::PERFECT,
            down: Schedule::PERFECT,
            offloads: Offloads {
                checksum: true,
                segmentation: true,
            },
            host: HostPlan {
                exhausted: 0,
                spurious: 0,
                event_delay: Duration::from_micros(1),
                ack_delay: Duration::ZERO,
                leak: false,
            },
            unsent_limit: 64 << 20,
            guarded: true,
            flows,
            hostiles: Vec::new(),
        }
    }

    /// A plan with attackers beside the honest flows.
    pub fn draw_hostile(seed: u64) -> Plan {
        let mut plan = Plan::draw(seed);
        let mut rng = Rng::new(!seed);
        for lane in [&mut plan.up, &mut plan.down] {
            lane.reorder = 0;
            lane.duplicate = 0;
        }
        plan.host.exhausted = 0;
        plan.hostiles = (0..1 + rng.below(3))
            .map(|n| draw_hostile(&mut rng, plan.v6, n))
            .collect();
        plan
    }
}

/// The address of the `n`th far end.
fn remote_address(v6: bool, n: usize) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n as u16 + 1).into()
    } else {
        Ipv4Addr::new(203, 0, 113, n as u8 + 1).into()
    }
}

impl FlowPlan {
    /// The `n`th flow of a fair plan: both sides send and close without delay.
    pub fn fair(n: usize, bytes_out: usize, bytes_in: usize) -> FlowPlan {
        let app = AppPlan {
            write_chunk: 65_536,
            read_chunk: 65_536,
            pace: Duration::ZERO,
            speak_after: 0,
            stalls: Vec::new(),
            rests: Vec::new(),
            ending: Ending::AfterSending,
        };
        FlowPlan {
            opening: Opening::Out,
            start: Duration::from_millis(1),
            fate: Fate::Accept,
            fate_delay: Duration::from_millis(1),
            remote: SocketAddr::new(remote_address(false, n), 80),
            port: 20_000 + n as u16,
            container: app.clone(),
            far: app,
            bytes_out,
            bytes_in,
            socket: SocketPlan {
                rx_buffer: 65_535,
                tx_buffer: 65_535,
                nagle: false,
                ack_delay: None,
            },
            receive_buffer: 131_072,
            send_buffer: 131_072,
        }
    }
}

fn draw_flow(rng: &mut Rng, v6: bool, n: usize) -> FlowPlan {
    let opening = match rng.below(10) {
        0..7 => Opening::Out,
        7..9 => Opening::In { listening: true },
        _ => Opening::In { listening: false },
    };
    let bytes_out = draw_size(rng);
    let bytes_in = draw_size(rng);
    let (container_ending, far_ending) = draw_endings(rng, bytes_out, bytes_in);
    let mut container = draw_app(rng, bytes_in, container_ending);
    let mut far = draw_app(rng, bytes_out, far_ending);
    // Only one side waits for the other to speak, and never for a peer that waits.
    match rng.below(4) {
        0 => container.speak_after = rng.below(bytes_in + 1),
        1 => far.speak_after = rng.below(bytes_out + 1),
        _ => {}
    }
    FlowPlan {
        opening,
        start: Duration::from_micros(rng.below(200_000) as u64),
        fate: draw_fate(rng),
        fate_delay: rng.duration(Duration::ZERO, Duration::from_millis(200)),
        remote: SocketAddr::new(remote_address(v6, n), rng.within(1..65536) as u16),
        port: 20_000 + n as u16,
        container,
        far,
        bytes_out,
        bytes_in,
        socket: SocketPlan {
            rx_buffer: rng.pick(&[1_000, 4_096, 20_000, 65_535, 65_536, 300_000]),
            tx_buffer: rng.pick(&[1_000, 4_096, 20_000, 65_536, 300_000]),
            nagle: rng.chance(500),
            ack_delay: rng
                .chance(500)
                .then(|| Duration::from_millis(rng.pick(&[10, 40, 200]))),
        },
        receive_buffer: rng.pick(&[700, 2_304, 10_000, 131_072, 1 << 20]),
        send_buffer: rng.pick(&[2_304, 4_608, 10_000, 131_072, 1 << 20]),
    }
}

fn draw_hostile(rng: &mut Rng, v6: bool, n: usize) -> HostilePlan {
    let (bytes_out, bytes_in) = (rng.within(0..30_000), rng.within(0..30_000));
    HostilePlan {
        remote: SocketAddr::new(remote_address(v6, 100 + n), 80),
        port: 30_000 + n as u16,
        bytes_out,
        bytes_in,
        far: draw_app(rng, bytes_out, Ending::AfterSending),
    }
}

fn draw_size(rng: &mut Rng) -> usize {
    match rng.below(20) {
        0..2 => 0,
        2..8 => rng.within(1..100),
        8..14 => rng.within(1..5_000),
        14..18 => rng.within(1..60_000),
        _ => rng.within(1..400_000),
    }
}

fn draw_endings(rng: &mut Rng, bytes_out: usize, bytes_in: usize) -> (Ending, Ending) {
    let mut rude = |most_sent: usize, most_received: usize| {
        let sent = rng.below(most_sent + 1);
        let received = rng.below(most_received + 1);
        if rng.chance(800) {
            Ending::Reset { sent, received }
        } else {
            Ending::Vanish { sent, received }
        }
    };
    let (out_rude, in_rude) = (rude(bytes_out, bytes_in), rude(bytes_in, bytes_out));
    match rng.below(12) {
        0..5 => (Ending::AfterSending, Ending::AfterSending),
        5..7 => (Ending::AfterPeer, Ending::AfterSending),
        7..9 => (Ending::AfterSending, Ending::AfterPeer),
        9 => (out_rude, Ending::AfterSending),
        10 => (Ending::AfterSending, in_rude),
        _ => (out_rude, Ending::AfterPeer),
    }
}

fn draw_app(rng: &mut Rng, to_receive: usize, ending: Ending) -> AppPlan {
    AppPlan {
        write_chunk: rng.pick(&[1_000, 5_000, 65_536, 200_000]),
        read_chunk: rng.pick(&[1_000, 5_000, 65_536, 200_000]),
        pace: Duration::from_micros(rng.pick(&[0, 0, 10, 500])),
        speak_after: 0,
        stalls: draw_pauses(rng, to_receive),
        rests: draw_pauses(rng, 20_000),
        ending,
    }
}

/// Up to three pauses, from a moment to longer than any timer but the idle ones.
fn draw_pauses(rng: &mut Rng, within: usize) -> Vec<(usize, Duration)> {
    let mut pauses: Vec<(usize, Duration)> = (0..rng.pick(&[0, 0, 0, 1, 3]))
        .map(|_| {
            let pause =
                Duration::from_millis(rng.pick(&[1, 50, 1_000, 30_000, 100_000, 1_000_000]));
            (rng.below(within + 1), pause)
        })
        .collect();
    pauses.sort_unstable();
    pauses
}

fn draw_fate(rng: &mut Rng) -> Fate {
    match rng.below(30) {
        0 => Fate::Fail(HostError::Refused),
        1 => Fate::Fail(HostError::TimedOut),
        2 => Fate::Fail(HostError::HostUnreachable),
        3 => Fate::Fail(HostError::NetUnreachable),
        4 => Fate::FailAtOnce(HostError::NetUnreachable),
        5 => Fate::FailAtOnce(HostError::Prohibited),
        _ => Fate::Accept,
    }
}
