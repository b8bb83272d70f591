//! The interfaces of the current network namespace with their addresses and routes, as they are now
//! (rtnetlink(7)): what a namespace is given that is to look like its host.
//!
//! # Theory of operation
//!
//! Links, addresses and routes are three dumps, read whole. Of routes, those of the main table count
//! that send packets on their way through one interface (`unicast`); the kernel's own, which follow
//! from addresses, are left out, since they follow from the addresses of a copy as well.
//!
//! # Limits
//!
//! Routes with several next hops are passed over.

use std::io;
use std::net::IpAddr;

use super::Route;
use super::rtnetlink::Rtnetlink;
use crate::error::TapError;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// One interface of the host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostLink {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one of Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Its addresses that reach beyond the link, with their prefix lengths, in the kernel's order.
    pub addresses: Vec<(IpAddr, u8)>,
    /// All its addresses but those of the link alone.
    pub own: Vec<IpAddr>,
    /// Routes through it, in the kernel's order, which are not the kernel's own.
    pub routes: Vec<Route>,
}

impl HostLink {
    /// Where the default route of a family through it leads, the one of the lowest metric:
    /// `Some(None)` for a link without a gateway, such as a point-to-point one.
    pub fn default_gateway(&self, ipv6: bool) -> Option<Option<IpAddr>> {
        default_of(&self.routes, ipv6).map(|route| route.gateway)
    }

    /// The lowest metric of its default routes of a family.
    fn default_metric(&self, ipv6: bool) -> Option<u32> {
        default_of(&self.routes, ipv6).map(|route| route.metric)
    }
}

fn default_of(routes: &[Route], ipv6: bool) -> Option<&Route> {
    let defaults = routes.iter().filter(|route| {
        let (destination, len) = route.destination;
        len == 0 && destination.is_ipv6() == ipv6
    });
    defaults.min_by_key(|route| route.metric)
}

/// All interfaces of a network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostLinks(Vec<HostLink>);

impl HostLinks {
    /// Those of the current network namespace.
    ///
    /// # Errors
    ///
    /// [`TapError::Netlink`] with what netlink(7) says.
    pub fn read() -> Result<HostLinks, TapError> {
        let mut rtnetlink = Rtnetlink::open()?;
        read(&mut rtnetlink).map_err(|source| TapError::Netlink { source })
    }

    /// The interface that the default route of a family leads through: the one of the lowest metric.
    pub fn default(&self, ipv6: bool) -> Option<&HostLink> {
        let ways = self.0.iter();
        let ways = ways.filter_map(|link| Some((link.default_metric(ipv6)?, link)));
        ways.min_by_key(|(metric, _)| *metric).map(|(_, link)| link)
    }

    /// Each interface's name with all its addresses that are not of the link alone, the loopback's too.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, &[IpAddr])> {
        let links = self.0.iter();
        links.map(|link| (link.name.as_str(), link.own.as_slice()))
    }

    /// The interface of that name.
    pub fn named(&self, name: &str) -> Option<&HostLink> {
        self.0.iter().find(|link| link.name == name)
    }
}

fn read(rtnetlink: &mut Rtnetlink) -> io::Result<HostLinks> {
    let mut links = Vec::new();
    for message in rtnetlink.list(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        if let RouteNetlinkMessage::NewLink(link) = message {
            links.push(link_of(&link));
        }
    }
    for message in rtnetlink.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        if let RouteNetlinkMessage::NewAddress(address) = message
            && let Some(own) = address_of(&address)
            && let Some(link) = by_index(&mut links, address.header.index)
        {
            link.own.push(own.0);
            if address.header.scope == AddressScope::Universe {
                link.addresses.push(own);
            }
        }
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        for message in rtnetlink.list(RouteNetlinkMessage::GetRoute(all))? {
            if let RouteNetlinkMessage::NewRoute(route) = message
                && let Some((index, route)) = route_of(&route)
                && let Some(link) = by_index(&mut links, index)
            {
                link.routes.push(route);
            }
        }
    }
    Ok(HostLinks(links))
}

fn by_index(links: &mut [HostLink], index: u32) -> Option<&mut HostLink> {
    links.iter_mut().find(|link| link.index == index)
}

fn link_of(message: &LinkMessage) -> HostLink {
    let mut link = HostLink {
        index: message.header.index,
        ..HostLink::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => {
                link.mac = <[u8; 6]>::try_from(mac.as_slice())
                    .ok()
                    .filter(|mac| *mac != [0; 6]);
            }
            _ => {}
        }
    }
    link
}

/// An address that is not of the link alone.
fn address_of(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    if message.header.scope == AddressScope::Link {
        return None;
    }
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link `Address` is the other end's (`<linux/if_addr.h>`).
            AddressAttribute::Local(own) => {
                address = Some(*own);
                break;
            }
            AddressAttribute::Address(other) => address = Some(*other),
            _ => {}
        }
    }
    address.map(|address| (address, message.header.prefix_len))
}

/// A route that a copy of the interface needs, with the index of the interface.
fn route_of(message: &RouteMessage) -> Option<(u32, Route)> {
    let header = &message.header;
    let is_kernels = header.protocol == RouteProtocol::Kernel;
    if header.kind != RouteType::Unicast
        || header.table != RouteHeader::RT_TABLE_MAIN
        || is_kernels
        || header.flags.contains(RouteFlags::Cloned)
    {
        return None;
    }
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0_u16; 8]),
        _ => return None,
    };
    let mut route = Route {
        destination: (unspecified, header.destination_prefix_length),
        gateway: None,
        source: None,
        metric: 0,
    };
    let mut index = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => route.destination.0 = ip(to)?,
            RouteAttribute::Gateway(via) => route.gateway = Some(ip(via)?),
            RouteAttribute::PrefSource(from) => route.source = Some(ip(from)?),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Oif(through) => index = Some(*through),
            // An IPv4 route through an IPv6 router.
            RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => return None,
            _ => {}
        }
    }
    Some((index?, route))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_there_and_no_way_out() {
        let links = HostLinks::read().unwrap();
        let lo = links.named("lo").unwrap();
        // Its addresses reach no further than the host.
        assert_eq!((lo.mac, lo.addresses.len()), (None, 0));
        let all = { links.addresses() }.find(|(name, _)| *name == "lo");
        assert!(all.is_some_and(|(_, all)| all.contains(&[127, 0, 0, 1].into())));
        assert_eq!(lo.default_gateway(false), None);
        assert!(links.named("no-such-if").is_none());
    }

    #[test]
    fn the_default_route_of_the_lowest_metric_counts() {
        let route = |len, metric, gateway: &str| Route {
            destination: ([0; 4].into(), len),
            gateway: Some(gateway.parse().unwrap()),
            source: None,
            metric,
        };
        let link = |name: &str, routes| HostLink {
            name: name.to_owned(),
            routes,
            ..HostLink::default()
        };
        let far = vec![route(0, 600, "192.0.2.1"), route(8, 0, "192.0.2.3")];
        let near = vec![route(0, 700, "198.51.100.3"), route(0, 100, "198.51.100.1")];
        let links = HostLinks(vec![link("far", far), link("near", near)]);
        let chosen = links.default(false).unwrap();
        assert_eq!(chosen.name, "near");
        let gateway = "198.51.100.1".parse().ok();
        assert_eq!(chosen.default_gateway(false), Some(gateway));
        assert_eq!(links.default(true), None);
    }
}
