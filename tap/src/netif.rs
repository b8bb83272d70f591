//! Configures an interface of the current network namespace over rtnetlink.
//!
//! # Theory of operation
//!
//! One request, one acknowledgement, in order: hardware address, MTU, queue length, up, addresses,
//! default routes. Netlink answers from within send(2), so nothing here waits for anything but the
//! kernel's RTNL lock. Addresses and routes are set with `NLM_F_REPLACE`: configuring an interface
//! twice is no error, and the last call wins.
//!
//! IPv6 addresses are set with `IFA_F_NODAD`. The other end of a TAP is a program that defends no
//! address, so duplicate address detection (RFC 4862 section 5.4) could only cost its second of
//! waiting, during which the address cannot be used.
//!
//! # Limits
//!
//! Needs CAP_NET_ADMIN in the user namespace that owns the network namespace. Only what a
//! container's one interface needs is here; it is no general rtnetlink client.
//!
//! Source: rtnetlink(7), netlink(7), RFC 4861, RFC 4862.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkPayload};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use rustix::net::{AddressFamily as SocketFamily, SocketFlags, SocketType};

use crate::error::TapError;
use crate::netlink;

/// The smallest MTU a link may have that carries IPv6 (RFC 8200 section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// Answers longer than this do not occur: each concerns one interface.
const ANSWER_SPACE: usize = 32 * 1024;

/// What an interface is to look like.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InterfaceConfig {
    /// Bytes of an IP packet. A TAP takes 68 to 65521.
    pub mtu: u32,
    /// The hardware address; `None` keeps the one the kernel chose.
    pub mac: Option<[u8; 6]>,
    /// Addresses with their prefix lengths, in the order in which they are set: the first of a
    /// subnet is the primary one.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Where default routes lead; each must be on a subnet of `addresses`.
    pub gateways: Vec<IpAddr>,
    /// Packets the queue towards the TAP holds (`txqueuelen`); `None` keeps the kernel's 1000.
    pub tx_queue_len: Option<u32>,
    /// Whether default routes that are there already keep their place: these get a metric above
    /// theirs, which rises with the interface's index. When the earlier interface goes, the next
    /// one's routes are there to take over.
    pub joins_others: bool,
}

/// What a default route that joins others has on top of the interface's index. The kernel gives
/// IPv4 routes without a metric 0 and those of IPv6 1024 (`IP6_RT_PRIO_USER`), which stay in front.
const JOINING_METRIC: u32 = 1024;

/// Gives the interface its MAC, MTU and queue length, brings it up, and sets addresses and default
/// routes. `name` is for the errors' texts.
///
/// # Errors
///
/// [`TapError::MtuTooSmallForIpv6`] before anything is changed; otherwise the first step that the
/// kernel refused, with the earlier ones in force.
pub fn configure(ifindex: u32, name: &str, cfg: &InterfaceConfig) -> Result<(), TapError> {
    let ipv6 = cfg.addresses.iter().find(|(address, _)| address.is_ipv6());
    if let Some(&(address, _)) = ipv6
        && cfg.mtu < IPV6_MIN_MTU
    {
        return Err(TapError::MtuTooSmallForIpv6 {
            mtu: cfg.mtu,
            address,
        });
    }
    let mut rtnetlink = Rtnetlink::open()?;
    let failed = |what: String| {
        move |source: io::Error| TapError::Configure {
            name: name.to_owned(),
            what,
            source,
        }
    };
    if let Some(mac) = cfg.mac {
        rtnetlink
            .set_link(ifindex, LinkAttribute::Address(mac.to_vec()))
            .map_err(failed(format!("set the MAC address to {}", MacText(mac))))?;
    }
    rtnetlink
        .set_link(ifindex, LinkAttribute::Mtu(cfg.mtu))
        .map_err(failed(format!("set the MTU to {}", cfg.mtu)))?;
    if let Some(length) = cfg.tx_queue_len {
        rtnetlink
            .set_link(ifindex, LinkAttribute::TxQueueLen(length))
            .map_err(failed(format!("set the queue length to {length}")))?;
    }
    rtnetlink
        .set_up(ifindex)
        .map_err(failed("bring it up".to_owned()))?;
    for &(address, prefix_len) in &cfg.addresses {
        let set = rtnetlink.set_address(ifindex, address, prefix_len);
        set.map_err(|source| match ipv6_is_off(address, &source) {
            true => TapError::Ipv6Disabled {
                name: name.to_owned(),
                address,
                source,
            },
            false => failed(format!("add address {address}/{prefix_len}"))(source),
        })?;
    }
    let metric = cfg.joins_others.then(|| JOINING_METRIC + ifindex);
    for &gateway in &cfg.gateways {
        rtnetlink
            .set_default_route(ifindex, gateway, metric)
            .map_err(failed(format!("add a default route via {gateway}")))?;
    }
    Ok(())
}

/// Whether an address was refused because IPv6 is switched off.
fn ipv6_is_off(address: IpAddr, error: &io::Error) -> bool {
    // EACCES: disable_ipv6 is set; EOPNOTSUPP: the kernel has no IPv6.
    let off = [Errno::ACCESS, Errno::OPNOTSUPP, Errno::AFNOSUPPORT];
    address.is_ipv6() && Errno::from_io_error(error).is_some_and(|errno| off.contains(&errno))
}

/// Brings `lo` up, which also gives it 127.0.0.1 and ::1.
///
/// # Errors
///
/// [`TapError::Configure`] without CAP_NET_ADMIN.
pub fn loopback_up() -> Result<(), TapError> {
    let name = "lo";
    let ifindex = index_of(name)?;
    Rtnetlink::open()?
        .set_up(ifindex)
        .map_err(|source| TapError::Configure {
            name: name.to_owned(),
            what: "bring it up".to_owned(),
            source,
        })
}

/// Has the kernel ignore router advertisements on the interface, which is configured already: a
/// second address that appears a second later would be used at random.
///
/// # Errors
///
/// What the file system says; `NotFound` where the kernel has no IPv6.
pub fn ignore_router_advertisements(name: &str) -> io::Result<()> {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0")
}

/// The index of the interface `name` in the current network namespace.
///
/// # Errors
///
/// [`TapError::NoSuchInterface`].
pub fn index_of(name: &str) -> Result<u32, TapError> {
    let socket = rustix::net::socket_with(
        SocketFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(TapError::io("cannot open a socket"))?;
    rustix::net::netdevice::name_to_index(socket, name).map_err(|_| TapError::NoSuchInterface {
        name: name.to_owned(),
    })
}

/// The hardware address of an interface in the current network namespace.
///
/// # Errors
///
/// [`TapError::NoSuchInterface`]; also for an interface without an Ethernet address.
pub fn mac_of(ifindex: u32) -> Result<[u8; 6], TapError> {
    let unknown = || TapError::NoSuchInterface {
        name: format!("index {ifindex}"),
    };
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    let answer = Rtnetlink::open()?
        .request(RouteNetlinkMessage::GetLink(link), 0)
        .map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::NODEV) => unknown(),
            _ => TapError::Netlink { source },
        })?;
    let Some(RouteNetlinkMessage::NewLink(link)) = answer else {
        return Err(unknown());
    };
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => None,
        })
        .ok_or_else(unknown)
}

struct MacText([u8; 6]);

impl std::fmt::Display for MacText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A socket to rtnetlink that asks one question at a time.
struct Rtnetlink {
    socket: Socket,
    sequence: u32,
}

impl Rtnetlink {
    fn open() -> Result<Rtnetlink, TapError> {
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

    fn set_link(&mut self, ifindex: u32, attribute: LinkAttribute) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = ifindex;
        link.attributes.push(attribute);
        self.request(RouteNetlinkMessage::SetLink(link), 0)
            .map(drop)
    }

    fn set_up(&mut self, ifindex: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = ifindex;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(link), 0)
            .map(drop)
    }

    fn set_address(&mut self, ifindex: u32, address: IpAddr, prefix_len: u8) -> io::Result<()> {
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

    fn set_default_route(
        &mut self,
        ifindex: u32,
        gateway: IpAddr,
        metric: Option<u32>,
    ) -> io::Result<()> {
        let mut route = RouteMessage::default();
        route.header.address_family = family(gateway);
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        // RTPROT_BOOT is what ip(8) gives a route set by hand.
        route.header.protocol = RouteProtocol::Boot;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        route
            .attributes
            .push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        route.attributes.push(RouteAttribute::Oif(ifindex));
        route
            .attributes
            .extend(metric.map(RouteAttribute::Priority));
        self.request(
            RouteNetlinkMessage::NewRoute(route),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .map(drop)
    }

    /// Sends one request and reads up to its acknowledgement; gives the message that came before
    /// it, if one did.
    fn request(
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

fn family(address: IpAddr) -> AddressFamily {
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

    #[test]
    fn ipv6_needs_1280() {
        let cfg = InterfaceConfig {
            mtu: 1279,
            addresses: vec![("fd00::100".parse().unwrap(), 64)],
            ..InterfaceConfig::default()
        };
        // Refused before the kernel is asked: index 0 would be refused otherwise.
        let error = configure(0, "tap0", &cfg).unwrap_err();
        assert!(
            matches!(error, TapError::MtuTooSmallForIpv6 { mtu: 1279, .. }),
            "{error}"
        );
    }

    #[test]
    fn loopback_is_found() {
        assert_eq!(mac_of(index_of("lo").unwrap()).unwrap(), [0; 6]);
        assert!(matches!(
            index_of("no-such-if"),
            Err(TapError::NoSuchInterface { .. })
        ));
        assert!(matches!(
            mac_of(u32::MAX >> 1),
            Err(TapError::NoSuchInterface { .. })
        ));
    }
}
