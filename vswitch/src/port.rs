//! A port of the switch: what was leased to the container behind it, what it may do, and what
//! passed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::fdb::REFRESH_INTERVAL;
use cnet_wire::access::Access;
use cnet_wire::addr::{MacAddr, PortId};
use cnet_wire::drops::{DropCounters, DropReason};
use cnet_wire::time::Instant;

/// Ports are numbered below this.
pub const MAX_PORTS: u32 = 4096;

/// Learned MAC addresses a port may have unless it says otherwise.
pub const DEFAULT_MAX_MACS: usize = 32;
/// IP addresses a port may take first-come, beside its leased ones, unless it says otherwise.
pub const DEFAULT_MAX_ADDRESSES: usize = 32;

/// The addresses that belong to a port and to no other: told once, and known to the switch and to the
/// gateway from then on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lease {
    /// The MAC address, where it is known beforehand.
    pub mac: Option<MacAddr>,
    /// IPv4 addresses.
    pub ipv4: Vec<Ipv4Addr>,
    /// IPv6 addresses.
    pub ipv6: Vec<Ipv6Addr>,
    /// The name of who holds them, which DHCP tells.
    pub hostname: Option<String>,
}

impl Lease {
    /// A lease of a MAC address and IP addresses.
    pub fn of(mac: MacAddr, addresses: impl IntoIterator<Item = IpAddr>) -> Lease {
        let mut lease = Lease {
            mac: Some(mac),
            ..Lease::default()
        };
        for address in addresses {
            match address {
                IpAddr::V4(a) => lease.ipv4.push(a),
                IpAddr::V6(a) => lease.ipv6.push(a),
            }
        }
        lease
    }

    /// All leased IP addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let v4 = self.ipv4.iter().copied().map(IpAddr::V4);
        v4.chain(self.ipv6.iter().copied().map(IpAddr::V6))
    }

    /// Whether `addr` is leased.
    pub fn holds(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) => self.ipv4.contains(&a),
            IpAddr::V6(a) => self.ipv6.contains(&a),
        }
    }
}

/// What is behind a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PortRole {
    /// A container or a VM, with a lease of its own.
    #[default]
    Station,
    /// Another switch of the same network, and so stations that no lease here tells of. Their addresses
    /// are learned, whatever [`PortConfig::spoof_protection`] says; what is leased here is not theirs.
    /// Nothing passes from one uplink to another (split horizon): each reaches the others itself, and a
    /// frame that came back would go round.
    Uplink,
    /// The router: its port is [`PortId::ROUTER`], which every switch has from the start
    /// ([`crate::SwitchConfig::router`]), and no other. Isolated ports reach it too.
    Router,
}

/// How a port is set up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortConfig {
    /// What is behind it.
    pub role: PortRole,
    /// Its own addresses.
    pub lease: Lease,
    /// Drop what comes from other addresses than the lease's and what DHCP has granted. With it, IPv6
    /// link-local addresses and those of the network's own prefixes are taken first-come (RFC 6620).
    /// Without it, all addresses are.
    pub spoof_protection: bool,
    /// The port exchanges frames with the gateway and with no other port.
    pub isolated: bool,
    /// What is behind an uplink may offer what only the router offers elsewhere: router advertisements,
    /// DHCP. Questions for such services leave by it.
    pub offers_services: bool,
    /// How many MAC addresses may be learned behind the port, the leased one not counted. With
    /// spoof protection and a leased MAC address none is.
    pub max_macs: usize,
    /// How many IP addresses the port may take first-come, beside those leased or granted to it.
    pub max_addresses: usize,
}

impl Default for PortConfig {
    /// No lease, no protection: a network of one container.
    fn default() -> Self {
        PortConfig {
            role: PortRole::Station,
            lease: Lease::default(),
            spoof_protection: false,
            isolated: false,
            offers_services: false,
            max_macs: DEFAULT_MAX_MACS,
            max_addresses: DEFAULT_MAX_ADDRESSES,
        }
    }
}

impl PortConfig {
    /// Whether what comes from other addresses than the port's own is dropped.
    pub(crate) fn is_guarded(&self) -> bool {
        self.spoof_protection && self.role == PortRole::Station
    }
}

/// Why a port was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddPortError {
    /// The number is [`MAX_PORTS`] or more.
    #[error("port number {} is out of range", .0.0)]
    OutOfRange(PortId),
    /// There is a port of that number.
    #[error("port {} exists already", .0.0)]
    Exists(PortId),
    /// The lease's MAC address is a group address, zero, or the gateway's.
    #[error("{0} cannot be a container's MAC address")]
    UnusableMac(MacAddr),
    /// The lease's MAC address is another port's.
    #[error("MAC address {0} is in use")]
    MacInUse(MacAddr),
    /// The leased address is the gateway's or another port's.
    #[error("address {0} is in use")]
    AddressInUse(IpAddr),
}

/// What passed a port, as one worker saw it. What goes out to a device, and what finds it full, is counted
/// where the device is written ([`cnet_wire::FrameSink`]): it may make several frames of one.
#[derive(Clone, Debug, Default)]
pub struct PortCounters {
    /// Frames that came in, dropped ones included; a super-frame counts as one.
    pub frames_in: u64,
    /// Their bytes, without virtio-net headers.
    pub bytes_in: u64,
    /// Frames that were given to the router: of its port alone.
    pub frames_out: u64,
    /// Their bytes, without virtio-net headers.
    pub bytes_out: u64,
    /// Frames that came in and were dropped, by the switch or by the router.
    pub drops: DropCounters,
}

/// A port as one worker sees it.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) config: PortConfig,
    pub(crate) counters: PortCounters,
    /// Saves asking the tables about each frame.
    pub(crate) last_source: LastSource,
    /// What policies allow; `None` where none selects the container.
    pub(crate) access: Option<Arc<Access>>,
}

/// The source of the last frame admitted: what the tables said is the port's own, and when. Fresher
/// than their refresh interval, it saves asking again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastSource {
    /// Zero, which no frame comes from, where there is none.
    mac: MacAddr,
    /// When the forwarding table said that `mac` is the port's own.
    at: Instant,
    /// The last addresses used with `mac` since; unspecified, which any port may use, where there is
    /// none.
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl LastSource {
    pub(crate) const NONE: LastSource = LastSource::new(MacAddr([0; 6]), Instant::ZERO);

    pub(crate) const fn new(mac: MacAddr, at: Instant) -> LastSource {
        LastSource {
            mac,
            at,
            v4: Ipv4Addr::UNSPECIFIED,
            v6: Ipv6Addr::UNSPECIFIED,
        }
    }

    /// Whether `mac` is known to be the port's own. Unless it is, nothing is known of addresses either.
    #[inline]
    pub(crate) fn is(&self, now: Instant, mac: MacAddr) -> bool {
        self.mac == mac && now.saturating_since(self.at) < REFRESH_INTERVAL
    }

    /// Whether `address` is known to be the port's own, at the same MAC address.
    #[inline]
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => self.v4 == a,
            IpAddr::V6(a) => self.v6 == a,
        }
    }

    pub(crate) fn add(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(a) => self.v4 = a,
            IpAddr::V6(a) => self.v6 = a,
        }
    }
}

impl Port {
    pub(crate) fn new(config: PortConfig) -> Self {
        Port {
            config,
            counters: PortCounters::default(),
            last_source: LastSource::NONE,
            access: None,
        }
    }

    /// Whether stations may live behind the port that no lease tells of.
    pub(crate) fn learns(&self) -> bool {
        !self.config.is_guarded() || self.config.lease.mac.is_none()
    }

    /// Whether frames may pass between this port and `other`, which is not the same.
    pub(crate) fn may_exchange_with(&self, other: &Port) -> bool {
        match (self.config.role, other.config.role) {
            // Stations behind an uplink have a router of their own.
            (PortRole::Router | PortRole::Uplink, PortRole::Uplink)
            | (PortRole::Uplink, PortRole::Router) => false,
            (PortRole::Router, _) | (_, PortRole::Router) => true,
            _ => !self.config.isolated && !other.config.isolated,
        }
    }

    pub(crate) fn count_in(&mut self, bytes: usize) {
        self.counters.frames_in += 1;
        self.counters.bytes_in += bytes as u64;
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason) {
        self.counters.drops.count(reason);
    }
}
