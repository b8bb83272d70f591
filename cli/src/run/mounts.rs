//! What the command sees of the host's files in another way: files of `/etc` that are its own.
//!
//! # Theory of operation
//!
//! When the host renames another file over one that something is mounted on, the kernel takes the
//! mount away in all mount namespaces (`detach_mounts` in fs/namei.c), and the file cannot be
//! covered where the host has none. So the command gets a directory `/etc` of its own, a tmpfs, in
//! which only its own files are ([`OwnFiles`]). Everything else of the host's `/etc` is there as
//! well: each directory is mounted again, each file is a symbolic link to the host's, by way of a
//! second mount of the whole at [`BEHIND`]. So a file that the host replaces is the new one for the
//! command, too. All of it happens in the command's own mount namespace and ends with it: there is
//! no temporary file, and nothing to remove.
//!
//! The directory is read-only, so that a new file of the command's fails instead of being lost;
//! files and directories in it are as writable as they were, and so are the command's own files.
//!
//! Some resolvers of the C library do not read `resolv.conf` but ask a daemon over a Unix socket,
//! which no network namespace keeps from them. The directories of those sockets are covered with
//! one that has none, so that those resolvers go on to DNS.
//!
//! The runtime directory of the user's networks is covered as well: the command is not to manage them.
//!
//! # Limits
//!
//! What the host adds to `/etc` itself later, the command does not see, nor a directory of `/etc`
//! that the host exchanges for another.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Component, Path};

use anyhow::Context;
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind,
    mount_bind_recursive, mount_change, mount_remount, move_mount, open_tree,
};

/// The directory.
const ETC: &str = "/etc";

/// Our own things in it: the host's directory ([`HOST`]), and what covers the resolvers' ones.
const BEHIND: &str = ".cnet";

/// The host's directory, in [`BEHIND`].
const HOST: &str = "host";

/// Where systemd-resolved has its socket, and copies of `resolv.conf` that some programs read.
const RESOLVED: &str = "/run/systemd/resolve";

/// The copies in [`RESOLVED`].
const RESOLVED_FILES: [&str; 2] = ["resolv.conf", "stub-resolv.conf"];

/// Where nscd has its socket.
const NSCD: [&str; 2] = ["/run/nscd", "/var/run/nscd"];

/// What stands in the files that the command has for itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct OwnFiles {
    /// `/etc/resolv.conf`.
    pub(super) resolv_conf: String,
    /// `/etc/hosts`, if it is not the host's.
    pub(super) hosts: Option<String>,
    /// What the host is called, and `/etc/hostname`, if that is not the host's name.
    pub(super) hostname: Option<String>,
}

impl OwnFiles {
    /// Their names in `/etc`.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.texts().map(|(name, _)| name)
    }

    /// Their names in `/etc`, and their texts.
    fn texts(&self) -> impl Iterator<Item = (&'static str, String)> {
        let hosts = self.hosts.clone().map(|text| ("hosts", text));
        let hostname = self.hostname.as_ref();
        let hostname = hostname.map(|name| ("hostname", format!("{name}\n")));
        let resolv_conf = ("resolv.conf", self.resolv_conf.clone());
        [resolv_conf].into_iter().chain(hosts).chain(hostname)
    }
}

/// Mounts a /proc that shows the PID namespace of this process. Where parts of the host's are covered,
/// as in most containers, the kernel refuses that (`mount_too_revealing` in fs/namespace.c).
pub(crate) fn proc() -> anyhow::Result<()> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", safe, None).context("cannot mount /proc")
}

/// Keeps what is mounted from here on out of the host's sight, and lets the host's new mounts be
/// seen here.
pub(crate) fn separate() -> anyhow::Result<()> {
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", slave).context("cannot separate the mounts from the host's")
}

/// Gives this mount namespace an `/etc` with these files.
///
/// # Errors
///
/// Where a tmpfs cannot be mounted: `/etc` is the host's then.
pub(super) fn put_in_place(files: &OwnFiles) -> anyhow::Result<()> {
    let etc = Path::new(ETC);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    // Before it is covered: it cannot be reached afterwards.
    let host = open_tree(CWD, etc, flags).context("cannot mount /etc a second time")?;
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("cnet", etc, "tmpfs", safe, c"mode=0755,size=1m").context("cannot mount a tmpfs")?;
    let behind = etc.join(BEHIND);
    let below = behind.join(HOST);
    fs::create_dir_all(&below).context("cannot make a directory on a tmpfs")?;
    let to_path = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&host, "", CWD, &below, to_path).context("cannot mount /etc a second time")?;
    let own: Vec<(&str, String)> = files.texts().collect();
    for entry in fs::read_dir(&below).context("cannot list /etc")?.flatten() {
        let name = entry.file_name();
        if name != BEHIND && !own.iter().any(|(own, _)| name == *own) {
            show(etc, Path::new(&name)).with_context(|| format!("/etc/{}", name.display()))?;
        }
    }
    for (name, text) in own {
        let file = etc.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        // A mount of its own stays writable.
        mount_bind(&file, &file).with_context(|| format!("cannot mount {}", file.display()))?;
    }
    cover_resolvers(&behind, &files.resolv_conf)?;
    let read_only = MountFlags::BIND | MountFlags::RDONLY | safe;
    mount_remount(etc, read_only, c"").context("cannot make /etc read-only")
}

/// Covers the directory of the control sockets with an empty one, so that nothing in it is met by
/// accident. It is no wall: root of the command's user namespace may take it away, and is turned away at
/// the socket then (`netd/src/peer.rs`).
///
/// # Errors
///
/// Where a tmpfs cannot be mounted.
pub(super) fn cover_networks(runtime: &Path) -> anyhow::Result<()> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("cnet", runtime, "tmpfs", safe, c"mode=0700,size=16m")
        .with_context(|| format!("cannot cover {}", runtime.display()))
}

/// Shows the host's entry `name` in `etc`.
fn show(etc: &Path, name: &Path) -> anyhow::Result<()> {
    let behind = Path::new(BEHIND).join(HOST).join(name);
    let (source, target) = (etc.join(&behind), etc.join(name));
    let found = fs::symlink_metadata(&source)?;
    if found.is_dir() {
        fs::create_dir(&target)?;
        if mount_bind_recursive(&source, &target).is_ok() {
            return Ok(());
        }
        // As a link it is as good, but for links in it that lead upwards.
        fs::remove_dir(&target)?;
    }
    if found.is_symlink() {
        let leads_to = fs::read_link(&source)?;
        let upwards = |part: Component<'_>| part == Component::ParentDir;
        // One that leads upwards starts where it stands.
        if leads_to.components().any(upwards) {
            return Ok(symlink(leads_to, target)?);
        }
    }
    Ok(symlink(behind, target)?)
}

/// Covers the directories of daemons that answer for DNS: nss-resolve's and nscd's.
fn cover_resolvers(behind: &Path, resolv_conf: &str) -> anyhow::Result<()> {
    let resolved = behind.join("resolve");
    let nothing = behind.join("nothing");
    for directory in [&resolved, &nothing] {
        fs::create_dir(directory).context("cannot make a directory on a tmpfs")?;
    }
    for name in RESOLVED_FILES {
        fs::write(resolved.join(name), resolv_conf).context("cannot write on a tmpfs")?;
    }
    let covers = NSCD.iter().map(|place| (&nothing, *place));
    for (cover, place) in covers.chain([(&resolved, RESOLVED)]) {
        if fs::metadata(place).is_ok_and(|found| found.is_dir()) {
            mount_bind(cover, place).with_context(|| format!("cannot cover {place}"))?;
        }
    }
    Ok(())
}
