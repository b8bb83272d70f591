//! The gateway's own addresses, answered on the spot (*hairpin*).
//!
//! # Policy
//!
//! - `arp`: requests for the gateway's and the DNS address are answered. Requests for other
//!   addresses are not, and a claim on the gateway's addresses is refused.
//! - `ndp`: the same for IPv6, and router advertisements in answer to solicitations. The gateway
//!   sends nothing unasked, so an idle network causes no wake-up. Lifetimes are as long as the
//!   protocols allow, and a station that solicits the gateway's address an hour later gets a new
//!   advertisement. Where the prefix is to have lifetimes ([`Quirks::prefix_lifetimes`]),
//!   advertisements are repeated each hour.
//! - `echo`: an echo request to one of the gateway's addresses comes back with exactly its own
//!   bytes, up to 64 KiB, in fragments where the MTU asks for them.
//! - `dhcpv4`, `dhcpv6`: a port gets its own lease, one a port, and never another port's address.
//! - `dns`, `dns_tcp`: queries to port 53 of the DNS addresses go to a service outside
//!   ([`HostSockets::ask_dns`](crate::host::HostSockets::ask_dns)), whose answers come back by
//!   [`Gateway::answer`].
//! - Other ports and protocols are not served: the router answers with an ICMP error or a RST.
//! - A reply goes to the port and MAC address the request came from. A station's claim on an address
//!   that is another port's is refused ([`Stations`]).
//!
//! # Theory of operation
//!
//! Each protocol is a struct in a file of its own, with its state, its part of the configuration
//! and its counters. [`Gateway`] owns the protocols and dispatches packets to them. They share the
//! [`Endpoint`]: the gateway's addresses, the leases it hands out, and the emitter of frames.
//!
//! The protocols are handled directly, over byte slices that [`Frame::parse`] has checked, and read
//! and written by [`cnet_wire`]. Only DNS over TCP needs a stack: a smoltcp `Interface` that sees
//! IP packets and no Ethernet (`Medium::Ip`), with one socket a connection and none while there are
//! no connections. smoltcp's Ethernet side is not used, because an `Interface` is one station on
//! one link with one small neighbour cache for all: here every port is a link of its own, and echo
//! and neighbour discovery have rules that it does not apply.
//!
//! # Invariants
//!
//! Work and memory a frame are bounded; tables are capped a port. No input makes a panic.

mod addresses;
mod arp;
mod config;
mod counters;
mod dhcpv4;
mod dhcpv6;
mod dns;
mod dns_tcp;
mod echo;
mod emit;
mod lease;
mod ndp;
mod queries;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use cnet_wire::addr::is_station;
use cnet_wire::dhcp;
use cnet_wire::frame::protocol;
use cnet_wire::icmp::v6;
use cnet_wire::time::Instant;
use cnet_wire::udp::Datagram;
use cnet_wire::{DropReason, Frame, Packet, PortId};

pub use addresses::{Ipv4Gateway, Ipv6Gateway};
pub use config::{GatewayConfig, Quirks, ServicesOff};
pub use counters::{
    ArpCounters, Dhcpv4Counters, Dhcpv6Counters, DnsCounters, DnsTcpCounters, EchoCounters,
    GatewayCounters, NdpCounters,
};
pub use lease::Lease;

use crate::host::QueryId;
use crate::icmp_error::RateLimit;
use crate::io::{Env, Io};
use addresses::{ALL_DHCP_SERVERS, Addresses};
use arp::Arp;
use cnet_wire::stations::Stations;
use dhcpv4::Dhcpv4;
use dhcpv6::Dhcpv6;
use dns::Dns;
use dns_tcp::DnsTcp;
use echo::Echo;
use emit::Emitter;
use lease::Leases;
use ndp::Ndp;
use queries::{Queries, WayBack};

/// Solicitations (ARP and NDP) a second, and in a burst.
const SOLICITS: (u32, u32) = (50, 100);

/// What the protocols share: the gateway's addresses, the leases it hands out, and the emitter.
struct Endpoint {
    addresses: Addresses,
    leases: Leases,
    emitter: Emitter,
}

impl Endpoint {
    /// Whether a station on `port` may say that `ip` is its own: it is neither the gateway's nor known
    /// to be another port's.
    fn may_claim(
        &self,
        (now, port): (Instant, PortId),
        ip: IpAddr,
        stations: &impl Stations,
    ) -> bool {
        let known = || stations.by_address(now, ip);
        !self.addresses.owns_unicast(ip) && known().is_none_or(|station| station.port == port)
    }

    /// Whether the gateway answers the station at `asker` for `ip`, an address that is not its own:
    /// on the host's own subnets it stands for all neighbours of the host. An address that a port
    /// has, and the asker's own, is the container's to answer for.
    fn answers_for(
        &self,
        (now, port): (Instant, PortId),
        ip: IpAddr,
        asker: IpAddr,
        stations: &impl Stations,
    ) -> bool {
        self.addresses.host_subnets
            && is_station(ip)
            && ip != asker
            && !self.leases.addresses_of(port).any(|own| own == ip)
            && stations.by_address(now, ip).is_none()
    }
}

/// The gateway of one network, on all its ports.
pub struct Gateway {
    endpoint: Endpoint,
    arp: Arp,
    ndp: Ndp,
    echo: Echo,
    dhcpv4: Dhcpv4,
    dhcpv6: Dhcpv6,
    dns: Dns,
    dns_tcp: DnsTcp,
    queries: Queries,
    solicits: RateLimit,
    silent_dns: bool,
    dns_address_unreachable: bool,
    off: ServicesOff,
}

impl Gateway {
    /// A gateway without ports. `seed` is to be unpredictable: initial sequence numbers follow
    /// from it.
    pub fn new(mut cfg: GatewayConfig, seed: u64, now: Instant) -> Gateway {
        let search: Arc<[String]> = std::mem::take(&mut cfg.search).into();
        Gateway {
            endpoint: Endpoint {
                addresses: cfg.addresses(),
                leases: Leases::new(cfg.dhcp_range, cfg.quirks.dhcp_from_range),
                emitter: Emitter::new(cfg.mac, cfg.mtu.into(), seed),
            },
            arp: Arp::new(&cfg),
            ndp: Ndp::new(&cfg, search.clone()),
            echo: Echo::default(),
            dhcpv4: Dhcpv4::new(&cfg, search.clone()),
            dhcpv6: Dhcpv6::new(&cfg, search),
            dns: Dns::new(&cfg),
            dns_tcp: DnsTcp::new(&cfg, seed, now),
            queries: Queries::default(),
            solicits: RateLimit::new(SOLICITS.0, SOLICITS.1),
            silent_dns: cfg.quirks.silent_dns,
            dns_address_unreachable: cfg.quirks.dns_address_unreachable,
            off: cfg.quirks.off,
        }
    }

    /// The link-local address router advertisements come from.
    pub fn link_local(&self) -> Ipv6Addr {
        self.endpoint.addresses.link_local
    }

    /// The counters of all protocols.
    pub fn counters(&self) -> GatewayCounters {
        GatewayCounters {
            arp: self.arp.counters,
            ndp: self.ndp.counters,
            echo: self.echo.counters,
            dhcpv4: self.dhcpv4.counters,
            dhcpv6: self.dhcpv6.counters,
            dns: self.dns.counters,
            dns_tcp: self.dns_tcp.counters,
        }
    }

    /// Whether frames to `ip` are for [`Gateway::handle_packet`]: the gateway's addresses and the
    /// groups and broadcast addresses it listens to.
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.endpoint.addresses.owns(ip)
    }

    /// The addresses the gateway answers from.
    pub fn unicast_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.endpoint.addresses.unicast()
    }

    /// Whether a container looks for `ip` on its own link, without asking the gateway.
    pub fn is_on_link(&self, ip: IpAddr) -> bool {
        self.endpoint.addresses.is_on_link(ip)
    }

    /// Whether `ip` is leased or granted to any port.
    pub fn is_leased(&self, ip: IpAddr) -> bool {
        self.endpoint.leases.has(ip)
    }

    /// Whether the subnets are the host's own, whose neighbours are reached through the host.
    pub fn has_host_subnets(&self) -> bool {
        self.endpoint.addresses.host_subnets
    }

    /// Whether `ip` is the address of another router, for which this one stands on the link alone:
    /// what is sent there leaves through the host.
    pub fn stands_for(&self, ip: IpAddr) -> bool {
        self.endpoint.addresses.stands_for(ip)
    }

    /// Whether `ip` is on the link and not the gateway's own: a container's address, if it is one.
    pub fn is_neighbour(&self, ip: IpAddr) -> bool {
        let addresses = &self.endpoint.addresses;
        let through_host = addresses.host_subnets && !is_link_local(ip);
        !through_host && addresses.is_on_link(ip) && !addresses.owns(ip)
    }

    /// Whether `ip` is a DNS address.
    pub fn is_dns(&self, ip: IpAddr) -> bool {
        self.endpoint.addresses.is_dns(ip)
    }

    /// Whether ports of `ip`, an address of the gateway, that serve nothing are a network that
    /// cannot be reached.
    pub fn is_unreachable(&self, ip: IpAddr) -> bool {
        self.dns_address_unreachable || !self.is_dns(ip)
    }

    /// A call has panicked: ends the connection of DNS over TCP that it was about.
    pub(crate) fn recover(&mut self) {
        self.dns_tcp.recover();
    }

    /// Forgets `port`, its leases and its queries.
    pub fn remove_port(&mut self, port: PortId) {
        self.endpoint.leases.remove_port(port);
        self.ndp.remove_port(port);
        self.queries.remove_port(port);
        self.dns_tcp.remove_port(port);
    }

    /// Adds the lease that a port comes with. A port that DHCP granted its address to has it no more.
    pub fn add_lease(&mut self, lease: Lease) {
        self.endpoint.leases.add(lease);
    }

    /// The addresses leased or granted to `port`.
    pub fn leased_to(&self, port: PortId) -> impl Iterator<Item = IpAddr> + '_ {
        self.endpoint.leases.addresses_of(port)
    }

    /// Solicits the MAC address of `ip` on every port, at a limited rate. The answer comes in as a
    /// frame.
    pub fn solicit(
        &mut self,
        now: Instant,
        ip: IpAddr,
        stations: &impl Stations,
        io: &mut Io<'_, impl Env>,
    ) {
        let ours = self.endpoint.addresses.owns_unicast(ip);
        if !is_station(ip) || ours || !self.solicits.allow(now) {
            return;
        }
        for port in stations.ports() {
            // A full port misses the question as it would miss any frame.
            let _ = match ip {
                IpAddr::V4(ip) => self.arp.solicit(port, ip, &self.endpoint, io),
                IpAddr::V6(ip) => self.ndp.solicit(port, ip, &mut self.endpoint, io),
            };
        }
    }

    /// Takes an ARP message.
    ///
    /// # Errors
    /// Why the message was dropped.
    pub fn handle_arp(
        &mut self,
        (now, port): (Instant, PortId),
        frame: &Frame<'_>,
        stations: &impl Stations,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let from = (now, port);
        let endpoint = &mut self.endpoint;
        self.arp.handle_frame(from, frame, endpoint, stations, io)
    }

    /// Takes a packet to an address that the gateway [`Gateway::owns`].
    ///
    /// # Errors
    /// Why the packet was dropped. [`DropReason::NotServed`] and [`DropReason::UnknownProtocol`] are
    /// for the caller to answer, with a RST or an ICMP error.
    pub fn handle_packet(
        &mut self,
        packet: &Packet<'_>,
        stations: &impl Stations,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        self.endpoint.admit(packet)?;
        if self.silent_dns && self.is_dns_query(packet) {
            return Err(DropReason::Policy);
        }
        let l4 = packet.frame.l4(packet.ip);
        let endpoint = &mut self.endpoint;
        match (packet.ip.protocol, packet.ip.dst) {
            (protocol::ICMP, IpAddr::V4(_)) => self.echo.handle_packet(packet, endpoint, io),
            (protocol::ICMPV6, IpAddr::V6(_)) => match l4.first() {
                Some(kind) if ndp::TYPES.contains(kind) => {
                    let advertises = *kind == v6::ROUTER_SOLICITATION;
                    if self.off.ndp || advertises && self.off.router_advertisements {
                        return Err(DropReason::NotServed);
                    }
                    self.ndp.handle_packet(packet, endpoint, stations, io)
                }
                _ => self.echo.handle_packet(packet, endpoint, io),
            },
            (protocol::UDP, _) => self.handle_datagram(packet, stations, io),
            (protocol::TCP, _) => {
                let queries = &mut self.queries;
                self.dns_tcp.handle_packet(packet, endpoint, queries, io)
            }
            _ => Err(DropReason::UnknownProtocol),
        }
    }

    /// Whether `packet` is to port 53 of a DNS address.
    fn is_dns_query(&self, packet: &Packet<'_>) -> bool {
        let port = packet.ports.map(|[_, destination]| destination);
        port == Some(dns::PORT) && self.is_dns(packet.ip.dst)
    }

    fn handle_datagram(
        &mut self,
        packet: &Packet<'_>,
        stations: &impl Stations,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let datagram = Datagram::parse(packet.frame.l4(packet.ip))?;
        let payload = datagram.payload;
        let ports = [datagram.src_port, datagram.dst_port];
        let endpoint = &mut self.endpoint;
        match (ports, packet.ip.dst) {
            ([_, dhcp::v4::SERVER_PORT], IpAddr::V4(_)) if !self.off.dhcpv4 => self
                .dhcpv4
                .handle_message(packet, payload, endpoint, stations, io),
            ([_, dhcp::v6::SERVER_PORT], IpAddr::V6(ALL_DHCP_SERVERS)) if !self.off.dhcpv6 => {
                self.dhcpv6.handle_message(packet, payload, endpoint, io)
            }
            ([source, dns::PORT], _) => {
                let queries = &mut self.queries;
                self.dns
                    .handle_datagram(packet, source, payload, endpoint, queries, io.hosts)
            }
            _ => Err(DropReason::NotServed),
        }
    }

    /// When [`Gateway::handle_timeout`] wants to be called; `None` while no DNS connection is open
    /// and no advertisement has an end.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = [self.dns_tcp.poll_timeout(), self.ndp.poll_timeout()];
        timeouts.into_iter().flatten().min()
    }

    /// Acts on deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Instant, io: &mut Io<'_, impl Env>) {
        self.dns_tcp
            .handle_timeout(now, &self.endpoint.emitter, &mut self.queries, io);
        self.ndp.handle_timeout(now, &mut self.endpoint, io);
    }

    /// Sends `message` to the client that sent query `id`. Over UDP it is truncated (TC, RFC 2181
    /// section 9) where it is longer than the client said it takes or than fits the MTU. Nothing
    /// happens if the client is gone or the query was given up in favour of later ones.
    pub fn answer(&mut self, now: Instant, id: QueryId, message: &[u8], io: &mut Io<'_, impl Env>) {
        let emitter = &mut self.endpoint.emitter;
        match self.queries.take_way_back(id) {
            None => {}
            Some(WayBack::Udp(asker)) => self.dns.answer(&asker, message, emitter, io),
            Some(WayBack::Tcp(connection)) => {
                let queries = &mut self.queries;
                self.dns_tcp
                    .answer(now, (connection, message), emitter, queries, io);
            }
        }
    }
}

/// Whether `ip` names a neighbour only together with the link that it is on.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(a) if a.is_unicast_link_local())
}

impl Endpoint {
    /// Refuses packets that are for none of the protocols.
    fn admit(&self, packet: &Packet<'_>) -> Result<(), DropReason> {
        let ip = packet.ip;
        if !self.addresses.has_family(ip.dst) {
            return Err(DropReason::FamilyDisabled);
        }
        if ip.fragment.is_some() {
            return Err(DropReason::BadFragment);
        }
        if !self.addresses.owns(ip.dst) {
            return Err(DropReason::NotServed);
        }
        if self.addresses.owns_unicast(ip.src) {
            return Err(DropReason::Spoofed);
        }
        if !packet.verified {
            return Err(DropReason::BadChecksum);
        }
        Ok(())
    }
}
