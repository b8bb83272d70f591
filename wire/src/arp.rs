//! ARP for IPv4 over Ethernet (RFC 826): checks, a decoded view, and its writer.
//!
//! Only the one combination of address kinds that exists here is accepted; a body that is shorter
//! than it says (CVE-2020-29129, CVE-2020-29130) never becomes a view.

use std::net::Ipv4Addr;

use crate::addr::MacAddr;
use crate::drops::DropReason;
use crate::ethernet::{ETHERNET_HEADER_LEN, ETHERTYPE_ARP};
use crate::vnet::VNET_HDR_LEN;

/// Bytes of an ARP body for IPv4 over Ethernet.
pub const ARP_LEN: usize = 28;
/// Operation: who has the target address?
pub const OP_REQUEST: u16 = 1;
/// Operation: the sender has it.
pub const OP_REPLY: u16 = 2;

/// Hardware type Ethernet, protocol type IPv4, their address lengths.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// An ARP body, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArpPacket {
    /// [`OP_REQUEST`], [`OP_REPLY`], or one that is not answered.
    pub operation: u16,
    /// Who speaks, link layer.
    pub sender_mac: MacAddr,
    /// Who speaks; unspecified in a probe (RFC 5227).
    pub sender_ip: Ipv4Addr,
    /// Who is spoken to; meaningless in a request.
    pub target_mac: MacAddr,
    /// Whose address is asked for, or who asked.
    pub target_ip: Ipv4Addr,
}

impl ArpPacket {
    /// Reads the body that follows the Ethernet header; `None` if it is truncated or of another
    /// kind.
    pub fn read(body: &[u8]) -> Option<ArpPacket> {
        let b: &[u8; ARP_LEN] = body.first_chunk()?;
        if b[..6] != KIND {
            return None;
        }
        let mac = |i: usize| MacAddr([b[i], b[i + 1], b[i + 2], b[i + 3], b[i + 4], b[i + 5]]);
        let ip = |i: usize| Ipv4Addr::new(b[i], b[i + 1], b[i + 2], b[i + 3]);
        Some(ArpPacket {
            operation: u16::from_be_bytes([b[6], b[7]]),
            sender_mac: mac(8),
            sender_ip: ip(14),
            target_mac: mac(18),
            target_ip: ip(24),
        })
    }

    /// Writes the body that follows the Ethernet header.
    pub fn write(&self, body: &mut [u8; ARP_LEN]) {
        body[..6].copy_from_slice(&KIND);
        body[6..8].copy_from_slice(&self.operation.to_be_bytes());
        body[8..14].copy_from_slice(&self.sender_mac.0);
        body[14..18].copy_from_slice(&self.sender_ip.octets());
        body[18..24].copy_from_slice(&self.target_mac.0);
        body[24..28].copy_from_slice(&self.target_ip.octets());
    }
}

/// Bytes of the frame that [`answer`] makes.
pub const ANSWER_LEN: usize = VNET_HDR_LEN + ETHERNET_HEADER_LEN + ARP_LEN;

/// The frame, virtio-net header first, by which the station at `mac` answers `asked`: what a switch says
/// in its place.
pub fn answer(asked: &ArpPacket, mac: MacAddr) -> [u8; ANSWER_LEN] {
    let mut frame = [0; ANSWER_LEN];
    let answer = ArpPacket {
        operation: OP_REPLY,
        sender_mac: mac,
        sender_ip: asked.target_ip,
        target_mac: asked.sender_mac,
        target_ip: asked.sender_ip,
    };
    let ethernet = &mut frame[VNET_HDR_LEN..];
    ethernet[..6].copy_from_slice(&asked.sender_mac.0);
    ethernet[6..12].copy_from_slice(&mac.0);
    ethernet[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    if let Some(body) = ethernet.last_chunk_mut() {
        answer.write(body);
    }
    frame
}

/// Checks the kind and length of an ARP body.
pub(crate) fn check(body: &[u8]) -> Result<(), DropReason> {
    if body.len() < ARP_LEN || !body.starts_with(&KIND) {
        return Err(DropReason::BadArp);
    }
    Ok(())
}
