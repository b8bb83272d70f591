//! Many containers on one switch.

use cnet_vswitch::{Lease, PortConfig};
use cnet_vswitch::{Switch, SwitchConfig, Verdict};
use cnet_wire::PortId;
use cnet_wire::frame::Frame;
use cnet_wire::time::Instant;

use super::world::World;
use cnet_testkit::rng::Rng;
use cnet_testkit::template::{self, GATEWAY_MAC, GATEWAY_V4, MTU, Template, station};

/// A switch with `n` ports whose containers hold leases.
pub fn switch(ports: u32) -> Switch {
    let mut switch = Switch::new(SwitchConfig {
        router: Lease::of(GATEWAY_MAC, [GATEWAY_V4.into()]),
        ipv6_prefixes: Vec::new(),
        seed: 7,
    });
    for n in 0..ports {
        let of = station(n + 1);
        let config = PortConfig {
            lease: Lease {
                mac: Some(of.mac),
                ipv4: vec![of.v4],
                ipv6: Vec::new(),
                ..Lease::default()
            },
            spoof_protection: true,
            ..PortConfig::default()
        };
        switch.add_port(PortId(n + 1), config).expect("a free port");
    }
    switch
}

/// Where the containers of a [`Crowd`] send to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// To the world, by the gateway.
    Gateway,
    /// To one other container.
    Neighbour,
    /// To all of them.
    Everybody,
}

/// Frames between random containers of a switch.
pub struct Crowd {
    switch: Switch,
    frames: Vec<(PortId, Template)>,
    at: usize,
}

impl Crowd {
    /// A switch with `ports` containers, each of which sends to `to`.
    pub fn new(ports: u32, to: To) -> Crowd {
        let mut rng = Rng::from_state(3);
        let frames = (0..ports).map(|n| {
            let mut frame = match to {
                To::Gateway => template::udp_small(),
                To::Everybody => template::broadcast(),
                To::Neighbour => {
                    // Any other.
                    let other = (u64::from(n) + 1 + rng.next_u64() % u64::from(ports.max(2) - 1))
                        % u64::from(ports.max(2));
                    template::unicast(station(other as u32 + 1).mac)
                }
            };
            let dst = match to {
                To::Everybody => std::net::Ipv4Addr::BROADCAST,
                _ => std::net::Ipv4Addr::new(198, 18, 0, 1),
            };
            frame.set_ends(&station(n + 1), 10_000, dst, 443);
            (PortId(n + 1), frame)
        });
        let mut frames: Vec<_> = frames.collect();
        Rng::from_state(4).shuffle(&mut frames);
        Crowd {
            switch: switch(ports),
            frames,
            at: 0,
        }
    }

    /// The same frames on the same switch, as another worker sees it.
    pub fn sibling(&self) -> Crowd {
        Crowd {
            switch: self.switch.for_worker(),
            frames: self.frames.clone(),
            at: self.frames.len() / 2,
        }
    }

    /// The verdict on the next frame, parsing included.
    pub fn verdict(&mut self) -> Verdict {
        let (port, frame) = &self.frames[self.at];
        self.at = (self.at + 1) % self.frames.len();
        let frame = Frame::parse(frame.bytes(), MTU).expect("a frame");
        self.switch.judge(Instant::ZERO, *port, &frame)
    }

    /// The forwarding table's answer for the next frame's destination.
    pub fn lookup(&mut self) -> Option<PortId> {
        let mac = station(self.at as u32 + 1).mac;
        self.at = (self.at + 1) % self.frames.len();
        self.switch.fdb().lookup(Instant::ZERO, mac)
    }
}

/// A router whose containers, each with one UDP mapping, send in turn.
pub struct Containers {
    /// The network.
    pub world: World,
    frames: Vec<(u32, Template)>,
    at: usize,
}

impl Containers {
    /// `count` containers, each of which sends to `to`.
    pub fn new(count: u32, to: To) -> Containers {
        let frames = (1..=count).map(|n| {
            let (mut frame, dst) = match to {
                To::Gateway => (
                    template::udp_small(),
                    std::net::Ipv4Addr::new(198, 18, 0, 1),
                ),
                To::Everybody => (template::broadcast(), std::net::Ipv4Addr::BROADCAST),
                To::Neighbour => {
                    let other = station(n % count + 1);
                    (template::unicast(other.mac), other.v4)
                }
            };
            frame.set_ends(&station(n), 10_000, dst, 443);
            (n, frame)
        });
        let mut containers = Containers {
            world: World::new(count, count as usize),
            frames: frames.collect(),
            at: 0,
        };
        // Everybody is heard once before they are asked for.
        for (n, _) in containers.frames.clone() {
            let mut hello = template::arp(GATEWAY_V4);
            hello.set_arp_sender(&station(n));
            containers.world.frame(n, hello.bytes());
        }
        containers.world.end_batch();
        containers.world.assert_no_drops();
        Rng::from_state(5).shuffle(&mut containers.frames);
        containers
    }

    /// The next container sends.
    pub fn send(&mut self) {
        let (port, frame) = &self.frames[self.at];
        self.at = (self.at + 1) % self.frames.len();
        self.world.frame(*port, frame.bytes());
    }
}
