//! The definitions there are.
//!
//! # Theory of operation
//!
//! One file a network, in one directory. Each change there is made under a [`DirectoryLock`], so
//! that two creators cannot choose overlapping subnets. Readers need none: files are replaced
//! whole.
//!
//! A network is removed only while no process serves it, nor can begin to ([`mod@super::runtime`]).
//!
//! The default network has no file as long as its subnet shares nothing with the host's routes.
//! Where it does at the network's first use ([`Store::settle`]), it gets another subnet, and a
//! file to remember it by.
//!
//! # Limits
//!
//! A route that the host gets later is not noticed: the containers reach what is in the network
//! instead of what is behind the route.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::directories::Directories;
use super::file::{self, DirectoryLock};
use super::file_format::{BRIDGE, Definition, DefinitionError, Request, pools};
use super::id::random_id;
use super::name::{DEFAULT_NETWORK, NameError, check_network_name};
use super::pool::{Ipv4Pool, Ipv6Pool, overlap};
use super::routes::{HostRoutes, free_ipv4, free_ula};
use super::runtime;

/// The default network's subnet, which is podman's.
const DEFAULT_SUBNET: ([u8; 4], u8) = ([10, 88, 0, 0], 16);

/// Bytes a definition may have: a thousand labels fit.
const MAX_DEFINITION: u64 = 1 << 20;

/// The definitions of one user.
#[derive(Clone, Debug)]
pub struct Store {
    directories: Directories,
}

/// Why the definitions cannot be read or changed so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no such network.
    #[error("there is no network `{0}`; `cnet network ls` lists those there are")]
    NotFound(String),
    /// The beginning of an id fits several.
    #[error("`{0}` is the beginning of the ids of several networks: give more of it")]
    Ambiguous(String),
    /// The name is taken.
    #[error("there is a network `{0}` already: choose another name, or remove it")]
    Exists(String),
    /// It cannot be like that.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// Its name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Another network has addresses of it.
    #[error("{subnet} overlaps {other} of the network `{network}`: choose another --subnet")]
    OverlapsNetwork {
        /// What was asked for.
        subnet: IpNet,
        /// What is there.
        other: IpNet,
        /// Whose it is.
        network: String,
    },
    /// The host has addresses of it.
    #[error("{subnet} overlaps {route}: choose another --subnet")]
    OverlapsHost {
        /// What was asked for.
        subnet: IpNet,
        /// What is there.
        route: super::HostRoute,
    },
    /// Nothing was asked for, and nothing is left.
    #[error(
        "no {0} subnet is free of other networks and the host's routes: choose one with --subnet"
    )]
    NothingFree(&'static str),
    /// It is always there.
    #[error("the network `{DEFAULT_NETWORK}` is the default, which is always there")]
    Default,
    /// Containers are on it, or its process runs.
    #[error("the network `{network}` is in use{by}", by = list(containers))]
    InUse {
        /// The network.
        network: String,
        /// The names of the containers on it; empty if only its process runs.
        containers: Vec<String>,
    },
    /// A file does not say what it should.
    #[error("{path} cannot be understood: {reason}; mend it, or remove the network", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file system refuses.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// There is no randomness.
    #[error("cannot get random bytes from the kernel: {0}")]
    Random(io::Error),
}

fn list(containers: &[String]) -> String {
    match containers {
        [] => ": its process runs, and somebody may just be joining; try again".to_owned(),
        names => format!(" by {}: `cnet detach` takes them off", names.join(", ")),
    }
}

impl Store {
    /// Those in `directories`, which need not exist yet.
    pub fn open(directories: Directories) -> Store {
        Store { directories }
    }

    /// Where they are.
    pub fn directories(&self) -> &Directories {
        &self.directories
    }

    /// All networks, by name, the default among them.
    ///
    /// # Errors
    ///
    /// [`StoreError::Broken`] for the first file that cannot be understood; [`StoreError::File`].
    pub fn list(&self) -> Result<Vec<Definition>, StoreError> {
        self.each()?.into_iter().collect()
    }

    /// As [`Store::list`], but a file that cannot be understood or read is an entry beside the
    /// others.
    ///
    /// # Errors
    ///
    /// [`StoreError::File`] if the directory cannot be read.
    pub fn each(&self) -> Result<Vec<Result<Definition, StoreError>>, StoreError> {
        let mut names = self.names()?;
        if !names.iter().any(|name| name == DEFAULT_NETWORK) {
            names.push(DEFAULT_NETWORK.to_owned());
        }
        names.sort();
        let read = |name: String| match self.read(&name) {
            Ok(None) if name == DEFAULT_NETWORK => Some(self.implied()),
            // Removed meanwhile.
            Ok(None) => None,
            Ok(Some(definition)) => Some(Ok(definition)),
            Err(error) => Some(Err(error)),
        };
        Ok(names.into_iter().filter_map(read).collect())
    }

    /// The network of that name, or else the one whose id starts with it; the default one for
    /// `bridge`, where there is no network of that name.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], [`StoreError::Ambiguous`] and those of [`Store::list`]; a file
    /// that cannot be understood hides none that can.
    pub fn get(&self, name: &str) -> Result<Definition, StoreError> {
        if check_network_name(name).is_ok() {
            match self.read(name)? {
                Some(definition) => return Ok(definition),
                None if name == DEFAULT_NETWORK => return self.implied(),
                // What Docker calls its own default network.
                None if name == BRIDGE => return self.get(DEFAULT_NETWORK),
                None => {}
            }
        }
        let not_found = || StoreError::NotFound(name.to_owned());
        if name.is_empty() {
            return Err(not_found());
        }
        let (mut fitting, mut broken) = (Vec::new(), None);
        for each in self.each()? {
            match each {
                Ok(definition) if definition.id.starts_with(name) => fitting.push(definition),
                Ok(_) => {}
                Err(error) => broken = broken.or(Some(error)),
            }
        }
        match (fitting.pop(), fitting.pop()) {
            (Some(_), Some(_)) => Err(StoreError::Ambiguous(name.to_owned())),
            (Some(found), None) => Ok(found),
            // It may be the one that cannot be understood.
            (None, _) => Err(broken.unwrap_or_else(not_found)),
        }
    }

    /// The network as it is to be started or joined: while no container is on it, the default one
    /// moves out of the way of the host's `routes`.
    ///
    /// # Errors
    ///
    /// As [`Store::get`]; [`StoreError::NothingFree`].
    pub fn settle(&self, name: &str, routes: &HostRoutes) -> Result<Definition, StoreError> {
        let definition = self.get(name)?;
        let written = || self.directories.definition(&definition.name).exists();
        // Those who are on it keep their addresses, even if its process has crashed.
        let used = || self.directories.state_file(&definition.name).exists();
        let clashes = |d: &Definition| d.subnets().any(|s| routes.overlapping(s).is_some());
        if definition.name != DEFAULT_NETWORK || !clashes(&definition) || written() || used() {
            return Ok(definition);
        }
        let _lock = self.lock()?;
        if let Some(by_another) = self.read(DEFAULT_NETWORK)? {
            return Ok(by_another);
        }
        let others = self.list()?;
        let others = others.iter().filter(|d| d.name != DEFAULT_NETWORK);
        let used: Vec<IpNet> = others.flat_map(Definition::subnets).collect();
        let (ipv4, ipv6) = free_pools(&definition.id, &used, routes)?;
        let moved = Definition {
            ipv4: Some(ipv4),
            ipv6: Some(ipv6),
            created: now(),
            ..definition
        };
        self.write(&moved)?;
        Ok(moved)
    }

    /// Makes a network beside the others and the host's `routes`.
    ///
    /// # Errors
    ///
    /// See [`StoreError`]; nothing is made then.
    pub fn create(&self, request: Request, routes: &HostRoutes) -> Result<Definition, StoreError> {
        check_network_name(&request.name)?;
        let (mut ipv4, mut ipv6) = pools(&request)?;
        let (overlay, lan) = (request.overlay()?, request.lan()?);
        let _lock = self.lock()?;
        let others = self.list()?;
        if others.iter().any(|d| d.name == request.name) {
            return Err(StoreError::Exists(request.name));
        }
        for subnet in &request.subnets {
            unused(*subnet, &others, lan.is_none().then_some(routes))?;
        }
        let id = random_id().map_err(StoreError::Random)?;
        if request.subnets.is_empty() {
            let used: Vec<IpNet> = others.iter().flat_map(Definition::subnets).collect();
            let (v4, v6) = free_pools(&id, &used, routes)?;
            (ipv4, ipv6) = (Some(v4), Some(v6));
        }
        let definition = Definition {
            created: now(),
            driver: request.driver,
            internal: request.internal,
            isolate: request.isolate,
            require_sandbox: request.require_sandbox,
            mtu: request.mtu,
            dns: request.dns,
            dns_stale: request.dns_stale,
            dns_search: request.dns_search,
            trust: request.trust,
            keep_ports: request.keep_ports,
            filter: request.filter,
            overlay,
            lan,
            ipv4,
            ipv6,
            labels: request.labels,
            ..Definition::new(request.name, id)
        };
        definition.check()?;
        self.write(&definition)?;
        Ok(definition)
    }

    /// Removes the network of that name, what is remembered of its addresses, and what its process
    /// has left. `users` names the containers on it; `None` if its process does not run. A file
    /// that cannot be understood can be removed all the same. Blocks while the network's process
    /// starts or ends.
    ///
    /// # Errors
    ///
    /// [`StoreError::Default`], [`StoreError::NotFound`] and [`StoreError::File`];
    /// [`StoreError::InUse`], without names if the process has been started since `users` was found
    /// out, or has crashed and left containers.
    pub fn remove(&self, name: &str, users: Option<Vec<String>>) -> Result<(), StoreError> {
        check_network_name(name)?;
        if name == DEFAULT_NETWORK {
            return Err(StoreError::Default);
        }
        let path = self.directories.definition(name);
        if !path.exists() {
            return Err(StoreError::NotFound(name.to_owned()));
        }
        if let Some(containers) = users {
            let network = name.to_owned();
            return Err(StoreError::InUse {
                network,
                containers,
            });
        }
        let file = |(path, source)| StoreError::File { path, source };
        let (directory, _lock) = runtime::lock_directory(&self.directories, name).map_err(file)?;
        let Some(_lock) = self.unserved(name, &directory)? else {
            let (network, containers) = (name.to_owned(), Vec::new());
            return Err(StoreError::InUse {
                network,
                containers,
            });
        };
        let _definitions = self.lock()?;
        let removed = fs::remove_file(&path);
        let gone = matches!(&removed, Err(error) if error.kind() == io::ErrorKind::NotFound);
        if removed.is_ok() || gone {
            runtime::clear(&self.directories, name);
        }
        if gone {
            return Err(StoreError::NotFound(name.to_owned()));
        }
        removed.map_err(at(&path))?;
        let leases = self.directories.leases(name);
        // Leases of a network that is gone do no harm: the next one of that name has other pools,
        // which they do not fit.
        let _ = fs::remove_file(&leases);
        // Policies would apply to the next one.
        let policies = self.directories.policies(name);
        if let Err(error) = fs::remove_file(&policies)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(at(&policies)(error));
        }
        let _ = leases.parent().map(fs::remove_dir);
        Ok(())
    }

    /// The lock of the network's process, if there is none, nor one that has to be started again to
    /// take up its containers. The caller has the lock of the directory, so none is starting.
    fn unserved(&self, name: &str, directory: &Path) -> Result<Option<File>, StoreError> {
        if UnixStream::connect(self.directories.socket(name)).is_ok() {
            return Ok(None);
        }
        let lock = runtime::lock(directory).map_err(at(directory))?;
        // Nothing is started from a definition that cannot be understood.
        let crashed = self.directories.state_file(name).exists() && self.read(name).is_ok();
        Ok(lock.filter(|_| !crashed))
    }

    fn lock(&self) -> Result<DirectoryLock, StoreError> {
        let directory = self.directories.networks();
        let made = file::make_directory(&directory);
        made.and_then(|()| DirectoryLock::at(&directory))
            .map_err(at(&directory))
    }

    fn write(&self, definition: &Definition) -> Result<(), StoreError> {
        let path = self.directories.definition(&definition.name);
        let text = toml::to_string(definition).map_err(|error| broken(&path, &error))?;
        file::replace(&path, text.as_bytes()).map_err(at(&path))
    }

    /// Definitions say what a network may reach: a user who could exchange them would decide it.
    fn check_trusted(&self) -> Result<(), StoreError> {
        let networks = self.directories.networks();
        for directory in [&self.directories.config, &networks] {
            file::check_trusted_directory(directory).map_err(at(directory))?;
        }
        Ok(())
    }

    /// The names of all files that are definitions.
    fn names(&self) -> Result<Vec<String>, StoreError> {
        let directory = self.directories.networks();
        self.check_trusted()?;
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(at(&directory))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(at(&directory))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".toml"));
            names.extend(
                name.filter(|n| check_network_name(n).is_ok())
                    .map(str::to_owned),
            );
        }
        Ok(names)
    }

    fn read(&self, name: &str) -> Result<Option<Definition>, StoreError> {
        let path = self.directories.definition(name);
        self.check_trusted()?;
        let text = match file::read_trusted_text(&path, MAX_DEFINITION) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(at(&path))?,
        };
        let definition: Definition = toml::from_str(&text).map_err(|e| broken(&path, &e))?;
        definition.check().map_err(|e| broken(&path, &e))?;
        if definition.name != name {
            let found = format!("it describes the network `{}`", definition.name);
            return Err(broken(&path, &found));
        }
        Ok(Some(definition))
    }

    /// The default network where no file says otherwise: the same one each time, another one for
    /// each user.
    fn implied(&self) -> Result<Definition, StoreError> {
        let place = self.directories.definition(DEFAULT_NETWORK);
        let id: String = Sha256::digest(place.as_os_str().as_encoded_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let (octets, len) = DEFAULT_SUBNET;
        let subnet = ipnet::Ipv4Net::new_assert(octets.into(), len);
        let ipv4 = Ipv4Pool::new(subnet, None, None).map_err(DefinitionError::from)?;
        let ula = free_ula(&id, |_| false).ok_or(StoreError::NothingFree("IPv6"))?;
        let ipv6 = Ipv6Pool::new(ula, None, None).map_err(DefinitionError::from)?;
        Ok(Definition {
            ipv4: Some(ipv4),
            ipv6: Some(ipv6),
            ..Definition::new(DEFAULT_NETWORK, id)
        })
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::File { path, source }
}

fn broken(path: &Path, reason: &dyn std::fmt::Display) -> StoreError {
    StoreError::Broken {
        path: path.to_owned(),
        reason: reason.to_string().trim_end().to_owned(),
    }
}

/// Whether `subnet` shares no address with these.
fn unused(
    subnet: IpNet,
    networks: &[Definition],
    routes: Option<&HostRoutes>,
) -> Result<(), StoreError> {
    for network in networks {
        if let Some(other) = network.subnets().find(|other| overlap(*other, subnet)) {
            let network = network.name.clone();
            return Err(StoreError::OverlapsNetwork {
                subnet,
                other,
                network,
            });
        }
    }
    match routes.and_then(|routes| routes.overlapping(subnet)) {
        Some(route) => Err(StoreError::OverlapsHost {
            subnet,
            route: route.clone(),
        }),
        None => Ok(()),
    }
}

/// Pools of both families that share nothing with `used` and the host's `routes`.
fn free_pools(
    id: &str,
    used: &[IpNet],
    routes: &HostRoutes,
) -> Result<(Ipv4Pool, Ipv6Pool), StoreError> {
    let taken = |candidate: IpNet| {
        used.iter().any(|network| overlap(*network, candidate))
            || routes.overlapping(candidate).is_some()
    };
    let ipv4 = free_ipv4(taken).ok_or(StoreError::NothingFree("IPv4"))?;
    let ipv6 = free_ula(id, taken).ok_or(StoreError::NothingFree("IPv6"))?;
    let ipv4 = Ipv4Pool::new(ipv4, None, None).map_err(DefinitionError::from)?;
    let ipv6 = Ipv6Pool::new(ipv6, None, None).map_err(DefinitionError::from)?;
    Ok((ipv4, ipv6))
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests;
