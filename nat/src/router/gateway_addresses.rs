//! What a packet to one of the gateway's addresses is for: the gateway itself, the host's loopback or the
//! router behind that address, or a client of a published port that is shown under it.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::frame::protocol;
use cnet_wire::{Packet, PortId, icmp};

use super::Router;

impl Router {
    /// Whether a packet of the container at `from` to `dst` is for the gateway itself, and not for the
    /// host's loopback behind its address. Clients of published ports may be shown under it as well.
    pub fn is_for_gateway(
        &self,
        from: PortId,
        dst: IpAddr,
        protocol: u8,
        ports: Option<[u16; 2]>,
    ) -> bool {
        self.gateway.owns(dst) && !self.leads_to_host(from, dst, protocol, ports)
    }

    /// Whether a packet to an address of the gateway is meant for what is behind it: the host's
    /// loopback, or the router that the gateway stands for.
    fn leads_to_host(
        &self,
        from: PortId,
        dst: IpAddr,
        protocol: u8,
        ports: Option<[u16; 2]>,
    ) -> bool {
        let port = ports.map(|[_, destination]| destination);
        let is_open = || {
            let remote = port.map(|port| SocketAddr::new(dst, port));
            remote.is_some_and(|remote| self.policy.opens_host_port(Some(from), protocol, remote))
        };
        let whole = self.policy.host_loopback.contains(&dst) || self.gateway.stands_for(dst);
        if !whole && !is_open() {
            return false;
        }
        let dns = port == Some(53) && self.gateway.is_dns(dst);
        match protocol {
            protocol::TCP => !dns,
            // A DHCP lease is renewed by unicast to the server, which is the gateway.
            protocol::UDP => !dns && port != Some(67),
            _ => false,
        }
    }

    /// Whether a packet to an address of the gateway is for a client of a published port that is
    /// shown under that address.
    pub(super) fn answers_client(&self, packet: &Packet<'_>) -> bool {
        let Some((container, client)) = packet.ends() else {
            return false;
        };
        match packet.ip.protocol {
            protocol::TCP => self.tcp.owns(container, client),
            _ => self.udp.has_client(packet.ingress, container, client),
        }
    }

    /// Whether a packet to an address of the gateway asks the router that it stands for for an echo.
    pub(super) fn is_echo_for_another(&self, packet: &Packet<'_>) -> bool {
        let request = match packet.ip.protocol {
            protocol::ICMP => icmp::v4::ECHO_REQUEST,
            protocol::ICMPV6 => icmp::v6::ECHO_REQUEST,
            _ => return false,
        };
        let dst = packet.ip.dst;
        packet.l4().first() == Some(&request)
            && self.gateway.stands_for(dst)
            && !self.policy.host_loopback.contains(&dst)
    }
}
