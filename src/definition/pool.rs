//! The addresses of one family that a network has: subnet, gateway, and the part that containers
//! get theirs from.
//!
//! # Invariants
//!
//! A pool that passed [`Ipv4Pool::new`], [`Ipv6Pool::new`] or `check` lies in address space that
//! hosts may use, its gateway is one of its hosts, and at least one address is left for a
//! container. DNS is answered at the gateway's address.
//!
//! Both families are judged by one body, on addresses as 128-bit numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// The IPv4 addresses of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Ipv4Pool {
    /// All of them.
    pub subnet: Ipv4Net,
    /// The gateway's own.
    pub gateway: Ipv4Addr,
    /// Where containers get theirs from, if not from all of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<Ipv4Net>,
}

/// The IPv6 addresses of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Ipv6Pool {
    /// All of them.
    pub subnet: Ipv6Net,
    /// The gateway's own.
    pub gateway: Ipv6Addr,
    /// Where containers get theirs from, if not from all of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<Ipv6Net>,
}

/// Why addresses make no pool.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Bits are set behind the prefix.
    #[error("{given} is an address within a network; the network itself is {network}")]
    HostBits {
        /// What was asked for.
        given: IpNet,
        /// What was probably meant.
        network: IpNet,
    },
    /// There is no room for a gateway and a container.
    #[error("{0} is too small: a gateway and one container need /{needed} or shorter",
        needed = longest_prefix(.0))]
    TooSmall(IpNet),
    /// The addresses are for something else.
    #[error("{subnet} cannot be used: {block} is for {purpose}")]
    Special {
        /// What was asked for.
        subnet: IpNet,
        /// What it overlaps.
        block: IpNet,
        /// What that is for.
        purpose: &'static str,
    },
    /// The gateway is elsewhere.
    #[error("the gateway {gateway} is not within {subnet}")]
    GatewayOutside {
        /// The gateway.
        gateway: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// The gateway has an address that no host has.
    #[error("the gateway cannot have {0}, the network's own or broadcast address")]
    GatewayNoHost(IpAddr),
    /// The range is elsewhere.
    #[error("the range {range} is not within {subnet}")]
    RangeOutside {
        /// The range.
        range: IpNet,
        /// The subnet.
        subnet: IpNet,
    },
    /// Nothing is left for containers.
    #[error("the range {0} leaves no address for a container beside the gateway's")]
    RangeEmpty(IpNet),
}

/// Address space that no network of containers may have. Sources: RFC 6890 and the registries it
/// started, RFC 4291 section 2.
const SPECIAL: [(&str, &str); 8] = [
    ("0.0.0.0/8", "hosts that do not know their address"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local addresses"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "nothing yet"),
    ("::/8", "loopback and embedded IPv4 addresses"),
    ("fe80::/9", "link-local and site-local addresses"),
    ("ff00::/8", "multicast"),
];

impl Ipv4Pool {
    /// A checked pool. The gateway has the first address unless told.
    ///
    /// # Errors
    ///
    /// See [`PoolError`].
    pub fn new(
        subnet: Ipv4Net,
        gateway: Option<Ipv4Addr>,
        ip_range: Option<Ipv4Net>,
    ) -> Result<Ipv4Pool, PoolError> {
        // Only 255.255.255.255/32 has no address above its first, and it is refused.
        let first = Ipv4Addr::from_bits(subnet.network().to_bits().saturating_add(1));
        let pool = Ipv4Pool {
            subnet,
            gateway: gateway.unwrap_or(first),
            ip_range,
        };
        pool.check()?;
        Ok(pool)
    }

    /// Checks what did not come from [`Ipv4Pool::new`].
    ///
    /// # Errors
    ///
    /// See [`PoolError`].
    pub fn check(&self) -> Result<(), PoolError> {
        check(
            self.subnet.into(),
            self.gateway.into(),
            self.ip_range.map(Into::into),
        )
    }
}

impl Ipv6Pool {
    /// A checked pool. The gateway has the first address unless told.
    ///
    /// # Errors
    ///
    /// See [`PoolError`].
    pub fn new(
        subnet: Ipv6Net,
        gateway: Option<Ipv6Addr>,
        ip_range: Option<Ipv6Net>,
    ) -> Result<Ipv6Pool, PoolError> {
        let first = Ipv6Addr::from_bits(subnet.network().to_bits().saturating_add(1));
        let pool = Ipv6Pool {
            subnet,
            gateway: gateway.unwrap_or(first),
            ip_range,
        };
        pool.check()?;
        Ok(pool)
    }

    /// Checks what did not come from [`Ipv6Pool::new`].
    ///
    /// # Errors
    ///
    /// See [`PoolError`].
    pub fn check(&self) -> Result<(), PoolError> {
        check(
            self.subnet.into(),
            self.gateway.into(),
            self.ip_range.map(Into::into),
        )
    }
}

/// The longest prefix with room for the network's address, a gateway, a container and, in IPv4,
/// the broadcast address.
fn longest_prefix(subnet: &IpNet) -> u8 {
    subnet.max_prefix_len() - 2
}

fn check(subnet: IpNet, gateway: IpAddr, range: Option<IpNet>) -> Result<(), PoolError> {
    for given in std::iter::once(subnet).chain(range) {
        let network = given.trunc();
        if network != given {
            return Err(PoolError::HostBits { given, network });
        }
    }
    for (block, purpose) in SPECIAL {
        if let Ok(block) = block.parse::<IpNet>()
            && overlap(block, subnet)
        {
            return Err(PoolError::Special {
                subnet,
                block,
                purpose,
            });
        }
    }
    if subnet.prefix_len() > longest_prefix(&subnet) {
        return Err(PoolError::TooSmall(subnet));
    }
    if !subnet.contains(&gateway) {
        return Err(PoolError::GatewayOutside { gateway, subnet });
    }
    if !hosts(subnet, None).contains(&number(gateway)) {
        return Err(PoolError::GatewayNoHost(gateway));
    }
    let Some(range) = range else {
        return Ok(());
    };
    if !subnet.contains(&range) {
        return Err(PoolError::RangeOutside { range, subnet });
    }
    let usable = hosts(subnet, Some(range));
    let only_the_gateway = usable.start() == usable.end() && usable.contains(&number(gateway));
    if usable.is_empty() || only_the_gateway {
        return Err(PoolError::RangeEmpty(range));
    }
    Ok(())
}

/// Whether two networks have an address in common: then one contains the other.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// The addresses of `subnet`, as far as in `range`, that hosts may have: not the network's own
/// (in IPv6 that of any router, RFC 4291 section 2.6.1), nor the broadcast address.
pub fn hosts(subnet: IpNet, range: Option<IpNet>) -> RangeInclusive<u128> {
    let first = number(subnet.network()) + 1;
    let last = match subnet {
        IpNet::V4(net) => u128::from(net.broadcast().to_bits()) - 1,
        IpNet::V6(net) => net.broadcast().to_bits(),
    };
    let within = range.unwrap_or(subnet);
    let (low, high) = (number(within.network()), number(within.broadcast()));
    first.max(low)..=last.min(high)
}

/// An address as a number.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(subnet: &str, gateway: Option<&str>, range: Option<&str>) -> Result<Ipv4Pool, String> {
        let pool = Ipv4Pool::new(
            subnet.parse().unwrap(),
            gateway.map(|g| g.parse().unwrap()),
            range.map(|r| r.parse().unwrap()),
        );
        pool.map_err(|e| e.to_string())
    }

    fn v6(subnet: &str) -> Result<Ipv6Pool, String> {
        Ipv6Pool::new(subnet.parse().unwrap(), None, None).map_err(|e| e.to_string())
    }

    #[test]
    fn the_gateway_is_first_unless_told() {
        let gateway = |pool: Ipv4Pool| pool.gateway.to_string();
        assert_eq!(
            gateway(v4("172.27.0.0/16", None, None).unwrap()),
            "172.27.0.1"
        );
        let told = v4("172.27.0.0/16", Some("172.27.9.9"), None).unwrap();
        assert_eq!(gateway(told), "172.27.9.9");
        assert_eq!(v6("fd12::/64").unwrap().gateway.to_string(), "fd12::1");
        assert!(v4("10.0.0.0/30", None, None).is_ok());
    }

    #[test]
    fn bad_subnets_say_why() {
        for (subnet, why) in [
            ("10.1.2.3/24", "the network itself is 10.1.2.0/24"),
            (
                "10.0.0.0/31",
                "too small: a gateway and one container need /30",
            ),
            ("10.0.0.0/32", "too small"),
            ("0.0.0.0/0", "hosts that do not know"),
            ("64.0.0.0/1", "the network itself is 0.0.0.0/1"),
            ("127.8.0.0/16", "127.0.0.0/8 is for loopback"),
            ("169.254.0.0/24", "link-local"),
            ("224.0.0.0/24", "multicast"),
            ("255.255.255.255/32", "nothing yet"),
        ] {
            let error = v4(subnet, None, None).unwrap_err();
            assert!(error.contains(why), "{subnet}: {error}");
        }
        for (subnet, why) in [
            ("fe80::/64", "link-local"),
            ("ff02::/64", "multicast"),
            ("::/64", "loopback"),
            ("::ffff:0:0/96", "embedded"),
            ("fd00::/127", "/126"),
            ("fd00::1/64", "the network itself is fd00::/64"),
        ] {
            let error = v6(subnet).unwrap_err();
            assert!(error.contains(why), "{subnet}: {error}");
        }
    }

    #[test]
    fn gateways_and_ranges_belong_to_the_subnet() {
        let subnet = "10.9.0.0/24";
        for (gateway, range, why) in [
            ("10.9.1.1", None, "10.9.1.1 is not within 10.9.0.0/24"),
            ("10.9.0.0", None, "cannot have 10.9.0.0"),
            ("10.9.0.255", None, "cannot have 10.9.0.255"),
            ("10.9.0.1", Some("10.8.0.0/24"), "10.8.0.0/24 is not within"),
            ("10.9.0.1", Some("10.9.0.0/23"), "10.9.0.0/23 is not within"),
            ("10.9.0.1", Some("10.9.0.1/32"), "leaves no address"),
            ("10.9.0.1", Some("10.9.0.0/32"), "leaves no address"),
            ("10.9.0.1", Some("10.9.0.0/31"), "leaves no address"),
        ] {
            let error = v4(subnet, Some(gateway), range).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(v4(subnet, None, Some("10.9.0.128/25")).is_ok());
        assert!(v4(subnet, None, Some("10.9.0.2/32")).is_ok());
    }

    #[test]
    fn hosts_leave_out_what_no_host_has() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let all = hosts(net("10.9.0.0/24"), None);
        assert_eq!((all.start() & 0xff, all.end() & 0xff), (1, 254));
        let part = hosts(net("10.9.0.0/24"), Some(net("10.9.0.128/25")));
        assert_eq!((part.start() & 0xff, part.end() & 0xff), (128, 254));
        let six = hosts(net("fd00::/126"), None);
        assert_eq!((six.start() & 0xff, six.end() & 0xff), (1, 3));
    }
}
