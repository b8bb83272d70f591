//! Neighbour discovery messages (RFC 4861) and the options of router advertisements (RFC 4191,
//! RFC 8106).
//!
//! Reading is stricter than smoltcp's `NdiscRepr`, which skips options that it cannot parse: here
//! an option of length zero, one past the end, a trailing octet, and a link-layer address that is
//! not Ethernet's refuse the message. Writing has options that smoltcp does not know: route
//! information, DNS servers and search list.
//!
//! The writers give what follows type, code and checksum, as [`IcmpMessage::rest`] wants it.

use std::net::Ipv6Addr;

use crate::addr::MacAddr;
use crate::dns::encode_names;
use crate::drops::DropReason;
use crate::ethernet::{ETHERNET_HEADER_LEN, ETHERTYPE_IPV6};
use crate::headers::IPV6_HEADER_LEN;
use crate::icmp::{self, IcmpMessage, v6};
use crate::ip::protocol;
use crate::vnet::VNET_HDR_LEN;

/// The hop limit that proves a message to be from the link itself (RFC 4861 section 7.1).
pub const HOP_LIMIT: u8 = 255;
/// A lifetime without end, in seconds.
const INFINITE: [u8; 4] = [0xff; 4];
/// Bytes of type, code, checksum and the four octets of flags and such that every message has.
const HEADER_LEN: usize = 8;
/// Bytes of header and target address.
const TARGET_END: usize = HEADER_LEN + 16;
/// Bytes of search list an advertisement carries at most.
const MAX_SEARCH_LEN: usize = 512;

const OPT_SOURCE_LINK_LAYER: u8 = 1;
const OPT_TARGET_LINK_LAYER: u8 = 2;
const OPT_PREFIX: u8 = 3;
const OPT_MTU: u8 = 5;
const OPT_ROUTE: u8 = 24;
const OPT_RDNSS: u8 = 25;
const OPT_DNSSL: u8 = 31;

const RA_MANAGED: u8 = 0x80;
const RA_OTHER: u8 = 0x40;
const PREFIX_ON_LINK: u8 = 0x80;
const PREFIX_AUTONOMOUS: u8 = 0x40;
const NA_ROUTER: u8 = 0x80;
const NA_SOLICITED: u8 = 0x40;
const NA_OVERRIDE: u8 = 0x20;

/// One option of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NdpOption<'a> {
    kind: u8,
    /// Without type and length: at least six bytes.
    value: &'a [u8],
}

impl NdpOption<'_> {
    /// The first six bytes of a source or target link-layer address option, an Ethernet address
    /// unless the option is longer; `None` in other options.
    pub fn link_layer_address(&self) -> Option<MacAddr> {
        match self.kind {
            OPT_SOURCE_LINK_LAYER | OPT_TARGET_LINK_LAYER => {
                self.value.first_chunk().copied().map(MacAddr)
            }
            _ => None,
        }
    }
}

/// The options of a message, in order. After an error there are no more.
#[derive(Clone, Copy, Debug)]
pub struct NdpOptions<'a>(&'a [u8]);

impl<'a> NdpOptions<'a> {
    /// The options of the solicitation or neighbour advertisement in `l4`.
    ///
    /// # Errors
    /// [`DropReason::BadIcmp`] if the message ends before them.
    pub fn of(l4: &'a [u8]) -> Result<NdpOptions<'a>, DropReason> {
        let at = match l4.first() {
            Some(&v6::ROUTER_SOLICITATION) => HEADER_LEN,
            _ => TARGET_END,
        };
        l4.get(at..).map(NdpOptions).ok_or(DropReason::BadIcmp)
    }

    /// Source and target link-layer address; the last of each kind counts.
    fn link_layer_addresses(self) -> Result<[Option<MacAddr>; 2], DropReason> {
        let mut found = [None; 2];
        for option in self {
            let option = option?;
            if let Some(mac) = option.link_layer_address() {
                if option.value.len() != mac.0.len() {
                    return Err(DropReason::BadIcmp);
                }
                found[usize::from(option.kind == OPT_TARGET_LINK_LAYER)] = Some(mac);
            }
        }
        Ok(found)
    }
}

impl<'a> Iterator for NdpOptions<'a> {
    type Item = Result<NdpOption<'a>, DropReason>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.0);
        if rest.is_empty() {
            return None;
        }
        let &[kind, units, ..] = rest else {
            return Some(Err(DropReason::BadIcmp));
        };
        // In units of eight bytes; zero would never end (RFC 4861 section 4.6).
        match rest.split_at_checked(usize::from(units) * 8) {
            Some(([_, _, value @ ..], next)) => {
                self.0 = next;
                Some(Ok(NdpOption { kind, value }))
            }
            _ => Some(Err(DropReason::BadIcmp)),
        }
    }
}

/// The target of the neighbour solicitation or advertisement in `l4`; `None` if the message is cut
/// short.
pub fn target(l4: &[u8]) -> Option<Ipv6Addr> {
    let octets: &[u8; 16] = l4.get(HEADER_LEN..)?.first_chunk()?;
    Some(Ipv6Addr::from(*octets))
}

/// A message that came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NdpMessage {
    /// A station asks for routers.
    RouterSolicitation {
        /// Its address on the link.
        source: Option<MacAddr>,
    },
    /// A station asks who has an address.
    NeighbourSolicitation {
        /// The address, which is no group's.
        target: Ipv6Addr,
        /// The station's address on the link.
        source: Option<MacAddr>,
    },
    /// A station says that it has an address.
    NeighbourAdvertisement {
        /// The address, which is no group's.
        target: Ipv6Addr,
        /// Whether it answers a solicitation.
        solicited: bool,
        /// Where the address is on the link, if not where the frame came from.
        mac: Option<MacAddr>,
    },
    /// A station says that it is a router; not read further.
    RouterAdvertisement,
    /// A router names a better one; not read further.
    Redirect,
}

impl NdpMessage {
    /// Reads the ICMPv6 message in `l4`. The checksum and hop limit are not verified.
    ///
    /// # Errors
    /// [`DropReason::BadIcmp`]: cut short, of another type, a code that is not 0, a target that is
    /// a group, or options that do not add up.
    pub fn read(l4: &[u8]) -> Result<NdpMessage, DropReason> {
        let &[kind, code, _, _, flags, _, _, _] = l4.first_chunk().ok_or(DropReason::BadIcmp)?;
        if code != 0 {
            return Err(DropReason::BadIcmp);
        }
        let of_one_station = || {
            let target = target(l4).filter(|target| !target.is_multicast());
            target.ok_or(DropReason::BadIcmp)
        };
        match kind {
            v6::ROUTER_SOLICITATION => {
                let [source, _] = NdpOptions::of(l4)?.link_layer_addresses()?;
                Ok(NdpMessage::RouterSolicitation { source })
            }
            v6::NEIGHBOUR_SOLICITATION => {
                let target = of_one_station()?;
                let [source, _] = NdpOptions::of(l4)?.link_layer_addresses()?;
                Ok(NdpMessage::NeighbourSolicitation { target, source })
            }
            v6::NEIGHBOUR_ADVERTISEMENT => {
                let target = of_one_station()?;
                let [_, mac] = NdpOptions::of(l4)?.link_layer_addresses()?;
                Ok(NdpMessage::NeighbourAdvertisement {
                    target,
                    solicited: flags & NA_SOLICITED != 0,
                    mac,
                })
            }
            v6::ROUTER_ADVERTISEMENT => Ok(NdpMessage::RouterAdvertisement),
            v6::REDIRECT => Ok(NdpMessage::Redirect),
            _ => Err(DropReason::BadIcmp),
        }
    }
}

/// A router's neighbour solicitation: who has `target`?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighbourSolicitation {
    /// The address asked for.
    pub target: Ipv6Addr,
    /// The router's address on the link.
    pub source: MacAddr,
}

impl NeighbourSolicitation {
    /// All that follows the checksum.
    pub fn write(&self) -> Vec<u8> {
        let mut rest = vec![0; 4];
        rest.extend(self.target.octets());
        put_link_layer(&mut rest, OPT_SOURCE_LINK_LAYER, self.source);
        rest
    }
}

/// A router's neighbour advertisement, which overrides what the station knew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighbourAdvertisement {
    /// The router's address that is told.
    pub target: Ipv6Addr,
    /// Whether it answers a station that has an address.
    pub solicited: bool,
    /// The router's address on the link.
    pub mac: MacAddr,
}

impl NeighbourAdvertisement {
    /// All that follows the checksum.
    pub fn write(&self) -> Vec<u8> {
        let solicited = if self.solicited { NA_SOLICITED } else { 0 };
        let mut rest = vec![NA_ROUTER | NA_OVERRIDE | solicited, 0, 0, 0];
        rest.extend(self.target.octets());
        put_link_layer(&mut rest, OPT_TARGET_LINK_LAYER, self.mac);
        rest
    }
}

/// Bytes of the frame that [`answer`] makes.
pub const ANSWER_LEN: usize = VNET_HDR_LEN + ETHERNET_HEADER_LEN + IPV6_HEADER_LEN + ADVERTISED_LEN;
/// An advertisement with the sender's link-layer address.
const ADVERTISED_LEN: usize = 32;

/// The frame, virtio-net header first, by which the station at `mac` that has `target` answers the
/// solicitation of `asker`: what a switch says in its place.
pub fn answer(
    target: Ipv6Addr,
    mac: MacAddr,
    (asker, asker_mac): (Ipv6Addr, MacAddr),
) -> [u8; ANSWER_LEN] {
    let mut frame = [0; ANSWER_LEN];
    let ethernet = &mut frame[VNET_HDR_LEN..];
    ethernet[..6].copy_from_slice(&asker_mac.0);
    ethernet[6..12].copy_from_slice(&mac.0);
    ethernet[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
    let (ip, icmp) = ethernet[ETHERNET_HEADER_LEN..].split_at_mut(IPV6_HEADER_LEN);
    ip[0] = 0x60;
    ip[5] = ADVERTISED_LEN as u8;
    ip[6..8].copy_from_slice(&[protocol::ICMPV6, HOP_LIMIT]);
    ip[8..24].copy_from_slice(&target.octets());
    ip[24..40].copy_from_slice(&asker.octets());
    icmp[0] = v6::NEIGHBOUR_ADVERTISEMENT;
    icmp[4] = NA_SOLICITED | NA_OVERRIDE;
    icmp[8..24].copy_from_slice(&target.octets());
    icmp[24..26].copy_from_slice(&[OPT_TARGET_LINK_LAYER, 1]);
    icmp[26..32].copy_from_slice(&mac.0);
    icmp::write_checksum(icmp, target.into(), asker.into());
    frame
}

/// A router advertisement. What it tells besides the router's own lifetime has no end, but perhaps
/// the prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouterAdvertisement<'a> {
    /// The hop limit that stations are to use.
    pub hop_limit: u8,
    /// Whether DHCPv6 gives addresses (M).
    pub managed: bool,
    /// Seconds for which the router is a default router; 0 if it is none.
    pub lifetime: u16,
    /// The router's address on the link.
    pub mac: MacAddr,
    /// The link's MTU in bytes.
    pub mtu: Option<u16>,
    /// The prefix on the link.
    pub prefix: Ipv6Addr,
    /// Its bits.
    pub prefix_len: u8,
    /// Whether stations make addresses of it themselves.
    pub autonomous: bool,
    /// Its valid and preferred lifetime in seconds; `None` for without end.
    pub prefix_lifetimes: Option<(u32, u32)>,
    /// Whether there is a route to ::/0 (RFC 4191).
    pub default_route: bool,
    /// The DNS server.
    pub dns: Option<Ipv6Addr>,
    /// Domains in which resolvers search.
    pub search: &'a [String],
}

impl RouterAdvertisement<'_> {
    /// All that follows the checksum. DHCPv6 is said to serve the rest (O).
    pub fn write(&self) -> Vec<u8> {
        let managed = if self.managed { RA_MANAGED } else { 0 };
        let mut ra = vec![self.hop_limit, RA_OTHER | managed];
        ra.extend(self.lifetime.to_be_bytes());
        // Reachable time and retransmission timer: unspecified.
        ra.extend([0; 8]);
        put_link_layer(&mut ra, OPT_SOURCE_LINK_LAYER, self.mac);
        if let Some(mtu) = self.mtu {
            ra.extend([OPT_MTU, 1, 0, 0]);
            ra.extend(u32::from(mtu).to_be_bytes());
        }
        let autonomous = if self.autonomous {
            PREFIX_AUTONOMOUS
        } else {
            0
        };
        let flags = PREFIX_ON_LINK | autonomous;
        ra.extend([OPT_PREFIX, 4, self.prefix_len, flags]);
        let (valid, preferred) = self.prefix_lifetimes.unwrap_or((u32::MAX, u32::MAX));
        ra.extend(valid.to_be_bytes());
        ra.extend(preferred.to_be_bytes());
        ra.extend([0; 4]);
        ra.extend(self.prefix.octets());
        if self.default_route {
            ra.extend([OPT_ROUTE, 1, 0, 0]);
            ra.extend(INFINITE);
        }
        if let Some(dns) = self.dns {
            ra.extend([OPT_RDNSS, 3, 0, 0]);
            ra.extend(INFINITE);
            ra.extend(dns.octets());
        }
        let mut names = encode_names(self.search, MAX_SEARCH_LEN);
        if !names.is_empty() {
            names.resize(names.len().next_multiple_of(8), 0);
            ra.extend([OPT_DNSSL, 1 + (names.len() / 8) as u8, 0, 0]);
            ra.extend(INFINITE);
            ra.extend(names);
        }
        ra
    }
}

fn put_link_layer(rest: &mut Vec<u8>, kind: u8, mac: MacAddr) {
    rest.extend([kind, 1]);
    rest.extend(mac.0);
}

impl<'a> IcmpMessage<'a> {
    /// The message of type `kind` whose `rest` one of the writers above made.
    pub fn ndp(kind: u8, rest: &'a [u8]) -> IcmpMessage<'a> {
        IcmpMessage {
            kind,
            code: 0,
            rest,
        }
    }
}

#[cfg(test)]
mod tests;
