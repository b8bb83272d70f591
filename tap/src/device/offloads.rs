//! Offloads: what a TAP's reader takes over from the kernel (`TUNSETOFFLOAD`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::ioctl::check;
use crate::error::TapError;

// include/uapi/linux/if_tun.h
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

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

/// Asks for the best set of offloads the kernel takes. The setting is the device's, so one queue
/// is enough.
pub(super) fn set_offloads(
    fd: BorrowedFd<'_>,
    name: &str,
    limit: Limit,
) -> Result<Offloads, TapError> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
