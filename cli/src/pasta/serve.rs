//! The network's process: opens what it needs in the namespace, enters the sandbox, and serves until
//! the namespace is gone.

use std::ops::RangeInclusive;
use std::sync::Arc;

use anyhow::Context;
use cnet_dataplane::PortDevice;
use cnet_netd::Instance;
use cnet_netd::outside::{Host, HostFiles};
use cnet_tap::sandbox::{Mode, Policy, Role};
use cnet_tap::socket::Diagnostics;
use cnet_tap::{Namespaces, SocketHelper, Tap};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use super::args::{self, Options};
use super::capture::Capture;
use super::control::{self, ControlSocket};
use super::forwards::{Forwards, SCAN_INTERVAL, Sides};
use super::outwards::Outwards;
use super::plan::Plan;
use crate::program::event_loop;
use crate::target::Target;

/// What was opened in the namespace.
struct Inside {
    tap: Tap,
    socket_helper: Option<SocketHelper>,
    /// For the ports of the namespace's loopback, and for what listens there.
    loopback_helper: Option<SocketHelper>,
    target: Target,
    /// What tells of the host's sockets.
    host: Option<Diagnostics>,
    capture: Option<Capture>,
}

/// Runs the network. `ready` is called once, when all is there.
///
/// # Errors
///
/// Why there is no network, or why it has failed.
pub(super) fn run(
    options: &Options,
    plan: Plan,
    (target, namespaces): (Target, Namespaces),
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    cnet_dataplane::check_descriptors()?;
    let name = &plan.interface_name;
    let interface = Some(&plan.interface);
    let tap = cnet_tap::open_tap_in(&namespaces, name, plan.config.workers, interface)?;
    let inside = Inside {
        tap,
        socket_helper: (options.splice)
            .then(|| cnet_dataplane::start_socket_helper(&namespaces))
            .flatten(),
        loopback_helper: needs_loopback_helper(options)
            .then(|| SocketHelper::start(&namespaces))
            .transpose()?,
        target,
        host: Diagnostics::open().ok(),
        capture: { options.pcap.as_deref() }
            .map(|path| Capture::open(path, &namespaces, name))
            .transpose()?,
    };
    drop(namespaces);
    let host = host(options, &inside.target)?;
    event_loop()?.block_on(serve(options, plan, inside, host, ready))
}

/// Whether anything of the namespace's loopback, or what listens in the namespace, is to be known.
fn needs_loopback_helper(options: &Options) -> bool {
    let ports = &options.ports;
    options.control.is_some()
        || !ports.outwards.is_empty()
        || ports.inwards.iter().any(|rule| rule.scan)
}

/// Ports that the host's kernel chooses by itself (ip(7)).
fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let text = text.unwrap_or_default();
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => 32768..=60999,
    }
}

/// What is asked of the host while the program runs, which no file is in sight of then.
fn host(options: &Options, target: &Target) -> anyhow::Result<Host> {
    let files = HostFiles {
        watched: target.watched(),
        socket: options
            .control
            .as_deref()
            .map(control::absolute)
            .transpose()?,
    };
    Ok(match options.sandbox {
        Mode::Off => Host::here(files),
        Mode::Offered | Mode::Required => Host::outside(files)?,
    })
}

/// What the sandbox is to be. Ports below 1024 may be published at any time.
fn sandbox(options: &Options) -> Policy {
    let mut policy = Policy::new(Role::Private, options.sandbox);
    policy.binds_low_ports = !options.ports.inwards.is_empty() || options.control.is_some();
    policy.environment = cnet_dataplane::ENVIRONMENT.to_vec();
    policy
}

// Longer than 60 lines: the order of the steps is the contract with the caller.
async fn serve(
    options: &Options,
    plan: Plan,
    inside: Inside,
    host: Host,
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // Before readiness is told, so that none of these is lost.
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let is_command = matches!(options.target, args::Target::Command(_));
    let gone = inside.target.watch(host.clone())?;
    let gone = async {
        match options.quit {
            true => gone.await,
            false => std::future::pending().await,
        }
    };
    let socket = options.control.as_deref();
    let socket = socket.map(|path| ControlSocket::bind(path, host.clone()));
    let socket = socket.transpose()?;
    let ephemeral = ephemeral_ports();
    let own = (plan.port.ipv4, plan.port.ipv6);
    let instance = Instance::builder(plan.config)
        .dns_servers(plan.dns_servers)
        .sandbox(sandbox(options), host.clone())
        .start()?;
    let device = PortDevice::Tap(inside.tap);
    let joined = instance.join(plan.port, device, inside.socket_helper);
    let (_, port_end) = joined.await?;
    let (outwards, found) = Outwards::new(inside.loopback_helper).await?;
    let sides = Sides {
        control: instance.control(),
        outwards,
        host: inside.host,
        inside: found,
        ephemeral,
    };
    let forwards = Forwards::open(options, sides, own, plan.interfaces).await?;
    let forwards = Arc::new(Mutex::new(forwards));
    if let Some(capture) = inside.capture {
        tokio::spawn(async move {
            if let Err(error) = capture.run().await {
                tracing::warn!(%error, "packets are not written any more");
            }
        });
    }
    ready()?;
    let ended = instance.ended_with(port_end);
    let serving = async {
        match &socket {
            Some(socket) => socket.serve(Arc::clone(&forwards)).await,
            None => std::future::pending().await,
        }
    };
    let failure = tokio::select! {
        // The terminal's ^C is for the command.
        _ = interrupt.recv(), if !is_command => None,
        _ = terminate.recv() => None,
        () = gone => None,
        () = serving => None,
        () = follow(&forwards) => None,
        reason = ended => Some(reason),
    };
    drop(socket);
    let stopped = instance.stop();
    match failure {
        Some(reason) => Err(anyhow::Error::msg(reason)),
        None => Ok(stopped?),
    }
}

/// Follows what listens, for as long as any rule asks for it.
async fn follow(forwards: &Mutex<Forwards>) {
    let mut due = interval(SCAN_INTERVAL);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is at once, and that is done.
    due.tick().await;
    loop {
        due.tick().await;
        let mut forwards = forwards.lock().await;
        if forwards.scans() {
            forwards.scan().await;
        }
    }
}
