//! Ports: the devices by which containers and virtual machines stand on the network.
//!
//! [`device`] is what a port's frames are read from and written to: a TAP, or the socket of a virtual
//! machine ([`vm`]), the tunnels to other hosts ([`vxlan`]), or the host's LAN ([`raw`]). [`table`] holds a worker's ports and gives them their turns. A further kind of
//! port (a patch to another network) is a variant of [`device::Device`] and a
//! file of its own here.
//!
//! A port that has queues in several workers is one port: its workers share a [`Lifetime`].

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use cnet_nat::host::Token;
use cnet_vswitch::port::AddPortError;
use cnet_vswitch::port::MAX_PORTS;
use cnet_wire::PortId;
use tokio::sync::oneshot;

mod device;
mod raw;
mod table;
mod vm;
mod vxlan;

pub use device::PortDevice;
pub(crate) use device::{Device, OpenedDevice};
pub(crate) use table::{Ports, RemovedPort};
pub use vm::VmSocket;
pub use vxlan::{PeerCounters, PeerReport, Station, UplinkReport, Vxlan, VxlanConfig};

/// Why a port was not added or removed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// The switch refuses it.
    #[error("the network cannot take the container: {0}")]
    Refused(#[from] AddPortError),
    /// All numbers are in use.
    #[error("the network is full: it has {} containers; remove one first", MAX_PORTS - 1)]
    Full,
    /// A TAP with fewer queues than the network has workers; a virtual machine has one.
    #[error(
        "the device has {queues} queues for {workers} workers; open it with one for each, or start the network with fewer workers"
    )]
    TooFewQueues {
        /// Those it has.
        queues: usize,
        /// Those that are needed.
        workers: usize,
    },
    /// A descriptor that is not what the port needs.
    #[error("not a socket of a virtual machine: {0}; give one that is connected")]
    NotSocket(String),
    /// The device cannot be waited for.
    #[error("cannot watch the container's device: {0}")]
    Watch(String),
    /// No port of that number.
    #[error("there is no port {}; it may have gone by itself", .0.0)]
    Unknown(PortId),
    /// The network has stopped.
    #[error("the network has stopped")]
    Ended,
}

/// The end of a port: ready once the port is gone, with the reason; [`STOPPED`](crate::STOPPED) if
/// the network went with it.
#[derive(Debug)]
pub struct PortEnd(oneshot::Receiver<String>);

impl Future for PortEnd {
    type Output = String;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<String> {
        let ended = Pin::new(&mut self.0).poll(cx);
        ended.map(|reason| reason.unwrap_or_else(|_| crate::STOPPED.to_owned()))
    }
}

/// What a port's workers share: when the last of them drops it, the port's end is told.
#[derive(Debug)]
pub(crate) struct Lifetime {
    end: Option<oneshot::Sender<String>>,
    /// Why it ends, as the first worker to know has said.
    reason: OnceLock<String>,
}

impl Lifetime {
    /// Of a new port, and what tells its end.
    pub(crate) fn new() -> (Lifetime, PortEnd) {
        let (end, ended) = oneshot::channel();
        let lifetime = Lifetime {
            end: Some(end),
            reason: OnceLock::new(),
        };
        (lifetime, PortEnd(ended))
    }

    /// Sets the reason of the end. The first one stays.
    pub(crate) fn set_reason(&self, reason: String) {
        let _ = self.reason.set(reason);
    }
}

impl Drop for Lifetime {
    fn drop(&mut self) {
        // Without a reason the network has ended, which the receiver understands.
        if let (Some(end), Some(reason)) = (self.end.take(), self.reason.take()) {
            // The caller may not be interested in it.
            let _ = end.send(reason);
        }
    }
}

/// One worker's queue of a port.
#[derive(Debug)]
pub(crate) struct PortQueue {
    pub token: Token,
    pub device: Device,
    pub lifetime: Arc<Lifetime>,
}
