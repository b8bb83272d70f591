//! A switch and a model of its counters. Every step names the verdict it expects, and after each
//! one every counter of every port is held against the model's. Shared by several test binaries,
//! none of which needs all of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cnet_vswitch::{Lease, PortConfig, Switch, SwitchConfig, Verdict};
use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropReason, Frame, MacAddr, PortId};

use cnet_testkit::packets::*;

pub const GW: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
pub const GW4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const GW6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
pub const MULTICAST6: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
pub const ZERO_MAC: MacAddr = MacAddr([0; 6]);
pub const FLOOD: Verdict = Verdict::Flood { router: true };
pub const ROUTER: Verdict = Verdict::Port(PortId::ROUTER);

/// Frames in, bytes in, and drops by name.
pub type Counts = (u64, u64, BTreeMap<&'static str, u64>);

pub struct Net {
    pub switch: Switch,
    pub now: Instant,
    pub expected: BTreeMap<PortId, Counts>,
}

pub fn p(id: u32) -> PortId {
    PortId(id)
}

pub fn mac(id: u32) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, id as u8])
}

pub fn ip4(id: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, 100 + id as u8)
}

pub fn ip6(id: u32) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, id as u16)
}

pub fn link_local(id: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 1, 2, 3, id)
}

pub fn leased(id: u32) -> PortConfig {
    PortConfig {
        lease: Lease {
            mac: Some(mac(id)),
            ipv4: vec![ip4(id)],
            ipv6: vec![ip6(id)],
            ..Lease::default()
        },
        spoof_protection: true,
        ..PortConfig::default()
    }
}

pub fn config() -> SwitchConfig {
    SwitchConfig {
        router: Lease::of(GW, [GW4.into(), GW6.into()]),
        ipv6_prefixes: vec![(Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0), 64)],
        seed: 42,
    }
}

/// The verdict on a frame, a drop counted as the switch's caller counts it.
pub fn judge(switch: &mut Switch, now: Instant, ingress: PortId, frame: &Frame<'_>) -> Verdict {
    let verdict = switch.judge(now, ingress, frame);
    if let Verdict::Drop(reason) = verdict {
        switch.count_drop(ingress, reason);
    }
    verdict
}

impl Net {
    pub fn new(ports: impl IntoIterator<Item = (u32, PortConfig)>) -> Net {
        let mut net = Net {
            switch: Switch::new(config()),
            now: Instant::from_millis(1000),
            expected: BTreeMap::new(),
        };
        for (id, config) in ports {
            net.switch.add_port(p(id), config).unwrap();
            net.expected.insert(p(id), Counts::default());
        }
        net
    }

    /// A shared network of `n` leased, protected ports from 1 on.
    pub fn shared(n: u32) -> Net {
        Net::new((1..=n).map(|id| (id, leased(id))))
    }

    /// A network of one container, unprotected.
    pub fn single() -> Net {
        Net::new([(1, PortConfig::default())])
    }

    #[track_caller]
    pub fn step(&mut self, ingress: u32, frame: &[u8], expected: Verdict) {
        let parsed = Frame::parse(frame, MTU).unwrap();
        let verdict = judge(&mut self.switch, self.now, p(ingress), &parsed);
        assert_eq!(verdict, expected);
        let counts = self.expected.get_mut(&p(ingress)).unwrap();
        counts.0 += 1;
        counts.1 += parsed.bytes.len() as u64;
        if let Verdict::Drop(reason) = expected {
            *counts.2.entry(reason.name()).or_default() += 1;
        }
        self.check();
    }

    #[track_caller]
    pub fn drops(&mut self, ingress: u32, frame: &[u8], reason: DropReason) {
        self.step(ingress, frame, Verdict::Drop(reason));
    }

    #[track_caller]
    pub fn check(&self) {
        let ports = self.switch.ports().filter(|&port| port != PortId::ROUTER);
        assert!(ports.eq(self.expected.keys().copied()));
        for (&id, expected) in &self.expected {
            let c = self.switch.counters(id).unwrap();
            let drops = c.drops.iter().map(|(r, n)| (r.name(), n)).collect();
            let counted = (c.frames_in, c.bytes_in, drops);
            assert_eq!(&counted, expected, "{id:?}");
        }
    }

    /// Where `address` is, by the table of stations.
    pub fn at(&self, address: IpAddr) -> Option<(PortId, Option<MacAddr>)> {
        self.switch.stations().by_address(self.now, address)
    }

    /// MAC addresses in the forwarding table, the router's aside.
    pub fn stations(&self) -> usize {
        self.switch.fdb().len() - 1
    }

    pub fn wait(&mut self, secs: u64) {
        self.now += Duration::from_secs(secs);
    }
}

/// UDP from port `from`'s own addresses to `dst`.
pub fn to(from: u32, dst: MacAddr) -> Vec<u8> {
    let packet = v4_with(17, ip4(from), B4, &[], 0, &udp(1000, 2000, &[0; 9]));
    frame(dst, mac(from), 0x0800, &packet)
}

pub fn arp_frame(
    from: u32,
    operation: u16,
    sender: (MacAddr, Ipv4Addr),
    target: Ipv4Addr,
) -> Vec<u8> {
    let body = arp(operation, sender.0, sender.1, ZERO_MAC, target);
    frame(MacAddr::BROADCAST, mac(from), 0x0806, &body)
}

/// A neighbour discovery message with the given target and link-layer address option.
pub fn ndp(from: u32, src: Ipv6Addr, kind: u8, target: Ipv6Addr, claimed: MacAddr) -> Vec<u8> {
    let mut body = vec![0; 4];
    if kind != 133 {
        body.extend(target.octets());
    }
    body.extend([if kind == 136 { 2 } else { 1 }, 1]);
    body.extend(claimed.0);
    let dst = "ff02::1".parse().unwrap();
    let mut packet = v6_with(58, src, dst, &icmp(kind, 0, &body));
    packet[7] = 255;
    frame(MULTICAST6, mac(from), 0x86dd, &packet)
}
