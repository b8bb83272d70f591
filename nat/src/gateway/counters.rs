//! The gateway's counters, a struct a protocol.
//!
//! A counter counts messages sent, queries taken in, or connections ended. Drops are not counted
//! here: the caller of [`super::Gateway::handle_packet`] counts each once, under the
//! [`DropReason`](cnet_wire::DropReason) that is returned.

counters! {
    /// ARP.
    ArpCounters {
        /// Replies.
        replies = "arp_replies",
        /// Requests for a container's MAC address.
        requests = "arp_requests",
    }
}

counters! {
    /// IPv6 neighbour discovery.
    NdpCounters {
        /// Neighbour advertisements.
        advertisements = "neighbour_advertisements",
        /// Neighbour solicitations for a container's MAC address.
        solicitations = "neighbour_solicitations",
        /// Router advertisements.
        router_advertisements = "router_advertisements",
    }
}

counters! {
    /// ICMP and ICMPv6 echo.
    EchoCounters {
        /// Replies.
        replies = "echo_replies",
    }
}

counters! {
    /// DHCPv4.
    Dhcpv4Counters {
        /// Offers, acknowledgements and refusals.
        replies = "dhcpv4_replies",
    }
}

counters! {
    /// DHCPv6.
    Dhcpv6Counters {
        /// Advertisements and replies.
        replies = "dhcpv6_replies",
    }
}

counters! {
    /// DNS over UDP.
    DnsCounters {
        /// Queries taken in.
        queries = "dns_udp_queries",
        /// Answers sent.
        answers = "dns_udp_answers",
        /// Those of the answers that were cut short.
        truncated = "dns_udp_truncated",
    }
}

counters! {
    /// DNS over TCP.
    DnsTcpCounters {
        /// Queries taken in.
        queries = "dns_tcp_queries",
        /// Answers put on their way.
        answers = "dns_tcp_answers",
        /// Connections closed because they were idle, stuck or had to make room.
        aborts = "dns_tcp_aborts",
    }
}

/// The counters of one gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct GatewayCounters {
    /// ARP.
    pub arp: ArpCounters,
    /// IPv6 neighbour discovery.
    pub ndp: NdpCounters,
    /// ICMP and ICMPv6 echo.
    pub echo: EchoCounters,
    /// DHCPv4.
    pub dhcpv4: Dhcpv4Counters,
    /// DHCPv6.
    pub dhcpv6: Dhcpv6Counters,
    /// DNS over UDP.
    pub dns: DnsCounters,
    /// DNS over TCP.
    pub dns_tcp: DnsTcpCounters,
}

impl GatewayCounters {
    /// Adds what another worker's gateway counted.
    pub fn add(&mut self, other: &GatewayCounters) {
        self.arp.add(&other.arp);
        self.ndp.add(&other.ndp);
        self.echo.add(&other.echo);
        self.dhcpv4.add(&other.dhcpv4);
        self.dhcpv6.add(&other.dhcpv6);
        self.dns.add(&other.dns);
        self.dns_tcp.add(&other.dns_tcp);
    }

    /// Every counter under its name in reports.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let addresses = self.arp.iter().chain(self.ndp.iter());
        let leases = self.dhcpv4.iter().chain(self.dhcpv6.iter());
        let dns = self.dns.iter().chain(self.dns_tcp.iter());
        addresses.chain(self.echo.iter()).chain(leases).chain(dns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_a_name_of_its_own_and_is_added() {
        let mut counters = GatewayCounters::default();
        counters.arp.requests = 1;
        counters.dns_tcp.aborts = 2;
        let mut sum = counters;
        sum.add(&counters);
        let mut named: Vec<_> = sum.iter().collect();
        assert_eq!(named.iter().map(|(_, n)| n).sum::<u64>(), 6);
        assert!(named.contains(&("arp_requests", 2)));
        assert!(named.contains(&("dns_tcp_aborts", 4)));
        named.sort_unstable();
        named.dedup_by_key(|(name, _)| *name);
        assert_eq!(named.len(), 14);
        assert_eq!(size_of::<GatewayCounters>(), named.len() * size_of::<u64>());
    }
}
