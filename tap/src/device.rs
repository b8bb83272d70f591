//! TAP devices with virtio-net headers.
//!
//! # Theory of operation
//!
//! A TAP is opened through `/dev/net/tun` with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, one
//! descriptor a queue. Each frame then has a `struct virtio_net_hdr` of [`VNET_HDR_LEN`] bytes in
//! front, in host byte order. `TUNSETOFFLOAD` tells the kernel what this side can take: with
//! TSO and USO a read yields super-frames of up to 64 KiB, whatever the MTU, with the checksum
//! left to whoever puts the frame on a real wire. The other direction needs no permission: the
//! kernel takes super-frames from any TAP with `IFF_VNET_HDR`.
//!
//! What the kernel accepts is found by asking: the full set first, then without USO (Linux < 6.2),
//! then without TSO, then none. [`Limit`] leaves steps out, so that tests walk every fallback.
//!
//! # Attaching to an existing device
//!
//! A persistent TAP that somebody else made (`ip tuntap add`) is attached to by its name.
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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::TapError;

/// Bytes of `struct virtio_net_hdr`, the header in front of each frame (`TUNSETVNETHDRSZ`).
pub const VNET_HDR_LEN: usize = 10;

/// The most queues a [`Tap`] can have. The kernel allows 256 (`MAX_TAP_QUEUES`); all queues of a
/// device must fit into one SCM_RIGHTS message, which carries 253 descriptors.
pub const MAX_QUEUES: u16 = 128;

const TUN_DEVICE: &str = "/dev/net/tun";

// include/uapi/linux/if_tun.h
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;
const IFF_PERSIST: libc::c_int = 0x0800;

/// What the kernel hands over without doing it itself, as accepted by `TUNSETOFFLOAD`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// Frames may be read whose transport checksum is still to be filled in.
    pub csum: bool,
    /// TCP super-frames over IPv4.
    pub tso4: bool,
    /// TCP super-frames over IPv6.
    pub tso6: bool,
    /// UDP super-frames (USO), both families; Linux 6.2 and later.
    pub uso: bool,
}

impl Offloads {
    fn flags(self) -> libc::c_ulong {
        let mut flags = 0;
        if self.csum {
            flags |= TUN_F_CSUM;
        }
        if self.tso4 {
            flags |= TUN_F_TSO4;
        }
        if self.tso6 {
            flags |= TUN_F_TSO6;
        }
        if self.uso {
            flags |= TUN_F_USO4 | TUN_F_USO6;
        }
        flags
    }
}

/// Offloads to leave out on purpose, so that tests walk what older kernels give.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limit {
    /// As Linux before 6.2: no UDP super-frames.
    pub no_uso: bool,
    /// No TCP super-frames. The kernel then segments before a frame is read.
    pub no_tso: bool,
    /// No offloads at all: every frame read is complete and within the MTU.
    pub no_csum: bool,
}

/// The sets of offloads to try, best first; the last one is always accepted.
fn ladder(limit: Limit) -> impl Iterator<Item = Offloads> {
    let full = Offloads {
        csum: true,
        tso4: true,
        tso6: true,
        uso: true,
    };
    let no_uso = Offloads { uso: false, ..full };
    let csum = Offloads {
        csum: true,
        ..Offloads::default()
    };
    [full, no_uso, csum, Offloads::default()]
        .into_iter()
        .filter(move |o| {
            !(limit.no_uso && o.uso || limit.no_tso && (o.tso4 || o.uso) || limit.no_csum && o.csum)
        })
}

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
    /// `EIO` while the interface is down; `EBADFD` once it was deleted. `EINVAL` for a header whose lengths lie. `ENOBUFS` or
    /// `ENOMEM` under memory pressure. `WouldBlock` if the device's send buffer was limited.
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
        // SAFETY: the descriptor is open; TUNSETPERSIST takes its argument by value.
        check(unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::TUNSETPERSIST as _,
                libc::c_ulong::from(on),
            )
        })
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
}

impl TapInfo {
    /// Encodes for the way through a socket: offloads, MAC, index, name.
    pub fn to_bytes(&self) -> Vec<u8> {
        let o = self.offloads;
        let bits =
            u8::from(o.csum) | u8::from(o.tso4) << 1 | u8::from(o.tso6) << 2 | u8::from(o.uso) << 3;
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
        // A multi-queue device lets anybody with the right attach one more queue; one that is not
        // persistent lives only as long as its holder, so it is somebody's who still runs.
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
        }
    }

    /// Takes the TAP apart, so that it can cross to another process over SCM_RIGHTS.
    pub fn into_fds(self) -> (Vec<OwnedFd>, TapInfo) {
        let info = TapInfo {
            name: self.name,
            offloads: self.offloads,
            mac: self.mac,
            ifindex: self.ifindex,
        };
        (self.queues.into_iter().map(OwnedFd::from).collect(), info)
    }
}

/// As the kernel's `dev_valid_name`, which also refuses the names of directories.
fn valid_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace())
}

fn interface_exists(name: &str) -> bool {
    crate::netif::index_of(name).is_ok()
}

/// An `ifreq` that names `name`; [`valid_name`] has been asked.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain C data: integers, arrays and a union of those, for all of which
    // all-zero bytes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0: the kernel wants a terminated string.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1]
        .iter_mut()
        .zip(name.bytes())
    {
        *to = from as libc::c_char;
    }
    request
}

/// An ioctl that takes a pointer to an `ifreq`.
fn ioctl_ifreq(
    fd: BorrowedFd<'_>,
    code: libc::c_ulong,
    request: &mut libc::ifreq,
) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed, so open; `request` is a live ifreq, which is what every
    // `code` passed in this file (TUNSETIFF, TUNGETIFF, SIOCGIFHWADDR) reads and writes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), code as _, std::ptr::from_mut(request)) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn open_device() -> Result<OwnedFd, TapError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(TUN_DEVICE, flags, Mode::empty()).map_err(|errno| match errno {
        // ENODEV and ENXIO: the node is there, the driver behind it is not.
        Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::NOTDIR => TapError::DeviceMissing {
            source: errno.into(),
        },
        // EPERM comes from a device cgroup, EACCES from the file's mode.
        Errno::ACCESS | Errno::PERM => TapError::DeviceDenied {
            source: errno.into(),
        },
        _ => TapError::Io {
            what: "cannot open /dev/net/tun",
            source: errno.into(),
        },
    })
}

fn open_queue(name: &str, multi_queue: bool) -> Result<OwnedFd, TapError> {
    let fd = open_device()?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    let Err(source) = ioctl_ifreq(fd.as_fd(), libc::TUNSETIFF as _, &mut request) else {
        return Ok(fd);
    };
    let owned = name.to_owned();
    Err(match Errno::from_io_error(&source) {
        Some(Errno::BUSY) => TapError::NameTaken { name: owned },
        Some(Errno::PERM) => TapError::CreateDenied { name: owned },
        Some(Errno::INVAL) => why_invalid(owned, multi_queue, source),
        _ => TapError::Device {
            name: owned,
            what: "TUNSETIFF",
            source,
        },
    })
}

/// Finds out what the kernel's EINVAL to TUNSETIFF meant: no TAP at all, or the wrong kind.
fn why_invalid(name: String, multi_queue: bool, source: io::Error) -> TapError {
    if !interface_exists(&name) {
        return TapError::Device {
            name,
            what: "TUNSETIFF",
            source,
        };
    }
    // The other setting of IFF_MULTI_QUEUE tells: a TAP accepts it, anything else does not.
    match open_probe(&name, !multi_queue) {
        true => TapError::QueueMismatch {
            name,
            multi_queue: !multi_queue,
        },
        false => TapError::NotATap { name },
    }
}

/// Whether `name` can be attached to with this setting of IFF_MULTI_QUEUE, or is attached to by
/// somebody else already; both say that it is a TAP. The attachment ends at once.
fn open_probe(name: &str, multi_queue: bool) -> bool {
    let Ok(fd) = open_device() else { return false };
    let mut request = request(name);
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    match ioctl_ifreq(fd.as_fd(), libc::TUNSETIFF as _, &mut request) {
        Ok(()) => true,
        Err(e) => Errno::from_io_error(&e) == Some(Errno::BUSY),
    }
}

/// The name and the `IFF_*` flags of the device behind an attached queue.
fn attached_name(fd: BorrowedFd<'_>, asked: &str) -> Result<(String, libc::c_int), TapError> {
    let mut request = request(asked);
    ioctl_ifreq(fd, libc::TUNGETIFF as _, &mut request).map_err(|source| TapError::Device {
        name: asked.to_owned(),
        what: "TUNGETIFF",
        source,
    })?;
    // SAFETY: TUNGETIFF fills `ifru_flags`; every bit pattern is a c_short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let name: Vec<u8> = request
        .ifr_name
        .iter()
        .take_while(|c| **c != 0)
        .map(|c| *c as u8)
        .collect();
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok((name, libc::c_int::from(flags as u16)))
}

fn set_header_size(fd: BorrowedFd<'_>, name: &str) -> Result<(), TapError> {
    let size = VNET_HDR_LEN as libc::c_int;
    // SAFETY: the descriptor is open; TUNSETVNETHDRSZ reads one int through the pointer.
    check(unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETVNETHDRSZ as _,
            std::ptr::from_ref(&size),
        )
    })
    .map_err(|source| TapError::Device {
        name: name.to_owned(),
        what: "TUNSETVNETHDRSZ",
        source,
    })
}

/// Asks for the best set of offloads the kernel takes. The setting is the device's, so one queue
/// is enough.
fn set_offloads(fd: BorrowedFd<'_>, name: &str, limit: Limit) -> Result<Offloads, TapError> {
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for offloads in ladder(limit) {
        // SAFETY: the descriptor is open; TUNSETOFFLOAD takes its argument by value.
        let result =
            unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, offloads.flags()) };
        match check(result) {
            Ok(()) => return Ok(offloads),
            Err(e) => refused = e,
        }
    }
    Err(TapError::Device {
        name: name.to_owned(),
        what: "TUNSETOFFLOAD",
        source: refused,
    })
}

fn hardware_address(fd: BorrowedFd<'_>, name: &str) -> Result<[u8; 6], TapError> {
    let mut request = request(name);
    ioctl_ifreq(fd, libc::SIOCGIFHWADDR as _, &mut request).map_err(|source| TapError::Device {
        name: name.to_owned(),
        what: "SIOCGIFHWADDR",
        source,
    })?;
    // SAFETY: SIOCGIFHWADDR on a TAP's descriptor fills `ifru_hwaddr`; every bit pattern is valid.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    Ok(std::array::from_fn(|i| data[i] as u8))
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

    #[test]
    fn the_ladder_ends_in_nothing_and_keeps_to_its_limits() {
        let first = |limit| ladder(limit).next();
        assert_eq!(
            first(Limit::default()),
            Some(Offloads {
                csum: true,
                tso4: true,
                tso6: true,
                uso: true
            })
        );
        let no_uso = first(Limit {
            no_uso: true,
            ..Limit::default()
        });
        assert_eq!(
            no_uso,
            Some(Offloads {
                csum: true,
                tso4: true,
                tso6: true,
                uso: false
            })
        );
        let no_tso = first(Limit {
            no_tso: true,
            ..Limit::default()
        });
        assert_eq!(
            no_tso,
            Some(Offloads {
                csum: true,
                ..Offloads::default()
            })
        );
        let none = first(Limit {
            no_csum: true,
            ..Limit::default()
        });
        assert_eq!(none, Some(Offloads::default()));
        assert_eq!(ladder(Limit::default()).last(), Some(Offloads::default()));
    }

    #[test]
    fn offload_flags_match_the_kernel() {
        let all = Offloads {
            csum: true,
            tso4: true,
            tso6: true,
            uso: true,
        };
        assert_eq!(all.flags(), 0x67);
        assert_eq!(Offloads::default().flags(), 0);
    }
}
