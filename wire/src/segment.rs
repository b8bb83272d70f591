//! Segmentation and checksums in software, for ports whose far end knows no virtio-net header.
//!
//! # Theory of operation
//!
//! Between TAPs a super-frame travels whole, its checksum unwritten. A virtual machine behind a
//! socket takes plain Ethernet frames alone, so at such a port's edge the work is done that a
//! network card would do: [`Segments::parse`] looks at the frame once and tells how many frames it
//! makes and how long they are together, and [`Segments::for_each`] makes them one after the other.
//! The headers of each are built in a small array on the stack; the payload is lent from the
//! super-frame, so it is copied where the pieces are taken, and only there.
//!
//! A segment's headers are the super-frame's, but for what is its own: the IP length; in IPv4 the
//! identification, which counts up (RFC 6864 asks no more of it), and the header's checksum; in TCP
//! the sequence number, FIN and PSH on the last segment alone, CWR on the first alone (RFC 3168
//! section 6.1.2); in UDP the length. The transport checksum is computed from the addresses and the
//! payload, whatever the super-frame has in its place. Linux cuts the same way (`tcp_gso_segment`
//! in `net/ipv4/tcp_offload.c`, `__udp_gso_segment` in `net/ipv4/udp_offload.c`).
//!
//! # Invariants
//!
//! - The payloads of the segments, joined, are the super-frame's; all but the last are of one size.
//! - No segment is longer than the MTU that `parse` was given.
//! - There is at least one segment; nothing is allocated.
//!
//! # Limits
//!
//! Headers are together at most [`MAX_HEADERS`] bytes. A frame without offloads is passed on as it
//! is, unchecked but for its length. Padding behind the packet is cut off where there are offloads.

use std::net::IpAddr;

use crate::checksum;
use crate::drops::DropReason;
use crate::frame::{ETHERNET_HEADER_LEN, Frame, IpHeader, L3, protocol};
use crate::tcp::{self, TCP_HEADER_LEN};
use crate::udp::{self, UDP_HEADER_LEN};
use crate::vnet::{self, VNET_HDR_LEN, VnetHeader};

/// The longest Ethernet, network and transport headers together, in bytes, that a frame with
/// offloads may have: room for 60 bytes each of IPv4 and TCP, and for 142 bytes of IPv6 extension
/// headers before TCP's longest.
pub const MAX_HEADERS: usize = 256;

/// A frame that was looked at, and the plain frames that it makes.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    /// What stands before the payload, from the Ethernet header on. For a frame that needs nothing,
    /// all of it.
    headers: &'a [u8],
    payload: &'a [u8],
    /// Payload bytes of each segment, at least 1.
    size: usize,
    /// What is to be written into the headers; `None` if nothing is.
    packet: Option<Packet>,
}

/// Where things are in the headers.
#[derive(Clone, Copy, Debug)]
struct Packet {
    ip: IpHeader,
    /// The checksum field, from the Ethernet header's first byte.
    field: usize,
}

impl<'a> Segments<'a> {
    /// Looks at `frame`, which starts with the virtio-net header. `mtu` is the link's, in bytes of
    /// IP packets.
    ///
    /// # Errors
    ///
    /// As [`Frame::parse`], and where the headers are longer than [`MAX_HEADERS`] or than the packet.
    pub fn parse(frame: &'a [u8], mtu: usize) -> Result<Segments<'a>, DropReason> {
        let vnet = VnetHeader::decode(frame).ok_or(DropReason::FrameTooShort)?;
        if vnet.needs_csum() || vnet.gso_type != vnet::GSO_NONE {
            return Segments::offloaded(Frame::parse(frame, mtu)?);
        }
        let bytes = &frame[VNET_HDR_LEN..];
        if bytes.len() < ETHERNET_HEADER_LEN {
            return Err(DropReason::FrameTooShort);
        }
        Ok(Segments {
            headers: bytes,
            payload: &[],
            size: 1,
            packet: None,
        })
    }

    fn offloaded(frame: Frame<'a>) -> Result<Segments<'a>, DropReason> {
        // `Frame::parse` let no other frame have a checksum to be filled in.
        let L3::Ip(ip) = frame.l3 else {
            return Err(DropReason::BadVnetHeader);
        };
        let header = match (ip.protocol, frame.l4(&ip)) {
            (protocol::TCP, l4) => tcp::header_len(l4).unwrap_or(0).max(TCP_HEADER_LEN),
            (protocol::UDP, _) => UDP_HEADER_LEN,
            _ => 4,
        };
        let split = ip.l4 + header;
        if split > ip.end {
            return Err(DropReason::BadTcpHeader);
        }
        if split > MAX_HEADERS {
            return Err(DropReason::BadExtensionHeader);
        }
        let payload = &frame.bytes[split..ip.end];
        let size = match frame.vnet.gso_type {
            vnet::GSO_NONE => payload.len(),
            _ => usize::from(frame.vnet.gso_size),
        };
        Ok(Segments {
            headers: &frame.bytes[..split],
            payload,
            size: size.max(1),
            packet: Some(Packet {
                ip,
                field: ip.l4 + usize::from(frame.vnet.csum_offset),
            }),
        })
    }

    /// How many frames there will be; never 0.
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size).max(1)
    }

    /// The frame, if it leaves as it came.
    pub fn as_it_is(&self) -> Option<&'a [u8]> {
        match self.packet {
            None => Some(self.headers),
            Some(_) => None,
        }
    }

    /// Bytes of headers in each, at most [`MAX_HEADERS`] unless it is one frame alone, as it came.
    pub fn headers_len(&self) -> usize {
        self.headers.len()
    }

    /// Bytes of payload in each but the last.
    pub fn size(&self) -> usize {
        self.size
    }

    /// What the second pieces are together.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Their bytes together.
    pub fn bytes(&self) -> usize {
        self.count() * self.headers.len() + self.payload.len()
    }

    /// Makes the frames in their order. Each is given to `take` in two pieces, the second of which
    /// may be empty.
    pub fn for_each(&self, mut take: impl FnMut(&[u8], &[u8])) {
        let Some(packet) = self.packet else {
            return take(self.headers, self.payload);
        };
        let mut buffer = [0; MAX_HEADERS];
        let headers = &mut buffer[..self.headers.len()];
        let count = self.count();
        for n in 0..count {
            let start = n * self.size;
            let end = self.payload.len().min(start + self.size);
            let payload = &self.payload[start..end];
            headers.copy_from_slice(self.headers);
            packet.number(headers, n, start, n + 1 == count);
            packet.complete(headers, payload);
            take(headers, payload);
        }
    }
}

impl Packet {
    /// Writes what tells one segment from the next: this is the `n`th, its payload stands at
    /// `offset` of the super-frame's.
    fn number(&self, headers: &mut [u8], n: usize, offset: usize, last: bool) {
        let ip = &mut headers[ETHERNET_HEADER_LEN..];
        if self.ip.src.is_ipv4() {
            // Of the identification's sixteen bits no more are wanted.
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(n as u16);
            ip[4..6].copy_from_slice(&id.to_be_bytes());
        }
        if self.ip.protocol == protocol::TCP {
            tcp::number_segment(&mut headers[self.ip.l4..], n, offset, last);
        }
    }

    /// Writes lengths and checksums.
    fn complete(&self, headers: &mut [u8], payload: &[u8]) {
        let IpHeader { src, dst, l4, .. } = self.ip;
        // At most 65,535, as in the super-frame, for all of these.
        let transport = headers.len() - l4 + payload.len();
        let network = &mut headers[ETHERNET_HEADER_LEN..l4];
        if src.is_ipv4() {
            let total = (network.len() + transport) as u16;
            network[2..4].copy_from_slice(&total.to_be_bytes());
            network[10..12].fill(0);
            let sum = checksum::finish(0, network);
            network[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let behind = (network.len() - 40 + transport) as u16;
            network[4..6].copy_from_slice(&behind.to_be_bytes());
        }
        if self.ip.protocol == protocol::UDP {
            udp::set_len(&mut headers[l4..], transport);
        }
        headers[self.field..self.field + 2].fill(0);
        let pseudo = match (self.ip.protocol, src) {
            (protocol::ICMP, IpAddr::V4(_)) => 0,
            (number, _) => checksum::pseudo_header(src, dst, number, transport as u32),
        };
        let sum = checksum::finish(checksum::add(pseudo, &headers[l4..]), payload);
        let sum = match self.ip.protocol {
            protocol::UDP => udp::nonzero(sum),
            _ => sum,
        };
        headers[self.field..self.field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}
