//! Joining plain TCP frames to a super-frame again: what a network card's receive offload does, for
//! ports whose far end knows no virtio-net header. The reverse of [`crate::segment`].
//!
//! # Theory of operation
//!
//! [`Joined::start`] copies a frame behind a virtio-net header into a buffer and looks at it once.
//! [`Joined::append`] adds the payload of the next frame if it goes on where the last one ended: same
//! link and addresses, same ports, acknowledgement, window and options, the next sequence number, and
//! a payload as long as the first one's or, as the last, shorter. [`Joined::finish`] writes the headers
//! of the whole. The kernel joins by the same rule (`tcp_gro_receive` in `net/ipv4/tcp_offload.c`).
//!
//! A super-frame's checksum is left to its receiver, who takes it for right. So a frame is joined only
//! if its own was right: the caller says whether that was verified, or it is verified here.
//!
//! A kernel on the same machine sends inner checksums that it never finished: the field holds the sum of
//! the pseudo-header alone. Such a frame gets a header that says so (NEEDS_CSUM), whatever it carries;
//! and so does a whole super-frame of TCP in one datagram, which is longer than the MTU. A checksum that
//! happens to equal that sum, one in 65,536, is taken for right unseen.
//!
//! # Invariants
//!
//! - A frame alone comes out as it came in, behind its virtio-net header.
//! - Nothing is allocated; the buffer is never written beyond its end.

use crate::checksum;
use crate::drops::DropReason;
use crate::ethernet::ETHERNET_HEADER_LEN;
use crate::headers::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, MAX_IP_PACKET};
use crate::ip::{IpHeader, protocol};
use crate::tcp::{self, TCP_HEADER_LEN};
use crate::udp::{self, UDP_HEADER_LEN};
use crate::vnet::{self, VNET_HDR_LEN, VnetHeader};
use crate::vxlan::network_header;

const FLAG_FIN: u8 = 0x01;
const FLAG_PSH: u8 = 0x08;
const FLAG_ACK: u8 = 0x10;

/// Of a TCP segment, what joining asks for. Offsets count from the Ethernet header's first byte.
#[derive(Clone, Copy, Debug)]
struct TcpFrame {
    ip: IpHeader,
    /// Where the payload starts.
    payload: usize,
    seq: u32,
    flags: u8,
}

impl TcpFrame {
    /// `None` for what is never joined: no plain TCP segment with data and no other flags than ACK, PSH
    /// and FIN, or one with IP options.
    fn of(frame: &[u8], ip: IpHeader) -> Option<TcpFrame> {
        let plain = ETHERNET_HEADER_LEN
            + match ip.src.is_ipv4() {
                true => IPV4_HEADER_LEN,
                false => IPV6_HEADER_LEN,
            };
        if ip.protocol != protocol::TCP || ip.fragment.is_some() || ip.l4 != plain {
            return None;
        }
        let l4 = frame.get(ip.l4..ip.end)?;
        let &[.., s0, s1, s2, s3] = l4.first_chunk::<8>()?;
        let flags = *l4.get(13)?;
        let header_len = tcp::header_len(l4).filter(|&len| len >= TCP_HEADER_LEN)?;
        let payload = ip.l4 + header_len;
        let joinable = flags & !(FLAG_PSH | FLAG_FIN) == FLAG_ACK && payload < ip.end;
        joinable.then_some(TcpFrame {
            ip,
            payload,
            seq: u32::from_be_bytes([s0, s1, s2, s3]),
            flags,
        })
    }

    /// Whether the checksum is right, or was left to be finished.
    fn sum_is_right(&self, frame: &[u8]) -> bool {
        let l4 = &frame[self.ip.l4..self.ip.end];
        let pseudo = pseudo_sum(&self.ip);
        checksum::fold(checksum::add(pseudo, l4)) == 0xffff
            || is_unfinished(&self.ip, l4, tcp::CHECKSUM_OFFSET)
    }
}

fn pseudo_sum(ip: &IpHeader) -> u64 {
    // At most 65,535: both families' length fields have 16 bits.
    checksum::pseudo_header(ip.src, ip.dst, ip.protocol, (ip.end - ip.l4) as u32)
}

/// Whether the checksum field at `offset` of the transport header holds the pseudo-header's sum alone.
fn is_unfinished(ip: &IpHeader, l4: &[u8], offset: u16) -> bool {
    let offset = usize::from(offset);
    l4.get(offset..offset + 2) == Some(&checksum::fold(pseudo_sum(ip)).to_be_bytes())
}

/// A frame in a buffer, to which others may be joined.
#[derive(Clone, Copy, Debug)]
pub struct Joined {
    /// Bytes of the Ethernet frame so far.
    len: usize,
    vnet: VnetHeader,
    /// Of the first frame; `None` if it carries no IP packet.
    ip: Option<IpHeader>,
    /// The first frame, if others may be joined to it.
    tcp: Option<TcpFrame>,
    /// Its payload, which every other but the last has as well.
    size: usize,
    /// Of the first frame: its checksum is known to be right.
    verified: bool,
    /// Frames joined.
    count: usize,
}

impl Joined {
    /// Puts `frame`, an Ethernet frame, into `buf` behind a virtio-net header. `mtu` is the link's, in
    /// bytes of IP packets. `verified` says that its transport checksum is right.
    ///
    /// # Errors
    ///
    /// As [`crate::Frame::parse`] for what is wrong in the IP header; [`DropReason::FrameTooLong`] if
    /// `buf` is too short.
    pub fn start(
        buf: &mut [u8],
        frame: &[u8],
        mtu: usize,
        verified: bool,
    ) -> Result<Joined, DropReason> {
        let place = buf.get_mut(VNET_HDR_LEN..VNET_HDR_LEN + frame.len());
        let place = place.ok_or(DropReason::FrameTooLong)?;
        let ip = network_header(frame)?;
        place.copy_from_slice(frame);
        let mut joined = Joined {
            len: frame.len(),
            vnet: VnetHeader::default(),
            ip,
            tcp: None,
            size: 0,
            verified,
            count: 1,
        };
        let Some(ip) = ip else {
            return Ok(joined);
        };
        joined.vnet = offloads(frame, &ip, mtu, verified);
        // One that is a super-frame already stays as it is.
        if joined.vnet.gso_type == vnet::GSO_NONE
            && let Some(tcp) = TcpFrame::of(frame, ip)
            && tcp.flags == FLAG_ACK
        {
            joined.size = ip.end - tcp.payload;
            // Padding would stand between the payloads.
            joined.len = ip.end;
            joined.tcp = Some(tcp);
        }
        Ok(joined)
    }

    /// The network header of the first frame; `None` if it carries no IP packet.
    pub fn ip(&self) -> Option<&IpHeader> {
        self.ip.as_ref()
    }

    /// Whether another frame might be joined.
    pub fn is_open(&self) -> bool {
        self.tcp.is_some()
    }

    /// Joins `frame` if it goes on where this one ends; `false` if not, and nothing has changed but
    /// that no further one is joined. `verified` says that its transport checksum is right.
    pub fn append(&mut self, buf: &mut [u8], frame: &[u8], verified: bool) -> bool {
        let done = self.try_append(buf, frame, verified);
        if done.is_none()
            && let (Some(first), Some(whole)) = (self.tcp, buf.get_mut(VNET_HDR_LEN..))
        {
            self.close(whole, &first);
        }
        done.is_some()
    }

    fn try_append(&mut self, buf: &mut [u8], frame: &[u8], verified: bool) -> Option<()> {
        let first = self.tcp?;
        let next = TcpFrame::of(frame, network_header(frame).ok()??)?;
        let whole = buf.get_mut(VNET_HDR_LEN..)?;
        let gathered = self.len - first.payload;
        let payload = frame.get(next.payload..next.ip.end)?;
        let fits = payload.len() <= self.size
            && next.payload == first.payload
            && next.seq == first.seq.wrapping_add(gathered as u32)
            && same_headers(whole, frame, &first)
            && self.len + payload.len() - ETHERNET_HEADER_LEN <= MAX_IP_PACKET;
        if !fits {
            return None;
        }
        if !self.verified {
            // Not to be undone: the first frame alone tells its checksum as it is.
            self.verified = first.sum_is_right(whole.get(..first.ip.end)?);
        }
        if !self.verified || !(verified || next.sum_is_right(frame)) {
            return None;
        }
        let place = whole.get_mut(self.len..self.len + payload.len())?;
        place.copy_from_slice(payload);
        self.len += payload.len();
        self.count += 1;
        whole[first.ip.l4 + 13] |= next.flags;
        if payload.len() < self.size || next.flags != FLAG_ACK {
            // Finished, but not to be taken for one frame alone.
            self.close(whole, &first);
        }
        Some(())
    }

    /// Writes the headers of the whole; no further frame is joined.
    fn close(&mut self, whole: &mut [u8], first: &TcpFrame) {
        self.tcp = None;
        if self.count == 1 {
            return;
        }
        let IpHeader { src, dst, l4, .. } = first.ip;
        let transport = self.len - l4;
        let packet = self.len - ETHERNET_HEADER_LEN;
        let network = &mut whole[ETHERNET_HEADER_LEN..l4];
        let gso_type = if src.is_ipv4() {
            network[2..4].copy_from_slice(&(packet as u16).to_be_bytes());
            network[10..12].fill(0);
            let sum = checksum::finish(0, network);
            network[10..12].copy_from_slice(&sum.to_be_bytes());
            vnet::GSO_TCPV4
        } else {
            network[4..6].copy_from_slice(&(transport as u16).to_be_bytes());
            vnet::GSO_TCPV6
        };
        let pseudo = checksum::pseudo_header(src, dst, protocol::TCP, transport as u32);
        let field = l4 + usize::from(tcp::CHECKSUM_OFFSET);
        whole[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
        self.vnet = VnetHeader {
            gso_type,
            gso_size: self.size as u16,
            ..VnetHeader::unsummed(l4, first.payload - l4, tcp::CHECKSUM_OFFSET)
        };
    }

    /// Writes the virtio-net header, and those of the whole. Gives the length of all in `buf`, and how
    /// many frames are in it.
    pub fn finish(mut self, buf: &mut [u8]) -> (usize, usize) {
        let (header, whole) = buf.split_at_mut(VNET_HDR_LEN);
        if let Some(first) = self.tcp {
            self.close(whole, &first);
        }
        header.copy_from_slice(&self.vnet.encode());
        (VNET_HDR_LEN + self.len, self.count)
    }
}

/// Whether a frame to be joined has the headers of `first`, which stand in `whole`, but for what is a
/// segment's own.
fn same_headers(whole: &[u8], frame: &[u8], first: &TcpFrame) -> bool {
    let same = |range: std::ops::Range<usize>| whole.get(range.clone()) == frame.get(range);
    let network = ETHERNET_HEADER_LEN;
    let ip = match first.ip.src.is_ipv4() {
        // Version and type of service; flags, time to live and protocol; addresses.
        true => {
            same(network..network + 2)
                && same(network + 6..network + 10)
                && same(network + 12..first.ip.l4)
        }
        // All but the length.
        false => same(network..network + 4) && same(network + 6..first.ip.l4),
    };
    let l4 = first.ip.l4;
    // Ports; acknowledgement and header length; window; urgent pointer and options.
    let tcp = same(l4..l4 + 4)
        && same(l4 + 8..l4 + 13)
        && same(l4 + 14..l4 + 16)
        && same(l4 + 18..first.payload);
    same(0..network) && ip && tcp
}

/// The virtio-net header of a frame that came without one.
fn offloads(frame: &[u8], ip: &IpHeader, mtu: usize, verified: bool) -> VnetHeader {
    let none = VnetHeader::default();
    let l4 = frame.get(ip.l4..ip.end).unwrap_or_default();
    let (field, header_len) = match ip.protocol {
        _ if ip.fragment.is_some() => return none,
        protocol::TCP => {
            let header_len = tcp::header_len(l4).unwrap_or(0);
            (tcp::CHECKSUM_OFFSET, header_len.max(TCP_HEADER_LEN))
        }
        protocol::UDP => (udp::CHECKSUM_OFFSET, UDP_HEADER_LEN),
        _ => return none,
    };
    if l4.len() < header_len {
        return none;
    }
    if !is_unfinished(ip, l4, field) {
        let flags = if verified { vnet::F_DATA_VALID } else { 0 };
        return VnetHeader { flags, ..none };
    }
    let unsummed = VnetHeader::unsummed(ip.l4, header_len, field);
    let headers = ip.l4 - ETHERNET_HEADER_LEN + header_len;
    let is_super = ip.end - ETHERNET_HEADER_LEN > mtu && ip.protocol == protocol::TCP;
    match (is_super && headers < mtu, ip.src.is_ipv4()) {
        (false, _) => unsummed,
        (true, v4) => VnetHeader {
            gso_type: if v4 { vnet::GSO_TCPV4 } else { vnet::GSO_TCPV6 },
            gso_size: (mtu - headers) as u16,
            ..unsummed
        },
    }
}
