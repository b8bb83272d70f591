//! Datagrams from the host's sockets to containers.
//!
//! Theory of operation. Datagrams are received straight behind prepared headers. A batch (UDP_GRO)
//! becomes one super-frame where the ports take such, else each datagram gets its headers written
//! before it, over its predecessor, which has been sent by then. The checksum is left to the
//! receiver's side (NEEDS_CSUM), except in fragments.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::frame::protocol;
use cnet_wire::vnet::{F_NEEDS_CSUM, GSO_NONE, GSO_UDP_L4, VNET_HDR_LEN};
use cnet_wire::{DropReason, FrameSink, PortFull, VnetHeader, checksum};

use super::HEADER_LEN;
use crate::datagram::session::{Engine, HOP_LIMIT};
use crate::fragment::IP_OFFSET;
use crate::fragment::emit_in_place;
use crate::host::Received;
use crate::io::{Env, Io};
use cnet_wire::headers::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpOut, Link, MAX_IP_PACKET, l4_offset, write_headers,
};

/// The sender of what was `received`, as the container at `to` is shown it.
pub(super) fn shown_to(
    engine: &Engine,
    received: &Received,
    alias: Option<IpAddr>,
    to: SocketAddr,
) -> Result<SocketAddr, DropReason> {
    let from = engine.config().shown(received.from.ip(), alias);
    let from = from.ok_or(DropReason::MartianSource)?;
    if from.is_ipv4() != to.is_ipv4() {
        return Err(DropReason::NotServed);
    }
    Ok(SocketAddr::new(from, received.from.port()))
}

/// Sends what was received, which stands behind the room for headers in `io.buf`, to a container.
pub(super) fn deliver<E: Env>(
    engine: &mut Engine,
    io: &mut Io<'_, E>,
    link: &Link,
    src: SocketAddr,
    dst: SocketAddr,
    received: &Received,
) -> Result<(), DropReason> {
    let v6 = dst.is_ipv6();
    let header = HEADER_LEN + if v6 { IPV6_HEADER_LEN } else { IPV4_HEADER_LEN };
    let (mtu, len) = (engine.config().mtu, received.len);
    // The buffer holds one byte more than the longest packet, so this is seen.
    if header + len > MAX_IP_PACKET {
        return Err(DropReason::FrameTooLong);
    }
    let outbound = Outbound {
        link,
        ip: IpOut {
            src: src.ip(),
            dst: dst.ip(),
            protocol: protocol::UDP,
            hop_limit: HOP_LIMIT,
            tos: received.tos,
        },
        ports: [src.port(), dst.port()],
        mtu,
    };
    let size = received
        .segment
        .map_or(len, usize::from)
        .clamp(1, len.max(1));
    if size < len && engine.config().uso && io.sink.takes_uso(link.port) && header + size <= mtu {
        let sent = outbound.emit_unsummed(io.sink, io.buf, len, Some(size));
        return sent.map_err(|PortFull| DropReason::PortFull);
    }
    let mut start = 0;
    loop {
        let n = size.min(len - start);
        let id = engine.fragment_id();
        let sent = outbound.emit(io.sink, &mut io.buf[start..], n, id);
        sent.map_err(|PortFull| DropReason::PortFull)?;
        start += n;
        if start >= len {
            return Ok(());
        }
    }
}

/// A datagram on its way to a container.
struct Outbound<'a> {
    link: &'a Link,
    ip: IpOut,
    ports: [u16; 2],
    mtu: usize,
}

impl Outbound<'_> {
    /// Sends one datagram of `len` bytes of payload, which stands in its place in `buf`.
    fn emit(
        &self,
        sink: &mut impl FrameSink,
        buf: &mut [u8],
        len: usize,
        id: u32,
    ) -> Result<(), PortFull> {
        let at = l4_offset(self.ip.src.is_ipv6());
        if at - IP_OFFSET + HEADER_LEN + len <= self.mtu {
            return self.emit_unsummed(sink, buf, len, None);
        }
        let pseudo = self.write_udp(buf, len);
        let l4 = &mut buf[at..at + HEADER_LEN + len];
        l4[6..8].copy_from_slice(&[0, 0]);
        // 0 would mean that there is no checksum (RFC 768).
        let sum = match checksum::finish(pseudo, l4) {
            0 => 0xffff,
            sum => sum,
        };
        l4[6..8].copy_from_slice(&sum.to_be_bytes());
        let l4_len = HEADER_LEN + len;
        emit_in_place(sink, buf, self.link, &self.ip, self.mtu, id, l4_len)
    }

    /// Sends a frame whose checksum is for the receiver's side to fill in, with `segment` a
    /// super-frame.
    fn emit_unsummed(
        &self,
        sink: &mut impl FrameSink,
        buf: &mut [u8],
        len: usize,
        segment: Option<usize>,
    ) -> Result<(), PortFull> {
        let l4 = l4_offset(self.ip.src.is_ipv6()) - VNET_HDR_LEN;
        self.write_udp(buf, len);
        let vnet = VnetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: if segment.is_some() {
                GSO_UDP_L4
            } else {
                GSO_NONE
            },
            hdr_len: (l4 + HEADER_LEN) as u16,
            gso_size: segment.unwrap_or(0) as u16,
            csum_start: l4 as u16,
            csum_offset: 6,
        };
        let end = write_headers(buf, vnet, self.link, &self.ip, HEADER_LEN + len);
        sink.emit(self.link.port, &buf[..end])
    }

    /// Writes the UDP header with the sum of the pseudo-header as its checksum; returns that sum.
    fn write_udp(&self, buf: &mut [u8], len: usize) -> u64 {
        let l4_len = HEADER_LEN + len;
        let IpOut { src, dst, .. } = self.ip;
        let pseudo = checksum::pseudo_header(src, dst, protocol::UDP, l4_len as u32);
        let udp = &mut buf[l4_offset(src.is_ipv6())..];
        udp[0..2].copy_from_slice(&self.ports[0].to_be_bytes());
        udp[2..4].copy_from_slice(&self.ports[1].to_be_bytes());
        udp[4..6].copy_from_slice(&(l4_len as u16).to_be_bytes());
        udp[6..8].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
        pseudo
    }
}
