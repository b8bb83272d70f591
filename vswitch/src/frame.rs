//! One look at a frame: checked once, described once, never copied.

use std::net::IpAddr;

use crate::addr::MacAddr;
use crate::drops::DropReason;
use crate::vnet::VnetHeader;

/// Bytes of an untagged Ethernet header.
pub const ETHERNET_HEADER_LEN: usize = 14;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

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

/// A frame that passed the link- and network-layer checks.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The virtio-net header that came with it.
    pub vnet: VnetHeader,
    /// The frame from the Ethernet header on, as it was read (padding included).
    pub bytes: &'a [u8],
    /// Destination address.
    pub dst: MacAddr,
    /// Source address.
    pub src: MacAddr,
    /// What it carries.
    pub l3: L3,
}

/// The network layer of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum L3 {
    /// ARP for IPv4 over Ethernet, lengths checked.
    Arp,
    /// IPv4 or IPv6.
    Ip(IpHeader),
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

impl<'a> Frame<'a> {
    /// Checks and describes the frame in `buf`, which starts with the virtio-net header.
    pub fn parse(_buf: &'a [u8], _mtu: usize) -> Result<Frame<'a>, DropReason> {
        let _ = VnetHeader::decode(_buf);
        Err(DropReason::FrameTooShort)
    }

    /// The transport header and payload of `ip`, which must be this frame's header.
    pub fn l4(&self, ip: &IpHeader) -> &'a [u8] {
        &self.bytes[ip.l4..ip.end]
    }

    /// The IP packet, header included, without padding.
    pub fn ip_packet(&self, ip: &IpHeader) -> &'a [u8] {
        &self.bytes[ETHERNET_HEADER_LEN..ip.end]
    }

    /// Whether the TCP, UDP or ICMP checksum is right, or is for somebody else to fill in
    /// (NEEDS_CSUM) or already verified (DATA_VALID). Not meaningful for fragments.
    pub fn l4_checksum_ok(&self, _ip: &IpHeader) -> bool {
        false
    }
}
