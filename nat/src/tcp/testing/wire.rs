//! The wire of the TCP engine's tests: segments built and read by etherparse, so that a mistake of
//! the engine's own code about the format is not made twice.

use cnet_wire::checksum;
use cnet_wire::vnet::{F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, VNET_HDR_LEN, VnetHeader};
use cnet_wire::{FrameSink, MacAddr, PortFull, PortId};
use etherparse::{NetSlice, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice};

use cnet_wire::headers::Link;

/// The link of the one container.
pub(in crate::tcp) const LINK: Link = Link {
    port: PortId(3),
    gateway_mac: MacAddr([0x52, 0x55, 10, 0, 2, 2]),
    container_mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
};

/// Keeps every frame; takes none while `full`.
#[derive(Default)]
pub(in crate::tcp) struct Wire {
    pub(in crate::tcp) frames: Vec<Vec<u8>>,
    pub(in crate::tcp) full: bool,
}

impl Wire {
    pub(in crate::tcp) fn forget(&mut self) {
        self.frames.clear();
    }
}

impl FrameSink for Wire {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        assert_eq!(port, LINK.port);
        if self.full {
            return Err(PortFull);
        }
        self.frames.push(frame.to_vec());
        Ok(())
    }
}

/// Flags of a segment, in the order of their letters.
pub(in crate::tcp) const SYN: u8 = 2;
pub(in crate::tcp) const FIN: u8 = 1;
pub(in crate::tcp) const RST: u8 = 4;
pub(in crate::tcp) const PSH: u8 = 8;
pub(in crate::tcp) const ACK: u8 = 16;
pub(in crate::tcp) const URG: u8 = 32;

/// A segment of the container, to be built.
#[derive(Clone, Debug)]
pub(in crate::tcp) struct Seg {
    pub(in crate::tcp) flags: u8,
    pub(in crate::tcp) seq: u32,
    pub(in crate::tcp) ack: u32,
    pub(in crate::tcp) window: u16,
    pub(in crate::tcp) options: Vec<u8>,
    pub(in crate::tcp) payload: Vec<u8>,
    pub(in crate::tcp) urgent: u16,
}

/// MSS 1460, window shift 7, SACK permitted.
pub(in crate::tcp) const SYN_OPTIONS: &[u8] = &[2, 4, 5, 180, 1, 3, 3, 7, 4, 2, 0, 0];

pub(in crate::tcp) fn seg(flags: u8, seq: u32, ack: u32) -> Seg {
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
    pub(in crate::tcp) fn data(mut self, payload: &[u8]) -> Seg {
        self.payload = payload.to_vec();
        self
    }

    pub(in crate::tcp) fn window(mut self, window: u16) -> Seg {
        self.window = window;
        self
    }

    pub(in crate::tcp) fn options(mut self, options: &[u8]) -> Seg {
        self.options = options.to_vec();
        self
    }

    /// SACK blocks, as Linux pads them.
    pub(in crate::tcp) fn sack(self, blocks: &[(u32, u32)]) -> Seg {
        let mut options = vec![1, 1, 5, 2 + 8 * blocks.len() as u8];
        for &(left, right) in blocks {
            options.extend(left.to_be_bytes());
            options.extend(right.to_be_bytes());
        }
        self.options(&options)
    }

    pub(in crate::tcp) fn bytes(&self, src: u16, dst: u16) -> Vec<u8> {
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
pub(in crate::tcp) struct Out {
    pub(in crate::tcp) ports: (u16, u16),
    pub(in crate::tcp) flags: u8,
    pub(in crate::tcp) seq: u32,
    pub(in crate::tcp) ack: u32,
    pub(in crate::tcp) window: u16,
    pub(in crate::tcp) payload: Vec<u8>,
    /// Bytes of each segment of a super-frame.
    pub(in crate::tcp) gso_size: u16,
    pub(in crate::tcp) mss: Option<u16>,
    pub(in crate::tcp) scale: Option<u8>,
    pub(in crate::tcp) sack: bool,
}

impl Out {
    pub(in crate::tcp) fn is(&self, flags: u8) -> bool {
        self.flags & !PSH == flags
    }
}

/// Reads a frame of the engine's: a segment, or an ICMP error's type, code and quote.
pub(in crate::tcp) fn read_frame(frame: &[u8]) -> Result<Out, (u8, u8, Vec<u8>)> {
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
