//! The far sides of the datagram engines for their tests: a wire that keeps what was sent to a
//! port, and a host whose sockets do as they are told.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use cnet_vswitch::{FrameSink, MacAddr, PortFull, PortId};

use crate::host::{
    DatagramError, DatagramKind, HostError, HostSockets, Received, SendOptions, SocketId, Token,
};
use crate::link::Link;

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
    /// Single datagrams longer than this are refused as too big, segmented ones as unknown errors.
    pub(crate) path_mtu: Option<usize>,
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

    pub(crate) fn only_socket(&self) -> SocketId {
        assert_eq!(self.sockets.len(), 1);
        SocketId(*self.sockets.keys().next().unwrap())
    }
}

impl HostSockets for FakeHost {
    fn tcp_connect(&mut self, _: Token, _: SocketAddr) -> Result<SocketId, HostError> {
        Err(HostError::Unsupported)
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
        let each = options.segment.map_or(payload.len(), usize::from);
        if self.path_mtu.is_some_and(|m| each > m) {
            return Err(match options.segment {
                Some(_) => HostError::Other,
                None => HostError::TooBig,
            });
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
