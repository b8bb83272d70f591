//! TCP segments on the wire: what a container sent, and what we send it.
//!
//! Reading refuses what no stack sends (RFC 9293 section 3.10, RFC 6528, and the malformed options
//! that crash others); writing puts a header in front of a payload that already stands in the frame
//! buffer, with the checksum left to the kernel (NEEDS_CSUM).

use std::net::{IpAddr, SocketAddr};

use cnet_wire::frame::{ETHERNET_HEADER_LEN, protocol};
use cnet_wire::vnet::{self, VNET_HDR_LEN, VnetHeader};
use cnet_wire::{DropReason, checksum};
use smoltcp::wire::{TcpOption, TcpPacket, TcpSeqNumber};

use super::seq::Seq;
use crate::flow::Ends;
use cnet_wire::headers::{IpOut, Link, MAX_IP_PACKET, l4_offset, write_headers};

/// Bytes of a TCP header without options.
pub const TCP_HEADER_LEN: usize = 20;
/// Offset of the checksum in the TCP header.
const CHECKSUM_OFFSET: u16 = 16;
/// Largest shift that counts (RFC 7323, section 2.3).
const MAX_WINDOW_SCALE: u8 = 14;
/// Hop limit of what we send on behalf of remote hosts.
const HOP_LIMIT: u8 = 64;

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
}

/// A range of bytes the container holds out of order: `[left, right)` (RFC 2018).
pub type SackBlock = (Seq, Seq);

/// A received segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Sender's port.
    pub src_port: u16,
    /// Our side's port.
    pub dst_port: u16,
    /// Sequence number of the first byte (of the SYN, if set).
    pub seq: Seq,
    /// Acknowledgement number; meaningful with `flags.ack`.
    pub ack: Seq,
    /// Control bits.
    pub flags: Flags,
    /// Window field as on the wire.
    pub window: u16,
    /// Maximum segment size, if the option came.
    pub mss: Option<u16>,
    /// Window shift, if the option came; at most 14.
    pub window_scale: Option<u8>,
    /// SACK permitted.
    pub sack_permitted: bool,
    /// First SACK block, the most recent one.
    pub sack: [Option<SackBlock>; 3],
    /// Data.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads a TCP header and payload. The checksum is the caller's.
    pub fn parse(l4: &'a [u8]) -> Result<Segment<'a>, DropReason> {
        let p = TcpPacket::new_checked(l4).map_err(|_| DropReason::BadTcpHeader)?;
        if p.src_port() == 0 || p.dst_port() == 0 {
            return Err(DropReason::PortZero);
        }
        let flags = Flags {
            syn: p.syn(),
            ack: p.ack(),
            fin: p.fin(),
            rst: p.rst(),
            psh: p.psh(),
        };
        let opening = flags.syn && (flags.fin || flags.rst);
        // Everything but a SYN or RST carries an ACK in any state we keep: this also refuses the
        // null, FIN-only and Xmas probes.
        let naked = !flags.ack && !flags.syn && !flags.rst;
        if opening || naked {
            return Err(DropReason::BadTcpFlags);
        }
        let mut seg = Segment {
            src_port: p.src_port(),
            dst_port: p.dst_port(),
            seq: Seq(p.seq_number().0 as u32),
            ack: Seq(p.ack_number().0 as u32),
            flags,
            window: p.window_len(),
            mss: None,
            window_scale: None,
            sack_permitted: false,
            sack: [None; 3],
            payload: p.payload(),
        };
        seg.read_options(p.options())?;
        Ok(seg)
    }

    fn read_options(&mut self, mut options: &[u8]) -> Result<(), DropReason> {
        while !options.is_empty() {
            let (rest, option) = match TcpOption::parse(options) {
                Ok(parsed) => parsed,
                Err(_) => return Err(DropReason::BadTcpHeader),
            };
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => self.mss = Some(mss),
                TcpOption::WindowScale(s) => self.window_scale = Some(s.min(MAX_WINDOW_SCALE)),
                TcpOption::SackPermitted => self.sack_permitted = true,
                TcpOption::SackRange(ranges) => {
                    self.sack = ranges.map(|r| r.map(|(left, right)| (Seq(left), Seq(right))));
                }
                _ => {}
            }
            options = rest;
        }
        Ok(())
    }

    /// Sequence space the segment takes: its data, and one each for SYN and FIN.
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

impl From<&Ends> for Route {
    fn from(ends: &Ends) -> Route {
        Route {
            src: ends.remote(),
            dst: ends.container(),
        }
    }
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
    /// Payload bytes a segment may carry on the link: longer ones become super-frames.
    pub mss: usize,
}

/// Options of a SYN or SYN/ACK we send.
#[derive(Clone, Copy, Debug)]
pub struct SynOptions {
    /// Largest segment we take.
    pub mss: u16,
    /// Our window shift; left out when the peer offered none.
    pub window_scale: Option<u8>,
    /// Offer or confirm SACK.
    pub sack_permitted: bool,
}

impl SynOptions {
    fn write(&self, mut out: &mut [u8]) {
        out = TcpOption::MaxSegmentSize(self.mss).emit(out);
        if let Some(shift) = self.window_scale {
            out = TcpOption::WindowScale(shift).emit(out);
        }
        if self.sack_permitted {
            out = TcpOption::SackPermitted.emit(out);
        }
        // The rest of the padded length is end-of-list and zeros.
        out.fill(0);
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
    let options_len = seg.syn.map_or(0, |s| s.padded_len());
    let header_len = TCP_HEADER_LEN + options_len;
    let l4_len = header_len + seg.payload_len;
    let l4_start = l4_offset(route.is_v6());
    let csum_start = l4_start - VNET_HDR_LEN;
    let super_frame = seg.payload_len > seg.mss;
    let vnet = VnetHeader {
        flags: vnet::F_NEEDS_CSUM,
        gso_type: match (super_frame, route.is_v6()) {
            (false, _) => vnet::GSO_NONE,
            (true, false) => vnet::GSO_TCPV4,
            (true, true) => vnet::GSO_TCPV6,
        },
        hdr_len: (csum_start + header_len) as u16,
        gso_size: if super_frame { seg.mss as u16 } else { 0 },
        csum_start: csum_start as u16,
        csum_offset: CHECKSUM_OFFSET,
    };
    let ip = IpOut {
        src: route.src.ip(),
        dst: route.dst.ip(),
        protocol: protocol::TCP,
        hop_limit: HOP_LIMIT,
        tos: 0,
    };
    let pseudo = checksum::pseudo_header(ip.src, ip.dst, protocol::TCP, l4_len as u32);
    let mut p = TcpPacket::new_unchecked(&mut buf[l4_start..l4_start + l4_len]);
    p.set_src_port(route.src.port());
    p.set_dst_port(route.dst.port());
    p.set_seq_number(TcpSeqNumber(seg.seq.0 as i32));
    p.set_ack_number(TcpSeqNumber(if seg.flags.ack {
        seg.ack.0 as i32
    } else {
        0
    }));
    p.clear_flags();
    p.set_header_len(header_len as u8);
    p.set_syn(seg.flags.syn);
    p.set_ack(seg.flags.ack);
    p.set_fin(seg.flags.fin);
    p.set_rst(seg.flags.rst);
    p.set_psh(seg.flags.psh);
    p.set_window_len(seg.window);
    p.set_urgent_at(0);
    p.set_checksum(checksum::fold(pseudo));
    if let Some(syn) = seg.syn {
        syn.write(p.options_mut());
    }
    write_headers(buf, vnet, link, &ip, l4_len)
}

/// Rebuilds the start of a packet the container sent (IP header and TCP header without options), as
/// the quote of an ICMP error about it. Returns the quote's length in `out`.
pub fn quote_syn(out: &mut [u8; 60], container: SocketAddr, remote: SocketAddr, seq: Seq) -> usize {
    let v6 = container.is_ipv6();
    let mut frame = [0u8; VNET_HDR_LEN + ETHERNET_HEADER_LEN + 60];
    let route = Route {
        src: container,
        dst: remote,
    };
    let link = Link {
        port: cnet_wire::PortId(0),
        gateway_mac: cnet_wire::MacAddr::default(),
        container_mac: cnet_wire::MacAddr::default(),
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
    };
    let end = write_segment(&mut frame, &link, &route, &seg);
    let start = VNET_HDR_LEN + ETHERNET_HEADER_LEN;
    let len = end - start;
    out[..len].copy_from_slice(&frame[start..end]);
    debug_assert_eq!(len, if v6 { 60 } else { 40 });
    len
}

/// The largest segment that fits a link of `mtu` bytes.
pub fn mss_for(mtu: usize, addr: IpAddr) -> usize {
    let ip = if addr.is_ipv6() {
        cnet_wire::headers::IPV6_HEADER_LEN
    } else {
        cnet_wire::headers::IPV4_HEADER_LEN
    };
    let headers = ip + TCP_HEADER_LEN;
    mtu.clamp(headers + 1, MAX_IP_PACKET) - headers
}
