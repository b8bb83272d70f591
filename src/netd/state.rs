//! What a network process must find again after a crash, and whether it still holds.
//!
//! The file is in the runtime directory, so it is gone after a reboot, as the containers are. A
//! container is known by its process's number and start time, or by its namespace's path, and in
//! both cases by the inode of its network namespace: all of that together is never reused.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::network::file;
use crate::vm::VmAddress;

/// The version of the file's format. A file of another version is left aside.
const VERSION: u32 = 1;

/// A container on the network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name on this network.
    pub name: String,
    /// Its further names.
    pub aliases: Vec<String>,
    /// What its end is told by.
    pub life: Life,
    /// Device and inode of its network namespace; zeros for a virtual machine.
    pub namespace: (u64, u64),
    /// The interface inside.
    pub interface: String,
    /// The interface's hardware address.
    pub mac: [u8; 6],
    /// Its address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its address.
    pub ipv6: Option<Ipv6Addr>,
    /// Open ports of the host.
    pub ports: Vec<Port>,
}

/// What a container's end is told by.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
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
    Machine {
        /// Where it meets the network.
        address: VmAddress,
    },
}

/// An open port of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// UDP, not TCP.
    pub udp: bool,
    /// Where it is open.
    pub host: SocketAddr,
    /// Where it leads.
    pub container: SocketAddr,
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    containers: Vec<Record>,
}

/// The containers in the file at `path`; none if there is no such file, or one that cannot be
/// understood, which is logged.
pub fn load(path: &Path) -> Vec<Record> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, path = %path.display(), "cannot read what ran before");
            }
            return Vec::new();
        }
    };
    match serde_json::from_slice::<State>(&bytes) {
        Ok(state) if state.version == VERSION => state.containers,
        Ok(_) => {
            tracing::warn!(path = %path.display(), "was written by another version of cnet");
            Vec::new()
        }
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "cannot be understood");
            Vec::new()
        }
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

/// When the process `pid` started, in clock ticks after the boot; `None` if there is no such
/// process, or it has ended and waits to be reaped.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    start_time_in(&String::from_utf8_lossy(&stat))
}

/// State and start time are the 1st and the 20th word behind the name, which stands in parentheses
/// and may hold anything (proc_pid_stat(5)).
fn start_time_in(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    let state = words.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    words.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: "ab".repeat(32),
            name: "web".to_owned(),
            aliases: vec!["www".to_owned()],
            life: Life::Process {
                pid: 7,
                start_time: 12345,
                member: None,
            },
            namespace: (4, 4_026_531_840),
            interface: "eth0".to_owned(),
            mac: [2, 0x42, 10, 88, 0, 2],
            ipv4: Some([10, 88, 0, 2].into()),
            ipv6: None,
            ports: vec![Port {
                udp: false,
                host: "0.0.0.0:8080".parse().unwrap(),
                container: "10.88.0.2:80".parse().unwrap(),
            }],
        }
    }

    #[test]
    fn what_was_written_is_read_and_nothing_is_no_file() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state.json");
        assert!(load(&path).is_empty());
        let mut by_path = record();
        by_path.life = Life::Path {
            path: "/run/netns/x".into(),
        };
        let mut machine = record();
        machine.life = Life::Machine {
            address: "stream:/run/vm.sock".parse().unwrap(),
        };
        let both = vec![record(), by_path, machine];
        save(&path, both.clone()).unwrap();
        assert_eq!(load(&path), both);
        save(&path, Vec::new()).unwrap();
        assert!(!path.exists());
        save(&path, Vec::new()).unwrap();
    }

    #[test]
    fn what_cannot_be_understood_is_left_aside() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state.json");
        for text in ["", "{", "{\"version\":2,\"containers\":[]}", "[]"] {
            fs::write(&path, text).unwrap();
            assert!(load(&path).is_empty(), "{text}");
        }
    }

    #[test]
    fn start_times() {
        let stat = |state: &str| {
            format!("12 (a ) S 9) {state} 7 12 12 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 1")
        };
        assert_eq!(start_time_in(&stat("S")), Some(987_654));
        assert_eq!(start_time_in(&stat("Z")), None);
        assert_eq!(start_time_in("nonsense"), None);
        let own = start_time(std::process::id() as i32);
        assert!(own.is_some());
        assert_eq!(own, start_time(std::process::id() as i32));
        assert_eq!(start_time(-1), None);
    }
}
