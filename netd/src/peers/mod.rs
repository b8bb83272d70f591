//! What leads out of a network at layer 2: the tunnels to the other hosts of an overlay, or the host's LAN.
//!
//! # Theory of operation
//!
//! [`open`] finds the peers of a definition and opens the tunnels' sockets. It runs before the process
//! enters its sandbox, where no name can be resolved any more. The opened end becomes a port of the
//! switch once the network runs.
//!
//! A host takes frames from the addresses of its peers. A container of this network that sent VXLAN
//! datagrams to a peer by way of this host's own address would speak as this host; so [`refusals`] keeps
//! them from it.
//!
//! # Limits
//!
//! Names are resolved when the network starts. Any program of the host may send from its address: an
//! overlay trusts its hosts, and what is between them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use cnet::control::{PeerReport, StationReport, UplinkReport};
use cnet::definition::{Definition, Overlay, Peer};
use cnet_dataplane::{
    Direction, PolicyRule, PortDevice, PortPlan, Prefix, Refusal, Station, Vxlan, VxlanConfig,
};
use cnet_wire::Vni;

use crate::report::by_reason;

mod lan;

/// Why there are no tunnels.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeersError {
    /// A name.
    #[error("cannot find the peer {peer}: {source}")]
    Unknown {
        /// Which.
        peer: Peer,
        /// Why.
        source: io::Error,
    },
    /// The interface of the LAN.
    #[error("cannot use {parent}: {why}")]
    Lan {
        /// Its name.
        parent: String,
        /// Why, and what to do about it.
        why: String,
    },
    /// The sockets.
    #[error("cannot open the tunnels on UDP port {port}: {source}{}", hint(source))]
    Open {
        /// This host's port.
        port: u16,
        /// Why.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another network or the kernel has it: make the network with another --port, and name that port with --peer on the other hosts"
        }
        _ => "",
    }
}

/// What was opened for a network.
#[derive(Debug)]
pub(crate) enum Uplink {
    /// The end of an overlay's tunnels.
    Tunnels {
        device: Box<Vxlan>,
        /// Where the peers are.
        peers: Vec<SocketAddr>,
    },
    /// The host's LAN, by a packet socket.
    Lan(OwnedFd),
}

impl Uplink {
    /// What it adds to the network's policy.
    pub(crate) fn refusals(&self) -> Vec<PolicyRule> {
        match self {
            Uplink::Tunnels { peers, .. } => refusals(peers).collect(),
            Uplink::Lan(_) => Vec::new(),
        }
    }

    /// Its port and device.
    pub(crate) fn port(self) -> (PortPlan, PortDevice) {
        match self {
            Uplink::Tunnels { device, .. } => (PortPlan::uplink(), PortDevice::Vxlan(device)),
            Uplink::Lan(socket) => (PortPlan::lan(), PortDevice::Raw(socket)),
        }
    }
}

/// Opens what leads out of `definition`, if anything does.
pub(crate) fn open(definition: &Definition) -> Result<Option<Uplink>, PeersError> {
    if let Some(lan) = &definition.lan {
        return Ok(Some(Uplink::Lan(lan::open(&lan.parent)?)));
    }
    let Some(overlay) = &definition.overlay else {
        return Ok(None);
    };
    let mut peers = Vec::new();
    for peer in &overlay.peers {
        let found = peer.resolve(overlay.port);
        peers.push(found.map_err(|source| PeersError::Unknown {
            peer: peer.clone(),
            source,
        })?);
    }
    let config = VxlanConfig {
        vni: vni(overlay),
        port: overlay.port,
        peers: peers.clone(),
    };
    let opened = Vxlan::open(&config);
    let device = opened.map_err(|source| PeersError::Open {
        port: overlay.port,
        source,
    })?;
    let device = Box::new(device);
    Ok(Some(Uplink::Tunnels { device, peers }))
}

/// The network's number, which was checked when the definition was.
fn vni(overlay: &Overlay) -> Vni {
    Vni::new(overlay.vni & Vni::MAX).unwrap_or(const { Vni::new(1).unwrap() })
}

/// What keeps containers from speaking to `peers` as this host.
fn refusals(peers: &[SocketAddr]) -> impl Iterator<Item = PolicyRule> + '_ {
    const UDP: u8 = 17;
    peers.iter().map(|peer| PolicyRule {
        protocol: Some(UDP),
        remote: Some(Prefix {
            address: peer.ip(),
            len: u8::MAX,
        }),
        service: Some(peer.port()..=peer.port()),
        ..PolicyRule::all(Direction::Outwards, Some(Refusal::Prohibited))
    })
}

/// What clients are told of the uplinks of `definition`.
pub(crate) fn report(
    definition: &Definition,
    uplinks: &[cnet_dataplane::UplinkReport],
) -> Vec<UplinkReport> {
    let station = |(mac, addresses): &Station| StationReport {
        mac: *mac,
        addresses: addresses.clone(),
    };
    let peer = |peer: &cnet_dataplane::PeerReport| {
        let mut told = PeerReport::new(peer.address);
        told.frames_received = peer.counters.frames_in;
        told.bytes_received = peer.counters.bytes_in;
        told.frames_sent = peer.counters.frames_out;
        told.bytes_sent = peer.counters.bytes_out;
        told.frames_lost = peer.counters.lost;
        told.stations = peer.stations.iter().map(station).collect();
        told
    };
    let uplink = |uplink: &cnet_dataplane::UplinkReport| {
        let mut told = match (&definition.overlay, &definition.lan) {
            (Some(overlay), _) => {
                let mut told = UplinkReport::new("vxlan");
                (told.vni, told.port) = (Some(overlay.vni), Some(overlay.port));
                told
            }
            (None, lan) => {
                let mut told = UplinkReport::new("raw");
                told.parent = lan.as_ref().map(|lan| lan.parent.clone());
                told
            }
        };
        told.stations = uplink.stations.iter().map(station).collect();
        told.peers = uplink.peers.iter().map(peer).collect();
        told.drops = by_reason(&uplink.drops);
        told.lost_datagrams = uplink.lost_datagrams;
        told
    };
    uplinks.iter().map(uplink).collect()
}
