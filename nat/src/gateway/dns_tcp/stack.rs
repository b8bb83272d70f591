//! The device that smoltcp's stack sees: one IP packet in, any number out.

use std::net::{IpAddr, Ipv4Addr};

use cnet_wire::frame::protocol;
use cnet_wire::time::Instant;
use smoltcp::phy::{Checksum, ChecksumCapabilities, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{IpProtocol, IpRepr, Ipv4Repr, Ipv6Repr};

use super::Segment;
use crate::gateway::emit::HOP_LIMIT;

/// The segment behind a plain IP header: what stood there has been checked, and extension headers
/// are nothing the stack should answer.
pub(super) fn packet(segment: &Segment<'_>) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let payload_len = segment.l4.len();
    let repr = match (segment.ends.client.ip(), segment.ends.server) {
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => IpRepr::Ipv6(Ipv6Repr {
            src_addr,
            dst_addr,
            next_header: IpProtocol::from(protocol::TCP),
            payload_len,
            hop_limit: HOP_LIMIT,
        }),
        (src, dst) => {
            let v4 = |a| match a {
                IpAddr::V4(a) => a,
                IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
            };
            IpRepr::Ipv4(Ipv4Repr {
                src_addr: v4(src),
                dst_addr: v4(dst),
                next_header: IpProtocol::from(protocol::TCP),
                payload_len,
                hop_limit: HOP_LIMIT,
            })
        }
    };
    let header_len = repr.header_len();
    let mut packet = vec![0; header_len];
    repr.emit(&mut packet, &checksums);
    packet.extend(segment.l4);
    packet
}

pub(super) fn stack_instant(now: Instant) -> StackInstant {
    StackInstant::from_micros((now.as_nanos() / 1000) as i64)
}

/// One packet in, any number out.
pub(super) struct Device<'a> {
    pub(super) incoming: Option<&'a [u8]>,
    pub(super) outgoing: Vec<Vec<u8>>,
    pub(super) mtu: usize,
}

pub(super) struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Outgoing<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl smoltcp::phy::Device for Device<'_> {
    type RxToken<'t>
        = Incoming<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t>
    where
        Self: 't;

    fn receive(&mut self, _: StackInstant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = self.mtu;
        // Incoming ones were verified, or hold only the pseudo-header's sum (NEEDS_CSUM).
        caps.checksum.tcp = Checksum::Tx;
        caps.checksum.ipv4 = Checksum::Tx;
        caps
    }
}
