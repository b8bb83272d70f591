//! Networks, for programs that run containers.
//!
//! A [`Network`] is a handle to a named network. It holds no connection and no process: each call
//! asks the network's process over its control socket, and starts that process where it is needed
//! and does not run. What the commands of `cnet` do, they do through this.
//!
//! ```no_run
//! use cnet::{Attach, Network, Target};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let network = Network::open("cnet")?;
//! let attach = Attach::new().name("web").publish("8080:80".parse()?);
//! let joined = network.attach(Target::Process(4711), attach).await?;
//! println!("{} has {:?}", joined.container.name, joined.container.ipv4);
//! network.detach("web").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! All calls need a tokio runtime with I/O and time. The network's process is the program `cnet`,
//! which has to be installed ([`Network::with_program`]). Handle and process belong to one user.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cnet_tap::{TapError, watch};
use serde::de::DeserializeOwned;
use tokio::io::Interest;

use crate::control::client::{self, AskError};
use crate::control::{
    Action, Attach, Attached, Detach, DnsLog, DnsLogReport, Events, Kind, NetworkReport, Nothing,
    PublishPorts, Published, Refusal, StatisticsReport, Stop,
};
use crate::definition::{
    Definition, Directories, DirectoriesError, HostRoutes, Request, Store, StoreError,
};
use crate::log::LogEnd;
use crate::publish::PublishSpec;
use crate::start::{self, StartError};
use cnet_tap::async_fd::AsyncOwnedFd;

mod policies;
mod target;

pub use target::Target;

/// How often an action is tried again when the network's process ends just then.
const ATTEMPTS: usize = 3;

/// How long a network's process that is ending is waited for, and how long between two looks. It
/// takes its containers out, which takes the kernel some milliseconds for each, and passes on what
/// they have left behind.
pub const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client waits before it asks a network's process again that is ending.
pub const END_INTERVAL: Duration = Duration::from_millis(10);

/// How long a container that is joining, or is taken up again after a crash, holds up the removal of
/// its network before that fails, and how long between two looks.
const JOIN_TIMEOUT: Duration = Duration::from_secs(3);
/// As above.
const JOIN_INTERVAL: Duration = Duration::from_millis(100);

/// How long to wait before looking again for a network's process that does not come back.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// What can go wrong with a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// There is no place for networks.
    #[error(transparent)]
    Directories(#[from] DirectoriesError),
    /// The definition cannot be had or made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The network's process cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The network's process does not answer.
    #[error(transparent)]
    Ask(AskError),
    /// The network's process refuses.
    #[error("{0}")]
    Refused(Refusal),
    /// The container cannot be found or entered.
    #[error(transparent)]
    Target(#[from] TapError),
}

impl NetworkError {
    /// Whether the network says that there is no such container or port.
    pub fn is_not_found(&self) -> bool {
        matches!(self, NetworkError::Refused(refusal) if refusal.kind == Kind::NotFound)
    }

    /// Whether the network says that another container has it.
    pub fn is_conflict(&self) -> bool {
        matches!(self, NetworkError::Refused(refusal) if refusal.kind == Kind::Conflict)
    }
}

/// A named network.
#[derive(Clone, Debug)]
pub struct Network {
    definition: Definition,
    directories: Directories,
    program: PathBuf,
}

impl Network {
    /// The network called `name`, or whose id starts so.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Store`] if there is none.
    pub fn open(name: &str) -> Result<Network, NetworkError> {
        let store = Store::open(Directories::of_this_user()?);
        let definition = store.get(name)?;
        Ok(Network::new(definition, store.directories().clone()))
    }

    /// Makes a network.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Store`] if there is one of that name, or its subnets are taken.
    pub fn create(request: Request) -> Result<Network, NetworkError> {
        let store = Store::open(Directories::of_this_user()?);
        let definition = store.create(request, &HostRoutes::read())?;
        Ok(Network::new(definition, store.directories().clone()))
    }

    /// All networks of this user, by name, the default one among them. A network whose file cannot
    /// be understood is an error beside the others.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Directories`], and [`NetworkError::Store`] if the directory of the
    /// definitions cannot be read.
    pub fn list() -> Result<Vec<Result<Network, StoreError>>, NetworkError> {
        let store = Store::open(Directories::of_this_user()?);
        let handle = |definition| Network::new(definition, store.directories().clone());
        let networks = store.each()?.into_iter();
        Ok(networks.map(|network| network.map(handle)).collect())
    }

    /// Removes the network: its definition, and what is remembered of its containers' addresses.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Store`] with [`StoreError::InUse`] while containers are on it, and with
    /// [`StoreError::Default`] for the default network; and as for all calls.
    pub async fn remove(&self) -> Result<(), NetworkError> {
        let begun = Instant::now();
        loop {
            match self.try_remove().await {
                // A container is joining, or a process has been started since.
                Err(NetworkError::Store(StoreError::InUse { containers, .. }))
                    if containers.is_empty() && begun.elapsed() < JOIN_TIMEOUT =>
                {
                    tokio::time::sleep(JOIN_INTERVAL).await;
                }
                removed => return removed,
            }
        }
    }

    async fn try_remove(&self) -> Result<(), NetworkError> {
        let mut users = self.containers().await?;
        if users.as_ref().is_some_and(Vec::is_empty) {
            users = match self.stop(false).await {
                Ok(()) => None,
                // A container is joining, which has no name there yet.
                Err(error) if error.is_conflict() => self.containers().await?,
                Err(error) => return Err(error),
            };
        }
        let (store, name) = (
            Store::open(self.directories.clone()),
            self.name().to_owned(),
        );
        // It waits for the end of the network's process.
        let removed = tokio::task::spawn_blocking(move || store.remove(&name, users));
        let lost = |e: tokio::task::JoinError| StartError::Failed(e.to_string());
        Ok(removed.await.map_err(lost)??)
    }

    /// The names of those on it; `None` if it does not run.
    async fn containers(&self) -> Result<Option<Vec<String>>, NetworkError> {
        let report = self.inspect().await?;
        let names = |report: NetworkReport| report.containers.into_iter().map(|c| c.name).collect();
        Ok(report.map(names))
    }

    /// The handle of a network that is known already.
    pub fn new(definition: Definition, directories: Directories) -> Network {
        Network {
            definition,
            directories,
            program: program(),
        }
    }

    /// Starts network processes with the program at `path` instead of this one, if it is cnet
    /// itself, or the `cnet` in the search path.
    #[must_use]
    pub fn with_program(mut self, path: impl Into<PathBuf>) -> Network {
        self.program = path.into();
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.definition.name
    }

    /// How it was defined.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Lets a container join.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Target`] if there is no such container; [`NetworkError::Refused`] as
    /// [`Action::Attach`] has it; and as for all calls, [`NetworkError::Start`] and
    /// [`NetworkError::Ask`].
    pub async fn attach(&self, target: Target, attach: Attach) -> Result<Attached, NetworkError> {
        let (attach, descriptors) = target.describe(attach)?;
        self.ask(&Action::Attach(Box::new(attach)), &descriptors)
            .await
    }

    /// Takes a container out: by its name, its id or the start of it, or its process.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Refused`] if there is none; and as for all calls.
    pub async fn detach(&self, container: &str) -> Result<(), NetworkError> {
        let detach = Detach {
            container: container.to_owned(),
        };
        let done: Result<Nothing, _> = self.ask(&Action::Detach(detach), &[]).await;
        done.map(drop)
    }

    /// Opens ports of the host, and leads them to a container: all or none.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Refused`] as [`Action::Publish`] has it; and as for all calls.
    pub async fn publish(
        &self,
        container: &str,
        ports: &[PublishSpec],
    ) -> Result<Published, NetworkError> {
        let ports = publish_ports(container, ports);
        self.ask(&Action::Publish(ports), &[]).await
    }

    /// Closes ports of the host, and tells which.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Refused`] if none was open; and as for all calls.
    pub async fn unpublish(
        &self,
        container: &str,
        ports: &[PublishSpec],
    ) -> Result<Published, NetworkError> {
        let ports = publish_ports(container, ports);
        self.ask(&Action::Unpublish(ports), &[]).await
    }

    /// Who is on the network; `None` if it does not run. A process that has crashed is started
    /// again for this, and takes up its containers.
    ///
    /// # Errors
    ///
    /// As for all calls.
    pub async fn inspect(&self) -> Result<Option<NetworkReport>, NetworkError> {
        self.ask_if_running(&Action::Inspect(Nothing {})).await
    }

    /// What passed the network; `None` if it does not run.
    ///
    /// # Errors
    ///
    /// As for all calls.
    pub async fn statistics(&self) -> Result<Option<StatisticsReport>, NetworkError> {
        self.ask_if_running(&Action::Statistics(Nothing {})).await
    }

    /// What a container has asked for by DNS, from behind the query of number `after` on; `None` if
    /// the network does not run. With `wait` the next query is waited for, some seconds, where there
    /// is none yet.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Refused`] if there is no such container; and as for all calls.
    pub async fn dns_log(
        &self,
        container: &str,
        after: u64,
        wait: bool,
    ) -> Result<Option<DnsLogReport>, NetworkError> {
        let container = container.to_owned();
        let asked = DnsLog {
            container,
            after,
            wait,
        };
        self.ask_if_running(&Action::DnsLog(asked)).await
    }

    /// What happens on the network from now on: which containers join, which leave, and why. `None`
    /// if it does not run. The stream ends with the network's process, and does not keep it alive;
    /// after a crash another call starts the process again, as [`Network::inspect`] does, which
    /// tells which containers are there.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Refused`] if too many clients listen already; and as for all calls.
    pub async fn events(&self) -> Result<Option<Events>, NetworkError> {
        let socket = self.directories.socket(self.name());
        let subscribe = || unless_ending(|| Events::subscribe(&socket));
        self.if_running(subscribe).await
    }

    /// Ends the network's process, if it runs.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Refused`] while containers are on it, unless `force` is given, which takes
    /// them out; and as for all calls.
    pub async fn stop(&self, force: bool) -> Result<(), NetworkError> {
        let stop = Action::Stop(Stop { force });
        let done: Result<Option<Nothing>, _> = self.ask_if_running(&stop).await;
        done.map(drop)
    }

    /// Starts the network's process, if it does not run. It ends again within seconds unless a
    /// container joins, or it finds some that a process before it has left.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Start`].
    pub async fn start(&self) -> Result<(), NetworkError> {
        let (directories, program) = (self.directories.clone(), self.program.clone());
        let name = self.definition.name.clone();
        let started =
            tokio::task::spawn_blocking(move || start::ensure(&directories, &name, &program));
        let lost = |e: tokio::task::JoinError| StartError::Failed(e.to_string());
        Ok(started.await.map_err(lost)??)
    }

    /// Has the program that [`Network::start`] starts take the place of the network's process, with its
    /// containers: their interfaces, addresses, names and published ports stay, their connections are
    /// reset. `false` if the network does not run.
    ///
    /// # Errors
    ///
    /// As for all calls.
    pub async fn restart(&self) -> Result<bool, NetworkError> {
        let Some(report) = self.inspect().await? else {
            return Ok(false);
        };
        let (directories, program) = (self.directories.clone(), self.program.clone());
        let name = self.definition.name.clone();
        let started = tokio::task::spawn_blocking(move || {
            start::restart(&directories, &name, &program, report.pid)
        });
        let lost = |e: tokio::task::JoinError| StartError::Failed(e.to_string());
        started.await.map_err(lost)??;
        Ok(true)
    }

    /// Keeps the network's process `pid` alive for as long as this is polled: starts it again
    /// whenever it ends. `started` is told the process's number each time.
    pub async fn keep(&self, mut pid: u32, mut started: impl FnMut(u32)) {
        loop {
            started(pid);
            let pidfd = watch::pidfd(pid as i32);
            let watched = pidfd.map(|pidfd| AsyncOwnedFd::new(pidfd, Interest::READABLE));
            if let Ok(Ok(watched)) = &watched {
                // An error is the event loop's own end.
                let _ = watched.ready().await.map(drop);
            }
            loop {
                match self.inspect().await {
                    // One that cannot be watched is asked again after a while.
                    Ok(Some(report)) if report.pid != pid => {
                        pid = report.pid;
                        break;
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "the network does not come back"),
                }
                tokio::time::sleep(RESTART_INTERVAL).await;
            }
        }
    }

    async fn ask_if_running<T: DeserializeOwned>(
        &self,
        action: &Action,
    ) -> Result<Option<T>, NetworkError> {
        self.if_running(|| self.ask_once(action, &[])).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        action: &Action,
        descriptors: &[OwnedFd],
    ) -> Result<T, NetworkError> {
        self.running(|| self.ask_once(action, descriptors)).await
    }

    /// What `once` has from the network's process; `None` if there is none, nor one that has left
    /// containers to be taken up.
    async fn if_running<T, F>(&self, once: impl Fn() -> F) -> Result<Option<T>, NetworkError>
    where
        F: Future<Output = Result<T, AskError>>,
    {
        match once().await {
            Ok(answer) => return Ok(Some(answer)),
            Err(AskError::Absent(_) | AskError::Lost(_)) => {}
            Err(error) => return Err(error.into()),
        }
        // The process that was there has ended in order, or has left containers to be taken up.
        match self.directories.state_file(self.name()).exists() {
            true => self.running(once).await.map(Some),
            false => Ok(None),
        }
    }

    /// What `once` has from the network's process, which is started if it does not run.
    async fn running<T, F>(&self, once: impl Fn() -> F) -> Result<T, NetworkError>
    where
        F: Future<Output = Result<T, AskError>>,
    {
        for _ in 0..ATTEMPTS {
            match once().await {
                Ok(answer) => return Ok(answer),
                Err(AskError::Absent(_) | AskError::Lost(_)) => {}
                Err(error) => return Err(error.into()),
            }
            self.start().await?;
        }
        let log = LogEnd::of(&self.directories, self.name());
        Err(StartError::Unstable { log }.into())
    }

    /// Asks the network's process, but not one that is ending.
    async fn ask_once<T: DeserializeOwned>(
        &self,
        action: &Action,
        descriptors: &[OwnedFd],
    ) -> Result<T, AskError> {
        let socket = self.directories.socket(self.name());
        let ask = || async {
            let copies = descriptors.iter().map(OwnedFd::try_clone);
            let copies = copies.collect::<Result<_, _>>();
            let copies = copies.map_err(AskError::Unreachable)?;
            client::ask(&socket, action, copies).await
        };
        unless_ending(ask).await
    }
}

/// Has `once` ask a network's process again for as long as that is ending, [`END_TIMEOUT`] at most.
async fn unless_ending<T, F>(once: impl Fn() -> F) -> Result<T, AskError>
where
    F: Future<Output = Result<T, AskError>>,
{
    let begun = Instant::now();
    loop {
        match once().await {
            Err(AskError::Refused(refusal))
                if refusal.kind == Kind::Ending && begun.elapsed() < END_TIMEOUT =>
            {
                tokio::time::sleep(END_INTERVAL).await;
            }
            answer => return answer,
        }
    }
}

impl From<AskError> for NetworkError {
    fn from(error: AskError) -> NetworkError {
        match error {
            AskError::Refused(refusal) => NetworkError::Refused(refusal),
            other => NetworkError::Ask(other),
        }
    }
}

fn publish_ports(container: &str, ports: &[PublishSpec]) -> PublishPorts {
    PublishPorts {
        container: container.to_owned(),
        ports: ports.to_vec(),
    }
}

/// This very program if it is cnet, whatever has become of its file; otherwise the installed one.
fn program() -> PathBuf {
    let own = std::env::current_exe().ok();
    let name = own.as_deref().and_then(Path::file_name);
    // The kernel says so of a file that was replaced (proc_pid_exe(5)).
    match name.and_then(|name| name.to_str()) {
        Some("cnet" | "cnet (deleted)") => PathBuf::from("/proc/self/exe"),
        _ => PathBuf::from("cnet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_does_not_stay_is_told_with_the_end_of_its_log() {
        let place = tempfile::tempdir().unwrap();
        let directories = Directories {
            config: place.path().join("c"),
            state: place.path().join("s"),
            runtime: place.path().join("r"),
        };
        let program = place.path().join("program");
        let script = "#!/bin/sh\necho 'first' >&2\necho 'the last words' >&2\necho ready\n";
        std::fs::write(&program, script).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, executable).unwrap();
        let definition = Store::open(directories.clone()).get("cnet").unwrap();
        let network = Network::new(definition, directories).with_program(program);
        let error = network.detach("web").await.unwrap_err().to_string();
        for told in ["as soon as", "r/cnet/", "the last words"] {
            assert!(error.contains(told), "{told}: {error}");
        }
        assert!(!error.contains("first"), "{error}");
    }

    #[test]
    fn calls_can_be_made_from_any_thread() {
        fn check<T: Send>(_: T) {}
        let place = tempfile::tempdir().unwrap();
        let directories = Directories {
            config: place.path().join("c"),
            state: place.path().join("s"),
            runtime: place.path().join("r"),
        };
        let definition = Store::open(directories.clone()).get("cnet").unwrap();
        let network = Network::new(definition, directories);
        check(network.attach(Target::Process(1), Attach::new()));
        check(network.inspect());
        check(network.events());
        check(network.remove());
    }
}
