//! ICMP and ICMPv6 errors about a packet: their numbers in both protocols, and their writer.
//!
//! An error quotes the packet that caused it: as much as fits a total of 576 bytes in IPv4
//! (RFC 1812 section 4.3.2.3) and 1280 bytes in IPv6 (RFC 4443 section 2.4 c).

use std::net::IpAddr;

use super::{HEADER_LEN, v4, v6, write_checksum};
use crate::headers::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};
use crate::ip::extension::{
    DESTINATION_OPTIONS, FRAGMENT, FRAGMENT_HEADER_LEN, HOP_BY_HOP, ROUTING,
};

/// Largest IPv4 packet an error may make (RFC 1812 section 4.3.2.3).
const MAX_ERROR_LEN_V4: usize = 576;
/// Largest IPv6 packet an error may make: the minimum MTU (RFC 4443 section 2.4 c).
const MAX_ERROR_LEN_V6: usize = 1280;

/// Position of Next Header in the IPv6 header.
const NEXT_HEADER: usize = 6;

/// What went wrong. The family of the quoted packet decides between ICMP and ICMPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpErrorKind {
    /// No route to the network (3/0; 1/0).
    NetUnreachable,
    /// The host does not answer (3/1; 1/3).
    HostUnreachable,
    /// No socket listens on the port (3/3; 1/4).
    PortUnreachable,
    /// The transport protocol is unknown (3/2; parameter problem 4/1 in ICMPv6).
    ProtocolUnreachable,
    /// Forbidden by policy (3/13; 1/1).
    Prohibited,
    /// Too large for the next link (3/4; 2/0).
    PacketTooBig {
        /// The next link's MTU in bytes.
        mtu: u32,
    },
    /// TTL or hop limit spent (11/0; 3/0).
    TtlExceeded,
    /// Fragments of the datagram are missing (11/1; 3/1).
    ReassemblyTimeExceeded,
    /// As received from elsewhere, in the family's own numbers.
    Raw {
        /// ICMP or ICMPv6 type.
        icmp_type: u8,
        /// Code.
        code: u8,
        /// The four bytes behind the checksum: the MTU where the type has one, else 0.
        info: u32,
    },
}

impl IcmpErrorKind {
    /// Type, code and rest of header of the ICMP message.
    fn v4(self) -> (u8, u8, u32) {
        match self {
            IcmpErrorKind::NetUnreachable => (v4::UNREACHABLE, 0, 0),
            IcmpErrorKind::HostUnreachable => (v4::UNREACHABLE, 1, 0),
            IcmpErrorKind::ProtocolUnreachable => (v4::UNREACHABLE, 2, 0),
            IcmpErrorKind::PortUnreachable => (v4::UNREACHABLE, 3, 0),
            // RFC 1191: the MTU has 16 bits, behind 16 unused ones.
            IcmpErrorKind::PacketTooBig { mtu } => {
                (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED, mtu.min(0xffff))
            }
            IcmpErrorKind::Prohibited => (v4::UNREACHABLE, 13, 0),
            IcmpErrorKind::TtlExceeded => (v4::TIME_EXCEEDED, 0, 0),
            IcmpErrorKind::ReassemblyTimeExceeded => (v4::TIME_EXCEEDED, 1, 0),
            IcmpErrorKind::Raw {
                icmp_type,
                code,
                info,
            } => (icmp_type, code, info),
        }
    }

    /// Type, code and rest of header of the ICMPv6 message about `quote`.
    fn v6(self, quote: &[u8]) -> (u8, u8, u32) {
        match self {
            IcmpErrorKind::NetUnreachable => (v6::UNREACHABLE, 0, 0),
            IcmpErrorKind::Prohibited => (v6::UNREACHABLE, 1, 0),
            IcmpErrorKind::HostUnreachable => (v6::UNREACHABLE, 3, 0),
            IcmpErrorKind::PortUnreachable => (v6::UNREACHABLE, 4, 0),
            IcmpErrorKind::PacketTooBig { mtu } => (v6::PACKET_TOO_BIG, 0, mtu),
            IcmpErrorKind::TtlExceeded => (v6::TIME_EXCEEDED, 0, 0),
            IcmpErrorKind::ReassemblyTimeExceeded => (v6::TIME_EXCEEDED, 1, 0),
            // The pointer of RFC 4443 section 3.4.
            IcmpErrorKind::ProtocolUnreachable => {
                (v6::PARAMETER_PROBLEM, 1, last_next_header(quote))
            }
            IcmpErrorKind::Raw {
                icmp_type,
                code,
                info,
            } => (icmp_type, code, info),
        }
    }
}

/// Where in the IPv6 packet `packet`, which may be cut short, the Next Header field stands that
/// names its transport protocol.
fn last_next_header(packet: &[u8]) -> u32 {
    let mut field = NEXT_HEADER;
    let mut header = IPV6_HEADER_LEN;
    // A packet that an error is about has passed the walk, so there are few.
    while let (Some(&next), Some(&len)) = (packet.get(field), packet.get(header + 1)) {
        let bytes = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => 8 + 8 * usize::from(len),
            FRAGMENT => FRAGMENT_HEADER_LEN,
            _ => break,
        };
        field = header;
        header += bytes;
    }
    field as u32
}

/// Writes the error `kind` from `from` to `to` into `l4`, its checksum included, and returns its
/// length in bytes. `quote` is the offending packet from its IP header on, in any length; it is cut
/// to what the family's limit and `l4` take. All are of one family, that of `to`. `None` if `l4`
/// cannot hold even the header.
pub fn write_error(
    l4: &mut [u8],
    kind: IcmpErrorKind,
    from: IpAddr,
    to: IpAddr,
    quote: &[u8],
) -> Option<usize> {
    let (limit, (icmp_type, code, rest)) = match to {
        IpAddr::V4(_) => (MAX_ERROR_LEN_V4 - IPV4_HEADER_LEN, kind.v4()),
        IpAddr::V6(_) => (MAX_ERROR_LEN_V6 - IPV6_HEADER_LEN, kind.v6(quote)),
    };
    let quote_room = l4.len().min(limit).checked_sub(HEADER_LEN)?;
    let quote = &quote[..quote.len().min(quote_room)];
    let len = HEADER_LEN + quote.len();
    let l4 = &mut l4[..len];
    l4[..2].copy_from_slice(&[icmp_type, code]);
    l4[4..HEADER_LEN].copy_from_slice(&rest.to_be_bytes());
    l4[HEADER_LEN..].copy_from_slice(quote);
    write_checksum(l4, from, to);
    Some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_numbers_of_their_family() {
        use IcmpErrorKind::*;
        let raw = Raw {
            icmp_type: 3,
            code: 9,
            info: 7,
        };
        let v4 = [
            (NetUnreachable, (3, 0, 0)),
            (HostUnreachable, (3, 1, 0)),
            (ProtocolUnreachable, (3, 2, 0)),
            (PortUnreachable, (3, 3, 0)),
            (PacketTooBig { mtu: 1 << 20 }, (3, 4, 0xffff)),
            (Prohibited, (3, 13, 0)),
            (TtlExceeded, (11, 0, 0)),
            (ReassemblyTimeExceeded, (11, 1, 0)),
            (raw, (3, 9, 7)),
        ];
        for (kind, want) in v4 {
            assert_eq!(kind.v4(), want, "{kind:?}");
        }
        let v6 = [
            (NetUnreachable, (1, 0, 0)),
            (Prohibited, (1, 1, 0)),
            (HostUnreachable, (1, 3, 0)),
            (PortUnreachable, (1, 4, 0)),
            (PacketTooBig { mtu: 1 << 20 }, (2, 0, 1 << 20)),
            (TtlExceeded, (3, 0, 0)),
            (ReassemblyTimeExceeded, (3, 1, 0)),
            (ProtocolUnreachable, (4, 1, 6)),
            (raw, (3, 9, 7)),
        ];
        for (kind, want) in v6 {
            assert_eq!(kind.v6(&[]), want, "{kind:?}");
        }
    }

    #[test]
    fn parameter_problem_points_behind_extension_headers() {
        let mut quote = vec![0; 40 + 16 + 8 + 4];
        quote[6] = 60; // destination options of 16 bytes
        quote[40] = 44;
        quote[41] = 1;
        quote[56] = 132; // fragment header, then SCTP
        assert_eq!(last_next_header(&quote), 56);
        assert_eq!(last_next_header(&quote[..41]), 6);
    }
}
