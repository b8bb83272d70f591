//! The IPv4 header (RFC 791): every check a forwarder owes it before it believes a word.
//!
//! Source routes are refused (RFC 7126 section 4.3 and 4.4), as are options whose lengths do not
//! add up. A source that cannot be a sender is a martian (RFC 1812 section 5.3.7). Whether the
//! destination may be reached is policy and not asked here.

use std::net::{IpAddr, Ipv4Addr};

use crate::checksum;
use crate::dhcp;
use crate::drops::DropReason;
use crate::ethernet::ETHERNET_HEADER_LEN;
use crate::fragment::check_fragment;
use crate::ip::{Fragment, IpHeader, protocol};

const HEADER_LEN: usize = 20;
const FLAG_DF: u16 = 0x4000;
const FLAG_MF: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;

const DHCP_SERVER_PORT: [u8; 2] = dhcp::v4::SERVER_PORT.to_be_bytes();

/// Checks and decodes the header at the start of `packet`, which is the Ethernet payload.
pub(crate) fn parse(packet: &[u8]) -> Result<IpHeader, DropReason> {
    let h: &[u8; HEADER_LEN] = packet.first_chunk().ok_or(DropReason::BadIpHeader)?;
    let header_len = usize::from(h[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([h[2], h[3]]));
    if h[0] >> 4 != 4 || header_len < HEADER_LEN {
        return Err(DropReason::BadIpHeader);
    }
    let datagram = packet.get(..total).ok_or(DropReason::BadIpHeader)?;
    let (header, data) = datagram
        .split_at_checked(header_len)
        .ok_or(DropReason::BadIpHeader)?;
    if checksum::fold(checksum::add(0, header)) != 0xffff {
        return Err(DropReason::BadIpChecksum);
    }
    if h[8] == 0 {
        return Err(DropReason::TtlExpired);
    }
    check_options(header.get(HEADER_LEN..).unwrap_or_default())?;

    let flags = u16::from_be_bytes([h[6], h[7]]);
    let fragment = (flags & (FLAG_MF | OFFSET_MASK) != 0).then(|| Fragment {
        id: u32::from(u16::from_be_bytes([h[4], h[5]])),
        offset: u32::from(flags & OFFSET_MASK) * 8,
        more: flags & FLAG_MF != 0,
    });
    let src = Ipv4Addr::new(h[12], h[13], h[14], h[15]);
    let dst = Ipv4Addr::new(h[16], h[17], h[18], h[19]);
    let dhcp = h[9] == protocol::UDP
        && fragment.is_none()
        && data.get(2..4).is_some_and(|p| p == DHCP_SERVER_PORT);
    check_source(src, dst, dhcp)?;
    if let Some(f) = fragment {
        check_fragment(f, h[9], header_len, data)?;
    }
    Ok(IpHeader {
        src: IpAddr::V4(src),
        dst: IpAddr::V4(dst),
        protocol: h[9],
        hop_limit: h[8],
        tos: h[1],
        dont_fragment: flags & FLAG_DF != 0,
        l4: ETHERNET_HEADER_LEN + header_len,
        end: ETHERNET_HEADER_LEN + total,
        fragment,
    })
}

fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    while let [kind, rest @ ..] = options {
        options = match *kind {
            OPTION_END => break,
            OPTION_NOP => rest,
            OPTION_LSRR | OPTION_SSRR => return Err(DropReason::IpOption),
            _ => {
                // The length counts the kind and itself.
                let len = rest.first().map_or(0, |&l| usize::from(l));
                match options.get(len..) {
                    Some(next) if len >= 2 => next,
                    _ => return Err(DropReason::IpOption),
                }
            }
        };
    }
    Ok(())
}

/// `dhcp`: the packet is UDP to the DHCP server's port, which a host sends before it has an
/// address (RFC 2131 section 4.1).
fn check_source(src: Ipv4Addr, dst: Ipv4Addr, dhcp: bool) -> Result<(), DropReason> {
    let martian = match src.octets()[0] {
        0 => !(src.is_unspecified() && dst.is_broadcast() && dhcp),
        127 | 224..=255 => true,
        _ => false,
    };
    if src == dst && !src.is_unspecified() {
        Err(DropReason::Land)
    } else if martian {
        Err(DropReason::MartianSource)
    } else {
        Ok(())
    }
}
