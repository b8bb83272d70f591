//! Opening `/dev/net/tun`, and the ioctls that make and describe a TAP (`struct ifreq`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::TapError;

/// Bytes of `struct virtio_net_hdr`, the header in front of each frame (`TUNSETVNETHDRSZ`).
pub const VNET_HDR_LEN: usize = 10;

/// As the kernel's `dev_valid_name`, which also refuses the names of directories.
pub(super) fn valid_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace())
}

pub(super) fn interface_exists(name: &str) -> bool {
    crate::netif::index_of(name).is_ok()
}

const TUN_DEVICE: &str = "/dev/net/tun";

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

pub(super) fn check(result: libc::c_int) -> io::Result<()> {
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

pub(super) fn open_queue(name: &str, multi_queue: bool) -> Result<OwnedFd, TapError> {
    let fd = open_device()?;
    let Err(source) = attach(fd.as_fd(), name, multi_queue) else {
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

/// Makes a new descriptor of `/dev/net/tun` a queue of the TAP `name` (TUNSETIFF).
fn attach(fd: BorrowedFd<'_>, name: &str, multi_queue: bool) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    ioctl_ifreq(fd, libc::TUNSETIFF as _, &mut request)
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
/// another program already; both say that it is a TAP. The attachment ends at once.
fn open_probe(name: &str, multi_queue: bool) -> bool {
    let Ok(fd) = open_device() else { return false };
    match attach(fd.as_fd(), name, multi_queue) {
        Ok(()) => true,
        Err(e) => Errno::from_io_error(&e) == Some(Errno::BUSY),
    }
}

/// The name and the `IFF_*` flags of the device behind an attached queue.
pub(super) fn attached_name(
    fd: BorrowedFd<'_>,
    asked: &str,
) -> Result<(String, libc::c_int), TapError> {
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

pub(super) fn set_header_size(fd: BorrowedFd<'_>, name: &str) -> Result<(), TapError> {
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

pub(super) fn hardware_address(fd: BorrowedFd<'_>, name: &str) -> Result<[u8; 6], TapError> {
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

/// Whether the TAP is to outlive its last descriptor (`TUNSETPERSIST`).
pub(super) fn set_persistent(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: the descriptor is open; TUNSETPERSIST takes its argument by value.
    check(unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETPERSIST as _,
            libc::c_ulong::from(on),
        )
    })
}
