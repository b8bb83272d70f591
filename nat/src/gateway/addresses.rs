//! The gateway's own addresses, and what can be an address on its links.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cnet_wire::MacAddr;

/// The gateway's IPv4 side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4Gateway {
    /// The gateway's address.
    pub address: Ipv4Addr,
    /// Bits of the subnet, at most 32.
    pub prefix_len: u8,
    /// The address that serves DNS; may be the gateway's own.
    pub dns: Option<Ipv4Addr>,
}

/// The gateway's IPv6 side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6Gateway {
    /// The gateway's address.
    pub address: Ipv6Addr,
    /// Bits of the prefix, at most 128; containers configure themselves (SLAAC) if it is 64.
    pub prefix_len: u8,
    /// The address that serves DNS; may be the gateway's own.
    pub dns: Option<Ipv6Addr>,
    /// Whether router advertisements offer a default route.
    pub advertise_default_route: bool,
}

/// All nodes on the link (RFC 4291 section 2.7.1).
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers on the link.
pub(super) const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// All DHCPv6 servers and relays on the link (RFC 8415 section 7.1).
pub(super) const ALL_DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

impl Ipv4Gateway {
    pub(super) fn mask(self) -> Ipv4Addr {
        let ones = u32::MAX.checked_shl(32 - u32::from(self.prefix_len.min(32)));
        Ipv4Addr::from(ones.unwrap_or(0))
    }

    /// Whether `a` is in the subnet.
    pub(super) fn contains(self, a: Ipv4Addr) -> bool {
        a & self.mask() == self.network()
    }

    fn network(self) -> Ipv4Addr {
        self.address & self.mask()
    }

    /// The subnet's broadcast address; none in a /31 or /32 (RFC 3021).
    pub(super) fn broadcast(self) -> Option<Ipv4Addr> {
        (self.prefix_len < 31).then(|| self.address | !self.mask())
    }

    /// Whether `a` could be a container's address in the subnet.
    pub(super) fn is_host(self, a: Ipv4Addr) -> bool {
        self.contains(a)
            && a != self.address
            && Some(a) != self.dns
            && (self.prefix_len >= 31 || (a != self.network() && Some(a) != self.broadcast()))
    }
}

impl Ipv6Gateway {
    fn mask(self) -> Ipv6Addr {
        let ones = u128::MAX.checked_shl(128 - u32::from(self.prefix_len.min(128)));
        Ipv6Addr::from(ones.unwrap_or(0))
    }

    pub(super) fn prefix(self) -> Ipv6Addr {
        self.address & self.mask()
    }

    /// Whether `a` is in the prefix.
    pub(super) fn contains(self, a: Ipv6Addr) -> bool {
        a & self.mask() == self.prefix()
    }
}

/// The addresses of one gateway.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub(super) v4: Option<Ipv4Gateway>,
    pub(super) v6: Option<Ipv6Gateway>,
    /// The address router advertisements come from.
    pub(super) link_local: Ipv6Addr,
    /// See [`Quirks::host_subnets`](super::Quirks::host_subnets).
    pub(super) host_subnets: bool,
}

impl Addresses {
    /// Whether the gateway listens to `ip`: its addresses, groups and broadcast addresses. Asked for
    /// every packet, so it compares plainly.
    pub(super) fn owns(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(a) => self.v4.as_ref().is_some_and(|v4| {
                a == v4.address
                    || v4.dns == Some(a)
                    || a.is_broadcast()
                    || v4.broadcast() == Some(a)
            }),
            IpAddr::V6(a) => self.v6.as_ref().is_some_and(|v6| {
                a == v6.address
                    || a == self.link_local
                    || v6.dns == Some(a)
                    || a.is_multicast()
                        && ([ALL_NODES, ALL_ROUTERS, ALL_DHCP_SERVERS].contains(&a)
                            || self.host_subnets && a == solicited_node(a)
                            || self.own_v6().any(|own| a == solicited_node(own)))
            }),
        }
    }

    /// Whether `ip` is one of the addresses the gateway answers from.
    pub(super) fn owns_unicast(&self, ip: IpAddr) -> bool {
        self.unicast().any(|own| ip == own)
    }

    /// The addresses the gateway answers from.
    pub(super) fn unicast(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v6 = self.own_v6().map(IpAddr::V6);
        self.own_v4().map(IpAddr::V4).chain(v6)
    }

    fn own_v4(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let v4 = self.v4.into_iter();
        v4.flat_map(|v4| std::iter::once(v4.address).chain(v4.dns))
    }

    fn own_v6(&self) -> impl Iterator<Item = Ipv6Addr> + use<> {
        let link_local = self.link_local;
        let v6 = self.v6.into_iter();
        v6.flat_map(move |v6| [v6.address, link_local].into_iter().chain(v6.dns))
    }

    /// Whether `ip` is another router's, for which the gateway stands on the link alone.
    pub(super) fn stands_for(&self, ip: IpAddr) -> bool {
        self.host_subnets
            && match ip {
                IpAddr::V4(a) => self.v4.is_some_and(|v4| v4.address == a),
                IpAddr::V6(a) => self.v6.is_some_and(|v6| v6.address == a) && a != self.link_local,
            }
    }

    /// Whether the network has the family of `ip`.
    pub(super) fn has_family(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(_) => self.v4.is_some(),
            IpAddr::V6(_) => self.v6.is_some(),
        }
    }

    /// Whether a container looks for `ip` on its own link, without asking the gateway.
    pub(super) fn is_on_link(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(a) => self.v4.is_some_and(|v4| v4.contains(a)),
            IpAddr::V6(a) => a.is_unicast_link_local() || self.v6.is_some_and(|v6| v6.contains(a)),
        }
    }

    /// Whether `ip` is a DNS address.
    pub(super) fn is_dns(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(a) => self.v4.is_some_and(|v4| v4.dns == Some(a)),
            IpAddr::V6(a) => self.v6.is_some_and(|v6| v6.dns == Some(a)),
        }
    }
}

/// The solicited-node group of `a` (RFC 4291 section 2.7.1).
pub(super) fn solicited_node(a: Ipv6Addr) -> Ipv6Addr {
    let low = u128::from(a) & 0xff_ffff;
    Ipv6Addr::from(0xff02_0000_0000_0000_0000_0001_ff00_0000_u128 | low)
}

/// The MAC address of an IPv6 group (RFC 2464 section 7).
pub(super) fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}
