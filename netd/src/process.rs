//! The network process: one a network, from its first container to its last.
//!
//! # Theory of operation
//!
//! A client that needs a network and finds no process at its control socket starts this one
//! ([`cnet::start`]). It forks the namespace helper ([`crate::ns_helper`]) and the process that runs the
//! network, and answers what that asks of the host from within its sandbox ([`crate::outside`]). The
//! other binds the control socket, starts the network ([`crate::instance`]), takes up what a process
//! before it has left behind ([`crate::journal`]), and says that it is ready. From then on it does what clients ask for
//! ([`crate::members`]) and notices when containers end ([`crate::liveness`]).
//!
//! # How it ends
//!
//! - Shortly after the last container has left ([`LINGER_TIMEOUT`]), or if none comes
//!   ([`FIRST_TIMEOUT`]). It locks the network's runtime directory first, so that no client is just
//!   starting it, and serves on if one has come.
//! - By the action `stop`, which takes all containers out, passes on what they have left behind for
//!   [`STOP_DELIVERY_TIMEOUT`] at most, and locks the directory as well if it can.
//! - By SIGTERM or SIGINT: what is needed to go on stays, and the next process takes it up.
//! - When its worker or its helper fails, or by SIGKILL, of it or of the process outside its sandbox:
//!   the same, and its watcher ([`crate::watcher`]) starts that next process at once if there is a
//!   container that needs it.
//!
//! # Invariants
//!
//! - One process a network: it holds a lock on `lock` in the network's directory while it lives.
//! - What is in `state.json` was so a moment ago: it is written before an action is answered.
//!
//! # Limits
//!
//! A definition is read at the start. Changing it needs the network to be stopped.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use cnet::definition::file::make_directory;
use cnet::definition::{
    Definition, Directories, DirectoriesError, HostRoutes, Store, StoreError, runtime,
};
use cnet::log;
use cnet::network::END_TIMEOUT;
use cnet::start::READY;
use cnet_dataplane::{NetworkConfig, PortError, check_descriptors};
use cnet_tap::TapError;
use cnet_tap::helper::NsHelper;
use cnet_tap::sandbox::{Mode, Policy, Role, spawn_isolated};
use rustix::fs::{FlockOperation, flock};
use rustix::process::WaitOptions;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::dns::member_names::MemberNames;
use crate::dns::other_networks::OtherNetworks;
use crate::host_routes::HostRouteWatch;
use crate::instance::{Instance, InstanceError, peer_filter};
use crate::ipam::{Ipam, IpamError};
use crate::journal::Record;
use crate::members::{self, ActionHandler, Members, Policies};
use crate::ns_helper::NsHelperClient;
use crate::outside::Host;
use crate::peers::{self, PeersError, Uplink};
use crate::serve::{self, BindError, Busy};
use crate::starting_client::{self, DetachError, detach, keep_client, tell_client};
use crate::watcher::Watcher;

/// How long it waits for a first container.
const FIRST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it stays after the last container has left, for the next one of a script.
const LINGER_TIMEOUT: Duration = Duration::from_millis(500);

/// How long it stays for what containers had sent to its end when they left, and far ends have not
/// taken yet (`nat/src/tcp/orphan.rs`). No client waits for it meanwhile.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// The same after a client has asked for the end, from then on: clients wait for that to come.
const STOP_DELIVERY_TIMEOUT: Duration = Duration::from_secs(3);

/// How long clients that listen to events may take to read the last ones. It is short against the
/// half second that the next process waits for our lock ([`runtime::lock`]): a client that reads
/// nothing must not keep that one from starting.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_millis(100);

const _: () = assert!(
    STOP_DELIVERY_TIMEOUT.as_millis()
        + LINGER_TIMEOUT.as_millis()
        + LAST_EVENTS_TIMEOUT.as_millis()
        < END_TIMEOUT.as_millis()
);

/// How often something is looked for that no event tells.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Why a network is not served, or is served no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The process cannot become one of its own.
    #[error("cannot start the network process: {0}")]
    Detach(#[source] DetachError),
    /// The other hosts cannot be reached.
    #[error(transparent)]
    Peers(#[from] PeersError),
    /// The uplink cannot be a port.
    #[error("cannot join the other hosts: {0}")]
    Uplink(#[source] PortError),
    /// There is no place for networks.
    #[error(transparent)]
    Directories(#[from] DirectoriesError),
    /// The runtime directory cannot be used.
    #[error("cannot use {}: {source}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The lock in the runtime directory cannot be taken.
    #[error("cannot lock {}: {source}", .path.display())]
    Lock {
        /// The directory.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("another process serves the network `{0}` already")]
    Served(String),
    /// The definition cannot be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The leases cannot be had.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// The process that enters namespaces cannot be started.
    #[error(transparent)]
    Helper(#[from] TapError),
    /// The process that watches over it cannot be started.
    #[error("cannot start the process that watches over the network: {0}")]
    Watcher(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The network does not run.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The control socket cannot be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The event loop, a signal or standard output.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// What the network needs has ended while it ran.
    #[error("{0}")]
    Ended(String),
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ProcessError {
    move |source| ProcessError::System { what, source }
}

/// The program. `network` is the network's name; `mode` says how much of the sandbox is insisted upon;
/// `start_log` has what is traced from then on go to
/// the log, if standard error is the network's log, or else to standard error.
pub fn main(network: &str, mode: Mode, start_log: impl FnOnce(Option<log::Bounded>)) -> ExitCode {
    match detach().map_err(ProcessError::Detach) {
        Ok(true) => {}
        Ok(false) => return ExitCode::SUCCESS,
        Err(error) => return fail(&error),
    }
    start_log(own_log(network));
    keep_client()
        .map_err(system("cannot let go of standard output"))
        .and_then(|()| watched(network, mode))
        .unwrap_or_else(|error| fail(&error))
}

/// Runs the network under the eyes of its watcher, which starts it again if it does not end in order.
/// One that could not start has told why, and is left to the next client.
fn watched(network: &str, mode: Mode) -> Result<ExitCode, ProcessError> {
    let directories = Directories::of_this_user()?;
    let watcher = Watcher::start(&directories, network, starting_client::let_go)
        .map_err(ProcessError::Watcher)?;
    live(network, mode, &watcher).inspect_err(|_| watcher.end())
}

/// Standard error, if that is the network's log. One that is closed is no log.
fn own_log(network: &str) -> Option<log::Bounded> {
    let directories = Directories::of_this_user().ok()?;
    let path = runtime::log(&directories.network_runtime(network));
    log::Bounded::of(io::stderr(), &path).ok().flatten()
}

fn fail(error: &ProcessError) -> ExitCode {
    let text = in_one_line(error);
    tracing::error!("{text}");
    tell_client(&text);
    ExitCode::FAILURE
}

/// An error with its causes, in one line. Some errors tell their cause in their own text, which is
/// then not told again.
pub fn in_one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let cause = error.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = error.source();
    }
    text
}

/// Prepares the network, forks the process that runs it into its sandbox, and answers that one.
fn live(network: &str, mode: Mode, watcher: &Watcher) -> Result<ExitCode, ProcessError> {
    check_descriptors().map_err(InstanceError::from)?;
    // Before anything is opened that it should not have.
    let helper = NsHelper::start()?;
    let directories = Directories::of_this_user()?;
    let made = directories.make_network_runtime(network);
    let directory = made.map_err(|(path, source)| ProcessError::Directory { path, source })?;
    let lock = runtime::lock(&directory).map_err(|source| ProcessError::Lock {
        path: directory.clone(),
        source,
    })?;
    let Some(lock) = lock else {
        return Err(ProcessError::Served(network.to_owned()));
    };
    let store = Store::open(directories.clone());
    let routes = HostRoutes::read();
    let definition = store.settle(network, &routes)?;
    for told in definition.hidden_routes(&routes) {
        tracing::warn!("{told}");
    }
    // What the definition insists upon, the client that starts the network does not undo.
    let mode = match definition.require_sandbox {
        true => Mode::Required,
        false => mode,
    };
    make_directories(&directories, network)?;
    let uplink = peers::open(&definition)?;
    let prepared = Prepared {
        directories,
        definition,
        helper,
        uplink,
    };
    match mode {
        Mode::Off => {
            let host = Host::network_here(prepared.directories.clone());
            run(
                prepared,
                Policy::new(Role::Network, mode),
                host,
                process::id(),
            )?;
            watcher.end();
            Ok(ExitCode::SUCCESS)
        }
        Mode::Offered | Mode::Required => match in_sandbox(prepared, mode, &lock, watcher)? {},
    }
}

/// What the network's process needs at its start.
struct Prepared {
    directories: Directories,
    definition: Definition,
    helper: NsHelper,
    uplink: Option<Uplink>,
}

/// Makes the directories that are written to while the network runs: they are what the sandbox shows.
fn make_directories(directories: &Directories, network: &str) -> Result<(), ProcessError> {
    let leases = directories.leases(network);
    let needed = [leases.parent(), Some(&directories.networks())];
    for path in needed.into_iter().flatten() {
        make_directory(path).map_err(|source| ProcessError::Directory {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// Forks the process that runs the network, and serves it from outside its sandbox.
fn in_sandbox(
    prepared: Prepared,
    mode: Mode,
    lock: &File,
    watcher: &Watcher,
) -> Result<Infallible, ProcessError> {
    let (host, server) = Host::network_outside()?;
    let mut policy = Policy::new(Role::Network, mode);
    // Which ports will be published is not known yet.
    policy.binds_low_ports = true;
    policy.environment = cnet_dataplane::ENVIRONMENT.to_vec();
    let directories = prepared.directories.clone();
    policy.writable = vec![directories.runtime.clone(), directories.state.clone()];
    policy.readable = vec![directories.config.clone()];
    let mut moved = Some((prepared, policy, host));
    let what = "cannot fork the network's process";
    let (child, socket) = spawn_isolated(what, true, |isolated, _socket| {
        let Some((prepared, mut policy, host)) = moved.take() else {
            return 1;
        };
        policy.isolation = Some(isolated.isolation);
        match run(prepared, policy, host, isolated.pid.cast_unsigned()) {
            Ok(()) => 0,
            Err(error) => {
                fail(&error);
                1
            }
        }
    })?;
    // The namespace helper is that process's from here on.
    drop(moved);
    // Who ends the network tells the process that runs it.
    let ignored = [rustix::process::Signal::TERM, rustix::process::Signal::INT];
    let _signals = cnet_tap::signal::block(&ignored).map_err(system("cannot block signals"))?;
    server.serve(
        &[socket.as_fd(), lock.as_fd(), watcher.as_fd()],
        directories,
    );
    let ended = rustix::process::waitpid(Some(child), WaitOptions::empty());
    let status = ended
        .ok()
        .flatten()
        .and_then(|(_, status)| status.exit_status());
    if status == Some(0) {
        watcher.end();
    }
    // Not by returning: what is still owned here was closed by the server.
    process::exit(status.unwrap_or(1))
}

/// Runs the network. `pid` is the number of this process where its clients are.
fn run(prepared: Prepared, policy: Policy, host: Host, pid: u32) -> Result<(), ProcessError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("cannot start the event loop"))?;
    runtime.block_on(serve(prepared, policy, host, pid))
}

/// What the dataplane is to be for this definition.
pub fn config(definition: &Definition) -> NetworkConfig {
    let (ipv4, ipv6) = definition.plan();
    let mut config = NetworkConfig::new(definition.mtu, ipv4, ipv6);
    config.gateway_mac = definition.gateway_mac();
    config.search = definition.dns_search.clone();
    config.keep_tcp_ports = definition.keep_ports;
    config.policy.filter = peer_filter(&definition.filter);
    config.lan = definition.lan.is_some();
    if definition.internal || config.lan {
        config.policy.ipv4 = false;
        config.policy.ipv6 = false;
    }
    config
}

/// SIGTERM and SIGINT.
fn signals() -> Result<[Signal; 2], ProcessError> {
    let terminate = signal(SignalKind::terminate()).map_err(system("cannot wait for SIGTERM"))?;
    let interrupt = signal(SignalKind::interrupt()).map_err(system("cannot wait for SIGINT"))?;
    Ok([terminate, interrupt])
}

/// Starts the network and gives it the members that a process before this one has left.
async fn start_network(
    directories: &Directories,
    (definition, uplink): (Definition, Option<Uplink>),
    helper: &NsHelperClient,
    (policy, host, pid): (Policy, Host, u32),
) -> Result<Arc<Members>, ProcessError> {
    let ipam = Ipam::load(directories.leases(&definition.name), &definition)?;
    let policies = Policies::load(directories.policies(&definition.name));
    let policies = policies.map_err(system("cannot read the network's policies"))?;
    let names = MemberNames::new(&definition);
    let asked = host.clone();
    let lives = Box::new(move |records: &[Record]| asked.lives(records));
    let store = Store::open(directories.clone());
    let others = OtherNetworks::new(store, &definition.name, lives);
    let mut config = config(&definition);
    if let Some(uplink) = &uplink {
        config.policy.rules.extend(uplink.refusals());
    }
    let instance = Instance::builder(config.clone())
        .names(names.local(&definition))
        .dns_clients(names.clients(others))
        .dns_stale(Duration::from_secs(definition.dns_stale.into()))
        .sandbox(policy, host.clone());
    let instance = match definition.internal || definition.lan.is_some() {
        true => instance.without_dns_upstreams(),
        false => instance.dns_servers(definition.dns.clone()),
    };
    let routes = HostRouteWatch::open();
    let watched = (definition.clone(), host.clone());
    let members = Members::new(members::Parts {
        journal: directories.state_file(&definition.name),
        definition,
        config,
        instance: Arc::new(instance.start()?),
        ns_helper: helper.clone(),
        host,
        pid,
        names,
        ipam,
        policies,
    });
    routes.start(watched.0, watched.1);
    if let Some(uplink) = uplink {
        let (plan, device) = uplink.port();
        let uplink = members.instance.join(plan, device, None);
        // Its end is the network's: no other port ends it.
        let _ = uplink.await.map_err(ProcessError::Uplink)?;
    }
    members::restore(&members).await;
    Ok(members)
}

async fn serve(
    prepared: Prepared,
    policy: Policy,
    host: Host,
    pid: u32,
) -> Result<(), ProcessError> {
    let Prepared {
        directories,
        definition,
        helper,
        uplink,
    } = prepared;
    // Before a client is told that we are ready, so that none of these is lost.
    let [mut terminate, mut interrupt] = signals()?;
    let helper = NsHelperClient::new(helper);
    let helper = helper.map_err(system("cannot talk to the process that enters namespaces"))?;
    let network = definition.name.clone();
    let directory = directories.network_runtime(&network);
    let socket = directories.socket(&network);
    // Both are out of reach in the sandbox, which is entered when the network starts. Clients that
    // connect before it has started wait in the socket's queue.
    let listener = serve::bind(&socket)?;
    let process = (policy, host, pid);
    let started = start_network(&directories, (definition, uplink), &helper, process).await;
    let members = started.inspect_err(|_| drop(fs::remove_file(&socket)))?;
    let instance = Arc::clone(&members.instance);
    tell_client(READY);
    tracing::info!(network, "serves");
    let busy = Busy::default();
    let service = Service {
        members: &members,
        busy: &busy,
        directory: &directory,
        socket: &socket,
    };
    let failure = tokio::select! {
        () = service.run(listener) => None,
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        reason = instance.ended() => Some(reason),
        () = helper.ended() => {
            Some("the process that enters namespaces has ended".to_owned())
        }
    };
    // A failure is logged, and tried again.
    let _ = members.save().await;
    members.flush().await;
    service.end_events().await;
    let stopped = instance.stop();
    tracing::info!(network, "ends");
    match failure {
        Some(reason) => Err(ProcessError::Ended(reason)),
        None => Ok(stopped?),
    }
}

/// The network, served to clients until no container needs it.
struct Service<'a> {
    members: &'a Arc<Members>,
    busy: &'a Busy,
    directory: &'a Path,
    socket: &'a Path,
}

impl Service<'_> {
    /// Serves clients until the network is needed no more.
    async fn run(&self, listener: UnixListener) {
        let handler = Arc::new(ActionHandler(Arc::clone(self.members)));
        let serving = serve::serve(listener, handler, self.busy.clone());
        tokio::pin!(serving);
        tokio::select! {
            () = &mut serving => {}
            () = self.needless() => {}
        }
        // The listener is closed with `serving`. Clients that wait to be accepted are turned away,
        // and start the next process once this one has ended.
        let _ = fs::remove_file(self.socket);
    }

    /// Waits until the network is needed no more, and locks its directory, which keeps clients from
    /// starting another process until this one has ended.
    async fn needless(&self) {
        let mut changes = self.members.changes();
        let mut wait = FIRST_TIMEOUT;
        loop {
            if self.members.is_stopped() {
                return self.stopped().await;
            }
            if !self.members.is_empty() {
                wait = LINGER_TIMEOUT;
                // The sender is the members' own.
                let _ = changes.changed().await;
            } else if timeout(wait, changes.changed()).await.is_err() {
                // A container may come meanwhile.
                let delivered = timeout(DELIVERY_TIMEOUT, self.members.instance.delivered());
                tokio::select! {
                    _ = delivered => {}
                    _ = changes.changed() => continue,
                }
                self.until_quiet().await;
                if self.members.is_empty() && self.lock_directory() {
                    return;
                }
            }
        }
    }

    /// Takes all containers out. Clients hear meanwhile that the network is ending.
    async fn stopped(&self) {
        let begun = Instant::now();
        self.until_quiet().await;
        members::leave_all(self.members).await;
        // What far ends do not take in time is reset with the dataplane.
        let _ = timeout_at(
            begun + STOP_DELIVERY_TIMEOUT,
            self.members.instance.delivered(),
        )
        .await;
        // A client that has the lock finds us here, and gives it back soon. If not, the next
        // process waits for ours.
        let asked = Instant::now();
        while !self.lock_directory() && asked.elapsed() < LINGER_TIMEOUT {
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Lets clients read their answers, but does not wait for ever.
    async fn until_quiet(&self) {
        let begun = Instant::now();
        while self.busy.connections() > 0 && begun.elapsed() < LINGER_TIMEOUT {
            sleep(POLL_INTERVAL).await;
        }
    }

    /// The lock is given back by the end of this process.
    fn lock_directory(&self) -> bool {
        let Ok(directory) = File::open(self.directory) else {
            // It was removed, so no client can find us.
            return true;
        };
        let taken = flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok();
        if taken {
            std::mem::forget(directory);
        }
        taken
    }

    /// Lets clients that listen to events read the last ones, but does not wait for ever.
    async fn end_events(&self) {
        self.members.events.close();
        let begun = Instant::now();
        while self.busy.streams() > 0 && begun.elapsed() < LAST_EVENTS_TIMEOUT {
            sleep(POLL_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let errno = || io::Error::from(rustix::io::Errno::ACCESS);
        let outer = system("cannot open x")(errno());
        let text = in_one_line(&outer);
        assert_eq!(text, format!("cannot open x: {}", errno()));
        let helper = ProcessError::Detach(Box::new(errno()));
        let expected = format!("cannot start the network process: {}", errno());
        assert_eq!(in_one_line(&helper), expected);
    }
}
