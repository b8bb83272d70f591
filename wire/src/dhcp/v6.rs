//! DHCPv6 messages (RFC 8415, RFC 3646).
//!
//! Options are read two levels deep (an association's addresses), with a bound on how many of each
//! are kept; what runs past its message or its association refuses the message. smoltcp does not
//! speak DHCPv6.

use std::net::Ipv6Addr;

use crate::addr::MacAddr;
use crate::dns::encode_names;
use crate::drops::DropReason;

/// The server's UDP port.
pub const SERVER_PORT: u16 = 547;
/// The client's UDP port.
pub const CLIENT_PORT: u16 = 546;

/// Bytes of search list an answer carries at most.
const MAX_SEARCH_LEN: usize = 512;
/// Longest identifier: a type and 128 bytes (RFC 8415 section 11.1).
const MAX_DUID_LEN: usize = 130;
/// Identity associations kept of one message.
const MAX_ASSOCIATIONS: usize = 8;
/// Addresses kept of one association.
const MAX_ADDRESSES: usize = 8;

const OPT_CLIENT_ID: u16 = 1;
const OPT_SERVER_ID: u16 = 2;
const OPT_IA_NA: u16 = 3;
const OPT_IA_ADDR: u16 = 5;
const OPT_STATUS: u16 = 13;
const OPT_RAPID_COMMIT: u16 = 14;
const OPT_DNS_SERVERS: u16 = 23;
const OPT_DOMAIN_LIST: u16 = 24;

/// IAID, T1, T2.
const IA_HEADER_LEN: usize = 12;
/// DUID type 3 (DUID-LL), hardware type Ethernet.
const DUID_LL_ETHERNET: [u8; 4] = [0, 3, 0, 1];

/// What a message is (RFC 8415 section 7.3); relays' are not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageType {
    /// A client looks for servers.
    Solicit = 1,
    /// A server offers.
    Advertise = 2,
    /// A client takes an offer.
    Request = 3,
    /// A client asks whether it is still on the same link.
    Confirm = 4,
    /// A client renews with its server.
    Renew = 5,
    /// A client renews with any server.
    Rebind = 6,
    /// A server answers.
    Reply = 7,
    /// A client gives addresses back.
    Release = 8,
    /// A client found addresses in use.
    Decline = 9,
    /// A client asks for everything but addresses.
    InformationRequest = 11,
}

impl MessageType {
    fn from_wire(kind: u8) -> Option<MessageType> {
        Some(match kind {
            1 => MessageType::Solicit,
            2 => MessageType::Advertise,
            3 => MessageType::Request,
            4 => MessageType::Confirm,
            5 => MessageType::Renew,
            6 => MessageType::Rebind,
            7 => MessageType::Reply,
            8 => MessageType::Release,
            9 => MessageType::Decline,
            11 => MessageType::InformationRequest,
            _ => return None,
        })
    }
}

/// How a request went (RFC 8415 section 21.13).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Well.
    Success = 0,
    /// There is no address for the association.
    NoAddress = 2,
    /// The association is not known.
    NoBinding = 3,
    /// An address does not belong to the link.
    NotOnLink = 4,
}

/// An identity association for addresses, as the client sent it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Association {
    /// The client's name for it.
    pub id: [u8; 4],
    /// The addresses that the client has or wants.
    pub addresses: Vec<Ipv6Addr>,
}

/// A client's message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// What it is.
    pub kind: MessageType,
    /// Names the exchange.
    pub transaction: [u8; 3],
    /// The client's identifier.
    pub client: Option<&'a [u8]>,
    /// The identifier of the server that it is for.
    pub server: Option<&'a [u8]>,
    /// Whether the client takes a reply to its solicitation at once.
    pub rapid_commit: bool,
    /// What it asks addresses for.
    pub associations: Vec<Association>,
}

impl Request<'_> {
    /// Reads `message`. The last identifier of a kind counts.
    ///
    /// # Errors
    /// [`DropReason::BadDhcp`]: cut short, of an unknown type, or with an option that runs past its
    /// end or has an impossible length.
    pub fn read(message: &[u8]) -> Result<Request<'_>, DropReason> {
        let bad = DropReason::BadDhcp;
        let (&[kind, t0, t1, t2], mut rest) = message.split_first_chunk().ok_or(bad)?;
        let mut request = Request {
            kind: MessageType::from_wire(kind).ok_or(bad)?,
            transaction: [t0, t1, t2],
            client: None,
            server: None,
            rapid_commit: false,
            associations: Vec::new(),
        };
        while !rest.is_empty() {
            let (code, value, next) = split_option(rest)?;
            rest = next;
            match code {
                OPT_CLIENT_ID | OPT_SERVER_ID => {
                    if !(3..=MAX_DUID_LEN).contains(&value.len()) {
                        return Err(bad);
                    }
                    let slot = match code {
                        OPT_CLIENT_ID => &mut request.client,
                        _ => &mut request.server,
                    };
                    *slot = Some(value);
                }
                OPT_RAPID_COMMIT => request.rapid_commit = true,
                OPT_IA_NA if request.associations.len() < MAX_ASSOCIATIONS => {
                    request.associations.push(Association::read(value)?);
                }
                _ => {}
            }
        }
        Ok(request)
    }
}

impl Association {
    fn read(value: &[u8]) -> Result<Association, DropReason> {
        let (&[i0, i1, i2, i3, ..], mut rest) = value
            .split_first_chunk::<IA_HEADER_LEN>()
            .ok_or(DropReason::BadDhcp)?;
        let mut association = Association {
            id: [i0, i1, i2, i3],
            addresses: Vec::new(),
        };
        while !rest.is_empty() {
            let (code, value, next) = split_option(rest)?;
            rest = next;
            if code == OPT_IA_ADDR && association.addresses.len() < MAX_ADDRESSES {
                let address: &[u8; 16] = value.first_chunk().ok_or(DropReason::BadDhcp)?;
                association.addresses.push(Ipv6Addr::from(*address));
            }
        }
        Ok(association)
    }
}

/// The first option of `rest` (code and value), and what follows it.
fn split_option(rest: &[u8]) -> Result<(u16, &[u8], &[u8]), DropReason> {
    let (&[c0, c1, l0, l1], after) = rest.split_first_chunk().ok_or(DropReason::BadDhcp)?;
    let len = usize::from(u16::from_be_bytes([l0, l1]));
    let (value, next) = after.split_at_checked(len).ok_or(DropReason::BadDhcp)?;
    Ok((u16::from_be_bytes([c0, c1]), value, next))
}

/// The identifier of a server by its Ethernet address: DUID-LL (RFC 8415 section 11.4).
pub fn duid_ll(mac: MacAddr) -> [u8; 10] {
    let mut duid = [0; 10];
    duid[..4].copy_from_slice(&DUID_LL_ETHERNET);
    duid[4..].copy_from_slice(&mac.0);
    duid
}

/// The answer to one association.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AssociationReply {
    /// The client's name for it.
    pub id: [u8; 4],
    /// Seconds until the client is to renew with its server.
    pub t1: u32,
    /// Seconds until the client is to renew with any server.
    pub t2: u32,
    /// Addresses, each with the seconds for which it is valid and preferred.
    pub addresses: Vec<(Ipv6Addr, u32)>,
    /// Why there is no address.
    pub status: Option<Status>,
}

/// A server's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply<'a> {
    /// What it is.
    pub kind: MessageType,
    /// The exchange's name.
    pub transaction: [u8; 3],
    /// The client's identifier, as it came.
    pub client: Option<&'a [u8]>,
    /// The server's identifier.
    pub server: &'a [u8],
    /// How the request as a whole went, where that is the answer.
    pub status: Option<Status>,
    /// Whether this is the reply to a solicitation.
    pub rapid_commit: bool,
    /// What became of each association.
    pub associations: Vec<AssociationReply>,
    /// The DNS server.
    pub dns: Option<Ipv6Addr>,
    /// Domains in which resolvers search.
    pub search: &'a [String],
}

impl Reply<'_> {
    /// The message.
    pub fn write(&self) -> Vec<u8> {
        let mut reply = vec![self.kind as u8];
        reply.extend(self.transaction);
        if let Some(client) = self.client {
            put(&mut reply, OPT_CLIENT_ID, client);
        }
        put(&mut reply, OPT_SERVER_ID, self.server);
        put_status(&mut reply, self.status);
        if self.rapid_commit {
            put(&mut reply, OPT_RAPID_COMMIT, &[]);
        }
        for association in &self.associations {
            put(&mut reply, OPT_IA_NA, &association.write());
        }
        if let Some(dns) = self.dns {
            put(&mut reply, OPT_DNS_SERVERS, &dns.octets());
        }
        let search = encode_names(self.search, MAX_SEARCH_LEN);
        if !search.is_empty() {
            put(&mut reply, OPT_DOMAIN_LIST, &search);
        }
        reply
    }
}

impl AssociationReply {
    /// The value of its option.
    fn write(&self) -> Vec<u8> {
        let mut ia = self.id.to_vec();
        ia.extend(self.t1.to_be_bytes());
        ia.extend(self.t2.to_be_bytes());
        for (address, lifetime) in &self.addresses {
            let mut value = address.octets().to_vec();
            // Preferred and valid.
            value.extend(lifetime.to_be_bytes());
            value.extend(lifetime.to_be_bytes());
            put(&mut ia, OPT_IA_ADDR, &value);
        }
        put_status(&mut ia, self.status);
        ia
    }
}

fn put(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    message.extend(code.to_be_bytes());
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
}

fn put_status(message: &mut Vec<u8>, status: Option<Status>) {
    if let Some(status) = status {
        put(message, OPT_STATUS, &(status as u16).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhcproto::v6::{self, DhcpOption, IAAddr, IANA, Message, OptionCode};
    use dhcproto::{Decodable, Decoder, Encodable};

    const CLIENT: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 7];
    const A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
    const B: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x200);

    /// A solicitation for two addresses as dhcproto writes it.
    fn solicitation() -> Vec<u8> {
        let addresses = [A, B].map(|addr| {
            DhcpOption::IAAddr(IAAddr {
                addr,
                preferred_life: 0,
                valid_life: 0,
                opts: Default::default(),
            })
        });
        let mut m = Message::new_with_id(v6::MessageType::Solicit, [1, 2, 3]);
        for option in [
            DhcpOption::ClientId(CLIENT.to_vec()),
            DhcpOption::RapidCommit,
            DhcpOption::IANA(IANA {
                id: 9,
                t1: 0,
                t2: 0,
                opts: addresses.into_iter().collect(),
            }),
        ] {
            m.opts_mut().insert(option);
        }
        m.to_vec().unwrap()
    }

    #[test]
    fn a_solicitation_is_read_as_it_was_written() {
        let message = solicitation();
        let want = Request {
            kind: MessageType::Solicit,
            transaction: [1, 2, 3],
            client: Some(&CLIENT),
            server: None,
            rapid_commit: true,
            associations: vec![Association {
                id: [0, 0, 0, 9],
                addresses: vec![A, B],
            }],
        };
        assert_eq!(Request::read(&message), Ok(want));
    }

    #[test]
    fn an_answer_is_what_dhcproto_reads() {
        let search = ["net.example".to_string()];
        let duid = duid_ll(MacAddr([2, 0, 0, 0, 0, 1]));
        let reply = Reply {
            kind: MessageType::Reply,
            transaction: [1, 2, 3],
            client: Some(&CLIENT),
            server: &duid,
            status: None,
            rapid_commit: true,
            associations: vec![AssociationReply {
                id: [0, 0, 0, 9],
                t1: 10,
                t2: 20,
                addresses: vec![(A, 30), (B, 0)],
                status: Some(Status::NoBinding),
            }],
            dns: Some(B),
            search: &search,
        };
        let bytes = reply.write();
        let m = Message::decode(&mut Decoder::new(&bytes)).unwrap();
        assert_eq!((m.msg_type(), m.xid()), (v6::MessageType::Reply, [1, 2, 3]));
        let get = |code| m.opts().get(code).cloned();
        let server = DhcpOption::ServerId([&[0, 3, 0, 1, 2][..], &[0, 0, 0, 0, 1]].concat());
        assert_eq!(get(OptionCode::ServerId), Some(server));
        let dns = DhcpOption::DomainNameServers(vec![B]);
        assert_eq!(get(OptionCode::DomainNameServers), Some(dns));
        let Some(DhcpOption::IANA(ia)) = get(OptionCode::IANA) else {
            panic!("no IA_NA");
        };
        assert_eq!((ia.id, ia.t1, ia.t2), (9, 10, 20));
        let mut addresses = Vec::new();
        let mut status = None;
        for option in ia.opts.iter() {
            match option {
                DhcpOption::IAAddr(a) => {
                    addresses.push((a.addr, a.preferred_life, a.valid_life));
                }
                DhcpOption::StatusCode(s) => status = Some(s.status),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(addresses, [(A, 30, 30), (B, 0, 0)]);
        assert_eq!(status, Some(v6::Status::NoBinding));
    }

    #[test]
    fn no_more_is_kept_than_the_bounds_say() {
        let one = solicitation();
        let (head, options) = one.split_at(4);
        let many = [head, &options.repeat(20)].concat();
        let request = Request::read(&many).unwrap();
        assert_eq!(request.associations.len(), MAX_ASSOCIATIONS);
        let address = &[0, 5, 0, 24][..];
        let addresses = [address, &A.octets(), &[0; 8]].concat().repeat(20);
        let len = (IA_HEADER_LEN + addresses.len()) as u16;
        let ia = [
            &[0, 3],
            &len.to_be_bytes()[..],
            &[0; IA_HEADER_LEN],
            &addresses,
        ]
        .concat();
        let message = [head, &ia].concat();
        let request = Request::read(&message).unwrap();
        assert_eq!(request.associations[0].addresses.len(), MAX_ADDRESSES);
    }
}
