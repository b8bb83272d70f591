//! A host that takes everything and keeps nothing but counts.

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::SocketAddr;

use cnet_wire::host::{
    DatagramError, DatagramKind, DnsQuery, HeaderFields, HostError, HostSockets, QueueFull,
    Received, SendOptions, SocketId, Token,
};

/// A host whose sockets take all and hold what they are told to.
pub struct NullHosts {
    /// The token of each socket ever opened.
    pub tokens: Vec<Token>,
    free: Vec<u32>,
    last: usize,
    /// Bytes that the next peek finds; the one after it finds nothing.
    pub arrived: usize,
    /// Bytes that the sockets still take.
    pub room: usize,
    /// What the next receive finds.
    pub datagram: Option<Received>,
    /// Written to the start of what is received, so that it is an echo reply.
    pub icmp_type: Option<u8>,
    /// Times that a socket took nothing.
    pub refusals: u64,
    /// Bytes taken from containers over TCP.
    pub sent: u64,
    /// Bytes discarded.
    pub discarded: u64,
    /// Calls to send datagrams, and their bytes.
    pub sends: u64,
    /// Bytes of all datagrams sent.
    pub sent_datagram_bytes: u64,
    /// DNS queries that were asked.
    pub queries: VecDeque<DnsQuery>,
}

impl NullHosts {
    /// With room for `sockets` sockets, so that the host's own memory does not grow.
    pub fn new(sockets: usize) -> NullHosts {
        NullHosts {
            tokens: Vec::with_capacity(sockets),
            free: Vec::with_capacity(1024),
            last: 0,
            arrived: 0,
            room: usize::MAX,
            refusals: 0,
            datagram: None,
            icmp_type: None,
            sent: 0,
            discarded: 0,
            sends: 0,
            sent_datagram_bytes: 0,
            queries: VecDeque::new(),
        }
    }

    /// The number of the socket that was opened last.
    pub fn last_opened(&self) -> usize {
        self.last
    }

    fn open(&mut self, token: Token) -> SocketId {
        self.last = match self.free.pop() {
            Some(i) => {
                self.tokens[i as usize] = token;
                i as usize
            }
            None => {
                self.tokens.push(token);
                self.tokens.len() - 1
            }
        };
        SocketId(self.last as u32)
    }
}

impl HostSockets for NullHosts {
    fn tcp_connect(
        &mut self,
        token: Token,
        from: Option<u16>,
        to: SocketAddr,
        fields: HeaderFields,
    ) -> Result<SocketId, HostError> {
        black_box((from, to, fields));
        Ok(self.open(token))
    }

    fn tcp_adopt(&mut self, token: Token, socket: SocketId) -> Result<HeaderFields, HostError> {
        black_box((token, socket));
        Ok(HeaderFields::default())
    }

    fn ask_dns(&mut self, query: DnsQuery) -> Result<(), QueueFull> {
        self.queries.push_back(query);
        Ok(())
    }

    fn tcp_connected(&mut self, socket: SocketId) -> Result<(), HostError> {
        black_box(socket);
        Ok(())
    }

    fn tcp_send(&mut self, socket: SocketId, data: &[u8]) -> Result<usize, HostError> {
        black_box((socket, data));
        let n = data.len().min(self.room);
        if n == 0 {
            self.refusals += 1;
            return Err(HostError::WouldBlock);
        }
        self.room -= n;
        self.sent += n as u64;
        Ok(n)
    }

    fn tcp_peek(
        &mut self,
        socket: SocketId,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<usize, HostError> {
        black_box((socket, offset));
        let n = std::mem::take(&mut self.arrived).min(buf.len());
        if n == 0 {
            return Err(HostError::WouldBlock);
        }
        Ok(n)
    }

    fn tcp_discard(&mut self, socket: SocketId, n: usize) -> Result<(), HostError> {
        black_box(socket);
        self.discarded += n as u64;
        Ok(())
    }

    fn tcp_shutdown(&mut self, socket: SocketId) {
        black_box(socket);
    }

    fn tcp_reset(&mut self, socket: SocketId) {
        self.free.push(socket.0);
    }

    fn datagram_open(
        &mut self,
        token: Token,
        kind: DatagramKind,
        container: SocketAddr,
    ) -> Result<SocketId, HostError> {
        black_box((kind, container));
        Ok(self.open(token))
    }

    fn datagram_send(
        &mut self,
        socket: SocketId,
        options: SendOptions,
        payload: &[u8],
    ) -> Result<(), HostError> {
        black_box((socket, options, payload));
        self.sends += 1;
        self.sent_datagram_bytes += payload.len() as u64;
        Ok(())
    }

    fn datagram_receive(
        &mut self,
        socket: SocketId,
        buf: &mut [u8],
    ) -> Result<Received, HostError> {
        black_box(socket);
        let received = self.datagram.take().ok_or(HostError::WouldBlock)?;
        if let Some(icmp_type) = self.icmp_type {
            buf[..2].copy_from_slice(&[icmp_type, 0]);
        }
        Ok(received)
    }

    fn datagram_error(
        &mut self,
        socket: SocketId,
        quote: &mut [u8],
    ) -> Result<DatagramError, HostError> {
        black_box((socket, quote));
        Err(HostError::WouldBlock)
    }

    fn close(&mut self, socket: SocketId) {
        self.free.push(socket.0);
    }
}
