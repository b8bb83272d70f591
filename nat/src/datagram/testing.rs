//! The far sides of the datagram engines for their tests: a wire that keeps what was sent to a
//! port, and a host whose sockets do as they are told.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use cnet_wire::time::Instant;
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{Frame, FrameSink, L3, MacAddr, PortFull, PortId, VnetHeader, checksum};

use crate::fragment::Reassembly;
use crate::host::{
    DatagramError, DatagramErrorKind, DatagramKind, HostError, HostSockets, Received, SendOptions,
    SocketId, Token,
};
use cnet_wire::headers::Link;

/// The link of the one container.
pub(crate) const LINK: Link = Link {
    port: PortId(3),
    gateway_mac: MacAddr([0x52, 0x55, 10, 0, 2, 2]),
    container_mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
};

/// Keeps every frame; takes `room` of them if that is set.
#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) frames: Vec<Vec<u8>>,
    pub(crate) room: Option<usize>,
}

impl FrameSink for Wire {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        assert_eq!(port, LINK.port);
        if self.room.is_some_and(|r| self.frames.len() >= r) {
            return Err(PortFull);
        }
        self.frames.push(frame.to_vec());
        Ok(())
    }
}

/// A socket of the fake host.
pub(crate) struct FakeSocket {
    pub(crate) token: Token,
    pub(crate) kind: DatagramKind,
    pub(crate) v6: bool,
    pub(crate) inbox: VecDeque<Result<(Received, Vec<u8>), HostError>>,
    pub(crate) errors: VecDeque<(DatagramError, Vec<u8>)>,
}

/// A host that records what is sent and delivers what a test put in.
#[derive(Default)]
pub(crate) struct FakeHost {
    pub(crate) sockets: BTreeMap<u32, FakeSocket>,
    pub(crate) next: u32,
    pub(crate) sent: Vec<(SocketId, SendOptions, Vec<u8>)>,
    /// Answers to the next sends; `Ok` once it is empty.
    pub(crate) send_results: VecDeque<Result<(), HostError>>,
    /// Bytes of payload that go without fragments: longer datagrams with DF are refused as too big
    /// and leave an entry in the error queue; segments may not be longer at all.
    pub(crate) path_payload: Option<usize>,
    pub(crate) no_segmentation: bool,
    pub(crate) open_error: Option<HostError>,
}

impl FakeHost {
    pub(crate) fn socket(&mut self, id: SocketId) -> &mut FakeSocket {
        self.sockets.get_mut(&id.0).unwrap()
    }

    /// A socket that the shell opened.
    pub(crate) fn bind(&mut self, token: Token, v6: bool) -> SocketId {
        self.next += 1;
        let socket = FakeSocket {
            token,
            kind: DatagramKind::Udp,
            v6,
            inbox: VecDeque::new(),
            errors: VecDeque::new(),
        };
        self.sockets.insert(self.next, socket);
        SocketId(self.next)
    }

    pub(crate) fn deliver(&mut self, id: SocketId, from: &str, segment: Option<u16>, data: &[u8]) {
        let received = Received {
            len: data.len(),
            from: from.parse::<SocketAddr>().unwrap(),
            segment,
            tos: 2,
        };
        let inbox = &mut self.socket(id).inbox;
        inbox.push_back(Ok((received, data.to_vec())));
    }

    /// Queues an ICMP error for what `id` sent to `destination`.
    pub(crate) fn fail(
        &mut self,
        id: SocketId,
        destination: &str,
        offender: Option<&str>,
        (icmp_type, code, info): (u8, u8, u32),
        quote: &[u8],
    ) {
        let error = DatagramError {
            destination: destination.parse().unwrap(),
            offender: offender.map(|o| o.parse().unwrap()),
            kind: DatagramErrorKind::Icmp {
                icmp_type,
                code,
                info,
            },
            quote_len: 0,
        };
        self.socket(id).errors.push_back((error, quote.to_vec()));
    }

    pub(crate) fn only_socket(&self) -> SocketId {
        assert_eq!(self.sockets.len(), 1);
        SocketId(*self.sockets.keys().next().unwrap())
    }
}

impl HostSockets for FakeHost {
    fn tcp_connect(&mut self, token: Token, to: SocketAddr) -> Result<SocketId, HostError> {
        Ok(self.bind(token, to.is_ipv6()))
    }
    fn tcp_adopt(&mut self, _: Token, _: SocketId) -> Result<(), HostError> {
        Err(HostError::Unsupported)
    }
    fn tcp_connected(&mut self, _: SocketId) -> Result<(), HostError> {
        Err(HostError::Unsupported)
    }
    fn tcp_send(&mut self, _: SocketId, _: &[u8]) -> Result<usize, HostError> {
        Err(HostError::Unsupported)
    }
    fn tcp_peek(&mut self, _: SocketId, _: usize, _: &mut [u8]) -> Result<usize, HostError> {
        Err(HostError::Unsupported)
    }
    fn tcp_discard(&mut self, _: SocketId, _: usize) -> Result<(), HostError> {
        Err(HostError::Unsupported)
    }
    fn tcp_shutdown(&mut self, _: SocketId) {}
    fn tcp_reset(&mut self, _: SocketId) {}

    fn datagram_open(
        &mut self,
        token: Token,
        kind: DatagramKind,
        family_of: IpAddr,
    ) -> Result<SocketId, HostError> {
        if let Some(e) = self.open_error {
            return Err(e);
        }
        let id = self.bind(token, family_of.is_ipv6());
        self.socket(id).kind = kind;
        Ok(id)
    }

    fn datagram_send(
        &mut self,
        socket: SocketId,
        options: SendOptions,
        payload: &[u8],
    ) -> Result<(), HostError> {
        assert_eq!(self.socket(socket).v6, options.to.is_ipv6());
        if let Some(Err(e)) = self.send_results.pop_front() {
            return Err(e);
        }
        if options.segment.is_some() && self.no_segmentation {
            return Err(HostError::Unsupported);
        }
        let longest = self.path_payload.unwrap_or(usize::MAX);
        match options.segment {
            Some(n) if usize::from(n) > longest => return Err(HostError::Other),
            None if payload.len() > longest && options.dont_fragment => {
                let mtu = longest as u32 + 28;
                let error = DatagramError {
                    destination: SocketAddr::new(options.to.ip(), 0),
                    offender: None,
                    kind: DatagramErrorKind::Local(HostError::TooBig, mtu),
                    quote_len: 0,
                };
                self.socket(socket).errors.push_back((error, Vec::new()));
                return Err(HostError::TooBig);
            }
            _ => {}
        }
        self.sent.push((socket, options, payload.to_vec()));
        Ok(())
    }

    fn datagram_receive(
        &mut self,
        socket: SocketId,
        buf: &mut [u8],
    ) -> Result<Received, HostError> {
        let next = self.socket(socket).inbox.pop_front();
        let (mut received, data) = next.unwrap_or(Err(HostError::WouldBlock))?;
        received.len = data.len().min(buf.len());
        buf[..received.len].copy_from_slice(&data[..received.len]);
        Ok(received)
    }

    fn datagram_error(
        &mut self,
        socket: SocketId,
        quote: &mut [u8],
    ) -> Result<DatagramError, HostError> {
        let next = self.socket(socket).errors.pop_front();
        let (mut error, data) = next.ok_or(HostError::WouldBlock)?;
        error.quote_len = data.len().min(quote.len());
        quote[..error.quote_len].copy_from_slice(&data[..error.quote_len]);
        Ok(error)
    }

    fn close(&mut self, socket: SocketId) {
        assert!(self.sockets.remove(&socket.0).is_some(), "closed twice");
    }
}

/// A UDP datagram with a right checksum, by an independent implementation.
pub(crate) fn udp_datagram(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let header = etherparse::UdpHeader {
        source_port: src.port(),
        destination_port: dst.port(),
        length: 8 + payload.len() as u16,
        checksum: 0,
    };
    let sum = match (src.ip(), dst.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            header.calc_checksum_ipv4_raw(s.octets(), d.octets(), payload)
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            header.calc_checksum_ipv6_raw(s.octets(), d.octets(), payload)
        }
        _ => panic!("two families"),
    };
    let header = etherparse::UdpHeader {
        checksum: sum.unwrap(),
        ..header
    };
    [&header.to_bytes()[..], payload].concat()
}

/// IP header fields that tests vary.
#[derive(Clone, Copy)]
pub(crate) struct Ip {
    pub(crate) hop_limit: u8,
    pub(crate) tos: u8,
    pub(crate) dont_fragment: bool,
}

pub(crate) const IP: Ip = Ip {
    hop_limit: 64,
    tos: 0,
    dont_fragment: true,
};

/// A frame from the container, virtio-net header first, by an independent implementation.
pub(crate) fn frame_from(
    vnet: VnetHeader,
    (src, dst): (IpAddr, IpAddr),
    ip: Ip,
    protocol: u8,
    l4: &[u8],
) -> Vec<u8> {
    use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header};
    let mut b = vnet.encode().to_vec();
    let ethernet = |ether_type| Ethernet2Header {
        source: LINK.container_mac.0,
        destination: LINK.gateway_mac.0,
        ether_type,
    };
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ethernet(EtherType::IPV4).write(&mut b).unwrap();
            let (len, protocol) = (l4.len() as u16, IpNumber(protocol));
            let (src, dst) = (src.octets(), dst.octets());
            let mut h = Ipv4Header::new(len, ip.hop_limit, protocol, src, dst).unwrap();
            h.dont_fragment = ip.dont_fragment;
            h.dscp = etherparse::IpDscp::try_new(ip.tos >> 2).unwrap();
            h.ecn = etherparse::IpEcn::try_new(ip.tos & 3).unwrap();
            h.header_checksum = h.calc_header_checksum();
            h.write(&mut b).unwrap();
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ethernet(EtherType::IPV6).write(&mut b).unwrap();
            let h = Ipv6Header {
                traffic_class: ip.tos,
                payload_length: l4.len() as u16,
                next_header: IpNumber(protocol),
                hop_limit: ip.hop_limit,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv6Header::default()
            };
            h.write(&mut b).unwrap();
        }
        _ => panic!("two families"),
    }
    b.extend_from_slice(l4);
    b
}

/// An IP packet to the container, as an independent implementation reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Packet {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) hop_limit: u8,
    pub(crate) tos: u8,
    pub(crate) l4: Vec<u8>,
}

impl Packet {
    /// Reads a frame to the container that is no fragment, and checks its checksums. A checksum
    /// left to the receiver is filled in first.
    pub(crate) fn read(frame: &[u8]) -> Packet {
        use etherparse::{NetSlice, SlicedPacket};
        let vnet = VnetHeader::decode(frame).unwrap();
        let mut bytes = frame[VNET_HDR_LEN..].to_vec();
        assert_eq!(bytes[..6], LINK.container_mac.0);
        assert_eq!(bytes[6..12], LINK.gateway_mac.0);
        if vnet.needs_csum() {
            let start = usize::from(vnet.csum_start);
            let sum = checksum::finish(0, &bytes[start..]);
            let field = start + usize::from(vnet.csum_offset);
            bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let sliced = SlicedPacket::from_ethernet(&bytes).unwrap();
        let packet = match sliced.net.unwrap() {
            NetSlice::Ipv4(p) => {
                let h = p.header();
                assert_eq!(h.to_header().calc_header_checksum(), h.header_checksum());
                assert!(!h.is_fragmenting_payload());
                Packet {
                    src: h.source_addr().into(),
                    dst: h.destination_addr().into(),
                    protocol: h.protocol().0,
                    hop_limit: h.ttl(),
                    tos: h.dcp().value() << 2 | h.ecn().value(),
                    l4: p.payload().payload.to_vec(),
                }
            }
            NetSlice::Ipv6(p) => {
                let h = p.header();
                Packet {
                    src: h.source_addr().into(),
                    dst: h.destination_addr().into(),
                    protocol: h.next_header().0,
                    hop_limit: h.hop_limit(),
                    tos: h.traffic_class(),
                    l4: p.payload().payload.to_vec(),
                }
            }
            NetSlice::Arp(_) => panic!("ARP"),
        };
        let pseudo = match packet.protocol {
            1 => 0,
            p => checksum::pseudo_header(packet.src, packet.dst, p, packet.l4.len() as u32),
        };
        assert_eq!(checksum::finish(pseudo, &packet.l4), 0, "checksum");
        packet
    }

    /// Reads frames to the container that are all of one packet.
    pub(crate) fn reassemble(frames: &[Vec<u8>]) -> Packet {
        let mut reassembly = Reassembly::new();
        let mut whole = None;
        for bytes in frames {
            assert!(whole.is_none());
            let frame = Frame::parse(bytes, 65535).unwrap();
            let L3::Ip(ip) = frame.l3 else { panic!("ARP") };
            if ip.fragment.is_none() {
                return Packet::read(bytes);
            }
            whole = reassembly
                .handle_fragment(Instant::ZERO, LINK.port, &frame, &ip)
                .unwrap();
        }
        Packet::read(whole.unwrap().bytes())
    }

    /// The end points of a UDP packet.
    pub(crate) fn ends(&self) -> (SocketAddr, SocketAddr) {
        assert_eq!(self.protocol, 17);
        let port = |i: usize| u16::from_be_bytes([self.l4[i], self.l4[i + 1]]);
        (
            SocketAddr::new(self.src, port(0)),
            SocketAddr::new(self.dst, port(2)),
        )
    }

    /// Type, code and info of an ICMP error, and the packet it quotes from its IP header on.
    pub(crate) fn error(&self) -> ((u8, u8, u32), &[u8]) {
        assert!(matches!(self.protocol, 1 | 58));
        let info = u32::from_be_bytes([self.l4[4], self.l4[5], self.l4[6], self.l4[7]]);
        ((self.l4[0], self.l4[1], info), &self.l4[8..])
    }
}
