//! The host's sockets: [`HostSockets`] by system calls.
//!
//! Sockets stand in a slab, and every one is registered with the worker's epoll once, edge
//! triggered, for everything, under the token of its flow. Closing a socket takes it out of the
//! epoll set; events that were already fetched are caught by the token's generation.
//!
//! Where the kernel has `SO_PEEK_OFF` for TCP (6.9, IPv6 later) a peek starts where the last one
//! ended; elsewhere the bytes before it are peeked again into a scratch buffer. Which of the two is
//! found out at start, never by version.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use cnet_nat::host::{
    DatagramError, DatagramErrorKind, DatagramKind, DnsQuery, HeaderFields, HostError, HostSockets,
    QueueFull, Received, SendOptions, SocketId, TRACED_HOP_LIMIT, Token,
};
use cnet_tap::socket as sys;
use cnet_wire::PortId;
use cnet_wire::time::Duration;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};

use crate::dns_queue::DnsOutlet;

use super::errno::{from_connect, from_errno, from_io, from_send};
use super::features::Features;
use super::host_socket::{HostSocket, SentWith};
use super::local_ports::LocalPorts;
use super::receive_batch::{ReceiveBatch, fields};

/// Bytes peeked again in one piece where `SO_PEEK_OFF` is missing.
const SCRATCH_LEN: usize = 128 * 1024;
/// Receive buffer asked for UDP sockets, in bytes; the kernel caps it at `net.core.rmem_max`.
const UDP_RECEIVE_BUFFER: usize = 4 << 20;

/// All host sockets of one worker.
#[derive(Debug)]
pub(crate) struct HostTable {
    epoll: Rc<OwnedFd>,
    sockets: Vec<Option<HostSocket>>,
    free: Vec<u32>,
    features: Features,
    scratch: Box<[u8]>,
    batch: ReceiveBatch,
    /// Source addresses to send from, by family.
    outbound_v4: Option<Ipv4Addr>,
    outbound_v6: Option<Ipv6Addr>,
    /// What UDP mappings may take by its number.
    local_ports: LocalPorts,
    /// Where the gateway's DNS queries go; further workers have none.
    queries: Option<DnsOutlet>,
    /// That the host refuses ping sockets was told.
    told_of_ping: bool,
    /// What tells where containers' programs receive datagrams, by port and addresses.
    diagnostics: Vec<(PortId, Vec<IpAddr>, Rc<sys::Diagnostics>)>,
}

impl HostTable {
    /// An empty table whose sockets report to `epoll`. UDP mappings may take one of `local_ports` by its
    /// number. `queries` takes the gateway's DNS queries.
    pub(crate) fn new(
        epoll: Rc<OwnedFd>,
        (outbound_v4, outbound_v6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
        local_ports: LocalPorts,
        queries: Option<DnsOutlet>,
    ) -> HostTable {
        HostTable {
            epoll,
            sockets: Vec::new(),
            free: Vec::new(),
            features: Features::detect(),
            // Zeroed pages that are not touched take no memory.
            scratch: vec![0; SCRATCH_LEN].into_boxed_slice(),
            batch: ReceiveBatch::new(),
            outbound_v4,
            outbound_v6,
            local_ports,
            queries,
            told_of_ping: false,
            diagnostics: Vec::new(),
        }
    }

    /// Asks `diagnostics` where programs in the container with `addresses` receive datagrams.
    pub(crate) fn use_diagnostics(
        &mut self,
        port: PortId,
        addresses: Vec<IpAddr>,
        diagnostics: Rc<sys::Diagnostics>,
    ) {
        self.diagnostics.retain(|(other, ..)| *other != port);
        self.diagnostics.push((port, addresses, diagnostics));
    }

    /// The container of `port` is gone, and its DNS queries need no answer.
    pub(crate) fn remove_port(&mut self, port: PortId) {
        self.diagnostics.retain(|(other, ..)| *other != port);
        if let Some(queries) = &self.queries {
            queries.remove_port(port);
        }
    }

    /// Why there is no ping socket; told once where it is the host's rule.
    fn ping_refused(&mut self, error: &io::Error) -> HostError {
        let reason = from_io(error);
        let is_rule = matches!(reason, HostError::Prohibited | HostError::Unsupported);
        if is_rule && !std::mem::replace(&mut self.told_of_ping, true) {
            tracing::warn!(
                %error,
                "the host refuses ping sockets: containers cannot ping the world until net.ipv4.ping_group_range holds the user's group"
            );
        }
        reason
    }

    /// Takes a socket into the table without watching it. `v6` is its family; `udp` tells UDP
    /// sockets from others.
    pub(crate) fn insert(&mut self, fd: OwnedFd, v6: bool, udp: bool) -> SocketId {
        let socket = HostSocket {
            fd,
            v6,
            udp,
            tcp: false,
            peek_off: None,
            sent_with: [SentWith::default(); 2],
            dont_fragment: false,
            traced: false,
        };
        match self.free.pop() {
            Some(i) => {
                self.sockets[i as usize] = Some(socket);
                SocketId(i)
            }
            None => {
                self.sockets.push(Some(socket));
                SocketId((self.sockets.len() - 1) as u32)
            }
        }
    }

    /// Has the socket's readiness reported under `token`, edge triggered.
    pub(crate) fn watch(&mut self, socket: SocketId, token: Token) -> Result<(), HostError> {
        let fd = self.get(socket)?.fd.as_fd();
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::PRI
            | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(token.to_bits());
        epoll::add(&*self.epoll, fd, data, flags).map_err(from_errno)
    }

    fn get(&self, socket: SocketId) -> Result<&HostSocket, HostError> {
        self.sockets
            .get(socket.0 as usize)
            .and_then(Option::as_ref)
            .ok_or(HostError::Other)
    }

    fn get_mut(&mut self, socket: SocketId) -> Result<&mut HostSocket, HostError> {
        self.sockets
            .get_mut(socket.0 as usize)
            .and_then(Option::as_mut)
            .ok_or(HostError::Other)
    }

    fn take(&mut self, socket: SocketId) -> Option<HostSocket> {
        let taken = self.sockets.get_mut(socket.0 as usize)?.take()?;
        self.free.push(socket.0);
        self.batch.forget(socket);
        // A burst of connections must not leave its table behind.
        if self.free.len() == self.sockets.len() && self.sockets.capacity() > 1024 {
            self.sockets = Vec::new();
            self.free = Vec::new();
        }
        Some(taken)
    }

    fn prepare_tcp(&mut self, socket: SocketId) -> Result<(), HostError> {
        let (peek_off_v4, peek_off_v6) = (self.features.peek_off_v4, self.features.peek_off_v6);
        let s = self.get_mut(socket)?;
        // Whatever ends this process, a stream that it did not end in order is not to look whole.
        s.tcp = sys::reset_on_close(&s.fd).is_ok();
        // These only better a connection that works without.
        let _ = sockopt::set_tcp_nodelay(&s.fd, true);
        let _ = sockopt::set_socket_keepalive(&s.fd, true);
        // Urgent bytes are bytes like others; left out of line they would tear the stream.
        let _ = sockopt::set_socket_oobinline(&s.fd, true);
        if (if s.v6 { peek_off_v6 } else { peek_off_v4 }) && sys::set_peek_off(&s.fd, 0).is_ok() {
            s.peek_off = Some(0);
        }
        Ok(())
    }

    /// The address to send to `to` from, if there is one for its family.
    fn outbound(&self, to: IpAddr) -> Option<IpAddr> {
        match to {
            IpAddr::V4(_) => self.outbound_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.outbound_v6.map(IpAddr::V6),
        }
    }

    /// Binds a socket to a port of the host's, to send to `to` from; `false` if that cannot be had.
    fn bind_port(&self, fd: &OwnedFd, port: u16, to: IpAddr) -> bool {
        let any: IpAddr = match to {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let source = self.outbound(to).unwrap_or(any);
        rustix::net::bind(fd, &SocketAddr::new(source, port)).is_ok()
    }

    fn bind_outbound(&self, fd: &OwnedFd, to: IpAddr) -> Result<(), HostError> {
        // Towards the host's loopback as well: what listens there sees whose connection it is.
        let Some(source) = self.outbound(to) else {
            return Ok(());
        };
        // Without it the kernel would search a free port now, for every destination at once.
        let _ = sys::bind_address_no_port(fd);
        rustix::net::bind(fd, &SocketAddr::new(source, 0)).map_err(|errno| match errno {
            // The host does not have the address: nothing can be reached from there.
            Errno::ADDRNOTAVAIL => HostError::NetUnreachable,
            other => from_errno(other),
        })
    }
}

fn open(to: IpAddr, kind: SocketType) -> Result<OwnedFd, HostError> {
    let family = match to {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(family, kind, flags, None).map_err(from_errno)
}

impl HostSockets for HostTable {
    fn ask_dns(&mut self, query: DnsQuery) -> Result<(), QueueFull> {
        let queries = self.queries.as_ref().ok_or(QueueFull)?;
        queries.push(query)
    }

    fn tcp_connect(
        &mut self,
        token: Token,
        from: Option<u16>,
        to: SocketAddr,
        fields: HeaderFields,
    ) -> Result<SocketId, HostError> {
        let fd = open(to.ip(), SocketType::STREAM)?;
        // A port may serve connections to several ends, and those of one that is in TIME-WAIT.
        let kept = from.is_some_and(|port| {
            sockopt::set_socket_reuseaddr(&fd, true).is_ok() && self.bind_port(&fd, port, to.ip())
        });
        if !kept {
            self.bind_outbound(&fd, to.ip())?;
        }
        let mut in_use = false;
        let socket = self.insert(fd, to.is_ipv6(), false);
        let connected = self.prepare_tcp(socket).and_then(|()| {
            let s = self.get_mut(socket)?;
            s.set_fields(fields);
            if fields.hop_limit < TRACED_HOP_LIMIT {
                s.traced = sys::enable_recverr(&s.fd, s.v6).is_ok();
            }
            let connected = rustix::net::connect(&self.get(socket)?.fd, &to);
            // Another connection between these ends.
            in_use = kept && connected == Err(Errno::ADDRNOTAVAIL);
            match connected.map_err(|errno| from_connect(errno, to.ip())) {
                Ok(()) | Err(HostError::WouldBlock) => self.watch(socket, token),
                Err(e) => Err(e),
            }
        });
        if let Err(e) = connected {
            self.take(socket);
            return match in_use {
                true => self.tcp_connect(token, None, to, fields),
                false => Err(e),
            };
        }
        Ok(socket)
    }

    fn tcp_adopt(&mut self, token: Token, socket: SocketId) -> Result<HeaderFields, HostError> {
        self.prepare_tcp(socket)?;
        self.watch(socket, token)?;
        let syn = sys::saved_syn(&self.get(socket)?.fd);
        let fields = syn.map(|(hop_limit, tos)| HeaderFields { hop_limit, tos });
        Ok(fields.unwrap_or_default())
    }

    fn tcp_set_fields(&mut self, socket: SocketId, fields: HeaderFields) {
        if let Ok(s) = self.get_mut(socket) {
            s.set_fields(fields);
        }
    }

    fn tcp_unacknowledged(&mut self, socket: SocketId) -> usize {
        let s = self.get(socket).ok();
        s.map_or(0, |s| sys::unacknowledged(&s.fd).unwrap_or(0))
    }

    fn tcp_probe(&mut self, socket: SocketId) {
        if let Ok(s) = self.get(socket) {
            // Without it the container is answered for a far end that may be gone.
            let _ = sys::probe_far_end(&s.fd);
        }
    }

    fn tcp_silence(&mut self, socket: SocketId) -> Duration {
        let info = self.get(socket).map(|s| sys::tcp_info(&s.fd));
        let silence = info.map(|info| info.map_or(0, |info| info.last_ack_recv_ms));
        Duration::from_millis(silence.unwrap_or(0).into())
    }

    fn tcp_connected(&mut self, socket: SocketId) -> Result<(), HostError> {
        let s = self.get_mut(socket)?;
        match sys::so_error(&s.fd) {
            Ok(None) => {
                if std::mem::take(&mut s.traced) {
                    // On an established connection it would turn every ICMP error into its end.
                    let _ = sys::disable_recverr(&s.fd, s.v6);
                }
                Ok(())
            }
            Ok(Some(errno)) => Err(from_errno(Errno::from_raw_os_error(errno))),
            Err(e) => Err(from_io(&e)),
        }
    }

    fn tcp_send(&mut self, socket: SocketId, data: &[u8]) -> Result<usize, HostError> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::send(&self.get(socket)?.fd, data, flags).map_err(from_errno)
    }

    fn tcp_peek(
        &mut self,
        socket: SocketId,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<usize, HostError> {
        let s = self
            .sockets
            .get_mut(socket.0 as usize)
            .and_then(Option::as_mut)
            .ok_or(HostError::Other)?;
        let peeked = match s.peek_off {
            Some(at) => {
                if at != offset {
                    let kernel = i32::try_from(offset).map_err(|_| HostError::Other)?;
                    sys::set_peek_off(&s.fd, kernel).map_err(|e| from_io(&e))?;
                }
                let peeked = sys::recv_peek(&s.fd, buf);
                s.peek_off = Some(offset + peeked.as_ref().map_or(0, |n| *n));
                peeked
            }
            None => sys::peek_skipping(&s.fd, offset, &mut self.scratch, buf),
        };
        peeked.map_err(|e| from_io(&e))
    }

    fn tcp_discard(&mut self, socket: SocketId, mut n: usize) -> Result<(), HostError> {
        let s = self.get_mut(socket)?;
        while n > 0 {
            match sys::recv_discard(&s.fd, n) {
                // The stream ended before what was peeked: cannot be, but must not loop.
                Ok(0) => return Err(HostError::Other),
                Ok(done) => {
                    n -= done.min(n);
                    s.peek_off = s.peek_off.map(|at| at.saturating_sub(done));
                }
                Err(e) => return Err(from_io(&e)),
            }
        }
        Ok(())
    }

    fn tcp_shutdown(&mut self, socket: SocketId) {
        if let Ok(s) = self.get(socket) {
            // A connection that is gone already reports its error by readiness.
            let _ = rustix::net::shutdown(&s.fd, rustix::net::Shutdown::Write);
        }
    }

    fn tcp_reset(&mut self, socket: SocketId) {
        if let Some(s) = self.take(socket)
            && !s.tcp
        {
            // Without it the far end gets a FIN, which is all that can be lost.
            let _ = sys::reset_on_close(&s.fd);
        }
    }

    fn datagram_open(
        &mut self,
        token: Token,
        kind: DatagramKind,
        container: SocketAddr,
    ) -> Result<SocketId, HostError> {
        let (v6, port) = (container.is_ipv6(), container.port());
        let fd = match kind {
            DatagramKind::Udp => open(container.ip(), SocketType::DGRAM)?,
            DatagramKind::Ping => sys::ping_socket(v6).map_err(|e| self.ping_refused(&e))?,
        };
        if v6 {
            // IPv4 has sockets of its own.
            let _ = sockopt::set_ipv6_v6only(&fd, true);
        }
        self.prepare_datagram(&fd, kind, v6)?;
        let may_keep = kind == DatagramKind::Udp && self.local_ports.contains(port);
        if !(may_keep && self.bind_port(&fd, port, container.ip())) {
            self.bind_outbound(&fd, container.ip())?;
        }
        let socket = self.insert(fd, v6, kind == DatagramKind::Udp);
        if let Err(e) = self.watch(socket, token) {
            self.take(socket);
            return Err(e);
        }
        Ok(socket)
    }

    fn datagram_takes(&mut self, socket: SocketId, port: u16) -> bool {
        let at = self.get(socket).map(|s| rustix::net::getsockname(&s.fd));
        let Ok(Ok(at)) = at else { return false };
        SocketAddr::try_from(at).is_ok_and(|at| at.port() == port)
    }

    fn datagram_send(
        &mut self,
        socket: SocketId,
        options: SendOptions,
        payload: &[u8],
    ) -> Result<(), HostError> {
        let s = self.get_mut(socket)?;
        s.apply(&options)?;
        let pieces = [io::IoSlice::new(payload)];
        let details = sys::SendOptions {
            segment: options.segment,
            source: options.source,
            ..sys::SendOptions::default()
        };
        let send = || sys::send_datagram_with(&s.fd, Some(options.to), &pieces, details);
        let mut sent = send();
        if let Err(e) = &sent
            && matches!(
                from_io(e),
                HostError::Refused | HostError::HostUnreachable | HostError::NetUnreachable
            )
        {
            // Possibly the pending error of an earlier datagram, which is reported once.
            sent = send();
        }
        sent.map(|_| ()).map_err(|e| match options.segment {
            None => from_send(&e, options.to, s.udp),
            // Why segments are not taken, datagrams one by one find out.
            Some(_) => from_io(&e),
        })
    }

    fn datagram_receive(
        &mut self,
        socket: SocketId,
        buf: &mut [u8],
    ) -> Result<Received, HostError> {
        let HostTable { sockets, batch, .. } = self;
        let s = sockets
            .get(socket.0 as usize)
            .and_then(Option::as_ref)
            .ok_or(HostError::Other)?;
        if s.udp {
            return batch.receive(socket, s.fd.as_fd(), buf);
        }
        let d = sys::recv_datagram(&s.fd, buf).map_err(|e| from_io(&e))?;
        Ok(Received {
            len: d.len,
            from: d.from,
            segment: None,
            fields: fields(&d),
            local: None,
        })
    }

    fn datagram_error(
        &mut self,
        socket: SocketId,
        quote: &mut [u8],
    ) -> Result<DatagramError, HostError> {
        let s = self.get(socket)?;
        let report = match sys::recv_error(&s.fd, quote) {
            Ok(Some(report)) => report,
            Ok(None) => {
                // The queue is empty; what is left is the socket's own pending error.
                let _ = sys::so_error(&s.fd);
                return Err(HostError::WouldBlock);
            }
            Err(e) => return Err(from_io(&e)),
        };
        let kind = match report.origin {
            sys::ErrorOrigin::Icmp4 | sys::ErrorOrigin::Icmp6 => DatagramErrorKind::Icmp {
                icmp_type: report.icmp_type,
                code: report.icmp_code,
                info: report.info,
            },
            _ => DatagramErrorKind::Local(
                from_errno(Errno::from_raw_os_error(report.errno)),
                report.info,
            ),
        };
        Ok(DatagramError {
            destination: report.destination,
            offender: report.offender,
            kind,
            quote_len: report.quote_len,
        })
    }

    fn udp_is_bound(&mut self, container: SocketAddr) -> Option<bool> {
        let has = |addresses: &[IpAddr]| addresses.contains(&container.ip());
        let mut known = self.diagnostics.iter();
        let (.., diagnostics) = known.find(|(_, addresses, _)| has(addresses))?;
        diagnostics.udp_is_bound(container).ok()
    }

    fn close(&mut self, socket: SocketId) {
        if let Some(s) = self.take(socket)
            && s.tcp
        {
            // Both directions have ended, or all is handed to the kernel, which delivers it.
            let _ = sys::deliver_on_close(&s.fd);
        }
    }
}

impl HostTable {
    /// Options every datagram socket gets, a published one too.
    pub(crate) fn prepare_datagram(
        &self,
        fd: &OwnedFd,
        kind: DatagramKind,
        v6: bool,
    ) -> Result<(), HostError> {
        sys::enable_recverr(fd, v6).map_err(|e| from_io(&e))?;
        sys::set_dont_fragment(fd, v6, false).map_err(|e| from_io(&e))?;
        // Containers see what the packets said; without it, what is usual.
        let _ = sys::receive_fields(fd, v6);
        // The rest only makes it faster.
        let _ = sockopt::set_socket_recv_buffer_size(fd, UDP_RECEIVE_BUFFER);
        if kind == DatagramKind::Udp && self.features.udp_gro {
            let _ = sys::set_udp_gro(fd, true);
        }
        Ok(())
    }
}
