//! Frames from the gateway to a port, built in one buffer.
//!
//! Checksums are always real: the messages are small, and an echo reply may leave in fragments,
//! which cannot be completed by anybody else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cnet_wire::arp::ARP_LEN;
use cnet_wire::frame::{ETHERNET_HEADER_LEN, ETHERTYPE_ARP, protocol};
use cnet_wire::vnet::{VNET_HDR_LEN, VnetHeader};
use cnet_wire::{DropReason, FrameSink, MacAddr, PortFull, PortId, checksum};

use crate::datagram::fragment::emit_in_place;
use cnet_wire::headers::{FRAME_BUFFER_LEN, IpOut, Link, l4_offset};

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
        let (vnet, eth) = self.buf.split_at_mut(VNET_HDR_LEN);
        vnet.copy_from_slice(&VnetHeader::default().encode());
        eth[..6].copy_from_slice(&link.container_mac.0);
        eth[6..12].copy_from_slice(&link.gateway_mac.0);
        eth[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
        let body = &mut eth[ETHERNET_HEADER_LEN..ETHERNET_HEADER_LEN + ARP_LEN];
        body[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        body[6..8].copy_from_slice(&operation.to_be_bytes());
        body[8..14].copy_from_slice(&self.mac.0);
        body[14..18].copy_from_slice(&sender_ip.octets());
        body[18..24].copy_from_slice(&target.0.0);
        body[24..28].copy_from_slice(&target.1.octets());
        let end = VNET_HDR_LEN + ETHERNET_HEADER_LEN + ARP_LEN;
        sink.emit(link.port, &self.buf[..end]).map_err(port_full)
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
        head: [u8; 2],
        rest: &[u8],
    ) -> Result<(), DropReason> {
        let v6 = src.is_ipv6();
        let len = 4 + rest.len();
        let l4 = self.l4(v6, len)?;
        l4[..2].copy_from_slice(&head);
        l4[2..4].copy_from_slice(&[0, 0]);
        l4[4..].copy_from_slice(rest);
        let (protocol, pseudo) = if v6 {
            let p = protocol::ICMPV6;
            (p, checksum::pseudo_header(src, dst, p, len as u32))
        } else {
            (protocol::ICMP, 0)
        };
        let sum = checksum::finish(pseudo, l4);
        l4[2..4].copy_from_slice(&sum.to_be_bytes());
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
        let start = VNET_HDR_LEN + ETHERNET_HEADER_LEN;
        let end = start + packet.len();
        let room = self.buf.get_mut(start..end);
        room.ok_or(DropReason::FrameTooLong)?
            .copy_from_slice(packet);
        self.buf[..VNET_HDR_LEN].copy_from_slice(&VnetHeader::default().encode());
        let eth = &mut self.buf[VNET_HDR_LEN..start];
        eth[..6].copy_from_slice(&link.container_mac.0);
        eth[6..12].copy_from_slice(&link.gateway_mac.0);
        eth[12..14].copy_from_slice(&ethertype.to_be_bytes());
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
