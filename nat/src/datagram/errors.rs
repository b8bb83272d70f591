//! ICMP errors to containers about datagrams they sent.
//!
//! Theory of operation. An error has one of two origins. Either the packet is at hand and is quoted
//! as it stands ([`Errors::refuse`]); or it is gone, and its start is written anew from what is known
//! of it ([`Errors::report`]): the addresses and ports as the container sent them, and the start of
//! the payload, which the host's error queue gives back (`IP_RECVERR`, ip(7)). That is enough for
//! the container's kernel to find the socket, and for traceroute to know its probe.
//!
//! Invariants.
//! - What the host's kernel says about its loopback is shown under the address by which the container
//!   reached it, as the datagrams are.
//! - Each switch port has its own [`RateLimit`].
//! - An MTU smaller than the protocol allows is raised to what it allows (RFC 1191 section 3,
//!   RFC 8201 section 4).
//!
//! Limits. The hop limit in a rebuilt quote is 1, its UDP checksum 0: neither is known.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use cnet_wire::frame::protocol;
use cnet_wire::icmp::{self, v4, v6};
use cnet_wire::time::Instant;
use cnet_wire::udp::{self, UDP_HEADER_LEN};
use cnet_wire::{Frame, IpHeader, PortId, VnetHeader};

use super::DatagramConfig;
use crate::fragment::IP_OFFSET;
use crate::host::{
    DatagramError, DatagramErrorKind, DatagramKind, HostError, HostSockets, SocketId,
};
use crate::icmp_error::{IcmpErrorKind, RateLimit, emit_icmp_error, may_answer_with_error};
use crate::io::{Env, Io};
use cnet_wire::headers::{IpOut, Link, l4_offset, write_headers};

/// Errors a second for one port, and how many at once; Linux's `icmp_msgs_per_sec` is 1,000 too.
const ERRORS_PER_SECOND: u32 = 1000;
const ERROR_BURST: u32 = 100;
/// Entries taken from a socket's error queue at a time.
const QUEUE_BUDGET: usize = 32;
/// Longest packet that is rebuilt for a quote, as a frame.
const QUOTE_BUFFER: usize = IP_OFFSET + 1280;
/// Bytes of payload asked of the error queue.
const QUOTED_PAYLOAD: usize = 1280 - 48;
/// Smallest MTUs (RFC 791, RFC 8200 section 5).
const MIN_MTU_V4: u32 = 68;
const MIN_MTU_V6: u32 = 1280;
/// The MTU told in IPv4 where none is known: what every host must take (RFC 1122 section 3.3.3).
const UNKNOWN_MTU_V4: u32 = 576;

/// The container's side of a host socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inside {
    pub(super) link: Link,
    /// Address and UDP port, or echo identifier.
    pub(super) container: SocketAddr,
    /// The address by which it last reached the host's loopback.
    pub(super) alias: Option<IpAddr>,
}

/// A datagram that a container sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent<'a> {
    /// Destination as the container knows it.
    pub(super) to: SocketAddr,
    pub(super) hop_limit: u8,
    pub(super) tos: u8,
    /// Start of the payload (for echo: of the ICMP message).
    pub(super) payload: &'a [u8],
    /// Length of the whole payload in bytes.
    pub(super) len: usize,
}

/// What a look at a socket's error queue brought.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drained {
    /// More may be queued.
    pub(super) more: bool,
    /// The MTU of the path, as the host's kernel named it when it last refused a send.
    pub(super) mtu: Option<u32>,
}

/// The ICMP errors of one protocol.
#[derive(Debug)]
pub(super) struct Errors {
    pub(super) config: DatagramConfig,
    kind: DatagramKind,
    limits: BTreeMap<PortId, RateLimit>,
}

impl Errors {
    pub(super) fn new(config: DatagramConfig, kind: DatagramKind) -> Errors {
        Errors {
            config,
            kind,
            limits: BTreeMap::new(),
        }
    }

    pub(super) fn remove_port(&mut self, port: PortId) {
        self.limits.remove(&port);
    }

    fn allow(&mut self, now: Instant, port: PortId) -> bool {
        let new = || RateLimit::new(ERRORS_PER_SECOND, ERROR_BURST);
        self.limits.entry(port).or_insert_with(new).allow(now)
    }

    /// Answers the packet `ip` of `frame` with an error from the gateway. If the port is full the
    /// error is lost, as any packet would be.
    pub(super) fn refuse<E: Env>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, E>,
        link: &Link,
        frame: &Frame<'_>,
        ip: &IpHeader,
        kind: IcmpErrorKind,
    ) {
        let Some(from) = self.config.gateway(ip.src) else {
            return;
        };
        if may_answer_with_error(frame, ip) && self.allow(now, link.port) {
            let quote = frame.ip_packet(ip);
            let _ = emit_icmp_error(io.sink, io.buf, link, from, ip.src, kind, quote);
        }
    }

    /// Tells `inside` what became of a datagram it sent. `from` is who says so, the gateway if
    /// `None`.
    pub(super) fn report<E: Env>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, E>,
        inside: &Inside,
        sent: &Sent<'_>,
        kind: IcmpErrorKind,
        from: Option<IpAddr>,
    ) {
        let to = inside.container.ip();
        let Some(from) = from.or_else(|| self.config.gateway(to)) else {
            return;
        };
        let one_family = sent.to.is_ipv4() == to.is_ipv4() && from.is_ipv4() == to.is_ipv4();
        if !one_family || !self.allow(now, inside.link.port) {
            return;
        }
        let mut buf = [0; QUOTE_BUFFER];
        let end = write_quote(&mut buf, self.kind, inside, sent);
        let quote = &buf[IP_OFFSET..end];
        let _ = emit_icmp_error(io.sink, io.buf, &inside.link, from, to, kind, quote);
    }

    /// Empties the error queue of `socket`, within a budget, and passes on what concerns `inside`.
    /// Without one the errors are lost.
    pub(super) fn drain<E: Env>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, E>,
        socket: SocketId,
        inside: Option<&Inside>,
    ) -> Drained {
        self.drain_for(now, io, socket, |_| inside.copied())
    }

    /// The same, where it depends on a datagram's destination whose it was.
    pub(super) fn drain_for<E: Env>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, E>,
        socket: SocketId,
        inside: impl Fn(IpAddr) -> Option<Inside>,
    ) -> Drained {
        let mut drained = Drained::default();
        let mut payload = [0; QUOTED_PAYLOAD];
        for _ in 0..QUEUE_BUDGET {
            let Ok(error) = io.hosts.datagram_error(socket, &mut payload) else {
                return drained;
            };
            if let DatagramErrorKind::Local(HostError::TooBig, mtu) = error.kind {
                // Its sender was refused at once, knows more of it and reports it.
                drained.mtu = Some(mtu);
            } else if let Some(inside) = inside(error.destination.ip().to_canonical()) {
                let payload = &payload[..error.quote_len.min(QUOTED_PAYLOAD)];
                self.pass_on(now, io, &inside, &error, payload);
            }
        }
        drained.more = true;
        drained
    }

    fn pass_on<E: Env>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, E>,
        inside: &Inside,
        error: &DatagramError,
        payload: &[u8],
    ) {
        let known = match self.kind {
            DatagramKind::Udp => error.destination.port() != 0,
            DatagramKind::Ping => payload.len() >= 8,
        };
        let kind = match error.kind {
            DatagramErrorKind::Icmp {
                icmp_type,
                code,
                info,
            } => received_kind(inside.container.is_ipv6(), icmp_type, code, info),
            DatagramErrorKind::Local(e, _) => local_kind(e),
        };
        let to = self.config.shown(error.destination.ip(), inside.alias);
        let (true, Some(kind), Some(to)) = (known, kind, to) else {
            return;
        };
        let from = error
            .offender
            .and_then(|o| self.config.shown(o, inside.alias));
        let sent = Sent {
            to: SocketAddr::new(to, error.destination.port()),
            hop_limit: 1,
            tos: 0,
            payload,
            len: payload.len(),
        };
        self.report(now, io, inside, &sent, kind, from);
    }
}

/// The error that tells a container of a failed send; `None` where it would not know it.
pub(super) fn local_kind(e: HostError) -> Option<IcmpErrorKind> {
    match e {
        HostError::Refused => Some(IcmpErrorKind::PortUnreachable),
        HostError::NetUnreachable => Some(IcmpErrorKind::NetUnreachable),
        HostError::HostUnreachable | HostError::TimedOut => Some(IcmpErrorKind::HostUnreachable),
        HostError::Prohibited => Some(IcmpErrorKind::Prohibited),
        _ => None,
    }
}

/// The error for a datagram over the path's MTU, which the host's kernel gave as `mtu` if it did.
pub(super) fn too_big(v6: bool, mtu: Option<u32>) -> IcmpErrorKind {
    let mtu = mtu.filter(|&mtu| mtu != 0);
    IcmpErrorKind::PacketTooBig {
        mtu: match v6 {
            true => mtu.unwrap_or(MIN_MTU_V6).max(MIN_MTU_V6),
            false => mtu.unwrap_or(UNKNOWN_MTU_V4).max(MIN_MTU_V4),
        },
    }
}

/// The error that says what a received ICMP message said; `None` if that is not passed on
/// (RFC 5508 REQ-3 to REQ-5: errors are, redirects and queries are not).
fn received_kind(is_v6: bool, icmp_type: u8, code: u8, info: u32) -> Option<IcmpErrorKind> {
    match (is_v6, icmp_type, code) {
        (false, v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED) | (true, v6::PACKET_TOO_BIG, _) => {
            Some(too_big(is_v6, Some(info)))
        }
        (false, v4::UNREACHABLE | v4::TIME_EXCEEDED | v4::PARAMETER_PROBLEM, _)
        | (true, v6::UNREACHABLE | v6::TIME_EXCEEDED | v6::PARAMETER_PROBLEM, _) => {
            Some(IcmpErrorKind::Raw {
                icmp_type,
                code,
                info: 0,
            })
        }
        _ => None,
    }
}

/// Writes the start of the packet `sent` behind the place of an Ethernet header; returns its end.
fn write_quote(
    buf: &mut [u8; QUOTE_BUFFER],
    kind: DatagramKind,
    inside: &Inside,
    sent: &Sent<'_>,
) -> usize {
    let v6 = sent.to.is_ipv6();
    let at = l4_offset(v6);
    let (protocol, header) = match kind {
        DatagramKind::Udp => (protocol::UDP, UDP_HEADER_LEN),
        DatagramKind::Ping if v6 => (protocol::ICMPV6, 0),
        DatagramKind::Ping => (protocol::ICMP, 0),
    };
    let n = sent.payload.len().min(QUOTE_BUFFER - at - header);
    buf[at + header..at + header + n].copy_from_slice(&sent.payload[..n]);
    let l4 = &mut buf[at..at + header + n];
    let port = inside.container.port();
    match kind {
        DatagramKind::Udp => {
            let ports = [port, sent.to.port()];
            l4[..header].copy_from_slice(&udp::header(ports, header + sent.len, 0));
        }
        // The kernel sent it with an identifier of its own.
        DatagramKind::Ping if n >= icmp::HEADER_LEN => icmp::replace_identifier(l4, port),
        DatagramKind::Ping => {}
    }
    let ip = IpOut {
        src: inside.container.ip(),
        dst: sent.to.ip(),
        protocol,
        hop_limit: sent.hop_limit,
        tos: sent.tos,
    };
    let vnet = VnetHeader::default();
    write_headers(buf, vnet, &inside.link, &ip, header + sent.len);
    at + header + n
}
