//! An IP packet from a container as everything above the switch sees it.
//!
//! It is built once a packet, after the switch has admitted the frame or the fragments have met, and
//! handed down by reference: nothing below asks again what stands in it.

use std::net::SocketAddr;

use crate::addr::PortId;
use crate::conversation::{Conversation, Direction};
use crate::frame::{Frame, IpHeader};
use crate::time::Instant;

/// An IP packet, and all that is known of how it came.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// When it came.
    pub now: Instant,
    /// The switch port it came in by.
    pub ingress: PortId,
    /// The frame that carried it, or that was put together from fragments.
    pub frame: &'a Frame<'a>,
    /// Its IP header, which is `frame`'s.
    pub ip: &'a IpHeader,
    /// Source and destination port of TCP and UDP; `None` for other protocols, and where the
    /// transport header is cut short.
    pub ports: Option<[u16; 2]>,
    /// Whether its transport checksum is right, as [`Frame::l4_checksum_ok`] says.
    pub verified: bool,
}

impl<'a> Packet<'a> {
    /// Describes the packet `ip` of `frame`, which is no fragment, and verifies its transport
    /// checksum.
    #[inline]
    pub fn new(now: Instant, ingress: PortId, frame: &'a Frame<'a>, ip: &'a IpHeader) -> Self {
        Packet {
            now,
            ingress,
            frame,
            ip,
            ports: frame.transport_ports(ip),
            verified: frame.l4_checksum_ok(ip),
        }
    }

    /// The transport header and payload.
    #[inline]
    pub fn l4(&self) -> &'a [u8] {
        self.frame.l4(self.ip)
    }

    /// Where it comes from and where it goes, by address and port, if it has ports.
    #[inline]
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let [source, destination] = self.ports?;
        Some((
            SocketAddr::new(self.ip.src, source),
            SocketAddr::new(self.ip.dst, destination),
        ))
    }

    /// The conversation that it opens or goes on with, as policy sees it.
    #[inline]
    pub fn conversation(&self, direction: Direction) -> Conversation {
        let [source, destination] = self.ports.unwrap_or_default();
        Conversation {
            direction,
            port: Some(self.ingress),
            protocol: self.ip.protocol,
            container: SocketAddr::new(self.ip.src, source),
            remote: SocketAddr::new(self.ip.dst, destination),
        }
    }
}
