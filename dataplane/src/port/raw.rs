//! An uplink to the host's LAN: a packet socket on an interface of the host, its *parent*.
//!
//! Its frames have virtio-net headers, as a TAP's, and super-frames pass both ways as they are. Frames with
//! a VLAN tag belong to another network of the LAN, and are dropped. As with the kernel's macvlan, the host
//! is not reached through its own interface: what it sends there does not come in here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cnet_tap::device::raw::{RawFrame, read_frame};
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{DropCounters, DropReason};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::vm::Taken;

/// The socket of a parent.
#[derive(Debug)]
pub(crate) struct RawUplink {
    socket: OwnedFd,
    drops: DropCounters,
}

impl RawUplink {
    /// A socket that [`cnet_tap::device::raw::open_uplink`] has made.
    pub(crate) fn new(socket: OwnedFd) -> RawUplink {
        RawUplink {
            socket,
            drops: DropCounters::default(),
        }
    }

    /// What was dropped here.
    pub(crate) fn drops(&self) -> &DropCounters {
        &self.drops
    }

    /// Reads one frame, virtio-net header first.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when none waits; `Interrupted` when one was dropped. Neither ends the port: an interface
    /// that is down may come up again.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match read_frame(self.socket.as_fd(), buf) {
            Ok(RawFrame::Plain(length)) => Ok(length),
            Ok(RawFrame::Tagged) => {
                self.drops.count(DropReason::VlanTag);
                Err(io::ErrorKind::Interrupted.into())
            }
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.drops.count(DropReason::BadVnetHeader);
                Err(io::ErrorKind::Interrupted.into())
            }
            Err(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Sends `frame`, virtio-net header first; `None` if it is lost.
    pub(crate) fn write(&self, frame: &[u8]) -> Option<Taken> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        send(&self.socket, frame, flags).ok()?;
        Some(Taken {
            frames: 1,
            bytes: frame.len().saturating_sub(VNET_HDR_LEN) as u64,
        })
    }
}

impl AsFd for RawUplink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
