//! The command's own network, in a process of its own.
//!
//! # Theory of operation
//!
//! What reads the command's frames is not the process that looks after the command: that one has the
//! user's files and signals, this one is in the sandbox ([`cnet_tap::sandbox`]). It is forked with
//! the TAP before there is any thread, starts the network, publishes the ports and says that it is
//! ready. After that the two talk over a socket pair, a byte a message: [`DELIVERED`] asks for, and
//! tells, that the host's kernel has all that the command has sent.
//!
//! # Invariants
//!
//! - The network ends with the socket: when this program closes its end, or is killed.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use cnet::control::PublishedPort;
use cnet::{AutoPublish, Protocol};
use cnet_dataplane::{NetworkConfig, OpenForward, PortDevice, PortId, PortPlan, STOPPED};
use cnet_netd::Instance;
use cnet_netd::auto_ports::{self, AutoPorts};
use cnet_netd::forward::{ContainerAddresses, OpenError, has_it, published};
use cnet_netd::holder::holder;
use cnet_netd::outside::{Host, HostFiles};
use cnet_tap::async_fd::AsyncOwnedFd;
use cnet_tap::fork::spawn;
use cnet_tap::sandbox::{self, Isolated, Isolation, Mode, Policy, Role, spawn_isolated};
use cnet_tap::{SocketHelper, Tap};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::time::timeout;

use super::args::RunOptions;
use super::process;
use crate::log::report;
use crate::program::{event_loop, tell};
use crate::publish_option::PublishOption;
use cnet_netd::registry::MAX_PORTS;

/// What `ps` shows of the process.
const TITLE: &str = "cnet: network";

/// The first byte of the message that the network is there; its published ports follow, as JSON.
const READY: u8 = b'r';
/// The first byte of a message with the reason why it is not.
const FAILED: u8 = b'f';
/// The first byte of a message with some of the published ports, as JSON, before [`READY`].
const PORTS: u8 = b'p';
/// The first byte of a message with the reason why there is no network, which is that a port is taken:
/// its protocol, a space, its address and a newline stand before the text.
const TAKEN: u8 = b't';
/// Asks, and tells, that what the command has sent is delivered.
const DELIVERED: u8 = b'd';

/// The longest message: an error's text.
const MAX_MESSAGE: usize = 16 * 1024;

/// Ports of one message; each takes some hundred bytes of JSON.
const PORTS_A_MESSAGE: usize = 64;

/// How soon a message is sent again that the socket had no room for.
const ROOM_INTERVAL: Duration = Duration::from_millis(1);

/// How long the process may take to reset connections and end.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// The first port that any user may bind, unless the host says otherwise (ip(7)).
const FIRST_ORDINARY_PORT: u16 = 1024;

/// What the network is made of.
pub(super) struct Parts {
    pub(super) config: NetworkConfig,
    pub(super) port: PortPlan,
    pub(super) tap: Tap,
    pub(super) socket_helper: Option<SocketHelper>,
}

/// The process that was forked, before it is heard.
pub(super) struct Started {
    pid: Pid,
    socket: OwnedFd,
    /// All processes of the network.
    processes: Vec<Pid>,
}

/// Forks the process. This one keeps none of the parts.
pub(super) fn start(options: &RunOptions, parts: Parts) -> anyhow::Result<Started> {
    let files = HostFiles::default();
    let host = match options.sandbox.mode() {
        Mode::Off => Host::here(files),
        Mode::Offered | Mode::Required => Host::outside(files)?,
    };
    let helpers = [
        host.helper().and_then(Pid::from_raw),
        parts.socket_helper.as_ref().map(SocketHelper::pid),
    ];
    let mut parts = Some(parts);
    let what = "cannot fork the network's process";
    let (pid, socket) = match options.sandbox.mode() {
        Mode::Off => spawn(what, |parent, socket| {
            if parent.die_together().is_err() {
                return 1;
            }
            live(options, host.clone(), parts.take(), None, socket)
        })?,
        Mode::Offered | Mode::Required => {
            let low = binds_low_ports(&options.publish);
            let live = |isolated: Isolated, socket| {
                let isolation = Some(isolated.isolation);
                live(options, host.clone(), parts.take(), isolation, socket)
            };
            spawn_isolated(what, low, live)?
        }
    };
    if let Some(helper) = parts.and_then(|parts| parts.socket_helper) {
        helper.let_go();
    }
    let processes = helpers.into_iter().flatten().chain([pid]).collect();
    Ok(Started {
        pid,
        socket,
        processes,
    })
}

fn binds_low_ports(publish: &[PublishOption]) -> bool {
    let first = |option: &PublishOption| match option {
        PublishOption::Ports(spec) => spec.host_ports().map(|ports| *ports.start()),
        // What the command will listen on is not known.
        PublishOption::Auto(_) => Some(1),
    };
    let mut first = publish.iter().filter_map(first);
    first.any(|port| port < FIRST_ORDINARY_PORT)
}

/// The process's life.
fn live(
    options: &RunOptions,
    host: Host,
    parts: Option<Parts>,
    isolation: Option<Isolation>,
    socket: OwnedFd,
) -> u8 {
    let Some(parts) = parts else {
        return 1;
    };
    leave(&parts, &host, &socket);
    let mut policy = Policy::new(Role::Private, options.sandbox.mode());
    policy.binds_low_ports = binds_low_ports(&options.publish);
    policy.environment = cnet_dataplane::ENVIRONMENT.to_vec();
    policy.isolation = isolation;
    let served = AsyncSocket::in_loop(socket, async |socket| {
        match bring(options, (policy, host), parts).await {
            Ok((brought, ended)) => {
                // `cnet ps` shows the first ones, a file has all.
                let told = match options.publish_file {
                    Some(_) => usize::MAX,
                    None => MAX_PORTS,
                };
                let ports = brought.opened.iter().flat_map(published);
                let ports: Vec<_> = ports.take(told).collect();
                tell_ports(socket, &ports).await?;
                socket.send(&[&[READY]])?;
                let auto = PublishOption::auto(&options.publish);
                serve(&brought, ended, auto, socket).await;
                let stopped = brought.instance.stop();
                stopped.context("the network did not end in order")
            }
            Err(error) => {
                let (kind, taken) = match error.downcast_ref().and_then(OpenError::conflict) {
                    Some((protocol, at)) => (TAKEN, format!("{protocol} {at}\n")),
                    None => (FAILED, String::new()),
                };
                let text = report(&error);
                let cut = text.len().min(MAX_MESSAGE - 1 - taken.len());
                socket.send(&[&[kind], taken.as_bytes(), &text.as_bytes()[..cut]])
            }
        }
    });
    u8::from(served.is_err())
}

/// Tells the published ports.
async fn tell_ports(socket: &AsyncSocket, ports: &[PublishedPort]) -> anyhow::Result<()> {
    for some in ports.chunks(PORTS_A_MESSAGE) {
        let json = serde_json::to_vec(some)?;
        socket.send_all(&[&[PORTS], &json]).await?;
    }
    Ok(())
}

/// Leaves the command's terminal, output and descriptors behind.
fn leave(parts: &Parts, host: &Host, socket: &OwnedFd) {
    // Fails for the leader of a process group, which a child is not.
    let _ = rustix::process::setsid();
    if let Ok(null) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
    {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
    let queues = parts
        .tap
        .queues
        .iter()
        .map(|queue| queue.as_fd().as_raw_fd());
    let helper = parts
        .socket_helper
        .iter()
        .flat_map(SocketHelper::descriptors);
    let kept = queues.chain(helper).chain(host.descriptor());
    let kept: Vec<RawFd> = kept.chain([socket.as_raw_fd()]).collect();
    sandbox::begin(TITLE, &kept);
}

/// A network that runs, with the command on it.
struct Brought {
    instance: Instance,
    port: PortId,
    addresses: ContainerAddresses,
    /// The published ports that were asked for by their numbers.
    opened: Vec<OpenForward>,
}

/// Starts the network, and gives what tells of its failure.
async fn bring(
    options: &RunOptions,
    (policy, host): (Policy, Host),
    mut parts: Parts,
) -> anyhow::Result<(Brought, impl Future<Output = String> + use<>)> {
    if parts.tap.lacks_ipv6 {
        tell("IPv6 is switched off in new network namespaces here: the command has IPv4 alone");
        parts.port.ipv6 = None;
    }
    let addresses = ContainerAddresses {
        ipv4: parts.port.ipv4,
        ipv6: parts.port.ipv6,
    };
    let instance = Instance::builder(parts.config)
        .dns_servers(options.names.dns.clone())
        .dns_stale(Duration::from_secs(options.dns_stale.into()))
        .sandbox(policy, host)
        .start()?;
    let device = PortDevice::Tap(parts.tap);
    let joined = instance.join(parts.port, device, parts.socket_helper);
    let (port, port_end) = joined.await?;
    let specs = PublishOption::specs(&options.publish);
    let opened = instance.forwards().open(addresses, &specs).await?;
    tell_chosen(&opened);
    let ended = instance.ended_with(port_end);
    let brought = Brought {
        instance,
        port,
        addresses,
        opened,
    };
    Ok((brought, ended))
}

/// Publishes what the command listens on, as long as the network runs.
async fn follow_listeners(brought: &Brought, auto: Option<AutoPublish>) {
    let Some(auto) = auto else {
        return std::future::pending().await;
    };
    let mut ports = AutoPorts::new(auto, []);
    let (control, at) = (
        brought.instance.control(),
        (brought.port, brought.addresses),
    );
    loop {
        let others = brought.opened.iter().copied();
        let step = ports.step(&control, at, others);
        for open in step.await.map(|changes| changes.opened).unwrap_or_default() {
            tracing::info!("{} is published, as the command listens on it", open.bound);
        }
        tokio::time::sleep(auto_ports::INTERVAL).await;
    }
}

/// Serves until this program's other part closes its end.
async fn serve(
    brought: &Brought,
    ended: impl Future<Output = String>,
    auto: Option<AutoPublish>,
    socket: &AsyncSocket,
) {
    let failure = async {
        let reason = ended.await;
        if reason != STOPPED {
            tell(&format!("the network has failed: {reason}"));
        }
        std::future::pending().await
    };
    let requests = async {
        while let Ok(Some(_)) = socket.receive().await {
            brought.instance.delivered().await;
            if socket.send(&[&[DELIVERED]]).is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = failure => {}
        () = requests => {}
        () = follow_listeners(brought, auto) => {}
    }
}

/// Tells which ports were chosen.
fn tell_chosen(opened: &[OpenForward]) {
    for OpenForward { rule, bound, .. } in opened {
        let port = rule.container.port;
        tracing::info!("{bound} leads to port {port}/{}", rule.protocol);
        if rule.host.port() == 0 {
            tell(&format!("{bound} leads to port {port}/{}", rule.protocol));
        }
    }
}

/// One end of the conversation.
struct AsyncSocket(AsyncOwnedFd);

impl AsyncSocket {
    fn new(socket: OwnedFd) -> anyhow::Result<AsyncSocket> {
        let socket = AsyncOwnedFd::new(socket, Interest::READABLE);
        Ok(AsyncSocket(
            socket.context("cannot talk to the network's process")?,
        ))
    }

    /// Runs an event loop of this thread with it.
    fn in_loop(
        socket: OwnedFd,
        serve: impl AsyncFnOnce(&AsyncSocket) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        event_loop()?.block_on(async { serve(&AsyncSocket::new(socket)?).await })
    }

    /// A few bytes, which there is always room for.
    fn send(&self, pieces: &[&[u8]]) -> anyhow::Result<()> {
        let flags = SendFlags::empty();
        cnet_tap::unix::send(self.0.fd(), pieces, &[], flags)
            .context("cannot talk to the network's process")?;
        Ok(())
    }

    /// As [`AsyncSocket::send`], where there may be no room for a while.
    async fn send_all(&self, pieces: &[&[u8]]) -> anyhow::Result<()> {
        loop {
            match cnet_tap::unix::send(self.0.fd(), pieces, &[], SendFlags::empty()) {
                Err(Errno::AGAIN | Errno::NOBUFS) => tokio::time::sleep(ROOM_INTERVAL).await,
                sent => {
                    break sent
                        .map(drop)
                        .context("cannot talk to the network's process");
                }
            }
        }
    }

    /// The next message; `None` once the other end is closed.
    async fn receive(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        loop {
            let mut ready = self.0.ready().await?;
            match rustix::net::recv(self.0.fd(), &mut bytes, RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(None),
                Ok((_, length)) => {
                    bytes.truncate(length);
                    return Ok(Some(bytes));
                }
                Err(Errno::AGAIN | Errno::INTR) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The network, seen from the process that looks after the command.
pub(super) struct PrivateNetwork {
    pid: Pid,
    socket: Arc<AsyncSocket>,
    processes: Vec<Pid>,
    /// Whether all is delivered; closed once the process is gone.
    delivered: watch::Receiver<bool>,
    ending: Arc<AtomicBool>,
    listening: tokio::task::AbortHandle,
}

impl PrivateNetwork {
    /// Waits until the network is there, and gives the published ports as well if it was asked to tell
    /// them.
    ///
    /// # Errors
    ///
    /// The reason why it is not.
    pub(super) async fn ready(
        started: Started,
    ) -> anyhow::Result<(PrivateNetwork, Vec<PublishedPort>)> {
        let socket = Arc::new(AsyncSocket::new(started.socket)?);
        let ports = wait_for_ready(&socket).await?;
        let (sender, delivered) = watch::channel(false);
        let ending = Arc::new(AtomicBool::new(false));
        let listen = listen(Arc::clone(&socket), sender, Arc::clone(&ending));
        let network = PrivateNetwork {
            pid: started.pid,
            socket,
            processes: started.processes,
            delivered,
            ending,
            listening: tokio::spawn(listen).abort_handle(),
        };
        Ok((network, ports))
    }

    /// All its processes, which are children of this one.
    pub(super) fn processes(&self) -> &[Pid] {
        &self.processes
    }

    /// Waits until the host's kernel has all that the command has sent.
    pub(super) async fn delivered(&self) {
        if self.socket.send(&[&[DELIVERED]]).is_ok() {
            let mut delivered = self.delivered.clone();
            // An error is the end of the process, after which nothing comes.
            let _ = delivered.wait_for(|delivered| *delivered).await;
        }
    }

    /// Resets all connections and waits for the end.
    pub(super) async fn end(self) {
        self.ending.store(true, Ordering::Release);
        let PrivateNetwork { pid, socket, .. } = self;
        // Hearing goes on, of the process's end.
        let _ = rustix::net::shutdown(socket.0.fd(), rustix::net::Shutdown::Write);
        let gone = timeout(END_TIMEOUT, async {
            let mut delivered = self.delivered;
            while delivered.changed().await.is_ok() {}
        });
        let _ = gone.await;
        self.listening.abort();
        // The helpers end with it, but are to be reaped by no other.
        process::kill_child(pid);
        self.processes.into_iter().for_each(process::kill_child);
    }
}

/// Hears what the network's process says before it serves: the published ports, and that it is ready.
async fn wait_for_ready(socket: &AsyncSocket) -> anyhow::Result<Vec<PublishedPort>> {
    let mut ports = Vec::new();
    loop {
        let message = socket.receive().await?;
        match message.as_deref().and_then(<[u8]>::split_first) {
            Some((&READY, _)) => return Ok(ports),
            Some((&PORTS, json)) => {
                let some: Vec<PublishedPort> = serde_json::from_slice(json)?;
                ports.extend(some);
            }
            Some((&FAILED, text)) => bail!("{}", String::from_utf8_lossy(text)),
            Some((&TAKEN, text)) => bail!("{}", with_holder(&String::from_utf8_lossy(text))),
            _ => return Err(anyhow!("the network's process ended before it was ready")),
        }
    }
}

/// The text of a message that a port is taken, with the program that has it: unlike the network's
/// process this one sees the host's.
fn with_holder(message: &str) -> String {
    let (taken, text) = message.split_once('\n').unwrap_or(("", message));
    let port = taken.split_once(' ').and_then(|(protocol, at)| {
        let protocol: Protocol = protocol.parse().ok()?;
        Some((protocol, at.parse().ok()?))
    });
    let holder = port.and_then(|(protocol, at)| holder(protocol, at));
    format!("{text}{}", has_it(holder.as_deref()))
}

/// Hears what the network's process says, until its end, of which the user is told.
async fn listen(socket: Arc<AsyncSocket>, delivered: watch::Sender<bool>, ending: Arc<AtomicBool>) {
    while let Ok(Some(message)) = socket.receive().await {
        delivered.send_replace(message.first() == Some(&DELIVERED));
    }
    if !ending.load(Ordering::Acquire) {
        tell("the network has failed: its process has ended");
    }
}
