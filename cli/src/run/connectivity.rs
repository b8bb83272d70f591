//! The command's network while it runs: brought up, kept alive and taken down.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use cnet_tap::{Namespaces, watch};
use rustix::process::{Pid, getpid};

use super::plan::ConnectivityPlan;
use super::private::{PrivateNetwork, Started};
use cnet::control::{Attach, ContainerReport, PublishedPort};
use cnet::definition::file;
use cnet::network::{Network, Target};

/// The command's network, as it was brought up.
pub(super) enum Connectivity {
    /// Nothing.
    Nothing,
    /// A network of the command's own.
    Private(PrivateNetwork),
    /// Memberships of named networks.
    Networks(Vec<Membership>),
}

/// A membership of a named network.
pub(super) struct Membership {
    network: Network,
    /// The container's name there.
    name: String,
    /// The network's process, which may be our child since we started it again.
    process: Arc<AtomicU32>,
}

impl Connectivity {
    /// Gives the child its network, and writes the published ports to `publish_file`. `private` is the
    /// process of a network of the child's own.
    pub(super) async fn bring(
        plan: ConnectivityPlan,
        private: Option<Started>,
        child: Pid,
        publish_file: Option<&Path>,
    ) -> anyhow::Result<(Connectivity, Vec<PublishedPort>)> {
        let (connectivity, ports) = Connectivity::bring_up(plan, private, child).await?;
        if let Some(path) = publish_file {
            write_ports(path, &ports)?;
        }
        Ok((connectivity, ports))
    }

    async fn bring_up(
        plan: ConnectivityPlan,
        private: Option<Started>,
        child: Pid,
    ) -> anyhow::Result<(Connectivity, Vec<PublishedPort>)> {
        match plan {
            ConnectivityPlan::None => Ok((Connectivity::Nothing, Vec::new())),
            ConnectivityPlan::Private(_) => {
                let started = private.context("the network's process was not started")?;
                let (network, ports) = PrivateNetwork::ready(started).await?;
                tracing::info!("the network runs in a process of its own");
                Ok((Connectivity::Private(network), ports))
            }
            ConnectivityPlan::Networks(plans) => {
                let (mut memberships, mut ports) = (Vec::new(), Vec::new());
                for (network, attach) in plans {
                    let (membership, opened) = join(network, attach, child).await?;
                    memberships.push(membership);
                    ports.extend(opened);
                }
                Ok((Connectivity::Networks(memberships), ports))
            }
        }
    }

    /// The network of the command's own.
    pub(super) fn private(&self) -> Option<&PrivateNetwork> {
        match self {
            Connectivity::Private(network) => Some(network),
            Connectivity::Nothing | Connectivity::Networks(_) => None,
        }
    }

    /// The processes that are not to be killed with the command's.
    pub(super) fn spared(&self) -> Vec<Pid> {
        match self {
            Connectivity::Networks(memberships) => {
                let processes = memberships.iter().map(|membership| &membership.process);
                let numbers = processes.map(|process| process.load(Ordering::Acquire));
                numbers
                    .filter_map(|pid| Pid::from_raw(pid.cast_signed()))
                    .collect()
            }
            Connectivity::Private(network) => network.processes().to_vec(),
            Connectivity::Nothing => Vec::new(),
        }
    }

    /// Takes it down.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        match self {
            Connectivity::Nothing => Ok(()),
            Connectivity::Private(network) => {
                network.end().await;
                Ok(())
            }
            Connectivity::Networks(memberships) => {
                for Membership { network, name, .. } in memberships {
                    if tracing::enabled!(tracing::Level::INFO) {
                        tell_warnings(&network, &name).await;
                    }
                    // If that fails, the network notices the end of this process.
                    if let Err(error) = network.detach(&name).await {
                        tracing::debug!(%error, "could not leave the network");
                    }
                }
                Ok(())
            }
        }
    }
}

/// Writes published ports to the file at `path`, in one step.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn write_ports(path: &Path, ports: &[PublishedPort]) -> anyhow::Result<()> {
    let text = format!("{}\n", serde_json::to_string_pretty(ports)?);
    let written = std::path::absolute(path).and_then(|path| file::replace(&path, text.as_bytes()));
    written.with_context(|| format!("cannot write the published ports to {}", path.display()))
}

/// Logs what a network has given, for `-v`.
fn tell_joined(network: &str, container: &ContainerReport) {
    let ContainerReport {
        interface, name, ..
    } = container;
    tracing::info!("{interface} is on the network `{network}`, which knows it as `{name}`");
    let ipv4 = container.ipv4.iter().map(ToString::to_string);
    for address in ipv4.chain(container.ipv6.iter().map(ToString::to_string)) {
        tracing::info!("{interface} has {address}");
    }
    for port in &container.ports {
        tracing::info!(
            "{} leads to {}/{}",
            port.host,
            port.container,
            port.protocol
        );
    }
}

/// Logs what the network says is wrong with what the container has sent, for `-v`.
async fn tell_warnings(network: &Network, name: &str) {
    let Ok(Some(report)) = network.statistics().await else {
        return;
    };
    let its_own = report.containers.iter().find(|c| c.name == name);
    for warning in its_own.iter().flat_map(|container| &container.warnings) {
        tracing::info!("{warning}");
    }
}

/// Attaches the child to a network, and keeps the network's process alive from then on.
///
/// The container's life is that of this process, not the child's: what the command had written
/// before it ended still goes out.
async fn join(
    network: Network,
    attach: Attach,
    child: Pid,
) -> anyhow::Result<(Membership, Vec<PublishedPort>)> {
    let pid = child.as_raw_nonzero().get();
    let target = Target::Descriptors {
        net: Namespaces::of_process(pid)?.net,
        pidfd: watch::pidfd(getpid().as_raw_nonzero().get())?,
        member: Some(pid),
    };
    let joined = network.attach(target, attach).await?;
    tell_joined(network.name(), &joined.container);
    let process = Arc::new(AtomicU32::new(0));
    let (keeper, told) = (network.clone(), Arc::clone(&process));
    if let Some(report) = network.inspect().await? {
        tokio::spawn(async move {
            let tell = |pid| told.store(pid, Ordering::Release);
            keeper.keep(report.pid, tell).await;
        });
    }
    let membership = Membership {
        network,
        name: joined.container.name,
        process,
    };
    Ok((membership, joined.container.ports))
}
