//! What a port's frames are read from and written to.
//!
//! Devices are an enum: the loop over frames pays no dynamic dispatch, and the compiler shows every
//! place that has to know a new kind (a patch to another network).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cnet_tap::Tap;
use cnet_tap::device::TapQueue;
use cnet_wire::MacAddr;

use super::PortError;
use super::raw::RawUplink;
use super::vm::VmSocket;
use super::vxlan::Vxlan;

/// What a port leads to.
#[derive(Debug)]
#[non_exhaustive]
pub enum PortDevice {
    /// A container's interface.
    Tap(Tap),
    /// A virtual machine behind a connected Unix stream socket, each frame after its length in four
    /// bytes in network order: QEMU's `-netdev stream`. When the machine closes it, or announces a
    /// length that no frame has, the port ends.
    Stream(OwnedFd),
    /// A virtual machine behind a connected Unix datagram socket, each frame a datagram: QEMU's
    /// `-netdev dgram`. The port ends when a frame finds the machine's socket gone.
    Datagram(OwnedFd),
    /// A virtual machine behind a connected Unix socket of sequenced packets, each frame a packet:
    /// User Mode Linux's `transport=bess`. The port ends when the machine closes it.
    Packets(OwnedFd),
    /// A TAP without virtio-net headers, which another program has opened.
    PlainTap(OwnedFd),
    /// The other hosts of the network, by VXLAN. The port's plan is to say that it is an uplink.
    Vxlan(Box<Vxlan>),
    /// The host's LAN, by a socket of [`cnet_tap::device::raw::open_uplink`]. The port's plan is to say that
    /// it is an uplink.
    Raw(OwnedFd),
}

/// A device as the worker uses it.
#[derive(Debug)]
pub(crate) enum Device {
    Tap { queue: TapQueue, takes_uso: bool },
    Vm(VmSocket),
    Vxlan(Box<Vxlan>),
    Raw(Box<RawUplink>),
}

/// A device that was taken apart for the workers.
#[derive(Debug)]
pub(crate) struct OpenedDevice {
    pub device: Device,
    /// A queue for each of the other workers.
    pub further: Vec<TapQueue>,
    /// The hardware address of the container's side, if the device tells.
    pub mac: Option<MacAddr>,
}

impl Device {
    /// The device to use.
    pub(crate) fn open(device: PortDevice, workers: usize) -> Result<OpenedDevice, PortError> {
        let not_socket = |e: io::Error| PortError::NotSocket(e.to_string());
        let socket = match device {
            PortDevice::Tap(tap) => {
                let too_few = PortError::TooFewQueues {
                    queues: tap.queues.len(),
                    workers,
                };
                let mut queues = tap.queues.into_iter().take(workers);
                let queue = queues.next();
                let (Some(queue), true) = (queue, queues.len() + 1 == workers) else {
                    return Err(too_few);
                };
                let takes_uso = tap.offloads.uso;
                return Ok(OpenedDevice {
                    device: Device::Tap { queue, takes_uso },
                    further: queues.collect(),
                    mac: Some(MacAddr(tap.mac)),
                });
            }
            PortDevice::Vxlan(vxlan) if workers == 1 => {
                return Ok(OpenedDevice {
                    device: Device::Vxlan(vxlan),
                    further: Vec::new(),
                    mac: None,
                });
            }
            PortDevice::Raw(socket) if workers == 1 => {
                return Ok(OpenedDevice {
                    device: Device::Raw(Box::new(RawUplink::new(socket))),
                    further: Vec::new(),
                    mac: None,
                });
            }
            _ if workers > 1 => return Err(PortError::TooFewQueues { queues: 1, workers }),
            PortDevice::Stream(fd) => VmSocket::stream(fd),
            PortDevice::Datagram(fd) => VmSocket::datagram(fd),
            PortDevice::Packets(fd) => VmSocket::packets(fd),
            PortDevice::PlainTap(fd) => Ok(VmSocket::tap(fd)),
            PortDevice::Vxlan(_) | PortDevice::Raw(_) => {
                return Err(PortError::TooFewQueues { queues: 1, workers });
            }
        };
        Ok(OpenedDevice {
            device: Device::Vm(socket.map_err(not_socket)?),
            further: Vec::new(),
            mac: None,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Device::Tap { queue, .. } => queue.as_fd(),
            Device::Vm(socket) => socket.as_fd(),
            Device::Vxlan(vxlan) => vxlan.as_fd(),
            Device::Raw(uplink) => uplink.as_fd(),
        }
    }

    /// Why a port ends whose device failed with `error`.
    pub(crate) fn failure_reason(&self, error: &io::Error) -> String {
        match self {
            Device::Tap { .. } => format!("the TAP is gone: {error}"),
            Device::Vm(socket) => format!("{} is gone: {error}", socket.name()),
            Device::Raw(_) => format!("the interface of the LAN is gone: {error}"),
            Device::Vxlan(_) => format!("the tunnels to other hosts have ended: {error}"),
        }
    }
}
