//! The addresses of a network, from its subnets.
//!
//! Gateway, DNS address, DHCP range and the container have fixed places in a subnet, the ones
//! slirp4netns gave them: 2, 3, 15 to 30, and 100. An IPv4 subnet therefore holds at least 128
//! addresses. IPv6 has a /64, with the same places.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::MacAddr;

/// The IPv4 side of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4Plan {
    /// Network address.
    pub network: Ipv4Addr,
    /// Prefix length in bits.
    pub prefix_len: u8,
    /// The gateway's own address.
    pub gateway: Ipv4Addr,
    /// Where DNS is answered; `None` for nowhere.
    pub dns: Option<Ipv4Addr>,
    /// First and last address DHCP gives to those who ask and have no lease.
    pub dhcp_range: (Ipv4Addr, Ipv4Addr),
}

/// The IPv6 side of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6Plan {
    /// Network address.
    pub network: Ipv6Addr,
    /// Prefix length in bits.
    pub prefix_len: u8,
    /// The gateway's own address.
    pub gateway: Ipv6Addr,
    /// Where DNS is answered; `None` for nowhere.
    pub dns: Option<Ipv6Addr>,
}

/// Where each one stands in its subnet.
mod place {
    pub(super) const GATEWAY: u8 = 2;
    pub(super) const DNS: u8 = 3;
    pub(super) const DHCP_FIRST: u8 = 15;
    pub(super) const DHCP_LAST: u8 = 30;
    pub(super) const CONTAINER: u8 = 100;
}

/// The longest prefix that leaves room for all places.
pub const MAX_PREFIX_LEN: u8 = 25;

/// An IPv4 subnet that is large enough for a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix_len: u8,
}

/// Why a text is no usable subnet. The texts are slirp4netns's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubnetError {
    /// Not `ADDRESS/LENGTH`.
    #[error("invalid CIDR: {0}")]
    Syntax(String),
    /// The part before the slash is no IPv4 address.
    #[error("invalid network address: {0}")]
    Address(String),
    /// Too large to be meant, or too small for the places.
    #[error("prefix length needs to be 1-25")]
    PrefixLen,
    /// Bits are set in the host part.
    #[error("CIDR needs to be a network address like {0}, not like {1}")]
    NotNetwork(Subnet, String),
}

impl Subnet {
    /// 10.0.2.0/24.
    pub const DEFAULT: Subnet = Subnet {
        network: Ipv4Addr::new(10, 0, 2, 0),
        prefix_len: 24,
    };

    /// The default one, or where that is `taken` (as it is inside another cnet) the next 10.0.N.0/24
    /// that is not.
    pub fn free(taken: impl Fn(Subnet) -> bool) -> Subnet {
        (2..=255)
            .map(|n| Subnet {
                network: Ipv4Addr::new(10, 0, n, 0),
                prefix_len: 24,
            })
            .find(|candidate| !taken(*candidate))
            .unwrap_or(Subnet::DEFAULT)
    }

    fn mask(self) -> u32 {
        !u32::MAX.checked_shr(self.prefix_len.into()).unwrap_or(0)
    }

    /// The address at a place of the subnet.
    fn at(self, place: u8) -> Ipv4Addr {
        (u32::from(self.network) | u32::from(place)).into()
    }

    /// The address of the container where there is one alone.
    pub fn container(self) -> Ipv4Addr {
        self.at(place::CONTAINER)
    }

    /// The network this subnet makes.
    pub fn plan(self) -> Ipv4Plan {
        Ipv4Plan {
            network: self.network,
            prefix_len: self.prefix_len,
            gateway: self.at(place::GATEWAY),
            dns: Some(self.at(place::DNS)),
            dhcp_range: (self.at(place::DHCP_FIRST), self.at(place::DHCP_LAST)),
        }
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Subnet, SubnetError> {
        let syntax = || SubnetError::Syntax(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(syntax)?;
        if length.is_empty() || length.len() > 2 || !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(syntax());
        }
        let prefix_len: u8 = length.parse().map_err(|_| syntax())?;
        let written: Ipv4Addr = address
            .parse()
            .map_err(|_| SubnetError::Address(address.to_owned()))?;
        if !(1..=MAX_PREFIX_LEN).contains(&prefix_len) {
            return Err(SubnetError::PrefixLen);
        }
        let mut subnet = Subnet {
            network: written,
            prefix_len,
        };
        subnet.network = (u32::from(written) & subnet.mask()).into();
        if subnet.network != written {
            return Err(SubnetError::NotNetwork(subnet, text.to_owned()));
        }
        Ok(subnet)
    }
}

/// The one container's address in [`ipv6_plan`]. Written 100 as in 10.0.2.100, though its digits are
/// hexadecimal.
pub const IPV6_CONTAINER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, CONTAINER_V6);

/// The last part of [`IPV6_CONTAINER`].
const CONTAINER_V6: u16 = 0x100;

/// fd00::/64, which slirp4netns has.
pub fn ipv6_plan() -> Ipv6Plan {
    Ipv6Plan::within(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0))
}

impl Ipv6Plan {
    /// The plan of the /64 that starts at `network`.
    pub fn within(network: Ipv6Addr) -> Ipv6Plan {
        let at = |place: u8| (u128::from(network) | u128::from(place)).into();
        Ipv6Plan {
            network,
            prefix_len: 64,
            gateway: at(place::GATEWAY),
            dns: Some(at(place::DNS)),
        }
    }

    /// The address of the container where there is one alone.
    pub fn container(&self) -> Ipv6Addr {
        (u128::from(self.network) | u128::from(CONTAINER_V6)).into()
    }
}

/// The gateway's hardware address: locally administered, with its IPv4 address in it.
pub fn gateway_mac(gateway: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = gateway.octets();
    MacAddr([0x52, 0x55, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_move_with_the_subnet() {
        let plan = Subnet::DEFAULT.plan();
        assert_eq!(plan.gateway.to_string(), "10.0.2.2");
        assert_eq!(plan.dns.unwrap().to_string(), "10.0.2.3");
        assert_eq!(Subnet::DEFAULT.container().to_string(), "10.0.2.100");
        let subnet: Subnet = "192.168.128.128/25".parse().unwrap();
        let plan = subnet.plan();
        assert_eq!(plan.gateway.to_string(), "192.168.128.130");
        assert_eq!(subnet.container().to_string(), "192.168.128.228");
        assert_eq!(plan.dhcp_range.0.to_string(), "192.168.128.143");
        assert_eq!(plan.dhcp_range.1.to_string(), "192.168.128.158");
        let subnet: Subnet = "10.0.0.0/8".parse().unwrap();
        assert_eq!(subnet.container().to_string(), "10.0.0.100");
        let plan = ipv6_plan();
        assert_eq!(plan.gateway.to_string(), "fd00::2");
        assert_eq!(IPV6_CONTAINER.to_string(), "fd00::100");
        assert_eq!(plan.container(), IPV6_CONTAINER);
        assert_eq!(
            gateway_mac([10, 0, 2, 2].into()).to_string(),
            "52:55:0a:00:02:02"
        );
    }

    #[test]
    fn unusable_subnets_are_named() {
        let error = |text: &str| text.parse::<Subnet>().unwrap_err().to_string();
        for text in [
            "foo",
            "10.0.2.0",
            "10.0.2.0/",
            "10.0.2.0/24x",
            "10.0.2.0/024",
            "10.0.2.0/+4",
        ] {
            assert_eq!(error(text), format!("invalid CIDR: {text}"));
        }
        assert_eq!(error("300.0.0.0/8"), "invalid network address: 300.0.0.0");
        for text in ["10.0.2.0/0", "10.0.2.0/26", "10.0.2.0/99"] {
            assert_eq!(error(text), "prefix length needs to be 1-25");
        }
        assert_eq!(
            error("10.0.2.5/24"),
            "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.5/24"
        );
    }

    #[test]
    fn a_subnet_that_is_taken_is_passed_over() {
        assert_eq!(Subnet::free(|_| false), Subnet::DEFAULT);
        let taken = ["10.0.2.0/24", "10.0.3.0/24"].map(|text| text.parse().unwrap());
        let free = Subnet::free(|subnet| taken.contains(&subnet));
        assert_eq!(free.to_string(), "10.0.4.0/24");
        assert_eq!(Subnet::free(|_| true), Subnet::DEFAULT, "none is free");
    }
}
