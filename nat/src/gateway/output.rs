//! Frames from the gateway to a port, built in one buffer.
//!
//! Checksums are always real: the messages are small, and an echo reply may leave in fragments,
//! which cannot be completed by anybody else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cnet_wire::arp::{ARP_LEN, ArpPacket};
use cnet_wire::frame::{ETHERTYPE_ARP, protocol};
use cnet_wire::headers::{FRAME_BUFFER_LEN, IpOut, Link, l4_offset, write_link_header};
use cnet_wire::icmp::IcmpMessage;
use cnet_wire::vnet::VnetHeader;
use cnet_wire::{DropReason, FrameSink, MacAddr, PortFull, PortId, checksum};

use crate::fragment::emit_in_place;

/// TTL and hop limit of what the gateway sends, but for NDP.
pub(super) const HOP_LIMIT: u8 = 64;
/// Bytes of a UDP header.
pub(super) const UDP_HEADER_LEN: usize = 8;

/// The sending half of the gateway.
pub(super) struct Output {
    buf: Vec<u8>,
    mac: MacAddr,
    mtu: usize,
    /// Identification of the next fragmented packet.
    next_id: u32,
}

impl Output {
    pub(super) fn new(mac: MacAddr, mtu: usize, seed: u64) -> Output {
        Output {
            buf: vec![0; FRAME_BUFFER_LEN],
            mac,
            mtu,
            next_id: seed as u32,
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

    /// Sends an ARP message from the gateway's MAC.
    pub(super) fn arp(
        &mut self,
        sink: &mut impl FrameSink,
        link: &Link,
        operation: u16,
        sender_ip: Ipv4Addr,
        target: (MacAddr, Ipv4Addr),
    ) -> Result<(), DropReason> {
        let arp = ArpPacket {
            operation,
            sender_mac: self.mac,
            sender_ip,
            target_mac: target.0,
            target_ip: target.1,
        };
        let vnet = VnetHeader::default();
        let start = write_link_header(&mut self.buf, vnet, link, ETHERTYPE_ARP);
        let body = self.buf[start..].first_chunk_mut::<ARP_LEN>();
        arp.write(body.ok_or(DropReason::FrameTooLong)?);
        sink.emit(link.port, &self.buf[..start + ARP_LEN])
            .map_err(port_full)
    }

    /// Sends a UDP datagram. `src` and `dst` are of one family.
    pub(super) fn udp(
        &mut self,
        sink: &mut impl FrameSink,
        link: &Link,
        src: SocketAddr,
        dst: SocketAddr,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let len = UDP_HEADER_LEN + payload.len();
        let l4 = self.l4(src.is_ipv6(), len)?;
        l4[..2].copy_from_slice(&src.port().to_be_bytes());
        l4[2..4].copy_from_slice(&dst.port().to_be_bytes());
        l4[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        l4[6..8].copy_from_slice(&[0, 0]);
        l4[8..].copy_from_slice(payload);
        let pseudo = checksum::pseudo_header(src.ip(), dst.ip(), protocol::UDP, len as u32);
        // Zero would say that there is no checksum (RFC 768).
        let sum = match checksum::finish(pseudo, l4) {
            0 => 0xffff,
            sum => sum,
        };
        l4[6..8].copy_from_slice(&sum.to_be_bytes());
        let ip = IpOut {
            src: src.ip(),
            dst: dst.ip(),
            protocol: protocol::UDP,
            hop_limit: HOP_LIMIT,
            tos: 0,
        };
        self.send_l4(sink, link, &ip, len)
    }

    /// Sends an ICMP or ICMPv6 message, filling in its checksum. It is fragmented if it must be.
    pub(super) fn icmp(
        &mut self,
        sink: &mut impl FrameSink,
        link: &Link,
        (src, dst): (IpAddr, IpAddr),
        hop_limit: u8,
        message: &IcmpMessage<'_>,
    ) -> Result<(), DropReason> {
        let v6 = src.is_ipv6();
        let len = message.wire_len();
        message.write(self.l4(v6, len)?, src, dst);
        let protocol = match v6 {
            true => protocol::ICMPV6,
            false => protocol::ICMP,
        };
        let ip = IpOut {
            src,
            dst,
            protocol,
            hop_limit,
            tos: 0,
        };
        self.send_l4(sink, link, &ip, len)
    }

    /// Sends a finished IP packet, which is within the MTU.
    pub(super) fn ip_packet(
        &mut self,
        sink: &mut impl FrameSink,
        link: &Link,
        ethertype: u16,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let vnet = VnetHeader::default();
        let start = write_link_header(&mut self.buf, vnet, link, ethertype);
        let end = start + packet.len();
        let room = self.buf.get_mut(start..end);
        room.ok_or(DropReason::FrameTooLong)?
            .copy_from_slice(packet);
        sink.emit(link.port, &self.buf[..end]).map_err(port_full)
    }

    /// Room for a transport header and payload of `len` bytes.
    fn l4(&mut self, v6: bool, len: usize) -> Result<&mut [u8], DropReason> {
        let at = l4_offset(v6);
        self.buf
            .get_mut(at..at + len)
            .ok_or(DropReason::FrameTooLong)
    }

    fn send_l4(
        &mut self,
        sink: &mut impl FrameSink,
        link: &Link,
        ip: &IpOut,
        len: usize,
    ) -> Result<(), DropReason> {
        self.next_id = self.next_id.wrapping_add(1);
        emit_in_place(sink, &mut self.buf, link, ip, self.mtu, self.next_id, len).map_err(port_full)
    }
}

fn port_full(_: PortFull) -> DropReason {
    DropReason::PortFull
}
