//! The host's own routes, which a network must not hide, and subnets that are free of them.
//!
//! # Limits
//!
//! `/proc/net/route` shows the main table alone. A VPN with a table of its own is not seen.
//! Routes to more than a 256th of all addresses say where the rest of the world is, not what the
//! host uses: the default route, and the halves that VPNs put before it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::pool::overlap;

/// The shortest prefix of a route that says something about the host.
const MIN_PREFIX_LEN: u8 = 8;

/// A route that only refuses (`RTF_REJECT` in `<linux/route.h>`).
const REJECT: u32 = 0x0200;

/// Where /24 networks are taken from, in this order. The first is podman's.
const POOLS: [([u8; 4], u8); 7] = [
    ([10, 89, 0, 0], 16),
    ([10, 90, 0, 0], 15),
    ([10, 92, 0, 0], 14),
    ([10, 96, 0, 0], 11),
    ([10, 128, 0, 0], 9),
    ([172, 16, 0, 0], 12),
    ([192, 168, 0, 0], 16),
];

/// How many unique local prefixes are tried. Two of 2^40 meet by accident, if ever.
const ULA_ATTEMPTS: u8 = 16;

/// A route of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HostRoute {
    /// Where it leads.
    pub network: IpNet,
    /// The interface's name.
    pub interface: String,
}

impl std::fmt::Display for HostRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the host's route to {} on {}",
            self.network, self.interface
        )
    }
}

/// The routes of the host, or of the namespace this runs in.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HostRoutes(Vec<HostRoute>);

impl HostRoutes {
    /// Those in force now. Where `/proc` tells none, there are none.
    pub fn read() -> HostRoutes {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        HostRoutes::parse(&text("/proc/net/route"), &text("/proc/net/ipv6_route"))
    }

    /// From the texts of `/proc/net/route` and `/proc/net/ipv6_route`. Lines that make no sense
    /// are skipped.
    pub fn parse(ipv4: &str, ipv6: &str) -> HostRoutes {
        let ipv4 = ipv4.lines().skip(1).filter_map(ipv4_route);
        let all = ipv4.chain(ipv6.lines().filter_map(ipv6_route));
        HostRoutes(
            all.filter(|route| route.network.prefix_len() >= MIN_PREFIX_LEN)
                .collect(),
        )
    }

    /// For each of `networks` a route that shares addresses with it, if there is one: of a host with very
    /// many routes, few.
    pub fn within(&self, networks: &[IpNet]) -> HostRoutes {
        let found = networks.iter().filter_map(|n| self.overlapping(*n));
        HostRoutes(found.cloned().collect())
    }

    /// A route that shares addresses with `network`.
    pub fn overlapping(&self, network: IpNet) -> Option<&HostRoute> {
        self.0.iter().find(|route| overlap(route.network, network))
    }
}

/// Columns 0, 1, 3 and 7 are interface, address, flags and mask; address and mask in the host's
/// byte order, all in hexadecimal (proc_pid_net(5)).
fn ipv4_route(line: &str) -> Option<HostRoute> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let number = |column: usize| u32::from_str_radix(columns.get(column)?, 16).ok();
    if number(3)? & REJECT != 0 {
        return None;
    }
    let address = Ipv4Addr::from(number(1)?.to_ne_bytes());
    let mask = Ipv4Addr::from(number(7)?.to_ne_bytes());
    let network = Ipv4Net::with_netmask(address, mask).ok()?;
    Some(HostRoute {
        network: network.trunc().into(),
        interface: (*columns.first()?).to_owned(),
    })
}

/// Columns 0, 1, 8 and 9 are address, prefix length, flags and interface
/// (Linux, `rt6_info_route` in `net/ipv6/route.c`).
fn ipv6_route(line: &str) -> Option<HostRoute> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let [address, prefix_len, .., flags, interface] = columns.as_slice() else {
        return None;
    };
    if u32::from_str_radix(flags, 16).ok()? & REJECT != 0 || address.len() != 32 {
        return None;
    }
    let address = Ipv6Addr::from_bits(u128::from_str_radix(address, 16).ok()?);
    let prefix_len = u8::from_str_radix(prefix_len, 16).ok()?;
    Some(HostRoute {
        network: Ipv6Net::new(address, prefix_len).ok()?.trunc().into(),
        interface: (*interface).to_owned(),
    })
}

/// The first /24 that is not `taken`.
pub fn free_ipv4(taken: impl Fn(IpNet) -> bool) -> Option<Ipv4Net> {
    POOLS
        .iter()
        .filter_map(|(octets, len)| Ipv4Net::new(Ipv4Addr::from(*octets), *len).ok())
        .filter_map(|pool| pool.subnets(24).ok())
        .flatten()
        .find(|subnet| !taken((*subnet).into()))
}

/// A unique local /64 that is not `taken` (RFC 4193), the same for the same `seed`, which makes it
/// as unique as itself.
pub fn free_ula(seed: &str, taken: impl Fn(IpNet) -> bool) -> Option<Ipv6Net> {
    (0..ULA_ATTEMPTS)
        .filter_map(|attempt| {
            let digest = Sha256::new()
                .chain_update(seed)
                .chain_update([attempt])
                .finalize();
            let mut octets = [0; 16];
            octets[0] = 0xfd;
            octets[1..6].copy_from_slice(&digest[..5]);
            Ipv6Net::new(Ipv6Addr::from(octets), 64).ok()
        })
        .find(|subnet| !taken((*subnet).into()))
}

/// Whether an address is of the family of a network.
pub fn same_family(network: &IpNet, address: &IpAddr) -> bool {
    matches!(network, IpNet::V4(_)) == address.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IPV6: &str = "\
fd0007000000000000000000000000aa 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000001 00000000 80200001       lo
fd000700000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
fd990000000000000000000000000000 20 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000003 00000000 00000003     eth0
nonsense
";

    fn routes(networks: &[(&str, u32)]) -> HostRoutes {
        let mut text =
            "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n".to_owned();
        for (network, flags) in networks {
            let network: Ipv4Net = network.parse().unwrap();
            let hex = |a: Ipv4Addr| format!("{:08X}", u32::from_ne_bytes(a.octets()));
            text += &format!(
                "wlan0 {} 00000000 {flags:04X} 0 0 600 {} 0 0 0\n",
                hex(network.network()),
                hex(network.netmask())
            );
        }
        HostRoutes::parse(&text, IPV6)
    }

    fn overlapping(routes: &HostRoutes, network: &str) -> Option<String> {
        let route = routes.overlapping(network.parse().unwrap())?;
        Some(route.to_string())
    }

    #[test]
    fn routes_are_named_with_their_interface() {
        let routes = routes(&[
            ("0.0.0.0/0", 3),
            ("0.0.0.0/1", 3),
            ("128.0.0.0/1", 3),
            ("192.168.7.0/24", 1),
            ("10.200.0.0/16", 0x0201),
        ]);
        let told = overlapping(&routes, "192.168.0.0/16").unwrap();
        assert_eq!(told, "the host's route to 192.168.7.0/24 on wlan0");
        assert_eq!(overlapping(&routes, "10.200.0.0/24"), None, "only refused");
        let told = overlapping(&routes, "fd00:700::/32").unwrap();
        assert!(told.contains("fd00:700"), "{told}");
        assert_eq!(overlapping(&routes, "fd99::/64"), None, "only refused");
        assert_eq!(overlapping(&routes, "fd01::/64"), None, "the default route");
        assert_eq!(HostRoutes::parse("", "x y z"), HostRoutes::default());
    }

    #[test]
    fn the_first_free_subnet_is_taken() {
        let free = |used: &[&str]| {
            let used: Vec<IpNet> = used.iter().map(|n| n.parse().unwrap()).collect();
            let taken = |candidate| used.iter().any(|network| overlap(*network, candidate));
            free_ipv4(taken).map(|n| n.to_string())
        };
        assert_eq!(free(&[]).unwrap(), "10.89.0.0/24");
        assert_eq!(
            free(&["10.89.0.0/24", "10.89.1.128/25"]).unwrap(),
            "10.89.2.0/24"
        );
        assert_eq!(free(&["10.89.0.0/16"]).unwrap(), "10.90.0.0/24");
        assert_eq!(free(&["10.0.0.0/8"]).unwrap(), "172.16.0.0/24");
        assert_eq!(
            free(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]),
            None
        );
    }

    #[test]
    fn unique_local_prefixes_follow_their_seed() {
        let one = free_ula("one", |_| false).unwrap();
        assert_eq!(one, free_ula("one", |_| false).unwrap());
        assert_ne!(one, free_ula("two", |_| false).unwrap());
        assert_eq!((one.network().octets()[0], one.prefix_len()), (0xfd, 64));
        let next = free_ula("one", |candidate| candidate == one.into()).unwrap();
        assert_ne!(one, next);
        assert_eq!(free_ula("one", |_| true), None);
    }
}
