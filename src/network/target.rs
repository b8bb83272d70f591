//! What is to join a network, and the descriptors that stand for it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cnet_tap::{Namespaces, TapError, watch};
use rustix::fs::{Mode, OFlags};

use super::NetworkError;
use crate::control::Attach;
use crate::vm::VmAddress;

/// What is to join a network.
#[derive(Debug)]
#[non_exhaustive]
pub enum Target {
    /// The container that this process is in; it leaves when the process ends.
    Process(i32),
    /// The network namespace of this path; it leaves when the path is removed.
    Path(PathBuf),
    /// A virtual machine that meets the network there; it stays until it is detached.
    Vm(VmAddress),
    /// The network namespace of this descriptor; it leaves when the process behind the pidfd ends.
    /// It is taken up again after a crash of the network's process only by way of a process in the
    /// namespace: that one, or `member`.
    Descriptors {
        /// The network namespace.
        net: OwnedFd,
        /// The process to watch.
        pidfd: OwnedFd,
        /// A process in the namespace, if the other one is not.
        member: Option<i32>,
    },
}

impl Target {
    /// What a person names: a process by its number, a namespace by its path.
    pub fn parse(text: &str) -> Option<Target> {
        match text.parse::<i32>() {
            Ok(pid) => Some(Target::Process(pid)),
            Err(_) => text.contains('/').then(|| Target::Path(text.into())),
        }
    }

    /// The descriptors that the network's process needs, and what it is told of them.
    pub(super) fn describe(
        self,
        mut attach: Attach,
    ) -> Result<(Attach, Vec<OwnedFd>), NetworkError> {
        (attach.path, attach.member, attach.vm) = (None, None, None);
        let descriptors = match self {
            Target::Process(pid) => {
                // The pidfd first: if the process is still there afterwards, both are of the same.
                let pidfd = watch::pidfd(pid)?;
                let namespaces = Namespaces::of_process(pid)?;
                if watch::has_ended(&pidfd)? {
                    return Err(TapError::NoSuchProcess { pid }.into());
                }
                vec![namespaces.net, pidfd]
            }
            Target::Path(path) => match watch::process_of(&path) {
                // Files of /proc send no events: such a path is watched by its process.
                Some(pid) => {
                    // As above.
                    let pidfd = watch::pidfd(pid)?;
                    let net = open(&path)?;
                    if watch::has_ended(&pidfd)? {
                        return Err(TapError::NoSuchProcess { pid }.into());
                    }
                    vec![net, pidfd]
                }
                None => {
                    let path = path
                        .canonicalize()
                        .map_err(|source| TapError::OpenNamespace { path, source })?;
                    let net = open(&path)?;
                    attach.path = Some(path);
                    vec![net]
                }
            },
            Target::Vm(address) => {
                attach.vm = Some(address);
                Vec::new()
            }
            Target::Descriptors { net, pidfd, member } => {
                attach.member = member;
                vec![net, pidfd]
            }
        };
        Ok((attach, descriptors))
    }
}

fn open(path: &Path) -> Result<OwnedFd, TapError> {
    // Non-blocking, because the path may name a FIFO.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    let net = opened.map_err(|errno| TapError::OpenNamespace {
        path: path.to_owned(),
        source: errno.into(),
    })?;
    // Looked at here, so that the error names the path.
    match Namespaces::of_net(net.as_fd().try_clone_to_owned().map_err(|source| {
        TapError::OpenNamespace {
            path: path.to_owned(),
            source,
        }
    })?) {
        Err(TapError::NotANetwork) => Err(TapError::WrongNamespace {
            path: path.to_owned(),
            kind: "network",
        }),
        _ => Ok(net),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_apart() {
        assert!(matches!(Target::parse("17"), Some(Target::Process(17))));
        let path = Target::parse("/run/netns/x");
        assert!(matches!(path, Some(Target::Path(p)) if p == Path::new("/run/netns/x")));
        assert!(Target::parse("web").is_none());
    }

    #[test]
    fn a_target_is_described_by_what_it_is() {
        let own = std::process::id() as i32;
        let described = |target: Target| target.describe(Attach::default());
        let (attach, fds) = described(Target::Process(own)).unwrap();
        assert_eq!((attach.path, fds.len()), (None, 2));
        let (attach, fds) = described(Target::Path(format!("/proc/{own}/ns/net").into())).unwrap();
        assert_eq!((attach.path, fds.len()), (None, 2));
        let error = described(Target::Path("/etc/passwd".into())).unwrap_err();
        assert!(
            error.to_string().contains("not a network namespace"),
            "{error}"
        );
        let error = described(Target::Process(i32::MAX)).unwrap_err();
        assert!(error.to_string().contains("no process"), "{error}");
    }
}
