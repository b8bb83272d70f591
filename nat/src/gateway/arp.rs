//! ARP (RFC 826) for the gateway's own IPv4 addresses.
//!
//! A request for one of them is answered to its sender, an address probe (RFC 5227, sender
//! 0.0.0.0) included, which is how our addresses are defended. Requests for others are none of
//! our business. What a sender says of itself is learned, if the address lies in the subnet; a
//! sender that claims one of our addresses or another port's is refused.

use std::net::{IpAddr, Ipv4Addr};

use crate::io::{Env, Io};
use cnet_wire::arp::{OP_REPLY, OP_REQUEST};
use cnet_wire::{DropReason, Frame, MacAddr, PortId};

use super::Gateway;

impl Gateway {
    pub(super) fn handle_arp(
        &mut self,
        port: PortId,
        frame: &Frame<'_>,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let v4 = self.cfg.v4.ok_or(DropReason::FamilyDisabled)?;
        let arp = frame.arp().ok_or(DropReason::BadArp)?;
        if arp.sender_mac != frame.src {
            return Err(DropReason::Spoofed);
        }
        let sender = IpAddr::V4(arp.sender_ip);
        if self.owns_unicast(sender) {
            return Err(DropReason::Spoofed);
        }
        if v4.contains(arp.sender_ip) && !self.learn(sender, port, arp.sender_mac) {
            return Err(DropReason::Spoofed);
        }
        match arp.operation {
            OP_REQUEST if self.owns_unicast(IpAddr::V4(arp.target_ip)) => {
                let link = self.out.link(port, arp.sender_mac);
                let target = (arp.sender_mac, arp.sender_ip);
                self.out
                    .arp(io.sink, &link, OP_REPLY, arp.target_ip, target)?;
                self.counters.arp_replies += 1;
                Ok(())
            }
            OP_REQUEST | OP_REPLY => Ok(()),
            _ => Err(DropReason::BadArp),
        }
    }

    pub(super) fn send_arp_request(
        &mut self,
        port: PortId,
        ip: Ipv4Addr,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let v4 = self.cfg.v4.ok_or(DropReason::FamilyDisabled)?;
        let link = self.out.link(port, MacAddr::BROADCAST);
        let target = (MacAddr::default(), ip);
        self.out.arp(io.sink, &link, OP_REQUEST, v4.address, target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(bench.gw.counters().arp_replies, 4);
        assert_eq!(bench.gw.neighbour(B4.into()), Some((B, MAC_B)));
        let foreign = Ipv4Addr::new(192, 0, 2, 1);
        assert_eq!(bench.gw.neighbour(foreign.into()), None);
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
        assert_eq!(bench.gw.neighbour(B4.into()), Some((B, MAC_B)));
        assert_eq!(bench.gw.neighbour(A4.into()), Some((A, MAC_A)));
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
