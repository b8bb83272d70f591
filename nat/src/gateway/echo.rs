//! ICMP and ICMPv6 echo to the gateway's own addresses.
//!
//! # Theory of operation
//!
//! The reply is the request with its type changed: identifier, sequence number and data are the
//! request's own bytes, and their number is the packet's, never a length field's (CVE-2020-10756).
//! Requests of any size are answered; a reply over the MTU leaves in fragments. A request to all
//! IPv6 nodes or routers is answered from the link-local address. A request to an IPv4 broadcast
//! address is ignored, as RFC 1122 section 3.2.2.6 allows.

use std::net::IpAddr;

use cnet_wire::DropReason;
use cnet_wire::icmp::{IcmpMessage, v4, v6};

use super::addresses::{ALL_NODES, ALL_ROUTERS};
use super::counters::EchoCounters;
use super::emit::HOP_LIMIT;
use super::{Endpoint, Packet};
use crate::io::{Env, Io};
use cnet_wire::addr::is_station;

/// The protocol at the gateway.
#[derive(Default)]
pub(super) struct Echo {
    pub(super) counters: EchoCounters,
}

impl Echo {
    /// Takes in an ICMP or ICMPv6 message other than neighbour discovery.
    pub(super) fn handle_packet(
        &mut self,
        packet: &Packet<'_>,
        endpoint: &mut Endpoint,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let Packet { frame, ip, .. } = packet;
        let (request, reply) = match ip.dst {
            IpAddr::V4(_) => (v4::ECHO_REQUEST, v4::ECHO_REPLY),
            IpAddr::V6(_) => (v6::ECHO_REQUEST, v6::ECHO_REPLY),
        };
        let l4 = frame.l4(ip);
        if *l4.first().ok_or(DropReason::BadIcmp)? != request {
            return Err(DropReason::NotServed);
        }
        let from = answering_address(ip.dst, endpoint).ok_or(DropReason::NotServed)?;
        let message = IcmpMessage::read(l4).ok_or(DropReason::BadIcmp)?;
        message.echo_identifier().ok_or(DropReason::BadIcmp)?;
        if !is_station(ip.src) {
            return Err(DropReason::MartianSource);
        }
        let message = IcmpMessage {
            kind: reply,
            ..message
        };
        let link = endpoint.emitter.link(packet.ingress, frame.src);
        let ends = (from, ip.src);
        endpoint
            .emitter
            .icmp(io, &link, ends, HOP_LIMIT, &message)?;
        self.counters.replies += 1;
        Ok(())
    }
}

/// The address that answers an echo request to `dst`.
fn answering_address(dst: IpAddr, endpoint: &Endpoint) -> Option<IpAddr> {
    if endpoint.addresses.owns_unicast(dst) {
        return Some(dst);
    }
    let to_group = [ALL_NODES, ALL_ROUTERS].map(IpAddr::V6).contains(&dst);
    to_group.then_some(IpAddr::V6(endpoint.addresses.link_local))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::testing::*;
    use cnet_wire::Frame;
    use cnet_wire::vnet::{F_NEEDS_CSUM, VNET_HDR_LEN, VnetHeader};
    use std::net::{Ipv4Addr, Ipv6Addr};

    const HEAD: [u8; 8] = [8, 0, 0, 0, 0x12, 0x34, 0, 9];

    #[test]
    fn an_echo_comes_back_with_its_own_bytes() {
        let mut bench = Bench::new();
        for (i, to) in [GW4, DNS4].into_iter().enumerate() {
            let data: Vec<u8> = (0..57 + i).map(|i| i as u8).collect();
            assert_eq!(bench.send(A, &icmp4(MAC_A, (A4, to), HEAD, &data)), Ok(()));
            let reply = bench.reply(A);
            assert!(checksum_ok(&reply));
            assert_eq!(reply[..6], MAC_A.0);
            assert_eq!(reply[26..34], [to.octets(), A4.octets()].concat());
            assert_eq!(reply[34..36], [0, 0]);
            assert_eq!(reply[38..], [&HEAD[4..], &data].concat());
        }
        assert_eq!(bench.gw.counters().echo.replies, 2);
    }

    #[test]
    fn an_icmpv6_echo_comes_back_with_its_own_bytes() {
        let mut bench = Bench::new();
        for (to, from) in [
            (GW6, GW6),
            (DNS6, DNS6),
            (GW_LL, GW_LL),
            (ALL_NODES, GW_LL),
            (ALL_ROUTERS, GW_LL),
        ] {
            let request = icmp6(MAC_B, (B6, to), 64, (128, 0, [1, 2, 3, 4]), b"payload");
            assert_eq!(bench.send(B, &request), Ok(()));
            let reply = bench.reply(B);
            assert!(checksum_ok(&reply));
            assert_eq!(reply[22..54], [from.octets(), B6.octets()].concat());
            assert_eq!(reply[54..56], [129, 0]);
            assert_eq!(reply[58..], *b"\x01\x02\x03\x04payload");
        }
    }

    #[test]
    fn cve_2020_10756_an_echo_shorter_than_its_header_is_dropped() {
        let mut bench = Bench::new();
        for len in 0..8 {
            // The frame goes on behind the packet: none of that may come back.
            let mut v6 = icmp6(MAC_A, (A6, GW6), 64, (128, 0, [0; 4]), b"secret");
            v6[18..20].copy_from_slice(&(len as u16).to_be_bytes());
            assert_eq!(checked(&mut bench, &v6), Err(DropReason::BadIcmp));
            let mut v4 = icmp4(MAC_A, (A4, GW4), HEAD, b"secret");
            v4[16..18].copy_from_slice(&(20 + len as u16).to_be_bytes());
            v4[24..26].fill(0);
            let sum = cnet_wire::checksum::finish(0, &v4[14..34]);
            v4[24..26].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(checked(&mut bench, &v4), Err(DropReason::BadIcmp));
        }
        bench.assert_silent();
    }

    /// Sends a frame whose transport checksum the device has verified.
    fn checked(bench: &mut Bench, frame: &[u8]) -> Result<(), DropReason> {
        let vnet = VnetHeader {
            flags: cnet_wire::vnet::F_DATA_VALID,
            ..VnetHeader::default()
        };
        bench.send_vnet(A, vnet, frame)
    }

    #[test]
    fn a_checksum_left_to_the_device_is_made_good() {
        let mut bench = Bench::new();
        let mut frame = icmp4(MAC_A, (A4, GW4), HEAD, b"data");
        frame[36..38].fill(0);
        assert_eq!(bench.send(A, &frame), Err(DropReason::BadChecksum));
        let vnet = VnetHeader {
            flags: F_NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 2,
            ..VnetHeader::default()
        };
        assert_eq!(bench.send_vnet(A, vnet, &frame), Ok(()));
        assert!(checksum_ok(&bench.reply(A)));
    }

    #[test]
    fn a_large_echo_comes_back_in_fragments() {
        let mut bench = Bench::new();
        let data: Vec<u8> = (0..60_000u32).map(|i| (i * 7) as u8).collect();
        let v4 = icmp4(MAC_A, (A4, GW4), HEAD, &data);
        let v6 = icmp6(MAC_A, (A6, GW6), 64, (128, 0, [0, 1, 0, 1]), &data);
        for (frame, header) in [(v4, 20), (v6, 40)] {
            assert_eq!(bench.send(A, &frame), Ok(()));
            let mut whole = vec![0; 8 + data.len()];
            let mut total = 0;
            for (_, fragment) in bench.wire.0.drain(..) {
                assert!(fragment.len() <= 14 + 1500);
                let buf = [&[0; VNET_HDR_LEN][..], &fragment].concat();
                let parsed = Frame::parse(&buf, 1500).unwrap();
                let cnet_wire::L3::Ip(ip) = parsed.l3 else {
                    panic!("not IP");
                };
                let at = ip.fragment.unwrap().offset as usize;
                let part = parsed.l4(&ip);
                whole[at..at + part.len()].copy_from_slice(part);
                total += part.len();
            }
            assert_eq!(total, whole.len());
            assert_eq!(whole[8..], data);
            assert_eq!(
                whole[0],
                if header == 20 {
                    v4::ECHO_REPLY
                } else {
                    v6::ECHO_REPLY
                }
            );
        }
    }

    #[test]
    fn other_messages_and_groups_are_not_answered() {
        let mut bench = Bench::new();
        for kind in [0, 3, 5, 11, 13, 15, 17] {
            let head = [kind, 0, 0, 0, 0, 0, 0, 0];
            let sent = bench.send(A, &icmp4(MAC_A, (A4, GW4), head, &[0; 28]));
            assert_eq!(sent, Err(DropReason::NotServed), "type {kind}");
        }
        for kind in [1, 2, 3, 4, 129, 130, 143, 200] {
            let sent = bench.send(
                A,
                &icmp6(MAC_A, (A6, GW6), 255, (kind, 0, [0; 4]), &[0; 48]),
            );
            assert_eq!(sent, Err(DropReason::NotServed), "type {kind}");
        }
        for to in [Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 0, 2, 255)] {
            let sent = bench.send(A, &icmp4(MAC_A, (A4, to), HEAD, b""));
            assert_eq!(sent, Err(DropReason::NotServed), "{to}");
        }
        let unspecified = Ipv6Addr::UNSPECIFIED;
        let sent = bench.send(
            A,
            &icmp6(MAC_A, (unspecified, GW6), 64, (128, 0, [0; 4]), b""),
        );
        assert_eq!(sent, Err(DropReason::MartianSource));
        bench.assert_silent();
    }
}
