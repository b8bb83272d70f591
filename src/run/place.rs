//! Where a command is put: what `--network` means.
//!
//! | `--network` | namespaces | network |
//! |---|---|---|
//! | not given | new ones | one of its own, which ends with the command |
//! | `none` | new ones | loopback alone |
//! | `host` | the caller's | the host's |
//! | `container:NAME` | that container's | that container's |
//! | a name | new ones | that network, beside its other containers |

use std::convert::Infallible;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;

use anyhow::{Context, bail};
use cnet_tap::{InterfaceConfig, Namespaces};
use rustix::thread::LinkNameSpaceType;

use crate::dns::resolv_conf::PATH;
use crate::handle::Network;
use crate::network::{Directories, Store};
use crate::registry::Registry;

/// What `--network` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Loopback alone.
    Nowhere,
    /// The host's own network.
    Host,
    /// With the container of that name.
    Container(String),
    /// On the network of that name.
    Network(String),
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Place, Infallible> {
        Ok(match (text, text.strip_prefix("container:")) {
            ("none", _) => Place::Nowhere,
            ("host", _) => Place::Host,
            (_, Some(name)) => Place::Container(name.to_owned()),
            (name, None) => Place::Network(name.to_owned()),
        })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Nowhere => f.write_str("none"),
            Place::Host => f.write_str("host"),
            Place::Container(name) => write!(f, "container:{name}"),
            Place::Network(name) => f.write_str(name),
        }
    }
}

/// The namespaces of the command, as its child makes or enters them.
pub(super) enum Spaces {
    /// New ones, with a TAP that looks like this and has so many queues.
    Private(InterfaceConfig, u16),
    /// New ones, with a loopback interface; more may come from outside.
    Empty,
    /// Those it has.
    Inherited,
    /// Those of a container.
    Joined(Joined),
}

/// The namespaces of a container.
pub(super) struct Joined {
    namespaces: Namespaces,
    others: Vec<(OwnedFd, LinkNameSpaceType)>,
    /// What it has as `/etc/resolv.conf`, if that can be read.
    pub(super) resolv_conf: Option<String>,
}

impl Joined {
    /// Those of the container that a person means.
    pub(super) async fn of_container(name: &str) -> anyhow::Result<Joined> {
        let pid = process_of(name).await?;
        let namespaces = Namespaces::of_process(pid)?;
        let mut others = Vec::new();
        for (file, kind) in [
            ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
            ("ipc", LinkNameSpaceType::InterProcessCommunication),
        ] {
            let own = fs::metadata(format!("/proc/self/ns/{file}"));
            let theirs = File::open(format!("/proc/{pid}/ns/{file}"));
            let theirs =
                theirs.with_context(|| format!("cannot open the namespaces of `{name}`"))?;
            if own.map(identity).ok() != theirs.metadata().map(identity).ok() {
                others.push((theirs.into(), kind));
            }
        }
        Ok(Joined {
            namespaces,
            others,
            resolv_conf: fs::read_to_string(format!("/proc/{pid}/root{PATH}")).ok(),
        })
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

fn identity(file: fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}

/// A process of the container `name`: one that `cnet run` holds, or one on a network.
async fn process_of(name: &str) -> anyhow::Result<i32> {
    let directories = Directories::of_this_user()?;
    if let Some(running) = Registry::new(&directories).find(name) {
        return Ok(running.pid);
    }
    for definition in Store::open(directories.clone()).list()? {
        let network = Network::new(definition, directories.clone());
        let Some(report) = network.inspect().await? else {
            continue;
        };
        let found = report.containers.into_iter().find(|container| {
            container.name == name || name.len() >= 4 && container.id.starts_with(name)
        });
        match found.map(|container| container.pid) {
            Some(Some(pid)) => return Ok(pid),
            Some(None) => bail!("the container `{name}` has no process, only a namespace"),
            None => {}
        }
    }
    bail!("there is no container `{name}`; `cnet ps` lists them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_and_print_alike() {
        for (text, place) in [
            ("none", Place::Nowhere),
            ("host", Place::Host),
            ("container:web", Place::Container("web".to_owned())),
            ("lan", Place::Network("lan".to_owned())),
        ] {
            assert_eq!(text.parse::<Place>().unwrap(), place);
            assert_eq!(place.to_string(), text);
        }
    }
}
