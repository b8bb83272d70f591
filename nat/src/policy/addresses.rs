//! Addresses that have a meaning of their own: loopback under all its names, the metadata services of
//! clouds, and what no router sends to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
pub(super) fn is_metadata(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.is_link_local() || METADATA_V4.contains(&a),
        IpAddr::V6(a) => METADATA_V6.contains(&a),
    }
}

/// The IPv4 address inside an IPv4-mapped (::ffff:0:0/96), IPv4-compatible (::/96, not :: or ::1)
/// or NAT64 (64:ff9b::/96, RFC 6052) address.
pub(super) fn embedded_ipv4(a: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(a) = a else { return None };
    let s = a.segments();
    let low = Ipv4Addr::from((u32::from(s[6]) << 16) | u32::from(s[7]));
    let mapped = s[..5] == [0; 5] && s[5] == 0xffff;
    let compatible = s[..6] == [0; 6] && u32::from(low) > 1;
    let nat64 = s[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    (mapped || compatible || nat64).then_some(low)
}

/// Whether a router may send to `dst` on another link: not to groups and broadcasts (RFC 1812
/// section 5.3.7), nor to link-local ones (RFC 4291 section 2.5.6) and IPv4-mapped ones, which have no
/// place on a wire (section 2.5.5.2). The reserved 240.0.0.0/4 is the host's to judge: Linux routes it
/// as any other. Loopback and unspecified addresses are policy's to refuse.
pub(crate) fn is_routable(dst: IpAddr) -> bool {
    match dst {
        IpAddr::V4(a) => !a.is_multicast() && !a.is_broadcast(),
        IpAddr::V6(a) => {
            !a.is_multicast() && !a.is_unicast_link_local() && a.to_ipv4_mapped().is_none()
        }
    }
}

/// Whether `a` names the host itself: its loopback, or no host at all.
pub(super) fn is_this_host(a: IpAddr) -> bool {
    let v4_zero_net = matches!(a, IpAddr::V4(a) if a.octets()[0] == 0);
    a.is_loopback() || a.is_unspecified() || v4_zero_net
}
