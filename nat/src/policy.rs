//! Where a container may send to, and what address of the host that becomes.
//!
//! Policy is asked once a flow, before the flow enters a table, for TCP, UDP and ICMP alike. Its
//! default is the safe one: the host's loopback under any of its names, and the instance metadata
//! services of clouds, cannot be reached (CVE-2020-13401 and the like start here).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the core tells a sender whose packet is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// No route to the network.
    NetUnreachable,
    /// Forbidden by an administrator.
    Prohibited,
}

/// What policy says of a destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decision {
    /// Send to this address of the host's network.
    Allow(IpAddr),
    /// Answer with an ICMP error.
    Refuse(Refusal),
}

/// The rules of one network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Addresses that stand for the host's loopback (slirp4netns: the gateway's own), when the
    /// host's loopback may be reached at all.
    pub host_loopback: Vec<IpAddr>,
    /// Whether the instance metadata and credential services of clouds may be reached: the
    /// link-local addresses, and the further ones where clouds have them.
    pub allow_metadata: bool,
    /// Further addresses of the host that may not be reached.
    pub denied: Vec<IpAddr>,
    /// IPv4 egress.
    pub ipv4: bool,
    /// IPv6 egress.
    pub ipv6: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            host_loopback: Vec::new(),
            allow_metadata: false,
            denied: Vec::new(),
            ipv4: true,
            ipv6: true,
        }
    }
}

/// Metadata services of IPv4 outside the link-local network: Alibaba Cloud, Azure's host agent and
/// Oracle Cloud's classic one.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// Those of IPv6: OpenStack, EC2, EKS's credentials, Google, Oracle and Scaleway.
const METADATA_V6: [Ipv6Addr; 6] = [
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0023),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd00, 0x00c1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x0042),
];

/// Whether `a` is, or may be, a service that gives out an instance's secrets. Of 169.254.0.0/16 all
/// are: besides 169.254.169.254 there are 169.254.170.2 (ECS), 169.254.170.23 (EKS), 169.254.42.42
/// (Scaleway), 169.254.0.23 (Tencent) and more, and a router forwards to none of them (RFC 3927
/// section 2.7).
fn is_metadata(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.is_link_local() || METADATA_V4.contains(&a),
        IpAddr::V6(a) => METADATA_V6.contains(&a),
    }
}

impl Policy {
    /// Decides on `destination`, whatever the protocol.
    pub fn decide(&self, destination: IpAddr) -> Decision {
        let family_on = if destination.is_ipv4() {
            self.ipv4
        } else {
            self.ipv6
        };
        if !family_on {
            return Decision::Refuse(Refusal::NetUnreachable);
        }
        if self.host_loopback.contains(&destination) {
            return Decision::Allow(match destination {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let canonical = embedded_ipv4(destination).map_or(destination, IpAddr::V4);
        let forbidden = canonical.is_loopback() || canonical.is_unspecified();
        let v4_zero_net = matches!(canonical, IpAddr::V4(a) if a.octets()[0] == 0);
        if forbidden || v4_zero_net {
            return Decision::Refuse(Refusal::NetUnreachable);
        }
        if is_metadata(canonical) && !self.allow_metadata || self.denied.contains(&canonical) {
            return Decision::Refuse(Refusal::Prohibited);
        }
        Decision::Allow(destination)
    }
}

/// The IPv4 address inside an IPv4-mapped (::ffff:0:0/96), IPv4-compatible (::/96, not :: or ::1)
/// or NAT64 (64:ff9b::/96, RFC 6052) address.
fn embedded_ipv4(a: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(a) = a else { return None };
    let s = a.segments();
    let low = Ipv4Addr::from((u32::from(s[6]) << 16) | u32::from(s[7]));
    let mapped = s[..5] == [0; 5] && s[5] == 0xffff;
    let compatible = s[..6] == [0; 6] && u32::from(low) > 1;
    let nat64 = s[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    (mapped || compatible || nat64).then_some(low)
}

/// Whether a router may send to `dst` on another link: not to groups, broadcasts and reserved
/// addresses (RFC 1812 section 5.3.7), nor to link-local ones (RFC 4291 section 2.5.6) and
/// IPv4-mapped ones, which have no place on a wire (section 2.5.5.2). Loopback and unspecified
/// addresses are policy's to refuse.
pub(crate) fn is_routable(dst: IpAddr) -> bool {
    match dst {
        IpAddr::V4(a) => a < Ipv4Addr::new(224, 0, 0, 0),
        IpAddr::V6(a) => {
            !a.is_multicast() && !a.is_unicast_link_local() && a.to_ipv4_mapped().is_none()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(p: &Policy, a: &str) -> Decision {
        p.decide(a.parse().unwrap())
    }

    #[test]
    fn loopback_is_refused_under_all_its_names() {
        let p = Policy::default();
        for a in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:0.0.0.0",
            "64:ff9b::7f00:1",
            "::127.0.0.1",
        ] {
            assert_eq!(
                decide(&p, a),
                Decision::Refuse(Refusal::NetUnreachable),
                "{a}"
            );
        }
    }

    #[test]
    fn metadata_is_refused_unless_allowed() {
        let mut p = Policy::default();
        let names = [
            "169.254.169.254",
            "fe80::a9fe:a9fe",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "169.254.170.2",
            "100.100.100.200",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
        ];
        for a in names {
            assert_eq!(decide(&p, a), Decision::Refuse(Refusal::Prohibited), "{a}");
        }
        p.allow_metadata = true;
        for a in names {
            assert_eq!(decide(&p, a), Decision::Allow(a.parse().unwrap()), "{a}");
        }
    }

    #[test]
    fn only_named_addresses_become_loopback() {
        let p = Policy {
            host_loopback: vec!["10.0.2.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            ..Policy::default()
        };
        assert_eq!(
            decide(&p, "10.0.2.2"),
            Decision::Allow(Ipv4Addr::LOCALHOST.into())
        );
        assert_eq!(
            decide(&p, "fd00::2"),
            Decision::Allow(Ipv6Addr::LOCALHOST.into())
        );
        assert_eq!(
            decide(&p, "127.0.0.1"),
            Decision::Refuse(Refusal::NetUnreachable)
        );
        assert_eq!(
            decide(&p, "10.0.2.9"),
            Decision::Allow("10.0.2.9".parse().unwrap())
        );
    }

    #[test]
    fn a_family_that_is_off_is_unreachable() {
        let p = Policy {
            ipv6: false,
            ..Policy::default()
        };
        assert_eq!(
            decide(&p, "2001:db8::1"),
            Decision::Refuse(Refusal::NetUnreachable)
        );
        assert_eq!(
            decide(&p, "198.51.100.1"),
            Decision::Allow("198.51.100.1".parse().unwrap())
        );
    }
}
