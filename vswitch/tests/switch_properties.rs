//! Whatever containers send, in whatever order: nothing goes back where it came from, isolation
//! holds, leases hold, tables stay within their limits, and every frame is counted once.

use std::net::{Ipv4Addr, Ipv6Addr};

use cnet_testkit::packets::*;
use cnet_vswitch::port::DEFAULT_MAX_ADDRESSES;
use cnet_vswitch::{Lease, PortConfig, Switch, SwitchConfig, Verdict};
use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropReason, Frame, L3, MacAddr, PortId};
use proptest::collection::vec;
use proptest::prelude::*;

const GW: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
const MAX_MACS: usize = 3;
const PORTS: u32 = 5;

/// The port of that place in the model.
fn port(n: u32) -> PortId {
    PortId(n + 1)
}

fn mac(n: u8) -> MacAddr {
    match n {
        0 => GW,
        1 => MacAddr::BROADCAST,
        n => MacAddr([0x52, 0x54, 0, 0, 0, n]),
    }
}

fn ip4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, n)
}

fn ip6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, u16::from(n) + 1)
}

/// Port n of the network under test: 1 and 2 leased and protected, 3 isolated, 0 and 4 open.
fn config(id: u32) -> PortConfig {
    let n = id as u8 + 10;
    let own = Lease {
        mac: Some(mac(n)),
        ipv4: vec![ip4(n)],
        ipv6: vec![ip6(n)],
        ..Lease::default()
    };
    PortConfig {
        lease: if (1..4).contains(&id) {
            own
        } else {
            Lease::default()
        },
        spoof_protection: (1..4).contains(&id),
        isolated: id == 3,
        max_macs: MAX_MACS,
        ..PortConfig::default()
    }
}

#[derive(Clone, Debug)]
enum Body {
    Udp(u8, u8, u16),
    Arp(u8, u8, u8),
    Ndp(u8, u8, u8, u8),
}

#[derive(Clone, Debug)]
enum Step {
    Frame {
        ingress: u32,
        src: u8,
        dst: u8,
        body: Body,
    },
    Remove(u32),
    Add(u32),
    Wait(u64),
}

fn build(src: u8, dst: u8, body: &Body) -> Vec<u8> {
    match *body {
        Body::Udp(from, to, port) => {
            let packet = v4_with(17, ip4(from), ip4(to), &[], 0, &udp(1, port, &[0; 20]));
            frame(mac(dst), mac(src), 0x0800, &packet)
        }
        Body::Arp(who, sender, target) => {
            let body = arp(1, mac(who), ip4(sender), MacAddr::default(), ip4(target));
            frame(mac(dst), mac(src), 0x0806, &body)
        }
        Body::Ndp(kind, from, target, claimed) => {
            let mut message = vec![0; 4];
            message.extend(ip6(target).octets());
            message.extend([2, 1]);
            message.extend(mac(claimed).0);
            let all = "ff02::1".parse().unwrap();
            let mut packet = v6_with(58, ip6(from), all, &icmp(kind, 0, &message));
            packet[7] = 255;
            frame(mac(dst), mac(src), 0x86dd, &packet)
        }
    }
}

fn body() -> impl Strategy<Value = Body> {
    let n = || 8u8..18;
    prop_oneof![
        (n(), n(), prop_oneof![Just(68u16), Just(80)]).prop_map(|(a, b, c)| Body::Udp(a, b, c)),
        (0u8..18, n(), n()).prop_map(|(a, b, c)| Body::Arp(a, b, c)),
        (133u8..138, 0u8..60, n(), 0u8..18).prop_map(|(a, b, c, d)| Body::Ndp(a, b, c, d)),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    // Half of the frames come from where they say.
    let src = |ingress: u32| prop_oneof![Just(ingress as u8 + 10), 0u8..18];
    let frame = (0..PORTS)
        .prop_flat_map(move |i| (Just(i), src(i), 0u8..18, body()))
        .prop_map(|(ingress, src, dst, body)| Step::Frame {
            ingress,
            src,
            dst,
            body,
        });
    prop_oneof![
        30 => frame,
        1 => (0..PORTS).prop_map(Step::Remove),
        2 => (0..PORTS).prop_map(Step::Add),
        2 => (1u64..400).prop_map(Step::Wait),
    ]
}

/// What a frame that was let in from a protected port may say.
fn check_admitted(switch: &Switch, id: u32, parsed: &Frame<'_>) {
    let own = config(id).lease;
    assert_ne!(parsed.src, GW);
    if !config(id).spoof_protection {
        return;
    }
    assert_eq!(Some(parsed.src), own.mac);
    match parsed.l3 {
        L3::Arp => {
            let arp = parsed.arp().unwrap();
            assert_eq!(Some(arp.sender_mac), own.mac);
            assert!(own.ipv4.contains(&arp.sender_ip));
        }
        L3::Ip(ip) if ip.src.is_ipv4() => assert!(own.holds(ip.src)),
        L3::Ip(ip) => {
            let owner = switch.addresses().pinned(ip.src);
            assert!(owner.is_none_or(|owner| owner == port(id)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_switch_keeps_its_word(steps in vec(steps(), 1..150)) {
        // Longer than 60 lines: each step is judged against one model of the tables.
        let mut switch = Switch::new(SwitchConfig {
            router: Lease::of(GW, [ip4(9).into()]),
            ..SwitchConfig::default()
        });
        let mut now = Instant::ZERO;
        let mut present = [false; PORTS as usize];
        let mut counted = [(0u64, 0u64); PORTS as usize];
        for step in steps {
            match step {
                Step::Wait(secs) => now += Duration::from_secs(secs),
                Step::Add(id) => {
                    let added = switch.add_port(port(id), config(id)).is_ok();
                    prop_assert_eq!(added, !present[id as usize]);
                    present[id as usize] = true;
                }
                Step::Remove(id) => {
                    let removed = switch.remove_port(port(id)).is_some();
                    prop_assert_eq!(removed, present[id as usize]);
                    present[id as usize] = false;
                    counted[id as usize] = (0, 0);
                    prop_assert_eq!(switch.fdb().learned(port(id)), 0);
                }
                Step::Frame { ingress, src, dst, body } => {
                    let bytes = build(src, dst, &body);
                    // A group source address or LAND never gets this far.
                    let Ok(parsed) = Frame::parse(&bytes, MTU) else {
                        continue;
                    };
                    let from = port(ingress);
                    let verdict = switch.judge(now, from, &parsed);
                    let (frames, drops) = &mut counted[ingress as usize];
                    *frames += u64::from(present[ingress as usize]);
                    match verdict {
                        Verdict::Port(PortId::ROUTER) => {}
                        Verdict::Port(to) => {
                            prop_assert!(to != from && present[to.0 as usize - 1]);
                            prop_assert!(ingress != 3 && to != port(3));
                        }
                        Verdict::Flood { .. } => {
                            let to: Vec<_> = switch.flood_ports(from, parsed.dst).collect();
                            prop_assert!(!to.is_empty() && !to.contains(&from));
                            prop_assert!(ingress != 3 && !to.contains(&port(3)));
                            prop_assert!(to.iter().all(|p| present[p.0 as usize - 1]));
                        }
                        Verdict::Refuse => panic!("no policy selects a container"),
                        Verdict::Drop(reason) => {
                            switch.count_drop(from, reason);
                            *drops += u64::from(present[ingress as usize]);
                            prop_assert!(present[ingress as usize] || reason == DropReason::NoSuchPort);
                        }
                    }
                    if !matches!(verdict, Verdict::Drop(_)) {
                        prop_assert!(present[ingress as usize]);
                        check_admitted(&switch, ingress, &parsed);
                        prop_assert!(!matches!(body, Body::Udp(_, _, 68) | Body::Ndp(134 | 137, ..)));
                    }
                }
            }
            let mut leases = 0;
            for id in 0..PORTS {
                let here = present[id as usize];
                let count = switch.counters(port(id)).map(|c| (c.frames_in, c.drops.total()));
                prop_assert_eq!(count, here.then_some(counted[id as usize]));
                prop_assert!(switch.fdb().learned(port(id)) <= MAX_MACS);
                let taken = switch.addresses().learned(port(id));
                prop_assert!(taken <= DEFAULT_MAX_ADDRESSES);
                for addr in config(id).lease.addresses() {
                    prop_assert_eq!(switch.port_of_address(addr), here.then_some(port(id)));
                }
                leases += usize::from(here && config(id).lease.mac.is_some());
            }
            prop_assert!(switch.fdb().len() <= 1 + leases + PORTS as usize * MAX_MACS);
        }
    }
}
