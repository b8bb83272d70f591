//! Forwarding, learning, and ports that come and go.

mod net;

use std::net::IpAddr;

use cnet_testkit::packets::*;
use cnet_vswitch::fdb::Refusal;
use cnet_vswitch::port::DEFAULT_MAX_ADDRESSES;
use cnet_vswitch::port::MAX_PORTS;
use cnet_vswitch::{AddPortError, Delivery, Lease, PortConfig, PortRole, Verdict};
use cnet_wire::arp::{OP_REPLY, OP_REQUEST};
use cnet_wire::stations::{Stations, Taken};
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{DropReason, Frame, FrameSink, L3, MacAddr, PortFull, PortId};
use net::*;

/// Keeps what is written, and says that it was lost.
struct Full(Vec<(PortId, Vec<u8>)>);

impl FrameSink for Full {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        self.0.push((port, frame.to_vec()));
        Err(PortFull)
    }
}

mod router {
    use super::*;

    #[test]
    fn its_port_is_there_from_the_start_and_its_addresses_are_leases() {
        let mut net = Net::shared(1);
        let ports: Vec<_> = net.switch.ports().collect();
        assert_eq!(ports, [PortId::ROUTER, p(1)]);
        let config = |role| PortConfig {
            role,
            ..PortConfig::default()
        };
        let exists = Err(AddPortError::Exists(PortId::ROUTER));
        let mut add = |id, role| net.switch.add_port(id, config(role));
        assert_eq!(add(PortId::ROUTER, PortRole::Station), exists);
        assert_eq!(add(p(2), PortRole::Router), exists);
        assert!(net.switch.remove_port(PortId::ROUTER).is_none());
        for address in [IpAddr::from(GW4), GW6.into()] {
            assert_eq!(net.at(address), Some((PortId::ROUTER, Some(GW))));
            let neighbours = net.switch.neighbours();
            assert_eq!(neighbours.by_address(net.now, address), None);
            let granted = neighbours.grant(address, p(1), None);
            assert_eq!(granted, Err(Taken));
        }
        net.step(1, &to(1, GW), ROUTER);
    }

    #[test]
    fn counts_what_it_is_given_and_what_it_sends() {
        let mut net = Net::shared(2);
        let mut sink = Full(Vec::new());
        let ask = arp_frame(1, OP_REQUEST, (mac(1), ip4(1)), ip4(2));
        let mut given = (0, 0);
        for (f, delivery) in [
            (to(1, GW), Ok(Delivery::Router)),
            (to(1, MacAddr::BROADCAST), Ok(Delivery::Router)),
            (ask, Ok(Delivery::Done)),
            (to(1, mac(2)), Ok(Delivery::Done)),
            (to(2, GW), Err(DropReason::Spoofed)),
        ] {
            let parsed = Frame::parse(&f, MTU).unwrap();
            let taken = (net.switch).handle_frame(net.now, p(1), &parsed, &f, &mut sink);
            assert_eq!(taken, delivery);
            if delivery == Ok(Delivery::Router) {
                given = (given.0 + 1, given.1 + parsed.bytes.len() as u64);
            }
            let counted = net.switch.router_counters();
            assert_eq!((counted.frames_out, counted.bytes_out), given);
            assert_eq!((counted.frames_in, counted.bytes_in), (0, 0));
        }
        // What it sends counts whether the port takes it or not.
        let f = to(1, mac(2));
        sink.0.clear();
        let (_, mut port) = net.switch.router_port(&mut sink);
        assert_eq!(port.emit(p(2), &f), Err(PortFull));
        assert_eq!(sink.0, [(p(2), f.clone())]);
        let counted = net.switch.counters(PortId::ROUTER).unwrap();
        let bytes = (f.len() - VNET_HDR_LEN) as u64;
        assert_eq!((counted.frames_in, counted.bytes_in), (1, bytes));
        // Each worker counts what it did.
        let other = net.switch.for_worker();
        assert_eq!(other.router_counters().frames_out, 0);
    }
}

mod forwarding {
    use super::*;

    #[test]
    fn to_the_gateway_and_between_leased_ports() {
        let mut net = Net::shared(3);
        net.step(1, &to(1, GW), ROUTER);
        net.step(1, &to(1, mac(2)), Verdict::Port(p(2)));
        net.step(2, &to(2, mac(1)), Verdict::Port(p(1)));
        net.drops(1, &to(1, mac(1)), DropReason::NoSuchPort);
        // All stations are known by lease: no flood could find another.
        net.drops(1, &to(1, mac(9)), DropReason::NoSuchPort);
    }

    #[test]
    fn groups_are_flooded() {
        let mut net = Net::shared(3);
        let f = to(1, MacAddr::BROADCAST);
        net.step(1, &f, FLOOD);
        let others: Vec<_> = net.switch.flood_ports(p(1), MacAddr::BROADCAST).collect();
        assert_eq!(others, [p(2), p(3)]);
        let mut alone = Net::single();
        alone.step(1, &f, ROUTER);
    }

    #[test]
    fn questions_for_a_port_do_not_reach_the_gateway() {
        let mut net = Net::shared(2);
        let ask = |t| arp_frame(1, OP_REQUEST, (mac(1), ip4(1)), t);
        net.step(1, &ask(ip4(2)), Verdict::Flood { router: false });
        net.step(1, &ask(GW4), FLOOD);
        // Gratuitous: an announcement.
        net.step(1, &ask(ip4(1)), FLOOD);
        let solicit = |t| ndp(1, ip6(1), 135, t, mac(1));
        net.step(1, &solicit(ip6(2)), Verdict::Flood { router: false });
        net.step(1, &solicit(GW6), FLOOD);
    }

    #[test]
    fn isolated_ports_see_the_gateway_alone() {
        let isolated = |id| PortConfig {
            isolated: true,
            ..leased(id)
        };
        let mut net = Net::new([(1, isolated(1)), (2, isolated(2)), (3, leased(3))]);
        net.step(1, &to(1, GW), ROUTER);
        net.step(1, &to(1, MacAddr::BROADCAST), ROUTER);
        net.drops(1, &to(1, mac(2)), DropReason::NoSuchPort);
        net.drops(1, &to(1, mac(3)), DropReason::NoSuchPort);
        net.drops(3, &to(3, mac(1)), DropReason::NoSuchPort);
        net.step(3, &to(3, MacAddr::BROADCAST), ROUTER);
        assert_eq!(net.switch.flood_ports(p(1), MacAddr::BROADCAST).count(), 0);
        assert_eq!(net.switch.flood_ports(p(3), MacAddr::BROADCAST).count(), 0);
    }

    #[test]
    fn unknown_stations_are_sought_where_they_may_be() {
        let open = PortConfig::default;
        let mut net = Net::new([(1, leased(1)), (2, open()), (3, open())]);
        net.step(1, &to(1, mac(9)), Verdict::Flood { router: false });
        let sought: Vec<_> = net.switch.flood_ports(p(1), mac(9)).collect();
        assert_eq!(sought, [p(2), p(3)]);
        let sought: Vec<_> = net.switch.flood_ports(p(2), mac(9)).collect();
        assert_eq!(sought, [p(3)]);
        net.step(3, &to(9, GW), ROUTER);
        net.step(1, &to(1, mac(9)), Verdict::Port(p(3)));
        net.drops(3, &to(9, mac(9)), DropReason::NoSuchPort);
        net.wait(300);
        net.step(1, &to(1, mac(9)), Verdict::Flood { router: false });
    }

    #[test]
    fn writes_and_refusals_are_counted_where_they_happen() {
        let mut net = Net::shared(2);
        let mut sink = Full(Vec::new());
        let f = to(1, MacAddr::BROADCAST);
        let parsed = Frame::parse(&f, MTU).unwrap();
        let taken = net
            .switch
            .handle_frame(net.now, p(1), &parsed, &f, &mut sink);
        assert_eq!(taken, Ok(Delivery::Router));
        assert_eq!(sink.0, [(p(2), f.clone())]);
        net.switch.count_refused(p(1), 13);
        net.switch.count_drop(p(1), DropReason::FrameTooShort);
        net.switch.count_refused(p(7), 1);
        net.switch.count_drop(p(7), DropReason::BadArp);
        let bytes = parsed.bytes.len() as u64;
        net.expected
            .insert(p(1), (2, bytes + 13, [("frame_too_short", 1)].into()));
        net.check();
        // What ports that are gone lost, and those that never were, is in the sum.
        net.switch.remove_port(p(1));
        let sum: Vec<_> = net
            .switch
            .drops()
            .iter()
            .map(|(r, n)| (r.name(), n))
            .collect();
        // The sink counts what a port did not take.
        assert_eq!(sum, [("frame_too_short", 1), ("bad_arp", 1)]);
    }
}

mod learning {
    use super::*;

    #[test]
    fn many_sources_fill_a_port_not_the_table() {
        let few = PortConfig {
            max_macs: 3,
            ..PortConfig::default()
        };
        let mut net = Net::new([(1, few), (2, leased(2))]);
        for id in 10..13 {
            net.step(1, &to(id, GW), ROUTER);
        }
        for id in 13..150 {
            net.drops(1, &to(id, GW), DropReason::MacTableFull);
        }
        assert_eq!(net.stations(), 4);
        net.step(1, &to(10, GW), ROUTER);
        net.step(2, &to(2, mac(12)), Verdict::Port(p(1)));
        net.wait(300);
        net.step(1, &to(100, GW), ROUTER);
        assert_eq!(net.stations(), 2);
    }

    /// The same at the length the attack would have; not step by step.
    #[test]
    fn a_million_sources() {
        let mut net = Net::single();
        let mut f = to(1, GW);
        for n in 0..1_000_000u32 {
            f[10 + 8..10 + 12].copy_from_slice(&n.to_be_bytes());
            let parsed = Frame::parse(&f, MTU).unwrap();
            judge(&mut net.switch, net.now, p(1), &parsed);
        }
        assert_eq!(net.stations(), 32);
        let c = net.switch.counters(p(1)).unwrap();
        assert_eq!(c.drops.get(DropReason::MacTableFull), 1_000_000 - 32);
        assert_eq!((c.frames_in, c.drops.total()), (1_000_000, 999_968));
    }

    #[test]
    fn a_binding_does_not_flap() {
        let open = PortConfig::default;
        let mut net = Net::new([(1, open()), (2, open()), (3, leased(3))]);
        net.step(1, &to(9, GW), ROUTER);
        for _ in 0..9 {
            net.wait(1);
            net.drops(2, &to(9, GW), DropReason::Spoofed);
            net.step(3, &to(3, mac(9)), Verdict::Port(p(1)));
        }
        net.wait(1);
        net.step(2, &to(9, GW), ROUTER);
        net.step(3, &to(3, mac(9)), Verdict::Port(p(2)));
        net.drops(1, &to(9, GW), DropReason::Spoofed);
        // A leased one never moves.
        net.wait(10_000);
        net.drops(1, &to(3, GW), DropReason::Spoofed);
        net.step(1, &to(1, mac(3)), Verdict::Port(p(3)));
    }

    #[test]
    fn protection_without_a_leased_mac_still_learns() {
        let mut lease = leased(1);
        lease.lease.mac = None;
        lease.max_macs = 1;
        let mut net = Net::new([(1, lease), (2, leased(2))]);
        net.step(1, &to(1, GW), ROUTER);
        let other = frame(
            GW,
            mac(9),
            0x0800,
            &v4_with(17, ip4(1), B4, &[], 0, &udp(1, 2, &[])),
        );
        net.drops(1, &other, DropReason::MacTableFull);
        net.step(2, &to(2, mac(1)), Verdict::Port(p(1)));
    }

    /// An IP packet to the gateway from one of the port's addresses.
    fn packet(from: u32, src: IpAddr) -> Vec<u8> {
        let datagram = udp(1000, 2000, &[0; 9]);
        match src {
            IpAddr::V4(src) => {
                let packet = v4_with(17, src, B4, &[], 0, &datagram);
                frame(GW, mac(from), 0x0800, &packet)
            }
            IpAddr::V6(src) => frame(GW, mac(from), 0x86dd, &v6_with(6, src, B6, &tcp(&[]))),
        }
    }

    #[test]
    fn a_lease_tells_where_a_station_is_before_it_speaks() {
        let mut unknown = leased(2);
        unknown.lease.mac = None;
        let mut net = Net::new([(1, leased(1)), (2, unknown)]);
        for address in [ip4(1).into(), ip6(1).into()] {
            assert_eq!(net.at(address), Some((p(1), Some(mac(1)))));
        }
        assert_eq!(net.at(ip4(2).into()), Some((p(2), None)));
        net.step(2, &to(2, GW), ROUTER);
        assert_eq!(net.at(ip4(2).into()), Some((p(2), Some(mac(2)))));
        net.wait(10_000);
        assert_eq!(net.at(ip4(2).into()), Some((p(2), Some(mac(2)))));
        net.switch.remove_port(p(2));
        assert_eq!(net.at(ip4(2).into()), None);
    }

    #[test]
    fn addresses_are_learned_with_the_mac_address_they_were_last_used_with() {
        let open = PortConfig::default;
        let mut net = Net::new([(1, open()), (2, open()), (3, leased(3))]);
        for address in [ip4(7).into(), link_local(7).into()] {
            net.step(1, &packet(7, address), ROUTER);
            assert_eq!(net.at(address), Some((p(1), Some(mac(7)))));
            net.step(1, &packet(8, address), ROUTER);
            assert_eq!(net.at(address), Some((p(1), Some(mac(8)))));
            // Another port may use it, and does not get it.
            net.step(2, &packet(9, address), ROUTER);
            assert_eq!(net.at(address), Some((p(1), Some(mac(8)))));
            net.wait(300);
            assert_eq!(net.at(address), None);
            net.step(2, &packet(9, address), ROUTER);
            assert_eq!(net.at(address), Some((p(2), Some(mac(9)))));
        }
        let claims = arp_frame(1, OP_REQUEST, (mac(1), ip4(9)), GW4);
        net.step(1, &claims, FLOOD);
        assert_eq!(net.at(ip4(9).into()), Some((p(1), Some(mac(1)))));
        let target = link_local(9);
        net.step(1, &ndp(1, link_local(1), 136, target, mac(1)), FLOOD);
        assert_eq!(net.at(target.into()), Some((p(1), Some(mac(1)))));
        // A leased address is not learned from another port's frames.
        net.step(1, &packet(1, ip4(3).into()), ROUTER);
        assert_eq!(net.at(ip4(3).into()), Some((p(3), Some(mac(3)))));
    }

    #[test]
    fn the_gateways_addresses_are_not_learned() {
        let mut net = Net::single();
        for text in ["10.0.2.2", "fe80::2"] {
            let address: IpAddr = text.parse().unwrap();
            net.step(1, &packet(1, address), ROUTER);
            let routers = Some((PortId::ROUTER, Some(GW)));
            assert_eq!(net.at(address), routers, "{address}");
        }
        assert_eq!(net.switch.addresses().len(), 2, "the router's");
    }

    /// A scan of a /64, say, costs its own port alone, and of that only what is new.
    #[test]
    fn many_addresses_fill_a_port_not_the_table() {
        let mut net = Net::new([(1, PortConfig::default()), (2, leased(2))]);
        for n in 0..10_000 {
            let f = packet(1, link_local(0x100 + n).into());
            let parsed = Frame::parse(&f, MTU).unwrap();
            assert_eq!(judge(&mut net.switch, net.now, p(1), &parsed), ROUTER);
        }
        assert_eq!(net.switch.addresses().learned(p(1)), DEFAULT_MAX_ADDRESSES);
        let (first, last) = (link_local(0x100), link_local(0x100 + 9_999));
        assert!(net.at(first.into()).is_some() && net.at(last.into()).is_none());
        assert!(net.at(ip4(2).into()).is_some());
    }

    #[test]
    fn dhcp_grants_take_what_was_learned_and_yield_to_leases() {
        let guarded = || PortConfig {
            lease: Lease {
                mac: Some(mac(1)),
                ..Lease::default()
            },
            ..leased(1)
        };
        let open = PortConfig::default;
        let mut net = Net::new([(1, guarded()), (2, open()), (4, leased(4))]);
        let address = IpAddr::V4(ip4(3));
        net.step(2, &packet(2, address), ROUTER);
        net.drops(1, &packet(1, address), DropReason::Spoofed);
        let grant = |net: &Net, port, mac| net.switch.stations().grant(address, p(port), mac);
        // Offered, and then taken.
        assert_eq!(grant(&net, 1, None), Ok(()));
        assert_eq!(net.at(address), Some((p(1), None)));
        assert_eq!(grant(&net, 1, Some(mac(1))), Ok(()));
        assert_eq!(net.at(address), Some((p(1), Some(mac(1)))));
        assert_eq!(grant(&net, 2, None), Err(Refusal::Owned));
        net.step(1, &packet(1, address), ROUTER);
        // Given back, it is free; a lease is not given back, nor is another port's grant.
        net.switch.stations().take_back(address, p(2));
        assert_eq!(net.at(address), Some((p(1), Some(mac(1)))));
        net.switch.stations().take_back(address, p(1));
        assert_eq!(net.at(address), None);
        net.switch.stations().take_back(ip4(4).into(), p(4));
        assert!(net.at(ip4(4).into()).is_some());
        let leased_4 = net.switch.stations().grant(ip4(4).into(), p(1), None);
        assert_eq!(leased_4, Err(Refusal::Owned));
        // A port that comes with the address gets it.
        assert_eq!(grant(&net, 1, None), Ok(()));
        net.switch.add_port(p(3), leased(3)).unwrap();
        net.expected.insert(p(3), Counts::default());
        assert_eq!(net.at(address), Some((p(3), Some(mac(3)))));
        assert_eq!(grant(&net, 1, None), Err(Refusal::Owned));
        net.drops(1, &packet(1, address), DropReason::Spoofed);
    }
}

mod uplinks {
    use super::*;

    /// Notes the ports that are written to.
    struct Written(Vec<u32>);

    impl FrameSink for Written {
        fn emit(&mut self, port: PortId, _: &[u8]) -> Result<(), PortFull> {
            self.0.push(port.0);
            Ok(())
        }
    }

    /// A leased station at port 1, and uplinks at 2 and 3.
    fn net() -> Net {
        let uplink = || PortConfig {
            role: PortRole::Uplink,
            // A guard by lease would let none of its stations pass.
            spoof_protection: true,
            max_macs: 100,
            ..PortConfig::default()
        };
        Net::new([(1, leased(1)), (2, uplink()), (3, uplink())])
    }

    #[test]
    fn several_stations_behind_one_are_learned() {
        let mut net = net();
        for id in 10..60 {
            net.step(2, &to(id, mac(1)), Verdict::Port(p(1)));
            net.step(1, &to(1, mac(id)), Verdict::Port(p(2)));
            let known = net.at(ip4(id).into());
            let limit = 10 + DEFAULT_MAX_ADDRESSES as u32;
            let expected = (id < limit).then_some((p(2), Some(mac(id))));
            assert_eq!(known, expected, "{id}");
        }
        assert_eq!(net.switch.fdb().learned(p(2)), 50);
        // A station that moves to another uplink is found there once it was silent here.
        net.drops(3, &to(10, mac(1)), DropReason::Spoofed);
        net.wait(10);
        net.step(3, &to(10, mac(1)), Verdict::Port(p(1)));
        net.step(1, &to(1, mac(10)), Verdict::Port(p(3)));
    }

    #[test]
    fn nothing_passes_from_one_to_another() {
        let mut net = net();
        net.step(3, &to(9, mac(1)), Verdict::Port(p(1)));
        net.drops(2, &to(8, mac(9)), DropReason::NoSuchPort);
        let f = arp_frame(8, OP_REQUEST, (mac(8), ip4(8)), ip4(1));
        net.step(2, &f, Verdict::Flood { router: false });
        let reached = |net: &Net, from, dst| -> Vec<_> {
            let ports = net.switch.flood_ports(p(from), dst);
            ports.map(|port| port.0).collect()
        };
        assert_eq!(reached(&net, 2, MacAddr::BROADCAST), [1]);
        assert_eq!(reached(&net, 1, MacAddr::BROADCAST), [2, 3]);
        // A station not yet heard of may be behind either, for those here.
        assert_eq!(reached(&net, 1, mac(77)), [2, 3]);
        assert!(reached(&net, 2, mac(77)).is_empty());
        net.drops(2, &to(8, mac(77)), DropReason::NoSuchPort);
        net.step(1, &to(1, mac(77)), Verdict::Flood { router: false });
    }

    #[test]
    fn each_side_has_a_gateway_of_its_own() {
        let mut net = net();
        // Not by an uplink to this one, whatever asks for it.
        net.drops(2, &to(8, GW), DropReason::NoSuchPort);
        let asks = arp_frame(8, OP_REQUEST, (mac(8), ip4(8)), GW4);
        net.step(2, &asks, Verdict::Flood { router: false });
        // Nor by an uplink to theirs: of the questions here, only those for others leave.
        let left = |net: &mut Net, frame: &[u8]| {
            let parsed = Frame::parse(frame, MTU).unwrap();
            let mut sink = Written(Vec::new());
            let done = net
                .switch
                .handle_frame(net.now, p(1), &parsed, frame, &mut sink);
            (done.unwrap(), sink.0)
        };
        let arp = |target| arp_frame(1, OP_REQUEST, (mac(1), ip4(1)), target);
        let router = Delivery::Router;
        assert_eq!(left(&mut net, &arp(GW4)), (router, vec![]));
        assert_eq!(left(&mut net, &arp(ip4(9))), (router, vec![2, 3]));
        let solicit = |target| ndp(1, ip6(1), 135, target, mac(1));
        assert_eq!(left(&mut net, &solicit(GW6)), (router, vec![]));
        assert_eq!(left(&mut net, &solicit(ip6(9))), (router, vec![2, 3]));
    }

    #[test]
    fn stations_heard_of_a_moment_ago_are_answered_for() {
        let mut net = net();
        let asks = |target| arp_frame(1, OP_REQUEST, (mac(1), ip4(1)), target);
        let solicit = |target| ndp(1, ip6(1), 135, target, mac(1));
        let answered = |net: &Net, from, frame: &[u8]| {
            let parsed = Frame::parse(frame, MTU).unwrap();
            let answer = net.switch.answer_in_place(net.now, p(from), &parsed);
            answer.map(|(question, mac)| question.answer(mac, |frame| (mac, frame.to_vec())))
        };
        assert_eq!(answered(&net, 1, &asks(ip4(9))), None);
        net.step(2, &to(9, mac(1)), Verdict::Port(p(1)));
        let (by, frame) = answered(&net, 1, &asks(ip4(9))).unwrap();
        let told = Frame::parse(&frame, MTU).unwrap().arp().unwrap();
        assert_eq!(
            (by, told.sender_mac, told.sender_ip),
            (mac(9), mac(9), ip4(9))
        );
        assert_eq!((told.operation, told.target_mac), (OP_REPLY, mac(1)));
        net.step(
            2,
            &arp_frame(9, OP_REPLY, (mac(9), ip4(9)), ip4(1)),
            Verdict::Flood { router: false },
        );
        let claims = ndp(9, ip6(9), 136, ip6(9), mac(9));
        net.step(2, &claims, Verdict::Flood { router: false });
        let (_, frame) = answered(&net, 1, &solicit(ip6(9))).unwrap();
        let parsed = Frame::parse(&frame, MTU).unwrap();
        let L3::Ip(ip) = parsed.l3 else {
            panic!("no packet")
        };
        assert!(parsed.l4_checksum_ok(&ip) && (ip.src, parsed.dst) == (ip6(9).into(), mac(1)));
        // Not to those behind it, and not for a station here.
        assert_eq!(answered(&net, 2, &asks(ip4(9))), None);
        assert_eq!(answered(&net, 1, &asks(ip4(1))), None);
        net.wait(10);
        assert_eq!(answered(&net, 1, &asks(ip4(9))), None);
    }

    #[test]
    fn what_is_leased_here_is_not_theirs() {
        let mut net = net();
        net.drops(2, &to(1, GW), DropReason::Spoofed);
        for claimed in [ip4(1), GW4] {
            let claim = arp_frame(8, OP_REPLY, (mac(8), claimed), claimed);
            net.drops(2, &claim, DropReason::Spoofed);
        }
        for claimed in [ip6(1), GW6] {
            let claim = ndp(8, link_local(8), 136, claimed, mac(8));
            net.drops(2, &claim, DropReason::Spoofed);
        }
        let advertises = ndp(8, link_local(8), 134, GW6, mac(8));
        net.drops(2, &advertises, DropReason::RogueService);
        assert_eq!(net.at(ip4(1).into()), Some((p(1), Some(mac(1)))));
    }

    #[test]
    fn an_isolated_station_does_not_reach_them() {
        let mut net = net();
        let isolated = PortConfig {
            isolated: true,
            ..leased(4)
        };
        net.switch.add_port(p(4), isolated).unwrap();
        net.expected.insert(p(4), Counts::default());
        net.step(4, &to(4, MacAddr::BROADCAST), ROUTER);
        net.drops(2, &to(8, mac(4)), DropReason::NoSuchPort);
    }
}

mod ports {
    use super::*;

    #[test]
    fn leases_are_exclusive() {
        let mut net = Net::shared(2);
        let mut add = |id: u32, change: fn(&mut Lease)| {
            let mut config = leased(id);
            change(&mut config.lease);
            net.switch.add_port(p(id), config)
        };
        let in_use = |a: IpAddr| Err(AddPortError::AddressInUse(a));
        assert_eq!(add(2, |_| ()), Err(AddPortError::Exists(p(2))));
        assert_eq!(
            add(MAX_PORTS, |_| ()),
            Err(AddPortError::OutOfRange(p(MAX_PORTS)))
        );
        assert_eq!(
            add(3, |l| l.mac = Some(mac(2))),
            Err(AddPortError::MacInUse(mac(2)))
        );
        assert_eq!(add(3, |l| l.ipv4.push(ip4(1))), in_use(ip4(1).into()));
        assert_eq!(add(3, |l| l.ipv6.push(ip6(1))), in_use(ip6(1).into()));
        assert_eq!(add(3, |l| l.ipv6.push(GW6)), in_use(GW6.into()));
        for bad in [
            |l: &mut Lease| l.mac = Some(GW),
            |l: &mut Lease| l.mac = Some(ZERO_MAC),
        ] {
            assert!(matches!(add(3, bad), Err(AddPortError::UnusableMac(_))));
        }
        // A failed attempt leaves nothing pinned.
        assert_eq!(net.switch.port_of_address(ip4(3).into()), None);
        assert_eq!(net.stations(), 2);
        net.check();
        assert_eq!(net.switch.add_port(p(3), leased(3)), Ok(()));
    }

    #[test]
    fn a_lease_takes_precedence_over_what_was_learned() {
        let mut net = Net::single();
        net.step(1, &to(2, GW), ROUTER);
        net.switch.add_port(p(2), leased(2)).unwrap();
        net.expected.insert(p(2), Counts::default());
        net.drops(1, &to(2, GW), DropReason::Spoofed);
        net.step(1, &to(1, mac(2)), Verdict::Port(p(2)));
    }

    #[test]
    fn a_removed_port_leaves_nothing() {
        let mut net = Net::shared(3);
        net.step(1, &to(1, mac(2)), Verdict::Port(p(2)));
        net.step(2, &to(2, GW), ROUTER);
        let counters = net.switch.remove_port(p(2)).unwrap();
        assert_eq!(counters.frames_in, 1);
        net.expected.remove(&p(2));
        net.drops(1, &to(1, mac(2)), DropReason::NoSuchPort);
        let gone = Frame::parse(&to(2, GW), MTU).map(|f| judge(&mut net.switch, net.now, p(2), &f));
        assert_eq!(gone, Ok(Verdict::Drop(DropReason::NoSuchPort)));
        assert!(net.switch.remove_port(p(2)).is_none());
        assert_eq!(net.switch.port_of_address(ip4(2).into()), None);
        // Number and addresses are free again.
        net.switch.add_port(p(2), leased(2)).unwrap();
        net.expected.insert(p(2), Counts::default());
        net.step(1, &to(1, mac(2)), Verdict::Port(p(2)));
    }

    #[test]
    fn workers_share_tables_and_not_counters() {
        let mut net = Net::new([(1, PortConfig::default()), (2, leased(2))]);
        let mut other = net.switch.for_worker();
        let f = to(9, GW);
        let parsed = Frame::parse(&f, MTU).unwrap();
        assert_eq!(judge(&mut other, net.now, p(1), &parsed), ROUTER);
        net.step(2, &to(2, mac(9)), Verdict::Port(p(1)));
        assert_eq!(other.counters(p(1)).unwrap().frames_in, 1);
        assert_eq!(other.counters(p(2)).unwrap().frames_in, 0);
        // The second to be told of a port finds its own pins.
        net.switch.add_port(p(3), leased(3)).unwrap();
        assert_eq!(other.add_port(p(3), leased(3)), Ok(()));
        fn moves_to_its_worker<T: Send>(_: &T) {}
        moves_to_its_worker(&other);
    }
}
