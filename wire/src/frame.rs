//! One look at a frame: checked once, described once, never copied.
//!
//! # Theory of operation
//!
//! [`Frame::parse`] reads each header byte once, from outside to inside: virtio-net, Ethernet, then
//! ARP ([`crate::arp`]), IPv4 or IPv6 with its extension headers. Only then is it known where the
//! transport header stands, so the virtio-net header's claims about it are checked last. Nothing is
//! allocated and nothing copied; what is learnt is kept as offsets into the caller's buffer.
//!
//! # Invariants
//!
//! - `ETHERNET_HEADER_LEN < l4 <= end <= bytes.len()` for every [`IpHeader`] that parsing made.
//! - With NEEDS_CSUM, the checksum field lies inside the packet and is this packet's own; with a
//!   segmentation type, so does the fixed transport header.
//! - A fragment's transport header is whole in its first fragment and in no other.
//!
//! # Limits
//!
//! The transport header is looked at only as far as fragments and the virtio-net header need it;
//! its flags, ports and options are the router's to judge. VLAN tags and jumbograms (RFC 2675) are
//! not spoken. A checksum start inside a tunnel (offloaded inner checksums) is refused.

use crate::addr::MacAddr;
use crate::checksum;
use crate::drops::DropReason;
pub use crate::ethernet::{ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
pub use crate::ip::{Fragment, IpHeader, protocol};
use crate::tcp::{self, TCP_HEADER_LEN};
use crate::udp::{self, UDP_HEADER_LEN};
use crate::vnet::{self, VNET_HDR_LEN, VnetHeader};
use crate::{arp, ipv4, ipv6};

/// Shortest Ethernet frame without its check sequence; what is shorter may be padded up to it.
const ETHERNET_MIN_LEN: usize = 60;
/// Datagrams that a kernel puts into one super-frame at most (`UDP_MAX_SEGMENTS` in
/// `include/linux/udp.h` since Linux 6.9; 64 before). Each is a datagram's work to what takes the
/// frame apart: a forged frame of 64 KiB could ask for as many of one byte.
const MAX_UDP_SEGMENTS: usize = 128;
/// EtherTypes of VLAN tags: 802.1Q, 802.1ad, and the vendors' QinQ before it.
const ETHERTYPES_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];

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

impl<'a> Frame<'a> {
    /// Checks and describes the frame in `buf`, which starts with the virtio-net header. `mtu` is
    /// the link's IP MTU in bytes: no frame, and no segment of a super-frame, may carry a longer
    /// packet.
    pub fn parse(buf: &'a [u8], mtu: usize) -> Result<Frame<'a>, DropReason> {
        let vnet = VnetHeader::decode(buf).ok_or(DropReason::FrameTooShort)?;
        let bytes = buf.get(VNET_HDR_LEN..).unwrap_or_default();
        let Some((ethernet, payload)) = bytes.split_first_chunk::<ETHERNET_HEADER_LEN>() else {
            return Err(DropReason::FrameTooShort);
        };
        let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = ethernet;
        let dst = MacAddr([d0, d1, d2, d3, d4, d5]);
        let src = MacAddr([s0, s1, s2, s3, s4, s5]);
        check_offload_kind(vnet, bytes.len())?;
        if vnet.gso_type == vnet::GSO_NONE
            && bytes.len()
                > mtu
                    .saturating_add(ETHERNET_HEADER_LEN)
                    .max(ETHERNET_MIN_LEN)
        {
            return Err(DropReason::FrameTooLong);
        }
        if src.is_multicast() || src.is_zero() {
            return Err(DropReason::BadSourceMac);
        }
        let l3 = match u16::from_be_bytes([t0, t1]) {
            ETHERTYPE_IPV4 => L3::Ip(ipv4::parse(payload)?),
            ETHERTYPE_IPV6 => L3::Ip(ipv6::parse(payload)?),
            ETHERTYPE_ARP => {
                arp::check(payload)?;
                L3::Arp
            }
            t if ETHERTYPES_VLAN.contains(&t) => return Err(DropReason::VlanTag),
            _ => return Err(DropReason::UnknownEtherType),
        };
        if vnet.needs_csum() {
            match &l3 {
                L3::Ip(ip) => check_offload_fields(vnet, ip, bytes, mtu)?,
                L3::Arp => return Err(DropReason::BadVnetHeader),
            }
        }
        Ok(Frame {
            vnet,
            bytes,
            dst,
            src,
            l3,
        })
    }

    /// The transport header and payload of `ip`, which must be this frame's header.
    pub fn l4(&self, ip: &IpHeader) -> &'a [u8] {
        self.bytes.get(ip.l4..ip.end).unwrap_or_default()
    }

    /// The source and destination port of `ip`, a TCP or UDP packet that is no later fragment; `None`
    /// if it is too short.
    pub fn ports(&self, ip: &IpHeader) -> Option<[u16; 2]> {
        let &[s0, s1, d0, d1] = self.l4(ip).first_chunk()?;
        Some([u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])])
    }

    /// As [`Frame::ports`], for packets of any protocol: `None` unless it is TCP or UDP.
    #[inline]
    pub fn transport_ports(&self, ip: &IpHeader) -> Option<[u16; 2]> {
        match ip.protocol {
            protocol::TCP | protocol::UDP => self.ports(ip),
            _ => None,
        }
    }

    /// The IP packet, header included, without padding.
    pub fn ip_packet(&self, ip: &IpHeader) -> &'a [u8] {
        self.bytes
            .get(ETHERNET_HEADER_LEN..ip.end)
            .unwrap_or_default()
    }

    /// The ARP body, if that is what the frame carries.
    pub fn arp(&self) -> Option<arp::ArpPacket> {
        match self.l3 {
            L3::Arp => arp::ArpPacket::read(self.bytes.get(ETHERNET_HEADER_LEN..)?),
            L3::Ip(_) => None,
        }
    }

    /// Whether the TCP, UDP or ICMP checksum is right, or is to be filled in further on
    /// (NEEDS_CSUM) or already verified (DATA_VALID). Not meaningful for fragments. False where the
    /// transport header is cut short, true for other protocols.
    pub fn l4_checksum_ok(&self, ip: &IpHeader) -> bool {
        if self.vnet.flags & (vnet::F_NEEDS_CSUM | vnet::F_DATA_VALID) != 0 {
            return true;
        }
        let mut l4 = self.l4(ip);
        match ip.protocol {
            protocol::TCP | protocol::ICMPV6 => {}
            protocol::ICMP => return checksum::fold(checksum::add(0, l4)) == 0xffff,
            protocol::UDP => {
                let Some((datagram, has_checksum)) = udp::checksummed(l4) else {
                    return false;
                };
                if !has_checksum {
                    // "No checksum" exists in IPv4 only (RFC 768, RFC 8200 section 8.1).
                    return ip.src.is_ipv4();
                }
                l4 = datagram;
            }
            _ => return true,
        }
        // At most 65,535: both families' length fields have 16 bits.
        let pseudo = checksum::pseudo_header(ip.src, ip.dst, ip.protocol, l4.len() as u32);
        checksum::fold(checksum::add(pseudo, l4)) == 0xffff
    }
}

/// What can be said of a virtio-net header before the packet is known. Linux leaves `hdr_len` at
/// zero for all but super-frames and otherwise puts the length of its linear buffer there
/// (`virtio_net_hdr_from_skb` in `include/linux/virtio_net.h`), so it is only a hint.
fn check_offload_kind(vnet: VnetHeader, frame_len: usize) -> Result<(), DropReason> {
    let known = vnet.flags & !(vnet::F_NEEDS_CSUM | vnet::F_DATA_VALID) == 0;
    let fits = usize::from(vnet.hdr_len) <= frame_len;
    let gso = match vnet.gso_type {
        vnet::GSO_NONE => true,
        vnet::GSO_UDP_L4 => vnet.gso_size != 0 && vnet.needs_csum(),
        _ => {
            matches!(vnet.gso(), vnet::GSO_TCPV4 | vnet::GSO_TCPV6)
                && vnet.gso_size != 0
                && vnet.needs_csum()
        }
    };
    if known && fits && gso {
        Ok(())
    } else {
        Err(DropReason::BadVnetHeader)
    }
}

/// Holds the virtio-net header's claims (NEEDS_CSUM is set) against the packet that was found.
fn check_offload_fields(
    vnet: VnetHeader,
    ip: &IpHeader,
    bytes: &[u8],
    mtu: usize,
) -> Result<(), DropReason> {
    let bad = Err(DropReason::BadVnetHeader);
    // Checksum field and fixed header length, in bytes.
    let (field, fixed) = match ip.protocol {
        protocol::TCP => (tcp::CHECKSUM_OFFSET, TCP_HEADER_LEN),
        protocol::UDP => (udp::CHECKSUM_OFFSET, UDP_HEADER_LEN),
        protocol::ICMP | protocol::ICMPV6 => (2, 4),
        _ => return bad,
    };
    if ip.fragment.is_some()
        || usize::from(vnet.csum_start) != ip.l4
        || vnet.csum_offset != field
        || ip.end - ip.l4 < fixed
    {
        return bad;
    }
    let contradicts = match vnet.gso() {
        vnet::GSO_NONE => return Ok(()),
        vnet::GSO_TCPV4 => ip.protocol != protocol::TCP || !ip.src.is_ipv4(),
        vnet::GSO_TCPV6 => ip.protocol != protocol::TCP || !ip.src.is_ipv6(),
        _ => ip.protocol != protocol::UDP,
    };
    if contradicts {
        return bad;
    }
    let header_len = match ip.protocol {
        protocol::TCP => tcp::header_len(bytes.get(ip.l4..).unwrap_or_default()),
        _ => None,
    };
    let header = header_len.unwrap_or(0).max(fixed);
    let payload = (ip.end - ip.l4).saturating_sub(header);
    let size = usize::from(vnet.gso_size);
    if vnet.gso() == vnet::GSO_UDP_L4 && payload > MAX_UDP_SEGMENTS * size {
        return bad;
    }
    let segment = payload.min(size);
    if ip.l4 - ETHERNET_HEADER_LEN + header + segment > mtu {
        return Err(DropReason::FrameTooLong);
    }
    Ok(())
}
