//! A DHCPv4 server (RFC 2131, RFC 2132) for the ports of this gateway.
//!
//! # Theory of operation
//!
//! A port has one lease ([`super::lease`]). The server offers and confirms that address. A client
//! without a fixed lease may ask for a free address of the range instead (RFC 2131 sections 3.5 and
//! 4.3.1); a request for any other address is refused. An offer reserves the address at once, so nothing has to time out,
//! and a lease ends with its port. Relays are not served. The answer goes to the MAC address the
//! request came from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use cnet_wire::dhcp::v4::{
    CLIENT_PORT, Configuration, MessageType, Options, Reply, Request, SERVER_PORT,
};
use cnet_wire::{DropReason, MacAddr, PortId};

use super::counters::Dhcpv4Counters;
use super::{Endpoint, GatewayConfig, Ipv4Gateway, Packet};
use crate::io::{Env, Io};
use cnet_wire::stations::Stations;

/// Seconds a lease runs; renewals are always granted.
pub(super) const LEASE_SECONDS: u32 = 86_400;

/// The server.
pub(super) struct Dhcpv4 {
    v4: Option<Ipv4Gateway>,
    mtu: u16,
    search: Arc<[String]>,
    pub(super) counters: Dhcpv4Counters,
}

/// The server's decision on a request.
enum Outcome {
    /// An answer of this type, with an address unless that is unspecified.
    Answer(MessageType, Ipv4Addr),
    /// No answer.
    Silence,
}

impl Dhcpv4 {
    pub(super) fn new(cfg: &GatewayConfig, search: Arc<[String]>) -> Dhcpv4 {
        Dhcpv4 {
            v4: cfg.v4,
            mtu: cfg.mtu,
            search,
            counters: Dhcpv4Counters::default(),
        }
    }

    /// Takes in the client's `message` in `packet`.
    pub(super) fn handle_message(
        &mut self,
        packet: &Packet<'_>,
        message: &[u8],
        endpoint: &mut Endpoint,
        stations: &impl Stations,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let v4 = self.v4.ok_or(DropReason::FamilyDisabled)?;
        let request = Request::read(message)?;
        if !request.giaddr.is_unspecified() {
            return Err(DropReason::NotServed);
        }
        let asked = request.options()?;
        let (kind, yiaddr) = match decide(packet, v4, &request, &asked, endpoint, stations)? {
            Outcome::Answer(kind, yiaddr) => (kind, yiaddr),
            Outcome::Silence => return Ok(()),
        };
        let granted = kind != MessageType::Nak;
        let reply = Reply {
            kind,
            yiaddr,
            server: v4.address,
            lease_time: (!yiaddr.is_unspecified()).then_some(LEASE_SECONDS),
            configuration: granted.then(|| self.configuration(v4, packet.ingress, endpoint)),
        };
        let message = reply.write(&request, &asked);
        let (to, to_mac) = destination(&request, &reply, packet.frame.src);
        let link = endpoint.emitter.link(packet.ingress, to_mac);
        let from = SocketAddr::from((v4.address, SERVER_PORT));
        let to = SocketAddr::from((to, CLIENT_PORT));
        endpoint.emitter.udp(io, &link, (from, to), &message)?;
        self.counters.replies += 1;
        Ok(())
    }

    /// The client's configuration.
    fn configuration<'a>(
        &'a self,
        v4: Ipv4Gateway,
        port: PortId,
        endpoint: &'a Endpoint,
    ) -> Configuration<'a> {
        let lease = endpoint.leases.fixed(port);
        Configuration {
            mask: v4.mask(),
            router: v4.address,
            dns: v4.dns,
            mtu: self.mtu,
            broadcast: v4.broadcast(),
            host_name: lease.and_then(|l| l.hostname.as_deref()),
            search: &self.search,
        }
    }
}

/// Decides on `request`, whose options are `asked`, and gives or takes back the lease.
fn decide(
    packet: &Packet<'_>,
    v4: Ipv4Gateway,
    request: &Request<'_>,
    asked: &Options<'_>,
    endpoint: &mut Endpoint,
    stations: &impl Stations,
) -> Result<Outcome, DropReason> {
    let (port, mac) = (packet.ingress, packet.frame.src);
    let lease = |endpoint: &mut Endpoint| {
        // An address of the range may be leased to another port, beside what DHCP tells that one.
        let is_free = |a| v4.is_host(a) && stations.grant(IpAddr::V4(a), port, None).is_ok();
        let moved = asked
            .requested
            .and_then(|wanted| endpoint.leases.move_to(port, wanted, is_free));
        if let Some(given_back) = moved {
            stations.take_back(IpAddr::V4(given_back), port);
        }
        let lease = endpoint.leases.v4(port, is_free);
        lease.ok_or(DropReason::NotServed)
    };
    let give_back = |endpoint: &mut Endpoint, declined| {
        if let Some(address) = endpoint.leases.release(port, declined) {
            stations.take_back(IpAddr::V4(address), port);
        }
    };
    let none = Ipv4Addr::UNSPECIFIED;
    match asked.kind.ok_or(DropReason::BadDhcp)? {
        MessageType::Discover => Ok(Outcome::Answer(MessageType::Offer, lease(endpoint)?)),
        MessageType::Request if asked.server.is_some_and(|s| s != v4.address) => {
            // The client took another server's offer.
            give_back(endpoint, false);
            Ok(Outcome::Silence)
        }
        MessageType::Request => {
            let lease = lease(endpoint)?;
            // In a renewal the address is the client's own (RFC 2131 section 4.3.2).
            if asked.requested.unwrap_or(request.ciaddr) != lease {
                return Ok(Outcome::Answer(MessageType::Nak, none));
            }
            // A lease that the port came with is its own already; its station's MAC address is told.
            let _ = stations.grant(IpAddr::V4(lease), port, Some(mac));
            Ok(Outcome::Answer(MessageType::Ack, lease))
        }
        MessageType::Inform => {
            if packet.ip.src != IpAddr::V4(request.ciaddr) || !v4.is_host(request.ciaddr) {
                return Err(DropReason::BadDhcp);
            }
            Ok(Outcome::Answer(MessageType::Ack, none))
        }
        kind @ (MessageType::Release | MessageType::Decline) => {
            if asked.server == Some(v4.address) {
                let declined = kind == MessageType::Decline;
                give_back(endpoint, declined);
            }
            Ok(Outcome::Silence)
        }
        MessageType::Offer | MessageType::Ack | MessageType::Nak => Err(DropReason::BadDhcp),
    }
}

/// The destination of `reply` to a request from `mac` (RFC 2131 section 4.1).
fn destination(request: &Request<'_>, reply: &Reply<'_>, mac: MacAddr) -> (Ipv4Addr, MacAddr) {
    let everyone = (Ipv4Addr::BROADCAST, MacAddr::BROADCAST);
    if reply.kind == MessageType::Nak {
        everyone
    } else if !request.ciaddr.is_unspecified() {
        (request.ciaddr, mac)
    } else if request.wants_broadcast() || reply.yiaddr.is_unspecified() {
        everyone
    } else {
        (reply.yiaddr, mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Lease;
    use crate::gateway::testing::*;
    use cnet_wire::stations::Location;
    use cnet_wire::time::Duration;
    use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
    use dhcproto::{Decodable, Decoder};
    use smoltcp::socket::dhcpv4::{Event, Socket};

    /// Message types (RFC 2132 section 9.6).
    const DISCOVER: u8 = 1;
    const OFFER: u8 = 2;
    const REQUEST: u8 = 3;
    const DECLINE: u8 = 4;
    const RELEASE: u8 = 7;
    const INFORM: u8 = 8;
    /// Bytes before the options, and least and greatest length of an answer.
    const HEADER_LEN: usize = 240;
    const MIN_LEN: usize = 300;
    const MAX_LEN: usize = 548;
    const UNSPECIFIED: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    /// A client's message with the options given.
    fn message(ciaddr: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut m = vec![0; HEADER_LEN];
        m[..3].copy_from_slice(&[1, 1, 6]);
        m[4..8].copy_from_slice(&[1, 2, 3, 4]);
        m[12..16].copy_from_slice(&ciaddr.octets());
        m[28..34].copy_from_slice(&MAC_B.0);
        m[236..].copy_from_slice(&[99, 130, 83, 99]);
        for (code, value) in options {
            m.extend([*code, value.len() as u8]);
            m.extend(*value);
        }
        m.push(255);
        m
    }

    fn send(bench: &mut Bench, port: PortId, mac: MacAddr, m: &[u8]) -> Result<(), DropReason> {
        let ciaddr = <[u8; 4]>::try_from(&m[12..16]).unwrap();
        let (src, dst) = match Ipv4Addr::from(ciaddr) {
            UNSPECIFIED => (UNSPECIFIED, Ipv4Addr::BROADCAST),
            ciaddr => (ciaddr, GW4),
        };
        let from = SocketAddr::from((src, CLIENT_PORT));
        let to = SocketAddr::from((dst, SERVER_PORT));
        bench.send(port, &udp(mac, from, to, m))
    }

    /// The answer on `port` and where it was sent, as dhcproto reads it.
    fn read(bench: &mut Bench, port: PortId) -> (MacAddr, Ipv4Addr, Message) {
        let frame = bench.reply(port);
        assert!(checksum_ok(&frame));
        assert_eq!(frame[26..30], GW4.octets());
        assert_eq!(frame[34..38], [0, 67, 0, 68]);
        assert!(frame.len() >= 42 + MIN_LEN && frame.len() <= 42 + MAX_LEN);
        let mac = MacAddr(frame[..6].try_into().unwrap());
        let dst: [u8; 4] = frame[30..34].try_into().unwrap();
        let m = Message::decode(&mut Decoder::new(&frame[42..])).unwrap();
        assert_eq!(m.xid(), 0x01020304);
        (mac, dst.into(), m)
    }

    fn kind(m: &Message) -> MessageType {
        m.opts().msg_type().unwrap()
    }

    #[test]
    fn an_offer_says_all_about_the_network() {
        let mut bench = Bench::new();
        let discover = message(UNSPECIFIED, &[(53, &[DISCOVER]), (61, b"\x01id")]);
        assert_eq!(send(&mut bench, A, MAC_A, &discover), Ok(()));
        let (mac, dst, m) = read(&mut bench, A);
        assert_eq!((mac, dst, m.yiaddr()), (MAC_A, A4, A4));
        assert_eq!(kind(&m), MessageType::Offer);
        let names = ["net.example.", "example."];
        let want = [
            DhcpOption::ServerIdentifier(GW4),
            DhcpOption::ClientIdentifier(b"\x01id".to_vec()),
            DhcpOption::AddressLeaseTime(LEASE_SECONDS),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            DhcpOption::Router(vec![GW4]),
            DhcpOption::DomainNameServer(vec![DNS4]),
            DhcpOption::InterfaceMtu(1500),
            DhcpOption::BroadcastAddr(Ipv4Addr::new(10, 0, 2, 255)),
            DhcpOption::Hostname("box".into()),
            DhcpOption::DomainName("net.example".into()),
        ];
        for option in want {
            let code = OptionCode::from(&option);
            assert_eq!(m.opts().get(code), Some(&option));
        }
        let Some(DhcpOption::DomainSearch(search)) = m.opts().get(OptionCode::DomainSearch) else {
            panic!("no search list");
        };
        let search: Vec<_> = search.iter().map(ToString::to_string).collect();
        assert_eq!(search, names);
        assert_eq!(bench.gw.counters().dhcpv4.replies, 1);
    }

    #[test]
    fn requests_in_every_state_get_the_lease_or_a_refusal() {
        let mut bench = Bench::new();
        let other = Ipv4Addr::new(10, 0, 2, 16);
        let elsewhere = Ipv4Addr::new(192, 168, 1, 5);
        let cases: [(Ipv4Addr, Option<Ipv4Addr>, bool, Option<Ipv4Addr>); 9] = [
            // ciaddr, requested address, names us as server; granted
            (UNSPECIFIED, Some(FIRST), true, Some(FIRST)),
            (UNSPECIFIED, Some(FIRST), false, Some(FIRST)),
            (FIRST, None, false, Some(FIRST)),
            (other, None, false, None),
            // A free one of the range, in place of the first.
            (UNSPECIFIED, Some(other), true, Some(other)),
            (UNSPECIFIED, Some(elsewhere), false, None),
            (UNSPECIFIED, Some(A4), false, None),
            (FIRST, None, false, None),
            (UNSPECIFIED, None, true, None),
        ];
        for (i, (ciaddr, requested, named, granted)) in cases.into_iter().enumerate() {
            let requested = requested.map(|a| a.octets());
            let mut options: Vec<(u8, &[u8])> = vec![(53, &[REQUEST])];
            if let Some(a) = &requested {
                options.push((50, a));
            }
            let us = GW4.octets();
            if named {
                options.push((54, &us));
            }
            let m = message(ciaddr, &options);
            assert_eq!(send(&mut bench, B, MAC_B, &m), Ok(()), "case {i}");
            let (mac, dst, m) = read(&mut bench, B);
            if let Some(lease) = granted {
                assert_eq!(kind(&m), MessageType::Ack, "case {i}");
                assert_eq!((mac, dst, m.yiaddr()), (MAC_B, lease, lease), "case {i}");
            } else {
                assert_eq!(kind(&m), MessageType::Nak, "case {i}");
                assert_eq!(m.yiaddr(), UNSPECIFIED);
                let all = (MacAddr::BROADCAST, Ipv4Addr::BROADCAST);
                assert_eq!((mac, dst), all, "case {i}");
            }
        }
        let granted = Location {
            port: B,
            mac: Some(MAC_B),
        };
        assert_eq!(bench.locate(other), Some(granted));
    }

    #[test]
    fn starvation_one_lease_a_port() {
        let mut bench = Bench::new();
        for i in 0..200u8 {
            let mac = MacAddr([2, 0, 0, 0, 1, i]);
            let mut discover = message(UNSPECIFIED, &[(53, &[DISCOVER]), (61, &[i; 7])]);
            discover[28..34].copy_from_slice(&mac.0);
            send(&mut bench, B, mac, &discover).unwrap();
            assert_eq!(read(&mut bench, B).2.yiaddr(), FIRST);
        }
        // Nor can the range be drained by claims that are not leases.
        for i in 15..=30u8 {
            let address = Ipv4Addr::new(10, 0, 2, i);
            bench.stations.learn(address.into(), A, MAC_A);
        }
        bench.stations.ports.insert(PortId(3));
        let discover = message(UNSPECIFIED, &[(53, &[DISCOVER])]);
        send(&mut bench, PortId(3), MAC_B, &discover).unwrap();
        let second = Ipv4Addr::new(10, 0, 2, 16);
        assert_eq!(read(&mut bench, PortId(3)).2.yiaddr(), second);
        // Offered only: nothing says yet which MAC address is to use it.
        let offered = Location {
            port: PortId(3),
            mac: None,
        };
        assert_eq!(bench.locate(second), Some(offered));
    }

    #[test]
    fn a_range_that_is_used_up_is_not_served() {
        let mut cfg = config();
        cfg.dhcp_range = None;
        let mut bench = Bench::with(cfg);
        for kind in [DISCOVER, REQUEST] {
            let m = message(UNSPECIFIED, &[(53, &[kind])]);
            assert_eq!(send(&mut bench, B, MAC_B, &m), Err(DropReason::NotServed));
        }
        bench.assert_silent();
    }

    #[test]
    fn release_decline_and_another_server() {
        let mut bench = Bench::new();
        let us = GW4.octets();
        let discover = message(UNSPECIFIED, &[(53, &[DISCOVER])]);
        let offered = |bench: &mut Bench, port| {
            send(bench, port, MAC_B, &discover).unwrap();
            read(bench, port).2.yiaddr()
        };
        assert_eq!(offered(&mut bench, B), FIRST);
        let decline = message(
            UNSPECIFIED,
            &[(53, &[DECLINE]), (50, &FIRST.octets()), (54, &us)],
        );
        assert_eq!(send(&mut bench, B, MAC_B, &decline), Ok(()));
        let second = Ipv4Addr::new(10, 0, 2, 16);
        assert_eq!(offered(&mut bench, B), second);
        let other = [10, 0, 2, 9];
        let request = message(UNSPECIFIED, &[(53, &[REQUEST]), (54, &other)]);
        assert_eq!(send(&mut bench, B, MAC_B, &request), Ok(()));
        let release = message(second, &[(53, &[RELEASE]), (54, &us)]);
        assert_eq!(send(&mut bench, B, MAC_B, &release), Ok(()));
        bench.assert_silent();
        assert_eq!(offered(&mut bench, A), A4);
        bench.replace_port(A);
        assert_eq!(offered(&mut bench, A), FIRST);
    }

    #[test]
    fn an_inform_gets_options_but_no_lease() {
        let mut bench = Bench::new();
        let inform = message(B4, &[(53, &[INFORM])]);
        assert_eq!(send(&mut bench, B, MAC_B, &inform), Ok(()));
        let (mac, dst, m) = read(&mut bench, B);
        assert_eq!((kind(&m), mac, dst), (MessageType::Ack, MAC_B, B4));
        assert_eq!(m.yiaddr(), UNSPECIFIED);
        assert_eq!(m.opts().get(OptionCode::AddressLeaseTime), None);
        assert!(m.opts().get(OptionCode::Router).is_some());
        let inform = message(UNSPECIFIED, &[(53, &[INFORM])]);
        assert_eq!(
            send(&mut bench, B, MAC_B, &inform),
            Err(DropReason::BadDhcp)
        );
    }

    #[test]
    fn a_client_that_cannot_take_unicast_gets_a_broadcast() {
        let mut bench = Bench::new();
        let mut discover = message(UNSPECIFIED, &[(53, &[DISCOVER])]);
        discover[10] = 0x80;
        send(&mut bench, B, MAC_B, &discover).unwrap();
        let (mac, dst, m) = read(&mut bench, B);
        assert_eq!((mac, dst), (MacAddr::BROADCAST, Ipv4Addr::BROADCAST));
        assert_eq!(m.yiaddr(), FIRST);
    }

    #[test]
    fn cve_2021_3592_to_3595_short_bootp_and_options_past_the_end_are_dropped() {
        let mut bench = Bench::new();
        let whole = message(UNSPECIFIED, &[(53, &[DISCOVER]), (61, &[7; 20])]);
        for len in 16..HEADER_LEN {
            let sent = send(&mut bench, B, MAC_B, &whole[..len]);
            assert_eq!(sent, Err(DropReason::BadDhcp), "{len}");
        }
        // Inside an option; at its ends nothing runs past anything.
        for len in (241..243).chain(244..265) {
            let sent = send(&mut bench, B, MAC_B, &whole[..len]);
            assert_eq!(sent, Err(DropReason::BadDhcp), "{len}");
        }
        let bad: [&[(u8, &[u8])]; 6] = [
            &[],
            &[(53, &[])],
            &[(53, &[1, 1])],
            &[(53, &[REQUEST]), (50, &[10, 0, 2])],
            &[(53, &[REQUEST]), (54, &[10, 0, 2, 2, 0])],
            &[(53, &[OFFER])],
        ];
        for options in bad {
            let sent = send(&mut bench, B, MAC_B, &message(UNSPECIFIED, options));
            assert_eq!(sent, Err(DropReason::BadDhcp), "{options:?}");
        }
        for (at, value) in [(0, 2), (1, 6), (2, 16), (236, 0)] {
            let mut m = whole.clone();
            m[at] = value;
            assert_eq!(send(&mut bench, B, MAC_B, &m), Err(DropReason::BadDhcp));
        }
        let mut relayed = whole.clone();
        relayed[24] = 10;
        let sent = send(&mut bench, B, MAC_B, &relayed);
        assert_eq!(sent, Err(DropReason::NotServed));
        bench.assert_silent();
        assert_eq!(bench.gw.counters().dhcpv4.replies, 0);
    }

    #[test]
    fn options_that_do_not_fit_are_left_out() {
        let mut cfg = config();
        cfg.search = (0..100).map(|i| format!("domain{i}.example")).collect();
        let mut bench = Bench::with(cfg);
        bench.gw.add_lease(Lease {
            hostname: Some("h".repeat(200)),
            ..lease()
        });
        let discover = message(UNSPECIFIED, &[(53, &[DISCOVER]), (61, &[7; 200])]);
        send(&mut bench, A, MAC_A, &discover).unwrap();
        let (_, _, m) = read(&mut bench, A);
        assert!(m.opts().get(OptionCode::Router).is_some());
    }

    #[test]
    fn a_client_of_another_make_gets_and_keeps_its_lease() {
        let mut bench = Bench::new();
        let mut station = Station::new(B, MAC_B, &[]);
        let handle = station.sockets.add(Socket::new());
        for second in 0..200_000 {
            station.talk(&mut bench);
            match station.sockets.get_mut::<Socket>(handle).poll() {
                Some(Event::Configured(c)) => {
                    assert_eq!((c.address.address(), c.address.prefix_len()), (FIRST, 24));
                    assert_eq!(c.router, Some(GW4));
                    assert_eq!(c.dns_servers[..], [DNS4]);
                    station.iface.update_ip_addrs(|a| {
                        a.clear();
                        let _ = a.push(smoltcp::wire::IpCidr::Ipv4(c.address));
                    });
                }
                Some(Event::Deconfigured) => assert_eq!(second, 0, "the lease was lost"),
                None => {}
            }
            if bench.gw.counters().dhcpv4.replies >= 4 {
                return;
            }
            bench.advance(Duration::from_secs(10));
        }
        panic!("the client got no lease or did not renew it");
    }
}
