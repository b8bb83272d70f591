//! TCP segments built and read by etherparse.

use cnet_wire::checksum;
use cnet_wire::vnet::{F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, VNET_HDR_LEN, VnetHeader};
use etherparse::{NetSlice, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice};

use super::LINK;
use crate::frames::flag;

pub use flag::{ACK, FIN, PSH, RST, SYN, URG};

/// A segment of the container, to be built.
#[derive(Clone, Debug)]
pub struct Seg {
    /// Control bits.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window, unscaled.
    pub window: u16,
    /// Options, padded to a multiple of four bytes.
    pub options: Vec<u8>,
    /// Data.
    pub payload: Vec<u8>,
    /// Urgent pointer.
    pub urgent: u16,
}

/// MSS 1460, window shift 7, SACK permitted.
pub const SYN_OPTIONS: &[u8] = &[2, 4, 5, 180, 1, 3, 3, 7, 4, 2, 0, 0];

/// A segment without options and data.
pub fn seg(flags: u8, seq: u32, ack: u32) -> Seg {
    Seg {
        flags,
        seq,
        ack,
        window: 0x2000,
        options: Vec::new(),
        payload: Vec::new(),
        urgent: 0,
    }
}

impl Seg {
    /// With `payload` as data.
    pub fn data(mut self, payload: &[u8]) -> Seg {
        self.payload = payload.to_vec();
        self
    }

    /// With another window.
    pub fn window(mut self, window: u16) -> Seg {
        self.window = window;
        self
    }

    /// With `options`, padded already.
    pub fn options(mut self, options: &[u8]) -> Seg {
        self.options = options.to_vec();
        self
    }

    /// SACK blocks, as Linux pads them.
    pub fn sack(self, blocks: &[(u32, u32)]) -> Seg {
        let mut options = vec![1, 1, 5, 2 + 8 * blocks.len() as u8];
        for &(left, right) in blocks {
            options.extend(left.to_be_bytes());
            options.extend(right.to_be_bytes());
        }
        self.options(&options)
    }

    /// Header and data, the checksum zero, between two ports.
    pub fn bytes(&self, src: u16, dst: u16) -> Vec<u8> {
        let mut h = TcpHeader::new(src, dst, self.seq, self.window);
        h.acknowledgment_number = self.ack;
        h.fin = self.flags & FIN != 0;
        h.syn = self.flags & SYN != 0;
        h.rst = self.flags & RST != 0;
        h.psh = self.flags & PSH != 0;
        h.ack = self.flags & ACK != 0;
        h.urg = self.flags & URG != 0;
        h.urgent_pointer = self.urgent;
        h.set_options_raw(&self.options).unwrap();
        [&h.to_bytes()[..], &self.payload].concat()
    }
}

/// A segment the engine sent, as etherparse reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Out {
    /// Source and destination port.
    pub ports: (u16, u16),
    /// Control bits.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window, unscaled.
    pub window: u16,
    /// Data.
    pub payload: Vec<u8>,
    /// Bytes of each segment of a super-frame.
    pub gso_size: u16,
    /// The option of that name (RFC 9293).
    pub mss: Option<u16>,
    /// Window scale (RFC 7323).
    pub scale: Option<u8>,
    /// SACK permitted (RFC 2018).
    pub sack: bool,
}

impl Out {
    /// Whether these are the control bits, PSH aside.
    pub fn is(&self, flags: u8) -> bool {
        self.flags & !PSH == flags
    }
}

/// Reads a frame of the engine's: a segment, or an ICMP error's type, code and quote.
pub fn read_frame(frame: &[u8]) -> Result<Out, (u8, u8, Vec<u8>)> {
    // Longer than 60 lines: one check after the other of what a frame must be.
    let vnet = VnetHeader::decode(frame).unwrap();
    let bytes = &frame[VNET_HDR_LEN..];
    assert_eq!(bytes[..6], LINK.container_mac.0);
    assert_eq!(bytes[6..12], LINK.gateway_mac.0);
    let packet = SlicedPacket::from_ethernet(bytes).unwrap();
    let tcp = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp,
        Some(TransportSlice::Icmpv4(i)) => {
            return Err((i.type_u8(), i.code_u8(), i.payload().to_vec()));
        }
        Some(TransportSlice::Icmpv6(i)) => {
            return Err((i.type_u8(), i.code_u8(), i.payload().to_vec()));
        }
        _ => panic!("neither TCP nor ICMP"),
    };
    assert_eq!(vnet.flags, F_NEEDS_CSUM);
    let start = usize::from(vnet.csum_start);
    assert_eq!(bytes.len() - start, tcp.slice().len());
    assert_eq!(usize::from(vnet.hdr_len), start + tcp.header_len());
    assert_eq!(vnet.csum_offset, 16);
    let (sum, gso) = match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            assert_eq!(
                ip.header().header_checksum(),
                ip.header().to_header().calc_header_checksum()
            );
            let h = ip.header();
            let sum = tcp.calc_checksum_ipv4(h.source(), h.destination());
            (sum.unwrap(), GSO_TCPV4)
        }
        NetSlice::Ipv6(ip) => {
            let h = ip.header();
            let sum = tcp.calc_checksum_ipv6(h.source(), h.destination());
            (sum.unwrap(), GSO_TCPV6)
        }
        _ => panic!("not IP"),
    };
    // What the kernel does to complete the checksum.
    let completed = checksum::finish(0, tcp.slice());
    assert_eq!(
        completed, sum,
        "the partial checksum completes to a wrong one"
    );
    match vnet.gso_type {
        GSO_NONE => assert_eq!(vnet.gso_size, 0),
        kind => {
            assert_eq!(kind, gso);
            assert!(tcp.payload().len() > usize::from(vnet.gso_size) && vnet.gso_size > 0);
        }
    }
    assert_eq!((tcp.urg(), tcp.urgent_pointer()), (false, 0));
    let mut out = Out {
        ports: (tcp.source_port(), tcp.destination_port()),
        flags: tcp.header_slice()[13],
        seq: tcp.sequence_number(),
        ack: tcp.acknowledgment_number(),
        window: tcp.window_size(),
        payload: tcp.payload().to_vec(),
        gso_size: vnet.gso_size,
        mss: None,
        scale: None,
        sack: false,
    };
    for option in tcp.options_iterator() {
        match option.unwrap() {
            TcpOptionElement::MaximumSegmentSize(mss) => out.mss = Some(mss),
            TcpOptionElement::WindowScale(shift) => out.scale = Some(shift),
            TcpOptionElement::SelectiveAcknowledgementPermitted => out.sack = true,
            other => panic!("{other:?} was not asked for"),
        }
    }
    Ok(out)
}
