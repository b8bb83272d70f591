//! Neighbour discovery (RFC 4861) and router advertisements for the gateway's IPv6 side.
//!
//! # Theory of operation
//!
//! The gateway answers neighbour solicitations for its addresses, duplicate address detection (RFC
//! 4862, from the unspecified address) included, which defends them. It refuses
//! what a station says of another port's address. A message must have hop limit 255, which only the link
//! itself can give it, be unfragmented (RFC 6980), and have well-formed options.
//!
//! The gateway answers a router solicitation with a router advertisement: prefix, MTU, DNS servers
//! and search list (RFC 8106), and the O flag, since DHCPv6 serves the rest; the M flag where the
//! station has an IPv6 lease. No timer repeats advertisements. The default route would end with the
//! router lifetime, which has 16 bits: so a route information option for ::/0 (RFC 4191 section
//! 2.3) says it again without an end, and a station that solicits one of the gateway's addresses
//! more than [`REFRESH`] after its last advertisement gets another. A prefix whose lifetimes end
//! ([`super::Quirks::prefix_lifetimes`]) is advertised again to all nodes of a port each
//! [`REFRESH`], as an idle station's address would end otherwise.
//!
//! Router advertisements and redirects from a container are refused: it is no router.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use cnet_wire::icmp::{IcmpMessage, v6};
use cnet_wire::ndp::{
    self, NdpMessage, NeighbourAdvertisement, NeighbourSolicitation, RouterAdvertisement,
};
use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropReason, MacAddr, PortId};

use super::addresses::{ALL_NODES, group_mac, solicited_node};
use super::counters::NdpCounters;
use super::emit::HOP_LIMIT;
use super::{Endpoint, GatewayConfig, Ipv6Gateway, Packet};
use crate::io::{Env, Io};
use cnet_wire::addr::is_station;
use cnet_wire::stations::Stations;

/// The ICMPv6 types of NDP.
pub(super) const TYPES: RangeInclusive<u8> = v6::ROUTER_SOLICITATION..=v6::REDIRECT;

/// The longest router lifetime, in seconds (RFC 8319).
const ROUTER_LIFETIME: u16 = 65535;
/// The length of prefix with which stations configure themselves (RFC 4862, RFC 7421).
const SLAAC_PREFIX_LEN: u8 = 64;
/// Least MTU of an IPv6 link (RFC 8200).
const MIN_MTU: u16 = 1280;
/// Age of a router advertisement after which a station that solicits the gateway's address gets a
/// new one.
const REFRESH: Duration = Duration::from_secs(3600);

/// The protocol at the gateway.
pub(super) struct Ndp {
    v6: Option<Ipv6Gateway>,
    mtu: u16,
    search: Arc<[String]>,
    /// Valid and preferred lifetime of the prefix, in seconds; `None` for without end.
    lifetimes: Option<(u32, u32)>,
    /// When each port last got a router advertisement.
    advertised: BTreeMap<PortId, Instant>,
    pub(super) counters: NdpCounters,
}

impl Ndp {
    pub(super) fn new(cfg: &GatewayConfig, search: Arc<[String]>) -> Ndp {
        Ndp {
            v6: cfg.v6,
            mtu: cfg.mtu,
            search,
            lifetimes: cfg.quirks.prefix_lifetimes,
            advertised: BTreeMap::new(),
            counters: NdpCounters::default(),
        }
    }

    pub(super) fn remove_port(&mut self, port: PortId) {
        self.advertised.remove(&port);
    }

    /// Takes in a message of one of the [`TYPES`].
    pub(super) fn handle_packet(
        &mut self,
        packet: &Packet<'_>,
        endpoint: &mut Endpoint,
        stations: &impl Stations,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let Packet { frame, ip, .. } = packet;
        let IpAddr::V6(src) = ip.src else {
            return Err(DropReason::BadIcmp);
        };
        if ip.hop_limit != ndp::HOP_LIMIT {
            return Err(DropReason::BadIcmp);
        }
        match NdpMessage::read(frame.l4(ip))? {
            NdpMessage::RouterSolicitation { source } => {
                check_claim(packet, src, source, endpoint, stations)?;
                self.advertise_router(packet, src, endpoint, io)
            }
            NdpMessage::NeighbourSolicitation { target, source } => {
                check_claim(packet, src, source, endpoint, stations)?;
                let from = (packet.now, packet.ingress);
                let at = IpAddr::V6(target);
                if !endpoint.addresses.owns_unicast(at)
                    && (src.is_unspecified()
                        || !endpoint.answers_for(from, at, IpAddr::V6(src), stations))
                {
                    return Ok(());
                }
                self.advertise_neighbour(packet, src, target, endpoint, io)?;
                let last = self.advertised.get(&packet.ingress);
                if !src.is_unspecified() && last.is_some_and(|&t| packet.now - t > REFRESH) {
                    self.advertise_router(packet, src, endpoint, io)?;
                }
                Ok(())
            }
            NdpMessage::NeighbourAdvertisement {
                target,
                solicited,
                mac,
            } => {
                let to_group = matches!(ip.dst, IpAddr::V6(a) if a.is_multicast());
                if to_group && solicited {
                    return Err(DropReason::BadIcmp);
                }
                let mac = mac.or(Some(frame.src));
                check_claim(packet, target, mac, endpoint, stations)
            }
            NdpMessage::RouterAdvertisement | NdpMessage::Redirect => Err(DropReason::RogueService),
        }
    }

    /// Solicits the MAC address of `ip` on `port`.
    pub(super) fn solicit(
        &mut self,
        port: PortId,
        ip: Ipv6Addr,
        endpoint: &mut Endpoint,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        if self.v6.is_none() {
            return Err(DropReason::FamilyDisabled);
        }
        let solicitation = NeighbourSolicitation {
            target: ip,
            source: endpoint.emitter.mac,
        };
        let rest = solicitation.write();
        let message = IcmpMessage::ndp(v6::NEIGHBOUR_SOLICITATION, &rest);
        let group = solicited_node(ip);
        let ends = (endpoint.addresses.link_local, group);
        emit(endpoint, io, (port, group_mac(group)), ends, &message)?;
        self.counters.solicitations += 1;
        Ok(())
    }

    /// Sends `to`, the sender of `packet`, a neighbour advertisement for the gateway's `target`.
    fn advertise_neighbour(
        &mut self,
        packet: &Packet<'_>,
        to: Ipv6Addr,
        target: Ipv6Addr,
        endpoint: &mut Endpoint,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let advertisement = NeighbourAdvertisement {
            target,
            solicited: !to.is_unspecified(),
            mac: endpoint.emitter.mac,
        };
        let rest = advertisement.write();
        let message = IcmpMessage::ndp(v6::NEIGHBOUR_ADVERTISEMENT, &rest);
        let station = (packet.ingress, packet.frame.src);
        emit(endpoint, io, station, (target, or_all(to)), &message)?;
        self.counters.advertisements += 1;
        Ok(())
    }

    /// Sends `to`, the sender of `packet`, a router advertisement.
    fn advertise_router(
        &mut self,
        packet: &Packet<'_>,
        to: Ipv6Addr,
        endpoint: &mut Endpoint,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let station = (packet.ingress, packet.frame.src);
        self.advertised.insert(packet.ingress, packet.now);
        self.emit_router_advertisement(station, or_all(to), endpoint, io)
    }

    fn emit_router_advertisement(
        &mut self,
        (port, mac): (PortId, MacAddr),
        to: Ipv6Addr,
        endpoint: &mut Endpoint,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let rest = self.router_advertisement(port, endpoint)?.write();
        let message = IcmpMessage::ndp(v6::ROUTER_ADVERTISEMENT, &rest);
        let ends = (endpoint.addresses.link_local, to);
        emit(endpoint, io, (port, mac), ends, &message)?;
        self.counters.router_advertisements += 1;
        Ok(())
    }

    /// When the next advertisement is due that is not asked for.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.lifetimes?;
        self.advertised.values().min().map(|&last| last + REFRESH)
    }

    /// Repeats the advertisements that are due.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        endpoint: &mut Endpoint,
        io: &mut Io<'_, impl Env>,
    ) {
        while self.poll_timeout().is_some_and(|due| due <= now) {
            let oldest = self.advertised.iter().min_by_key(|(_, last)| **last);
            let Some(port) = oldest.map(|(&port, _)| port) else {
                return;
            };
            self.advertised.insert(port, now);
            let everyone = (port, group_mac(ALL_NODES));
            // A full port misses it as it would miss any frame; there is another one in an hour.
            let _ = self.emit_router_advertisement(everyone, ALL_NODES, endpoint, io);
        }
    }

    fn router_advertisement(
        &self,
        port: PortId,
        endpoint: &Endpoint,
    ) -> Result<RouterAdvertisement<'_>, DropReason> {
        let v6 = self.v6.ok_or(DropReason::FamilyDisabled)?;
        let lease = endpoint.leases.fixed(port);
        let route = v6.advertise_default_route;
        Ok(RouterAdvertisement {
            hop_limit: HOP_LIMIT,
            managed: lease.is_some_and(|l| l.v6.is_some()),
            lifetime: if route { ROUTER_LIFETIME } else { 0 },
            mac: endpoint.emitter.mac,
            mtu: Some(self.mtu).filter(|&mtu| mtu >= MIN_MTU),
            prefix: v6.prefix(),
            prefix_len: v6.prefix_len,
            autonomous: v6.prefix_len == SLAAC_PREFIX_LEN,
            prefix_lifetimes: self.lifetimes,
            default_route: route,
            dns: v6.dns,
            search: &self.search,
        })
    }
}

/// The destination of an answer to `station`: all nodes if it has no address yet. The frame goes to
/// its MAC address alone all the same (RFC 6085).
fn or_all(station: Ipv6Addr) -> Ipv6Addr {
    match station.is_unspecified() {
        true => ALL_NODES,
        false => station,
    }
}

/// Refuses what the message in `packet` must not claim: that `ip` is at `mac`, if it tells one.
fn check_claim(
    packet: &Packet<'_>,
    ip: Ipv6Addr,
    mac: Option<MacAddr>,
    endpoint: &Endpoint,
    stations: &impl Stations,
) -> Result<(), DropReason> {
    match mac {
        None => Ok(()),
        // A station that has no address yet cannot tell its link-layer address
        // (RFC 4861 sections 7.1.1 and 6.1.1).
        Some(_) if !is_station(IpAddr::V6(ip)) => Err(DropReason::BadIcmp),
        Some(mac) if mac != packet.frame.src => Err(DropReason::Spoofed),
        Some(_) => {
            let from = (packet.now, packet.ingress);
            match endpoint.may_claim(from, IpAddr::V6(ip), stations) {
                true => Ok(()),
                false => Err(DropReason::Spoofed),
            }
        }
    }
}

fn emit(
    endpoint: &mut Endpoint,
    io: &mut Io<'_, impl Env>,
    (port, mac): (PortId, MacAddr),
    (from, to): (Ipv6Addr, Ipv6Addr),
    message: &IcmpMessage<'_>,
) -> Result<(), DropReason> {
    let link = endpoint.emitter.link(port, mac);
    let ends = (IpAddr::V6(from), IpAddr::V6(to));
    endpoint
        .emitter
        .icmp(io, &link, ends, ndp::HOP_LIMIT, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::addresses::ALL_ROUTERS;
    use crate::gateway::testing::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr, NdiscRouterFlags,
        RawHardwareAddress,
    };

    const INFINITE: [u8; 4] = [0xff; 4];
    const NA_OVERRIDE: u8 = 0x20;
    const PREFIX_ON_LINK: u8 = 0x80;
    const UNSPECIFIED: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
    const B_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xb);

    fn solicitation(mac: MacAddr, src: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
        let body = [&target.octets(), options].concat();
        let ends = (src, solicited_node(target));
        icmp6(
            mac,
            ends,
            255,
            (v6::NEIGHBOUR_SOLICITATION, 0, [0; 4]),
            &body,
        )
    }

    fn advertisement(mac: MacAddr, target: Ipv6Addr) -> Vec<u8> {
        let body = [&target.octets()[..], &[2, 1], &mac.0].concat();
        let kind = (v6::NEIGHBOUR_ADVERTISEMENT, 0, [NA_OVERRIDE, 0, 0, 0]);
        icmp6(mac, (target, ALL_NODES), 255, kind, &body)
    }

    fn source_option(mac: MacAddr) -> Vec<u8> {
        [&[1, 1][..], &mac.0].concat()
    }

    /// Source, destination and message of a reply, as smoltcp reads it.
    fn read(frame: &[u8]) -> (Ipv6Addr, Ipv6Addr, NdiscRepr<'_>) {
        let ip = smoltcp::wire::Ipv6Packet::new_checked(&frame[14..]).unwrap();
        assert_eq!(ip.hop_limit(), 255);
        let (src, dst) = (ip.src_addr(), ip.dst_addr());
        let icmp = Icmpv6Packet::new_checked(&frame[54..]).unwrap();
        let caps = ChecksumCapabilities::default();
        match Icmpv6Repr::parse(&src, &dst, &icmp, &caps) {
            Ok(Icmpv6Repr::Ndisc(repr)) => (src, dst, repr),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn solicitations_for_our_addresses_are_answered() {
        let mut bench = Bench::new();
        for target in [GW6, DNS6, GW_LL] {
            let ns = solicitation(MAC_B, B_LL, target, &source_option(MAC_B));
            assert_eq!(bench.send(B, &ns), Ok(()));
            let reply = bench.reply(B);
            let want = NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::all(),
                target_addr: target,
                lladdr: Some(RawHardwareAddress::from_bytes(&GATEWAY.0)),
            };
            assert_eq!(read(&reply), (target, B_LL, want));
            assert_eq!(reply[..6], MAC_B.0);
        }
        let ns = solicitation(MAC_B, B_LL, A6, &source_option(MAC_B));
        // For another station's group, which the gateway does not listen to.
        assert_eq!(bench.send(B, &ns), Err(DropReason::NotServed));
        bench.assert_silent();
        assert_eq!(bench.gw.counters().ndp.advertisements, 3);
    }

    #[test]
    fn on_the_hosts_own_prefix_neighbours_are_here_and_duplicates_are_not() {
        let mut cfg = config();
        cfg.quirks.host_subnets = true;
        let mut bench = Bench::with(cfg);
        let neighbour = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x77);
        let ns = solicitation(MAC_B, B_LL, neighbour, &source_option(MAC_B));
        assert_eq!(bench.send(B, &ns), Ok(()));
        let reply = bench.reply(B);
        let (src, _, NdiscRepr::NeighborAdvert { target_addr, .. }) = read(&reply) else {
            panic!("no advertisement");
        };
        assert_eq!((src, target_addr), (neighbour, neighbour));
        for (src, target) in [(UNSPECIFIED, neighbour), (B_LL, B_LL)] {
            let ns = solicitation(MAC_B, src, target, &[]);
            assert_eq!(bench.send(B, &ns), Ok(()));
        }
        bench.assert_silent();
    }

    #[test]
    fn a_service_that_is_off_does_not_answer() {
        let mut cfg = config();
        cfg.quirks.off.router_advertisements = true;
        let mut bench = Bench::with(cfg);
        let rs = icmp6(MAC_B, (B_LL, ALL_ROUTERS), 255, (133, 0, [0; 4]), &[]);
        assert_eq!(bench.send(B, &rs), Err(DropReason::NotServed));
        let ns = solicitation(MAC_B, B_LL, GW6, &source_option(MAC_B));
        assert_eq!(bench.send(B, &ns), Ok(()));
        bench.reply(B);
    }

    #[test]
    fn duplicate_address_detection_finds_us() {
        let mut bench = Bench::new();
        let ns = solicitation(MAC_B, UNSPECIFIED, GW_LL, &[]);
        assert_eq!(bench.send(B, &ns), Ok(()));
        let reply = bench.reply(B);
        let (src, dst, repr) = read(&reply);
        assert_eq!((src, dst), (GW_LL, ALL_NODES));
        let NdiscRepr::NeighborAdvert { flags, .. } = repr else {
            panic!("{repr:?}");
        };
        assert!(!flags.contains(NdiscNeighborFlags::SOLICITED));
        let ns = solicitation(MAC_B, UNSPECIFIED, GW_LL, &source_option(MAC_B));
        assert_eq!(bench.send(B, &ns), Err(DropReason::BadIcmp));
    }

    #[test]
    fn a_prefix_that_has_lifetimes_is_advertised_again_before_they_end() {
        let mut cfg = config();
        cfg.quirks.prefix_lifetimes = Some((86_400, 14_400));
        let mut bench = Bench::with(cfg);
        assert_eq!(bench.gw.poll_timeout(), None);
        let rs = icmp6(MAC_B, (B_LL, ALL_ROUTERS), 255, (133, 0, [0; 4]), &[]);
        for _ in 0..3 {
            match bench.gw.poll_timeout() {
                None => bench.send(B, &rs).unwrap(),
                Some(due) => {
                    assert_eq!(due, bench.now + REFRESH);
                    bench.advance(REFRESH);
                }
            }
            let reply = bench.reply(B);
            let (_, _, NdiscRepr::RouterAdvert { prefix_info, .. }) = read(&reply) else {
                panic!("no advertisement");
            };
            let prefix = prefix_info.unwrap();
            let lifetimes = (
                prefix.valid_lifetime.secs(),
                prefix.preferred_lifetime.secs(),
            );
            assert_eq!(lifetimes, (86_400, 14_400));
        }
        bench.gw.remove_port(B);
        assert_eq!(bench.gw.poll_timeout(), None);
    }

    #[test]
    fn a_router_solicitation_brings_everything_a_station_needs() {
        let mut bench = Bench::new();
        let rs = |mac, src| icmp6(mac, (src, ALL_ROUTERS), 255, (133, 0, [0; 4]), &[]);
        assert_eq!(bench.send(A, &rs(MAC_A, A_LL)), Ok(()));
        let reply = bench.reply(A);
        let (src, dst, repr) = read(&reply);
        assert_eq!((src, dst), (GW_LL, A_LL));
        let NdiscRepr::RouterAdvert {
            flags,
            router_lifetime,
            lladdr,
            mtu,
            prefix_info,
            ..
        } = repr
        else {
            panic!("{repr:?}");
        };
        assert_eq!(flags, NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER);
        assert_eq!(router_lifetime.secs(), 65535);
        assert_eq!(lladdr, Some(RawHardwareAddress::from_bytes(&GATEWAY.0)));
        assert_eq!(mtu, Some(1500));
        let prefix = prefix_info.unwrap();
        assert_eq!((prefix.prefix_len, prefix.flags.bits()), (64, 0xc0));
        assert_eq!(prefix.prefix, Ipv6Addr::from(0xfd00_u128 << 112));
        // Behind those: route, DNS server and search list.
        let mut rest = vec![24, 1, 0, 0, 0xff, 0xff, 0xff, 0xff, 25, 3, 0, 0];
        rest.extend(INFINITE);
        rest.extend(DNS6.octets());
        rest.extend([31, 4, 0, 0]);
        rest.extend(INFINITE);
        rest.extend(b"\x03net\x07example\x00\x07example\x00\x00\x00");
        assert!(reply.ends_with(&rest));

        assert_eq!(bench.send(B, &rs(MAC_B, UNSPECIFIED)), Ok(()));
        let reply = bench.reply(B);
        let (_, dst, repr) = read(&reply);
        assert_eq!((dst, &reply[..6]), (ALL_NODES, &MAC_B.0[..]));
        let NdiscRepr::RouterAdvert { flags, .. } = repr else {
            panic!("{repr:?}");
        };
        assert_eq!(flags, NdiscRouterFlags::OTHER);
        assert_eq!(bench.gw.counters().ndp.router_advertisements, 2);
    }

    #[test]
    fn without_a_default_route_we_are_no_router() {
        let mut cfg = config();
        if let Some(v6) = &mut cfg.v6 {
            v6.advertise_default_route = false;
            v6.prefix_len = 80;
        }
        cfg.search.clear();
        let mut bench = Bench::with(cfg);
        let rs = icmp6(MAC_A, (A_LL, ALL_ROUTERS), 255, (133, 0, [0; 4]), &[]);
        assert_eq!(bench.send(A, &rs), Ok(()));
        let reply = bench.reply(A);
        let NdiscRepr::RouterAdvert {
            router_lifetime,
            prefix_info,
            ..
        } = read(&reply).2
        else {
            panic!("no router advertisement");
        };
        assert_eq!(router_lifetime.secs(), 0);
        // No station can form its own address in such a prefix.
        assert_eq!(prefix_info.unwrap().flags.bits(), PREFIX_ON_LINK);
        assert!(reply.ends_with(&DNS6.octets()));
    }

    #[test]
    fn an_old_advertisement_is_renewed_when_the_station_asks_for_us() {
        let mut bench = Bench::new();
        let rs = icmp6(MAC_A, (A_LL, ALL_ROUTERS), 255, (133, 0, [0; 4]), &[]);
        let ns = solicitation(MAC_A, A_LL, GW_LL, &source_option(MAC_A));
        bench.send(A, &rs).unwrap();
        bench.reply(A);
        bench.advance(REFRESH);
        bench.send(A, &ns).unwrap();
        bench.reply(A);
        bench.advance(Duration::from_secs(1));
        bench.send(A, &ns).unwrap();
        assert_eq!(bench.wire.0.len(), 2);
        assert_eq!(bench.wire.0[1].1[54], v6::ROUTER_ADVERTISEMENT);
        bench.wire.0.clear();
        bench.send(A, &ns).unwrap();
        bench.reply(A);
    }

    #[test]
    fn what_is_the_gateways_or_another_ports_is_not_to_be_advertised() {
        let mut bench = Bench::new();
        assert_eq!(bench.send(B, &advertisement(MAC_B, B6)), Ok(()));
        for target in [GW_LL, A6] {
            let body = [&target.octets()[..], &[2, 1], &MAC_B.0].concat();
            let kind = (v6::NEIGHBOUR_ADVERTISEMENT, 0, [NA_OVERRIDE, 0, 0, 0]);
            let claim = icmp6(MAC_B, (B6, ALL_NODES), 255, kind, &body);
            assert_eq!(bench.send(B, &claim), Err(DropReason::Spoofed));
        }
        let claim = advertisement(MAC_A, B6);
        assert_eq!(bench.send(A, &claim), Err(DropReason::Spoofed));
        // A link-layer address that is not the sender's.
        let ns = solicitation(MAC_B, B6, GW6, &source_option(MAC_A));
        assert_eq!(bench.send(B, &ns), Err(DropReason::Spoofed));
        bench.assert_silent();
    }

    #[test]
    fn cve_2020_13401_and_10749_router_messages_of_a_container_are_refused() {
        let mut bench = Bench::new();
        for kind in [v6::ROUTER_ADVERTISEMENT, v6::REDIRECT] {
            let frame = icmp6(MAC_A, (A_LL, ALL_NODES), 255, (kind, 0, [0; 4]), &[0; 32]);
            assert_eq!(bench.send(A, &frame), Err(DropReason::RogueService));
        }
        bench.assert_silent();
    }

    #[test]
    fn messages_from_off_the_link_or_with_bad_options_are_dropped() {
        let mut bench = Bench::new();
        let whole = [&GW6.octets()[..], &source_option(MAC_A)].concat();
        let ns = |hop_limit, code, body: &[u8]| {
            icmp6(MAC_A, (A_LL, GW6), hop_limit, (135, code, [0; 4]), body)
        };
        assert_eq!(bench.send(A, &ns(255, 0, &whole)), Ok(()));
        bench.reply(A);
        let mut zero = whole.clone();
        zero[17] = 0;
        let mut past = whole.clone();
        past[17] = 2;
        let mut odd = whole.clone();
        odd.push(14);
        let mut double = whole.clone();
        double[17] = 2;
        double.extend([0; 8]);
        let group = [&ALL_NODES.octets()[..], &source_option(MAC_A)].concat();
        let bad = [
            ns(254, 0, &whole),
            ns(255, 1, &whole),
            ns(255, 0, &zero),
            ns(255, 0, &past),
            ns(255, 0, &odd),
            ns(255, 0, &double),
            ns(255, 0, &group),
            ns(255, 0, &whole[..15]),
            ns(255, 0, &[]),
        ];
        for (i, frame) in bad.iter().enumerate() {
            assert_eq!(bench.send(A, frame), Err(DropReason::BadIcmp), "{i}");
        }
        bench.assert_silent();
    }
}
