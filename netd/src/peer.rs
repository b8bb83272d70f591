//! Who knocks at the control socket, and whether it is let in.
//!
//! # Theory of operation
//!
//! A control connection can give a container an interface, take one away and open ports of the host. So
//! it is for programs of this user that run where the user does, and no way out for a container that has
//! the socket in sight, as the command of `cnet run` may have. It is judged outside the sandbox, where
//! both sides can be seen: the kernel tells which process has connected ([`unix::peer`]), and /proc in
//! which namespaces that is.
//!
//! Let in is a client
//! - in the network and user namespace of this process;
//! - in a pair of them that was admitted ([`Trusted`]);
//! - in this process's user namespace and a network namespace that no cnet has made or serves;
//! - of the host's root, where this process is not root: that one may do as it likes anyway.
//!
//! # Limits
//!
//! A process is where its first thread is. One that may not be looked at, since it is not dumpable, is
//! not let in. What `cnet-slirp` serves is in no register: as any user but root it is in another user
//! namespace.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use cnet::definition::{Directories, Trusted};
use cnet_tap::namespace::{Identity, Surroundings};
use cnet_tap::unix::{self, Peer};
use cnet_tap::watch;

use crate::journal;
use crate::registry::Registry;

/// Judges the client that has connected this socket.
///
/// # Errors
///
/// Why it is turned away, and what would change that.
pub(crate) fn judge(socket: BorrowedFd<'_>, directories: &Directories) -> Result<(), String> {
    let ended = || "the process that connected has ended".to_owned();
    let Peer { pidfd, uid } = unix::peer(socket)
        .map_err(|error| format!("cannot tell who asks: {}", io::Error::from(error)))?;
    let own_uid = rustix::process::geteuid().as_raw();
    match uid {
        0 if own_uid != 0 => return Ok(()),
        uid if uid != own_uid => return Err("the network is another user's".to_owned()),
        _ => {}
    }
    let pid = watch::number_of(&pidfd).ok_or_else(ended)?;
    let peer = Surroundings::of(pid);
    // What was found was this process's if it still lives.
    if watch::has_ended(&pidfd).unwrap_or(true) {
        return Err(ended());
    }
    let peer = peer.map_err(|error| {
        format!("cannot tell in which namespaces the process {pid} is, which asks: {error}")
    })?;
    let host = Surroundings::of("self").map_err(|error| format!("cannot read /proc: {error}"))?;
    if peer == host || Trusted::at(&directories.runtime).admits(&peer, &host) {
        return Ok(());
    }
    let admit = format!("outside, `cnet trust --netns /proc/{pid}/ns/net` admits it");
    if peer.user != host.user {
        return Err(format!(
            "this user namespace is not trusted with the networks of the user around it; {admit}"
        ));
    }
    if peer.net != host.net && is_served(peer.net, directories) {
        return Err(format!(
            "a container of cnet's is not trusted with the networks around it; {admit}"
        ));
    }
    Ok(())
}

/// Whether a container of this user's has that network namespace: one that `cnet run` holds, or one on a
/// network that runs.
fn is_served(net: Identity, directories: &Directories) -> bool {
    let held = Registry::new(directories).list();
    let is_in = |pid: i32| Surroundings::of(pid).is_ok_and(|there| there.net == net);
    // One on the host's network is where the host is.
    held.iter().any(|running| is_in(running.pid)) || is_on_a_network(net, directories)
}

fn is_on_a_network(net: Identity, directories: &Directories) -> bool {
    let networks = fs::read_dir(&directories.runtime).into_iter().flatten();
    let mut names = networks.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.any(|name| {
        let records = journal::read(&directories.state_file(&name)).unwrap_or_default();
        records
            .iter()
            .any(|one| one.namespace == net && one.lives())
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use super::*;
    use crate::registry::Running;

    fn directories(root: &Path) -> Directories {
        Directories {
            config: root.join("c"),
            state: root.join("s"),
            runtime: root.join("r"),
        }
    }

    #[test]
    fn a_program_beside_the_server_is_let_in() {
        let root = tempfile::tempdir().unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        assert_eq!(judge(near.as_fd(), &directories(root.path())), Ok(()));
        let file = fs::File::open("/dev/null").unwrap();
        assert!(judge(file.as_fd(), &directories(root.path())).is_err());
    }

    #[test]
    fn what_run_holds_is_served() {
        let root = tempfile::tempdir().unwrap();
        let directories = directories(root.path());
        let net = Surroundings::of("self").unwrap().net;
        assert!(!is_served(net, &directories));
        let pid = std::process::id() as i32;
        let running = Running {
            id: "ab".repeat(32),
            name: "web".to_owned(),
            pid,
            start_time: watch::start_time(pid).unwrap(),
            network: "none".to_owned(),
            ..Running::default()
        };
        let entered = Registry::new(&directories).enter(&running).unwrap();
        assert!(is_served(net, &directories));
        assert!(!is_served((net.0, net.1 + 1), &directories));
        drop(entered);
        assert!(!is_served(net, &directories));
    }
}
