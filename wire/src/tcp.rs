//! The TCP header (RFC 9293 section 3.1): its reader, its writer, and sequence numbers.
//!
//! [`Segment::parse`] refuses what no stack sends: malformed options, port 0, and combinations of
//! flags that are only used to probe or to crash a host. [`write_segment`] writes all headers of a
//! frame in front of a payload that stands in the frame buffer already. It leaves the checksum to the
//! receiving kernel (NEEDS_CSUM) and makes a super-frame of a payload that exceeds the MSS.
//!
//! Which segments are acceptable in which state is not asked here: that is the flow's to decide.

use std::net::{IpAddr, SocketAddr};

use crate::ethernet::ETHERNET_HEADER_LEN;
use crate::headers::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpOut, Link, MAX_IP_PACKET, l4_offset, write_headers,
};
use crate::host::HeaderFields;
use crate::ip::protocol;
use crate::vnet::{self, VNET_HDR_LEN, VnetHeader};
use crate::{DropReason, MacAddr, PortId, checksum};

mod seq;

pub use seq::Seq;

/// Bytes of a TCP header without options.
pub const TCP_HEADER_LEN: usize = 20;
/// Offset of the checksum in the TCP header, in bytes.
pub const CHECKSUM_OFFSET: u16 = 16;
/// Offset of the data offset field, in bytes.
const DATA_OFFSET: usize = 12;
/// Offset of the flags, in bytes.
const FLAGS: usize = 13;
/// Largest window shift that counts (RFC 7323, section 2.3).
const MAX_WINDOW_SCALE: u8 = 14;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// Option kinds (RFC 9293 section 3.2, RFC 7323 section 2.2, RFC 2018).
mod option {
    pub const END: u8 = 0;
    pub const NOP: u8 = 1;
    pub const MSS: u8 = 2;
    pub const WINDOW_SCALE: u8 = 3;
    pub const SACK_PERMITTED: u8 = 4;
    pub const SACK: u8 = 5;
}

/// Control bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// Synchronize.
    pub syn: bool,
    /// Acknowledgement field is valid.
    pub ack: bool,
    /// End of the sender's stream.
    pub fin: bool,
    /// Reset.
    pub rst: bool,
    /// Push.
    pub psh: bool,
}

impl Flags {
    /// A plain acknowledgement.
    pub const ACK: Flags = Flags {
        ack: true,
        syn: false,
        fin: false,
        rst: false,
        psh: false,
    };

    fn from_bits(bits: u8) -> Flags {
        Flags {
            syn: bits & SYN != 0,
            ack: bits & ACK != 0,
            fin: bits & FIN != 0,
            rst: bits & RST != 0,
            psh: bits & PSH != 0,
        }
    }

    fn to_bits(self) -> u8 {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(self.syn, SYN)
            | bit(self.ack, ACK)
            | bit(self.fin, FIN)
            | bit(self.rst, RST)
            | bit(self.psh, PSH)
    }
}

/// Bytes that the TCP header at the start of `l4` says it has; `None` if that field is missing.
pub(crate) fn header_len(l4: &[u8]) -> Option<usize> {
    l4.get(DATA_OFFSET).map(|b| usize::from(b >> 4) * 4)
}

/// Whether the segment `l4` opens a connection: SYN without ACK.
pub fn is_opening(l4: &[u8]) -> bool {
    l4.get(FLAGS).is_some_and(|b| b & (SYN | ACK) == SYN)
}

/// Whether the segment `l4` is the last one of its sender: FIN or RST.
pub fn is_last(l4: &[u8]) -> bool {
    l4.get(FLAGS).is_some_and(|b| b & (FIN | RST) != 0)
}

/// Makes `tcp`, a copy of a super-frame's header, that of its `n`th segment. The segment's payload
/// stands at `offset` of the super-frame's. FIN and PSH stay on the last segment alone, CWR on the
/// first alone (RFC 3168 section 6.1.2).
pub(crate) fn number_segment(tcp: &mut [u8], n: usize, offset: usize, last: bool) {
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    // A super-frame's payload is shorter than 64 KiB.
    let sequence = sequence.wrapping_add(offset as u32);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    if !last {
        tcp[FLAGS] &= !(FIN | PSH);
    }
    if n > 0 {
        tcp[FLAGS] &= !CWR;
    }
}

/// A range of bytes that the container holds out of order: `[left, right)` (RFC 2018).
pub type SackBlock = (Seq, Seq);

/// A received segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Sender's port.
    pub src_port: u16,
    /// Receiver's port.
    pub dst_port: u16,
    /// Sequence number of the first byte (of the SYN, if set).
    pub seq: Seq,
    /// Acknowledgement number; meaningful with `flags.ack`.
    pub ack: Seq,
    /// Control bits.
    pub flags: Flags,
    /// Window field as on the wire.
    pub window: u16,
    /// Maximum segment size in bytes, if the option came.
    pub mss: Option<u16>,
    /// Window shift, if the option came; at most 14.
    pub window_scale: Option<u8>,
    /// SACK permitted.
    pub sack_permitted: bool,
    /// The first SACK blocks, the most recent one first.
    pub sack: [Option<SackBlock>; 3],
    /// Data.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads a TCP header and payload. The caller verifies the checksum.
    ///
    /// # Errors
    /// [`DropReason::BadTcpHeader`] for a truncated header, a wrong data offset or malformed options;
    /// [`DropReason::PortZero`] where no answer could find the sender, which is one of that port;
    /// [`DropReason::BadTcpFlags`] for flags that no stack sends.
    pub fn parse(l4: &'a [u8]) -> Result<Segment<'a>, DropReason> {
        let bad = DropReason::BadTcpHeader;
        let h: &[u8; TCP_HEADER_LEN] = l4.first_chunk().ok_or(bad)?;
        let header_len = usize::from(h[DATA_OFFSET] >> 4) * 4;
        let (header, payload) = l4.split_at_checked(header_len).ok_or(bad)?;
        let options = header.get(TCP_HEADER_LEN..).ok_or(bad)?;
        let src_port = u16::from_be_bytes([h[0], h[1]]);
        let dst_port = u16::from_be_bytes([h[2], h[3]]);
        if src_port == 0 {
            return Err(DropReason::PortZero);
        }
        let flags = Flags::from_bits(h[FLAGS]);
        let opening = flags.syn && (flags.fin || flags.rst);
        // Everything but a SYN or RST carries an ACK in any state that is kept here: this also
        // refuses the null, FIN-only and Xmas probes.
        let naked = !flags.ack && !flags.syn && !flags.rst;
        if opening || naked {
            return Err(DropReason::BadTcpFlags);
        }
        let mut seg = Segment {
            src_port,
            dst_port,
            seq: Seq(u32::from_be_bytes([h[4], h[5], h[6], h[7]])),
            ack: Seq(u32::from_be_bytes([h[8], h[9], h[10], h[11]])),
            flags,
            window: u16::from_be_bytes([h[14], h[15]]),
            mss: None,
            window_scale: None,
            sack_permitted: false,
            sack: [None; 3],
            payload,
        };
        seg.read_options(options)?;
        Ok(seg)
    }

    fn read_options(&mut self, mut options: &[u8]) -> Result<(), DropReason> {
        while let [kind, rest @ ..] = options {
            options = match *kind {
                option::END => break,
                option::NOP => rest,
                kind => {
                    let bad = DropReason::BadTcpHeader;
                    // The length counts the kind and itself.
                    let len = usize::from(*rest.first().ok_or(bad)?);
                    let data = options.get(2..len).ok_or(bad)?;
                    self.read_option(kind, data)?;
                    &options[len..]
                }
            };
        }
        Ok(())
    }

    fn read_option(&mut self, kind: u8, data: &[u8]) -> Result<(), DropReason> {
        match (kind, data) {
            (option::MSS, &[a, b]) => self.mss = Some(u16::from_be_bytes([a, b])),
            (option::WINDOW_SCALE, &[shift]) => {
                self.window_scale = Some(shift.min(MAX_WINDOW_SCALE));
            }
            (option::SACK_PERMITTED, []) => self.sack_permitted = true,
            (option::SACK, blocks) if !blocks.is_empty() && blocks.len().is_multiple_of(8) => {
                self.sack = [None; 3];
                for (block, bytes) in self.sack.iter_mut().zip(blocks.chunks_exact(8)) {
                    let word = |at: usize| {
                        let b = &bytes[at..at + 4];
                        Seq(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
                    };
                    *block = Some((word(0), word(4)));
                }
            }
            (option::MSS | option::WINDOW_SCALE | option::SACK_PERMITTED | option::SACK, _) => {
                return Err(DropReason::BadTcpHeader);
            }
            _ => {}
        }
        Ok(())
    }

    /// Sequence space that the segment takes: its data, and one each for SYN and FIN.
    pub fn sequence_len(&self) -> usize {
        self.payload.len() + usize::from(self.flags.syn) + usize::from(self.flags.fin)
    }
}

/// The invariable part of the headers to one container: addresses and ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The remote end, as the container knows it.
    pub src: SocketAddr,
    /// The container's end.
    pub dst: SocketAddr,
}

impl Route {
    /// Whether the route is IPv6.
    pub fn is_v6(&self) -> bool {
        self.src.is_ipv6()
    }

    /// Where the payload of a segment without options stands in a frame buffer.
    pub fn payload_offset(&self) -> usize {
        l4_offset(self.is_v6()) + TCP_HEADER_LEN
    }
}

/// What varies from segment to segment.
#[derive(Clone, Copy, Debug)]
pub struct SegmentOut {
    /// Sequence number.
    pub seq: Seq,
    /// Acknowledgement number (sent as zero without the flag).
    pub ack: Seq,
    /// Control bits.
    pub flags: Flags,
    /// Window field as on the wire.
    pub window: u16,
    /// Options of a SYN.
    pub syn: Option<SynOptions>,
    /// Bytes of payload, already in place behind the header.
    pub payload_len: usize,
    /// Payload bytes that a segment may carry on the link: longer ones become super-frames.
    pub mss: usize,
    /// What the IP header says.
    pub fields: HeaderFields,
}

/// Options of a SYN or SYN/ACK to be sent.
#[derive(Clone, Copy, Debug)]
pub struct SynOptions {
    /// Largest segment taken, in bytes of payload.
    pub mss: u16,
    /// Window shift; left out when the peer offered none.
    pub window_scale: Option<u8>,
    /// Offer or confirm SACK.
    pub sack_permitted: bool,
}

impl SynOptions {
    fn write(&self, out: &mut [u8]) {
        // The rest of the padded length is end-of-list and zeros.
        out.fill(0);
        let [a, b] = self.mss.to_be_bytes();
        out[..4].copy_from_slice(&[option::MSS, 4, a, b]);
        let mut at = 4;
        if let Some(shift) = self.window_scale {
            out[at..at + 3].copy_from_slice(&[option::WINDOW_SCALE, 3, shift]);
            at += 3;
        }
        if self.sack_permitted {
            out[at..at + 2].copy_from_slice(&[option::SACK_PERMITTED, 2]);
        }
    }

    fn padded_len(&self) -> usize {
        let len = 4
            + if self.window_scale.is_some() { 3 } else { 0 }
            + if self.sack_permitted { 2 } else { 0 };
        usize::next_multiple_of(len, 4)
    }
}

/// Writes all headers of a segment into `buf` and returns the frame's length. The payload must
/// stand at [`Route::payload_offset`]; segments with options carry none.
pub fn write_segment(buf: &mut [u8], link: &Link, route: &Route, seg: &SegmentOut) -> usize {
    let header_len = TCP_HEADER_LEN + seg.syn.map_or(0, |s| s.padded_len());
    let l4_len = header_len + seg.payload_len;
    let v6 = route.is_v6();
    let ip = IpOut {
        src: route.src.ip(),
        dst: route.dst.ip(),
        protocol: protocol::TCP,
        hop_limit: seg.fields.hop_limit,
        tos: seg.fields.tos,
    };
    let pseudo = checksum::pseudo_header(ip.src, ip.dst, protocol::TCP, l4_len as u32);
    let start = l4_offset(v6);
    let (header, options) = buf[start..start + header_len].split_at_mut(TCP_HEADER_LEN);
    header.copy_from_slice(&seg.header(route, header_len, checksum::fold(pseudo)));
    if let Some(syn) = seg.syn {
        syn.write(options);
    }
    let mut vnet = VnetHeader::unsummed(start - VNET_HDR_LEN, header_len, CHECKSUM_OFFSET);
    if seg.payload_len > seg.mss {
        vnet.gso_type = if v6 { vnet::GSO_TCPV6 } else { vnet::GSO_TCPV4 };
        vnet.gso_size = seg.mss as u16;
    }
    write_headers(buf, vnet, link, &ip, l4_len)
}

impl SegmentOut {
    /// The header without options; no urgent data is ever sent.
    fn header(&self, route: &Route, header_len: usize, checksum: u16) -> [u8; TCP_HEADER_LEN] {
        let ack = if self.flags.ack { self.ack.0 } else { 0 };
        let control = (header_len as u32 / 4) << 28 | u32::from(self.flags.to_bits()) << 16;
        let words = [
            u32::from(route.src.port()) << 16 | u32::from(route.dst.port()),
            self.seq.0,
            ack,
            control | u32::from(self.window),
            u32::from(checksum) << 16,
        ];
        let mut header = [0; TCP_HEADER_LEN];
        for (bytes, word) in header.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        header
    }
}

/// Rebuilds the start of a SYN that the container sent (IP header and TCP header without options),
/// as the quote of an ICMP error about it. Returns the quote's length in `out`.
pub fn quote_syn(out: &mut [u8; 60], container: SocketAddr, remote: SocketAddr, seq: Seq) -> usize {
    let mut frame = [0u8; VNET_HDR_LEN + ETHERNET_HEADER_LEN + 60];
    let route = Route {
        src: container,
        dst: remote,
    };
    let link = Link {
        port: PortId(0),
        gateway_mac: MacAddr::default(),
        container_mac: MacAddr::default(),
    };
    let seg = SegmentOut {
        seq,
        ack: Seq(0),
        flags: Flags {
            syn: true,
            ..Flags::default()
        },
        window: 0,
        syn: None,
        payload_len: 0,
        mss: usize::MAX,
        fields: HeaderFields::default(),
    };
    let end = write_segment(&mut frame, &link, &route, &seg);
    let start = VNET_HDR_LEN + ETHERNET_HEADER_LEN;
    let len = end - start;
    out[..len].copy_from_slice(&frame[start..end]);
    len
}

/// The largest segment that fits a link of `mtu` bytes, in bytes of payload.
pub fn mss_for(mtu: usize, addr: IpAddr) -> usize {
    let ip = if addr.is_ipv6() {
        IPV6_HEADER_LEN
    } else {
        IPV4_HEADER_LEN
    };
    let headers = ip + TCP_HEADER_LEN;
    mtu.clamp(headers + 1, MAX_IP_PACKET) - headers
}
