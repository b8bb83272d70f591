//! A host whose sockets do as a test tells them, and otherwise as the kernel does. It keeps all that
//! is sent, and delivers what the test put in.
//!
//! What a caller must not do (closing twice, sending after shutdown, discarding what was never peeked,
//! the other family on a datagram socket) panics.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use cnet_wire::host::{
    DatagramError, DatagramErrorKind, DatagramKind, DnsQuery, HeaderFields, HostError, HostSockets,
    QueueFull, Received, SendOptions, SocketId, Token,
};
use cnet_wire::time::Duration;

/// The headers of an IPv4 datagram, in bytes: what a path's MTU has beyond its payload.
const UDP_OVERHEAD: u32 = 28;

/// What became of a socket that is no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Closed in the ordinary way.
    Closed,
    /// Reset towards the far end.
    Reset,
}

/// What a socket speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// TCP.
    Tcp,
    /// UDP or ICMP echo.
    Datagram(DatagramKind),
}

/// A socket of the host.
#[derive(Debug)]
pub struct Socket {
    /// What it speaks.
    pub kind: Kind,
    /// Whom readiness is told; `None` for a connection that is not adopted.
    pub token: Option<Token>,
    /// Where it connects to.
    pub to: Option<SocketAddr>,
    /// Whether it is of IPv6.
    pub v6: bool,
    /// What [`HostSockets::tcp_connected`] says while the connect goes on.
    pub connecting: bool,
    /// Bytes that have arrived.
    pub rx: Vec<u8>,
    /// The far end has ended its stream.
    pub rx_end: bool,
    /// Told once by whichever call comes first, as the kernel does; the socket is dead then.
    pub error: Option<HostError>,
    /// The connection is over.
    pub dead: bool,
    peeked: usize,
    /// Bytes that were sent.
    pub tx: Vec<u8>,
    /// Bytes that may still be sent.
    pub room: usize,
    /// A send was refused, so that an event is owed.
    pub wants_room: bool,
    /// Our stream is ended.
    pub shut: bool,
    /// What the packets of a connection say, or what its client's SYN said.
    pub fields: HeaderFields,
    /// The host's port that was asked for.
    pub port: Option<u16>,
    /// Bytes that the far end has not acknowledged.
    pub unacknowledged: usize,
    /// Probes of the far end, and how long it has been silent.
    pub probes: usize,
    /// See [`Socket::probes`].
    pub silence: Duration,
    /// Datagrams that have arrived, or the errors that receiving them meets.
    pub inbox: VecDeque<Result<(Received, Vec<u8>), HostError>>,
    /// The error queue, each with the start of the payload it quotes.
    pub errors: VecDeque<(DatagramError, Vec<u8>)>,
}

impl Socket {
    fn new(kind: Kind, token: Option<Token>, v6: bool) -> Socket {
        Socket {
            kind,
            token,
            to: None,
            v6,
            connecting: false,
            rx: Vec::new(),
            rx_end: false,
            error: None,
            dead: false,
            peeked: 0,
            tx: Vec::new(),
            room: usize::MAX,
            wants_room: false,
            shut: false,
            fields: HeaderFields::default(),
            port: None,
            unacknowledged: 0,
            probes: 0,
            silence: Duration::ZERO,
            inbox: VecDeque::new(),
            errors: VecDeque::new(),
        }
    }

    /// The connection fails now.
    pub fn fail(&mut self, error: HostError) {
        self.error = Some(error);
        self.dead = true;
    }
}

/// The host.
#[derive(Debug, Default)]
pub struct Scripted {
    /// The open sockets.
    pub sockets: BTreeMap<u32, Socket>,
    /// Sockets that are no more.
    pub gone: Vec<(SocketId, Fate)>,
    /// Errors of the next connects, the last one first.
    pub connect_errors: Vec<HostError>,
    /// What adopting a connection fails with.
    pub adopt_error: Option<HostError>,
    /// What opening a datagram socket fails with.
    pub open_error: Option<HostError>,
    /// Datagram sockets take the port that is asked for.
    pub keeps_ports: bool,
    /// Sockets that may be open at a time; past it opening a datagram socket fails.
    pub room: Option<usize>,
    /// Answers to the next sends of datagrams; `Ok` once it is empty.
    pub send_results: VecDeque<Result<(), HostError>>,
    /// Bytes of payload that go without fragments: longer datagrams with DF are refused as too big
    /// and leave an entry in the error queue; segments may not be longer at all.
    pub path_payload: Option<usize>,
    /// The host sends no runs of datagrams.
    pub no_segmentation: bool,
    /// The only UDP end of a container that a program has, if that can be told.
    pub bound: Option<SocketAddr>,
    /// Datagrams that were sent.
    pub sent: Vec<(SocketId, SendOptions, Vec<u8>)>,
    /// DNS queries that were asked.
    pub queries: VecDeque<DnsQuery>,
    /// No further query finds room.
    pub takes_no_queries: bool,
    /// Calls to connect.
    pub connects: usize,
    /// Calls to peek.
    pub peeks: usize,
    next: u32,
}

impl Scripted {
    /// An open socket; panics if it is gone.
    pub fn socket(&mut self, id: SocketId) -> &mut Socket {
        self.sockets.get_mut(&id.0).expect("the socket is gone")
    }

    /// The one socket there is.
    pub fn only_socket(&self) -> SocketId {
        assert_eq!(self.sockets.len(), 1);
        self.newest_socket()
    }

    /// The socket that was opened last, of those that are open.
    pub fn newest_socket(&self) -> SocketId {
        SocketId(*self.sockets.keys().next_back().expect("no socket"))
    }

    /// A connection of a client, as the shell accepts it.
    pub fn accept(&mut self) -> SocketId {
        self.add(Socket::new(Kind::Tcp, None, false))
    }

    /// A UDP socket that the shell bound.
    pub fn bind(&mut self, token: Token, v6: bool) -> SocketId {
        let kind = Kind::Datagram(DatagramKind::Udp);
        self.add(Socket::new(kind, Some(token), v6))
    }

    /// A datagram arrives, or a run of them with `segment` bytes each. `from` is an address and a
    /// port, written out.
    pub fn deliver(&mut self, id: SocketId, from: &str, segment: Option<u16>, data: &[u8]) {
        let received = Received {
            len: data.len(),
            from: from.parse().expect("an address and a port"),
            segment,
            fields: HeaderFields {
                hop_limit: 60,
                tos: 2,
            },
            local: None,
        };
        let inbox = &mut self.socket(id).inbox;
        inbox.push_back(Ok((received, data.to_vec())));
    }

    /// An ICMP error comes from `offender` for what `id` sent to `destination`, both written out.
    pub fn fail(
        &mut self,
        id: SocketId,
        destination: &str,
        offender: Option<&str>,
        (icmp_type, code, info): (u8, u8, u32),
        quote: &[u8],
    ) {
        let error = DatagramError {
            destination: destination.parse().expect("an address and a port"),
            offender: offender.map(|offender| offender.parse().expect("an address")),
            kind: DatagramErrorKind::Icmp {
                icmp_type,
                code,
                info,
            },
            quote_len: 0,
        };
        self.socket(id).errors.push_back((error, quote.to_vec()));
    }

    fn add(&mut self, socket: Socket) -> SocketId {
        self.next += 1;
        self.sockets.insert(self.next, socket);
        SocketId(self.next)
    }

    fn end(&mut self, id: SocketId, fate: Fate) {
        assert!(self.sockets.remove(&id.0).is_some(), "closed twice");
        self.gone.push((id, fate));
    }
}

impl HostSockets for Scripted {
    fn ask_dns(&mut self, query: DnsQuery) -> Result<(), QueueFull> {
        if self.takes_no_queries {
            return Err(QueueFull);
        }
        self.queries.push_back(query);
        Ok(())
    }

    fn tcp_connect(
        &mut self,
        token: Token,
        from: Option<u16>,
        to: SocketAddr,
        fields: HeaderFields,
    ) -> Result<SocketId, HostError> {
        self.connects += 1;
        if let Some(error) = self.connect_errors.pop() {
            return Err(error);
        }
        let mut socket = Socket::new(Kind::Tcp, Some(token), to.is_ipv6());
        (socket.to, socket.connecting) = (Some(to), true);
        (socket.fields, socket.port) = (fields, from);
        Ok(self.add(socket))
    }

    fn tcp_adopt(&mut self, token: Token, socket: SocketId) -> Result<HeaderFields, HostError> {
        let socket = self.socket(socket);
        socket.token = Some(token);
        let fields = socket.fields;
        self.adopt_error.map_or(Ok(fields), Err)
    }

    fn tcp_set_fields(&mut self, socket: SocketId, fields: HeaderFields) {
        self.socket(socket).fields = fields;
    }

    fn tcp_unacknowledged(&mut self, socket: SocketId) -> usize {
        self.socket(socket).unacknowledged
    }

    fn tcp_probe(&mut self, socket: SocketId) {
        self.socket(socket).probes += 1;
    }

    fn tcp_silence(&mut self, socket: SocketId) -> Duration {
        self.socket(socket).silence
    }

    fn tcp_connected(&mut self, socket: SocketId) -> Result<(), HostError> {
        let socket = self.socket(socket);
        match socket.error.take() {
            Some(error) => Err(error),
            None if socket.connecting => Err(HostError::WouldBlock),
            None => Ok(()),
        }
    }

    fn tcp_send(&mut self, socket: SocketId, data: &[u8]) -> Result<usize, HostError> {
        let socket = self.socket(socket);
        assert!(!socket.connecting && !socket.shut && !data.is_empty());
        if let Some(error) = socket.error.take() {
            return Err(error);
        }
        if socket.dead {
            return Err(HostError::Reset);
        }
        let n = data.len().min(socket.room);
        if n == 0 {
            socket.wants_room = true;
            return Err(HostError::WouldBlock);
        }
        socket.room -= n;
        socket.tx.extend(&data[..n]);
        Ok(n)
    }

    fn tcp_peek(
        &mut self,
        socket: SocketId,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<usize, HostError> {
        self.peeks += 1;
        let socket = self.socket(socket);
        assert!(offset <= socket.rx.len() && !buf.is_empty());
        let n = buf.len().min(socket.rx.len() - offset);
        if n > 0 {
            buf[..n].copy_from_slice(&socket.rx[offset..offset + n]);
            socket.peeked = socket.peeked.max(offset + n);
            return Ok(n);
        }
        // A FIN hides an error that came behind it (SOCK_DONE in tcp_recvmsg).
        match socket.error {
            Some(error) if !socket.rx_end => {
                socket.error = None;
                Err(error)
            }
            _ if socket.rx_end || socket.dead => Ok(0),
            _ => Err(HostError::WouldBlock),
        }
    }

    fn tcp_discard(&mut self, socket: SocketId, n: usize) -> Result<(), HostError> {
        let socket = self.socket(socket);
        assert!(
            n > 0 && n <= socket.peeked,
            "discards what was never peeked"
        );
        socket.rx.drain(..n);
        socket.peeked -= n;
        Ok(())
    }

    fn tcp_shutdown(&mut self, socket: SocketId) {
        let socket = self.socket(socket);
        assert!(!socket.shut, "shut twice");
        socket.shut = true;
    }

    fn tcp_reset(&mut self, socket: SocketId) {
        self.end(socket, Fate::Reset);
    }

    fn datagram_open(
        &mut self,
        token: Token,
        kind: DatagramKind,
        container: SocketAddr,
    ) -> Result<SocketId, HostError> {
        if let Some(error) = self.open_error {
            return Err(error);
        }
        if self.room.is_some_and(|room| self.sockets.len() >= room) {
            return Err(HostError::Exhausted);
        }
        let kind = Kind::Datagram(kind);
        let mut socket = Socket::new(kind, Some(token), container.is_ipv6());
        socket.port = self.keeps_ports.then_some(container.port());
        Ok(self.add(socket))
    }

    fn datagram_takes(&mut self, socket: SocketId, port: u16) -> bool {
        self.socket(socket).port == Some(port)
    }

    fn datagram_send(
        &mut self,
        socket: SocketId,
        options: SendOptions,
        payload: &[u8],
    ) -> Result<(), HostError> {
        assert_eq!(self.socket(socket).v6, options.to.is_ipv6());
        if let Some(Err(error)) = self.send_results.pop_front() {
            return Err(error);
        }
        if options.segment.is_some() && self.no_segmentation {
            return Err(HostError::Unsupported);
        }
        let longest = self.path_payload.unwrap_or(usize::MAX);
        match options.segment {
            Some(n) if usize::from(n) > longest => return Err(HostError::Other),
            None if payload.len() > longest && options.dont_fragment => {
                let mtu = longest as u32 + UDP_OVERHEAD;
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

    fn udp_is_bound(&mut self, container: SocketAddr) -> Option<bool> {
        self.bound.map(|bound| bound == container)
    }

    fn close(&mut self, socket: SocketId) {
        // With unread bytes it is a RST to the far end (RFC 1122, section 4.2.2.13).
        let unread = !self.socket(socket).rx.is_empty();
        self.end(socket, if unread { Fate::Reset } else { Fate::Closed });
    }
}
