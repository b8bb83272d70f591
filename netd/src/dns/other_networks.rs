//! The names of a container's other networks.
//!
//! # Theory of operation
//!
//! A container on several networks asks one of their gateways for every name: the C library turns
//! to a second name server only if the first is silent. So each network answers for the others that
//! the same container is on, and for those alone. Who is on them stands in the files that their
//! processes keep for after a crash ([`crate::journal`]); the container is the same if its network
//! namespace is. An inode is a namespace's only for as long as the container lives, and a process
//! that has crashed leaves its file: what ended since then is passed over.
//!
//! The directories are looked into when a name is asked for that this network does not have, and at
//! most every [`LOOK_INTERVAL`], so that a flood of such queries costs no more than that. A file is
//! read again when it was replaced, and after [`MAX_AGE`] in any case: what tells that it was
//! replaced may be the same for two that follow each other at once. That holds for one that tells
//! nothing as well, of which the log hears once.
//!
//! What no network of the container has is asked for where this network asks. If that is nowhere, as
//! on an internal network, it is asked for where the first of the others asks that asks anywhere: the
//! container could ask there itself.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Host, Names, Zone};
use crate::journal::{self, JournalError, Liveness, Record};
use cnet::definition::{DnsServer, Store, StoreError, check_network_name};

/// How old what was seen may be when it is used.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How old what was read from a file that seems unchanged may be.
const MAX_AGE: Duration = Duration::from_secs(1);

/// A network namespace: device and inode.
pub(crate) type Namespace = (u64, u64);

/// Says which containers live.
pub(crate) type Lives = Box<dyn Fn(&[Record]) -> Vec<bool> + Send + Sync>;

impl std::fmt::Debug for OtherNetworks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OtherNetworks")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

/// The other networks of this user.
pub(crate) struct OtherNetworks {
    store: Store,
    /// Says of each whether it lives: the processes are out of sight in the sandbox.
    lives: Lives,
    /// The network that asks.
    own: String,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    at: Option<Instant>,
    networks: BTreeMap<String, Read>,
}

/// Another network of a client.
#[derive(Clone, Debug)]
pub struct OtherNetwork {
    /// The names of its containers.
    pub names: Names,
    /// The servers that it asks; `None` if it asks nowhere, and none for the host's.
    pub servers: Option<Arc<[DnsServer]>>,
}

/// What was read of one network.
#[derive(Debug)]
struct Read {
    version: Version,
    read: Instant,
    /// `None` if it cannot be understood.
    told: Option<Told>,
}

/// Why a network tells nothing.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Definition(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What a network tells.
#[derive(Debug)]
struct Told {
    present: HashSet<Namespace>,
    network: OtherNetwork,
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

impl OtherNetworks {
    pub(crate) fn new(store: Store, own: &str, lives: Lives) -> OtherNetworks {
        OtherNetworks {
            store,
            lives,
            own: own.to_owned(),
            seen: Mutex::default(),
        }
    }

    /// The other networks that the container in `namespace` is on.
    pub(crate) fn of(&self, namespace: Namespace) -> Vec<OtherNetwork> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if seen.at.is_none_or(|at| now - at >= LOOK_INTERVAL) {
            self.look(&mut seen.networks, now);
            seen.at = Some(now);
        }
        let networks = seen.networks.values().filter_map(|n| n.told.as_ref());
        let shared = networks.filter(|told| told.present.contains(&namespace));
        shared.map(|told| told.network.clone()).collect()
    }

    fn look(&self, networks: &mut BTreeMap<String, Read>, now: Instant) {
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
            let known = before.remove(&name).filter(|n| n.version == version);
            let network = match known {
                Some(known) if now - known.read < MAX_AGE => known,
                known => {
                    let told = self.read(&name, &path);
                    if let (Err(error), None) = (&told, known) {
                        tracing::warn!(network = name, %error, "its names are not told");
                    }
                    Read {
                        version,
                        read: now,
                        told: told.ok(),
                    }
                }
            };
            networks.insert(name, network);
        }
    }

    fn read(&self, name: &str, path: &Path) -> Result<Told, ReadError> {
        let definition = self.store.get(name)?;
        let (names, mut present) = (Names::new(Zone::from(&definition)), HashSet::new());
        let records = journal::read(path)?;
        let alive = (self.lives)(&records);
        let living = records.iter().zip(alive).filter(|(_, alive)| *alive);
        for (record, _) in living {
            if !matches!(record.liveness, Liveness::Vm { .. }) {
                present.insert(record.namespace);
            }
            names.join(&record.id, Host::from(record));
        }
        let asks = !definition.internal;
        let servers = asks.then(|| definition.dns.clone().into());
        Ok(Told {
            present,
            network: OtherNetwork { names, servers },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnet::definition::{Directories, HostRoutes, Request};
    use cnet_wire::MacAddr;

    fn alive() -> Lives {
        Box::new(|records| records.iter().map(Record::lives).collect())
    }

    /// Networks of these names, and a place where namespaces can be bound.
    fn networks(names: &[&str]) -> (Store, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(Directories {
            config: root.path().join("c"),
            state: root.path().join("s"),
            runtime: root.path().join("r"),
        });
        for name in names {
            let request = Request::new(*name);
            store.create(request, &HostRoutes::default()).unwrap();
            store.directories().make_network_runtime(name).unwrap();
        }
        (store, root)
    }

    /// A container that lives for as long as its file does.
    fn record(place: &Path, name: &str, digit: u8) -> Record {
        let path = place.join(name);
        fs::write(&path, "").unwrap();
        let found = fs::metadata(&path).unwrap();
        Record {
            id: digit.to_string().repeat(64),
            name: name.to_owned(),
            labels: Default::default(),
            aliases: Vec::new(),
            liveness: Liveness::Path { path },
            namespace: (found.dev(), found.ino()),
            interface: "eth0".to_owned(),
            mac: MacAddr([2; 6]),
            ipv4: Some([10, 89, 0, digit].into()),
            ipv6: None,
            dns: Vec::new(),
            ports: Vec::new(),
            publish_auto: None,
            trust: false,
            filter: cnet::Filter::new(),
        }
    }

    fn write(store: &Store, network: &str, records: Vec<Record>) {
        journal::save(&store.directories().state_file(network), records).unwrap();
    }

    fn finds(others: &OtherNetworks, namespace: Namespace, name: &str) -> bool {
        let networks = others.of(namespace);
        networks.iter().any(|n| n.names.addresses(name).is_some())
    }

    #[test]
    fn only_networks_that_the_container_is_on_tell_their_names() {
        let (store, root) = networks(&["front", "back", "other"]);
        let record = |name: &str, digit: u8| record(root.path(), name, digit);
        let vm = Record {
            liveness: Liveness::Vm {
                address: "stream:/x".parse().unwrap(),
            },
            namespace: (0, 0),
            ..record("vm", 4)
        };
        let (proxy, db, own) = (record("proxy", 1), record("db", 2), record("own", 5));
        write(&store, "front", vec![proxy.clone(), own.clone()]);
        write(&store, "back", vec![proxy.clone(), db.clone(), vm]);
        write(&store, "other", vec![record("secret", 3)]);
        let others = OtherNetworks::new(store.clone(), "front", alive());
        let finds = |namespace: Namespace, name: &str| finds(&others, namespace, name);
        for name in ["db", "db.back", "vm", "proxy.back"] {
            assert!(finds(proxy.namespace, name), "{name}");
        }
        for name in ["secret", "secret.other", "own", "db.front"] {
            assert!(!finds(proxy.namespace, name), "{name}");
        }
        // VMs have no namespace that could be the same.
        assert!(!finds((0, 0), "db") && !finds(own.namespace, "db"));

        write(&store, "back", vec![db.clone()]);
        std::thread::sleep(LOOK_INTERVAL);
        assert!(!finds(proxy.namespace, "db"), "it has left");
        write(&store, "back", vec![db, proxy.clone()]);
        std::thread::sleep(LOOK_INTERVAL);
        assert!(finds(proxy.namespace, "db"), "it is there again");
        write(&store, "back", Vec::new());
        std::thread::sleep(LOOK_INTERVAL);
        assert!(!finds(proxy.namespace, "db"), "the network has ended");
    }

    #[test]
    fn what_a_crash_has_left_of_those_who_ended_since_tells_nothing() {
        let (store, root) = networks(&["front", "back"]);
        let record = |name: &str, digit: u8| record(root.path(), name, digit);
        let (lives, db) = (record("lives", 1), record("db", 2));
        // The namespace of the container that asks has the inode of one that is gone.
        let ended = Record {
            liveness: Liveness::Process {
                pid: i32::MAX,
                start_time: 1,
                member: None,
            },
            ..record("ended", 3)
        };
        write(&store, "back", vec![ended.clone(), db, lives.clone()]);
        let others = OtherNetworks::new(store, "front", alive());
        assert!(!finds(&others, ended.namespace, "db"));
        assert!(finds(&others, lives.namespace, "db"));
        assert!(!finds(&others, lives.namespace, "ended"));
    }

    #[test]
    fn a_file_that_tells_nothing_is_not_read_each_time() {
        let (store, root) = networks(&["front", "back"]);
        let proxy = record(root.path(), "proxy", 1);
        let path = store.directories().state_file("back");
        fs::write(&path, "{").unwrap();
        let others = OtherNetworks::new(store.clone(), "front", alive());
        let read = || others.seen.lock().unwrap().networks["back"].read;
        assert!(!finds(&others, proxy.namespace, "proxy"));
        let first = read();
        std::thread::sleep(LOOK_INTERVAL);
        assert!(!finds(&others, proxy.namespace, "proxy"));
        assert_eq!(read(), first);
        write(&store, "back", vec![proxy.clone()]);
        std::thread::sleep(LOOK_INTERVAL);
        assert!(finds(&others, proxy.namespace, "proxy.back"));
    }
}
