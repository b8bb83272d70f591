//! Descriptors that the calling program left open for us under a number it tells us.
//!
//! A descriptor that came through execve(2) is never close-on-exec, and all that this program opens
//! are: that tells inherited descriptors from those that have an owner here.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::{Errno, FdFlags};

/// Numbers that were taken already.
static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Takes over the inherited descriptor `number`, and keeps programs started later from inheriting
/// it. To be called at the start of `main`, before any library can have opened a descriptor without
/// close-on-exec.
///
/// # Errors
///
/// `EBADF` if it is not open, is close-on-exec and so not inherited, or was taken before.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if (0..=2).contains(&number) {
        return standard_stream(number);
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: F_GETFD takes no pointer and changes nothing; a number that is not open, or negative,
    // gets EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    let inherited = flags >= 0 && flags & libc::FD_CLOEXEC == 0;
    if !inherited || taken.contains(&number) {
        return Err(Errno::BADF.into());
    }
    taken.push(number);
    // SAFETY: the number is open, and nothing in this program owns it: it is not close-on-exec, so it
    // was inherited, and it is given out once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// The standard streams belong to the standard library: a copy of one.
fn standard_stream(number: RawFd) -> io::Result<OwnedFd> {
    match number {
        0 => io::stdin().as_fd().try_clone_to_owned(),
        1 => io::stdout().as_fd().try_clone_to_owned(),
        _ => io::stderr().as_fd().try_clone_to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn a_descriptor_is_given_out_once() {
        let inherited = io::stdin().as_fd().try_clone_to_owned().unwrap();
        rustix::io::fcntl_setfd(&inherited, FdFlags::empty()).unwrap();
        let raw = inherited.into_raw_fd();
        let fd = take(raw).unwrap();
        assert!(
            rustix::io::fcntl_getfd(&fd)
                .unwrap()
                .contains(FdFlags::CLOEXEC)
        );
        assert_eq!(take(raw).unwrap_err().raw_os_error(), Some(libc::EBADF));
        drop(fd);
        for closed in [-1, -7, 1_000_000] {
            assert_eq!(take(closed).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }

    #[test]
    fn what_this_program_has_opened_stays_its_own() {
        let (own, _) = io::pipe().unwrap();
        let error = take(own.as_raw_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
