//! The socket by which an interface of the current network namespace is configured: requests of
//! rtnetlink(7), each with its answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use rustix::io::Errno;

use super::Route;
use crate::error::TapError;
use crate::netlink;

/// The main routing table.
pub(super) const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// The kernel keeps one datagram of an answer below this.
const ANSWER_SPACE: usize = 32 * 1024;

/// Entries of one list, at most: a container with more routes or rules is left as it is.
const MAX_LISTED: usize = 100_000;

/// A socket to rtnetlink that asks one question at a time.
pub(super) struct Rtnetlink {
    socket: Socket,
    sequence: u32,
}

impl Rtnetlink {
    pub(super) fn open() -> Result<Rtnetlink, TapError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(Rtnetlink {
                socket,
                sequence: 0,
            })
        };
        open().map_err(|source| TapError::Netlink { source })
    }

    pub(super) fn set_link(&mut self, ifindex: u32, attribute: LinkAttribute) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = ifindex;
        link.attributes.push(attribute);
        self.request(RouteNetlinkMessage::SetLink(link), 0)
            .map(drop)
    }

    pub(super) fn set_up(&mut self, ifindex: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = ifindex;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(link), 0)
            .map(drop)
    }

    pub(super) fn set_address(
        &mut self,
        ifindex: u32,
        address: IpAddr,
        prefix_len: u8,
    ) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix_len;
        message.header.scope = AddressScope::Universe;
        message.header.index = ifindex;
        message.attributes.push(AddressAttribute::Address(address));
        message.attributes.push(AddressAttribute::Local(address));
        match address {
            IpAddr::V4(v4) => message
                .attributes
                .extend(broadcast_of(v4, prefix_len).map(AddressAttribute::Broadcast)),
            IpAddr::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
        }
        self.request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .map(drop)
    }

    /// Sets a default route in a table.
    pub(super) fn set_default_route(
        &mut self,
        ifindex: u32,
        gateway: IpAddr,
        table: u32,
        metric: Option<u32>,
    ) -> io::Result<()> {
        let mut message = route_message(ifindex, family(gateway), Some(gateway), metric);
        // A number of more than a byte stands in the attribute alone (rtnetlink(7)).
        message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.attributes.push(RouteAttribute::Table(table));
        self.add_route(message)
    }

    /// Sets a route in the main table.
    pub(super) fn set_route(&mut self, ifindex: u32, route: &Route) -> io::Result<()> {
        let (to, len) = route.destination;
        let metric = (route.metric != 0).then_some(route.metric);
        let mut message = route_message(ifindex, family(to), route.gateway, metric);
        message.header.destination_prefix_length = len;
        if route.gateway.is_none() {
            message.header.scope = RouteScope::Link;
        }
        let to = (len != 0).then(|| RouteAttribute::Destination(to.into()));
        message.attributes.extend(to);
        let from = route.source.map(RouteAddress::from);
        let from = from.map(RouteAttribute::PrefSource);
        message.attributes.extend(from);
        let added = self.add_route(message.clone());
        match &added {
            // No route leads to the gateway.
            Err(error) if route.gateway.is_some() && is_unreachable(error) => {
                message.header.flags |= RouteFlags::Onlink;
                self.add_route(message)
            }
            _ => added,
        }
    }

    fn add_route(&mut self, message: RouteMessage) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.request(RouteNetlinkMessage::NewRoute(message), flags)
            .map(drop)
    }

    /// Sends one request and reads up to its acknowledgement; gives the message that came before
    /// it, if one did.
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        self.sequence += 1;
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let bytes = netlink::request(message, flags, self.sequence);
        self.socket.send(&bytes, 0)?;
        self.answer()
    }

    /// Asks for all of a kind, up to [`MAX_LISTED`].
    pub(super) fn list(
        &mut self,
        question: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let bytes = netlink::request(question, NLM_F_REQUEST | NLM_F_DUMP, self.sequence);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        let mut space = vec![0_u8; ANSWER_SPACE];
        while found.len() <= MAX_LISTED {
            let length = match self.socket.recv(&mut space.as_mut_slice(), 0) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            let datagram = space.get(..length).unwrap_or_default();
            for answer in netlink::answers(datagram, self.sequence) {
                match answer? {
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(e) => return Err(e.to_io()),
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    _ => {}
                }
            }
        }
        Err(io::Error::other("the list has no end"))
    }

    fn answer(&self) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut found = None;
        let mut space = vec![0_u8; ANSWER_SPACE];
        // An answer and its acknowledgement come in one datagram or in two.
        for _ in 0..4 {
            let length = match self.socket.recv(&mut space.as_mut_slice(), 0) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            let datagram = space.get(..length).unwrap_or_default();
            for answer in netlink::answers(datagram, self.sequence) {
                match answer? {
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(found),
                    NetlinkPayload::Error(e) => return Err(e.to_io()),
                    NetlinkPayload::InnerMessage(inner) => found = Some(inner),
                    _ => {}
                }
            }
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "no acknowledgement",
        ))
    }
}

/// A default route through an interface, in the main table.
fn route_message(
    ifindex: u32,
    family: AddressFamily,
    gateway: Option<IpAddr>,
    metric: Option<u32>,
) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    // RTPROT_BOOT is what ip(8) gives a route set by hand.
    route.header.protocol = RouteProtocol::Boot;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    let gateway = gateway.map(RouteAddress::from);
    let gateway = gateway.map(RouteAttribute::Gateway);
    route.attributes.extend(gateway);
    route.attributes.push(RouteAttribute::Oif(ifindex));
    let metric = metric.map(RouteAttribute::Priority);
    route.attributes.extend(metric);
    route
}

/// Whether a route was refused because none leads to its gateway: ENETUNREACH for IPv4, EHOSTUNREACH
/// for IPv6 (`net/ipv4/fib_semantics.c`, `net/ipv6/route.c`).
fn is_unreachable(error: &io::Error) -> bool {
    let unreachable = [Errno::NETUNREACH, Errno::HOSTUNREACH];
    Errno::from_io_error(error).is_some_and(|errno| unreachable.contains(&errno))
}

/// The family of an address.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The directed broadcast address (RFC 919); a subnet of two or one has none (RFC 3021).
fn broadcast_of(address: Ipv4Addr, prefix_len: u8) -> Option<Ipv4Addr> {
    let host_bits = (prefix_len < 31).then(|| u32::MAX >> prefix_len)?;
    Some(Ipv4Addr::from(u32::from(address) | host_bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_addresses() {
        let address = Ipv4Addr::new(10, 0, 2, 100);
        assert_eq!(
            broadcast_of(address, 24),
            Some(Ipv4Addr::new(10, 0, 2, 255))
        );
        assert_eq!(
            broadcast_of(address, 8),
            Some(Ipv4Addr::new(10, 255, 255, 255))
        );
        assert_eq!(broadcast_of(address, 0), Some(Ipv4Addr::BROADCAST));
        assert_eq!(broadcast_of(address, 31), None);
        assert_eq!(broadcast_of(address, 200), None);
    }
}
