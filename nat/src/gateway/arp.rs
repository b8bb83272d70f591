//! ARP (RFC 826) for the gateway's own IPv4 addresses.
//!
//! # Theory of operation
//!
//! The gateway answers a request for one of its addresses, an address probe (RFC 5227, sender
//! 0.0.0.0) included, which defends the address. It ignores requests for other addresses, unless
//! it answers for the host's neighbours, and then no probe. It refuses
//! a sender that claims one of the gateway's addresses or another port's. It sends requests of its own to find a container that has
//! not spoken yet.

use std::net::{IpAddr, Ipv4Addr};

use cnet_wire::arp::{ArpPacket, OP_REPLY, OP_REQUEST};
use cnet_wire::{DropReason, Frame, MacAddr, PortId};

use super::counters::ArpCounters;
use super::{Endpoint, GatewayConfig, Ipv4Gateway};
use crate::io::{Env, Io};
use cnet_wire::stations::Stations;
use cnet_wire::time::Instant;

/// The protocol at the gateway.
pub(super) struct Arp {
    v4: Option<Ipv4Gateway>,
    pub(super) counters: ArpCounters,
}

impl Arp {
    pub(super) fn new(cfg: &GatewayConfig) -> Arp {
        Arp {
            v4: cfg.v4,
            counters: ArpCounters::default(),
        }
    }

    /// Takes a message in.
    pub(super) fn handle_frame(
        &mut self,
        (now, port): (Instant, PortId),
        frame: &Frame<'_>,
        endpoint: &mut Endpoint,
        stations: &impl Stations,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        self.v4.ok_or(DropReason::FamilyDisabled)?;
        let arp = frame.arp().ok_or(DropReason::BadArp)?;
        if arp.sender_mac != frame.src {
            return Err(DropReason::Spoofed);
        }
        let sender = IpAddr::V4(arp.sender_ip);
        if !endpoint.may_claim((now, port), sender, stations) {
            return Err(DropReason::Spoofed);
        }
        let target = IpAddr::V4(arp.target_ip);
        match arp.operation {
            OP_REQUEST
                if endpoint.addresses.owns_unicast(target)
                    || !sender.is_unspecified()
                        && endpoint.answers_for((now, port), target, sender, stations) =>
            {
                let reply = ArpPacket {
                    operation: OP_REPLY,
                    sender_mac: endpoint.emitter.mac,
                    sender_ip: arp.target_ip,
                    target_mac: arp.sender_mac,
                    target_ip: arp.sender_ip,
                };
                let link = endpoint.emitter.link(port, arp.sender_mac);
                endpoint.emitter.arp(io, &link, &reply)?;
                self.counters.replies += 1;
                Ok(())
            }
            OP_REQUEST | OP_REPLY => Ok(()),
            _ => Err(DropReason::BadArp),
        }
    }

    /// Solicits the MAC address of `ip` on `port`.
    pub(super) fn solicit(
        &mut self,
        port: PortId,
        ip: Ipv4Addr,
        endpoint: &Endpoint,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let v4 = self.v4.ok_or(DropReason::FamilyDisabled)?;
        let request = ArpPacket {
            operation: OP_REQUEST,
            sender_mac: endpoint.emitter.mac,
            sender_ip: v4.address,
            target_mac: MacAddr::default(),
            target_ip: ip,
        };
        let link = endpoint.emitter.link(port, MacAddr::BROADCAST);
        endpoint.emitter.arp(io, &link, &request)?;
        self.counters.requests += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Quirks;
    use crate::gateway::testing::*;
    use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame};

    fn arp(operation: u16, mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let repr = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::from(operation),
            source_hardware_addr: EthernetAddress(mac.0),
            source_protocol_addr: sender,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        };
        let mut frame = vec![0; 14 + 28];
        let mut eth = EthernetFrame::new_unchecked(&mut frame);
        eth.set_dst_addr(EthernetAddress::BROADCAST);
        eth.set_src_addr(EthernetAddress(mac.0));
        eth.set_ethertype(smoltcp::wire::EthernetProtocol::Arp);
        repr.emit(&mut ArpPacket::new_unchecked(eth.payload_mut()));
        frame
    }

    #[test]
    fn requests_for_our_addresses_are_answered_where_they_came_from() {
        let mut bench = Bench::new();
        for (port, mac, sender, target) in [
            (A, MAC_A, A4, GW4),
            (B, MAC_B, B4, DNS4),
            (B, MAC_B, Ipv4Addr::UNSPECIFIED, GW4),
            (B, MAC_B, Ipv4Addr::new(192, 0, 2, 1), GW4),
        ] {
            assert_eq!(bench.send(port, &arp(1, mac, sender, target)), Ok(()));
            let reply = bench.reply(port);
            assert_eq!(reply[..6], mac.0);
            let got = ArpRepr::parse(&ArpPacket::new_checked(&reply[14..]).unwrap());
            let want = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: EthernetAddress(GATEWAY.0),
                source_protocol_addr: target,
                target_hardware_addr: EthernetAddress(mac.0),
                target_protocol_addr: sender,
            };
            assert_eq!(got, Ok(want));
        }
        assert_eq!(bench.gw.counters().arp.replies, 4);
    }

    #[test]
    fn requests_for_others_are_not_answered() {
        let mut bench = Bench::new();
        for target in [A4, Ipv4Addr::new(10, 0, 2, 4), Ipv4Addr::BROADCAST] {
            assert_eq!(bench.send(B, &arp(1, MAC_B, B4, target)), Ok(()));
        }
        bench.assert_silent();
    }

    #[test]
    fn on_the_hosts_own_subnets_all_neighbours_are_here_but_a_containers_address_is_not() {
        let mut cfg = config();
        cfg.quirks = Quirks::host_subnets();
        let mut bench = Bench::with(cfg);
        bench.gw.add_lease(lease());
        let neighbour = Ipv4Addr::new(10, 0, 2, 77);
        assert_eq!(bench.send(A, &arp(1, MAC_A, A4, neighbour)), Ok(()));
        let reply = bench.reply(A);
        assert_eq!(reply[22..28], GATEWAY.0);
        assert_eq!(reply[28..32], neighbour.octets());
        // Its own address, as it announces or probes it, a probe of any other, and another port's.
        assert_eq!(bench.send(B, &arp(1, MAC_B, B4, B4)), Ok(()));
        for (sender, target) in [
            (A4, A4),
            (Ipv4Addr::UNSPECIFIED, A4),
            (Ipv4Addr::UNSPECIFIED, neighbour),
            (A4, B4),
        ] {
            assert_eq!(bench.send(A, &arp(1, MAC_A, sender, target)), Ok(()));
        }
        bench.assert_silent();
    }

    #[test]
    fn gratuitous_claims_change_nothing() {
        let mut bench = Bench::new();
        assert_eq!(bench.send(B, &arp(2, MAC_B, B4, B4)), Ok(()));
        for claimed in [GW4, DNS4, A4] {
            for operation in [1, 2] {
                let claim = arp(operation, MAC_B, claimed, claimed);
                assert_eq!(bench.send(B, &claim), Err(DropReason::Spoofed));
            }
        }
        let claim = arp(2, MAC_A, B4, B4);
        assert_eq!(bench.send(A, &claim), Err(DropReason::Spoofed));
        let mut claim = arp(1, MAC_B, B4, GW4);
        claim[14 + 8] ^= 4; // a sender that is not the frame's
        assert_eq!(bench.send(B, &claim), Err(DropReason::Spoofed));
        bench.assert_silent();
    }

    #[test]
    fn cve_2020_29129_and_29130_truncated_arp_is_dropped() {
        let mut bench = Bench::new();
        let whole = arp(1, MAC_A, A4, GW4);
        for len in 14..whole.len() {
            assert_eq!(bench.send(A, &whole[..len]), Err(DropReason::BadArp));
        }
        for (at, value) in [(14 + 4, 8), (14 + 5, 16), (14 + 1, 6), (14 + 2, 0x86)] {
            let mut frame = whole.clone();
            frame[at] = value;
            assert_eq!(bench.send(A, &frame), Err(DropReason::BadArp));
        }
        let unknown = arp(3, MAC_A, A4, GW4);
        assert_eq!(bench.send(A, &unknown), Err(DropReason::BadArp));
        bench.assert_silent();
    }
}
