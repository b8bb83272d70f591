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
//! container's interface needs is here; it is no general rtnetlink client. Rules of routing are
//! [`policy_routing`]'s alone.
//!
//! Source: rtnetlink(7), netlink(7), RFC 4861, RFC 4862.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rustix::io::Errno;
use rustix::net::{AddressFamily as SocketFamily, SocketFlags, SocketType};

use crate::error::TapError;

pub mod host_link;
pub mod policy_routing;
mod rtnetlink;

use rtnetlink::Rtnetlink;

/// The smallest MTU a link may have that carries IPv6 (RFC 8200 section 5).
const IPV6_MIN_MTU: u32 = 1280;

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
    /// Further routes. One whose gateway is on no subnet of `addresses` counts as on the link.
    pub routes: Vec<Route>,
    /// Packets the queue towards the TAP holds (`txqueuelen`); `None` keeps the kernel's 1000.
    pub tx_queue_len: Option<u32>,
    /// Whether it stays down and without addresses and routes: what is in the container brings it up.
    pub stays_down: bool,
    /// Whether default routes that are there already keep their place: these get a metric above
    /// theirs, which rises with the interface's index. When the earlier interface goes, the next
    /// one's routes are there to take over.
    pub joins_others: bool,
}

/// A route through an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// What it leads to: an address, and how many of its bits count.
    pub destination: (IpAddr, u8),
    /// The next router; `None` for what is on the link.
    pub gateway: Option<IpAddr>,
    /// The address to send from, where it is not the kernel's choice.
    pub source: Option<IpAddr>,
    /// Its metric; 0 leaves it to the kernel.
    pub metric: u32,
}

/// What a default route that joins others has on top of the interface's index. The kernel gives
/// IPv4 routes without a metric 0 and those of IPv6 1024 (`IP6_RT_PRIO_USER`), which stay in front.
const JOINING_METRIC: u32 = 1024;

/// Gives the interface its MAC, MTU and queue length, brings it up, and sets addresses and default
/// routes. `name` is for the errors' texts. Where IPv6 is switched off, addresses and routes of it are
/// left out if there are others, which is told by `false`.
///
/// # Errors
///
/// [`TapError::MtuTooSmallForIpv6`] before anything is changed; otherwise the first step that the
/// kernel refused, with the earlier ones in force.
// Longer than 60 lines: the order of the steps is all there is to it.
pub fn configure(ifindex: u32, name: &str, cfg: &InterfaceConfig) -> Result<bool, TapError> {
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
    if cfg.stays_down {
        return Ok(true);
    }
    rtnetlink
        .set_up(ifindex)
        .map_err(failed("bring it up".to_owned()))?;
    let whole = set_addresses(&mut rtnetlink, (ifindex, name), &cfg.addresses)?;
    let metric = cfg.joins_others.then(|| JOINING_METRIC + ifindex);
    for &gateway in cfg.gateways.iter().filter(|g| whole || g.is_ipv4()) {
        rtnetlink
            .set_default_route(ifindex, gateway, rtnetlink::MAIN, metric)
            .map_err(failed(format!("add a default route via {gateway}")))?;
    }
    // Gateways are reached by routes to the link, so those come first.
    let usable = |route: &&Route| whole || route.destination.0.is_ipv4();
    let routes = cfg.routes.iter().filter(usable);
    let (via, on_link): (Vec<&Route>, Vec<&Route>) =
        routes.partition(|route| route.gateway.is_some());
    for route in on_link.into_iter().chain(via) {
        let (to, len) = route.destination;
        rtnetlink
            .set_route(ifindex, route)
            .map_err(failed(format!("add a route to {to}/{len}")))?;
    }
    Ok(whole)
}

/// Sets the addresses; `false` if those of IPv6 are left out, since it is switched off and there are
/// others.
fn set_addresses(
    rtnetlink: &mut Rtnetlink,
    (ifindex, name): (u32, &str),
    addresses: &[(IpAddr, u8)],
) -> Result<bool, TapError> {
    let has_ipv4 = addresses.iter().any(|(address, _)| address.is_ipv4());
    let name = || name.to_owned();
    let mut whole = true;
    for &(address, prefix_len) in addresses {
        match rtnetlink.set_address(ifindex, address, prefix_len) {
            Ok(()) => {}
            Err(error) if ipv6_is_off(address, &error) && has_ipv4 => whole = false,
            Err(source) if ipv6_is_off(address, &source) => {
                return Err(TapError::Ipv6Disabled {
                    name: name(),
                    address,
                    source,
                });
            }
            Err(source) => {
                return Err(TapError::Configure {
                    name: name(),
                    what: format!("add address {address}/{prefix_len}"),
                    source,
                });
            }
        }
    }
    Ok(whole)
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

#[cfg(test)]
mod tests {
    use super::*;

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
