//! The network process: one a network, from its first container to its last.
//!
//! # Theory of operation
//!
//! Whoever needs a network and finds nobody at its control socket starts this process
//! ([`start`]). It forks the namespace helper ([`crate::ns_helper`]), starts the dataplane, takes up what a
//! process before it has left behind ([`state`]), binds the control socket and says that it is
//! ready. From then on it does what clients ask for ([`hub`]) and notices when containers end
//! ([`life`]).
//!
//! # How it ends
//!
//! - Shortly after the last container has left ([`LINGER`]), or if none comes ([`PATIENCE`]). It
//!   takes its turn at the network's directory first, so that no client is just starting it, and
//!   serves on if one has come.
//! - By the action `stop`, which takes out whoever is there, passes on what they have left behind
//!   for [`FAREWELL`] at most, and takes its turn as well if it can.
//! - By SIGTERM or SIGINT, or when its worker or its namespace helper fails: what is needed to go on stays, and
//!   the next process takes it up, as it does after SIGKILL.
//!
//! # Invariants
//!
//! - One process a network: it holds a lock on `lock` in the network's directory while it lives.
//! - What is in `state.json` was so a moment ago: it is written before an action is answered.
//!
//! # Limits
//!
//! A definition is read at the start. Changing it needs the network to be stopped.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use cnet_tap::fork::fork;
use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::dns::Nameserver;
use crate::ipam::Ipam;
use crate::logging::report;
use crate::ns_helper::NsHelperClient;
use crate::server::Busy;
use cnet::definition::{Definition, Directories, HostRoutes, Store, runtime};
use cnet::log;
use cnet::network::ENDING;
use cnet::start::READY;
use cnet_dataplane::NetworkConfig;
use cnet_tap::helper::NsHelper;
use cnet_tap::inherited_fd;

mod answers;
mod attach;
pub mod dns;
mod hub;
mod instance;
pub mod ipam;
mod life;
pub mod logging;
mod machine;
mod names;
mod neighbours;
pub mod ns_helper;
pub mod published;
pub mod server;
pub mod state;
pub mod vm_endpoint;

pub use attach::{SHORT_ID, random_id};
use hub::{Door, Hub};
pub use instance::{Forwards, Instance, InstanceBuilder, InstanceError, Joining};
use names::SharedNames;
use neighbours::Neighbours;

/// How long it waits for a first container.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it stays after the last container has left, for the next one of a script.
const LINGER: Duration = Duration::from_millis(500);

/// How long it stays for what containers had sent to its end when they left, and far ends have not
/// taken yet (`nat/src/tcp/orphan.rs`). Nobody waits for it meanwhile.
const DELIVERY: Duration = Duration::from_secs(60);

/// The same after a client has asked for the end, from then on: clients wait for that to come.
const FAREWELL: Duration = Duration::from_secs(3);
const _: () = assert!(FAREWELL.as_millis() + LINGER.as_millis() < ENDING.as_millis());

/// How often something is looked for that nobody tells.
const POLL: Duration = Duration::from_millis(2);

/// The program. `network` is the network's name.
pub fn main(network: &str) -> ExitCode {
    match detach() {
        Ok(true) => {}
        Ok(false) => return ExitCode::SUCCESS,
        Err(error) => return fail(&error.context("cannot start the network process")),
    }
    match own_log(network) {
        Some(log) => logging::start_into(tracing::Level::INFO, Mutex::new(log)),
        None => logging::start(tracing::Level::INFO),
    }
    match live(network) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Standard error, if that is the network's log. One that is closed is nobody's.
fn own_log(network: &str) -> Option<log::Bounded> {
    let directories = Directories::of_this_user().ok()?;
    let path = runtime::log(&directories.network_runtime(network));
    log::Bounded::of(io::stderr(), &path).ok().flatten()
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let text = report(error);
    tracing::error!("{text}");
    // Whoever waits for us to be ready reads this; later it goes nowhere.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::FAILURE
}

/// Leaves the client's session, directory and descriptors, and the client: `false` in the process
/// that it waits for.
fn detach() -> anyhow::Result<bool> {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&number| number > 2)
        .collect();
    for number in open {
        // The descriptor of the directory itself is closed by now; the others are not ours.
        drop(inherited_fd::take(number));
    }
    // Fails for the leader of a process group, which a child just started is not.
    rustix::process::setsid().context("cannot leave the session")?;
    std::env::set_current_dir("/")?;
    // Started by way of /proc/self/exe, it would be called that.
    let _ = rustix::thread::set_name(c"cnet");
    Ok(fork("cannot fork")?.is_none())
}

fn live(network: &str) -> anyhow::Result<()> {
    // Before anything is opened that it should not have.
    let helper = NsHelper::start()?;
    let directories = Directories::of_this_user()?;
    let made = directories.make_network_runtime(network);
    let unusable = |(path, e): (PathBuf, io::Error)| {
        anyhow::Error::new(e).context(format!("cannot use {}", path.display()))
    };
    let directory = made.map_err(unusable)?;
    let lock = runtime::lock(&directory);
    let Some(_lock) = lock.with_context(|| format!("cannot lock {}", directory.display()))? else {
        bail!("another process serves the network `{network}` already");
    };
    let store = Store::open(directories.clone());
    let definition = store.settle(network, &HostRoutes::read())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(serve(directories, definition, helper))
}

/// What the dataplane is to be for this definition.
pub fn config(definition: &Definition) -> NetworkConfig {
    let (ipv4, ipv6) = definition.plan();
    let mut config = NetworkConfig::new(definition.mtu, ipv4, ipv6);
    config.gateway_mac = definition.gateway_mac();
    config.search = definition.dns_search.clone();
    if definition.internal {
        config.policy.ipv4 = false;
        config.policy.ipv6 = false;
    }
    config
}

async fn serve(
    directories: Directories,
    definition: Definition,
    helper: NsHelper,
) -> anyhow::Result<()> {
    // Before anybody is told that we are ready, so that none of these is lost.
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let ns_helper = NsHelperClient::new(helper)?;
    let ipam = Ipam::load(directories.leases(&definition.name), &definition)?;
    let names = SharedNames::new(&definition);
    let neighbours = Neighbours::new(Store::open(directories.clone()), &definition.name);
    let config = config(&definition);
    let instance = Instance::builder(config.clone()).names(names.local(&definition, neighbours));
    let instance = match definition.internal {
        true => instance.without_dns_upstreams(),
        false => {
            let servers = definition.dns.iter().copied().map(Nameserver::from);
            instance.dns_servers(servers.collect())
        }
    };
    let instance = instance.start()?;
    let (name, directory) = (
        definition.name.clone(),
        directories.network_runtime(&definition.name),
    );
    let parts = hub::Parts {
        state: directories.state_file(&definition.name),
        definition,
        config,
        control: instance.control(),
        ns_helper: ns_helper.clone(),
        names,
        ipam,
    };
    let hub = Hub::new(parts);
    hub.restore().await;
    let socket = directories.socket(&name);
    let listener = server::bind(&socket)?;
    tell_ready()?;
    tracing::info!(network = name, "serves");
    let busy = Busy::default();
    let leaving = Leaving {
        hub: &hub,
        busy: &busy,
        directory: &directory,
        socket: &socket,
    };
    let failure = tokio::select! {
        () = leaving.served(listener) => None,
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        reason = instance.ended() => Some(reason),
        () = ns_helper.ended() => Some("the namespace helper has ended".to_owned()),
    };
    hub.save().await;
    hub.flush().await;
    let stopped = instance.stop();
    tracing::info!(network = name, "ends");
    match failure {
        Some(reason) => Err(anyhow::Error::msg(reason)),
        None => Ok(stopped?),
    }
}

/// Lets the client go on. What is written to standard output from here on goes nowhere.
fn tell_ready() -> anyhow::Result<()> {
    let mut out = io::stdout();
    // A client that is gone is no reason not to serve the next one.
    let _ = out.write_all(READY.as_bytes()).and_then(|()| out.flush());
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null).context("cannot let go of standard output")
}

/// What is needed to leave in order.
struct Leaving<'a> {
    hub: &'a Arc<Hub>,
    busy: &'a Busy,
    directory: &'a Path,
    socket: &'a Path,
}

impl Leaving<'_> {
    /// Serves clients until nobody needs the network any more.
    async fn served(&self, listener: UnixListener) {
        let door = Arc::new(Door(Arc::clone(self.hub)));
        let serving = server::serve(listener, door, self.busy.clone());
        tokio::pin!(serving);
        tokio::select! {
            () = &mut serving => {}
            () = self.needless() => {}
        }
        // The listener is closed with `serving`. Who waits to be accepted is turned away, and starts
        // the next process once this one has ended.
        let _ = fs::remove_file(self.socket);
    }

    /// Waits until nobody needs the network, and takes the turn at its directory, which keeps
    /// clients from starting another process until this one has ended.
    async fn needless(&self) {
        let mut changes = self.hub.changes();
        let mut patience = PATIENCE;
        loop {
            if self.hub.is_stopped() {
                return self.stopped().await;
            }
            if !self.hub.is_empty() {
                patience = LINGER;
                // The sender is the hub's own.
                let _ = changes.changed().await;
            } else if timeout(patience, changes.changed()).await.is_err() {
                // Somebody may come meanwhile.
                let delivered = timeout(DELIVERY, self.hub.delivered());
                tokio::select! {
                    _ = delivered => {}
                    _ = changes.changed() => continue,
                }
                self.until_quiet().await;
                if self.hub.is_empty() && self.take_turn() {
                    return;
                }
            }
        }
    }

    /// Takes everybody out. Clients hear meanwhile that the network is ending.
    async fn stopped(&self) {
        let begun = Instant::now();
        self.until_quiet().await;
        self.hub.detach_all().await;
        // What far ends do not take in time is reset with the dataplane.
        let _ = timeout_at(begun + FAREWELL, self.hub.delivered()).await;
        // Whoever has the turn finds us here, and gives it back soon. If not, the next process
        // waits for our lock.
        let asked = Instant::now();
        while !self.take_turn() && asked.elapsed() < LINGER {
            sleep(POLL).await;
        }
    }

    /// Lets clients read their answers, but does not wait for ever.
    async fn until_quiet(&self) {
        let begun = Instant::now();
        while self.busy.connections() > 0 && begun.elapsed() < LINGER {
            sleep(POLL).await;
        }
    }

    /// The turn is given back by the end of this process.
    fn take_turn(&self) -> bool {
        let Ok(directory) = File::open(self.directory) else {
            // Somebody has removed it, and nobody can find us.
            return true;
        };
        let taken = flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok();
        if taken {
            std::mem::forget(directory);
        }
        taken
    }
}
