//! ICMP (RFC 792) and ICMPv6 (RFC 4443) messages: type, code, checksum, and what follows.
//!
//! The two protocols number the same messages differently; [`v4`] and [`v6`] hold the numbers that
//! are used here. Neighbour discovery, which ICMPv6 carries, has its own reader and writer in
//! [`crate::ndp`]. A message's length is that of its slice: no field of ICMP tells one.
//!
//! smoltcp reads the same four octets, but neither a message of unknown type nor one in place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::checksum;
use crate::headers::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};
use crate::ip::protocol;

mod error;

pub use error::{IcmpErrorKind, write_error};

/// ICMP message types (RFC 792, RFC 1256).
pub mod v4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`]: too large for the next link, and DF set.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Source quench, obsolete (RFC 6633).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 9;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// ICMPv6 message types (RFC 4443, RFC 4861, RFC 2710, RFC 3810).
pub mod v6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Types from here on are informational; those below are errors (RFC 4443 section 2.1).
    pub const FIRST_INFORMATIONAL: u8 = 128;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Multicast listener report, version 1.
    pub const MLD_REPORT: u8 = 131;
    /// Multicast listener done.
    pub const MLD_DONE: u8 = 132;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
    /// Multicast listener report, version 2.
    pub const MLD_REPORT_V2: u8 = 143;
}

/// Bytes of type, code and checksum.
const HEAD_LEN: usize = 4;
/// Bytes before the data of an echo message, and before the quote of an error, in both protocols.
pub const HEADER_LEN: usize = 8;

/// A message without its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpMessage<'a> {
    /// Type, in the numbers of the protocol ([`v4`] or [`v6`]).
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// All that follows the checksum.
    pub rest: &'a [u8],
}

impl IcmpMessage<'_> {
    /// Reads a transport payload; `None` if it is shorter than a type, a code and a checksum. The
    /// checksum is not verified.
    pub fn read(l4: &[u8]) -> Option<IcmpMessage<'_>> {
        let (&[kind, code, _, _], rest) = l4.split_first_chunk()?;
        Some(IcmpMessage { kind, code, rest })
    }

    /// Bytes of the message on the wire.
    pub fn wire_len(&self) -> usize {
        HEAD_LEN + self.rest.len()
    }

    /// Writes the message from `src` to `dst`, its checksum included, into `l4`, which is
    /// [`IcmpMessage::wire_len`] bytes long.
    pub fn write(&self, l4: &mut [u8], src: IpAddr, dst: IpAddr) {
        l4[..2].copy_from_slice(&[self.kind, self.code]);
        l4[HEAD_LEN..].copy_from_slice(self.rest);
        write_checksum(l4, src, dst);
    }

    /// Identifier of an echo request or reply; `None` if the message is shorter than their header.
    pub fn echo_identifier(&self) -> Option<u16> {
        let &[i0, i1, _, _] = self.rest.first_chunk()?;
        Some(u16::from_be_bytes([i0, i1]))
    }
}

/// Fills in the checksum of the message in `l4`. ICMPv6's covers the addresses too.
pub fn write_checksum(l4: &mut [u8], src: IpAddr, dst: IpAddr) {
    l4[2..4].fill(0);
    let pseudo = match src {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => checksum::pseudo_header(src, dst, protocol::ICMPV6, l4.len() as u32),
    };
    let sum = checksum::finish(pseudo, l4);
    l4[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// Puts another identifier into the echo message in `l4`, which is at least [`HEADER_LEN`] bytes
/// long, and makes its checksum anew.
pub fn rewrite_echo(l4: &mut [u8], identifier: u16, src: IpAddr, dst: IpAddr) {
    l4[4..6].copy_from_slice(&identifier.to_be_bytes());
    write_checksum(l4, src, dst);
}

/// Puts another identifier into the echo message in `l4`, which is at least [`HEADER_LEN`] bytes of
/// a message that may be cut short, and into its checksum (RFC 1624, equation 3).
pub fn replace_identifier(l4: &mut [u8], identifier: u16) {
    let word = |b: &[u8]| u32::from(u16::from_be_bytes([b[0], b[1]]));
    let old = (!word(&l4[2..]) & 0xffff) + (!word(&l4[4..]) & 0xffff);
    let sum = !checksum::fold(u64::from(old + u32::from(identifier)));
    l4[2..4].copy_from_slice(&sum.to_be_bytes());
    l4[4..6].copy_from_slice(&identifier.to_be_bytes());
}

/// Whether `kind` is an error in `protocol` (ICMP or ICMPv6). A redirect is none.
pub fn is_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        protocol::ICMPV6 => kind < v6::FIRST_INFORMATIONAL,
        _ => matches!(
            kind,
            v4::UNREACHABLE | v4::SOURCE_QUENCH | v4::TIME_EXCEEDED | v4::PARAMETER_PROBLEM
        ),
    }
}

/// Whether `kind` is a redirect in `protocol` (ICMP or ICMPv6).
pub fn is_redirect(protocol: u8, kind: u8) -> bool {
    match protocol {
        protocol::ICMPV6 => kind == v6::REDIRECT,
        _ => kind == v4::REDIRECT,
    }
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote {
    /// Transport protocol.
    pub protocol: u8,
    /// The sender of the quoted packet; for echo with port 0.
    pub source: SocketAddr,
    /// Its destination; for echo the identifier stands in the port's place.
    pub destination: SocketAddr,
}

impl Quote {
    /// Reads the quote of the ICMP (`v6` false) or ICMPv6 error in `l4`. `None` if it quotes less
    /// than eight bytes of transport header, or anything but TCP, UDP or ICMP.
    pub fn read(l4: &[u8], v6: bool) -> Option<Quote> {
        let packet = l4.get(HEADER_LEN..)?;
        let (protocol, src, dst, l4) = if v6 {
            quoted_ipv6(packet)?
        } else {
            quoted_ipv4(packet)?
        };
        let &[a, b, c, d, e, f, _, _] = l4.first_chunk()?;
        let (source_port, destination_port) = match protocol {
            protocol::TCP | protocol::UDP => ([a, b], [c, d]),
            protocol::ICMP | protocol::ICMPV6 => ([0, 0], [e, f]),
            _ => return None,
        };
        Some(Quote {
            protocol,
            source: SocketAddr::new(src, u16::from_be_bytes(source_port)),
            destination: SocketAddr::new(dst, u16::from_be_bytes(destination_port)),
        })
    }
}

/// Protocol, source, destination and transport header of a quoted IPv4 packet, whose end and
/// therefore length are missing as a rule.
fn quoted_ipv4(packet: &[u8]) -> Option<(u8, IpAddr, IpAddr, &[u8])> {
    let h: &[u8; IPV4_HEADER_LEN] = packet.first_chunk()?;
    let header = usize::from(h[0] & 15) * 4;
    if h[0] >> 4 != 4 || header < IPV4_HEADER_LEN {
        return None;
    }
    let src = Ipv4Addr::new(h[12], h[13], h[14], h[15]).into();
    let dst = Ipv4Addr::new(h[16], h[17], h[18], h[19]).into();
    Some((h[9], src, dst, packet.get(header..)?))
}

/// As [`quoted_ipv4`], for an IPv6 packet without extension headers.
fn quoted_ipv6(packet: &[u8]) -> Option<(u8, IpAddr, IpAddr, &[u8])> {
    let (h, l4) = packet.split_first_chunk::<IPV6_HEADER_LEN>()?;
    if h[0] >> 4 != 6 {
        return None;
    }
    let src = Ipv6Addr::from(*h[8..].first_chunk::<16>()?).into();
    let dst = Ipv6Addr::from(*h[24..].first_chunk::<16>()?).into();
    Some((h[6], src, dst, l4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};

    const A4: [u8; 4] = [10, 0, 2, 100];
    const B4: [u8; 4] = [192, 0, 2, 7];
    const A6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    const B6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

    fn write(message: &IcmpMessage<'_>, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let mut l4 = vec![0xaa; message.wire_len()];
        message.write(&mut l4, src, dst);
        assert_eq!(IcmpMessage::read(&l4), Some(*message));
        l4
    }

    #[test]
    fn an_echo_is_what_etherparse_makes_of_it() {
        let echo = etherparse::IcmpEchoHeader { id: 0x1234, seq: 9 };
        let rest = [&echo.to_bytes()[..], b"payload"].concat();
        let v4 = IcmpMessage {
            kind: v4::ECHO_REQUEST,
            code: 0,
            rest: &rest,
        };
        assert_eq!(v4.echo_identifier(), Some(0x1234));
        let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), b"payload");
        let want = [&header.to_bytes()[..], b"payload"].concat();
        assert_eq!(write(&v4, A4.into(), B4.into()), want);

        let v6 = IcmpMessage {
            kind: v6::ECHO_REPLY,
            ..v4
        };
        let reply = Icmpv6Type::EchoReply(echo);
        let header = Icmpv6Header::with_checksum(reply, A6, B6, b"payload").unwrap();
        let want = [&header.to_bytes()[..], b"payload"].concat();
        let mut l4 = write(&v6, A6.into(), B6.into());
        assert_eq!(l4, want);
        replace_identifier(&mut l4, 7);
        assert_ne!(l4, want);
        replace_identifier(&mut l4, 0x1234);
        assert_eq!(l4, want);
        l4[2..6].fill(0);
        rewrite_echo(&mut l4, 0x1234, A6.into(), B6.into());
        assert_eq!(l4, want);
    }

    #[test]
    fn a_message_shorter_than_its_header_is_none() {
        assert_eq!(IcmpMessage::read(&[8, 0, 0]), None);
        for len in 4..8 {
            let l4 = &[8, 0, 0, 0, 1, 2, 3, 4][..len];
            assert_eq!(IcmpMessage::read(l4).unwrap().echo_identifier(), None);
        }
    }

    #[test]
    fn a_quote_tells_who_was_written_to() {
        let quoted = |v6: bool| {
            let b = match v6 {
                false => etherparse::PacketBuilder::ipv4(A4, B4, 64),
                true => etherparse::PacketBuilder::ipv6(A6, B6, 64),
            };
            let mut packet = Vec::new();
            b.udp(1000, 2000).write(&mut packet, b"data").unwrap();
            let mut l4 = vec![0; packet.len() + HEADER_LEN];
            let (from, to) = match v6 {
                false => (IpAddr::from(B4), IpAddr::from(A4)),
                true => (IpAddr::from(B6), IpAddr::from(A6)),
            };
            let kind = IcmpErrorKind::PortUnreachable;
            let len = write_error(&mut l4, kind, from, to, &packet);
            assert_eq!(len, Some(l4.len()));
            let protocol = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
            assert!(is_error(protocol, l4[0]) && !is_redirect(protocol, l4[0]));
            l4
        };
        for (v6, src, dst) in [
            (false, IpAddr::from(A4), IpAddr::from(B4)),
            (true, IpAddr::from(A6), IpAddr::from(B6)),
        ] {
            let l4 = quoted(v6);
            let want = Quote {
                protocol: protocol::UDP,
                source: SocketAddr::new(src, 1000),
                destination: SocketAddr::new(dst, 2000),
            };
            assert_eq!(Quote::read(&l4, v6), Some(want));
            // Of the other family, and with less than eight bytes of UDP.
            assert_eq!(Quote::read(&l4, !v6), None);
            assert_eq!(Quote::read(&l4[..l4.len() - 5], v6), None);
        }
    }
}
