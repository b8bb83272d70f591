//! The switch: one verdict on each frame, and its delivery.
//!
//! # Theory of operation
//!
//! [`Switch::handle_frame`] first asks whether the container may say this (sources, claims, rogue
//! services), then where it goes: to the port the forwarding table names, or to all others. It writes
//! the frame to those ports. The router is behind a port as well, [`PortId::ROUTER`], where its addresses
//! are pinned like those of a lease; what is delivered there is counted, and its caller takes it on.
//! What the router sends comes in by the same port ([`RouterPort`]). Only a group address, or a station not yet heard of, makes a
//! flood; where every port's stations are known by lease, a frame to an unknown one has nowhere to
//! go and is dropped.
//!
//! Each worker has a `Switch` of its own, with its own counters, made by [`Switch::for_worker`].
//! They share the table of stations. The shell tells each of them of every port that comes and goes, and
//! gives a port's number to another only once all have heard that it is free.
//!
//! # Invariants
//!
//! - No frame leaves by the port it came from.
//! - Nothing passes between an isolated port and any other, nor from uplink to uplink, nor between an
//!   uplink and the router.
//! - A leased address is one port's, whatever others say; the router's are leases too.
//!
//! # Limits
//!
//! There is no multicast snooping: groups are flooded. There is no spanning tree: ports lead to
//! containers, and what a container loops back is refused by its source; uplinks are a full mesh.

use std::net::IpAddr;
use std::sync::Arc;

use crate::admit::rules::{Pair, resolves_address};
use crate::admit::{Source, admit};
use crate::fdb::{AddressTable, Fdb};
use crate::port::{AddPortError, LastSource, MAX_PORTS, Port, PortConfig, PortCounters, PortRole};
use crate::router_port::{Neighbours, RouterPort};
use crate::stations::{Stations, SwitchConfig};
use crate::uplink::{self, Question};
use cnet_wire::access::Access;
use cnet_wire::addr::{MacAddr, PortId};
use cnet_wire::arp::OP_REQUEST;
use cnet_wire::drops::{DropCounters, DropReason};
use cnet_wire::frame::{Frame, L3, protocol};
use cnet_wire::icmp;
use cnet_wire::ndp;
use cnet_wire::sink::FrameSink;
use cnet_wire::time::Instant;

/// Where a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// To this port alone, be it the router's.
    Port(PortId),
    /// To the ports that [`Switch::flood_ports`] names.
    Flood {
        /// And to the router's.
        router: bool,
    },
    /// Nowhere.
    Drop(DropReason),
    /// Nowhere, by what policies allow: the sender is to be told.
    Refuse,
}

/// What is left to do with a frame that the switch took in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Delivery {
    /// Nothing.
    Done,
    /// The router is to have it.
    Router,
}

/// The switch, as one worker sees it.
#[derive(Debug)]
pub struct Switch {
    stations: Arc<Stations>,
    /// The port [`PortId::ROUTER`].
    router: Port,
    /// All others, by number.
    ports: Vec<Option<Box<Port>>>,
    /// Drops at ports that are gone, or never were.
    elsewhere: DropCounters,
    /// Room for the ports of a flood, so that none allocates.
    flooded: Vec<PortId>,
    /// How many of the ports are uplinks.
    uplinks: usize,
    /// How many ports have a container that policies select.
    selected: usize,
}

impl Switch {
    /// A switch with the router's port alone.
    pub fn new(config: SwitchConfig) -> Self {
        let stations = Stations::new(config.ipv6_prefixes, config.seed);
        let router = PortConfig {
            role: PortRole::Router,
            lease: config.router,
            ..PortConfig::default()
        };
        // The tables are empty: no other port has these addresses.
        let _ = stations.pin(PortId::ROUTER, &router.lease);
        Switch {
            stations: Arc::new(stations),
            router: Port::new(router),
            ports: Vec::new(),
            elsewhere: DropCounters::default(),
            flooded: Vec::new(),
            uplinks: 0,
            selected: 0,
        }
    }

    /// The same switch for another worker: the same ports and shared tables, its own counters.
    pub fn for_worker(&self) -> Switch {
        let port = |p: &Port| {
            let mut port = Port::new(p.config.clone());
            port.access.clone_from(&p.access);
            Box::new(port)
        };
        Switch {
            stations: Arc::clone(&self.stations),
            router: Port::new(self.router.config.clone()),
            ports: self.ports.iter().map(|p| p.as_deref().map(port)).collect(),
            elsewhere: DropCounters::default(),
            flooded: Vec::new(),
            uplinks: self.uplinks,
            selected: self.selected,
        }
    }

    /// Adds a port and pins its leased addresses to it. To be called on every worker's switch.
    pub fn add_port(&mut self, id: PortId, config: PortConfig) -> Result<(), AddPortError> {
        if id.0 >= MAX_PORTS {
            return Err(AddPortError::OutOfRange(id));
        }
        if self.port(id).is_some() {
            return Err(AddPortError::Exists(id));
        }
        if config.role == PortRole::Router {
            return Err(AddPortError::Exists(PortId::ROUTER));
        }
        if let Err(e) = self.stations.pin(id, &config.lease) {
            self.stations.remove_port(id);
            return Err(e);
        }
        let index = id.0 as usize;
        if self.ports.len() <= index {
            self.ports.resize_with(index + 1, || None);
        }
        self.uplinks += usize::from(config.role == PortRole::Uplink);
        self.ports[index] = Some(Box::new(Port::new(config)));
        // The new lease may have taken a learned address from another port.
        for port in self.ports.iter_mut().flatten() {
            port.last_source = LastSource::NONE;
        }
        Ok(())
    }

    /// Removes a port with all that was leased to it or learned from it; returns its counters. To
    /// be called on every worker's switch before the number is used again.
    pub fn remove_port(&mut self, id: PortId) -> Option<PortCounters> {
        let port = self.ports.get_mut(id.0 as usize)?.take()?;
        self.stations.remove_port(id);
        self.selected -= usize::from(port.access.is_some());
        self.elsewhere.add(&port.counters.drops);
        self.uplinks -= usize::from(port.config.role == PortRole::Uplink);
        Some(port.counters)
    }

    /// Has `access` be what policies allow to the container at `id`; `None` where none selects it. To be
    /// called on every worker's switch.
    pub fn set_access(&mut self, id: PortId, access: Option<Arc<Access>>) {
        if let Some(port) = port_mut(&mut self.ports, id) {
            self.selected += usize::from(access.is_some());
            self.selected -= usize::from(port.access.is_some());
            port.access = access;
        }
    }

    /// Takes a frame in that came by `ingress`: admits it, writes it to the ports it goes to, and says
    /// whether the router is to have it, too. `raw` is all of it as it came, virtio-net header first:
    /// what is written.
    ///
    /// # Errors
    ///
    /// Why it was dropped; to be counted with [`Switch::count_drop`].
    #[inline]
    pub fn handle_frame(
        &mut self,
        now: Instant,
        ingress: PortId,
        frame: &Frame<'_>,
        raw: &[u8],
        sink: &mut impl FrameSink,
    ) -> Result<Delivery, DropReason> {
        let verdict = self.judge(now, ingress, frame);
        self.deliver(ingress, (frame, raw), verdict, sink)
    }

    /// Does with a frame that came in by `ingress` what [`Switch::judge`] said, for callers that have
    /// a say in it.
    ///
    /// # Errors
    ///
    /// As [`Switch::handle_frame`].
    #[inline]
    pub fn deliver(
        &mut self,
        ingress: PortId,
        (frame, raw): (&Frame<'_>, &[u8]),
        verdict: Verdict,
        sink: &mut impl FrameSink,
    ) -> Result<Delivery, DropReason> {
        match verdict {
            Verdict::Port(PortId::ROUTER) => Ok(self.give_to_router(frame)),
            Verdict::Port(egress) => {
                write(egress, raw, sink);
                Ok(Delivery::Done)
            }
            Verdict::Flood { router } => {
                self.flood(ingress, frame, raw, sink);
                Ok(match router {
                    true => self.give_to_router(frame),
                    false => Delivery::Done,
                })
            }
            Verdict::Drop(reason) => Err(reason),
            Verdict::Refuse => Err(DropReason::Policy),
        }
    }

    #[inline]
    fn give_to_router(&mut self, frame: &Frame<'_>) -> Delivery {
        self.router.counters.frames_out += 1;
        self.router.counters.bytes_out += frame.bytes.len() as u64;
        Delivery::Router
    }

    /// The router's port, for the time of a call into the router: what it sends leaves for `sink`.
    #[inline]
    pub fn router_port<'a, S: FrameSink>(
        &'a mut self,
        sink: &'a mut S,
    ) -> (Neighbours<'a>, RouterPort<'a, S>) {
        let neighbours = Neighbours {
            stations: &self.stations,
            ports: &self.ports,
        };
        let counters = &mut self.router.counters;
        (neighbours, RouterPort { sink, counters })
    }

    /// Who is behind the ports that are not the router's.
    pub fn neighbours(&self) -> Neighbours<'_> {
        Neighbours {
            stations: &self.stations,
            ports: &self.ports,
        }
    }

    /// Judges a frame that came in by `ingress`, and counts it there as come in.
    #[inline]
    pub fn judge(&mut self, now: Instant, ingress: PortId, frame: &Frame<'_>) -> Verdict {
        let Some(port) = port_mut(&mut self.ports, ingress) else {
            return Verdict::Drop(DropReason::NoSuchPort);
        };
        port.count_in(frame.bytes.len());
        let mut source = Source {
            now,
            id: ingress,
            port,
            stations: &self.stations,
        };
        match admit(&mut source, frame) {
            Ok(()) => {
                let verdict = self.forward(now, ingress, frame);
                match self.selected {
                    0 => verdict,
                    _ => self.ask_rules(now, ingress, frame, verdict),
                }
            }
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// Asks what policies allow about a frame that goes to one container. A frame to several is asked
    /// about for each ([`Switch::flood`]).
    fn ask_rules(
        &self,
        now: Instant,
        ingress: PortId,
        frame: &Frame<'_>,
        verdict: Verdict,
    ) -> Verdict {
        let (Verdict::Port(egress), L3::Ip(ip)) = (verdict, &frame.l3) else {
            return verdict;
        };
        let pair = self.pair(ingress, egress);
        let passes = egress == PortId::ROUTER
            || pair.is_open()
            || resolves_address(frame, ip)
            || pair.admits(now, frame, ip, &self.stations.conntrack);
        match passes {
            true => verdict,
            false => Verdict::Refuse,
        }
    }

    fn pair(&self, ingress: PortId, egress: PortId) -> Pair<'_> {
        let access = |id: PortId| self.port(id)?.access.as_deref();
        Pair {
            sender: access(ingress),
            receiver: access(egress),
            ingress,
        }
    }

    fn may_flood(&self, ingress: PortId, egress: PortId, frame: &Frame<'_>) -> bool {
        let L3::Ip(ip) = &frame.l3 else {
            return true;
        };
        let pair = self.pair(ingress, egress);
        pair.is_open() || resolves_address(frame, ip) || pair.admits_flooded(frame, ip)
    }

    fn flood(&mut self, ingress: PortId, frame: &Frame<'_>, raw: &[u8], sink: &mut impl FrameSink) {
        let mut egresses = std::mem::take(&mut self.flooded);
        egresses.extend(self.flooded_to(ingress, frame));
        if self.selected > 0 {
            egresses.retain(|&egress| self.may_flood(ingress, egress, frame));
        }
        for egress in egresses.drain(..) {
            write(egress, raw, sink);
        }
        self.flooded = egresses;
    }

    /// Counts a frame of `bytes` (without its virtio-net header) that came in by `ingress` and
    /// never got to [`Switch::handle_frame`].
    pub fn count_refused(&mut self, ingress: PortId, bytes: usize) {
        if let Some(port) = port_mut(&mut self.ports, ingress) {
            port.count_in(bytes);
        }
    }

    /// Counts a drop: the one place where those of frames are counted, the router's included. It is
    /// counted at `port`, or with those of ports that are gone where there is no such port.
    #[inline]
    pub fn count_drop(&mut self, port: PortId, reason: DropReason) {
        match port_mut(&mut self.ports, port) {
            Some(port) => port.count_drop(reason),
            None => self.elsewhere.count(reason),
        }
    }

    /// All drops counted so far, those at ports that are gone included.
    pub fn drops(&self) -> DropCounters {
        let mut all = self.elsewhere.clone();
        for port in self.ports.iter().flatten() {
            all.add(&port.counters.drops);
        }
        all
    }

    /// Where an admitted frame goes.
    #[inline]
    fn forward(&self, now: Instant, ingress: PortId, frame: &Frame<'_>) -> Verdict {
        // As the forwarding table would say, and most frames ask.
        if self.uplinks == 0 && self.router.config.lease.mac == Some(frame.dst) {
            return Verdict::Port(PortId::ROUTER);
        }
        self.look_up(now, ingress, frame)
    }

    fn look_up(&self, now: Instant, ingress: PortId, frame: &Frame<'_>) -> Verdict {
        let dst = frame.dst;
        let nowhere = Verdict::Drop(DropReason::NoSuchPort);
        // Stations behind an uplink have a gateway of their own.
        let from_uplink = self.uplinks > 0 && self.is_uplink(ingress);
        if self.router.config.lease.mac == Some(dst) && !from_uplink {
            return Verdict::Port(PortId::ROUTER);
        }
        if dst.is_multicast() {
            let router = !from_uplink && !self.asks_for_another(ingress, frame);
            return match (self.flooded_to(ingress, frame).next(), router) {
                (Some(_), router) => Verdict::Flood { router },
                (None, true) => Verdict::Port(PortId::ROUTER),
                (None, false) => nowhere,
            };
        }
        match self.stations.fdb.lookup(now, dst) {
            Some(egress) if self.may_pass(ingress, egress) => Verdict::Port(egress),
            Some(_) => nowhere,
            None if self.flood_ports(ingress, dst).next().is_some() => {
                Verdict::Flood { router: false }
            }
            None => nowhere,
        }
    }

    /// Whether the frame asks who has an address that is leased to another container: the gateway need
    /// not hear that.
    fn asks_for_another(&self, ingress: PortId, frame: &Frame<'_>) -> bool {
        let target = match &frame.l3 {
            L3::Arp => frame
                .arp()
                .filter(|a| a.operation == OP_REQUEST)
                .map(|a| IpAddr::V4(a.target_ip)),
            L3::Ip(ip) if ip.protocol == protocol::ICMPV6 => match frame.l4(ip) {
                l4 @ [icmp::v6::NEIGHBOUR_SOLICITATION, ..] => ndp::target(l4).map(IpAddr::V6),
                _ => None,
            },
            L3::Ip(_) => None,
        };
        let owner = target.and_then(|t| self.stations.addresses.pinned(t));
        owner.is_some_and(|owner| owner != ingress && owner != PortId::ROUTER)
    }

    fn may_pass(&self, ingress: PortId, egress: PortId) -> bool {
        let (Some(from), Some(to)) = (self.port(ingress), self.port(egress)) else {
            return false;
        };
        ingress != egress && from.may_exchange_with(to)
    }

    /// The ports that a flooded frame from `ingress` to `dst` goes to, the router's aside: all others that
    /// are not isolated, or, if `dst` is a station not yet heard of, those of them it may be behind.
    pub fn flood_ports(&self, ingress: PortId, dst: MacAddr) -> impl Iterator<Item = PortId> + '_ {
        let group = dst.is_multicast();
        self.neighbours()
            .numbers()
            .filter(move |&id| self.may_pass(ingress, id))
            .filter(move |&id| group || self.port(id).is_some_and(Port::learns))
    }

    /// As [`Switch::flood_ports`], for this frame: what is for the gateway alone stays on this side of
    /// uplinks.
    fn flooded_to(&self, ingress: PortId, frame: &Frame<'_>) -> impl Iterator<Item = PortId> + '_ {
        let stays = self.uplinks > 0
            && frame.dst.is_multicast()
            && uplink::stays_here(frame, &self.stations);
        self.flood_ports(ingress, frame.dst)
            .filter(move |&id| !(stays && self.keeps_services_here(id)))
    }

    /// Whether `id` is an uplink that offers no services of its own.
    fn keeps_services_here(&self, id: PortId) -> bool {
        self.is_uplink(id)
            && self
                .port(id)
                .is_some_and(|port| !port.config.offers_services)
    }

    /// Whether `id` leads to another switch of the network.
    #[inline]
    pub fn is_uplink(&self, id: PortId) -> bool {
        self.port(id)
            .is_some_and(|port| port.config.role == PortRole::Uplink)
    }

    /// Whether any port leads to another switch.
    #[inline]
    pub fn has_uplinks(&self) -> bool {
        self.uplinks > 0
    }

    /// What the station at `ingress` asks all others in `frame`, and the MAC address of the station
    /// behind an uplink that has the answer, if that one was heard of a moment ago.
    pub fn answer_in_place(
        &self,
        now: Instant,
        ingress: PortId,
        frame: &Frame<'_>,
    ) -> Option<(Question, MacAddr)> {
        if self.is_uplink(ingress) {
            return None;
        }
        let question = uplink::question(frame)?;
        let known = self.stations.addresses.heard(now, question.target());
        let (port, mac) = known.filter(|&(port, _)| self.is_uplink(port))?;
        self.may_pass(ingress, port).then_some((question, mac?))
    }

    /// All ports, the router's first.
    pub fn ports(&self) -> impl Iterator<Item = PortId> + '_ {
        std::iter::once(PortId::ROUTER).chain(self.neighbours().numbers())
    }

    /// What this worker counted at `port`.
    pub fn counters(&self, port: PortId) -> Option<&PortCounters> {
        self.port(port).map(|p| &p.counters)
    }

    /// What this worker counted at the router's port.
    pub fn router_counters(&self) -> &PortCounters {
        &self.router.counters
    }

    /// The port that `addr` is leased to.
    pub fn port_of_address(&self, addr: IpAddr) -> Option<PortId> {
        self.stations.addresses.pinned(addr)
    }

    /// Who is where.
    pub fn stations(&self) -> &Stations {
        &self.stations
    }

    /// The forwarding table.
    pub fn fdb(&self) -> &Fdb {
        &self.stations.fdb
    }

    /// The IP addresses that are leased, or taken first-come.
    pub fn addresses(&self) -> &AddressTable {
        &self.stations.addresses
    }

    fn port(&self, id: PortId) -> Option<&Port> {
        if id == PortId::ROUTER {
            return Some(&self.router);
        }
        self.ports.get(id.0 as usize)?.as_deref()
    }
}

/// Writes a frame to a port. The sink counts it, and what the port did not take: a device may make
/// several frames of one.
#[inline]
fn write(egress: PortId, raw: &[u8], sink: &mut impl FrameSink) {
    let _ = sink.emit(egress, raw);
}

/// Of the ports that are not the router's: its frames are not judged, and nothing is dropped there.
fn port_mut(ports: &mut [Option<Box<Port>>], id: PortId) -> Option<&mut Port> {
    ports.get_mut(id.0 as usize)?.as_deref_mut()
}
