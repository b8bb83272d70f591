//! The host's side of a flow: the socket operations the core asks for, as a trait. Names are resolved on
//! the host's side, too.
//!
//! The shell implements [`HostSockets`] with system calls, the simulation with a host of its own.
//! Every call is non-blocking. Readiness comes back edge-triggered: after a call returned
//! [`HostError::WouldBlock`], or a read returned less than asked, the event that ends this is
//! delivered to the core once, with the [`Token`] the socket was opened with.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::addr::PortId;
use crate::time::Duration;

/// A socket of the host, as the implementor of [`HostSockets`] numbers them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SocketId(pub u32);

/// What a [`Token`] speaks of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum TokenKind {
    /// A TCP flow's host socket.
    Tcp = 1,
    /// A UDP mapping's host socket.
    Udp = 2,
    /// An ICMP echo mapping's ping socket.
    Ping = 3,
    /// A published port's socket (a TCP listener or a bound UDP socket).
    Forward = 4,
    /// Not the core's: the shell numbers these itself.
    Shell = 5,
    /// Not the core's: a connection that the shell splices, or what supplies sockets to those.
    Splice = 6,
}

/// Names a flow (index and generation) and the kind of its socket in 64 bits, which is what epoll
/// carries. The generation makes an event for a flow that is gone harmless.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

impl Token {
    /// Highest index a token can carry.
    pub const MAX_INDEX: u32 = (1 << 24) - 1;

    /// A token of `kind` for the flow at `index` in its `generation`.
    pub const fn new(kind: TokenKind, index: u32, generation: u32) -> Token {
        Token((generation as u64) << 32 | (kind as u64) << 24 | (index & Self::MAX_INDEX) as u64)
    }

    /// The 64 bits, for epoll.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The token of `bits`; `None` if they are of no known kind.
    pub const fn from_bits(bits: u64) -> Option<Token> {
        let t = Token(bits);
        match t.kind_byte() {
            1..=6 => Some(t),
            _ => None,
        }
    }

    const fn kind_byte(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// What the token speaks of.
    pub const fn kind(self) -> TokenKind {
        match self.kind_byte() {
            1 => TokenKind::Tcp,
            2 => TokenKind::Udp,
            3 => TokenKind::Ping,
            4 => TokenKind::Forward,
            5 => TokenKind::Shell,
            _ => TokenKind::Splice,
        }
    }

    /// Index in the table of its kind.
    pub const fn index(self) -> u32 {
        self.0 as u32 & Self::MAX_INDEX
    }

    /// Generation of the table's slot.
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}#{}.{}",
            self.kind(),
            self.index(),
            self.generation()
        )
    }
}

/// Why a socket operation did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HostError {
    /// Not now; readiness will tell.
    WouldBlock,
    /// The far end refused (ECONNREFUSED).
    Refused,
    /// The far end reset the connection, or it was aborted (ECONNRESET, EPIPE, ECONNABORTED).
    Reset,
    /// The far end did not answer in the kernel's time (ETIMEDOUT).
    TimedOut,
    /// No route to that network (ENETUNREACH, ENETDOWN).
    NetUnreachable,
    /// No route to that host (EHOSTUNREACH, EHOSTDOWN).
    HostUnreachable,
    /// Refused by the host's own rules (EACCES, EPERM).
    Prohibited,
    /// The datagram is larger than the path takes (EMSGSIZE).
    TooBig,
    /// The host lacks descriptors, ports, memory or buffers (EMFILE, ENFILE, ENOMEM, ENOBUFS,
    /// EADDRINUSE, and but for connect(2) EADDRNOTAVAIL).
    Exhausted,
    /// The host cannot do this at all: protocol or option unknown.
    Unsupported,
    /// Anything else.
    Other,
}

/// A connection with a smaller hop limit is one that is to end on its way, as traceroute's are.
pub const TRACED_HOP_LIMIT: u8 = 32;

/// Names a DNS query until it is answered. Numbers are not used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct QueryId(pub u64);

/// How a DNS query came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

/// A DNS query to be resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsQuery {
    /// Its answer comes back with it.
    pub id: QueryId,
    /// How it came.
    pub transport: Transport,
    /// Who asks.
    pub client: SocketAddr,
    /// Where it came from.
    pub port: PortId,
    /// The message, at least a DNS header with QR clear; nothing else of it is checked.
    pub message: Vec<u8>,
}

/// Too many DNS queries of the port wait to be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueFull;

/// What happened on a socket since the last event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Readiness {
    /// Data, a new connection or an end of file can be read.
    pub readable: bool,
    /// Data can be written, or a connect has ended.
    pub writable: bool,
    /// The far end will send no more, or for another reason a short read does not mean that
    /// nothing follows.
    pub read_closed: bool,
    /// An error is pending, or both directions are closed.
    pub error: bool,
}

/// The kinds of datagram sockets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DatagramKind {
    /// UDP over the family of the address it is for.
    Udp,
    /// Unprivileged ICMP echo (`SOCK_DGRAM`, `IPPROTO_ICMP` or `IPPROTO_ICMPV6`). Payloads start
    /// with the ICMP header; the kernel replaces the identifier.
    Ping,
}

/// How a datagram, or a run of datagrams of one size, is to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendOptions {
    /// Destination. For [`DatagramKind::Ping`] the port is ignored.
    pub to: SocketAddr,
    /// With `Some(n)` the payload is several datagrams of `n` bytes, the last one possibly shorter.
    pub segment: Option<u16>,
    /// TTL or hop limit to send with.
    pub hop_limit: u8,
    /// DSCP and ECN bits.
    pub tos: u8,
    /// Send with DF set and report a path that is too narrow, rather than fragment.
    pub dont_fragment: bool,
    /// The host's address to send from; `None` for the kernel's choice.
    pub source: Option<IpAddr>,
}

/// What a datagram socket delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Bytes written to the buffer.
    pub len: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// With `Some(n)` the buffer holds several datagrams of `n` bytes, the last possibly shorter.
    pub segment: Option<u16>,
    /// What it arrived with; the default where the host does not tell.
    pub fields: HeaderFields,
    /// The host's address that an answer is to come from, where the host tells.
    pub local: Option<IpAddr>,
}

/// An error that came back for something a datagram socket sent (`IP_RECVERR`, ip(7)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatagramError {
    /// Where the datagram was sent to.
    pub destination: SocketAddr,
    /// The router or host that answered; `None` when the host's own kernel did.
    pub offender: Option<IpAddr>,
    /// What it said.
    pub kind: DatagramErrorKind,
    /// Bytes of the datagram's payload, from its start, written to the quote buffer.
    pub quote_len: usize,
}

/// What came back for a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DatagramErrorKind {
    /// An ICMP or ICMPv6 message of this type and code; `info` is the MTU where it has one.
    Icmp {
        /// ICMP type, of the family of the destination.
        icmp_type: u8,
        /// ICMP code.
        code: u8,
        /// Next-hop MTU in bytes, or 0.
        info: u32,
    },
    /// The host's kernel refused to send it.
    Local(HostError, u32),
}

/// What the IP headers of packets say beside their addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeaderFields {
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN bits.
    pub tos: u8,
}

impl Default for HeaderFields {
    /// What the kernel sends with where it is told nothing.
    fn default() -> Self {
        HeaderFields {
            hop_limit: 64,
            tos: 0,
        }
    }
}

/// Socket operations of the host.
pub trait HostSockets {
    /// Starts a TCP connection to `to`, whose packets say `fields`; from the host's port `from` if one is
    /// given and can be had. Its end is told by readiness for
    /// `token`: writable or error, and then [`HostSockets::tcp_connected`]. Where its hop limit is
    /// below [`TRACED_HOP_LIMIT`], what ended it is told by [`HostSockets::datagram_error`] as well.
    fn tcp_connect(
        &mut self,
        token: Token,
        from: Option<u16>,
        to: SocketAddr,
        fields: HeaderFields,
    ) -> Result<SocketId, HostError>;

    /// Takes over `socket`, which was accepted from a listener: readiness goes to `token` now.
    /// Returns what the client's SYN said, as far as the host tells.
    fn tcp_adopt(&mut self, token: Token, socket: SocketId) -> Result<HeaderFields, HostError>;

    /// Has the packets of a connection say `fields` from now on.
    fn tcp_set_fields(&mut self, _socket: SocketId, _fields: HeaderFields) {}

    /// Bytes sent, and the end of the stream, that the far end has not acknowledged.
    fn tcp_unacknowledged(&mut self, _socket: SocketId) -> usize {
        0
    }

    /// Has the host ask the far end whether it is still there, if that was silent for a second.
    fn tcp_probe(&mut self, _socket: SocketId) {}

    /// The time since the far end last acknowledged anything, a probe included.
    fn tcp_silence(&mut self, _socket: SocketId) -> Duration {
        Duration::ZERO
    }

    /// How the connect ended; `WouldBlock` if it has not. Also any later pending error.
    fn tcp_connected(&mut self, socket: SocketId) -> Result<(), HostError>;

    /// Hands `data` to the socket; returns the bytes it took, at least one.
    fn tcp_send(&mut self, socket: SocketId, data: &[u8]) -> Result<usize, HostError>;

    /// Copies received bytes, from `offset` bytes behind the first undiscarded one, without
    /// consuming them. `Ok(0)` is the end of the stream.
    fn tcp_peek(
        &mut self,
        socket: SocketId,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<usize, HostError>;

    /// Consumes `n` bytes that were peeked before.
    fn tcp_discard(&mut self, socket: SocketId, n: usize) -> Result<(), HostError>;

    /// Sends the end of our stream (`SHUT_WR`).
    fn tcp_shutdown(&mut self, socket: SocketId);

    /// Closes the socket with a RST to the far end.
    fn tcp_reset(&mut self, socket: SocketId);

    /// Opens a datagram socket for `container`, of its family; for UDP on the host's port of the same
    /// number, where the host has that to give (RFC 4787, section 4.2.1). Errors that come back are to
    /// be reported through [`HostSockets::datagram_error`].
    fn datagram_open(
        &mut self,
        token: Token,
        kind: DatagramKind,
        container: SocketAddr,
    ) -> Result<SocketId, HostError>;

    /// Whether a datagram socket takes the host's UDP port `port`.
    fn datagram_takes(&mut self, _socket: SocketId, _port: u16) -> bool {
        false
    }

    /// Sends `payload`; all of it or an error.
    fn datagram_send(
        &mut self,
        socket: SocketId,
        options: SendOptions,
        payload: &[u8],
    ) -> Result<(), HostError>;

    /// Receives one datagram, or several of one size from one sender, into `buf`.
    fn datagram_receive(&mut self, socket: SocketId, buf: &mut [u8])
    -> Result<Received, HostError>;

    /// Takes the next error from the socket's error queue, the start of the payload it quotes
    /// going to `quote`. `WouldBlock` when there is none.
    fn datagram_error(
        &mut self,
        socket: SocketId,
        quote: &mut [u8],
    ) -> Result<DatagramError, HostError>;

    /// Closes the socket in the ordinary way and forgets it.
    fn close(&mut self, socket: SocketId);

    /// Has `query`, which a container sent to the gateway, resolved. The answer comes back as an event of
    /// its own, or never.
    ///
    /// # Errors
    ///
    /// [`QueueFull`]: it is lost.
    fn ask_dns(&mut self, query: DnsQuery) -> Result<(), QueueFull>;

    /// Whether a program in the container would take a datagram to `container`, an address of that
    /// container's; `None` where that cannot be told.
    fn udp_is_bound(&mut self, container: SocketAddr) -> Option<bool> {
        let _ = container;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_their_parts() {
        let t = Token::new(TokenKind::Udp, Token::MAX_INDEX, u32::MAX);
        let t = Token::from_bits(t.to_bits()).unwrap();
        assert_eq!(
            (t.kind(), t.index(), t.generation()),
            (TokenKind::Udp, Token::MAX_INDEX, u32::MAX)
        );
        assert_eq!(Token::from_bits(0), None);
    }
}
