//! The addresses of the simulated network: one container, its gateway, and the gateway's DNS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cnet_wire::MacAddr;

/// The gateway's MAC address.
pub const GATEWAY_MAC: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
/// The gateway's IPv4 address.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The gateway's IPv6 address.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// The IPv4 address of the DNS service.
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The IPv6 address of the DNS service.
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
/// The container's MAC address.
pub const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
/// The container's IPv4 address.
pub const IPV4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// The container's IPv6 address.
pub const IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);

/// The container's address in one family.
pub fn address(v6: bool) -> IpAddr {
    if v6 { IPV6.into() } else { IPV4.into() }
}

/// The gateway's address in one family.
pub fn gateway(v6: bool) -> IpAddr {
    if v6 {
        GATEWAY_V6.into()
    } else {
        GATEWAY_V4.into()
    }
}
