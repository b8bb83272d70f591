//! Clients of published ports: what becomes of them, and which ports are published.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::conversation::{Conversation, Decision, Direction};
use cnet_wire::frame::protocol;
use cnet_wire::headers::Link;
use cnet_wire::time::Instant;
use cnet_wire::{DropReason, MacAddr};

use super::{Router, link_to};
use crate::datagram::udp::Clients;
use crate::datagram::{PublishError, UdpForward};
use crate::forward::{self, ClientPath, ForwardedClient};
use crate::gateway::Gateway;
use crate::host::{HostSockets, SocketId, Token};
use crate::io::{Env, Io};
use crate::policy::Policy;
use cnet_wire::stations::Stations;

impl Router {
    /// A client was accepted on the published TCP port of `container`.
    pub fn handle_accept<E: Env>(
        &mut self,
        now: Instant,
        container: SocketAddr,
        peer: SocketAddr,
        socket: SocketId,
        stations: &impl Stations,
        io: &mut Io<'_, E>,
    ) {
        self.accepted = Some(socket);
        self.take_client(now, container, peer, socket, stations, io);
        self.accepted = None;
    }

    fn take_client<E: Env>(
        &mut self,
        now: Instant,
        container: SocketAddr,
        peer: SocketAddr,
        socket: SocketId,
        stations: &impl Stations,
        io: &mut Io<'_, E>,
    ) {
        let Some(remote) = forward::shown_as(&self.forwarded(peer, container)) else {
            io.hosts.tcp_reset(socket);
            return;
        };
        let link = self.link_to(now, container.ip(), stations);
        if self.refuses_client(now, container, (peer, remote), stations) {
            io.hosts.tcp_reset(socket);
            self.drops.count(DropReason::Policy);
            return;
        }
        if let Some(link) = link {
            self.borrow_descriptors(now, link.port, io);
        }
        if let Err(reason) = self
            .tcp
            .handle_accept(now, link, container, remote, socket, io)
        {
            self.drops.count(reason);
        } else if link.is_none() {
            self.solicit(now, container.ip(), stations, io);
        }
    }

    /// What is to become of a client at `peer` that was accepted on the published TCP port of
    /// `container`. `can_splice` tells whether the shell has sockets inside the container's namespace.
    pub fn client_path(
        &self,
        now: Instant,
        peer: SocketAddr,
        container: SocketAddr,
        can_splice: bool,
        stations: &impl Stations,
    ) -> ClientPath {
        let client = self.forwarded(peer, container);
        // A client that policy refuses is refused, and counted, when it is brought by frames. So it is
        // asked under the same address here: no path is to let in what the other one would not.
        let shown = forward::shown_as(&client).unwrap_or(peer);
        let can_splice =
            can_splice && !self.refuses_client(now, container, (peer, shown), stations);
        forward::client_path(&client, can_splice)
    }

    /// Whether policy refuses the client at `peer` of a published TCP port, which the container is to
    /// see as `client`.
    pub(super) fn refuses_client(
        &self,
        now: Instant,
        container: SocketAddr,
        (peer, client): (SocketAddr, SocketAddr),
        stations: &impl Stations,
    ) -> bool {
        if !self.policy.has_rules(Direction::Inwards) {
            return false;
        }
        let conversation = Conversation {
            direction: Direction::Inwards,
            // By lease where the container has not spoken yet: a rule about its port holds from the start.
            port: stations.by_address(now, container.ip()).map(|s| s.port),
            protocol: protocol::TCP,
            container,
            remote: client,
        };
        self.policy.refuses_client(&conversation, peer.ip())
            || matches!(self.policy.decide(&conversation), Decision::Refuse(_))
    }

    pub(super) fn forwarded(&self, peer: SocketAddr, container: SocketAddr) -> ForwardedClient {
        let gateways = [self.gateway_v4, self.gateway_v6];
        let policy = &self.policy;
        forwarded((&self.gateway, policy), gateways, peer, container)
    }

    /// `socket`, opened by the shell as `forward` says and reporting under `token`, is a published UDP
    /// port.
    ///
    /// # Errors
    ///
    /// As [`UdpSessions::publish_udp`](crate::datagram::UdpSessions).
    pub fn publish_udp(
        &mut self,
        now: Instant,
        token: Token,
        socket: SocketId,
        forward: UdpForward,
        stations: &impl Stations,
    ) -> Result<(), PublishError> {
        let mut ends = forward.container.in_order(forward.bound.ip());
        let owner = ends.find_map(|end| stations.by_address(now, end.ip()));
        let owner = owner.map(|station| station.port);
        self.udp.publish_udp(token, socket, forward, owner)
    }

    /// Has mappings of UDP give the host's port `host_port` back, because it is to be published.
    pub fn release_udp_port<E: Env>(&mut self, host_port: u16, io: &mut Io<'_, E>) {
        self.udp.release_port(host_port, io.hosts);
    }

    /// Closes the published UDP port of `token`; `false` if there is none.
    pub fn unpublish_udp<E: Env>(&mut self, token: Token, io: &mut Io<'_, E>) -> bool {
        self.udp.unpublish_udp(token, io)
    }
}

fn forwarded(
    (gateway, policy): (&Gateway, &Policy),
    [gateway_v4, gateway_v6]: [Option<IpAddr>; 2],
    peer: SocketAddr,
    container: SocketAddr,
) -> ForwardedClient {
    let of_family = match container {
        SocketAddr::V4(_) => gateway_v4,
        SocketAddr::V6(_) => gateway_v6,
    };
    // An address that stands for the host's is the way back to it.
    let alias = (policy.host_own.iter())
        .find(|(alias, own)| *own == peer.ip() && alias.is_ipv4() == container.is_ipv4())
        .map(|(alias, _)| *alias);
    let loopback = (policy.host_loopback.iter())
        .find(|a| peer.ip().is_loopback() && a.is_ipv4() == container.is_ipv4())
        .copied();
    ForwardedClient {
        address: peer,
        container,
        gateway: alias.or(loopback).or(of_family),
        // Where neighbours are reached through the gateway, the container's own address alone is not.
        is_on_link: match gateway.has_host_subnets() {
            true => gateway.is_leased(peer.ip()),
            false => gateway.is_on_link(peer.ip()),
        },
    }
}

/// What the router knows of the clients of published ports.
pub(super) struct KnownClients<'a, S> {
    pub(super) gateway: &'a Gateway,
    pub(super) policy: &'a Policy,
    pub(super) gateway_mac: MacAddr,
    /// The gateway's addresses, IPv4 and IPv6.
    pub(super) gateways: [Option<IpAddr>; 2],
    pub(super) stations: &'a S,
    pub(super) now: Instant,
}

impl<S: Stations> Clients for KnownClients<'_, S> {
    fn link_to(&self, container: IpAddr) -> Option<Link> {
        link_to(self.stations, self.now, self.gateway_mac, container)
    }

    fn shown_as(&self, client: SocketAddr, container: SocketAddr) -> Option<SocketAddr> {
        let from = (self.gateway, self.policy);
        let client = forwarded(from, self.gateways, client, container);
        forward::shown_as(&client)
    }
}
