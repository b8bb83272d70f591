//! The containers that `cnet run` holds, on any network or on none: their names
//! and processes; and what is left of those that ran in the background.
//!
//! One small file each, named after the container, in `.containers` of the runtime directory, which
//! no network's name can be. The file says what the process was, by number and start time, so one
//! that was left behind by a crash counts for nothing and is overwritten.
//!
//! A container in the background (`cnet run -d`) has its log in `.logs` of the state directory,
//! `NAME.log`, and after its end what it was, `NAME.json`, until `cnet rm` or the next one of that name.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use cnet::control::PublishedPort;
use cnet::definition::runtime::is_of_removal;
use cnet::definition::{Directories, file};
use cnet_tap::watch::start_time;

/// What the directory of those that run is called.
const OWN: &str = ".containers";

/// What the directory of logs, and of those that have ended, is called. A user may have runtime and
/// state directories in one place.
const ENDED: &str = ".logs";

/// A container that runs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Running {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The process in its namespaces.
    pub pid: i32,
    /// When that started, in clock ticks after the boot.
    pub start_time: u64,
    /// `private`, `none`, `host`, `container:NAME` or the name of a network.
    pub network: String,
    /// What runs in it.
    #[serde(default)]
    pub command: Vec<String>,
    /// When it was started (RFC 3339).
    #[serde(default)]
    pub started: String,
    /// Whether it runs in the background, and so has a log.
    #[serde(default)]
    pub detached: bool,
    /// Its interface on a network of its own.
    #[serde(default)]
    pub interface: String,
    /// Its address on a network of its own, with the prefix length.
    #[serde(default)]
    pub ipv4: Option<Ipv4Net>,
    /// Its address on a network of its own, with the prefix length.
    #[serde(default)]
    pub ipv6: Option<Ipv6Net>,
    /// The ports of the host that lead to it on a network of its own; the first [`MAX_PORTS`] of them.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
}

/// Ports that are written down of one container.
pub const MAX_PORTS: usize = 100;

/// A container of the background that has ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// What it was.
    #[serde(flatten)]
    pub was: Running,
    /// Its exit code.
    pub exit_code: u8,
    /// When it ended (RFC 3339).
    pub ended: String,
}

/// The time now (RFC 3339).
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

impl Running {
    /// Whether `name` is its name, its process, or a start of its id of at least four digits.
    pub fn is_meant_by(&self, name: &str) -> bool {
        is_meant_by(name, (&self.name, &self.id, Some(self.pid)))
    }
}

/// Whether `said` is the container's name, its process, or a start of its id of at least four
/// digits.
pub fn is_meant_by(said: &str, (name, id, pid): (&str, &str, Option<i32>)) -> bool {
    name == said
        || said.len() >= 4 && id.starts_with(said)
        || pid.is_some_and(|pid| pid.to_string() == said)
}

/// Why a container was not entered.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// There is one of that name.
    #[error("there is a container `{0}` already; choose another --name, or end that one")]
    Taken(String),
    /// The file system refuses.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// The directory of one user.
#[derive(Clone, Debug)]
pub struct Registry {
    directory: PathBuf,
    /// Where logs are.
    state: PathBuf,
}

impl Registry {
    /// That of `directories`.
    pub fn new(directories: &Directories) -> Registry {
        Registry {
            directory: directories.runtime.join(OWN),
            state: directories.state.join(ENDED),
        }
    }

    /// Enters a container; it is taken out when what is returned is dropped.
    ///
    /// # Errors
    ///
    /// See [`RegistryError`].
    pub fn enter(&self, running: &Running) -> Result<Entered, RegistryError> {
        let mut attempts = 3;
        loop {
            match self.try_enter(running) {
                // A container that ended has just removed the directory.
                Err(RegistryError::File { source, .. })
                    if is_of_removal(&source) && attempts > 0 =>
                {
                    attempts -= 1;
                }
                entered => return entered,
            }
        }
    }

    fn try_enter(&self, running: &Running) -> Result<Entered, RegistryError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| RegistryError::File { path, source }
        };
        file::make_own_directory(&self.directory).map_err(failed(&self.directory))?;
        let _lock = file::DirectoryLock::at(&self.directory).map_err(failed(&self.directory))?;
        if self.find(&running.name).is_some() {
            return Err(RegistryError::Taken(running.name.clone()));
        }
        self.remove_the_dead();
        let path = self.path(&running.name);
        let written = serde_json::to_vec(running).map_err(io::Error::from);
        written
            .and_then(|bytes| file::replace(&path, &bytes))
            .map_err(failed(&path))?;
        if !running.detached {
            self.forget(&running.name);
        }
        Ok(Entered { path })
    }

    /// The log of the container of that name.
    pub fn log(&self, name: &str) -> PathBuf {
        self.state.join(format!("{name}.log"))
    }

    /// Opens a new log for the container of that name, whose processes append to it.
    ///
    /// # Errors
    ///
    /// While there is a container of that name, and what open(2) says.
    pub fn open_log(&self, name: &str) -> Result<File, RegistryError> {
        if self.find(name).is_some() {
            return Err(RegistryError::Taken(name.to_owned()));
        }
        self.forget(name);
        let path = self.log(name);
        let opened = fs::create_dir_all(&self.state).and_then(|()| {
            let mut options = File::options();
            options.append(true).create(true).mode(0o600).open(&path)
        });
        opened.map_err(|source| RegistryError::File { path, source })
    }

    /// Writes down that a container of the background has ended.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn end(&self, ended: &Ended) -> io::Result<()> {
        let path = self.state.join(format!("{}.json", ended.was.name));
        fs::create_dir_all(&self.state)?;
        file::replace(&path, &serde_json::to_vec(ended)?)
    }

    /// The containers of the background that have ended, by name.
    pub fn ended(&self) -> Vec<Ended> {
        let entries = fs::read_dir(&self.state).into_iter().flatten();
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let read = |path: PathBuf| serde_json::from_slice(&fs::read(path).ok()?).ok();
        let mut all: Vec<Ended> = paths.filter_map(read).collect();
        all.sort_by(|a, b| a.was.name.cmp(&b.was.name));
        all
    }

    /// Removes the log of a container that has ended, and what it was; `false` if there was neither.
    pub fn forget(&self, name: &str) -> bool {
        let json = self.state.join(format!("{name}.json"));
        [self.log(name), json]
            .iter()
            .fold(false, |any, path| fs::remove_file(path).is_ok() | any)
    }

    /// Removes what crashes have left. The caller has the turn, so no file is just being written.
    fn remove_the_dead(&self) {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if read(&path).is_none() {
                // It counts for nothing if it stays.
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// All that run, by name.
    pub fn list(&self) -> Vec<Running> {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        let mut all: Vec<Running> = entries
            .filter_map(|entry| read(&entry.ok()?.path()))
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The one of that name, if it runs.
    pub fn find(&self, name: &str) -> Option<Running> {
        read(&self.path(name)).filter(|running| running.name == name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }
}

/// What the file says, if its process still runs.
fn read(path: &Path) -> Option<Running> {
    let running: Running = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (start_time(running.pid) == Some(running.start_time)).then_some(running)
}

/// A container's entry in the registry.
#[derive(Debug)]
pub struct Entered {
    path: PathBuf,
}

impl Entered {
    /// Writes down what has become known since.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn update(&self, running: &Running) -> io::Result<()> {
        file::replace(&self.path, &serde_json::to_vec(running)?)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // A file that stays counts for nothing.
        let _ = fs::remove_file(&self.path);
        // The last one out takes the directories along; they are not empty otherwise, and stay.
        for directory in self.path.ancestors().skip(1).take(2) {
            if fs::remove_dir(directory).is_err() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_are_listed_and_names_are_ones_own() {
        let place = tempfile::tempdir().unwrap();
        let registry = Registry {
            directory: place.path().join("x/y"),
            state: place.path().join("s"),
        };
        assert!(registry.list().is_empty());
        let pid = std::process::id() as i32;
        let running = |name: &str, start_time| Running {
            id: "ab".repeat(32),
            name: name.to_owned(),
            pid,
            start_time,
            network: "none".to_owned(),
            ..Running::default()
        };
        let own = start_time(pid).unwrap();
        let web = registry.enter(&running("web", own)).unwrap();
        let db = registry.enter(&running("db", own)).unwrap();
        let names = |registry: &Registry| -> Vec<String> {
            registry.list().into_iter().map(|r| r.name).collect()
        };
        assert_eq!(names(&registry), ["db", "web"]);
        let error = registry.enter(&running("web", own)).unwrap_err();
        assert!(matches!(error, RegistryError::Taken(name) if name == "web"));
        drop(db);
        // One whose process was another counts for nothing.
        let dead = registry.enter(&running("dead", own + 1)).unwrap();
        assert_eq!(names(&registry), ["web"]);
        assert!(registry.find("dead").is_none() && registry.find("web").is_some());
        let left = || fs::read_dir(&registry.directory).unwrap().count();
        assert_eq!(left(), 2);
        drop(registry.enter(&running("new", own)).unwrap());
        assert_eq!(left(), 1, "the dead one is gone");
        registry.enter(&running("dead", own)).unwrap();
        drop((web, dead));
        assert!(registry.list().is_empty());
    }

    #[test]
    fn what_ran_in_the_background_is_kept_until_it_is_forgotten() {
        let place = tempfile::tempdir().unwrap();
        let registry = Registry {
            directory: place.path().join("r"),
            state: place.path().join("s/t"),
        };
        let was = Running {
            name: "job".to_owned(),
            pid: std::process::id() as i32,
            start_time: start_time(std::process::id() as i32).unwrap(),
            detached: true,
            ..Running::default()
        };
        drop(registry.open_log("job").unwrap());
        let entered = registry.enter(&was).unwrap();
        assert!(registry.log("job").exists(), "its log is its own");
        let error = registry.open_log("job").unwrap_err();
        assert!(matches!(error, RegistryError::Taken(_)));
        let ported = Running {
            interface: "eth0".to_owned(),
            ..was.clone()
        };
        entered.update(&ported).unwrap();
        assert_eq!(registry.find("job").unwrap().interface, "eth0");
        drop(entered);
        let ended = Ended {
            was,
            exit_code: 3,
            ended: now(),
        };
        registry.end(&ended).unwrap();
        assert_eq!(registry.ended(), [ended]);
        assert!(registry.forget("job") && !registry.forget("job"));
        assert!(registry.ended().is_empty() && !registry.log("job").exists());
    }
}
