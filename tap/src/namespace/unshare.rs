//! New namespaces around this process: unshare(2).

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use crate::error::TapError;
use crate::fork::threads;

/// Which namespaces [`unshare`] makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NewNamespaces {
    /// A user namespace, in which this process has every capability.
    pub user: bool,
    /// A network namespace with nothing but a loopback interface that is down.
    pub net: bool,
    /// A copy of the mount namespace.
    pub mount: bool,
    /// A copy of the host and domain name.
    pub uts: bool,
    /// A PID namespace, which the next child is the first process of. This process stays outside.
    pub pid: bool,
}

/// Moves this process into new namespaces.
///
/// # Errors
///
/// [`TapError::MultiThreaded`] if a user namespace is asked for and the process has more threads
/// than one; [`TapError::Unshare`] with EPERM where user namespaces are forbidden, ENOSPC where a
/// limit of `/proc/sys/user` is reached.
pub fn unshare(new: NewNamespaces) -> Result<(), TapError> {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWUSER, new.user);
    flags.set(UnshareFlags::NEWNET, new.net);
    flags.set(UnshareFlags::NEWNS, new.mount);
    flags.set(UnshareFlags::NEWPID, new.pid);
    flags.set(UnshareFlags::NEWUTS, new.uts);
    // SAFETY: unshare(2) is a danger only with CLONE_FILES, which takes descriptors from other
    // threads; it is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|errno| match errno {
        Errno::INVAL if new.user && threads() > 1 => TapError::MultiThreaded,
        _ => TapError::Unshare {
            source: errno.into(),
        },
    })
}
