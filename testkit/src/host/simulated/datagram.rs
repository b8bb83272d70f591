//! The host's UDP and ping sockets: a world that echoes, loses, or answers that nobody listens.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use cnet_wire::host::{
    DatagramError, DatagramErrorKind, DatagramKind, HeaderFields, HostError, Received, SendOptions,
    SocketId, Token,
};

use super::Host;

/// A UDP or ping socket: a remote that echoes, loses, or answers that nobody listens.
pub(super) struct DatagramSocket {
    pub(super) token: Token,
    pub(super) kind: DatagramKind,
    pub(super) v6: bool,
    pub(super) rx: VecDeque<(SocketAddr, Vec<u8>)>,
    pub(super) errors: VecDeque<(SocketAddr, Vec<u8>)>,
    pub(super) triggered: bool,
}

/// Datagrams to this port are answered with port unreachable.
pub const CLOSED_PORT: u16 = 9;
/// Datagrams a socket holds at most.
const DATAGRAM_QUEUE: usize = 64;

impl Host {
    pub(super) fn open_datagram(
        &mut self,
        token: Token,
        kind: DatagramKind,
        family_of: IpAddr,
    ) -> Result<SocketId, HostError> {
        if self.rng.chance(self.plan.exhausted) {
            return Err(HostError::Exhausted);
        }
        let id = self.new_id();
        let socket = DatagramSocket {
            token,
            kind,
            v6: family_of.is_ipv6(),
            rx: VecDeque::new(),
            errors: VecDeque::new(),
            triggered: false,
        };
        self.datagrams.insert(id.0, socket);
        Ok(id)
    }

    pub(super) fn send_datagram(
        &mut self,
        socket: SocketId,
        options: SendOptions,
        payload: &[u8],
    ) -> Result<(), HostError> {
        if self.rng.chance(10) {
            return Err(HostError::WouldBlock);
        }
        self.echo(socket, options, payload);
        Ok(())
    }

    pub(super) fn receive_datagram(
        &mut self,
        socket: SocketId,
        buf: &mut [u8],
    ) -> Result<Received, HostError> {
        let d = self.datagrams.get_mut(&socket.0).ok_or(HostError::Other)?;
        let (from, bytes) = d.rx.pop_front().ok_or(HostError::WouldBlock)?;
        let len = bytes.len().min(buf.len());
        buf[..len].copy_from_slice(&bytes[..len]);
        Ok(Received {
            len,
            from,
            segment: None,
            fields: HeaderFields::default(),
            local: None,
        })
    }

    pub(super) fn receive_error(
        &mut self,
        socket: SocketId,
        quote: &mut [u8],
    ) -> Result<DatagramError, HostError> {
        let d = self.datagrams.get_mut(&socket.0).ok_or(HostError::Other)?;
        let (destination, bytes) = d.errors.pop_front().ok_or(HostError::WouldBlock)?;
        let quote_len = bytes.len().min(quote.len());
        quote[..quote_len].copy_from_slice(&bytes[..quote_len]);
        let (icmp_type, code) = if d.v6 { (1, 4) } else { (3, 3) };
        Ok(DatagramError {
            destination,
            offender: Some(destination.ip()),
            kind: DatagramErrorKind::Icmp {
                icmp_type,
                code,
                info: 0,
            },
            quote_len,
        })
    }

    fn echo(&mut self, socket: SocketId, options: SendOptions, payload: &[u8]) {
        let lost = self.rng.chance(50);
        let Some(d) = self.datagrams.get_mut(&socket.0) else {
            self.violation(format!("datagram_send on {socket:?}, which is not open"));
            return;
        };
        if d.v6 != options.to.is_ipv6() {
            self.violation(format!(
                "a datagram to {} over the other family",
                options.to
            ));
            return;
        }
        d.triggered = true;
        let closed = d.kind == DatagramKind::Udp && options.to.port() == CLOSED_PORT;
        if closed && d.errors.len() < DATAGRAM_QUEUE {
            d.errors.push_back((options.to, payload.to_vec()));
        } else if !lost && !closed {
            let size = options.segment.map_or(payload.len(), usize::from).max(1);
            for part in payload.chunks(size) {
                if d.rx.len() < DATAGRAM_QUEUE {
                    let mut echo = part.to_vec();
                    if d.kind == DatagramKind::Ping
                        && let Some(kind) = echo.first_mut()
                    {
                        *kind = if d.v6 { 129 } else { 0 };
                    }
                    d.rx.push_back((options.to, echo));
                }
            }
        }
    }
}
