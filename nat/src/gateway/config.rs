//! What a gateway is and hands out.

use std::net::{Ipv4Addr, Ipv6Addr};

use cnet_wire::MacAddr;

use super::addresses::{Addresses, Ipv4Gateway, Ipv6Gateway};

/// What the gateway is and hands out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayConfig {
    /// The gateway's MAC address, the same on every port.
    pub mac: MacAddr,
    /// The links' IP MTU in bytes.
    pub mtu: u16,
    /// IPv4, if the network has it.
    pub v4: Option<Ipv4Gateway>,
    /// IPv6, if the network has it.
    pub v6: Option<Ipv6Gateway>,
    /// Domains in which resolvers search, the network's own first.
    pub search: Vec<String>,
    /// First and last address for ports without a lease of their own.
    pub dhcp_range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// What it does otherwise than it would by itself.
    pub quirks: Quirks,
}

impl GatewayConfig {
    /// The gateway's own addresses.
    pub(super) fn addresses(&self) -> Addresses {
        let iid = u64::from_be_bytes(self.mac.eui64());
        Addresses {
            v4: self.v4,
            v6: self.v6,
            host_subnets: self.quirks.host_subnets,
            link_local: self
                .quirks
                .link_local
                .unwrap_or(Ipv6Addr::from(0xfe80_u128 << 112 | u128::from(iid))),
        }
    }
}

/// What the gateway does otherwise for clients that were written against another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quirks {
    /// DHCPv4 gives a port an address of the range although it has a fixed lease.
    pub dhcp_from_range: bool,
    /// Port 53 of the DNS addresses does not answer; their ARP, neighbour discovery and echo do.
    pub silent_dns: bool,
    /// Ports of the DNS addresses that serve nothing are answered with *network unreachable*
    /// instead of a RST or *port unreachable*.
    pub dns_address_unreachable: bool,
    /// The gateway's link-local address; `None` for fe80:: and the EUI-64 of its MAC address.
    pub link_local: Option<Ipv6Addr>,
    /// Valid and preferred lifetime of the advertised prefix, in seconds; `None` for without end.
    /// With lifetimes the gateway repeats its advertisements, which wakes an idle network.
    pub prefix_lifetimes: Option<(u32, u32)>,
    /// The subnets are the host's own, and the container has the host's own addresses: the gateway
    /// answers ARP and neighbour solicitations for every address that no container has, and what is
    /// sent there leaves through the host. The gateway's addresses are then those of the host's
    /// router, which are answered for in the same way; its link-local address stays its own.
    pub host_subnets: bool,
    /// Services that do not answer.
    pub off: ServicesOff,
}

/// Services of the gateway that do not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServicesOff {
    /// DHCPv4.
    pub dhcpv4: bool,
    /// DHCPv6.
    pub dhcpv6: bool,
    /// Neighbour discovery, router advertisements included.
    pub ndp: bool,
    /// Router advertisements.
    pub router_advertisements: bool,
}

impl Quirks {
    /// Those of slirp4netns (libslirp: `bootp.c`, `ip6_icmp.c`, `slirp.c`).
    pub fn slirp4netns() -> Quirks {
        Quirks {
            dhcp_from_range: true,
            silent_dns: false,
            dns_address_unreachable: true,
            link_local: Some(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2)),
            prefix_lifetimes: Some((86_400, 14_400)),
            ..Quirks::default()
        }
    }

    /// Those of a network whose container has the host's own addresses.
    pub fn host_subnets() -> Quirks {
        Quirks {
            host_subnets: true,
            ..Quirks::default()
        }
    }
}
