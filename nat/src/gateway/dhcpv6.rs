//! A DHCPv6 server (RFC 8415) for the ports of this gateway.
//!
//! # Theory of operation
//!
//! A port with an IPv6 lease gets that address, in the first IA_NA of its request. A port without a
//! lease gets the status that there is no address, and configures itself from the router
//! advertisement. Every client gets the DNS server and the search list (RFC 3646). The server keeps
//! no state: a lease is part of the configuration, so renewals are always granted and releases only
//! acknowledged. Prefixes and temporary addresses are not given.
//!
//! Messages without the identifiers that their kind must have are dropped (RFC 8415 section 16),
//! and so are those not sent to the servers' group.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use cnet_wire::DropReason;
use cnet_wire::dhcp::v6::{
    Association, AssociationReply, CLIENT_PORT, MessageType, Reply, Request, SERVER_PORT, Status,
    duid_ll,
};

use super::counters::Dhcpv6Counters;
use super::dhcpv4::LEASE_SECONDS;
use super::{Endpoint, GatewayConfig, Ipv6Gateway, Packet};
use crate::io::{Env, Io};

/// The server.
pub(super) struct Dhcpv6 {
    v6: Option<Ipv6Gateway>,
    /// The server's identifier.
    duid: [u8; 10],
    search: Arc<[String]>,
    pub(super) counters: Dhcpv6Counters,
}

impl Dhcpv6 {
    pub(super) fn new(cfg: &GatewayConfig, search: Arc<[String]>) -> Dhcpv6 {
        Dhcpv6 {
            v6: cfg.v6,
            duid: duid_ll(cfg.mac),
            search,
            counters: Dhcpv6Counters::default(),
        }
    }

    /// Takes in the client's `message` in `packet`.
    pub(super) fn handle_message(
        &mut self,
        packet: &Packet<'_>,
        message: &[u8],
        endpoint: &mut Endpoint,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let IpAddr::V6(client) = packet.ip.src else {
            return Err(DropReason::BadDhcp);
        };
        // Clients speak from the link itself (RFC 8415 section 13).
        if !client.is_unicast_link_local() {
            return Err(DropReason::MartianSource);
        }
        let request = Request::read(message)?;
        if !is_identified(&request, &self.duid) {
            return Err(DropReason::BadDhcp);
        }
        let (port, mac) = (packet.ingress, packet.frame.src);
        let lease = endpoint.leases.fixed(port);
        let reply = self.reply(&request, lease.and_then(|l| l.v6))?.write();
        let link = endpoint.emitter.link(port, mac);
        let from = SocketAddr::from((endpoint.addresses.link_local, SERVER_PORT));
        let to = SocketAddr::from((client, CLIENT_PORT));
        endpoint.emitter.udp(io, &link, (from, to), &reply)?;
        self.counters.replies += 1;
        Ok(())
    }

    /// The answer to `request` from a station whose address is `lease`.
    fn reply<'a>(
        &'a self,
        request: &Request<'a>,
        mut lease: Option<Ipv6Addr>,
    ) -> Result<Reply<'a>, DropReason> {
        let v6 = self.v6.ok_or(DropReason::FamilyDisabled)?;
        let solicited = request.kind == MessageType::Solicit;
        let mut reply = Reply {
            kind: if solicited && !request.rapid_commit {
                MessageType::Advertise
            } else {
                MessageType::Reply
            },
            transaction: request.transaction,
            client: request.client,
            server: &self.duid,
            status: None,
            rapid_commit: solicited && request.rapid_commit,
            associations: Vec::new(),
            dns: v6.dns,
            search: &self.search,
        };
        match request.kind {
            MessageType::Confirm => reply.status = Some(confirm(request, v6)?),
            MessageType::Release | MessageType::Decline => reply.status = Some(Status::Success),
            kind => {
                let asked = request.associations.iter();
                let answers = asked.map(|ia| answer_association(ia, kind, lease.take()));
                reply.associations = answers.collect();
            }
        }
        Ok(reply)
    }
}

/// Whether the client's addresses belong to the link. Without addresses there is nothing to confirm
/// (RFC 8415 section 18.3.3).
fn confirm(request: &Request<'_>, v6: Ipv6Gateway) -> Result<Status, DropReason> {
    let mut all = request.associations.iter().flat_map(|ia| &ia.addresses);
    if all.clone().next().is_none() {
        return Err(DropReason::BadDhcp);
    }
    Ok(match all.all(|&a| v6.contains(a)) {
        true => Status::Success,
        false => Status::NotOnLink,
    })
}

/// Whether `request` has the identifiers that its kind of message has (RFC 8415 section 16), the
/// server's being `us`.
fn is_identified(request: &Request<'_>, us: &[u8]) -> bool {
    let to_us = request.server == Some(us);
    let to_all = request.server.is_none();
    match request.kind {
        MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => {
            request.client.is_some() && to_all
        }
        MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline => {
            request.client.is_some() && to_us
        }
        MessageType::InformationRequest => (to_all || to_us) && request.associations.is_empty(),
        MessageType::Advertise | MessageType::Reply => false,
    }
}

/// The answer to one association, `lease` being the address it gets.
fn answer_association(
    asked: &Association,
    kind: MessageType,
    lease: Option<Ipv6Addr>,
) -> AssociationReply {
    let (t1, t2) = match lease {
        Some(_) => (LEASE_SECONDS / 2, LEASE_SECONDS / 5 * 4),
        None => (0, 0),
    };
    let mut addresses: Vec<_> = lease.map(|a| (a, LEASE_SECONDS)).into_iter().collect();
    let renewal = matches!(kind, MessageType::Renew | MessageType::Rebind);
    if renewal {
        // What the client holds wrongly ends now (RFC 8415 sections 18.3.4 and 18.3.5).
        let stale = asked.addresses.iter().filter(|&&a| Some(a) != lease);
        addresses.extend(stale.map(|&a| (a, 0)));
    }
    let status = match lease {
        Some(_) => None,
        None if renewal => Some(Status::NoBinding),
        None => Some(Status::NoAddress),
    };
    AssociationReply {
        id: asked.id,
        t1,
        t2,
        addresses,
        status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::addresses::ALL_DHCP_SERVERS;
    use crate::gateway::testing::*;
    use cnet_wire::PortId;
    use dhcproto::v6::{
        DhcpOption, IAAddr, IANA, Message, MessageType, OptionCode, Status, StatusCode,
    };
    use dhcproto::{Decodable, Decoder, Encodable};

    const CLIENT: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 7];
    const B_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xb);

    fn server_id() -> DhcpOption {
        DhcpOption::ServerId([&[0, 3, 0, 1][..], &GATEWAY.0].concat())
    }

    fn iana(id: u32, addresses: &[Ipv6Addr]) -> DhcpOption {
        let opts = addresses.iter().map(|&addr| {
            DhcpOption::IAAddr(IAAddr {
                addr,
                preferred_life: 0,
                valid_life: 0,
                opts: Default::default(),
            })
        });
        DhcpOption::IANA(IANA {
            id,
            t1: 0,
            t2: 0,
            opts: opts.collect(),
        })
    }

    fn message(kind: MessageType, options: Vec<DhcpOption>) -> Vec<u8> {
        let mut m = Message::new_with_id(kind, [1, 2, 3]);
        m.opts_mut().insert(DhcpOption::ClientId(CLIENT.to_vec()));
        for option in options {
            m.opts_mut().insert(option);
        }
        m.to_vec().unwrap()
    }

    fn send(bench: &mut Bench, port: PortId, m: &[u8]) -> Result<(), DropReason> {
        let (mac, src) = if port == A {
            (MAC_A, A_LL)
        } else {
            (MAC_B, B_LL)
        };
        let from = SocketAddr::from((src, CLIENT_PORT));
        let to = SocketAddr::from((ALL_DHCP_SERVERS, SERVER_PORT));
        bench.send(port, &udp(mac, from, to, m))
    }

    fn ask(bench: &mut Bench, port: PortId, m: &[u8]) -> Message {
        assert_eq!(send(bench, port, m), Ok(()));
        let frame = bench.reply(port);
        assert!(checksum_ok(&frame));
        let (mac, dst) = if port == A {
            (MAC_A, A_LL)
        } else {
            (MAC_B, B_LL)
        };
        assert_eq!(frame[..6], mac.0);
        assert_eq!(frame[22..54], [GW_LL.octets(), dst.octets()].concat());
        assert_eq!(frame[54..58], [2, 35, 2, 34]);
        let m = Message::decode(&mut Decoder::new(&frame[62..])).unwrap();
        assert_eq!(m.xid(), [1, 2, 3]);
        let client = DhcpOption::ClientId(CLIENT.to_vec());
        assert_eq!(m.opts().get(OptionCode::ClientId), Some(&client));
        assert_eq!(m.opts().get(OptionCode::ServerId), Some(&server_id()));
        m
    }

    /// Addresses with their valid lifetimes, and the status, of the n-th association.
    fn association(m: &Message, n: usize) -> (Vec<(Ipv6Addr, u32)>, Option<Status>) {
        let all = m.opts().get_all(OptionCode::IANA).unwrap();
        let DhcpOption::IANA(ia) = &all[n] else {
            panic!("no IA_NA");
        };
        let mut addresses = Vec::new();
        let mut status = None;
        for option in ia.opts.iter() {
            match option {
                DhcpOption::IAAddr(a) => addresses.push((a.addr, a.valid_life)),
                DhcpOption::StatusCode(s) => status = Some(s.status),
                other => panic!("{other:?}"),
            }
        }
        (addresses, status)
    }

    fn status(m: &Message) -> Option<Status> {
        match m.opts().get(OptionCode::StatusCode) {
            Some(DhcpOption::StatusCode(StatusCode { status, .. })) => Some(*status),
            _ => None,
        }
    }

    #[test]
    fn solicit_and_request_bring_the_lease_and_dns() {
        let mut bench = Bench::new();
        let solicit = message(MessageType::Solicit, vec![iana(9, &[])]);
        let m = ask(&mut bench, A, &solicit);
        assert_eq!(m.msg_type(), MessageType::Advertise);
        assert_eq!(association(&m, 0), (vec![(A6, LEASE_SECONDS)], None));
        let options = vec![server_id(), iana(9, &[A6])];
        let m = ask(&mut bench, A, &message(MessageType::Request, options));
        assert_eq!(m.msg_type(), MessageType::Reply);
        assert_eq!(association(&m, 0), (vec![(A6, LEASE_SECONDS)], None));
        let dns = DhcpOption::DomainNameServers(vec![DNS6]);
        assert_eq!(m.opts().get(OptionCode::DomainNameServers), Some(&dns));
        let search = m.opts().get(OptionCode::DomainSearchList);
        let Some(DhcpOption::DomainSearchList(search)) = search else {
            panic!("no search list");
        };
        let search: Vec<_> = search.iter().map(ToString::to_string).collect();
        assert_eq!(search, ["net.example.", "example."]);
        assert_eq!(bench.gw.counters().dhcpv6.replies, 2);
    }

    #[test]
    fn rapid_commit_saves_two_messages() {
        let mut bench = Bench::new();
        let options = vec![iana(9, &[]), DhcpOption::RapidCommit];
        let m = ask(&mut bench, A, &message(MessageType::Solicit, options));
        assert_eq!(m.msg_type(), MessageType::Reply);
        assert!(m.opts().get(OptionCode::RapidCommit).is_some());
        assert_eq!(association(&m, 0).0, [(A6, LEASE_SECONDS)]);
    }

    #[test]
    fn one_lease_a_port_and_none_without_a_lease() {
        let mut bench = Bench::new();
        let options = vec![iana(1, &[]), iana(2, &[])];
        let m = ask(&mut bench, A, &message(MessageType::Solicit, options));
        assert_eq!(association(&m, 0).0.len(), 1);
        assert_eq!(association(&m, 1), (vec![], Some(Status::NoAddrsAvail)));
        let solicit = message(MessageType::Solicit, vec![iana(1, &[])]);
        let m = ask(&mut bench, B, &solicit);
        assert_eq!(association(&m, 0), (vec![], Some(Status::NoAddrsAvail)));
    }

    #[test]
    fn renew_and_rebind_end_what_is_not_ours() {
        let mut bench = Bench::new();
        let held = vec![server_id(), iana(9, &[A6, B6])];
        let m = ask(&mut bench, A, &message(MessageType::Renew, held));
        let want = vec![(A6, LEASE_SECONDS), (B6, 0)];
        assert_eq!(association(&m, 0), (want, None));
        let rebind = message(MessageType::Rebind, vec![iana(9, &[B6])]);
        let m = ask(&mut bench, B, &rebind);
        let want = (vec![(B6, 0)], Some(Status::NoBinding));
        assert_eq!(association(&m, 0), want);
    }

    #[test]
    fn confirm_says_whether_the_link_is_the_same() {
        let mut bench = Bench::new();
        let elsewhere = "2001:db8::1".parse().unwrap();
        for (address, want) in [(B6, Status::Success), (elsewhere, Status::NotOnLink)] {
            let confirm = message(MessageType::Confirm, vec![iana(9, &[address])]);
            let m = ask(&mut bench, B, &confirm);
            assert_eq!(status(&m), Some(want));
        }
        let confirm = message(MessageType::Confirm, vec![iana(9, &[])]);
        assert_eq!(send(&mut bench, B, &confirm), Err(DropReason::BadDhcp));
        bench.assert_silent();
    }

    #[test]
    fn release_decline_and_information_are_answered() {
        let mut bench = Bench::new();
        for kind in [MessageType::Release, MessageType::Decline] {
            let m = ask(
                &mut bench,
                A,
                &message(kind, vec![server_id(), iana(9, &[A6])]),
            );
            assert_eq!(status(&m), Some(Status::Success));
        }
        let m = ask(
            &mut bench,
            B,
            &message(MessageType::InformationRequest, vec![]),
        );
        assert_eq!(m.msg_type(), MessageType::Reply);
        assert!(m.opts().get(OptionCode::DomainNameServers).is_some());
    }

    #[test]
    fn messages_without_their_identifiers_or_to_others_are_dropped() {
        use MessageType::*;
        let mut bench = Bench::new();
        let other = DhcpOption::ServerId(vec![0, 3, 0, 1, 9, 9]);
        let mut bad = vec![
            message(Solicit, vec![server_id()]),
            message(Rebind, vec![server_id()]),
            message(Advertise, vec![server_id()]),
            message(Reply, vec![]),
            message(RelayForw, vec![]),
            message(InformationRequest, vec![iana(1, &[])]),
            message(Solicit, vec![])[..4].to_vec(),
            message(Solicit, vec![DhcpOption::ClientId(vec![0; 131])]),
        ];
        for kind in [Request, Renew, Release, Decline] {
            bad.push(message(kind, vec![iana(1, &[A6])]));
            bad.push(message(kind, vec![iana(1, &[A6]), other.clone()]));
        }
        for (i, m) in bad.iter().enumerate() {
            assert_eq!(send(&mut bench, A, m), Err(DropReason::BadDhcp), "{i}");
        }
        let solicit = message(Solicit, vec![]);
        let to = SocketAddr::from((ALL_DHCP_SERVERS, SERVER_PORT));
        let from = SocketAddr::from((A6, CLIENT_PORT));
        let sent = bench.send(A, &udp(MAC_A, from, to, &solicit));
        assert_eq!(sent, Err(DropReason::MartianSource));
        let from = SocketAddr::from((A_LL, CLIENT_PORT));
        let to = SocketAddr::from((GW_LL, SERVER_PORT));
        let sent = bench.send(A, &udp(MAC_A, from, to, &solicit));
        assert_eq!(sent, Err(DropReason::NotServed));
        bench.assert_silent();
    }

    #[test]
    fn options_past_the_end_are_dropped() {
        let mut bench = Bench::new();
        let whole = message(MessageType::Solicit, vec![iana(9, &[A6])]);
        let ends = [4 + 14, whole.len()];
        for len in 0..whole.len() {
            let sent = send(&mut bench, A, &whole[..len]);
            let want = if ends.contains(&len) {
                Ok(())
            } else {
                Err(DropReason::BadDhcp)
            };
            assert_eq!(sent, want, "{len}");
        }
        // The nested option runs past its association, not past the message.
        let mut nested = whole.clone();
        nested[4 + 14 + 4 + 12 + 3] += 4;
        nested.extend([0, 8, 0, 0]);
        assert_eq!(send(&mut bench, A, &nested), Err(DropReason::BadDhcp));
    }
}
