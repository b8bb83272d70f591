//! Batches of a network with many flows: reading their flows ahead changes nothing.
//!
//! Two cores are alike. One is given batches of frames, the other the same frames one by one. All that
//! they emit and ask of their hosts, and all that they count, must be the same, in the same order.

use std::net::{Ipv4Addr, SocketAddr};

use cnet_core::Network;
use cnet_nat::flow::{CACHED_FLOWS, Limits};
use cnet_nat::io::Io;
use cnet_testkit::addresses::IPV4;
use cnet_testkit::frames::{self, Tcp, flag};
use cnet_testkit::host::scripted::Scripted;
use cnet_testkit::rng::Rng;
use cnet_testkit::{corpus, offload};
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{FrameSink, PortFull, PortId};

use crate::world::{self, PORT};

/// Batches that are compared.
const BATCHES: usize = 1_500;
const MTU: usize = 1500;

/// Keeps what is emitted.
#[derive(Default)]
struct Sink(Vec<(PortId, Vec<u8>)>);

impl FrameSink for Sink {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        self.0.push((port, frame.to_vec()));
        Ok(())
    }
}

/// A core with more flows than its tables call cached.
struct Side {
    core: Network,
    host: Scripted,
    sink: Sink,
    buf: Vec<u8>,
    now: Instant,
}

impl Side {
    fn new() -> Side {
        let mut config = world::router_config(MTU);
        config.datagram.limits = Limits {
            udp_mappings: 2 * CACHED_FLOWS,
            ..config.datagram.limits
        };
        let mut core = Network::new(config, [7; 32], Instant::ZERO);
        let added = core.add_port(PORT, world::port_config(false));
        assert_eq!(added, Ok(()));
        let mut side = Side {
            core,
            host: Scripted::default(),
            sink: Sink::default(),
            buf: vec![0; FRAME_BUFFER_LEN],
            now: Instant::ZERO,
        };
        for n in 0..CACHED_FLOWS + 100 {
            side.one_by_one(&[datagram(n)]);
        }
        assert!(side.core.prefetches());
        side
    }

    fn with_core(&mut self, f: impl FnOnce(&mut Network, Instant, &mut Io<'_, (Sink, Scripted)>)) {
        self.now += Duration::from_micros(50);
        let mut io = Io::new(&mut self.sink, &mut self.host, &mut self.buf);
        f(&mut self.core, self.now, &mut io);
        self.core.end_batch(self.now, &mut io);
    }

    fn one_by_one(&mut self, frames: &[Vec<u8>]) {
        self.with_core(|core, now, io| {
            for frame in frames {
                core.handle_frame(now, PORT, frame, io);
            }
        });
    }

    fn at_once(&mut self, frames: &[Vec<u8>]) {
        let frames: Vec<_> = frames.iter().map(|f| (PORT, f.as_slice())).collect();
        self.with_core(|core, now, io| core.handle_frames(now, &frames, io));
    }

    /// All that happened since the last call, and what was counted since the start.
    fn effects(&mut self) -> String {
        format!(
            "{:?}\n{:?}\n{:?}\n{:?}\n{:?}",
            std::mem::take(&mut self.sink.0),
            std::mem::take(&mut self.host.sent),
            self.core.report().drops,
            self.core.port_counters(PORT),
            self.core.port_flows(PORT),
        )
    }
}

/// A datagram of the `n`th mapping.
fn datagram(n: usize) -> Vec<u8> {
    // As many addresses as it takes; the port does not guard its own.
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 3, 0)) + (n / 20_000) as u32);
    let from = SocketAddr::new(address.into(), 20_000 + (n % 20_000) as u16);
    let to = SocketAddr::new(Ipv4Addr::new(203, 0, 113, 7).into(), 7);
    frames::udp(from, to, &[n as u8; 20])
}

/// A SYN, or a later segment of a connection that may be there.
fn segment(rng: &mut Rng) -> Vec<u8> {
    let segment = Tcp {
        from: (IPV4, 30_000 + rng.below(50) as u16).into(),
        to: ([203, 0, 113, 7], 80).into(),
        seq: 1000 + rng.below(2) as u32,
        ack: 7,
        flags: rng.pick(&[flag::SYN, flag::SYN, flag::ACK, flag::RST]),
        window: 1000,
        urgent: 0,
        options: &[],
        payload: &[],
    };
    segment.frame()
}

/// A frame of any kind, sometimes with a bit changed.
fn draw(rng: &mut Rng, kinds: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = match rng.below(10) {
        0..5 => datagram(rng.below(CACHED_FLOWS + 200)),
        5..7 => segment(rng),
        _ => kinds[rng.below(kinds.len())].clone(),
    };
    if rng.chance(200) {
        let at = rng.below(frame.len());
        frame[at] ^= 1 << rng.below(8);
        if rng.chance(500) {
            frames::complete_ip(&mut frame);
            offload::complete_checksum(&mut frame[VNET_HDR_LEN..]);
        }
    }
    frame
}

#[test]
fn reading_flows_ahead_changes_nothing() {
    let (mut ahead, mut one_by_one) = (Side::new(), Side::new());
    assert_eq!(ahead.effects(), one_by_one.effects());
    let mut rng = Rng::new(5);
    let kinds = corpus::all();
    for n in 0..BATCHES {
        let frames: Vec<_> = (0..rng.within(1..20))
            .map(|_| draw(&mut rng, &kinds))
            .collect();
        ahead.at_once(&frames);
        one_by_one.one_by_one(&frames);
        assert!(
            ahead.effects() == one_by_one.effects(),
            "batch {n}: {frames:02x?}"
        );
    }
}
