//! What is told of the uplinks of a network: other hosts, or the host's own LAN, and the stations behind
//! them.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::{Counters, text};

/// An uplink, and what passed it since the network's process started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UplinkReport {
    /// `vxlan`, or `raw` for an interface of the host.
    pub kind: String,
    /// The VXLAN network identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The UDP port of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The interface of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The other hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerReport>,
    /// The stations that were learned on the host's LAN.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stations: Vec<StationReport>,
    /// Frames that were dropped at it, both ways, by reason.
    pub drops: Counters,
    /// Datagrams that were lost because the socket's buffer was full: `net.core.rmem_max` bounds it.
    #[serde(default)]
    pub lost_datagrams: u64,
}

impl UplinkReport {
    /// Of an uplink that nothing has passed yet.
    pub fn new(kind: impl Into<String>) -> UplinkReport {
        UplinkReport {
            kind: kind.into(),
            vni: None,
            port: None,
            parent: None,
            peers: Vec::new(),
            stations: Vec::new(),
            drops: Counters::new(),
            lost_datagrams: 0,
        }
    }
}

/// Another host. *Sent* is what this host sent to it; frames are counted as they were in datagrams.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PeerReport {
    /// Where it is.
    pub address: SocketAddr,
    /// Bytes sent to it.
    pub bytes_sent: u64,
    /// Frames sent to it.
    pub frames_sent: u64,
    /// Bytes from it.
    pub bytes_received: u64,
    /// Frames from it.
    pub frames_received: u64,
    /// Frames to it that this host's kernel did not take.
    pub frames_lost: u64,
    /// The stations behind it.
    pub stations: Vec<StationReport>,
}

impl PeerReport {
    /// Of a peer that nothing has passed yet.
    pub fn new(address: SocketAddr) -> PeerReport {
        PeerReport {
            address,
            bytes_sent: 0,
            frames_sent: 0,
            bytes_received: 0,
            frames_received: 0,
            frames_lost: 0,
            stations: Vec::new(),
        }
    }
}

/// A station behind an uplink.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StationReport {
    /// Its hardware address.
    #[serde(with = "text")]
    pub mac: MacAddr,
    /// The addresses that it was last heard with.
    pub addresses: Vec<IpAddr>,
}
