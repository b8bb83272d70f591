//! The command's network while it runs: brought up, kept alive and taken down.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use cnet_tap::{Namespaces, SocketHelper, Tap, watch};
use rustix::process::{Pid, getpid};

use super::args::RunOptions;
use super::plan::ConnectivityPlan;
use crate::program::tell;
use cnet::control::Attach;
use cnet::network::{Network, Target};
use cnet_dataplane::{Control, NetworkConfig, OpenForward, PortDevice, PortPlan, STOPPED};
use cnet_netd::Instance;
use cnet_netd::dns::Nameserver;
use cnet_netd::forward::ContainerAddresses;

/// The command's network, as it was brought up.
pub(super) enum Connectivity {
    /// Nothing.
    Nothing,
    /// A network of the command's own, in this process.
    Private(Instance),
    /// A membership of a named network.
    Network {
        network: Box<Network>,
        /// The container's name there.
        name: String,
        /// The network's process, which may be our child since we started it again.
        process: Arc<AtomicU32>,
    },
}

impl Connectivity {
    /// Gives the child its network. `tap` is there if the child was to make one, `socket_helper` if a
    /// network of its own has TCP ports to publish.
    pub(super) async fn bring(
        options: &RunOptions,
        plan: ConnectivityPlan,
        tap: Option<Tap>,
        socket_helper: Option<SocketHelper>,
        child: Pid,
    ) -> anyhow::Result<Connectivity> {
        match plan {
            ConnectivityPlan::None => Ok(Connectivity::Nothing),
            ConnectivityPlan::Private(private_plan) => {
                let tap = tap.context("the child sent no TAP")?;
                let (config, port) = *private_plan;
                let instance = private(options, config, port, (tap, socket_helper)).await?;
                Ok(Connectivity::Private(instance))
            }
            ConnectivityPlan::Network(attach_plan) => {
                let (network, attach) = *attach_plan;
                join(network, attach, child).await
            }
        }
    }

    /// The network that runs in this process.
    pub(super) fn control(&self) -> Option<Control> {
        match self {
            Connectivity::Private(instance) => Some(instance.control()),
            Connectivity::Nothing | Connectivity::Network { .. } => None,
        }
    }

    /// The process that is not to be killed with the command's.
    pub(super) fn spared(&self) -> Option<Pid> {
        match self {
            Connectivity::Network { process, .. } => {
                Pid::from_raw(process.load(Ordering::Acquire).cast_signed())
            }
            _ => None,
        }
    }

    /// Takes it down.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        match self {
            Connectivity::Nothing => Ok(()),
            Connectivity::Private(instance) => Ok(instance.stop()?),
            Connectivity::Network { network, name, .. } => {
                // If that fails, the network notices the end of this process.
                if let Err(error) = network.detach(&name).await {
                    tracing::debug!(%error, "could not leave the network");
                }
                Ok(())
            }
        }
    }
}

/// Starts a network for one.
async fn private(
    options: &RunOptions,
    config: NetworkConfig,
    port: PortPlan,
    (tap, socket_helper): (Tap, Option<SocketHelper>),
) -> anyhow::Result<Instance> {
    let addresses = ContainerAddresses {
        ipv4: port.ipv4,
        ipv6: port.ipv6,
    };
    let servers = options.dns.iter().copied().map(Nameserver::from);
    let instance = Instance::builder(config)
        .dns_servers(servers.collect())
        .start()?;
    let joined = instance.join(port, PortDevice::Tap(tap), socket_helper);
    let (_, port_end) = joined.await?;
    for spec in &options.publish {
        let opened = instance.forwards().open(addresses, spec).await?;
        if spec.host_ports().is_none() {
            tell_chosen(&opened);
        }
    }
    let ended = instance.ended_with(port_end);
    tokio::spawn(async move {
        let reason = ended.await;
        if reason != STOPPED {
            tell(&format!("the network has failed: {reason}"));
        }
    });
    Ok(instance)
}

/// Attaches the child to a network, and keeps the network's process alive from then on.
///
/// The container's life is that of this process, not the child's: what the command had written
/// before it ended still goes out.
async fn join(network: Network, attach: Attach, child: Pid) -> anyhow::Result<Connectivity> {
    let pid = child.as_raw_nonzero().get();
    let target = Target::Descriptors {
        net: Namespaces::of_process(pid)?.net,
        pidfd: watch::pidfd(getpid().as_raw_nonzero().get())?,
        member: Some(pid),
    };
    let joined = network.attach(target, attach).await?;
    let process = Arc::new(AtomicU32::new(0));
    let (keeper, told) = (network.clone(), Arc::clone(&process));
    if let Some(report) = network.inspect().await? {
        tokio::spawn(async move {
            let tell = |pid| told.store(pid, Ordering::Release);
            keeper.keep(report.pid, tell).await;
        });
    }
    Ok(Connectivity::Network {
        network: Box::new(network),
        name: joined.container.name,
        process,
    })
}

/// Tells which ports were chosen, each once.
fn tell_chosen(opened: &[OpenForward]) {
    let mut told = None;
    for OpenForward { rule, bound, .. } in opened {
        let at = (rule.protocol, bound.port());
        if told.replace(at) != Some(at) {
            let port = rule.container.port();
            tell(&format!("{bound} leads to port {port}/{}", rule.protocol));
        }
    }
}
