//! ICMP and ICMPv6 errors that the router itself sends to a container.
//!
//! The message and what it quotes is [`icmp::write_error`]'s. Its checksums are computed: it is
//! small, and NEEDS_CSUM on ICMP is not honoured by every receiver.
//!
//! Invariants: whether a packet may be answered with an error at all is asked of
//! [`may_answer_with_error`] first (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e), and how often
//! errors are sent is the caller's to bound, by a [`RateLimit`] (RFC 1812 section 4.3.2.8,
//! RFC 4443 section 2.4 f).

use std::net::IpAddr;

use cnet_wire::frame::protocol;
use cnet_wire::headers::{IpOut, Link, l4_offset, write_headers};
use cnet_wire::icmp;
pub use cnet_wire::icmp::IcmpErrorKind;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vnet::{VNET_HDR_LEN, VnetHeader};
use cnet_wire::{Frame, FrameSink, IpHeader, PortFull};

/// TTL and hop limit of an error.
const HOP_LIMIT: u8 = 64;
/// Precedence 6, internetwork control, for IPv4 errors (RFC 1812 section 4.3.2.5).
const TOS_V4: u8 = 0xc0;
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
    let (protocol, tos) = match v6 {
        true => (protocol::ICMPV6, 0),
        false => (protocol::ICMP, TOS_V4),
    };
    let at = l4_offset(v6);
    let l4 = buf.get_mut(at..).unwrap_or_default();
    let len = icmp::write_error(l4, kind, from, to, quote).ok_or(PortFull)?;
    let ip = IpOut {
        src: from,
        dst: to,
        protocol,
        hop_limit: HOP_LIMIT,
        tos,
    };
    let vnet = VnetHeader {
        hdr_len: (at - VNET_HDR_LEN + icmp::HEADER_LEN) as u16,
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
    let refers =
        |&kind: &u8| icmp::is_error(ip.protocol, kind) || icmp::is_redirect(ip.protocol, kind);
    let is_error = matches!(ip.protocol, protocol::ICMP | protocol::ICMPV6)
        && frame.l4(ip).first().is_none_or(refers);
    !is_error && is_unicast(ip.src) && is_unicast(ip.dst)
}

/// Neither a group, nor a broadcast, nor unspecified.
fn is_unicast(a: IpAddr) -> bool {
    let special = match a {
        IpAddr::V4(a) => a.octets()[0] == 0 || a.is_multicast() || a.is_broadcast(),
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
