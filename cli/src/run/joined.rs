//! The namespaces of another container, for `--network container:NAME`.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, bail};
use cnet_tap::{Namespaces, watch};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::thread::LinkNameSpaceType;

use super::mounts::OwnFiles;
use super::own_files::HOSTS;
use crate::each_network::{Answers, each};
use crate::program::all_of;
use cnet::definition::Directories;
use cnet_netd::dns::resolv_conf::{MAX_FILE, PATH};
use cnet_netd::registry::Registry;

/// The namespaces of a process, pinned by descriptor: network and user, and of others those that are
/// not this process's already.
pub(super) struct ProcessNamespaces {
    namespaces: Namespaces,
    others: Vec<(OwnedFd, LinkNameSpaceType)>,
}

impl ProcessNamespaces {
    /// Opens them. `kinds` are the others, by their file's name in `/proc/PID/ns`, in the order in which
    /// they are to be entered; `whose` says in an error what cannot be opened.
    ///
    /// # Errors
    ///
    /// When the process has ended, or may not be looked at.
    pub(super) fn open(
        pid: i32,
        kinds: &[(&str, LinkNameSpaceType)],
        whose: &str,
    ) -> anyhow::Result<ProcessNamespaces> {
        let namespaces = Namespaces::of_process(pid)?;
        let mut others = Vec::new();
        for &(file, kind) in kinds {
            let own = fs::metadata(format!("/proc/self/ns/{file}"))?;
            let theirs = File::open(format!("/proc/{pid}/ns/{file}"))
                .with_context(|| format!("cannot open {whose}"))?;
            if identity(own) != identity(theirs.metadata()?) {
                others.push((theirs.into(), kind));
            }
        }
        Ok(ProcessNamespaces { namespaces, others })
    }

    /// Whether one of this kind is not this process's already.
    pub(super) fn has_other(&self, kind: LinkNameSpaceType) -> bool {
        let mut kinds = self.others.iter().map(|(_, other)| *other as u32);
        kinds.any(|other| other == kind as u32)
    }

    /// Moves this process there, for good.
    pub(super) fn enter(&self) -> anyhow::Result<()> {
        self.namespaces.enter()?;
        for (namespace, kind) in &self.others {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(*kind))
                .context("cannot enter the container's namespaces")?;
        }
        Ok(())
    }
}

/// The namespaces of a container, pinned by descriptor.
pub(super) struct Joined {
    namespaces: ProcessNamespaces,
    /// What it has in `/etc`, if its `resolv.conf` can be read.
    pub(super) own_files: Option<OwnFiles>,
}

impl Joined {
    /// Those of the container with that name, or with an id that begins so.
    pub(super) async fn of_container(name: &str) -> anyhow::Result<Joined> {
        let pid = process_of(name).await?;
        let pidfd = watch::pidfd(pid)?;
        let kinds = [
            ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
            ("ipc", LinkNameSpaceType::InterProcessCommunication),
        ];
        let whose = format!("the namespaces of `{name}`");
        let namespaces = ProcessNamespaces::open(pid, &kinds, &whose)?;
        let joined = Joined {
            namespaces,
            own_files: own_files_of(Path::new(&format!("/proc/{pid}/root"))),
        };
        // The number may have become another process's before the pidfd was there, or since.
        if process_of(name).await? != pid || watch::has_ended(&pidfd)? {
            bail!("the container `{name}` has just ended");
        }
        Ok(joined)
    }

    /// Moves this process there, for good.
    pub(super) fn enter(&self) -> anyhow::Result<()> {
        self.namespaces.enter()
    }
}

/// The `resolv.conf` and `hosts` of a container whose root directory is at `root`, if there is a
/// `resolv.conf`. It shares its host name by its namespace.
fn own_files_of(root: &Path) -> Option<OwnFiles> {
    Some(OwnFiles {
        resolv_conf: file_of(root, PATH)?,
        hosts: file_of(root, HOSTS),
        hostname: None,
    })
}

/// The text of a file of a container whose root directory is at `root`, if there is one that can be
/// read. What is in there is the container's to choose: a symbolic link leads nowhere outside, a
/// FIFO is not waited for, and a file has an end.
fn file_of(root: &Path, path: &str) -> Option<String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let within = ResolveFlags::IN_ROOT;
    let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), within).ok()?;
    let file = File::from(file);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

fn identity(file: fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// A process of the container `name`: one that `cnet run` holds, or one on a network.
pub(super) async fn process_of(name: &str) -> anyhow::Result<i32> {
    let directories = Directories::of_this_user()?;
    if let Some(running) = Registry::new(&directories).find(name) {
        return Ok(running.pid);
    }
    let Answers { given, failures } =
        each(|network| async move { network.inspect().await }).await?;
    for report in given {
        let found = report.containers.into_iter().find(|container| {
            container.name == name || name.len() >= 4 && container.id.starts_with(name)
        });
        match found.map(|container| container.pid) {
            Some(Some(pid)) => return Ok(pid),
            Some(None) => bail!("the container `{name}` has no process, only a namespace"),
            None => {}
        }
    }
    all_of(failures.into_iter().map(Err))?;
    match name.parse() {
        Ok(pid) if fs::exists(format!("/proc/{pid}/ns"))? => Ok(pid),
        _ => bail!("there is no container `{name}`; `cnet ps` lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_resolv_conf_is_read_within_its_root() {
        use std::os::unix::fs::symlink;

        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir(root.join("run")).unwrap();
        let conf = root.join("etc/resolv.conf");
        assert_eq!(file_of(&root, PATH), None);
        fs::write(&conf, "nameserver 10.88.0.1\n").unwrap();
        assert_eq!(file_of(&root, PATH).unwrap(), "nameserver 10.88.0.1\n");
        let linked = |to: &Path| {
            fs::remove_file(&conf).unwrap();
            symlink(to, &conf).unwrap();
            file_of(&root, PATH)
        };
        let secret = place.path().join("secret");
        fs::write(&secret, "the host's").unwrap();
        assert_eq!(linked(&secret), None, "an absolute link");
        assert_eq!(linked(Path::new("../../secret")), None, "a relative link");
        fs::write(root.join("run/conf"), "search lan\n").unwrap();
        assert_eq!(linked(Path::new("/run/conf")).unwrap(), "search lan\n");
        let fifo = root.join("run/fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        assert_eq!(linked(Path::new("/run/fifo")), None);
        let large = fs::File::create(root.join("run/large")).unwrap();
        large.set_len(2 * MAX_FILE).unwrap();
        let text = linked(Path::new("/run/large")).unwrap();
        assert_eq!(text.len() as u64, MAX_FILE);
    }
}
