//! The journal of a network's members (`state.json`): what a network process must find again after
//! a crash, and whether it still holds.
//!
//! The file is in the runtime directory, so it is gone after a reboot, as the containers are. A
//! container is known by its process's number and start time, or by its namespace's path, and in
//! both cases by the inode of its network namespace: all of that together is never reused.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use cnet::control::PublishedPort;
use cnet::definition::{DnsServer, file};
use cnet::vm::VmAddress;
use cnet::{AutoPublish, Filter};
use cnet_tap::watch::start_time;
use cnet_wire::MacAddr;

/// The version of the file's format. A file of another version is left aside.
const VERSION: u32 = 1;

/// Bytes the file may have: those of 10,000 containers with 40 published ports each.
const MAX_JOURNAL: u64 = 64 << 20;

/// A container on the network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name on this network.
    pub name: String,
    /// Its further names.
    pub aliases: Vec<String>,
    /// What was noted about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What its end is told by.
    #[serde(rename = "life")]
    pub liveness: Liveness,
    /// Device and inode of its network namespace; zeros for a virtual machine.
    pub namespace: (u64, u64),
    /// The interface inside.
    pub interface: String,
    /// The interface's hardware address.
    #[serde(with = "octets")]
    pub mac: MacAddr,
    /// Its address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its address.
    pub ipv6: Option<Ipv6Addr>,
    /// The DNS servers that are asked for it, if not the network's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<DnsServer>,
    /// Open ports of the host.
    #[serde(with = "ports")]
    pub ports: Vec<PublishedPort>,
    /// What it listens on is published too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish_auto: Option<AutoPublish>,
    /// It may send from other addresses than its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trust: bool,
    /// The far ends that it may talk with.
    #[serde(default, skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
}

impl Record {
    /// Whether what tells of the container's end is as it was, so that the network namespace is
    /// still the container's: the kernel gives its inode to the next one at once. A VM has no
    /// namespace, and always is.
    pub(crate) fn lives(&self) -> bool {
        match &self.liveness {
            Liveness::Process {
                pid, start_time: t, ..
            } => start_time(*pid) == Some(*t),
            Liveness::Path { path } => {
                fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == self.namespace)
            }
            Liveness::Vm { .. } => true,
        }
    }
}

/// What a container's end is told by.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// A process.
    Process {
        /// Its number.
        pid: i32,
        /// When it started, in clock ticks after the boot (proc_pid_stat(5)).
        start_time: u64,
        /// Another process, in the namespace, if that one is not.
        member: Option<i32>,
    },
    /// A path, such as the bind mount of a namespace.
    Path {
        /// The path.
        path: PathBuf,
    },
    /// Nothing: a virtual machine, which stays until it is detached.
    #[serde(rename = "machine")]
    Vm {
        /// Where it meets the network.
        address: VmAddress,
    },
}

/// A MAC address as its six octets.
mod octets {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(mac: &MacAddr, to: S) -> Result<S::Ok, S::Error> {
        mac.0.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MacAddr, D::Error> {
        <[u8; 6]>::deserialize(from).map(MacAddr)
    }
}

/// Published ports, each with a flag for its transport.
mod ports {
    use std::net::SocketAddr;

    use super::*;
    use cnet_wire::Protocol;
    use serde::{Deserializer, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Port {
        udp: bool,
        host: SocketAddr,
        container: SocketAddr,
    }

    pub(super) fn serialize<S: Serializer>(
        ports: &[PublishedPort],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(ports.iter().map(|port| Port {
            udp: port.protocol == Protocol::Udp,
            host: port.host,
            container: port.container,
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<PublishedPort>, D::Error> {
        let ports = Vec::<Port>::deserialize(from)?.into_iter();
        let protocol = |udp| match udp {
            true => Protocol::Udp,
            false => Protocol::Tcp,
        };
        let read = |port: Port| PublishedPort::new(protocol(port.udp), port.host, port.container);
        Ok(ports.map(read).collect())
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    containers: Vec<Record>,
}

/// Why a file does not tell who was there.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The kernel says so.
    #[error("cannot read who is on the network: {0}")]
    File(#[from] io::Error),
    /// It is in another format.
    #[error("who is on the network was written by another version of cnet")]
    Version,
    /// It is in none.
    #[error("cannot understand who is on the network: {0}")]
    Broken(#[from] serde_json::Error),
}

/// The containers in the file at `path`; none if there is no such file.
///
/// # Errors
///
/// See [`JournalError`].
pub fn read(path: &Path) -> Result<Vec<Record>, JournalError> {
    let text = match file::read_text(path, MAX_JOURNAL) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let state: State = serde_json::from_str(&text)?;
    match state.version {
        VERSION => Ok(state.containers),
        _ => Err(JournalError::Version),
    }
}

/// As [`read`]; a file that tells nothing is logged, and left aside.
pub fn load(path: &Path) -> Vec<Record> {
    read(path).unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "what ran before is lost");
        Vec::new()
    })
}

/// The file, written by one task at a time, each time with what is so then: a task that comes late
/// finds that its change was written already. Only tasks that need the change on the disk wait for
/// it.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// The number of the last change that is in the file.
    written: Arc<Mutex<u64>>,
}

impl Journal {
    pub(crate) fn new(path: PathBuf) -> Journal {
        Journal {
            path,
            written: Arc::default(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes sure that the change of the number `due`, counted from 1, is in the file. `now` gives
    /// the number of the last change, and who is there after it.
    ///
    /// # Errors
    ///
    /// As [`save`]; the next call tries again.
    pub(crate) async fn write(
        &self,
        due: u64,
        now: impl FnOnce() -> (u64, Vec<Record>),
    ) -> io::Result<()> {
        // Given back by the thread that writes, so that a caller that is dropped lets no other in.
        let mut written = Arc::clone(&self.written).lock_owned().await;
        if *written >= due {
            return Ok(());
        }
        let (number, containers) = now();
        let path = self.path.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let saved = save(&path, containers);
            if saved.is_ok() {
                *written = number;
            }
            saved
        });
        writing.await?
    }
}

/// Replaces the file at `path`, or removes it if there is nothing to remember.
///
/// # Errors
///
/// What the file system says; the file is as before then.
pub fn save(path: &Path, containers: Vec<Record>) -> io::Result<()> {
    if containers.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let state = State {
        version: VERSION,
        containers,
    };
    file::replace(path, &serde_json::to_vec(&state)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: "ab".repeat(32),
            name: "web".to_owned(),
            labels: Default::default(),
            aliases: vec!["www".to_owned()],
            liveness: Liveness::Process {
                pid: 7,
                start_time: 12345,
                member: None,
            },
            namespace: (4, 4_026_531_840),
            interface: "eth0".to_owned(),
            mac: MacAddr([2, 0x42, 10, 88, 0, 2]),
            ipv4: Some([10, 88, 0, 2].into()),
            ipv6: None,
            dns: Vec::new(),
            ports: vec![PublishedPort::new(
                cnet_wire::Protocol::Tcp,
                "0.0.0.0:8080".parse().unwrap(),
                "10.88.0.2:80".parse().unwrap(),
            )],
            publish_auto: None,
            trust: false,
            filter: cnet::Filter::new(),
        }
    }

    #[test]
    fn what_was_written_is_read_and_nothing_is_no_file() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state.json");
        assert!(load(&path).is_empty());
        let mut by_path = record();
        by_path.liveness = Liveness::Path {
            path: "/run/netns/x".into(),
        };
        let mut vm = record();
        vm.liveness = Liveness::Vm {
            address: "stream:/run/vm.sock".parse().unwrap(),
        };
        let both = vec![record(), by_path, vm];
        save(&path, both.clone()).unwrap();
        assert_eq!(load(&path), both);
        save(&path, Vec::new()).unwrap();
        assert!(!path.exists());
        save(&path, Vec::new()).unwrap();
    }

    #[test]
    fn the_format_is_that_of_version_1() {
        let written = serde_json::to_string(&record()).unwrap();
        let expected = format!(
            r#"{{"id":"{}","name":"web","aliases":["www"],"life":{{"process":{{"pid":7,"start_time":12345,"member":null}}}},"namespace":[4,4026531840],"interface":"eth0","mac":[2,66,10,88,0,2],"ipv4":"10.88.0.2","ipv6":null,"ports":[{{"udp":false,"host":"0.0.0.0:8080","container":"10.88.0.2:80"}}]}}"#,
            "ab".repeat(32)
        );
        assert_eq!(written, expected);
        assert_eq!(serde_json::from_str::<Record>(&expected).unwrap(), record());
        let vm = Liveness::Vm {
            address: "stream:/x".parse().unwrap(),
        };
        let written = serde_json::to_string(&vm).unwrap();
        assert_eq!(written, r#"{"machine":{"address":"stream:/x"}}"#);
    }

    #[tokio::test]
    async fn what_was_to_be_written_is_there_and_never_anything_older() {
        let place = tempfile::tempdir().unwrap();
        let file = Arc::new(Journal::new(place.path().join("state.json")));
        let there = Arc::new(std::sync::Mutex::new(Vec::<Record>::new()));
        let writes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..50 {
            let (file, there) = (Arc::clone(&file), Arc::clone(&there));
            let writes = Arc::clone(&writes);
            tasks.spawn(async move {
                let due = {
                    let mut there = there.lock().unwrap();
                    there.push(Record {
                        name: format!("c{number}"),
                        ..record()
                    });
                    there.len() as u64
                };
                let now = || {
                    writes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let there = there.lock().unwrap();
                    (there.len() as u64, there.clone())
                };
                file.write(due, now).await.unwrap();
                let found = load(file.path());
                assert!(found.len() as u64 >= due, "{} of {due}", found.len());
                let own = format!("c{number}");
                assert!(found.iter().any(|record| record.name == own), "{own}");
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert_eq!(load(file.path()), *there.lock().unwrap());
        let writes = writes.load(std::sync::atomic::Ordering::Relaxed);
        assert!(writes < 50, "each wrote for itself: {writes}");
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_tried_again() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("gone");
        let file = Journal::new(directory.join("state.json"));
        let now = || (1, vec![record()]);
        file.write(1, now).await.unwrap_err();
        fs::create_dir(&directory).unwrap();
        file.write(1, now).await.unwrap();
        assert_eq!(load(file.path()), [record()]);
        fs::remove_file(file.path()).unwrap();
        file.write(1, || panic!("it was written")).await.unwrap();
    }

    #[test]
    fn what_cannot_be_understood_is_left_aside() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state.json");
        for text in ["", "{", "{\"version\":2,\"containers\":[]}", "[]"] {
            fs::write(&path, text).unwrap();
            assert!(read(&path).is_err(), "{text}");
            assert!(load(&path).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_container_lives_as_long_as_what_tells_of_its_end() {
        let pid = std::process::id() as i32;
        let of_process = |pid, start_time| Record {
            liveness: Liveness::Process {
                pid,
                start_time,
                member: None,
            },
            ..record()
        };
        let started = start_time(pid).unwrap();
        assert!(of_process(pid, started).lives());
        assert!(!of_process(pid, started + 1).lives(), "another process");
        assert!(!of_process(i32::MAX, started).lives(), "none");

        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("netns");
        fs::write(&path, "").unwrap();
        let found = fs::metadata(&path).unwrap();
        let of_path = Record {
            liveness: Liveness::Path { path: path.clone() },
            namespace: (found.dev(), found.ino()),
            ..record()
        };
        assert!(of_path.lives());
        let another = Record {
            namespace: (found.dev(), found.ino() + 1),
            ..of_path.clone()
        };
        assert!(!another.lives(), "another namespace");
        fs::remove_file(path).unwrap();
        assert!(!of_path.lives(), "none");
    }
}
