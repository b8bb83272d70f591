//! Where frames leave the pure core.

use std::net::IpAddr;

use crate::addr::{MacAddr, PortId};

/// The port's queue is full or the port is gone: the frame is lost, as on any wire. The sink has counted
/// it ([`crate::DropReason::PortFull`]), and no other part counts it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortFull;

/// Takes frames and super-frames out to ports. The shell writes them to a TAP, the simulation puts
/// them on its wire. All frames to a port pass it, those of other ports and those that the router made:
/// so what was written to a port, and what found it full, is counted here alone.
pub trait FrameSink {
    /// Sends one frame to `port`. `frame` starts with the virtio-net header
    /// ([`crate::vnet::VNET_HDR_LEN`] bytes) and the Ethernet header follows. The call does not
    /// keep `frame`.
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull>;

    /// Hands a frame that came in by `ingress` to the worker that takes what this one does not. The
    /// call does not keep `frame`. [`PortFull`] means that too many wait there, or that there is no
    /// such worker.
    fn hand_over(&mut self, _ingress: PortId, _frame: &[u8]) -> Result<(), PortFull> {
        Err(PortFull)
    }

    /// The first frame that is dropped at `port` because it speaks with, or for, an address that is not
    /// the port's own came from there.
    fn note_foreign_source(&mut self, _port: PortId, _mac: MacAddr, _ip: Option<IpAddr>) {}

    /// Whether `port` takes UDP super-frames ([`crate::vnet::GSO_UDP_L4`]). Where it does not, none
    /// is made for it; those that another port made are passed on all the same, as all ports of one
    /// kernel are alike.
    fn takes_uso(&self, _port: PortId) -> bool {
        true
    }
}
