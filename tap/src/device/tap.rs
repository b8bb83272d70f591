//! TAP devices with virtio-net headers.
//!
//! # Theory of operation
//!
//! A TAP is opened through `/dev/net/tun` with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, one
//! descriptor a queue. Each frame then has a `struct virtio_net_hdr` of [`VNET_HDR_LEN`](super::VNET_HDR_LEN) bytes in
//! front, in host byte order. `TUNSETOFFLOAD` tells the kernel what this side can take: with
//! TSO and USO a read yields super-frames of up to 64 KiB, whatever the MTU, with the checksum
//! left to the host that puts the frame on a real wire. The other direction needs no permission: the
//! kernel takes super-frames from any TAP with `IFF_VNET_HDR`.
//!
//! What the kernel accepts is found by asking: the full set first, then without USO (Linux < 6.2),
//! then without TSO, then none. [`Limit`] leaves steps out, so that tests walk every fallback.
//!
//! # Attaching to an existing device
//!
//! A persistent TAP that another program made (`ip tuntap add`) is attached to by its name.
//! `IFF_VNET_HDR` belongs to the opening and may be asked for each time; `IFF_MULTI_QUEUE` belongs
//! to the device and must match, or the kernel answers EINVAL.
//!
//! # Limits
//!
//! The device is made in the network namespace the calling thread is in at the time of open(2),
//! and needs CAP_NET_ADMIN in the user namespace that owns it. `TUN_F_TSO_ECN` is not asked for:
//! without it the kernel segments the rare super-frame with CWR itself, and no reader needs to
//! know `VIRTIO_NET_HDR_GSO_ECN`.
//!
//! Source: `Documentation/networking/tuntap.rst`, `drivers/net/tun.c`,
//! `include/uapi/linux/if_tun.h`, `include/uapi/linux/virtio_net.h`.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::ioctl::{
    self, attached_name, hardware_address, interface_exists, open_queue, set_header_size,
    valid_name,
};
use super::offloads::{Limit, Offloads, set_offloads};
use crate::error::TapError;

/// The most queues a [`Tap`] can have. The kernel allows 256 (`MAX_TAP_QUEUES`); all queues of a
/// device must fit into one SCM_RIGHTS message, which carries 253 descriptors.
pub const MAX_QUEUES: u16 = 128;

// include/uapi/linux/if_tun.h
const IFF_PERSIST: libc::c_int = 0x0800;

/// One queue of a TAP: reads and writes frames, each with its virtio-net header in front.
#[derive(Debug)]
pub struct TapQueue {
    fd: OwnedFd,
}

impl TapQueue {
    /// Reads one frame, header first, into `buf`. Never blocks.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when no frame waits. `EBADFD` once the interface was deleted, which also polls
    /// as `POLLERR`. A frame longer than `buf` is cut and its rest lost: give 64 KiB and headers.
    #[inline]
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, buf)?)
    }

    /// Writes one frame, header first. Never blocks.
    ///
    /// # Errors
    ///
    /// `EIO` while the interface is down; `EBADFD` once it was deleted. `EINVAL` for a header whose
    /// lengths lie. `ENOBUFS` or `ENOMEM` under memory pressure. `WouldBlock` if the device's send
    /// buffer was limited.
    #[inline]
    pub fn write(&self, frame: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.fd, frame)?)
    }

    /// As [`write`](TapQueue::write), with the frame in pieces.
    ///
    /// # Errors
    ///
    /// As [`write`](TapQueue::write).
    #[inline]
    pub fn write_vectored(&self, frame: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::writev(&self.fd, frame)?)
    }

    /// Whether the interface is to outlive its last descriptor. It still ends with its network
    /// namespace. Switched off, it goes with the last descriptor again.
    ///
    /// # Errors
    ///
    /// `EBADFD` once the interface was deleted.
    pub fn set_persistent(&self, on: bool) -> io::Result<()> {
        ioctl::set_persistent(self.fd.as_fd(), on)
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for TapQueue {
    fn from(fd: OwnedFd) -> TapQueue {
        TapQueue { fd }
    }
}

impl From<TapQueue> for OwnedFd {
    fn from(queue: TapQueue) -> OwnedFd {
        queue.fd
    }
}

/// What is known about a TAP besides its descriptors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TapInfo {
    /// The interface's name, as the kernel gave it.
    pub name: String,
    /// What the kernel accepted.
    pub offloads: Offloads,
    /// The hardware address of the container's side.
    pub mac: [u8; 6],
    /// The interface's index in its own network namespace.
    pub ifindex: u32,
    /// See [`Tap::lacks_ipv6`].
    pub lacks_ipv6: bool,
}

impl TapInfo {
    /// Encodes for the way through a socket: offloads and whether it lacks IPv6, MAC, index, name.
    pub fn to_bytes(&self) -> Vec<u8> {
        let o = self.offloads;
        let bits =
            u8::from(o.csum) | u8::from(o.tso4) << 1 | u8::from(o.tso6) << 2 | u8::from(o.uso) << 3;
        let bits = bits | u8::from(self.lacks_ipv6) << 4;
        let mut bytes = vec![bits];
        bytes.extend_from_slice(&self.mac);
        bytes.extend_from_slice(&self.ifindex.to_ne_bytes());
        bytes.extend_from_slice(self.name.as_bytes());
        bytes
    }

    /// Decodes what [`to_bytes`](TapInfo::to_bytes) made; `None` if it did not.
    pub fn from_bytes(bytes: &[u8]) -> Option<TapInfo> {
        let (&bits, rest) = bytes.split_first()?;
        let (mac, rest) = rest.split_first_chunk::<6>()?;
        let (ifindex, name) = rest.split_first_chunk::<4>()?;
        Some(TapInfo {
            name: std::str::from_utf8(name).ok()?.to_owned(),
            offloads: Offloads {
                csum: bits & 1 != 0,
                tso4: bits & 2 != 0,
                tso6: bits & 4 != 0,
                uso: bits & 8 != 0,
            },
            mac: *mac,
            ifindex: u32::from_ne_bytes(*ifindex),
            lacks_ipv6: bits & 16 != 0,
        })
    }
}

/// An open TAP device.
#[derive(Debug)]
pub struct Tap {
    /// One descriptor a queue; at least one.
    pub queues: Vec<TapQueue>,
    /// The interface's name, as the kernel gave it.
    pub name: String,
    /// What the kernel accepted.
    pub offloads: Offloads,
    /// The hardware address of the container's side.
    pub mac: [u8; 6],
    /// The interface's index in its own network namespace.
    pub ifindex: u32,
    /// It was to have addresses of IPv6, which is switched off in its namespace.
    pub lacks_ipv6: bool,
}

impl Tap {
    /// Makes the TAP `name` with `queues` queues in the current network namespace, or attaches to
    /// a persistent one of that name. A name such as `tap%d` lets the kernel choose the number.
    ///
    /// # Errors
    ///
    /// See [`TapError`]; the interface is gone again unless it was there before.
    pub fn create(name: &str, queues: u16) -> Result<Tap, TapError> {
        Tap::create_with(name, queues, Limit::default())
    }

    /// As [`create`](Tap::create), without the offloads named in `limit`.
    ///
    /// # Errors
    ///
    /// As [`create`](Tap::create).
    pub fn create_with(name: &str, queues: u16, limit: Limit) -> Result<Tap, TapError> {
        if !valid_name(name) {
            return Err(TapError::InvalidName {
                name: name.to_owned(),
            });
        }
        if queues == 0 || queues > MAX_QUEUES {
            return Err(TapError::QueueCount {
                queues,
                max: MAX_QUEUES,
            });
        }
        let existed = interface_exists(name);
        let first = open_queue(name, queues > 1)?;
        let (name, flags) = attached_name(first.as_fd(), name)?;
        // A multi-queue device lets any program with the right attach one more queue; one that is
        // not persistent lives only as long as its holder, so its holder still runs.
        if existed && flags & IFF_PERSIST == 0 {
            return Err(TapError::NameTaken { name });
        }
        let offloads = set_offloads(first.as_fd(), &name, limit)?;
        let mac = hardware_address(first.as_fd(), &name)?;
        let mut fds = vec![first];
        for _ in 1..queues {
            fds.push(open_queue(&name, true)?);
        }
        for fd in &fds {
            set_header_size(fd.as_fd(), &name)?;
        }
        let ifindex = crate::netif::index_of(&name)?;
        Ok(Tap::from_fds(
            fds,
            TapInfo {
                name,
                offloads,
                mac,
                ifindex,
                lacks_ipv6: false,
            },
        ))
    }

    /// Puts a TAP together again from what [`into_fds`](Tap::into_fds) gave.
    pub fn from_fds(fds: Vec<OwnedFd>, info: TapInfo) -> Tap {
        Tap {
            queues: fds.into_iter().map(TapQueue::from).collect(),
            name: info.name,
            offloads: info.offloads,
            mac: info.mac,
            ifindex: info.ifindex,
            lacks_ipv6: info.lacks_ipv6,
        }
    }

    /// Takes the TAP apart, so that it can cross to another process over SCM_RIGHTS.
    pub fn into_fds(self) -> (Vec<OwnedFd>, TapInfo) {
        let info = TapInfo {
            name: self.name,
            offloads: self.offloads,
            mac: self.mac,
            ifindex: self.ifindex,
            lacks_ipv6: self.lacks_ipv6,
        };
        (self.queues.into_iter().map(OwnedFd::from).collect(), info)
    }
}

/// A TAP that another program has opened and attached.
#[derive(Debug)]
pub enum Adopted {
    /// Its frames have virtio-net headers. Its `ifindex` is 0: which namespace it is in is not known.
    WithHeaders(Tap),
    /// Its frames are plain Ethernet.
    Plain(OwnedFd),
}

/// Finds out what kind of TAP a descriptor is that another program has opened, and makes it
/// non-blocking. `IFF_VNET_HDR` is chosen when a descriptor is attached, once (`drivers/net/tun.c`:
/// a second TUNSETIFF is EEXIST), so that it cannot be asked for here.
///
/// # Errors
///
/// [`TapError::NotATap`] if it is none, or one with packet information (no `IFF_NO_PI`).
pub fn adopt(fd: OwnedFd) -> Result<Adopted, TapError> {
    let none = |name: String| TapError::NotATap { name };
    let (name, flags) =
        attached_name(fd.as_fd(), "").map_err(|_| none("the descriptor".to_owned()))?;
    if flags & libc::IFF_TAP == 0 || flags & libc::IFF_NO_PI == 0 {
        return Err(none(name));
    }
    rustix::io::ioctl_fionbio(&fd, true).map_err(TapError::io(
        "cannot make the TAP's descriptor non-blocking",
    ))?;
    if flags & libc::IFF_VNET_HDR == 0 {
        return Ok(Adopted::Plain(fd));
    }
    let offloads = set_offloads(fd.as_fd(), &name, Limit::default())?;
    let mac = hardware_address(fd.as_fd(), &name)?;
    set_header_size(fd.as_fd(), &name)?;
    Ok(Adopted::WithHeaders(Tap {
        queues: vec![fd.into()],
        name,
        offloads,
        mac,
        ifindex: 0,
        lacks_ipv6: false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_survives_the_crossing() {
        let info = TapInfo {
            name: "tap0".into(),
            offloads: Offloads {
                csum: true,
                tso4: false,
                tso6: true,
                uso: false,
            },
            mac: [2, 0, 0, 1, 2, 3],
            ifindex: 0x0102_0304,
            lacks_ipv6: true,
        };
        let bytes = info.to_bytes();
        assert_eq!(TapInfo::from_bytes(&bytes), Some(info));
        for short in 0..11 {
            assert_eq!(TapInfo::from_bytes(&bytes[..short]), None);
        }
        assert_eq!(
            TapInfo::from_bytes(&[0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0xff]),
            None
        );
    }

    #[test]
    fn what_is_no_tap_is_not_adopted() {
        let (pipe, _) = io::pipe().unwrap();
        let error = adopt(pipe.into()).unwrap_err();
        assert!(matches!(error, TapError::NotATap { .. }), "{error}");
    }

    #[test]
    fn names() {
        for good in ["tap0", "t", "eth%d", "fifteen-bytes-x"] {
            assert!(valid_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:b",
            "a\nb",
            "sixteen-bytes-xx",
            "a\0",
        ] {
            assert!(!valid_name(bad), "{bad:?}");
        }
        assert!(matches!(
            Tap::create("a/b", 1),
            Err(TapError::InvalidName { .. })
        ));
        assert!(matches!(
            Tap::create("tap0", 0),
            Err(TapError::QueueCount { .. })
        ));
        assert!(matches!(
            Tap::create("tap0", 129),
            Err(TapError::QueueCount { .. })
        ));
    }
}
