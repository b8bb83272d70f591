//! Why a frame was not forwarded. One vocabulary for counters, traces and tests.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a frame or packet was dropped.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];

            /// The reason's name in metrics and logs.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    // Link layer
    /// Shorter than an Ethernet header.
    FrameTooShort = "frame_too_short",
    /// Longer than the port's MTU allows for what it is.
    FrameTooLong = "frame_too_long",
    /// The virtio-net header contradicts the frame.
    BadVnetHeader = "bad_vnet_header",
    /// A VLAN or QinQ tag where none is configured.
    VlanTag = "vlan_tag",
    /// The source MAC is a group address or zero.
    BadSourceMac = "bad_source_mac",
    /// An EtherType that is not served.
    UnknownEtherType = "unknown_ethertype",
    /// Truncated ARP or one with wrong address lengths.
    BadArp = "bad_arp",
    /// A source MAC or IP that is not the port's own.
    Spoofed = "spoofed",
    /// The port may learn no further MAC address.
    MacTableFull = "mac_table_full",
    /// Router advertisement, DHCP server message or redirect from a container.
    RogueService = "rogue_service",
    /// Source and destination are the same port, or the port is isolated.
    NoSuchPort = "no_such_port",
    /// The destination port's queue is full. Counted where its device is written ([`crate::FrameSink`]).
    PortFull = "port_full",
    /// The worker that takes such frames has too many waiting.
    WorkerFull = "worker_full",
    // Tunnels
    /// A VXLAN datagram that is truncated, or whose header has other bits than a VNI's.
    BadVxlanHeader = "bad_vxlan_header",
    /// A VXLAN datagram of another network.
    UnknownVni = "unknown_vni",
    /// A VXLAN datagram from a host that is no peer.
    UnknownPeer = "unknown_peer",
    /// A frame of a tunnel that carries a datagram of the same tunnel.
    NestedTunnel = "nested_tunnel",
    // IP
    /// IP header truncated, IHL below 5, or a length that lies.
    BadIpHeader = "bad_ip_header",
    /// IPv4 header checksum wrong.
    BadIpChecksum = "bad_ip_checksum",
    /// Time to live or hop limit spent.
    TtlExpired = "ttl_expired",
    /// Source routing or another refused IP option.
    IpOption = "ip_option",
    /// Source and destination address are the same (LAND).
    Land = "land",
    /// A source that cannot be a sender: multicast, broadcast, loopback, unspecified.
    MartianSource = "martian_source",
    /// A destination that cannot be reached through a router.
    MartianDestination = "martian_destination",
    /// IPv6 extension headers too many, out of order or truncated.
    BadExtensionHeader = "bad_extension_header",
    /// Fragment with impossible offset or length, overlapping, or of a refused kind.
    BadFragment = "bad_fragment",
    /// The reassembly table is full or the datagram never completed.
    ReassemblyLimit = "reassembly_limit",
    /// A protocol that is not TCP, UDP or ICMP.
    UnknownProtocol = "unknown_protocol",
    /// IPv6 while IPv6 is off, or IPv4 while IPv4 is off.
    FamilyDisabled = "family_disabled",
    // Transport
    /// TCP header truncated, data offset wrong, malformed options.
    BadTcpHeader = "bad_tcp_header",
    /// A combination of TCP flags that no stack sends.
    BadTcpFlags = "bad_tcp_flags",
    /// UDP header truncated or a length that lies.
    BadUdpHeader = "bad_udp_header",
    /// ICMP truncated or malformed.
    BadIcmp = "bad_icmp",
    /// DHCP or DHCPv6 message truncated or malformed.
    BadDhcp = "bad_dhcp",
    /// DNS message that is no query, or is truncated.
    BadDns = "bad_dns",
    /// Transport checksum wrong.
    BadChecksum = "bad_checksum",
    /// Port 0 as source, to which nothing can be answered.
    PortZero = "port_zero",
    /// A segment that belongs to no flow and opens none.
    NoFlow = "no_flow",
    /// A TCP segment outside the window or otherwise not acceptable.
    OutOfWindow = "out_of_window",
    /// An in-window segment that did not come in order; the sender will repeat it.
    OutOfOrder = "out_of_order",
    /// An ICMP error whose quote matches no flow.
    ForgedQuote = "forged_quote",
    // Policy and limits
    /// Policy forbids the destination.
    Policy = "policy",
    /// The container's quota of flows or host ports is used up.
    Quota = "quota",
    /// A host resource (descriptor, port, memory) is missing.
    HostResource = "host_resource",
    /// The host's socket refused the datagram.
    HostRefused = "host_refused",
    /// Too many of this kind in a short time.
    RateLimit = "rate_limit",
    /// Nothing serves that address or port at the gateway.
    NotServed = "not_served",
    // Defects
    /// Handling it met a defect of this program.
    Defect = "defect",
}

/// One counter a reason.
#[derive(Clone, Debug)]
pub struct DropCounters([u64; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        DropCounters([0; DropReason::ALL.len()])
    }
}

impl DropCounters {
    /// Counts one drop.
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// Puts `count` in the place of what was counted for `reason`.
    pub fn set(&mut self, reason: DropReason, count: u64) {
        self.0[reason as usize] = count;
    }

    /// Drops counted for `reason` so far.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, others: &DropCounters) {
        for (own, other) in self.0.iter_mut().zip(&others.0) {
            *own += other;
        }
    }

    /// All drops together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|&r| (r, self.get(r)))
            .filter(|&(_, n)| n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_counters_line_up() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
        let mut c = DropCounters::default();
        for &r in DropReason::ALL {
            c.count(r);
            assert_eq!(c.get(r), 1);
        }
        assert_eq!(c.total(), DropReason::ALL.len() as u64);
        let mut sum = c.clone();
        sum.add(&c);
        assert!(sum.iter().all(|(_, n)| n == 2));
    }
}
