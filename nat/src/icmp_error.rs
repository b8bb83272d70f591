//! ICMP and ICMPv6 errors that the router itself sends to a container.
//!
//! An error quotes the packet that caused it: as much as fits a total of 576 bytes in IPv4
//! (RFC 1812 section 4.3.2.3) and 1280 bytes in IPv6 (RFC 4443 section 2.4 c). Its checksums are
//! computed here: it is small, and NEEDS_CSUM on ICMP is not honoured by every receiver.
//!
//! Invariants: whether a packet may be answered with an error at all is asked of
//! [`may_answer_with_error`] first (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e), and how often
//! errors are sent is the caller's to bound, by a [`RateLimit`] (RFC 1812 section 4.3.2.8,
//! RFC 4443 section 2.4 f).

use std::net::IpAddr;

use cnet_wire::frame::protocol;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vnet::VnetHeader;
use cnet_wire::{Frame, FrameSink, IpHeader, PortFull, checksum};

use cnet_wire::headers::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpOut, Link, l4_offset, write_headers};

/// Bytes of the ICMP header before the quote, in both families.
const ICMP_HEADER_LEN: usize = 8;
/// Largest IPv4 packet an error may make (RFC 1812 section 4.3.2.3).
const MAX_ERROR_LEN_V4: usize = 576;
/// Largest IPv6 packet an error may make: the minimum MTU (RFC 4443 section 2.4 c).
const MAX_ERROR_LEN_V6: usize = 1280;
/// TTL and hop limit of an error.
const HOP_LIMIT: u8 = 64;
/// Precedence 6, internetwork control, for IPv4 errors (RFC 1812 section 4.3.2.5).
const TOS_V4: u8 = 0xc0;
/// Position of Next Header in the IPv6 header.
const V6_NEXT_HEADER: usize = 6;

/// What went wrong. The family of the quoted packet decides between ICMP and ICMPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpErrorKind {
    /// No route to the network (3/0; 1/0).
    NetUnreachable,
    /// The host does not answer (3/1; 1/3).
    HostUnreachable,
    /// Nobody listens on the port (3/3; 1/4).
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
            IcmpErrorKind::NetUnreachable => (3, 0, 0),
            IcmpErrorKind::HostUnreachable => (3, 1, 0),
            IcmpErrorKind::ProtocolUnreachable => (3, 2, 0),
            IcmpErrorKind::PortUnreachable => (3, 3, 0),
            // RFC 1191: the MTU has 16 bits, behind 16 unused ones.
            IcmpErrorKind::PacketTooBig { mtu } => (3, 4, mtu.min(0xffff)),
            IcmpErrorKind::Prohibited => (3, 13, 0),
            IcmpErrorKind::TtlExceeded => (11, 0, 0),
            IcmpErrorKind::ReassemblyTimeExceeded => (11, 1, 0),
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
            IcmpErrorKind::NetUnreachable => (1, 0, 0),
            IcmpErrorKind::Prohibited => (1, 1, 0),
            IcmpErrorKind::HostUnreachable => (1, 3, 0),
            IcmpErrorKind::PortUnreachable => (1, 4, 0),
            IcmpErrorKind::PacketTooBig { mtu } => (2, 0, mtu),
            IcmpErrorKind::TtlExceeded => (3, 0, 0),
            IcmpErrorKind::ReassemblyTimeExceeded => (3, 1, 0),
            IcmpErrorKind::ProtocolUnreachable => (4, 1, last_next_header(quote)),
            IcmpErrorKind::Raw {
                icmp_type,
                code,
                info,
            } => (icmp_type, code, info),
        }
    }
}

/// Where in the IPv6 packet `quote` the Next Header field stands that names its transport
/// protocol: the pointer of a parameter problem (RFC 4443 section 3.4).
fn last_next_header(quote: &[u8]) -> u32 {
    let mut field = V6_NEXT_HEADER;
    let mut header = IPV6_HEADER_LEN;
    // Hop-by-hop, routing, fragment, destination options; a packet that got here has few.
    while let (Some(&next), Some(&len)) = (quote.get(field), quote.get(header + 1)) {
        let bytes = match next {
            0 | 43 | 60 => 8 + 8 * usize::from(len),
            44 => 8,
            _ => break,
        };
        field = header;
        header += bytes;
    }
    field as u32
}

/// Builds an ICMP or ICMPv6 error in `buf` and sends it to `to` on `link`, with `from` as source.
///
/// `quote` is the offending packet from its IP header on, in any length; it is cut to what the
/// family's limit (and `buf`) takes. `from`, `to` and `quote` are of one family, that of `to`.
/// Ask [`may_answer_with_error`] and a [`RateLimit`] first.
///
/// # Errors
/// [`PortFull`] when the port did not take the frame, or when `buf` cannot hold even the headers.
pub fn emit_icmp_error(
    sink: &mut impl FrameSink,
    buf: &mut [u8],
    link: &Link,
    from: IpAddr,
    to: IpAddr,
    kind: IcmpErrorKind,
    quote: &[u8],
) -> Result<(), PortFull> {
    let v6 = to.is_ipv6();
    let (protocol, tos, limit, (icmp_type, code, rest)) = if v6 {
        let limit = MAX_ERROR_LEN_V6 - IPV6_HEADER_LEN;
        (protocol::ICMPV6, 0, limit, kind.v6(quote))
    } else {
        let limit = MAX_ERROR_LEN_V4 - IPV4_HEADER_LEN;
        (protocol::ICMP, TOS_V4, limit, kind.v4())
    };
    let l4 = l4_offset(v6);
    let room = buf.len().saturating_sub(l4).min(limit);
    let Some(quote_room) = room.checked_sub(ICMP_HEADER_LEN) else {
        return Err(PortFull);
    };
    let quote = &quote[..quote.len().min(quote_room)];
    let len = ICMP_HEADER_LEN + quote.len();

    let icmp = &mut buf[l4..l4 + len];
    icmp[..4].copy_from_slice(&[icmp_type, code, 0, 0]);
    icmp[4..8].copy_from_slice(&rest.to_be_bytes());
    icmp[8..].copy_from_slice(quote);
    let pseudo = if v6 {
        checksum::pseudo_header(from, to, protocol, len as u32)
    } else {
        0
    };
    let sum = checksum::finish(pseudo, icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let ip = IpOut {
        src: from,
        dst: to,
        protocol,
        hop_limit: HOP_LIMIT,
        tos,
    };
    let vnet = VnetHeader {
        hdr_len: (l4 - cnet_wire::vnet::VNET_HDR_LEN + ICMP_HEADER_LEN) as u16,
        ..VnetHeader::default()
    };
    let end = write_headers(buf, vnet, link, &ip, len);
    sink.emit(link.port, &buf[..end])
}

/// Whether the packet `ip` of `frame` may be answered with an ICMP error: not when it is itself an
/// ICMP error or a redirect, was sent to a group or broadcast address of either layer, is a
/// fragment other than the first, or has a source that names no single host (RFC 1122
/// section 3.2.2, RFC 4443 section 2.4 e).
pub fn may_answer_with_error(frame: &Frame<'_>, ip: &IpHeader) -> bool {
    if frame.dst.is_multicast() || ip.fragment.is_some_and(|f| f.offset != 0) {
        return false;
    }
    let icmp_type = frame.l4(ip).first().copied();
    let is_error = match ip.protocol {
        protocol::ICMP => icmp_type.is_none_or(|t| matches!(t, 3 | 4 | 5 | 11 | 12)),
        protocol::ICMPV6 => icmp_type.is_none_or(|t| t < 128 || t == 137),
        _ => false,
    };
    !is_error && is_unicast(ip.src) && is_unicast(ip.dst)
}

/// Neither a group, nor a broadcast, nor nobody.
fn is_unicast(a: IpAddr) -> bool {
    let special = match a {
        // 240/4 holds the limited broadcast address; the rest of it has no hosts either.
        IpAddr::V4(a) => a.octets()[0] == 0 || a.octets()[0] >= 224,
        IpAddr::V6(a) => a.is_multicast() || a.is_unspecified(),
    };
    !special
}

/// A token bucket, kept as the time at which it would be full again (the generic cell rate
/// algorithm, ITU-T I.371): one number, no arithmetic on the passing of time.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// Time for one token to come; `None` if none ever does.
    interval: Option<Duration>,
    /// How far behind `full_at` the present may be for a token to be left.
    tolerance: Duration,
    full_at: Instant,
}

impl RateLimit {
    /// A full bucket of `burst` tokens, into which `per_second` tokens fall each second. With 0
    /// for either nothing is allowed.
    pub fn new(per_second: u32, burst: u32) -> RateLimit {
        let interval = Duration::from_secs(1)
            .checked_div(per_second)
            .filter(|_| burst > 0);
        RateLimit {
            interval,
            tolerance: interval.unwrap_or_default() * burst.saturating_sub(1),
            full_at: Instant::ZERO,
        }
    }

    /// Takes a token if there is one.
    pub fn allow(&mut self, now: Instant) -> bool {
        let Some(interval) = self.interval else {
            return false;
        };
        if self.full_at.saturating_since(now) > self.tolerance {
            return false;
        }
        self.full_at = self.full_at.max(now) + interval;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnet_wire::frame::{ETHERNET_HEADER_LEN, Fragment};
    use cnet_wire::vnet::VNET_HDR_LEN;
    use cnet_wire::{L3, MacAddr, PortId};
    use proptest::prelude::*;
    use smoltcp::wire::{
        EthernetFrame, Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, Ipv4Packet,
        Ipv6Packet,
    };

    #[derive(Default)]
    struct Wire(Vec<(PortId, Vec<u8>)>);

    impl FrameSink for Wire {
        fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
            self.0.push((port, frame.to_vec()));
            Ok(())
        }
    }

    const LINK: Link = Link {
        port: PortId(3),
        gateway_mac: MacAddr([0x52, 0x55, 10, 0, 2, 2]),
        container_mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
    };

    fn error(from: &str, to: &str, kind: IcmpErrorKind, quote: &[u8]) -> Vec<u8> {
        let mut wire = Wire::default();
        let mut buf = vec![0xaa; 2048];
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        emit_icmp_error(&mut wire, &mut buf, &LINK, from, to, kind, quote).unwrap();
        let (port, frame) = wire.0.pop().unwrap();
        assert_eq!(port, LINK.port);
        let vnet = VnetHeader::decode(&frame).unwrap();
        assert_eq!((vnet.flags, vnet.gso_type), (0, 0));
        let eth = EthernetFrame::new_checked(&frame[VNET_HDR_LEN..]).unwrap();
        assert_eq!(eth.dst_addr().0, LINK.container_mac.0);
        assert_eq!(eth.src_addr().0, LINK.gateway_mac.0);
        eth.payload().to_vec()
    }

    #[test]
    fn v4_error_is_whole_and_quotes_up_to_576_bytes() {
        let quote: Vec<u8> = (0..1500u32).map(|i| i as u8).collect();
        let kind = IcmpErrorKind::PacketTooBig { mtu: 1400 };
        let packet = error("10.0.2.2", "10.0.2.100", kind, &quote);
        assert_eq!(packet.len(), 576);
        let ip = Ipv4Packet::new_checked(&packet[..]).unwrap();
        assert!(ip.verify_checksum());
        let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!(icmp.msg_type(), Icmpv4Message::DstUnreachable);
        assert_eq!(icmp.msg_code(), 4);
        assert_eq!(ip.payload()[4..8], [0, 0, 0x05, 0x78]);
        assert_eq!(ip.payload()[8..], quote[..576 - 28]);
    }

    #[test]
    fn v6_error_is_whole_and_quotes_up_to_1280_bytes() {
        let quote: Vec<u8> = (0..9000u32).map(|i| i as u8).collect();
        let packet = error("fd00::2", "fd00::100", IcmpErrorKind::TtlExceeded, &quote);
        assert_eq!(packet.len(), 1280);
        let ip = Ipv6Packet::new_checked(&packet[..]).unwrap();
        let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
        assert_eq!(icmp.msg_type(), Icmpv6Message::TimeExceeded);
        assert_eq!(ip.payload()[8..], quote[..1280 - 48]);
    }

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

    fn answerable(
        eth_dst: MacAddr,
        src: &str,
        dst: &str,
        protocol: u8,
        first: Option<u8>,
        offset: u32,
    ) -> bool {
        let mut bytes = vec![0; ETHERNET_HEADER_LEN + 20];
        bytes.extend(first);
        let ip = IpHeader {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            protocol,
            hop_limit: 64,
            tos: 0,
            dont_fragment: true,
            l4: ETHERNET_HEADER_LEN + 20,
            end: bytes.len(),
            fragment: Some(Fragment {
                id: 1,
                offset,
                more: true,
            }),
        };
        let frame = Frame {
            vnet: VnetHeader::default(),
            bytes: &bytes,
            dst: eth_dst,
            src: LINK.container_mac,
            l3: L3::Ip(ip),
        };
        may_answer_with_error(&frame, &ip)
    }

    #[test]
    fn no_error_about_errors_groups_and_later_fragments() {
        let gw = LINK.gateway_mac;
        let (a4, b4) = ("10.0.2.100", "192.0.2.1");
        let (a6, b6) = ("fd00::100", "2001:db8::1");
        assert!(answerable(gw, a4, b4, 17, Some(0), 0));
        assert!(answerable(gw, a4, b4, 1, Some(8), 0));
        assert!(answerable(gw, a6, b6, 58, Some(128), 0));
        assert!(!answerable(MacAddr::BROADCAST, a4, b4, 17, Some(0), 0));
        assert!(!answerable(gw, a4, b4, 17, Some(0), 8));
        for t in [3, 4, 5, 11, 12] {
            assert!(!answerable(gw, a4, b4, 1, Some(t), 0), "type {t}");
        }
        for t in [1, 2, 3, 4, 127, 137] {
            assert!(!answerable(gw, a6, b6, 58, Some(t), 0), "type {t}");
        }
        assert!(!answerable(gw, a4, b4, 1, None, 0));
        for dst in ["224.0.0.1", "255.255.255.255", "0.0.0.0"] {
            assert!(!answerable(gw, a4, dst, 17, Some(0), 0), "{dst}");
            assert!(!answerable(gw, dst, b4, 17, Some(0), 0), "{dst}");
        }
        for dst in ["ff02::1", "::"] {
            assert!(!answerable(gw, a6, dst, 17, Some(0), 0), "{dst}");
            assert!(!answerable(gw, dst, b6, 17, Some(0), 0), "{dst}");
        }
    }

    #[test]
    fn a_buffer_too_small_is_refused() {
        let mut wire = Wire::default();
        let (from, to) = ("fd00::2".parse().unwrap(), "fd00::3".parse().unwrap());
        let kind = IcmpErrorKind::TtlExceeded;
        let mut buf = [0; 71];
        let r = emit_icmp_error(&mut wire, &mut buf, &LINK, from, to, kind, &[0; 40]);
        assert_eq!(r, Err(PortFull));
    }

    #[test]
    fn the_bucket_empties_and_refills() {
        let mut limit = RateLimit::new(10, 3);
        let t = Instant::from_millis(500);
        assert_eq!((0..10).filter(|_| limit.allow(t)).count(), 3);
        let t = t + Duration::from_millis(100);
        assert_eq!((0..10).filter(|_| limit.allow(t)).count(), 1);
        let t = t + Duration::from_secs(3600);
        assert_eq!((0..10).filter(|_| limit.allow(t)).count(), 3);
        assert!(!RateLimit::new(0, 3).allow(t));
        assert!(!RateLimit::new(3, 0).allow(t));
    }

    proptest! {
        #[test]
        fn any_quote_makes_a_valid_message(
            quote in proptest::collection::vec(any::<u8>(), 0..2000),
            room in 60usize..2000,
        ) {
            for (from, to) in [("10.0.2.2", "10.0.2.3"), ("fd00::2", "fd00::3")] {
                let mut wire = Wire::default();
                let mut buf = vec![0; room];
                let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
                let kind = IcmpErrorKind::ProtocolUnreachable;
                let sent = emit_icmp_error(&mut wire, &mut buf, &LINK, from, to, kind, &quote);
                prop_assert_eq!(sent.is_ok(), room >= l4_offset(to.is_ipv6()) + 8);
                for (_, frame) in &wire.0 {
                    prop_assert!(frame.len() <= room);
                }
            }
        }
    }
}
