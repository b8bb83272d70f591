//! What an ICMP error from a container quotes.
//!
//! A container's kernel answers a packet it cannot deliver with an ICMP error. The host's sockets
//! have no way to pass that on, so such an error is dropped whatever it says; but an honest one and
//! one made up to look like it (RFC 5927) are counted apart. An honest one quotes a packet that was
//! sent to the container: its destination is the container's own address, and a flow led there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cnet_wire::frame::protocol;
use cnet_wire::{DropReason, Frame, IpHeader};

use cnet_wire::headers::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};

/// Bytes of an ICMP error before its quote.
const ICMP_HEADER_LEN: usize = 8;

/// A quoted packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote {
    /// Transport protocol.
    pub protocol: u8,
    /// Who sent it, as the container was shown: for echo with port 0.
    pub source: SocketAddr,
    /// The container; for echo the identifier stands in the port's place.
    pub destination: SocketAddr,
}

impl Quote {
    /// The quote of the ICMP or ICMPv6 error `ip` of `frame`. `None` if it quotes less than eight
    /// bytes of transport header, or anything but TCP, UDP or an echo message that was sent to the
    /// error's own sender.
    fn read(frame: &Frame<'_>, ip: &IpHeader) -> Option<Quote> {
        let packet = frame.l4(ip).get(ICMP_HEADER_LEN..)?;
        let (protocol, src, dst, l4) = match ip.src {
            IpAddr::V4(_) => {
                let h: &[u8; IPV4_HEADER_LEN] = packet.first_chunk()?;
                let header = usize::from(h[0] & 15) * 4;
                if h[0] >> 4 != 4 || header < IPV4_HEADER_LEN {
                    return None;
                }
                let src = Ipv4Addr::new(h[12], h[13], h[14], h[15]).into();
                let dst = Ipv4Addr::new(h[16], h[17], h[18], h[19]).into();
                (h[9], src, dst, packet.get(header..)?)
            }
            IpAddr::V6(_) => {
                let h: &[u8; IPV6_HEADER_LEN] = packet.first_chunk()?;
                if h[0] >> 4 != 6 {
                    return None;
                }
                let src = Ipv6Addr::from(*h[8..].first_chunk::<16>()?).into();
                let dst = Ipv6Addr::from(*h[24..].first_chunk::<16>()?).into();
                (h[6], src, dst, packet.get(IPV6_HEADER_LEN..)?)
            }
        };
        let &[a, b, c, d, e, f, _, _] = l4.first_chunk()?;
        let (source_port, destination_port) = match protocol {
            protocol::TCP | protocol::UDP => ([a, b], [c, d]),
            protocol::ICMP | protocol::ICMPV6 => ([0, 0], [e, f]),
            _ => return None,
        };
        (dst == ip.src).then(|| Quote {
            protocol,
            source: SocketAddr::new(src, u16::from_be_bytes(source_port)),
            destination: SocketAddr::new(dst, u16::from_be_bytes(destination_port)),
        })
    }
}

/// Judges the ICMP or ICMPv6 message `ip` of `frame`, which is not an echo request. `owns` tells
/// whether a flow leads to where the quoted packet was sent.
pub(super) fn judge(
    frame: &Frame<'_>,
    ip: &IpHeader,
    owns: impl FnOnce(&Quote) -> bool,
) -> DropReason {
    let icmp_type = frame.l4(ip).first().copied().unwrap_or_default();
    let is_error = match ip.protocol {
        protocol::ICMP => matches!(icmp_type, 3 | 4 | 11 | 12),
        _ => icmp_type < 128,
    };
    match is_error {
        true if Quote::read(frame, ip).is_some_and(|quote| owns(&quote)) => DropReason::NotServed,
        true => DropReason::ForgedQuote,
        false => DropReason::NotServed,
    }
}
