//! Closing what is not this process's.

use std::os::fd::RawFd;

/// The first descriptor that is no standard stream.
const FIRST: RawFd = 3;

/// Closes every descriptor that came through execve(2), which are those that are not close-on-exec.
pub(super) fn close_inherited() -> Result<(), String> {
    let open = open_descriptors().ok_or("/proc/self/fd cannot be read: mount /proc")?;
    for fd in open {
        // SAFETY: F_GETFD takes no pointer and changes nothing.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            // SAFETY: all descriptors that this program makes are close-on-exec, so this one was
            // inherited and has no owner here ([`crate::inherited_fd`] makes those it takes
            // close-on-exec).
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

fn open_descriptors() -> Option<Vec<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?;
    let open = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // Collected first: the directory's own descriptor is among them.
    Some(open.filter(|&fd| fd >= FIRST).collect())
}

/// Closes every descriptor but `kept` and the standard streams, under their owners: for a process
/// that was just forked, whose copies of its parent's values are never used again.
pub(super) fn keep_only(kept: &[RawFd]) {
    let mut kept: Vec<RawFd> = kept.iter().copied().filter(|&fd| fd >= FIRST).collect();
    kept.sort_unstable();
    let mut first = FIRST;
    let mut done = true;
    for &fd in &kept {
        if fd > first {
            done &= close_range(first, (fd - 1) as libc::c_uint);
        }
        first = fd + 1;
    }
    done &= close_range(first, libc::c_uint::MAX);
    if done {
        return;
    }
    // Before Linux 5.9 there is no close_range(2).
    for fd in open_descriptors().unwrap_or_default() {
        if !kept.contains(&fd) {
            // SAFETY: as in `close_range`.
            unsafe { libc::close(fd) };
        }
    }
}

fn close_range(first: RawFd, last: libc::c_uint) -> bool {
    // SAFETY: the descriptors are closed under their owners, but those are in the frames of a
    // parent of which this process is a copy that never returns to it: they are not used again.
    unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, last, 0) == 0 }
}
