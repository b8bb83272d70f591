//! What IPv4 and IPv6 headers have in common once they are decoded.

use std::net::IpAddr;

/// IP protocol numbers the gateway speaks (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// IPv6 extension headers, by their protocol numbers (IANA).
pub(crate) mod extension {
    /// Options for every hop.
    pub(crate) const HOP_BY_HOP: u8 = 0;
    /// Source routing.
    pub(crate) const ROUTING: u8 = 43;
    /// Fragmentation.
    pub(crate) const FRAGMENT: u8 = 44;
    /// Options for the destination.
    pub(crate) const DESTINATION_OPTIONS: u8 = 60;
    /// Bytes of the fragment header.
    pub(crate) const FRAGMENT_HEADER_LEN: usize = 8;
}

/// An IPv4 or IPv6 header, decoded. Offsets count from the Ethernet header's first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpHeader {
    /// Source; of the same family as `dst`.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Transport protocol, behind any IPv6 extension headers.
    pub protocol: u8,
    /// TTL or hop limit, at least 1.
    pub hop_limit: u8,
    /// Type of service or traffic class (DSCP and ECN).
    pub tos: u8,
    /// IPv4 DF; always true for IPv6 (routers do not fragment it).
    pub dont_fragment: bool,
    /// Start of the transport header (or of the fragment's data).
    pub l4: usize,
    /// End of the packet; what follows in the frame is padding.
    pub end: usize,
    /// Set when this is a fragment of a datagram (never for IPv6 atomic fragments, RFC 6946).
    pub fragment: Option<Fragment>,
}

/// Where a fragment belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Identification (16 bits in IPv4, 32 in IPv6).
    pub id: u32,
    /// Offset of its data in the datagram's payload, in bytes.
    pub offset: u32,
    /// More fragments follow.
    pub more: bool,
}
