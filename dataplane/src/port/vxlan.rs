//! An uplink over VXLAN (RFC 7348): the other hosts of a network, each behind a UDP address.
//!
//! # Theory of operation
//!
//! All peers are behind one port of the switch. Which of them a station is behind, this device learns
//! from the frames they send ([`Fdb`], with a peer's number in the place of a port's), as the kernel's
//! VXLAN device does; so it is learned, held and aged by the same rules as the switch's own table. A
//! frame to a station that is not known, and one to many, goes to every peer (head-end replication), at
//! a bounded rate.
//!
//! Out ([`send`]): a super-frame is cut into segments, and all of them leave in one call, from a header
//! slot each and slices of the frame that was read from the container. In ([`receive`]): trains of
//! datagrams come in one call, and their frames are joined to super-frames again.
//!
//! A container's flows spread over several sockets a peer, so that the hosts' network cards and the
//! paths between them see different source ports.
//!
//! # Invariants
//!
//! - A frame is taken from the address of a peer alone, and only of this network.
//! - A station is behind one peer; another gets it only once that one was silent for a while.
//! - Nothing is allocated for a frame.
//!
//! # Limits
//!
//! Nothing is encrypted or authenticated: whoever can send from a peer's address is that peer.
//! The port is the network's own: two networks of a host have different ones.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cnet_tap::socket::{lost_datagrams, open_tunnel, open_tunnel_to};
use cnet_vswitch::fdb::{Fdb, MAC_HOLD};
use cnet_wire::time::Instant;
use cnet_wire::{DropCounters, DropReason, MacAddr, PortId, Vni};

mod receive;
mod send;

use receive::Inbox;
use send::{FloodRate, HeaderSlots};

/// Sockets that send, for all peers together: the more peers, the fewer each has.
const SENDERS: usize = 128;
/// Sockets that send to one peer at most.
const SENDERS_A_PEER: usize = 8;
/// Stations that are learned behind one peer.
const MACS_A_PEER: usize = 4096;

/// Where the other hosts of a network are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VxlanConfig {
    /// The network's number.
    pub vni: Vni,
    /// The UDP port of this host.
    pub port: u16,
    /// The other hosts.
    pub peers: Vec<SocketAddr>,
}

/// A peer, and what passed between it and this host, in frames as they were on the wire.
#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    senders: Vec<OwnedFd>,
    counters: PeerCounters,
}

/// What passed between a peer and this host: frames as they were in datagrams, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct PeerCounters {
    /// Frames from it.
    pub frames_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Frames to it.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Frames to it that no socket took.
    pub lost: u64,
}

/// What an uplink has counted and knows.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UplinkReport {
    /// Each peer, what passed, and the stations that were learned behind it, with the addresses that
    /// they were last heard with.
    pub peers: Vec<PeerReport>,
    /// The stations that were heard on the host's LAN.
    pub stations: Vec<Station>,
    /// What was dropped at it, both ways, by reason: by the device and by the network.
    pub drops: DropCounters,
    /// Datagrams that were lost because the socket's buffer was full.
    pub lost_datagrams: u64,
}

/// A station, and the addresses that it was last heard with.
pub type Station = (MacAddr, Vec<IpAddr>);

impl UplinkReport {
    /// Of an uplink to the host's LAN, with the addresses that the switch knows behind it.
    pub(crate) fn of_lan(
        addresses: &[(IpAddr, Option<MacAddr>)],
        drops: &DropCounters,
    ) -> UplinkReport {
        let mut stations = BTreeMap::<MacAddr, Vec<IpAddr>>::new();
        for &(address, mac) in addresses {
            stations
                .entry(mac.unwrap_or(MacAddr([0; 6])))
                .or_default()
                .push(address);
        }
        UplinkReport {
            peers: Vec::new(),
            stations: stations.into_iter().collect(),
            drops: drops.clone(),
            lost_datagrams: 0,
        }
    }
}

/// What is known of one peer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerReport {
    /// Where it is.
    pub address: SocketAddr,
    /// What passed.
    pub counters: PeerCounters,
    /// The stations behind it.
    pub stations: Vec<Station>,
}

/// This host's end of the tunnels to all peers.
#[derive(Debug)]
pub struct Vxlan {
    socket: OwnedFd,
    vni: Vni,
    port: u16,
    peers: Vec<Peer>,
    /// Which peer a station is behind: a peer's place in `peers` is its number.
    stations: Fdb,
    inbox: Inbox,
    slots: HeaderSlots,
    rate: FloodRate,
    drops: DropCounters,
}

impl Vxlan {
    /// Opens the sockets.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` where the port is taken; `ENETUNREACH` where there is no route to a peer.
    pub fn open(config: &VxlanConfig) -> io::Result<Vxlan> {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
        let senders = (SENDERS / config.peers.len().max(1)).clamp(1, SENDERS_A_PEER);
        let peer = |&address: &SocketAddr| {
            let opened = (0..senders).map(|_| open_tunnel_to(address));
            Ok(Peer {
                address,
                senders: opened.collect::<io::Result<_>>()?,
                counters: PeerCounters::default(),
            })
        };
        Ok(Vxlan {
            socket: open_tunnel(config.port)?,
            vni: config.vni,
            port: config.port,
            peers: config.peers.iter().map(peer).collect::<io::Result<_>>()?,
            stations: Fdb::new(MAC_HOLD, u64::from_ne_bytes(seed)),
            inbox: Inbox::new(),
            slots: HeaderSlots::new(),
            rate: FloodRate::default(),
            drops: DropCounters::default(),
        })
    }

    /// The peer at that address.
    fn peer_at(&self, address: IpAddr) -> Option<usize> {
        let address = address.to_canonical();
        self.peers.iter().position(|p| p.address.ip() == address)
    }

    /// What was dropped so far, both ways.
    pub(crate) fn drops(&self) -> &DropCounters {
        &self.drops
    }

    /// What there is to tell. `addresses` are those that the switch knows behind the port.
    pub(crate) fn report(
        &self,
        now: Instant,
        addresses: &[(IpAddr, Option<MacAddr>)],
    ) -> UplinkReport {
        let stations = self.stations.all(now);
        let of_peer = |(number, peer): (usize, &Peer)| {
            let of = |&&(_, peer): &&(MacAddr, PortId)| peer.0 as usize == number;
            let with_addresses = |&(mac, _): &(MacAddr, PortId)| {
                let its = addresses.iter().filter(|(_, of)| *of == Some(mac));
                let mut its: Vec<IpAddr> = its.map(|&(address, _)| address).collect();
                its.sort();
                (mac, its)
            };
            let mut behind: Vec<_> = stations.iter().filter(of).map(with_addresses).collect();
            behind.sort();
            PeerReport {
                address: peer.address,
                counters: peer.counters,
                stations: behind,
            }
        };
        UplinkReport {
            peers: self.peers.iter().enumerate().map(of_peer).collect(),
            stations: Vec::new(),
            drops: self.drops.clone(),
            lost_datagrams: lost_datagrams(&self.socket),
        }
    }

    fn count_drop(&mut self, reason: DropReason) {
        self.drops.count(reason);
    }
}

impl AsFd for Vxlan {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
