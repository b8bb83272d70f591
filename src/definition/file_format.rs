//! The definition of a network: what its file says.
//!
//! Whatever makes a definition, a request or a file edited by hand, it passes
//! [`Definition::check`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cnet_wire::MacAddr;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::dns_server::DnsServer;
use super::id::is_id;
use super::lan::{Lan, LanError};
use super::name::{NameError, check_network_name, is_domain};
use super::overlay::{Overlay, OverlayError, OverlayRequest};
use super::pool::{Ipv4Pool, Ipv6Pool, PoolError};
use super::routes::{HostRoutes, same_family};
use super::{MTU_RANGE, default_mtu};
use crate::filter::Filter;
use cnet_wire::prefixes::{Ipv4Plan, Ipv6Plan};

/// The driver of networks of one host: a switch of our own, called after what it stands in for.
pub const BRIDGE: &str = "bridge";
/// The driver of networks that span several hosts, by VXLAN.
pub const OVERLAY: &str = "overlay";
/// The driver of networks whose containers are stations on the host's LAN.
pub const MACVLAN: &str = "macvlan";

/// Docker's date for what was not made.
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";

/// The smallest MTU of IPv6 (RFC 8200 section 5).
const MIN_MTU_IPV6: u16 = 1280;

/// A network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Definition {
    /// What it is called.
    pub name: String,
    /// 64 hexadecimal digits, for programs.
    pub id: String,
    /// When it was made (RFC 3339).
    pub created: String,
    /// [`BRIDGE`], [`OVERLAY`] or [`MACVLAN`].
    pub driver: String,
    /// Containers reach each other and the gateway, and nothing else.
    #[serde(default)]
    pub internal: bool,
    /// Containers reach the gateway and the world, but not each other.
    #[serde(default)]
    pub isolate: bool,
    /// Its process runs in its whole sandbox or not at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_sandbox: bool,
    /// Bytes of the largest packet; that of the host's default route if it is not written down.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// The DNS servers to ask, if not the host's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<DnsServer>,
    /// Seconds that an answer of a DNS server serves beyond its time where no server answers
    /// (RFC 8767); 0 for never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dns_stale: u32,
    /// The domains that containers search, if not the host's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// Containers may send from other addresses than their own, for machines behind them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trust: bool,
    /// TCP connections come from the host's ports of the numbers that containers send from, where they
    /// are free. It costs each connection a little time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_ports: bool,
    /// The far ends that its containers may talk with.
    #[serde(default, skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    /// The other hosts, if it is an overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
    /// The host's LAN, if its containers are on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lan: Option<Lan>,
    /// IPv4, if it has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Pool>,
    /// IPv6, if it has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Pool>,
    /// What its maker noted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// As serde asks it.
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// What is asked for of a network that is to be made. A network without a subnet gets one of each
/// family; one with subnets has the families of these.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Request {
    /// What to call it.
    pub name: String,
    /// [`BRIDGE`], [`OVERLAY`] or [`MACVLAN`].
    pub driver: String,
    /// At most one of each family.
    pub subnets: Vec<IpNet>,
    /// At most one within each subnet.
    pub gateways: Vec<IpAddr>,
    /// At most one within each subnet.
    pub ip_ranges: Vec<IpNet>,
    /// See [`Definition::internal`].
    pub internal: bool,
    /// See [`Definition::isolate`].
    pub isolate: bool,
    /// See [`Definition::require_sandbox`].
    pub require_sandbox: bool,
    /// See [`Definition::mtu`].
    pub mtu: u16,
    /// See [`Definition::dns`].
    pub dns: Vec<DnsServer>,
    /// See [`Definition::dns_stale`].
    pub dns_stale: u32,
    /// See [`Definition::dns_search`].
    pub dns_search: Vec<String>,
    /// See [`Definition::trust`].
    pub trust: bool,
    /// See [`Definition::keep_ports`].
    pub keep_ports: bool,
    /// See [`Definition::filter`].
    pub filter: Filter,
    /// For the driver [`OVERLAY`] alone.
    pub overlay: OverlayRequest,
    /// Options of the driver: of [`MACVLAN`] `parent` and `macvlan_mode`.
    pub options: BTreeMap<String, String>,
    /// See [`Definition::labels`].
    pub labels: BTreeMap<String, String>,
}

impl Request {
    /// For a network of that name with nothing special about it.
    pub fn new(name: impl Into<String>) -> Request {
        Request {
            name: name.into(),
            driver: BRIDGE.to_owned(),
            subnets: Vec::new(),
            gateways: Vec::new(),
            ip_ranges: Vec::new(),
            internal: false,
            isolate: false,
            require_sandbox: false,
            mtu: default_mtu(),
            dns: Vec::new(),
            dns_stale: 0,
            dns_search: Vec::new(),
            trust: false,
            keep_ports: false,
            filter: Filter::new(),
            overlay: OverlayRequest::default(),
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }

    /// What it says of the host's LAN, if containers are to be on it.
    pub(super) fn lan(&self) -> Result<Option<Lan>, DefinitionError> {
        match (self.driver == MACVLAN, self.options.keys().next()) {
            (true, _) if self.subnets.is_empty() => Err(LanError::NoSubnet.into()),
            (true, _) => Ok(Some(Lan::new(&self.options)?)),
            (false, Some(key)) => Err(LanError::NotLan(key.clone()).into()),
            (false, None) => Ok(None),
        }
    }

    /// What it says of other hosts, if it asks for an overlay.
    pub(super) fn overlay(&self) -> Result<Option<Overlay>, DefinitionError> {
        if self.driver == OVERLAY {
            if self.subnets.is_empty() {
                return Err(OverlayError::NoSubnet.into());
            }
            return Ok(Some(Overlay::new(&self.name, self.overlay.clone())));
        }
        match self.overlay == OverlayRequest::default() {
            true => Ok(None),
            false => Err(OverlayError::NotOverlay.into()),
        }
    }
}

/// Why there can be no such network.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DefinitionError {
    /// Its name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Its addresses.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// There is no such driver.
    #[error("there is no driver `{0}`: there are `bridge`, `overlay` and `macvlan`")]
    Driver(String),
    /// Its other hosts.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The host's LAN.
    #[error(transparent)]
    Lan(#[from] LanError),
    /// Several of one kind in one family.
    #[error("{0} and {1} are both {what}s of {family}: a network has one of each family",
        what = .2, family = .3)]
    Two(String, String, &'static str, &'static str),
    /// A gateway or a range without its subnet.
    #[error("the {1} {0} belongs to no subnet: give its subnet as well")]
    NoSubnet(String, &'static str),
    /// Neither family.
    #[error("a network needs addresses: `ipv4`, `ipv6` or both")]
    NoFamily,
    /// The MTU.
    #[error("an MTU of {0} cannot be: it is {min} to {max}, and with IPv6 at least {MIN_MTU_IPV6}",
        min = MTU_RANGE.start(), max = MTU_RANGE.end())]
    Mtu(u16),
    /// Where DNS goes.
    #[error(
        "the DNS server {0} is the network's own gateway, which would ask itself: leave it out, and containers ask the gateway all the same"
    )]
    Dns(IpAddr),
    /// Ports of the host's loopback on a network without a way out.
    #[error("an internal network leads nowhere, so not to the host's loopback either")]
    HostAccess,
    /// A domain to search.
    #[error("`{0}` is no domain")]
    Search(String),
    /// The identity.
    #[error("`{0}` is no id: it has 64 hexadecimal digits")]
    Id(String),
}

impl Definition {
    /// A network of that name and id with nothing special about it. It needs addresses yet.
    pub fn new(name: impl Into<String>, id: impl Into<String>) -> Definition {
        Definition {
            name: name.into(),
            id: id.into(),
            created: NEVER.to_owned(),
            driver: BRIDGE.to_owned(),
            internal: false,
            isolate: false,
            require_sandbox: false,
            mtu: default_mtu(),
            dns: Vec::new(),
            dns_stale: 0,
            dns_search: Vec::new(),
            trust: false,
            keep_ports: false,
            filter: Filter::new(),
            overlay: None,
            lan: None,
            ipv4: None,
            ipv6: None,
            labels: BTreeMap::new(),
        }
    }

    /// Checks all of it.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), DefinitionError> {
        check_network_name(&self.name)?;
        if !is_id(&self.id) {
            return Err(DefinitionError::Id(self.id.clone()));
        }
        match (self.driver.as_str(), &self.overlay, &self.lan) {
            (BRIDGE, None, None) => {}
            (OVERLAY, Some(overlay), None) => self.check_overlay(overlay)?,
            (MACVLAN, None, Some(lan)) => lan.check()?,
            (BRIDGE, Some(_), _) => return Err(OverlayError::NotOverlay.into()),
            _ => return Err(DefinitionError::Driver(self.driver.clone())),
        }
        self.ipv4.iter().try_for_each(Ipv4Pool::check)?;
        self.ipv6.iter().try_for_each(Ipv6Pool::check)?;
        if self.ipv4.is_none() && self.ipv6.is_none() {
            return Err(DefinitionError::NoFamily);
        }
        let too_small = self.ipv6.is_some() && self.mtu < MIN_MTU_IPV6;
        if too_small || !MTU_RANGE.contains(&self.mtu.into()) {
            return Err(DefinitionError::Mtu(self.mtu));
        }
        if let Some(address) = self.own_dns_server(&self.dns) {
            return Err(DefinitionError::Dns(address));
        }
        if self.internal && !self.filter.host_access.is_none() {
            return Err(DefinitionError::HostAccess);
        }
        match self.dns_search.iter().find(|domain| !is_domain(domain)) {
            Some(domain) => Err(DefinitionError::Search(domain.clone())),
            None => Ok(()),
        }
    }

    /// No two hosts may give out the same address.
    fn check_overlay(&self, overlay: &Overlay) -> Result<(), OverlayError> {
        overlay.check()?;
        let without = |pool: Option<bool>| pool == Some(false);
        if without(self.ipv4.map(|pool| pool.ip_range.is_some())) {
            return Err(OverlayError::NoRange("IPv4"));
        }
        if without(self.ipv6.map(|pool| pool.ip_range.is_some())) {
            return Err(OverlayError::NoRange("IPv6"));
        }
        Ok(())
    }

    /// The one of `servers` that is the network's own gateway: it would ask itself.
    pub fn own_dns_server(&self, servers: &[DnsServer]) -> Option<IpAddr> {
        let (v4, v6) = self.gateways();
        let is_gateway = |a: &IpAddr| match a {
            IpAddr::V4(a) => v4 == Some(*a),
            IpAddr::V6(a) => v6 == Some(*a),
        };
        let mut servers = servers.iter().map(|server| server.address.ip());
        servers.find(is_gateway)
    }

    /// Its subnets.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> + use<> {
        let ipv4 = self.ipv4.map(|pool| IpNet::from(pool.subnet));
        let ipv6 = self.ipv6.map(|pool| IpNet::from(pool.subnet));
        ipv4.into_iter().chain(ipv6)
    }

    /// What is to be said of those of the host's `routes` that came up within the network's subnets
    /// after it was made.
    pub fn hidden_routes(&self, routes: &HostRoutes) -> Vec<String> {
        // The LAN's subnet is the host's own.
        if self.lan.is_some() {
            return Vec::new();
        }
        let hidden = self.subnets().filter_map(|subnet| {
            let route = routes.overlapping(subnet)?;
            Some(format!(
                "{route} shares addresses with the subnet {subnet} of the network `{}`: its containers do not reach what is behind that route. Make the network anew, on another --subnet",
                self.name
            ))
        });
        hidden.collect()
    }

    /// The two sides of the network as its router has them: DNS is answered at the gateway's
    /// address, and DHCP answers only those with a lease.
    pub fn plan(&self) -> (Option<Ipv4Plan>, Option<Ipv6Plan>) {
        let ipv4 = self.ipv4.map(|pool| Ipv4Plan {
            network: pool.subnet.network(),
            prefix_len: pool.subnet.prefix_len(),
            gateway: pool.gateway,
            dns: Some(pool.gateway),
            // Last before first: no address.
            dhcp_range: (pool.subnet.broadcast(), pool.subnet.network()),
        });
        let ipv6 = self.ipv6.map(|pool| Ipv6Plan {
            network: pool.subnet.network(),
            prefix_len: pool.subnet.prefix_len(),
            gateway: pool.gateway,
            dns: Some(pool.gateway),
        });
        (ipv4, ipv6)
    }

    /// The gateway's hardware address: locally administered, with its IPv4 address or a part of
    /// the network's id in it, so that it stays.
    pub fn gateway_mac(&self) -> MacAddr {
        match self.ipv4 {
            Some(pool) => cnet_wire::prefixes::gateway_mac(pool.gateway),
            None => {
                let digest = Sha256::digest(&self.id);
                MacAddr([0x52, 0x55, digest[0], digest[1], digest[2], digest[3]])
            }
        }
    }

    /// The gateway's addresses.
    pub fn gateways(&self) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        (
            self.ipv4.map(|pool| pool.gateway),
            self.ipv6.map(|pool| pool.gateway),
        )
    }
}

/// The pools a request names, checked.
pub(super) fn pools(
    request: &Request,
) -> Result<(Option<Ipv4Pool>, Option<Ipv6Pool>), DefinitionError> {
    only_one_of_each(&request.subnets, "subnet", |net| net.network().is_ipv4())?;
    only_one_of_each(&request.gateways, "gateway", IpAddr::is_ipv4)?;
    only_one_of_each(&request.ip_ranges, "IP range", |net| {
        net.network().is_ipv4()
    })?;
    let without = |address: &IpAddr| !request.subnets.iter().any(|s| same_family(s, address));
    if let Some(gateway) = request.gateways.iter().find(|g| without(g)) {
        return Err(DefinitionError::NoSubnet(gateway.to_string(), "gateway"));
    }
    if let Some(range) = request.ip_ranges.iter().find(|r| without(&r.network())) {
        return Err(DefinitionError::NoSubnet(range.to_string(), "IP range"));
    }
    let (mut ipv4, mut ipv6) = (None, None);
    for subnet in &request.subnets {
        match subnet {
            IpNet::V4(subnet) => {
                let gateway = request.gateways.iter().find_map(|g| match g {
                    IpAddr::V4(g) => Some(*g),
                    IpAddr::V6(_) => None,
                });
                let range = request.ip_ranges.iter().find_map(|r| match r {
                    IpNet::V4(r) => Some(*r),
                    IpNet::V6(_) => None,
                });
                ipv4 = Some(Ipv4Pool::new(*subnet, gateway, range)?);
            }
            IpNet::V6(subnet) => {
                let gateway = request.gateways.iter().find_map(|g| match g {
                    IpAddr::V6(g) => Some(*g),
                    IpAddr::V4(_) => None,
                });
                let range = request.ip_ranges.iter().find_map(|r| match r {
                    IpNet::V6(r) => Some(*r),
                    IpNet::V4(_) => None,
                });
                ipv6 = Some(Ipv6Pool::new(*subnet, gateway, range)?);
            }
        }
    }
    Ok((ipv4, ipv6))
}

fn only_one_of_each<T: std::fmt::Display>(
    given: &[T],
    what: &'static str,
    is_ipv4: impl Fn(&T) -> bool,
) -> Result<(), DefinitionError> {
    for (family, wanted) in [("IPv4", true), ("IPv6", false)] {
        let mut of_family = given.iter().filter(|one| is_ipv4(one) == wanted);
        if let (Some(one), Some(other)) = (of_family.next(), of_family.next()) {
            let (one, other) = (one.to_string(), other.to_string());
            return Err(DefinitionError::Two(one, other, what, family));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(subnets: &[&str], gateways: &[&str], ranges: &[&str]) -> Request {
        Request {
            subnets: subnets.iter().map(|s| s.parse().unwrap()).collect(),
            gateways: gateways.iter().map(|s| s.parse().unwrap()).collect(),
            ip_ranges: ranges.iter().map(|s| s.parse().unwrap()).collect(),
            ..Request::new("n")
        }
    }

    fn definition() -> Definition {
        Definition {
            name: "web".into(),
            id: "0123456789abcdef".repeat(4),
            created: "2026-01-02T03:04:05Z".into(),
            driver: BRIDGE.into(),
            internal: false,
            isolate: true,
            require_sandbox: true,
            mtu: 1500,
            dns: vec!["192.0.2.53".parse().unwrap()],
            dns_stale: 3600,
            dns_search: vec!["corp.example".into()],
            trust: true,
            keep_ports: true,
            filter: Filter {
                deny: vec!["10.0.0.0/8".parse().unwrap()],
                no_host: true,
                ..Filter::new()
            },
            overlay: None,
            lan: None,
            ipv4: Some(Ipv4Pool::new("172.27.0.0/16".parse().unwrap(), None, None).unwrap()),
            ipv6: Some(Ipv6Pool::new("fd12::/64".parse().unwrap(), None, None).unwrap()),
            labels: BTreeMap::from([("a.b".into(), "c d".into())]),
        }
    }

    #[test]
    fn families_are_sorted_out() {
        let (v4, v6) = pools(&asked(
            &["fd12::/64", "172.27.0.0/16"],
            &["172.27.0.9", "fd12::9"],
            &["172.27.1.0/24"],
        ))
        .unwrap();
        let v4 = v4.unwrap();
        assert_eq!(v4.gateway.to_string(), "172.27.0.9");
        assert_eq!(v4.ip_range.unwrap().to_string(), "172.27.1.0/24");
        assert_eq!(v6.unwrap().gateway.to_string(), "fd12::9");
        assert_eq!(pools(&asked(&[], &[], &[])), Ok((None, None)));
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let error = |r: &Request| pools(r).unwrap_err().to_string();
        let two = error(&asked(&["10.1.0.0/24", "10.2.0.0/24"], &[], &[]));
        assert!(
            two.contains("10.1.0.0/24 and 10.2.0.0/24 are both subnets of IPv4"),
            "{two}"
        );
        let lone = error(&asked(&["10.1.0.0/24"], &["fd12::1"], &[]));
        assert!(
            lone.contains("the gateway fd12::1 belongs to no subnet"),
            "{lone}"
        );
        let lone = error(&asked(&[], &[], &["10.1.0.0/25"]));
        assert!(
            lone.contains("the IP range 10.1.0.0/25 belongs to no subnet"),
            "{lone}"
        );
    }

    #[test]
    fn a_file_says_it_all_and_nothing_else() {
        let text = toml::to_string(&definition()).unwrap();
        let read: Definition = toml::from_str(&text).unwrap();
        assert_eq!(read, definition());
        assert_eq!(read.check(), Ok(()));
        assert!(text.contains("subnet = \"172.27.0.0/16\""), "{text}");
        let more = format!("colour = \"blue\"\n{text}");
        let error = toml::from_str::<Definition>(&more).unwrap_err().to_string();
        assert!(error.contains("colour"), "{error}");
    }

    #[test]
    fn edits_by_hand_are_checked() {
        let error = |change: &dyn Fn(&mut Definition)| {
            let mut changed = definition();
            change(&mut changed);
            changed.check().unwrap_err().to_string()
        };
        assert!(error(&|d| d.name = "host".into()).contains("host's own"));
        assert!(error(&|d| d.driver = "macvlan".into()).contains("no driver `macvlan`"));
        assert!(error(&|d| d.mtu = 1279).contains("at least 1280"));
        assert!(error(&|d| d.id = "abc".into()).contains("64 hexadecimal"));
        assert!(error(&|d| d.dns = vec!["172.27.0.1".parse().unwrap()]).contains("own gateway"));
        for domain in ["", ".", "a b", "a..b", "x\ny", &"a".repeat(64)] {
            let told = error(&|d| d.dns_search = vec![domain.to_owned()]);
            assert!(told.contains("is no domain"), "{told}");
        }
        let neither = |d: &mut Definition| {
            d.ipv4 = None;
            d.ipv6 = None;
        };
        assert!(error(&neither).contains("needs addresses"));
        let mut small = definition();
        (small.ipv6, small.mtu) = (None, 576);
        assert_eq!(small.check(), Ok(()));
    }

    #[test]
    fn an_overlay_has_its_hosts_and_a_range_of_its_own() {
        let mut overlay = definition();
        overlay.driver = OVERLAY.to_owned();
        let no_driver = overlay.check().unwrap_err().to_string();
        assert!(no_driver.contains("no driver"), "{no_driver}");
        let text = toml::to_string(&overlay).unwrap();
        let hosts = "\n[overlay]\nvni = 42\npeers = [\"192.0.2.7:4790\"]\n";
        let mut overlay: Definition = toml::from_str(&(text + hosts)).unwrap();
        assert_eq!(overlay.overlay.as_ref().unwrap().port, 4789);
        let told = overlay.check().unwrap_err().to_string();
        assert!(
            told.contains("IPv4") && told.contains("--ip-range"),
            "{told}"
        );
        let range = |net: &str| Some(net.parse().unwrap());
        overlay.ipv4 = overlay.ipv4.map(|pool| Ipv4Pool {
            ip_range: range("172.27.1.0/24").map(|net: ipnet::Ipv4Net| net),
            ..pool
        });
        let told = overlay.check().unwrap_err().to_string();
        assert!(told.contains("IPv6"), "{told}");
        overlay.ipv6 = None;
        assert_eq!(overlay.check(), Ok(()));
        overlay.driver = BRIDGE.to_owned();
        let told = overlay.check().unwrap_err().to_string();
        assert!(told.contains("--driver overlay"), "{told}");
    }

    #[test]
    fn dns_is_at_the_gateway() {
        let (v4, v6) = definition().plan();
        let v4 = v4.unwrap();
        assert_eq!(
            (v4.gateway.to_string(), v4.dns),
            ("172.27.0.1".into(), Some(v4.gateway))
        );
        assert_eq!(v4.prefix_len, 16);
        assert!(
            v4.dhcp_range.0 > v4.dhcp_range.1,
            "no address without a lease"
        );
        assert_eq!(v6.unwrap().dns.unwrap().to_string(), "fd12::1");
        assert_eq!(definition().gateway_mac().to_string(), "52:55:ac:1b:00:01");
        let mut six = definition();
        six.ipv4 = None;
        assert_eq!(six.gateway_mac(), six.gateway_mac());
        assert!(!six.gateway_mac().is_multicast());
    }

    #[test]
    fn a_route_that_came_later_is_told_with_the_network_that_hides_it() {
        let pool = Ipv4Pool::new("10.89.0.0/24".parse().unwrap(), None, None);
        let network = Definition {
            ipv4: Some(pool.unwrap()),
            ..Definition::new("v", "0".repeat(64))
        };
        let hex = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
        let routes = |network: [u8; 4]| {
            let (network, mask) = (hex(network), hex([255, 255, 0, 0]));
            let line = format!("wlan0 {network} 00000000 0001 0 0 600 {mask} 0 0 0");
            HostRoutes::parse(&format!("heading\n{line}\n"), "")
        };
        let told = network.hidden_routes(&routes([10, 89, 0, 0]));
        assert_eq!(told.len(), 1);
        for part in ["10.89.0.0/16 on wlan0", "10.89.0.0/24", "`v`", "--subnet"] {
            assert!(told[0].contains(part), "{told:?}");
        }
        assert!(network.hidden_routes(&routes([10, 90, 0, 0])).is_empty());
    }
}
