//! What containers may not say: other stations' addresses, and services that are the gateway's.

mod net;

use std::net::{Ipv4Addr, Ipv6Addr};

use cnet_testkit::packets::*;
use cnet_vswitch::port::DEFAULT_MAX_ADDRESSES;
use cnet_vswitch::{PortConfig, Verdict};
use cnet_wire::arp::{OP_REPLY, OP_REQUEST};
use cnet_wire::{DropReason, Frame, MacAddr};
use net::*;

mod spoofing {
    use super::*;

    #[test]
    fn foreign_macs() {
        let mut net = Net::shared(2);
        for src in [2, 9] {
            let f = frame(
                GW,
                mac(src),
                0x0800,
                &v4_with(17, ip4(1), B4, &[], 0, &udp(1, 2, &[])),
            );
            net.drops(1, &f, DropReason::Spoofed);
        }
        // The gateway's, whatever the protection.
        let f = frame(mac(2), GW, 0x0800, &v4(17, &udp(1, 2, &[])));
        net.drops(1, &f, DropReason::Spoofed);
        let mut alone = Net::single();
        alone.drops(1, &f, DropReason::Spoofed);
        assert_eq!(alone.stations(), 0);
    }

    #[test]
    fn foreign_ip_sources() {
        let mut net = Net::shared(2);
        let from4 = |src| frame(GW, mac(1), 0x0800, &v4_with(6, src, B4, &[], 0, &tcp(&[])));
        let from6 = |src| frame(GW, mac(1), 0x86dd, &v6_with(6, src, B6, &tcp(&[])));
        net.step(1, &from4(ip4(1)), ROUTER);
        net.step(1, &from6(ip6(1)), ROUTER);
        for src in [ip4(2), GW4, A4, Ipv4Addr::new(169, 254, 1, 1)] {
            net.drops(1, &from4(src), DropReason::Spoofed);
        }
        for src in [ip6(2), GW6, B6.to_bits().wrapping_add(1).into()] {
            net.drops(1, &from6(src), DropReason::Spoofed);
        }
        // Off: anything a container may route.
        let mut alone = Net::single();
        alone.step(1, &from4(A4), ROUTER);
        alone.step(1, &from6(A6), ROUTER);
    }

    #[test]
    fn fragments_do_not_hide_a_source() {
        let mut net = Net::shared(2);
        let later = |src| frame(GW, mac(1), 0x0800, &v4_with(17, src, B4, &[], 100, &[0; 9]));
        net.step(1, &later(ip4(1)), ROUTER);
        net.drops(1, &later(ip4(2)), DropReason::Spoofed);
    }

    #[test]
    fn dhcp_and_address_detection_come_from_nowhere() {
        let mut net = Net::shared(2);
        let any = Ipv4Addr::UNSPECIFIED;
        let discover = v4_with(
            17,
            any,
            Ipv4Addr::BROADCAST,
            &[],
            0,
            &udp(68, 67, &[0; 240]),
        );
        let discover = frame(MacAddr::BROADCAST, mac(1), 0x0800, &discover);
        let none = Ipv6Addr::UNSPECIFIED;
        // Before it has used an address, and after.
        for _ in 0..2 {
            net.step(1, &discover, FLOOD);
            // Even for another's address: its owner will object.
            let f = ndp(1, none, 135, ip6(2), mac(1));
            net.step(1, &f, Verdict::Flood { router: false });
            let f = arp_frame(1, OP_REQUEST, (mac(1), any), ip4(2));
            net.step(1, &f, Verdict::Flood { router: false });
            net.step(1, &to(1, GW), ROUTER);
            net.step(1, &ndp(1, ip6(1), 135, GW6, mac(1)), FLOOD);
        }
    }

    #[test]
    fn arp_that_asks_and_tells_nothing_is_not_flooded() {
        for mut net in [Net::shared(2), Net::single()] {
            for operation in [0, 3, 9, 0xffff] {
                let f = arp_frame(1, operation, (mac(1), ip4(1)), ip4(2));
                net.drops(1, &f, DropReason::BadArp);
            }
            // Lengths of a hardware and of a protocol address that are none of Ethernet and IPv4.
            for (at, len) in [(4, 8), (5, 16)] {
                let mut f = arp_frame(1, OP_REQUEST, (mac(1), ip4(1)), ip4(2));
                f[10 + 14 + at] = len;
                assert_eq!(Frame::parse(&f, MTU).err(), Some(DropReason::BadArp));
            }
        }
    }

    /// A gratuitous ARP that claims the gateway's or a neighbour's address.
    #[test]
    fn arp_claims() {
        for mut net in [Net::shared(2), {
            let open = PortConfig {
                spoof_protection: false,
                ..leased(1)
            };
            Net::new([(1, open), (2, leased(2))])
        }] {
            for operation in [OP_REQUEST, OP_REPLY] {
                net.step(1, &arp_frame(1, operation, (mac(1), ip4(1)), GW4), FLOOD);
                for claimed in [GW4, ip4(2)] {
                    let f = arp_frame(1, operation, (mac(1), claimed), claimed);
                    net.drops(1, &f, DropReason::Spoofed);
                }
                for other in [GW, mac(2)] {
                    let f = arp_frame(1, operation, (other, ip4(1)), GW4);
                    net.drops(1, &f, DropReason::Spoofed);
                }
                for unusable in [ZERO_MAC, MacAddr::BROADCAST] {
                    let f = arp_frame(1, operation, (unusable, ip4(1)), GW4);
                    net.drops(1, &f, DropReason::BadArp);
                }
            }
            assert_eq!(net.switch.port_of_address(ip4(2).into()), Some(p(2)));
            net.step(1, &to(1, mac(2)), Verdict::Port(p(2)));
        }
    }

    #[test]
    fn neighbour_discovery_claims() {
        let mut net = Net::shared(2);
        net.step(1, &ndp(1, ip6(1), 136, ip6(1), mac(1)), FLOOD);
        for claimed in [GW6, ip6(2), A6] {
            let f = ndp(1, ip6(1), 136, claimed, mac(1));
            net.drops(1, &f, DropReason::Spoofed);
        }
        for kind in [133, 135, 136] {
            for other in [GW, mac(2), mac(9)] {
                let f = ndp(1, ip6(1), kind, ip6(1), other);
                net.drops(1, &f, DropReason::Spoofed);
            }
        }
        // Without protection, the gateway and the leases are still out of reach.
        let mut net = Net::new([(1, PortConfig::default()), (2, leased(2))]);
        net.step(1, &ndp(1, A6, 136, A6, mac(9)), FLOOD);
        for claimed in [GW6, ip6(2)] {
            net.drops(1, &ndp(1, A6, 136, claimed, mac(1)), DropReason::Spoofed);
            net.drops(1, &ndp(1, claimed, 135, A6, mac(1)), DropReason::Spoofed);
        }
        for other in [GW, mac(2)] {
            net.drops(1, &ndp(1, A6, 136, A6, other), DropReason::Spoofed);
        }
    }

    #[test]
    fn malformed_neighbour_discovery() {
        let mut net = Net::shared(2);
        let good = ndp(1, ip6(1), 135, GW6, mac(1));
        net.step(1, &good, FLOOD);
        let (ip, icmp) = (10 + ETH, 10 + ETH + 40);
        let changed = |at: usize, value: u8| {
            let mut f = good.clone();
            f[at] = value;
            f
        };
        net.drops(1, &changed(ip + 7, 254), DropReason::BadIcmp);
        net.drops(1, &changed(icmp + 25, 0), DropReason::BadIcmp);
        net.drops(1, &changed(icmp + 25, 2), DropReason::BadIcmp);
        // The message ends in its target, or in half an option.
        net.drops(1, &changed(ip + 5, 23), DropReason::BadIcmp);
        net.drops(1, &changed(ip + 5, 25), DropReason::BadIcmp);
        net.step(1, &changed(ip + 5, 24), FLOOD);
    }

    #[test]
    fn link_local_addresses_are_first_come() {
        let mut net = Net::shared(2);
        let from = |id: u32, src| frame(GW, mac(id), 0x86dd, &v6_with(6, src, B6, &tcp(&[])));
        let own_prefix = |n| Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, n);
        net.step(1, &from(1, link_local(1)), ROUTER);
        net.step(1, &from(1, own_prefix(1)), ROUTER);
        net.drops(2, &from(2, link_local(1)), DropReason::Spoofed);
        net.drops(2, &from(2, own_prefix(1)), DropReason::Spoofed);
        net.drops(
            2,
            &ndp(2, ip6(2), 136, link_local(1), mac(2)),
            DropReason::Spoofed,
        );
        net.drops(2, &from(2, GW6), DropReason::Spoofed);
        // An advertisement takes an address too.
        net.step(2, &ndp(2, ip6(2), 136, link_local(2), mac(2)), FLOOD);
        net.drops(1, &from(1, link_local(2)), DropReason::Spoofed);
        // Silence gives it up.
        net.wait(300);
        net.step(2, &from(2, link_local(1)), ROUTER);
        net.drops(1, &from(1, link_local(1)), DropReason::Spoofed);
    }

    #[test]
    fn taken_addresses_are_capped() {
        let mut net = Net::shared(2);
        let from = |id: u32, src| frame(GW, mac(id), 0x86dd, &v6_with(6, src, B6, &tcp(&[])));
        let max = DEFAULT_MAX_ADDRESSES as u16;
        for n in 0..max {
            net.step(1, &from(1, link_local(n)), ROUTER);
        }
        for n in max..3 * max {
            net.drops(1, &from(1, link_local(n)), DropReason::Spoofed);
        }
        net.step(1, &from(1, link_local(0)), ROUTER);
        net.step(2, &from(2, link_local(max)), ROUTER);
    }
}

mod rogue_services {
    use super::*;

    #[track_caller]
    fn is_rogue(frame: &[u8]) {
        for mut net in [Net::shared(2), Net::single()] {
            net.drops(1, frame, DropReason::RogueService);
        }
    }

    /// CVE-2020-13401 and CVE-2020-10749: a container that advertises itself as the router.
    #[test]
    fn cve_2020_13401_and_10749_router_advertisements() {
        for kind in [134, 137] {
            let body = icmp(kind, 0, &[0; 36]);
            let all = "ff02::1".parse().unwrap();
            let mut packet = v6_with(58, link_local(1), all, &body);
            packet[7] = 255;
            is_rogue(&frame(MULTICAST6, mac(1), 0x86dd, &packet));
            is_rogue(&frame(mac(2), mac(1), 0x86dd, &packet));
            // Behind extension headers (RFC 7113).
            let mut hidden = extension(60, 1, &extension(58, 2, &body));
            hidden = v6_with(0, link_local(1), all, &hidden);
            is_rogue(&frame(MULTICAST6, mac(1), 0x86dd, &hidden));
        }
    }

    #[test]
    fn dhcp_servers() {
        for server in [67, 4000] {
            let offer = udp(server, 68, &[0; 240]);
            for dst in [Ipv4Addr::BROADCAST, ip4(2)] {
                let packet = v4_with(17, ip4(1), dst, &[], 0, &offer);
                is_rogue(&frame(MacAddr::BROADCAST, mac(1), 0x0800, &packet));
                let first = v4_with(17, ip4(1), dst, &[], 0x2000, &offer);
                is_rogue(&frame(mac(2), mac(1), 0x0800, &first));
            }
        }
        let packet = v6_with(17, link_local(1), link_local(2), &udp(547, 546, &[0; 40]));
        is_rogue(&frame(mac(2), mac(1), 0x86dd, &packet));
    }

    #[test]
    fn redirects() {
        for kind in [5, 9] {
            let packet = v4_with(1, ip4(1), ip4(2), &[], 0, &icmp(kind, 1, &[0; 36]));
            is_rogue(&frame(mac(2), mac(1), 0x0800, &packet));
        }
    }

    #[test]
    fn clients_are_not_servers() {
        let mut net = Net::shared(2);
        let solicit = v6_with(
            17,
            link_local(1),
            "ff02::1:2".parse().unwrap(),
            &udp(546, 547, &[]),
        );
        net.step(1, &frame(MULTICAST6, mac(1), 0x86dd, &solicit), FLOOD);
        // What looks like a port in a later fragment is data.
        let data = udp(67, 68, &[]);
        let later = v4_with(17, ip4(1), B4, &[], 100, &data);
        net.step(1, &frame(GW, mac(1), 0x0800, &later), ROUTER);
        let renew = v4_with(17, ip4(1), GW4, &[], 0, &udp(68, 67, &[]));
        net.step(1, &frame(GW, mac(1), 0x0800, &renew), ROUTER);
        net.step(1, &ndp(1, link_local(1), 133, B6, mac(1)), FLOOD);
        let echo = v4_with(1, ip4(1), ip4(2), &[], 0, &icmp(8, 0, &[0; 4]));
        net.step(
            1,
            &frame(mac(2), mac(1), 0x0800, &echo),
            Verdict::Port(p(2)),
        );
    }
}
