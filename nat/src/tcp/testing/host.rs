//! The host of the TCP engine's tests: its sockets do as they are told, and as the kernel does.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::host::{
    DatagramError, DatagramKind, HostError, HostSockets, Received, SendOptions, SocketId, Token,
};

/// What became of a socket that is no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::tcp) enum Fate {
    Closed,
    Reset,
}

/// A TCP socket of the fake host.
pub(in crate::tcp) struct Socket {
    pub(in crate::tcp) token: Option<Token>,
    pub(in crate::tcp) to: Option<SocketAddr>,
    /// What [`HostSockets::tcp_connected`] says while the connect goes on.
    pub(in crate::tcp) connecting: bool,
    pub(in crate::tcp) rx: Vec<u8>,
    pub(in crate::tcp) rx_end: bool,
    /// Told once by whichever call comes first, as the kernel does; the socket is dead then.
    pub(in crate::tcp) error: Option<HostError>,
    pub(in crate::tcp) dead: bool,
    peeked: usize,
    pub(in crate::tcp) tx: Vec<u8>,
    /// Bytes that may still be sent.
    pub(in crate::tcp) room: usize,
    /// A send was refused, so that an event is owed.
    pub(in crate::tcp) wants_room: bool,
    pub(in crate::tcp) shut: bool,
}

/// A host that keeps what is sent and delivers what a test put in.
#[derive(Default)]
pub(in crate::tcp) struct FakeHost {
    pub(in crate::tcp) sockets: BTreeMap<u32, Socket>,
    pub(in crate::tcp) gone: Vec<(SocketId, Fate)>,
    /// Errors of the next connects.
    pub(in crate::tcp) connect_errors: Vec<HostError>,
    pub(in crate::tcp) adopt_error: Option<HostError>,
    next: u32,
    pub(in crate::tcp) connects: usize,
    pub(in crate::tcp) peeks: usize,
}

impl FakeHost {
    pub(in crate::tcp) fn socket(&mut self, id: SocketId) -> &mut Socket {
        self.sockets.get_mut(&id.0).expect("the socket is gone")
    }

    /// A connection of a client, as the shell accepts it.
    pub(in crate::tcp) fn accept(&mut self) -> SocketId {
        self.next += 1;
        let socket = Socket {
            token: None,
            to: None,
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
        };
        self.sockets.insert(self.next, socket);
        SocketId(self.next)
    }

    fn end(&mut self, id: SocketId, fate: Fate) {
        assert!(self.sockets.remove(&id.0).is_some(), "closed twice");
        self.gone.push((id, fate));
    }
}

impl Socket {
    /// The connection fails now.
    pub(in crate::tcp) fn fail(&mut self, error: HostError) {
        self.error = Some(error);
        self.dead = true;
    }
}

impl HostSockets for FakeHost {
    fn tcp_connect(&mut self, token: Token, to: SocketAddr) -> Result<SocketId, HostError> {
        self.connects += 1;
        if let Some(e) = self.connect_errors.pop() {
            return Err(e);
        }
        let id = self.accept();
        let socket = self.socket(id);
        (socket.token, socket.to, socket.connecting) = (Some(token), Some(to), true);
        Ok(id)
    }

    fn tcp_adopt(&mut self, token: Token, socket: SocketId) -> Result<(), HostError> {
        self.socket(socket).token = Some(token);
        self.adopt_error.map_or(Ok(()), Err)
    }

    fn tcp_connected(&mut self, socket: SocketId) -> Result<(), HostError> {
        let s = self.socket(socket);
        match s.error.take() {
            Some(e) => Err(e),
            None if s.connecting => Err(HostError::WouldBlock),
            None => Ok(()),
        }
    }

    fn tcp_send(&mut self, socket: SocketId, data: &[u8]) -> Result<usize, HostError> {
        let s = self.socket(socket);
        assert!(!s.connecting && !s.shut && !data.is_empty());
        if let Some(e) = s.error.take() {
            return Err(e);
        }
        if s.dead {
            return Err(HostError::Reset);
        }
        let n = data.len().min(s.room);
        if n == 0 {
            s.wants_room = true;
            return Err(HostError::WouldBlock);
        }
        s.room -= n;
        s.tx.extend(&data[..n]);
        Ok(n)
    }

    fn tcp_peek(
        &mut self,
        socket: SocketId,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<usize, HostError> {
        self.peeks += 1;
        let s = self.socket(socket);
        assert!(offset <= s.rx.len() && !buf.is_empty());
        let n = buf.len().min(s.rx.len() - offset);
        if n > 0 {
            buf[..n].copy_from_slice(&s.rx[offset..offset + n]);
            s.peeked = s.peeked.max(offset + n);
            return Ok(n);
        }
        // A FIN hides an error that came behind it (SOCK_DONE in tcp_recvmsg).
        match s.error {
            Some(e) if !s.rx_end => {
                s.error = None;
                Err(e)
            }
            _ if s.rx_end || s.dead => Ok(0),
            _ => Err(HostError::WouldBlock),
        }
    }

    fn tcp_discard(&mut self, socket: SocketId, n: usize) -> Result<(), HostError> {
        let s = self.socket(socket);
        assert!(n > 0 && n <= s.peeked, "discards what was never peeked");
        s.rx.drain(..n);
        s.peeked -= n;
        Ok(())
    }

    fn tcp_shutdown(&mut self, socket: SocketId) {
        let s = self.socket(socket);
        assert!(!s.shut, "shut twice");
        s.shut = true;
    }

    fn tcp_reset(&mut self, socket: SocketId) {
        self.end(socket, Fate::Reset);
    }

    fn datagram_open(
        &mut self,
        _: Token,
        _: DatagramKind,
        _: IpAddr,
    ) -> Result<SocketId, HostError> {
        Err(HostError::Unsupported)
    }
    fn datagram_send(&mut self, _: SocketId, _: SendOptions, _: &[u8]) -> Result<(), HostError> {
        Err(HostError::Unsupported)
    }
    fn datagram_receive(&mut self, _: SocketId, _: &mut [u8]) -> Result<Received, HostError> {
        Err(HostError::Unsupported)
    }
    fn datagram_error(&mut self, _: SocketId, _: &mut [u8]) -> Result<DatagramError, HostError> {
        Err(HostError::Unsupported)
    }

    fn close(&mut self, socket: SocketId) {
        // With unread bytes it is a RST to the far end (RFC 1122, section 4.2.2.13).
        let unread = !self.socket(socket).rx.is_empty();
        self.end(socket, if unread { Fate::Reset } else { Fate::Closed });
    }
}
