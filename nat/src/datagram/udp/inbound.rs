//! Datagrams from the host's sockets to containers.
//!
//! Theory of operation. Datagrams are received straight behind prepared headers. A batch (UDP_GRO)
//! becomes one super-frame where the ports take such, else each datagram gets its headers written
//! before it, over its predecessor, which has been sent by then. The checksum is left to the
//! receiver's side (NEEDS_CSUM), except in fragments.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::frame::protocol;
use cnet_wire::udp::{UDP_HEADER_LEN, write_summed, write_unsummed};
use cnet_wire::{DropReason, FrameSink, PortFull};

use crate::datagram::next_hop_limit;
use crate::datagram::relay::Relay;
use crate::fragment::IP_OFFSET;
use crate::fragment::emit_in_place;
use crate::host::Received;
use crate::io::{Env, Io};
use cnet_wire::headers::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpOut, Link, l4_offset, max_packet};

/// The sender of what was `received`, as the container at `to` is shown it.
pub(super) fn shown_to(
    relay: &Relay,
    received: &Received,
    alias: Option<IpAddr>,
    to: SocketAddr,
) -> Result<SocketAddr, DropReason> {
    let from = relay.config().shown(received.from.ip(), alias);
    let from = from.ok_or(DropReason::MartianSource)?;
    if from.is_ipv4() != to.is_ipv4() {
        return Err(DropReason::NotServed);
    }
    Ok(SocketAddr::new(from, received.from.port()))
}

/// Sends what was received, which stands behind the room for headers in `io.buf`, to a container.
pub(super) fn deliver<E: Env>(
    relay: &mut Relay,
    io: &mut Io<'_, E>,
    link: &Link,
    src: SocketAddr,
    dst: SocketAddr,
    received: &Received,
) -> Result<(), DropReason> {
    let v6 = dst.is_ipv6();
    let header = UDP_HEADER_LEN + if v6 { IPV6_HEADER_LEN } else { IPV4_HEADER_LEN };
    let (mtu, len) = (relay.config().mtu, received.len);
    // The buffer holds one byte more than the longest packet, so this is seen.
    if header + len > max_packet(v6) {
        return Err(DropReason::FrameTooLong);
    }
    let outbound = Outbound {
        link,
        ip: IpOut {
            src: src.ip(),
            dst: dst.ip(),
            protocol: protocol::UDP,
            hop_limit: next_hop_limit(received.fields.hop_limit),
            tos: received.fields.tos,
        },
        ports: [src.port(), dst.port()],
        mtu,
    };
    let size = received
        .segment
        .map_or(len, usize::from)
        .clamp(1, len.max(1));
    if size < len && relay.config().uso && io.sink.takes_uso(link.port) && header + size <= mtu {
        // What the port does not take, the sink counts.
        let _ = outbound.emit_unsummed(io.sink, io.buf, len, Some(size as u16));
        return Ok(());
    }
    let mut start = 0;
    loop {
        let n = size.min(len - start);
        let id = relay.fragment_id();
        let sent = outbound.emit(io.sink, &mut io.buf[start..], n, id);
        start += n;
        // A full port would not take the rest of the run either.
        if start >= len || sent.is_err() {
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
        if at - IP_OFFSET + UDP_HEADER_LEN + len <= self.mtu {
            return self.emit_unsummed(sink, buf, len, None);
        }
        let (src, dst) = (self.ip.src, self.ip.dst);
        let l4 = &mut buf[at..at + UDP_HEADER_LEN + len];
        let [src_port, dst_port] = self.ports;
        write_summed(l4, (src, src_port).into(), (dst, dst_port).into());
        let l4_len = l4.len();
        emit_in_place(sink, buf, self.link, &self.ip, self.mtu, id, l4_len)
    }

    /// Sends a frame whose checksum the receiver completes, with `segment` a super-frame.
    fn emit_unsummed(
        &self,
        sink: &mut impl FrameSink,
        buf: &mut [u8],
        len: usize,
        segment: Option<u16>,
    ) -> Result<(), PortFull> {
        let end = write_unsummed(buf, self.link, &self.ip, self.ports, len, segment);
        sink.emit(self.link.port, &buf[..end])
    }
}
