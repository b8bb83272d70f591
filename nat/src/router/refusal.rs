//! What a container is told of a packet to another one that the switch has refused.

use cnet_wire::Packet;
use cnet_wire::frame::protocol;
use cnet_wire::headers::Link;

use super::Router;
use crate::icmp_error::IcmpErrorKind;
use crate::io::{Env, Io};

impl Router {
    /// The switch has refused `packet` by what is allowed to containers: tells the sender.
    pub fn tell_refusal<E: Env>(&mut self, packet: &Packet<'_>, io: &mut Io<'_, E>) {
        let link = Link {
            port: packet.ingress,
            gateway_mac: self.gateway_mac,
            container_mac: packet.frame.src,
        };
        match packet.ip.protocol {
            protocol::TCP => {
                // The drop has its reason already.
                let _ = self.tcp.refuse_packet(packet, &link, io);
            }
            _ => self.report(packet, &link, IcmpErrorKind::Prohibited, io),
        }
    }
}
