//! The gateway's own addresses, answered on the spot (*hairpin*).
//!
//! # Policy
//!
//! - `arp`: who asks for the gateway's or the DNS address is told; nobody is told about others,
//!   and a claim on the gateway's addresses is refused.
//! - `ndp`: the same for IPv6, and router advertisements to those who solicit. Nothing is sent
//!   without being asked for, so an idle network causes no wake-up; lifetimes are as long as the
//!   protocols allow, and a station that still asks for us after an hour gets a fresh
//!   advertisement.
//! - `icmp`: an echo request to one of our addresses is returned with exactly its own bytes,
//!   up to 64 KiB, in fragments where it must be.
//! - `dhcpv4`, `dhcpv6`: the lease of the port that asks, one a port; never an address that is
//!   another port's.
//! - `dns`: queries over UDP and TCP to port 53 of the DNS addresses are handed to the owner of
//!   the gateway ([`Gateway::take_query`]), who brings the answers back ([`Gateway::answer`]).
//!   Nothing else is served: the owner sends the port unreachable or RST.
//! - A reply goes to the port and MAC address the request came from. What a station says of its own
//!   addresses is believed for its own port only ([`Gateway::neighbour`]).
//!
//! # Theory of operation
//!
//! The protocols are handled directly, each in its file, over byte slices that [`Frame::parse`]
//! has checked. Only DNS over TCP needs a stack: a smoltcp `Interface` that sees IP packets and no
//! Ethernet (`Medium::Ip`), with one socket a connection and none while there are no connections.
//! smoltcp's Ethernet side is not used, because an `Interface` is one station on one link with one
//! small neighbour cache for all: here every port is a link of its own, and echo and neighbour
//! discovery have rules that it does not apply. Messages are read and written by [`cnet_wire`].
//!
//! # Invariants
//!
//! Work and memory a frame are bounded; tables are capped a port. No input makes a panic. Ports
//! are announced with [`Gateway::add_port`] before frames from them come in.

mod arp;
mod dhcpv4;
mod dhcpv6;
mod dns;
mod dns_tcp;
mod icmp;
mod lease;
mod ndp;
mod neighbours;
mod output;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::io::{Env, Io};
use cnet_wire::dhcp;
use cnet_wire::frame::protocol;
use cnet_wire::time::Instant;
use cnet_wire::{DropReason, Frame, IpHeader, L3, MacAddr, PortId};

pub use dns::{DnsQuery, QueryId, Transport};
pub use lease::Lease;

use crate::icmp_error::RateLimit;
use dns::Dns;
use lease::Leases;
use neighbours::Neighbours;
use output::Output;

/// All nodes on the link (RFC 4291 section 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers on the link.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// All DHCPv6 servers and relays on the link (RFC 8415 section 7.1).
const ALL_DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Neighbour solicitations of our own, a second and at once.
const SOLICITS: (u32, u32) = (50, 100);

/// The gateway's IPv4 side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4Gateway {
    /// The gateway's address.
    pub address: Ipv4Addr,
    /// Bits of the subnet, at most 32.
    pub prefix_len: u8,
    /// The address that serves DNS; may be the gateway's own.
    pub dns: Option<Ipv4Addr>,
}

/// The gateway's IPv6 side. Its link-local address is fe80:: and the EUI-64 of its MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6Gateway {
    /// The gateway's address.
    pub address: Ipv6Addr,
    /// Bits of the prefix, at most 128; containers configure themselves (SLAAC) if it is 64.
    pub prefix_len: u8,
    /// The address that serves DNS; may be the gateway's own.
    pub dns: Option<Ipv6Addr>,
    /// Whether router advertisements offer a default route.
    pub advertise_default_route: bool,
}

/// What the gateway is and hands out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayConfig {
    /// The gateway's MAC address, the same on every port.
    pub mac: MacAddr,
    /// The links' IP MTU in bytes.
    pub mtu: u16,
    /// IPv4, if the network has it.
    pub v4: Option<Ipv4Gateway>,
    /// IPv6, if the network has it.
    pub v6: Option<Ipv6Gateway>,
    /// Domains in which resolvers search, the network's own first.
    pub search: Vec<String>,
    /// Fixed leases.
    pub leases: Vec<Lease>,
    /// First and last address for those without a fixed lease.
    pub dhcp_range: Option<(Ipv4Addr, Ipv4Addr)>,
}

/// What the gateway did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GatewayCounters {
    /// ARP replies sent.
    pub arp_replies: u64,
    /// Neighbour advertisements sent.
    pub neighbour_advertisements: u64,
    /// Router advertisements sent.
    pub router_advertisements: u64,
    /// Echo replies sent.
    pub echo_replies: u64,
    /// DHCPv4 messages answered, refusals included.
    pub dhcpv4_replies: u64,
    /// DHCPv6 messages answered.
    pub dhcpv6_replies: u64,
    /// ARP requests and neighbour solicitations sent.
    pub solicitations: u64,
    /// DNS queries over UDP taken in.
    pub dns_udp_queries: u64,
    /// DNS queries over TCP taken in.
    pub dns_tcp_queries: u64,
    /// DNS answers passed on.
    pub dns_answers: u64,
    /// DNS answers over UDP that had to be cut short.
    pub dns_truncated: u64,
    /// DNS connections closed because they were idle, stuck or had to make room.
    pub dns_tcp_aborts: u64,
}

/// A port the gateway serves.
#[derive(Default)]
struct Port {
    advertised: Option<Instant>,
}

/// The gateway of one network, on all its ports.
pub struct Gateway {
    cfg: GatewayConfig,
    link_local: Ipv6Addr,
    ports: BTreeMap<PortId, Port>,
    neighbours: Neighbours,
    leases: Leases,
    out: Output,
    dns: Dns,
    solicits: RateLimit,
    counters: GatewayCounters,
}

impl Gateway {
    /// A gateway without ports. `seed` is to be unpredictable: initial sequence numbers follow
    /// from it.
    pub fn new(mut cfg: GatewayConfig, seed: u64, now: Instant) -> Gateway {
        let fixed = std::mem::take(&mut cfg.leases);
        let iid = u64::from_be_bytes(cfg.mac.eui64());
        let mtu = usize::from(cfg.mtu);
        let dns_v4 = cfg.v4.and_then(|v4| v4.dns);
        let dns_v6 = cfg.v6.and_then(|v6| v6.dns);
        Gateway {
            link_local: Ipv6Addr::from(0xfe80_u128 << 112 | u128::from(iid)),
            ports: BTreeMap::new(),
            neighbours: Neighbours::default(),
            leases: Leases::new(fixed, cfg.dhcp_range),
            out: Output::new(cfg.mac, mtu, seed),
            dns: Dns::new((dns_v4, dns_v6), mtu, seed, now),
            solicits: RateLimit::new(SOLICITS.0, SOLICITS.1),
            counters: GatewayCounters::default(),
            cfg,
        }
    }

    /// The link-local address router advertisements come from.
    pub fn link_local(&self) -> Ipv6Addr {
        self.link_local
    }

    /// What was done so far.
    pub fn counters(&self) -> &GatewayCounters {
        &self.counters
    }

    /// Whether frames to `ip` are for [`Gateway::handle_frame`]: the gateway's addresses and the
    /// groups and broadcast addresses it listens to.
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.owns_unicast(ip)
            || match ip {
                IpAddr::V4(a) => {
                    let subnet = self.cfg.v4.map(|v4| v4.broadcast());
                    subnet.is_some_and(|b| a.is_broadcast() || b == Some(a))
                }
                IpAddr::V6(a) => {
                    self.cfg.v6.is_some()
                        && ([ALL_NODES, ALL_ROUTERS, ALL_DHCP_SERVERS].contains(&a)
                            || self.own_v6().any(|own| a == solicited_node(own)))
                }
            }
    }

    /// Whether `ip` is one of the addresses the gateway answers from.
    fn owns_unicast(&self, ip: IpAddr) -> bool {
        self.unicast_addresses().any(|own| ip == own)
    }

    fn own_v4(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let v4 = self.cfg.v4;
        v4.into_iter()
            .flat_map(|v4| std::iter::once(v4.address).chain(v4.dns))
    }

    fn own_v6(&self) -> impl Iterator<Item = Ipv6Addr> + use<> {
        let link_local = self.link_local;
        let v6 = self.cfg.v6;
        v6.into_iter()
            .flat_map(move |v6| [v6.address, link_local].into_iter().chain(v6.dns))
    }

    /// The addresses the gateway answers from.
    pub fn unicast_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.own_v4()
            .map(IpAddr::V4)
            .chain(self.own_v6().map(IpAddr::V6))
    }

    /// Whether a container looks for `ip` on its own link, without asking the gateway.
    pub fn is_on_link(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(a) => self.cfg.v4.is_some_and(|v4| {
                let hosts = u32::MAX.checked_shr(v4.prefix_len.into()).unwrap_or(0);
                u32::from(a) & !hosts == u32::from(v4.address) & !hosts
            }),
            IpAddr::V6(a) => {
                let in_prefix = self.cfg.v6.is_some_and(|v6| {
                    let hosts = u128::MAX.checked_shr(v6.prefix_len.into()).unwrap_or(0);
                    u128::from(a) & !hosts == u128::from(v6.address) & !hosts
                });
                a.is_unicast_link_local() || in_prefix
            }
        }
    }

    /// Whether `ip` is a DNS address.
    pub fn is_dns(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(a) => self.cfg.v4.is_some_and(|v4| v4.dns == Some(a)),
            IpAddr::V6(a) => self.cfg.v6.is_some_and(|v6| v6.dns == Some(a)),
        }
    }

    /// Serves `port` from now on. Frames from other ports are refused.
    pub fn add_port(&mut self, port: PortId) {
        self.ports.entry(port).or_default();
    }

    /// Forgets `port`, its neighbours, its fixed and dynamic leases and its queries.
    pub fn remove_port(&mut self, port: PortId) {
        self.ports.remove(&port);
        self.neighbours.remove_port(port);
        self.leases.remove_port(port);
        self.dns.remove_port(port);
    }

    /// Adds a fixed lease. Whoever else used its addresses loses them.
    pub fn add_lease(&mut self, lease: Lease) {
        for ip in lease.addresses() {
            if let Some((port, mac)) = self.neighbours.get(ip)
                && !lease.is_held_by(port, mac)
            {
                self.neighbours.forget(ip);
            }
        }
        self.leases.add(lease);
    }

    /// Where `ip` is, if it has spoken or its lease tells.
    pub fn neighbour(&self, ip: IpAddr) -> Option<(PortId, MacAddr)> {
        let seen = self.neighbours.get(ip);
        seen.or_else(|| self.leases.location(ip))
    }

    /// Notes that `ip` is at `mac` on `port`. Refused (false) when it is leased to or already
    /// bound to another port, is no unicast address, or is ours.
    pub fn learn(&mut self, ip: IpAddr, port: PortId, mac: MacAddr) -> bool {
        is_station(ip)
            && !mac.is_multicast()
            && self.ports.contains_key(&port)
            && !self.owns_unicast(ip)
            && self.leases.permits(ip, port, mac)
            && self.neighbours.learn(ip, port, mac)
    }

    /// Asks on every port who has `ip`; the answer comes in as a frame. Asking is rate limited.
    pub fn solicit(&mut self, now: Instant, ip: IpAddr, io: &mut Io<'_, impl Env>) {
        if !is_station(ip) || self.owns_unicast(ip) || !self.solicits.allow(now) {
            return;
        }
        let ports: Vec<PortId> = self.ports.keys().copied().collect();
        for port in ports {
            let sent = match ip {
                IpAddr::V4(ip) => self.send_arp_request(port, ip, io),
                IpAddr::V6(ip) => self.send_neighbour_solicitation(port, ip, io),
            };
            // A full port misses the question as it would miss any frame.
            if sent.is_ok() {
                self.counters.solicitations += 1;
            }
        }
    }

    /// Takes a frame for the gateway itself: ARP, or IP to an address it [`Gateway::owns`].
    /// Fragments are to be reassembled before.
    ///
    /// # Errors
    /// Why nothing came of it. [`DropReason::NotServed`] and [`DropReason::UnknownProtocol`] are
    /// for the caller to answer, with a RST or an ICMP error.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        port: PortId,
        frame: &Frame<'_>,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        if !self.ports.contains_key(&port) {
            return Err(DropReason::NoSuchPort);
        }
        match frame.l3 {
            L3::Arp => self.handle_arp(port, frame, io),
            L3::Ip(ip) => self.handle_ip(now, port, frame, &ip, io),
        }
    }

    fn handle_ip(
        &mut self,
        now: Instant,
        port: PortId,
        frame: &Frame<'_>,
        ip: &IpHeader,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let enabled = match ip.dst {
            IpAddr::V4(_) => self.cfg.v4.is_some(),
            IpAddr::V6(_) => self.cfg.v6.is_some(),
        };
        if !enabled {
            return Err(DropReason::FamilyDisabled);
        }
        if ip.fragment.is_some() {
            return Err(DropReason::BadFragment);
        }
        if !self.owns(ip.dst) {
            return Err(DropReason::NotServed);
        }
        if self.owns_unicast(ip.src) {
            return Err(DropReason::Spoofed);
        }
        if !frame.l4_checksum_ok(ip) {
            return Err(DropReason::BadChecksum);
        }
        match (ip.protocol, ip.dst) {
            (protocol::ICMP, IpAddr::V4(_)) => self.handle_icmp(port, frame, ip, io),
            (protocol::ICMPV6, IpAddr::V6(_)) => self.handle_icmpv6(now, port, frame, ip, io),
            (protocol::UDP, _) => self.handle_udp(port, frame, ip, io),
            (protocol::TCP, _) => self.handle_tcp(now, port, frame, ip, io),
            _ => Err(DropReason::UnknownProtocol),
        }
    }

    fn handle_udp(
        &mut self,
        port: PortId,
        frame: &Frame<'_>,
        ip: &IpHeader,
        io: &mut Io<'_, impl Env>,
    ) -> Result<(), DropReason> {
        let l4 = frame.l4(ip);
        let Some((&[s0, s1, d0, d1, l0, l1, _, _], _)) = l4.split_first_chunk::<8>() else {
            return Err(DropReason::BadUdpHeader);
        };
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let payload = l4
            .get(output::UDP_HEADER_LEN..len)
            .ok_or(DropReason::BadUdpHeader)?;
        let ports = [u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])];
        match ports {
            [0, _] | [_, 0] => Err(DropReason::PortZero),
            [_, dhcp::v4::SERVER_PORT] if ip.dst.is_ipv4() => {
                self.handle_dhcpv4(port, frame, ip, payload, io)
            }
            [_, dhcp::v6::SERVER_PORT] if ip.dst == IpAddr::V6(ALL_DHCP_SERVERS) => {
                self.handle_dhcpv6(port, frame, ip, payload, io)
            }
            [source, dns::PORT] => self.handle_dns_udp(port, frame, ip, source, payload),
            _ => Err(DropReason::NotServed),
        }
    }

    /// When [`Gateway::handle_timeout`] wants to be called; `None` while no DNS connection is open.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.dns.poll_timeout()
    }

    /// Acts on deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Instant, io: &mut Io<'_, impl Env>) {
        self.dns
            .handle_timeout(now, &mut self.out, &mut self.counters, io);
    }

    /// The next DNS query to be resolved.
    pub fn take_query(&mut self) -> Option<DnsQuery> {
        self.dns.take_query()
    }

    /// Sends `message` to whoever asked query `id`. Over UDP it is truncated (TC, RFC 2181
    /// section 9) where it is longer than the client said it takes or than fits the MTU. Nothing
    /// happens if the client is gone or the query was given up in favour of later ones.
    pub fn answer(&mut self, now: Instant, id: QueryId, message: &[u8], io: &mut Io<'_, impl Env>) {
        self.dns
            .answer(now, id, message, &mut self.out, &mut self.counters, io);
    }
}

impl Ipv4Gateway {
    fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix_len.min(32)))
            .unwrap_or(0)
    }

    fn contains(self, a: Ipv4Addr) -> bool {
        (u32::from(a) ^ u32::from(self.address)) & self.mask() == 0
    }

    /// The subnet's broadcast address; none in a /31 or /32 (RFC 3021).
    fn broadcast(self) -> Option<Ipv4Addr> {
        (self.prefix_len < 31).then(|| Ipv4Addr::from(u32::from(self.address) | !self.mask()))
    }

    /// Whether `a` could be a container's address in the subnet.
    fn is_host(self, a: Ipv4Addr) -> bool {
        let network = Ipv4Addr::from(u32::from(self.address) & self.mask());
        self.contains(a)
            && a != self.address
            && Some(a) != self.dns
            && (self.prefix_len >= 31 || (a != network && Some(a) != self.broadcast()))
    }
}

impl Ipv6Gateway {
    fn mask(self) -> u128 {
        u128::MAX
            .checked_shl(128 - u32::from(self.prefix_len.min(128)))
            .unwrap_or(0)
    }

    fn prefix(self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.address) & self.mask())
    }

    fn contains(self, a: Ipv6Addr) -> bool {
        (u128::from(a) ^ u128::from(self.address)) & self.mask() == 0
    }
}

/// The solicited-node group of `a` (RFC 4291 section 2.7.1).
fn solicited_node(a: Ipv6Addr) -> Ipv6Addr {
    let low = u128::from(a) & 0xff_ffff;
    Ipv6Addr::from(0xff02_0000_0000_0000_0000_0001_ff00_0000_u128 | low)
}

/// The MAC address of an IPv6 group (RFC 2464 section 7).
fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// Whether `ip` can be a single station's address on a link.
fn is_station(ip: IpAddr) -> bool {
    let special = match ip {
        IpAddr::V4(a) => a.octets()[0] == 0 || a.is_loopback() || a.octets()[0] >= 224,
        IpAddr::V6(a) => a.is_unspecified() || a.is_multicast() || a.is_loopback(),
    };
    !special
}
