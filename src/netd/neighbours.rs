//! The names of a container's other networks.
//!
//! # Theory of operation
//!
//! A container on several networks asks one of their gateways for every name: the C library turns
//! to a second name server only if the first is silent. So each network answers for the others that
//! the same container is on, and for those alone. Who is on them stands in the files that their
//! processes keep for after a crash ([`super::state`]); the container is the same if its network
//! namespace is.
//!
//! The directories are looked into when a name is asked for that this network does not have, and at
//! most every [`LAG`], so that a flood of such queries costs no more than that. A file is read again
//! when it was replaced, and after [`MAX_AGE`] in any case: what tells that it was replaced may
//! be the same for two that follow each other at once.
//!
//! # Limits
//!
//! What no network of the container has is asked for where this network asks: on an internal one
//! nowhere, even if another one has a way out.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::names;
use super::state::{self, Life};
use crate::dns::Names;
use crate::network::{Store, check_network_name};

/// How old what was seen may be when it is used.
const LAG: Duration = Duration::from_millis(20);

/// How old what was read from a file that seems unchanged may be.
const MAX_AGE: Duration = Duration::from_secs(1);

/// A network namespace: device and inode.
pub(super) type Namespace = (u64, u64);

/// The other networks of this user.
#[derive(Debug)]
pub(super) struct Neighbours {
    store: Store,
    /// The network that asks.
    own: String,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    at: Option<Instant>,
    networks: BTreeMap<String, Neighbour>,
}

/// What is known of one network.
#[derive(Debug)]
struct Neighbour {
    version: Version,
    read: Instant,
    present: HashSet<Namespace>,
    names: Names,
}

/// Another one for each content of a file: inode, length, and when it was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Version(u64, u64, (i64, i64));

impl Version {
    fn of(path: &Path) -> Option<Version> {
        let found = fs::metadata(path).ok()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Version(found.ino(), found.len(), changed))
    }
}

impl Neighbours {
    pub(super) fn new(store: Store, own: &str) -> Neighbours {
        Neighbours {
            store,
            own: own.to_owned(),
            seen: Mutex::default(),
        }
    }

    /// The names of the other networks that the container in `namespace` is on.
    pub(super) fn of(&self, namespace: Namespace) -> Vec<Names> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if seen.at.is_none_or(|at| now - at >= LAG) {
            self.look(&mut seen.networks, now);
            seen.at = Some(now);
        }
        let networks = seen.networks.values();
        let shared = networks.filter(|network| network.present.contains(&namespace));
        shared.map(|network| network.names.clone()).collect()
    }

    fn look(&self, networks: &mut BTreeMap<String, Neighbour>, now: Instant) {
        let mut before = std::mem::take(networks);
        let runtime = fs::read_dir(&self.store.directories().runtime);
        let entries = runtime.into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let others = names.filter(|name| *name != self.own && check_network_name(name).is_ok());
        for name in others {
            let path = self.store.directories().state_file(&name);
            let Some(version) = Version::of(&path) else {
                continue;
            };
            let known = before.remove(&name);
            let fresh = |known: &Neighbour| known.version == version && now - known.read < MAX_AGE;
            let found = match known.filter(fresh) {
                Some(known) => Some(known),
                None => self.read(&name, &path, version, now),
            };
            networks.extend(found.map(|found| (name, found)));
        }
    }

    fn read(&self, name: &str, path: &Path, version: Version, now: Instant) -> Option<Neighbour> {
        let definition = self.store.get(name).ok()?;
        let (names, mut present) = (Names::new(names::zone(&definition)), HashSet::new());
        for record in state::load(path) {
            if !matches!(record.life, Life::Machine { .. }) {
                present.insert(record.namespace);
            }
            names.join(&record.id, names::host(&record));
        }
        Some(Neighbour {
            version,
            read: now,
            present,
            names,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netd::state::Record;
    use crate::network::{Directories, HostRoutes, Request};

    const PROXY: Namespace = (4, 1);

    fn record(name: &str, digit: char, namespace: Namespace) -> Record {
        Record {
            id: digit.to_string().repeat(64),
            name: name.to_owned(),
            aliases: Vec::new(),
            life: Life::Path { path: "/x".into() },
            namespace,
            interface: "eth0".to_owned(),
            mac: [2; 6],
            ipv4: Some([10, 89, 0, namespace.1 as u8].into()),
            ipv6: None,
            ports: Vec::new(),
        }
    }

    #[test]
    fn only_networks_that_the_container_is_on_tell_their_names() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(Directories {
            config: root.path().join("c"),
            state: root.path().join("s"),
            runtime: root.path().join("r"),
        });
        for name in ["front", "back", "other"] {
            let request = Request::new(name);
            store.create(request, &HostRoutes::default()).unwrap();
            store.directories().make_network_runtime(name).unwrap();
        }
        let write = |network: &str, records: Vec<Record>| {
            state::save(&store.directories().state_file(network), records).unwrap();
        };
        let machine = Record {
            life: Life::Machine {
                address: "stream:/x".parse().unwrap(),
            },
            ..record("vm", 'd', (0, 0))
        };
        let [proxy, db] = [record("proxy", 'a', PROXY), record("db", 'b', (4, 2))];
        write("front", vec![proxy.clone(), record("own", 'e', (4, 4))]);
        write("back", vec![proxy.clone(), db.clone(), machine]);
        write("other", vec![record("secret", 'c', (4, 3))]);
        let neighbours = Neighbours::new(store.clone(), "front");
        let finds = |namespace: Namespace, name: &str| {
            let names = neighbours.of(namespace);
            names.iter().any(|names| names.addresses(name).is_some())
        };
        for name in ["db", "db.back", "vm", "proxy.back"] {
            assert!(finds(PROXY, name), "{name}");
        }
        for name in ["secret", "secret.other", "own", "db.front"] {
            assert!(!finds(PROXY, name), "{name}");
        }
        // Machines have no namespace that could be the same.
        assert!(!finds((0, 0), "db") && !finds((4, 4), "db"));

        write("back", vec![db.clone()]);
        std::thread::sleep(LAG);
        assert!(!finds(PROXY, "db"), "it has left");
        write("back", vec![db, proxy]);
        std::thread::sleep(LAG);
        assert!(finds(PROXY, "db"), "it is there again");
        write("back", Vec::new());
        std::thread::sleep(LAG);
        assert!(!finds(PROXY, "db"), "the network has ended");
    }
}
