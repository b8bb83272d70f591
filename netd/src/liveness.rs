//! Whether a container still lives: its namespace, pinned once, and what tells of its end.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cnet_tap::watch::{self, PathWatch, start_time};
use cnet_tap::{Namespaces, TapError};
use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;

use crate::journal::{Liveness, Record};
use cnet::control::{Kind, Refusal};
use cnet_tap::async_fd::AsyncOwnedFd;

/// A container's network namespace, and what tells of the container's end.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) net: OwnedFd,
    /// Device and inode of the namespace.
    pub(crate) namespace: (u64, u64),
    pub(crate) liveness: Liveness,
    pub(crate) end: End,
}

/// What is watched.
#[derive(Debug)]
pub(crate) enum End {
    Process(OwnedFd),
    Path(PathWatch),
}

/// Whether it is the network namespace of this process.
fn is_own(namespace: (u64, u64)) -> bool {
    std::fs::metadata("/proc/self/ns/net").is_ok_and(|own| (own.dev(), own.ino()) == namespace)
}

/// Whether the process `member` is in the container's `namespace`: after a crash that is looked for
/// by it.
fn check_member(member: i32, namespace: (u64, u64)) -> Result<(), Refusal> {
    let refused = |why: &str| Err(invalid(format!("the member {member} {why}")));
    if member <= 0 {
        return refused("is not the number of a process");
    }
    match std::fs::metadata(format!("/proc/{member}/ns/net")) {
        Ok(found) if (found.dev(), found.ino()) == namespace => Ok(()),
        Ok(_) => refused("is in another network namespace; name a process in the container's"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            refused("has ended, or never was; name a process in the container's namespace")
        }
        // What may not be looked at now may be later.
        Err(_) => Ok(()),
    }
}

fn invalid(text: impl ToString) -> Refusal {
    Refusal::new(Kind::Invalid, text.to_string())
}

impl Pinned {
    /// From what a client sent: the namespace, and behind it a pidfd unless it names a path.
    pub(crate) fn received(
        descriptors: Vec<OwnedFd>,
        path: Option<&Path>,
        member: Option<i32>,
    ) -> Result<Pinned, Refusal> {
        let mut descriptors = descriptors.into_iter();
        let net = descriptors
            .next()
            .ok_or_else(|| invalid("the request brings no descriptor of a network namespace"))?;
        let (liveness, end) = match (path, descriptors.next()) {
            (Some(_), _) if member.is_some() => {
                return Err(invalid(
                    "a member goes with the pidfd of another process, not with a path",
                ));
            }
            (Some(path), _) if path.is_absolute() => by_path(path)?,
            (Some(_), _) => return Err(invalid("the path of a namespace starts with a slash")),
            (None, Some(pidfd)) => by_process(pidfd, member)?,
            (None, None) => return Err(invalid("the request brings no pidfd, and names no path")),
        };
        let pinned = Pinned::new(net, liveness, end)?;
        if is_own(pinned.namespace) {
            return Err(invalid(
                "that is the network namespace which the network itself goes out by: its default route would lead into the network; name a container's",
            ));
        }
        if let Some(member) = member {
            check_member(member, pinned.namespace)?;
        }
        match path.map(std::fs::metadata) {
            Some(Ok(found)) if (found.dev(), found.ino()) == pinned.namespace => Ok(pinned),
            None => Ok(pinned),
            _ => Err(invalid(
                "the path leads to another namespace than the descriptor",
            )),
        }
    }

    fn new(net: OwnedFd, liveness: Liveness, end: End) -> Result<Pinned, Refusal> {
        let namespaces = Namespaces::of_net(net).map_err(invalid)?;
        let namespace = namespaces.net_identity().map_err(invalid)?;
        Ok(Pinned {
            net: namespaces.net,
            namespace,
            liveness,
            end,
        })
    }

    /// Finds the container of a record again, if it is still the same.
    pub(crate) fn again(record: &Record) -> Result<Pinned, String> {
        let text = |error: TapError| error.to_string();
        let (net, end) = match &record.liveness {
            Liveness::Process {
                pid,
                start_time: t,
                member,
            } => {
                // The pidfd first: if the start time fits then, both are of that process.
                let pidfd = watch::pidfd(*pid).map_err(text)?;
                let inside = member.unwrap_or(*pid);
                let net = open(format!("/proc/{inside}/ns/net").as_ref())?;
                if start_time(*pid) != Some(*t) {
                    return Err("its process has ended".to_owned());
                }
                (net, End::Process(pidfd))
            }
            Liveness::Vm { .. } => return Err("it has no network namespace".to_owned()),
            Liveness::Path { path } => {
                let end = PathWatch::new(path).map_err(text)?;
                (open(path)?, End::Path(end))
            }
        };
        let pinned = Pinned::new(net, record.liveness.clone(), end).map_err(|e| e.message)?;
        match pinned.namespace == record.namespace {
            true => Ok(pinned),
            false => Err("its network namespace is another one now".to_owned()),
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| format!("{}: {e}", path.display()))
}

fn by_path(path: &Path) -> Result<(Liveness, End), Refusal> {
    let end = PathWatch::new(path).map_err(invalid)?;
    let path = path.to_owned();
    Ok((Liveness::Path { path }, End::Path(end)))
}

fn by_process(pidfd: OwnedFd, member: Option<i32>) -> Result<(Liveness, End), Refusal> {
    let ended = || invalid("the container's process has ended already");
    let pid =
        watch::number_of(&pidfd).ok_or_else(|| invalid("the second descriptor is no pidfd"))?;
    let start_time = start_time(pid).ok_or_else(ended)?;
    match watch::has_ended(&pidfd) {
        Ok(false) => {
            let liveness = Liveness::Process {
                pid,
                start_time,
                member,
            };
            Ok((liveness, End::Process(pidfd)))
        }
        _ => Err(ended()),
    }
}

impl End {
    /// Waits until the container is gone. `identity` tells what is at its path.
    pub(crate) async fn wait(
        self,
        identity: impl Fn(&Path) -> std::io::Result<Option<(u64, u64)>>,
    ) {
        let fd = match &self {
            End::Process(pidfd) => pidfd.try_clone(),
            End::Path(path) => std::os::fd::AsFd::as_fd(path).try_clone_to_owned(),
        };
        let watched = fd.and_then(|fd| AsyncOwnedFd::new(fd, Interest::READABLE));
        let watched = match watched {
            Ok(watched) => watched,
            Err(error) => {
                tracing::error!(%error, "cannot watch a container: it stays until it is detached");
                return std::future::pending().await;
            }
        };
        while let Ok(mut ready) = watched.ready().await {
            // Cleared before looking: what happens from here on fires again.
            ready.clear_ready();
            let gone = match &self {
                End::Process(pidfd) => watch::has_ended(pidfd).unwrap_or(true),
                End::Path(path) => {
                    path.take_events();
                    let found = identity(path.path());
                    found.is_ok_and(|found| found != Some(path.identity()))
                }
            };
            if gone {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn a_process_is_known_by_its_pidfd_and_its_end_is_noticed() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        let (liveness, end) = by_process(watch::pidfd(pid).unwrap(), None).unwrap();
        let start_time = start_time(pid).unwrap();
        let expected = Liveness::Process {
            pid,
            start_time,
            member: None,
        };
        assert_eq!(liveness, expected);
        drop(child.stdin.take());
        end.wait(|_| Ok(None)).await;
        child.wait().unwrap();
        let late = by_process(std::fs::File::open("/dev/null").unwrap().into(), None);
        assert!(late.unwrap_err().message.contains("no pidfd"));
    }

    #[test]
    fn requests_without_what_is_needed_are_refused() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let text = |fds, path: Option<&str>| {
            let pinned = Pinned::received(fds, path.map(Path::new), None);
            pinned.unwrap_err().message
        };
        assert!(text(vec![], None).contains("no descriptor"));
        assert!(text(vec![null()], None).contains("no pidfd"));
        assert!(text(vec![null()], Some("relative")).contains("slash"));
        let own = || watch::pidfd(std::process::id() as i32).unwrap();
        let net = std::fs::File::open("/proc/self/ns/net").unwrap().into();
        assert!(text(vec![net, own()], None).contains("the network itself"));
        assert!(text(vec![null(), own()], None).contains("not one of a network namespace"));
        let with_member = Pinned::received(vec![null()], Some(Path::new("/x")), Some(1));
        assert!(with_member.unwrap_err().message.contains("not with a path"));
    }

    #[test]
    fn a_member_is_in_the_namespace() {
        let own = std::fs::metadata("/proc/self/ns/net").unwrap();
        let (own, pid) = ((own.dev(), own.ino()), std::process::id() as i32);
        assert_eq!(check_member(pid, own), Ok(()));
        for (member, namespace, why) in [
            (0, own, "not the number"),
            (-1, own, "not the number"),
            (i32::MAX, own, "has ended"),
            (pid, (own.0, own.1 + 1), "another network namespace"),
        ] {
            let refused = check_member(member, namespace).unwrap_err();
            assert_eq!(refused.kind, Kind::Invalid);
            assert!(refused.message.contains(why), "{}", refused.message);
        }
    }
}
