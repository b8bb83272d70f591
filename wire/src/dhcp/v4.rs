//! DHCPv4 messages (RFC 2131, RFC 2132).
//!
//! A short BOOTP header and options that run past the end are refused (CVE-2021-3592 to
//! CVE-2021-3595); smoltcp's reader ignores such options and all that follow. Option overload is
//! not followed: no client uses it.

use std::net::Ipv4Addr;

use crate::dns::encode_names;
use crate::drops::DropReason;

/// The server's UDP port.
pub const SERVER_PORT: u16 = 67;
/// The client's UDP port.
pub const CLIENT_PORT: u16 = 68;

/// Bytes up to the options, magic cookie included.
const HEADER_LEN: usize = 240;
/// Bytes a message has at least (RFC 1542 section 2.1).
const MIN_LEN: usize = 300;
/// Bytes every client takes: 576 less IP and UDP headers (RFC 2131 section 2).
const MAX_LEN: usize = 548;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
const ETHERNET: [u8; 2] = [1, 6];
const FLAG_BROADCAST: u8 = 0x80;

const OPT_PAD: u8 = 0;
const OPT_SUBNET_MASK: u8 = 1;
const OPT_ROUTER: u8 = 3;
const OPT_DNS: u8 = 6;
const OPT_HOST_NAME: u8 = 12;
const OPT_DOMAIN_NAME: u8 = 15;
const OPT_MTU: u8 = 26;
const OPT_BROADCAST: u8 = 28;
const OPT_REQUESTED_ADDRESS: u8 = 50;
const OPT_LEASE_TIME: u8 = 51;
const OPT_MESSAGE_TYPE: u8 = 53;
const OPT_SERVER_ID: u8 = 54;
const OPT_CLIENT_ID: u8 = 61;
/// RFC 3397.
const OPT_DOMAIN_SEARCH: u8 = 119;
const OPT_END: u8 = 255;

/// What a message is (RFC 2132 section 9.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageType {
    /// A client looks for a server.
    Discover = 1,
    /// A server offers an address.
    Offer = 2,
    /// A client takes an offer, or confirms or renews its address.
    Request = 3,
    /// A client found the address in use.
    Decline = 4,
    /// A server grants.
    Ack = 5,
    /// A server refuses.
    Nak = 6,
    /// A client gives its address back.
    Release = 7,
    /// A client that has an address asks for the rest.
    Inform = 8,
}

impl MessageType {
    fn from_wire(kind: u8) -> Option<MessageType> {
        Some(match kind {
            1 => MessageType::Discover,
            2 => MessageType::Offer,
            3 => MessageType::Request,
            4 => MessageType::Decline,
            5 => MessageType::Ack,
            6 => MessageType::Nak,
            7 => MessageType::Release,
            8 => MessageType::Inform,
            _ => return None,
        })
    }
}

/// A client's message, its options not yet read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    /// The client's own address, unspecified if it has none.
    pub ciaddr: Ipv4Addr,
    /// The relay that passed the message on, unspecified if none did.
    pub giaddr: Ipv4Addr,
}

/// The options of a client's message that a server needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options<'a> {
    /// What the message is; `None` if it does not say or names none of the types.
    pub kind: Option<MessageType>,
    /// The address the client wants.
    pub requested: Option<Ipv4Addr>,
    /// The server the message is for.
    pub server: Option<Ipv4Addr>,
    /// The client's name for itself.
    pub client_id: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// Reads the header of `message`.
    ///
    /// # Errors
    /// [`DropReason::BadDhcp`]: cut short, or no request of an Ethernet client.
    pub fn read(message: &'a [u8]) -> Result<Request<'a>, DropReason> {
        let bad = DropReason::BadDhcp;
        let (header, options) = message.split_first_chunk().ok_or(bad)?;
        if header[0] != BOOTREQUEST || header[1..3] != ETHERNET || !header.ends_with(&MAGIC) {
            return Err(bad);
        }
        Ok(Request {
            header,
            options,
            ciaddr: address(&header[12..16])?,
            giaddr: address(&header[24..28])?,
        })
    }

    /// Reads the options. The last one of a kind counts.
    ///
    /// # Errors
    /// [`DropReason::BadDhcp`]: an option runs past the end or has an impossible length.
    pub fn options(&self) -> Result<Options<'a>, DropReason> {
        let bad = DropReason::BadDhcp;
        let mut options = Options::default();
        let mut rest = self.options;
        while let [code, after @ ..] = rest {
            match *code {
                OPT_PAD => {
                    rest = after;
                    continue;
                }
                OPT_END => break,
                _ => {}
            }
            let (&len, after) = after.split_first().ok_or(bad)?;
            let (value, next) = after.split_at_checked(usize::from(len)).ok_or(bad)?;
            rest = next;
            match *code {
                OPT_MESSAGE_TYPE => match value {
                    &[kind] => options.kind = MessageType::from_wire(kind),
                    _ => return Err(bad),
                },
                OPT_REQUESTED_ADDRESS => options.requested = Some(address(value)?),
                OPT_SERVER_ID => options.server = Some(address(value)?),
                OPT_CLIENT_ID => options.client_id = Some(value),
                _ => {}
            }
        }
        Ok(options)
    }

    /// Whether the client cannot take unicast before it has an address.
    pub fn wants_broadcast(&self) -> bool {
        self.header[10] & FLAG_BROADCAST != 0
    }
}

fn address(bytes: &[u8]) -> Result<Ipv4Addr, DropReason> {
    let bytes: [u8; 4] = bytes.try_into().map_err(|_| DropReason::BadDhcp)?;
    Ok(Ipv4Addr::from(bytes))
}

/// A server's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply<'a> {
    /// What it is.
    pub kind: MessageType,
    /// The client's address, unspecified if it is given none.
    pub yiaddr: Ipv4Addr,
    /// Who answers.
    pub server: Ipv4Addr,
    /// Seconds the lease runs, if it is one.
    pub lease_time: Option<u32>,
    /// What the client is told about the network, if anything.
    pub configuration: Option<Configuration<'a>>,
}

/// What a client is told about its network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Configuration<'a> {
    /// The subnet's mask.
    pub mask: Ipv4Addr,
    /// The default router.
    pub router: Ipv4Addr,
    /// The DNS server.
    pub dns: Option<Ipv4Addr>,
    /// The link's IP MTU in bytes.
    pub mtu: u16,
    /// The subnet's broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// The client's host name.
    pub host_name: Option<&'a str>,
    /// Domains in which resolvers search; the first is the client's own.
    pub search: &'a [String],
}

impl Reply<'_> {
    /// The message that answers `request`, whose options are `asked`. It is padded to the least
    /// length of BOOTP; options that find no room in what every client takes are left out.
    pub fn write(&self, request: &Request<'_>, asked: &Options<'_>) -> Vec<u8> {
        let mut m = vec![0; HEADER_LEN];
        m[0] = BOOTREPLY;
        m[1..3].copy_from_slice(&ETHERNET);
        // Transaction, flags, ciaddr (in an ACK only) and chaddr are the request's.
        m[4..8].copy_from_slice(&request.header[4..8]);
        m[10..12].copy_from_slice(&request.header[10..12]);
        if self.kind == MessageType::Ack {
            m[12..16].copy_from_slice(&request.ciaddr.octets());
        }
        m[16..20].copy_from_slice(&self.yiaddr.octets());
        m[28..44].copy_from_slice(&request.header[28..44]);
        m[236..].copy_from_slice(&MAGIC);
        let mut writer = Writer(m);
        writer.put(OPT_MESSAGE_TYPE, &[self.kind as u8]);
        writer.put(OPT_SERVER_ID, &self.server.octets());
        // RFC 6842.
        if let Some(id) = asked.client_id {
            writer.put(OPT_CLIENT_ID, id);
        }
        if let Some(seconds) = self.lease_time {
            writer.put(OPT_LEASE_TIME, &seconds.to_be_bytes());
        }
        if let Some(configuration) = &self.configuration {
            configuration.put(&mut writer);
        }
        writer.finish()
    }
}

impl Configuration<'_> {
    /// Adds the options, the most needed first.
    fn put(&self, writer: &mut Writer) {
        writer.put(OPT_SUBNET_MASK, &self.mask.octets());
        writer.put(OPT_ROUTER, &self.router.octets());
        if let Some(dns) = self.dns {
            writer.put(OPT_DNS, &dns.octets());
        }
        writer.put(OPT_MTU, &self.mtu.to_be_bytes());
        if let Some(broadcast) = self.broadcast {
            writer.put(OPT_BROADCAST, &broadcast.octets());
        }
        if let Some(name) = self.host_name {
            writer.put(OPT_HOST_NAME, name.as_bytes());
        }
        if let Some(domain) = self.search.first() {
            writer.put(OPT_DOMAIN_NAME, domain.as_bytes());
        }
        let search = encode_names(self.search, writer.room());
        writer.put(OPT_DOMAIN_SEARCH, &search);
    }
}

/// A message under construction.
struct Writer(Vec<u8>);

impl Writer {
    /// Bytes of option value there is still room for, in one piece, the end option kept.
    fn room(&self) -> usize {
        (MAX_LEN - 1).saturating_sub(self.0.len() + 2).min(255)
    }

    /// Adds an option if it has a value and the value fits.
    fn put(&mut self, code: u8, value: &[u8]) {
        if value.len() <= self.room() && !value.is_empty() {
            self.0.extend([code, value.len() as u8]);
            self.0.extend(value);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.push(OPT_END);
        let len = self.0.len().max(MIN_LEN);
        self.0.resize(len, 0);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhcproto::v4::{self, DhcpOption, Flags, Message, OptionCode};
    use dhcproto::{Decodable, Decoder, Encodable};

    const CHADDR: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

    /// A request as dhcproto writes it.
    fn request() -> Vec<u8> {
        let mut m = Message::default();
        m.set_xid(0x01020304)
            .set_flags(Flags::default().set_broadcast())
            .set_ciaddr(CLIENT)
            .set_chaddr(&CHADDR);
        for option in [
            DhcpOption::MessageType(v4::MessageType::Request),
            DhcpOption::RequestedIpAddress(CLIENT),
            DhcpOption::ServerIdentifier(SERVER),
            DhcpOption::ClientIdentifier(b"\x01id".to_vec()),
        ] {
            m.opts_mut().insert(option);
        }
        m.to_vec().unwrap()
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let message = request();
        let request = Request::read(&message).unwrap();
        assert_eq!(request.ciaddr, CLIENT);
        assert!(request.giaddr.is_unspecified() && request.wants_broadcast());
        let want = Options {
            kind: Some(MessageType::Request),
            requested: Some(CLIENT),
            server: Some(SERVER),
            client_id: Some(b"\x01id"),
        };
        assert_eq!(request.options(), Ok(want));
    }

    #[test]
    fn an_answer_is_what_dhcproto_reads() {
        let message = request();
        let request = Request::read(&message).unwrap();
        let asked = request.options().unwrap();
        let search = ["net.example".to_string()];
        let ack = Reply {
            kind: MessageType::Ack,
            yiaddr: CLIENT,
            server: SERVER,
            lease_time: Some(600),
            configuration: Some(Configuration {
                mask: Ipv4Addr::new(255, 255, 255, 0),
                router: SERVER,
                dns: Some(SERVER),
                mtu: 1500,
                broadcast: None,
                host_name: Some("box"),
                search: &search,
            }),
        };
        let nak = Reply {
            kind: MessageType::Nak,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            lease_time: None,
            configuration: None,
            ..ack
        };
        for (reply, options) in [(ack, 11), (nak, 3)] {
            let bytes = reply.write(&request, &asked);
            assert!((MIN_LEN..=MAX_LEN).contains(&bytes.len()));
            let m = Message::decode(&mut Decoder::new(&bytes)).unwrap();
            assert_eq!((m.xid(), m.chaddr()), (0x01020304, &CHADDR[..]));
            assert_eq!((m.yiaddr(), m.flags().broadcast()), (reply.yiaddr, true));
            let granted = reply.kind == MessageType::Ack;
            assert_eq!(m.ciaddr() == CLIENT, granted);
            // End and padding are not counted.
            let counted = m
                .opts()
                .iter()
                .filter(|(code, _)| **code != OptionCode::End);
            assert_eq!(counted.count(), options);
            let id = DhcpOption::ClientIdentifier(b"\x01id".to_vec());
            assert_eq!(m.opts().get(OptionCode::ClientIdentifier), Some(&id));
            let lease = m.opts().get(OptionCode::AddressLeaseTime);
            assert_eq!(lease == Some(&DhcpOption::AddressLeaseTime(600)), granted);
        }
    }

    #[test]
    fn what_runs_past_the_end_is_refused() {
        let whole = request();
        assert_eq!(
            Request::read(&whole[..HEADER_LEN - 1]),
            Err(DropReason::BadDhcp)
        );
        // The options are 3, 6, 6 and 5 bytes long, in the order of their codes.
        let ends = [0, 6, 9, 15, 20].map(|n| HEADER_LEN + n);
        for len in HEADER_LEN..HEADER_LEN + 20 {
            let read = Request::read(&whole[..len]).unwrap().options();
            assert_eq!(read.is_ok(), ends.contains(&len), "{len}");
        }
    }
}
