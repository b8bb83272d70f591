//! The IPv6 header and its extension headers (RFC 8200), walked once and within bounds.
//!
//! # Theory of operation
//!
//! The walk goes from the fixed header to the first header that is not an extension, which is the
//! transport protocol; AH, ESP, "no next header" and what is unknown count as such and are the
//! router's to refuse. It ends early at a fragment header: behind that lies the fragment's data.
//!
//! # Limits
//!
//! At most [`MAX_EXTENSION_HEADERS`] headers of together [`MAX_EXTENSION_BYTES`] bytes. A fragment
//! whose data starts with a further extension header is refused: only destination options could
//! legitimately stand there, no stack sends them, and they are a way past filters (RFC 7113).

use std::net::{IpAddr, Ipv6Addr};

use crate::drops::DropReason;
use crate::ethernet::ETHERNET_HEADER_LEN;
use crate::fragment::check_fragment;
use crate::icmp::v6;
use crate::ip::extension::{
    DESTINATION_OPTIONS, FRAGMENT, FRAGMENT_HEADER_LEN, HOP_BY_HOP, ROUTING,
};
use crate::ip::{Fragment, IpHeader, protocol};

/// Extension headers a packet may have.
pub const MAX_EXTENSION_HEADERS: usize = 8;
/// Bytes its extension headers may have together.
pub const MAX_EXTENSION_BYTES: usize = 256;

const HEADER_LEN: usize = 40;

const OPTION_PAD1: u8 = 0;

/// Where the walk over the extension headers ended.
struct Chain {
    protocol: u8,
    /// Bytes of extension headers.
    len: usize,
    /// There was a fragment header, if only an atomic one.
    fragment_header: bool,
    fragment: Option<Fragment>,
}

/// Checks and decodes the header at the start of `packet`, which is the Ethernet payload.
pub(crate) fn parse(packet: &[u8]) -> Result<IpHeader, DropReason> {
    let (h, rest) = packet
        .split_first_chunk::<HEADER_LEN>()
        .ok_or(DropReason::BadIpHeader)?;
    let payload_len = usize::from(u16::from_be_bytes([h[4], h[5]]));
    if h[0] >> 4 != 6 {
        return Err(DropReason::BadIpHeader);
    }
    let payload = rest.get(..payload_len).ok_or(DropReason::BadIpHeader)?;
    if h[7] == 0 {
        return Err(DropReason::TtlExpired);
    }
    let chain = match h[6] {
        // The common case needs no walk.
        protocol @ (protocol::TCP | protocol::UDP | protocol::ICMPV6) => Chain {
            protocol,
            len: 0,
            fragment_header: false,
            fragment: None,
        },
        first => walk(first, payload)?,
    };
    let data = payload.get(chain.len..).unwrap_or_default();
    let icmp_type = match data.first() {
        Some(&t) if chain.protocol == protocol::ICMPV6 => Some(t),
        _ => None,
    };
    let src = address(h, 8);
    let dst = address(h, 24);
    check_source(src, dst, icmp_type.filter(|_| chain.fragment.is_none()))?;
    if chain.fragment_header {
        check_fragmented(&chain, icmp_type, data)?;
    }
    Ok(IpHeader {
        src: IpAddr::V6(src),
        dst: IpAddr::V6(dst),
        protocol: chain.protocol,
        hop_limit: h[7],
        tos: (h[0] << 4) | (h[1] >> 4),
        dont_fragment: true,
        l4: ETHERNET_HEADER_LEN + HEADER_LEN + chain.len,
        end: ETHERNET_HEADER_LEN + HEADER_LEN + payload_len,
        fragment: chain.fragment,
    })
}

fn address(h: &[u8; HEADER_LEN], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&h[at..at + 16]);
    Ipv6Addr::from(octets)
}

fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

fn walk(first: u8, payload: &[u8]) -> Result<Chain, DropReason> {
    let bad = DropReason::BadExtensionHeader;
    let mut chain = Chain {
        protocol: first,
        len: 0,
        fragment_header: false,
        fragment: None,
    };
    let mut headers = 0;
    while is_extension(chain.protocol) {
        let kind = chain.protocol;
        let rest = payload.get(chain.len..).unwrap_or_default();
        let &[next, len, b2, b3, ..] = rest else {
            return Err(bad);
        };
        let len = match kind {
            FRAGMENT => FRAGMENT_HEADER_LEN,
            // In units of eight bytes, the first not counted.
            _ => (usize::from(len) + 1) * 8,
        };
        let header = rest.get(..len).ok_or(bad)?;
        headers += 1;
        chain.protocol = next;
        chain.len += len;
        if headers > MAX_EXTENSION_HEADERS || chain.len > MAX_EXTENSION_BYTES {
            return Err(bad);
        }
        match kind {
            HOP_BY_HOP if headers > 1 => return Err(bad),
            HOP_BY_HOP | DESTINATION_OPTIONS => check_options(header)?,
            // Type 0 is dead (RFC 5095); others are source routes while segments are left.
            ROUTING if b2 == 0 || b3 != 0 => return Err(DropReason::IpOption),
            FRAGMENT if chain.fragment_header => return Err(DropReason::BadFragment),
            FRAGMENT => {
                chain.fragment_header = true;
                chain.fragment = read_fragment(header);
                if chain.fragment.is_some() {
                    if is_extension(next) {
                        return Err(bad);
                    }
                    break;
                }
            }
            _ => {}
        }
    }
    Ok(chain)
}

/// `None` for an atomic fragment, which is a whole datagram (RFC 6946).
fn read_fragment(header: &[u8]) -> Option<Fragment> {
    let &[_, _, o0, o1, i0, i1, i2, i3] = header else {
        return None;
    };
    let word = u16::from_be_bytes([o0, o1]);
    let fragment = Fragment {
        id: u32::from_be_bytes([i0, i1, i2, i3]),
        // Thirteen bits in units of eight bytes stand where the byte offset has its upper bits.
        offset: u32::from(word & 0xfff8),
        more: word & 1 != 0,
    };
    (fragment.offset != 0 || fragment.more).then_some(fragment)
}

/// Checks that the options of a hop-by-hop or destination options header fill it exactly.
fn check_options(header: &[u8]) -> Result<(), DropReason> {
    let mut options = header.get(2..).unwrap_or_default();
    while let [kind, rest @ ..] = options {
        options = if *kind == OPTION_PAD1 {
            rest
        } else {
            // The length counts the option's data alone.
            rest.split_first()
                .and_then(|(&len, data)| data.get(usize::from(len)..))
                .ok_or(DropReason::BadExtensionHeader)?
        };
    }
    Ok(())
}

/// `icmp_type` is that of an unfragmented ICMPv6 message.
fn check_source(src: Ipv6Addr, dst: Ipv6Addr, icmp_type: Option<u8>) -> Result<(), DropReason> {
    let martian = if src.is_unspecified() {
        // Duplicate address detection, the first solicitation, and listener reports before there
        // is an address (RFC 4862 section 5.4.2, RFC 4861 section 4.1, RFC 3590).
        !matches!(
            icmp_type,
            Some(
                v6::NEIGHBOUR_SOLICITATION
                    | v6::ROUTER_SOLICITATION
                    | v6::MLD_REPORT
                    | v6::MLD_DONE
                    | v6::MLD_REPORT_V2
            )
        )
    } else if src == dst {
        return Err(DropReason::Land);
    } else {
        // An IPv4-mapped address names an IPv4 node and has no place on a wire (RFC 4291).
        src.is_multicast() || src.is_loopback() || src.to_ipv4_mapped().is_some()
    };
    if martian {
        return Err(DropReason::MartianSource);
    }
    Ok(())
}

fn check_fragmented(chain: &Chain, icmp_type: Option<u8>, data: &[u8]) -> Result<(), DropReason> {
    let first = chain.fragment.is_none_or(|f| f.offset == 0);
    let ndp = matches!(icmp_type, Some(v6::ROUTER_SOLICITATION..=v6::REDIRECT));
    // Neighbour discovery has no fragment header at all, not even an atomic one (RFC 6980).
    if first && ndp {
        return Err(DropReason::BadFragment);
    }
    match chain.fragment {
        // The reassembled packet keeps the extension headers, but not the fragment header.
        Some(f) => check_fragment(f, chain.protocol, chain.len - FRAGMENT_HEADER_LEN, data),
        None => Ok(()),
    }
}
