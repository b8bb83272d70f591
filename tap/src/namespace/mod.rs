//! Namespaces pinned by descriptor, entered, and made.
//!
//! # Theory of operation
//!
//! A namespace is named by a process or a path only once; from then on its descriptor stands for
//! it, so that a PID used again or a path replaced changes nothing. A process's namespace files
//! are opened through one descriptor of its `/proc` directory: if the process ends in between, the
//! second open fails instead of naming a stranger.
//!
//! Two ways lead in: [`Namespaces::enter`] moves this process, and [`unshare()`] makes new ones around
//! it. A process that stays outside has a child do its work inside (the crate's `helper` module).
//!
//! Source: namespaces(7), user_namespaces(7), setns(2), unix(7), prctl(2).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::LinkNameSpaceType;

use crate::error::TapError;
use crate::fork::threads;

mod unshare;

pub use unshare::{NewNamespaces, unshare};

/// A network namespace and, if it is not the caller's own, the user namespace to enter first.
#[derive(Debug)]
pub struct Namespaces {
    /// `None` when it is the user namespace this process is in already.
    pub user: Option<OwnedFd>,
    /// The network namespace.
    pub net: OwnedFd,
}

impl Namespaces {
    /// Pins the namespaces of a running process.
    ///
    /// To be told of the process's end as well, take [`crate::watch::pidfd`] first: if it has not
    /// fired after this call, both speak of the same process.
    ///
    /// # Errors
    ///
    /// [`TapError::NoSuchProcess`], [`TapError::ProcessDenied`].
    pub fn of_process(pid: i32) -> Result<Namespaces, TapError> {
        let failed = |errno: Errno| match errno {
            Errno::NOENT | Errno::SRCH => TapError::NoSuchProcess { pid },
            _ => TapError::ProcessDenied {
                pid,
                source: errno.into(),
            },
        };
        if pid <= 0 {
            return Err(TapError::NoSuchProcess { pid });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process =
            rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).map_err(failed)?;
        let open = |name| {
            rustix::fs::openat(
                &process,
                name,
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(failed)
        };
        let net = open("ns/net")?;
        let user = open("ns/user")?;
        Ok(Namespaces {
            user: not_our_own(user)?,
            net,
        })
    }

    /// Pins namespaces by their paths, such as `/proc/PID/ns/net` or `/run/netns/NAME`. Without
    /// `user`, the network namespace is entered with the rights this process has.
    ///
    /// # Errors
    ///
    /// [`TapError::OpenNamespace`], [`TapError::WrongNamespace`].
    pub fn from_paths(net: &Path, user: Option<&Path>) -> Result<Namespaces, TapError> {
        let net = open_namespace(net, "network", libc::CLONE_NEWNET)?;
        let user = match user {
            Some(path) => not_our_own(open_namespace(path, "user", libc::CLONE_NEWUSER)?)?,
            None => None,
        };
        Ok(Namespaces { user, net })
    }

    /// From a descriptor of a network namespace, which may come from another process. The user
    /// namespace that owns it is asked of the kernel (`NS_GET_USERNS`, ioctl_ns(2)).
    ///
    /// # Errors
    ///
    /// [`TapError::NotANetwork`] for any other file; [`TapError::EnterDenied`] if the owner is no
    /// user namespace of ours nor inside one.
    pub fn of_net(net: OwnedFd) -> Result<Namespaces, TapError> {
        if namespace_type(net.as_fd()) != Some(libc::CLONE_NEWNET) {
            return Err(TapError::NotANetwork);
        }
        let user = owner_of(net.as_fd()).map_err(|source| TapError::EnterDenied {
            kind: "network",
            source,
        })?;
        Ok(Namespaces {
            user: not_our_own(user)?,
            net,
        })
    }

    /// Device and inode of the network namespace: the same for every descriptor and path of it, and
    /// no other's while it lives.
    ///
    /// # Errors
    ///
    /// [`TapError::Io`] with what fstat(2) says.
    pub fn net_identity(&self) -> Result<(u64, u64), TapError> {
        let stat = rustix::fs::fstat(&self.net)
            .map_err(TapError::io("cannot look at a network namespace"))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Moves this process into the namespaces, for good. After a user namespace was entered, the
    /// process is its user and group 0, where that is mapped.
    ///
    /// # Errors
    ///
    /// [`TapError::MultiThreaded`] if a user namespace is to be entered and the process has more
    /// threads than one; [`TapError::EnterDenied`].
    pub fn enter(&self) -> Result<(), TapError> {
        if let Some(user) = &self.user {
            set_namespace(user.as_fd(), "user", LinkNameSpaceType::User)?;
            become_root();
        }
        self.enter_net()
    }

    pub(crate) fn enter_net(&self) -> Result<(), TapError> {
        set_namespace(self.net.as_fd(), "network", LinkNameSpaceType::Network)
    }
}

/// Drops the descriptor if it is the user namespace this process is in.
fn not_our_own(user: OwnedFd) -> Result<Option<OwnedFd>, TapError> {
    let own = rustix::fs::stat("/proc/self/ns/user").map_err(TapError::io(
        "cannot look at /proc/self/ns/user (is /proc mounted?)",
    ))?;
    let theirs =
        rustix::fs::fstat(&user).map_err(TapError::io("cannot look at a user namespace"))?;
    let same = (own.st_dev, own.st_ino) == (theirs.st_dev, theirs.st_ino);
    Ok((!same).then_some(user))
}

fn open_namespace(
    path: &Path,
    kind: &'static str,
    clone_flag: libc::c_int,
) -> Result<OwnedFd, TapError> {
    // Non-blocking, because the path may name a FIFO.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| TapError::OpenNamespace {
        path: path.to_owned(),
        source: e.into(),
    })?;
    if namespace_type(fd.as_fd()) != Some(clone_flag) {
        return Err(TapError::WrongNamespace {
            path: path.to_owned(),
            kind,
        });
    }
    Ok(fd)
}

/// `NS_GET_NSTYPE` (ioctl_ns(2)): a `CLONE_NEW*` flag, or `None` for a file that is no namespace.
fn namespace_type(fd: BorrowedFd<'_>) -> Option<libc::c_int> {
    use std::os::fd::AsRawFd;

    // Other files answer an unknown ioctl with ENOTTY, but one whose driver happens to know the
    // number must not be asked at all: only files of nsfs are.
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    let fs = rustix::fs::fstatfs(fd).ok()?;
    if fs.f_type as i64 != NSFS_MAGIC {
        return None;
    }
    // SAFETY: the descriptor is borrowed, so open, and is one of nsfs; the request takes no
    // argument.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) };
    (kind >= 0).then_some(kind)
}

/// `NS_GET_USERNS` (ioctl_ns(2)): the user namespace that owns this one.
fn owner_of(net: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd};

    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: the descriptor is borrowed, so open, and the caller knows it to be one of nsfs; the
    // request takes no argument.
    match unsafe { libc::ioctl(net.as_raw_fd(), NS_GET_USERNS as _) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made this descriptor for us (close-on-exec), and nothing else
        // knows of it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

fn set_namespace(
    fd: BorrowedFd<'_>,
    kind: &'static str,
    name: LinkNameSpaceType,
) -> Result<(), TapError> {
    rustix::thread::move_into_link_name_space(fd, Some(name)).map_err(|errno| match errno {
        Errno::PERM => TapError::EnterDenied {
            kind,
            source: errno.into(),
        },
        Errno::INVAL if kind == "user" && threads() > 1 => TapError::MultiThreaded,
        _ => TapError::Enter {
            kind,
            source: errno.into(),
        },
    })
}

/// Takes user and group 0 of the user namespace just entered. Files made from here on belong to
/// a user that is mapped. A namespace without a mapping for 0 refuses with EINVAL; the
/// capabilities are held either way, so nothing is lost.
fn become_root() {
    let _ = rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT);
    let _ = rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT);
}

/// Device and inode of a namespace: the same for every descriptor and path of it, and no other's while
/// it lives.
pub type Identity = (u64, u64);

/// The network and the user namespace of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Surroundings {
    /// The network namespace.
    pub net: Identity,
    /// The user namespace.
    pub user: Identity,
}

impl Surroundings {
    /// Those of a process, `self` for this one. Of threads that are elsewhere nothing is told.
    ///
    /// # Errors
    ///
    /// `NotFound` if it has ended; `PermissionDenied` if it may not be looked at (ptrace(2),
    /// `PTRACE_MODE_READ_FSCREDS`): another user's, one in a user namespace around this process's, one
    /// that is not dumpable.
    pub fn of(process: impl std::fmt::Display) -> io::Result<Surroundings> {
        let of = |kind: &str| identity_at(Path::new(&format!("/proc/{process}/ns/{kind}")));
        Ok(Surroundings {
            net: of("net")?,
            user: of("user")?,
        })
    }

    /// The network namespace at a path, and the user namespace that owns it.
    ///
    /// # Errors
    ///
    /// As [`Namespaces::from_paths`] and [`Namespaces::of_net`].
    pub fn of_net_at(path: &Path) -> Result<Surroundings, TapError> {
        let namespaces = Namespaces::of_net(open_namespace(path, "network", libc::CLONE_NEWNET)?)?;
        let net = namespaces.net_identity()?;
        let failed = TapError::io("cannot look at a user namespace");
        let user = match &namespaces.user {
            Some(user) => rustix::fs::fstat(user).map(|stat| (stat.st_dev, stat.st_ino)),
            None => rustix::fs::stat("/proc/self/ns/user").map(|stat| (stat.st_dev, stat.st_ino)),
        };
        user.map(|user| Surroundings { net, user }).map_err(failed)
    }
}

fn identity_at(path: &Path) -> io::Result<Identity> {
    let stat = rustix::fs::stat(path)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Pins the network namespace this thread is in.
///
/// # Errors
///
/// [`TapError::OpenNamespace`] where /proc is not mounted.
pub fn current_net() -> Result<OwnedFd, TapError> {
    let path = Path::new("/proc/thread-self/ns/net");
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|source| TapError::OpenNamespace {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_user_namespace_is_not_entered() {
        let own = Namespaces::of_process(std::process::id() as i32).unwrap();
        assert!(own.user.is_none());
        let by_path = Namespaces::from_paths(
            Path::new("/proc/self/ns/net"),
            Some(Path::new("/proc/self/ns/user")),
        )
        .unwrap();
        assert!(by_path.user.is_none());
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        let wrong = |net: &str, user: Option<&str>| {
            Namespaces::from_paths(Path::new(net), user.map(Path::new)).unwrap_err()
        };
        for path in [
            "/etc/passwd",
            "/",
            "/dev/null",
            "/proc/self/ns/user",
            "/proc/self/ns/mnt",
        ] {
            let error = wrong(path, None);
            assert!(
                matches!(
                    error,
                    TapError::WrongNamespace {
                        kind: "network",
                        ..
                    }
                ),
                "{path}: {error}"
            );
        }
        let error = wrong("/proc/self/ns/net", Some("/proc/self/ns/net"));
        assert!(
            matches!(error, TapError::WrongNamespace { kind: "user", .. }),
            "{error}"
        );
        let error = wrong("/no/such/path", None);
        assert!(matches!(error, TapError::OpenNamespace { .. }), "{error}");
    }

    #[test]
    fn no_such_process() {
        for pid in [0, -1, i32::MAX] {
            let error = Namespaces::of_process(pid).unwrap_err();
            assert!(
                matches!(error, TapError::NoSuchProcess { .. }),
                "{pid}: {error}"
            );
        }
    }
}
