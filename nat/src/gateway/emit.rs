//! Frames from the gateway to a port, built in the frame buffer of the core.
//!
//! Checksums are always real: the messages are small, and an echo reply may leave in fragments,
//! which the container's kernel could not complete.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::arp::{ARP_LEN, ArpPacket};
use cnet_wire::frame::{ETHERTYPE_ARP, protocol};
use cnet_wire::headers::{IpOut, Link, l4_offset, write_link_header};
use cnet_wire::icmp::IcmpMessage;
use cnet_wire::udp::{UDP_HEADER_LEN, write_summed};
use cnet_wire::vnet::VnetHeader;
use cnet_wire::{DropReason, FrameSink, MacAddr, PortId};

use crate::fragment::emit_in_place;
use crate::io::{Env, Io};

/// TTL and hop limit of what the gateway sends, but for NDP.
pub(super) const HOP_LIMIT: u8 = 64;

/// Builds and sends the gateway's frames.
pub(super) struct Emitter {
    pub(super) mac: MacAddr,
    mtu: usize,
    /// Identification of the last packet; it matters where the packet is fragmented.
    id: u32,
}

impl Emitter {
    pub(super) fn new(mac: MacAddr, mtu: usize, seed: u64) -> Emitter {
        Emitter {
            mac,
            mtu,
            id: seed as u32,
        }
    }

    /// The way to the station `mac` on `port`.
    pub(super) fn link(&self, port: PortId, mac: MacAddr) -> Link {
        Link {
            port,
            gateway_mac: self.mac,
            container_mac: mac,
        }
    }

    /// Sends an ARP message.
    pub(super) fn arp(
        &self,
        io: &mut Io<'_, impl Env>,
        link: &Link,
        arp: &ArpPacket,
    ) -> Result<(), DropReason> {
        let start = write_link_header(io.buf, VnetHeader::default(), link, ETHERTYPE_ARP);
        let body = io.buf[start..].first_chunk_mut::<ARP_LEN>();
        arp.write(body.ok_or(DropReason::FrameTooLong)?);
        emit(io, link, start + ARP_LEN);
        Ok(())
    }

    /// Sends a UDP datagram. `src` and `dst` are of one family.
    pub(super) fn udp(
        &mut self,
        io: &mut Io<'_, impl Env>,
        link: &Link,
        (src, dst): (SocketAddr, SocketAddr),
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let len = UDP_HEADER_LEN + payload.len();
        let l4 = room(io.buf, src.is_ipv6(), len)?;
        l4[UDP_HEADER_LEN..].copy_from_slice(payload);
        write_summed(l4, src, dst);
        let ip = IpOut {
            src: src.ip(),
            dst: dst.ip(),
            protocol: protocol::UDP,
            hop_limit: HOP_LIMIT,
            tos: 0,
        };
        self.l4(io, link, &ip, len);
        Ok(())
    }

    /// Sends an ICMP or ICMPv6 message. It is fragmented if it must be.
    pub(super) fn icmp(
        &mut self,
        io: &mut Io<'_, impl Env>,
        link: &Link,
        (src, dst): (IpAddr, IpAddr),
        hop_limit: u8,
        message: &IcmpMessage<'_>,
    ) -> Result<(), DropReason> {
        let v6 = src.is_ipv6();
        let len = message.wire_len();
        message.write(room(io.buf, v6, len)?, src, dst);
        let ip = IpOut {
            src,
            dst,
            protocol: if v6 { protocol::ICMPV6 } else { protocol::ICMP },
            hop_limit,
            tos: 0,
        };
        self.l4(io, link, &ip, len);
        Ok(())
    }

    /// Sends a finished IP packet, which is within the MTU.
    pub(super) fn ip_packet(
        &self,
        io: &mut Io<'_, impl Env>,
        link: &Link,
        ethertype: u16,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let start = write_link_header(io.buf, VnetHeader::default(), link, ethertype);
        let end = start + packet.len();
        let place = io.buf.get_mut(start..end);
        place
            .ok_or(DropReason::FrameTooLong)?
            .copy_from_slice(packet);
        emit(io, link, end);
        Ok(())
    }

    /// Sends `len` bytes of transport header and payload that stand in place.
    fn l4(&mut self, io: &mut Io<'_, impl Env>, link: &Link, ip: &IpOut, len: usize) {
        self.id = self.id.wrapping_add(1);
        // What the port does not take, the sink counts.
        let _ = emit_in_place(io.sink, io.buf, link, ip, self.mtu, self.id, len);
    }
}

/// Room in `buf` for a transport header and payload of `len` bytes.
fn room(buf: &mut [u8], v6: bool, len: usize) -> Result<&mut [u8], DropReason> {
    let at = l4_offset(v6);
    buf.get_mut(at..at + len).ok_or(DropReason::FrameTooLong)
}

/// Sends the frame that ends at `end`. What the port does not take, the sink counts.
fn emit(io: &mut Io<'_, impl Env>, link: &Link, end: usize) {
    let _ = io.sink.emit(link.port, &io.buf[..end]);
}
