//! What the namespace and its network are to be: the host's own addresses, routes and names, and what
//! the command line says otherwise.
//!
//! # Theory of operation
//!
//! Each family follows one interface of the host: the one that is named, or the one that the family's
//! default route leads through. The container gets that interface's addresses, so nothing is
//! translated: the gateway stands on the link for all the host's neighbours and for the host's router
//! ([`Quirks::host_subnets`]).
//!
//! The IPv6 gateway has two addresses. Its link-local one is that of the host's router, where that has
//! one, since the copied routes lead there. The other one is the router's own, or the subnet-router
//! anycast address (RFC 4291 section 2.6.1), which is every router's.
//!
//! Where the host has no default route at all, the namespace has a link of its own (169.254.2.1) to
//! what the host reaches.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, bail};
use cnet::definition::DnsServer;
use cnet_dataplane::{NetworkConfig, PortPlan, Quirks, ServicesOff};
use cnet_tap::InterfaceConfig;
use cnet_tap::netif::Route;
use cnet_tap::netif::host_link::{HostLink, HostLinks};
use cnet_wire::prefixes::{Ipv4Plan, Ipv6Plan};

use super::args::Options;
use super::forwards::Interfaces;

/// The smallest MTU of a link with IPv6 (RFC 8200 section 5).
const IPV6_MIN_MTU: u16 = 1280;
/// Bits of a prefix with which stations configure themselves (RFC 4862).
const SLAAC_PREFIX_LEN: u8 = 64;
/// The namespace's address and the gateway's where the host has none to copy.
const LOCAL: (Ipv4Addr, u8, Ipv4Addr) = (
    Ipv4Addr::new(169, 254, 2, 1),
    16,
    Ipv4Addr::new(169, 254, 2, 2),
);
/// The interface's name then.
const LOCAL_INTERFACE: &str = "tap0";

/// What is to be made.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) config: NetworkConfig,
    pub(super) port: PortPlan,
    pub(super) interface: InterfaceConfig,
    pub(super) interface_name: String,
    /// Who is asked for names; none for those of the host.
    pub(super) dns_servers: Vec<DnsServer>,
    /// The host's interfaces with their addresses.
    pub(super) interfaces: Interfaces,
    /// What to tell the user.
    pub(super) warnings: Vec<String>,
}

/// A family of the namespace.
struct Family {
    /// The first is the one that ports lead to.
    addresses: Vec<(IpAddr, u8)>,
    gateway: Option<IpAddr>,
    routes: Vec<Route>,
}

/// What follows from the host and the command line.
///
/// # Errors
///
/// When an interface or an address that is named is not there.
pub(super) fn make(options: &Options, host: &HostLinks) -> anyhow::Result<Plan> {
    let mut warnings = Vec::new();
    let [link_v4, link_v6] = [false, true].map(|ipv6| template(options, host, ipv6));
    let (link_v4, link_v6) = (link_v4?, link_v6?);
    let mut v4 = family(options, link_v4, false);
    let mut v6 = family(options, link_v6, true);
    if v6.is_some() && options.mtu < IPV6_MIN_MTU {
        let mtu = options.mtu;
        warnings.push(format!(
            "IPv6 is left out: it needs an MTU of {IPV6_MIN_MTU}, not of {mtu}"
        ));
        v6 = None;
    }
    if v4.is_none() && v6.is_none() {
        if !options.ipv4 {
            bail!("the host has no IPv6 to copy, and --ipv6-only leaves nothing else");
        }
        v4 = Some(local());
        warnings.push("the host has no default route: the namespace has a link of its own".into());
    }
    let name = link_v4.or(link_v6).map(|link| link.name.clone());
    let interface_name =
        (options.ns_interface.clone().or(name)).unwrap_or_else(|| LOCAL_INTERFACE.to_owned());
    let (config, port) = network(options, host, v4.as_ref(), v6.as_ref())?;
    let interface = interface(options, &config, &port, [v4.as_ref(), v6.as_ref()]);
    let servers = options.dns.iter().map(|&address| DnsServer {
        domain: None,
        address: (address, 53).into(),
    });
    Ok(Plan {
        interface,
        interface_name,
        dns_servers: servers.collect(),
        interfaces: { host.addresses() }
            .map(|(name, all)| (name.to_owned(), all.to_vec()))
            .collect(),
        config,
        port,
        warnings,
    })
}

/// The host's interface that a family follows.
fn template<'a>(
    options: &Options,
    host: &'a HostLinks,
    ipv6: bool,
) -> anyhow::Result<Option<&'a HostLink>> {
    let outbound = match ipv6 {
        false => &options.outbound_if4,
        true => &options.outbound_if6,
    };
    match options.interface.as_ref().or(outbound.as_ref()) {
        None => Ok(host.default(ipv6)),
        Some(name) => {
            let link = host.named(name);
            let link = link.with_context(|| format!("Invalid interface name {name}: not found"))?;
            Ok(Some(link))
        }
    }
}

/// What the command line says of a family: whether there is to be one, its address and gateway, and the
/// length of its prefix.
fn given(options: &Options, ipv6: bool) -> (bool, Option<IpAddr>, Option<IpAddr>, Option<u8>) {
    match ipv6 {
        false => (
            options.ipv4,
            options.address.ipv4.map(IpAddr::V4),
            options.gateway.ipv4.map(IpAddr::V4),
            options.prefix_v4,
        ),
        true => (
            options.ipv6,
            options.address.ipv6.map(IpAddr::V6),
            options.gateway.ipv6.map(IpAddr::V6),
            options.prefix_v6,
        ),
    }
}

/// A family as the host has it, changed as the options say; `None` if there is none of it.
fn family(options: &Options, link: Option<&HostLink>, ipv6: bool) -> Option<Family> {
    let (on, address, gateway, len) = given(options, ipv6);
    if !on {
        return None;
    }
    let of_family = |address: &IpAddr| address.is_ipv6() == ipv6;
    let of_host = link
        .map(|link| link.addresses.as_slice())
        .unwrap_or_default();
    let of_host = of_host.iter().filter(|(at, _)| of_family(at)).copied();
    let of_host: Vec<(IpAddr, u8)> = of_host.collect();
    let mut addresses = match address {
        Some(at) => vec![(at, len.unwrap_or_else(|| length_of(at, &of_host)))],
        None => of_host,
    };
    if address.is_none()
        && let (Some(len), Some(first)) = (len, addresses.first_mut())
    {
        first.1 = len;
        addresses.truncate(1);
    }
    if !options.copy_addresses {
        addresses.truncate(1);
    }
    if addresses.is_empty() {
        return None;
    }
    let of_link = link.and_then(|link| link.default_gateway(ipv6));
    let routes = match (link, gateway) {
        (_, Some(gateway)) => vec![default_route(gateway)],
        (Some(link), None) => {
            let routes = link.routes.iter();
            let routes = routes.filter(|route| of_family(&route.destination.0));
            let wanted = |route: &&Route| options.copy_routes || route.destination.1 == 0;
            routes.filter(wanted).cloned().collect()
        }
        (None, None) => Vec::new(),
    };
    Some(Family {
        // A source that the namespace does not have would be refused.
        routes: routes
            .into_iter()
            .map(|route| Route {
                source: route
                    .source
                    .filter(|own| addresses.iter().any(|(at, _)| at == own)),
                ..route
            })
            .collect(),
        gateway: gateway.or(of_link.flatten()),
        addresses,
    })
}

/// The netmask of an address that was given without one: that of the host's subnet it is in, or the
/// one of its class (RFC 791 section 3.2).
fn length_of(address: IpAddr, of_host: &[(IpAddr, u8)]) -> u8 {
    let same = of_host.iter().find(|(at, _)| *at == address);
    match (address, same) {
        (_, Some((_, len))) => *len,
        (IpAddr::V4(v4), None) => match v4.octets()[0] {
            0..=127 => 8,
            128..=191 => 16,
            192..=223 => 24,
            224.. => 32,
        },
        (IpAddr::V6(_), None) => SLAAC_PREFIX_LEN,
    }
}

fn default_route(gateway: IpAddr) -> Route {
    let everywhere = match gateway {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Route {
        destination: (everywhere, 0),
        gateway: Some(gateway),
        source: None,
        metric: 0,
    }
}

fn local() -> Family {
    let (address, len, gateway) = LOCAL;
    Family {
        addresses: vec![(address.into(), len)],
        gateway: Some(gateway.into()),
        routes: vec![default_route(gateway.into())],
    }
}

fn network(
    options: &Options,
    host: &HostLinks,
    v4: Option<&Family>,
    v6: Option<&Family>,
) -> anyhow::Result<(NetworkConfig, PortPlan)> {
    let address_v4 = v4.and_then(|family| family.addresses.first().copied());
    let address_v6 = v6.and_then(|family| family.addresses.first().copied());
    let (mut own, mut plans) = ((None, None), (None, None));
    let mut quirks = Quirks::host_subnets();
    if let (Some(family), Some((IpAddr::V4(address), prefix_len))) = (v4, address_v4) {
        own.0 = Some(address);
        plans.0 = Some(plan_v4(options, address, prefix_len, family.gateway));
    }
    if let (Some(family), Some((IpAddr::V6(address), _))) = (v6, address_v6) {
        own.1 = Some(address);
        let (plan, link_local) = plan_v6(options, address, family.gateway);
        plans.1 = Some(plan);
        quirks.link_local = link_local;
    }
    quirks.off = ServicesOff {
        dhcpv4: options.silent.dhcp,
        dhcpv6: options.silent.dhcpv6,
        ndp: options.silent.ndp,
        router_advertisements: options.silent.ra,
    };
    let mut config = NetworkConfig::new(options.mtu, plans.0, plans.1);
    config.quirks = quirks;
    config.search.clone_from(&options.search);
    if let Some(mac) = options.gateway_mac {
        config.gateway_mac = mac;
    }
    super::policy::set(options, &mut config, host);
    config.outbound_v4 = options.outbound.ipv4;
    config.outbound_v6 = options.outbound.ipv6;
    for (name, ipv6) in [
        (&options.outbound_if4, false),
        (&options.outbound_if6, true),
    ] {
        let Some(name) = name else { continue };
        let first = host.named(name).and_then(|link| {
            let mut all = link.addresses.iter().map(|(at, _)| *at);
            all.find(|at| at.is_ipv6() == ipv6)
        });
        match first {
            Some(IpAddr::V4(v4)) => config.outbound_v4 = config.outbound_v4.or(Some(v4)),
            Some(IpAddr::V6(v6)) => config.outbound_v6 = config.outbound_v6.or(Some(v6)),
            None => bail!("{name} has no address to send from"),
        }
    }
    let port = PortPlan {
        mac: options.ns_mac,
        ipv4: own.0,
        ipv6: own.1,
        hostname: options.hostname.clone(),
        ..PortPlan::default()
    };
    Ok((config, port))
}

fn plan_v4(options: &Options, own: Ipv4Addr, prefix_len: u8, gateway: Option<IpAddr>) -> Ipv4Plan {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(prefix_len))
        .unwrap_or(0);
    let gateway = match gateway {
        Some(IpAddr::V4(gateway)) => gateway,
        // A link without a router: what answers DHCP needs an address all the same.
        _ => LOCAL.2,
    };
    let given = options.dns.iter().find_map(|at| match at {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    let mapped = (options.map_gateway && !options.host_loopback.given).then_some(gateway);
    Ipv4Plan {
        network: (u32::from(own) & mask).into(),
        prefix_len,
        gateway,
        // The gateway's address leads to the host's loopback: its names are the host's.
        dns: options.dns_forward.ipv4.or(given).or(mapped),
        dhcp_range: (own, own),
    }
}

/// The plan, and the gateway's link-local address if that is to be another's.
fn plan_v6(
    options: &Options,
    own: Ipv6Addr,
    gateway: Option<IpAddr>,
) -> (Ipv6Plan, Option<Ipv6Addr>) {
    let mask = u128::MAX << (128 - u32::from(SLAAC_PREFIX_LEN));
    let network = Ipv6Addr::from(u128::from(own) & mask);
    let (link_local, global) = match gateway {
        Some(IpAddr::V6(a)) if a.is_unicast_link_local() => (Some(a), None),
        Some(IpAddr::V6(a)) => (None, Some(a)),
        _ => (None, None),
    };
    let given = options.dns.iter().find_map(|at| match at {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    let plan = Ipv6Plan {
        network,
        prefix_len: SLAAC_PREFIX_LEN,
        gateway: global.unwrap_or(network),
        dns: options.dns_forward.ipv6.or(given),
    };
    (plan, link_local)
}

/// The interface in the namespace.
fn interface(
    options: &Options,
    config: &NetworkConfig,
    port: &PortPlan,
    families: [Option<&Family>; 2],
) -> InterfaceConfig {
    let families = families.into_iter().flatten();
    let (mut addresses, mut routes) = (Vec::new(), Vec::new());
    for family in families {
        addresses.extend(&family.addresses);
        routes.extend(family.routes.iter().cloned());
    }
    InterfaceConfig {
        addresses,
        routes,
        gateways: Vec::new(),
        stays_down: !options.config_net || options.splice_only,
        ..config.interface(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_given_address_has_the_hosts_netmask_or_that_of_its_class() {
        let host = [(address("192.0.2.7"), 20), (address("2001:db8::7"), 56)];
        for (text, len) in [
            ("192.0.2.7", 20),
            ("192.0.2.8", 24),
            ("10.0.2.100", 8),
            ("172.16.0.1", 16),
            ("2001:db8::7", 56),
            ("fd00::1", 64),
        ] {
            assert_eq!(length_of(address(text), &host), len, "{text}");
        }
    }
}
