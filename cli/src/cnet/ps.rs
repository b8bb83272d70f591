//! `cnet ps`: which container is where.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::table::table;
use crate::each_network::one_or_each;
use crate::program::{all_of, tell};
use cnet::control::{ContainerReport, PublishedPort};
use cnet::definition::{Directories, HostRoutes, Store};
use cnet::network::Network;
use cnet_netd::registry::{Registry, Running, is_meant_by};

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The options of `cnet ps`.
#[derive(Args, Debug)]
pub(crate) struct PsOptions {
    /// Only this network.
    #[arg(long, value_name = "NET")]
    network: Option<String>,

    /// How to print it.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// A container and the network it is on.
#[derive(Clone, Serialize)]
pub(super) struct Entry {
    pub(super) network: String,
    #[serde(flatten)]
    pub(super) container: ContainerReport,
}

/// Prints the containers of all networks that run, and those that `cnet run` holds elsewhere. A
/// network that cannot be asked is an error, after all others are listed.
pub(super) async fn ps(options: PsOptions) -> anyhow::Result<()> {
    let (entries, failures) = entries(options.network.as_deref()).await?;
    let text = match options.format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&entries)?),
        Format::Table => table(&lines(&entries)),
    };
    super::print(&text)?;
    warn_of_routes(&entries)?;
    all_of(failures.into_iter().map(Err))
}

/// Tells of routes of the host that came up within the subnets of networks that are in use.
fn warn_of_routes(entries: &[Entry]) -> anyhow::Result<()> {
    let routes = HostRoutes::read();
    for definition in Store::open(Directories::of_this_user()?).each()? {
        // What is wrong with a definition was told with the answers.
        let Ok(definition) = definition else { continue };
        if entries.iter().any(|e| e.network == definition.name) {
            for told in definition.hidden_routes(&routes) {
                tell(&told);
            }
        }
    }
    Ok(())
}

/// The containers on the network of that name, or all; and what is wrong with the networks that do
/// not tell.
pub(super) async fn entries(
    network: Option<&str>,
) -> anyhow::Result<(Vec<Entry>, Vec<anyhow::Error>)> {
    let mut entries = Vec::new();
    let ask = |network: Network| async move { network.inspect().await };
    let answers = one_or_each(network, ask).await?;
    for report in answers.given {
        entries.extend(report.containers.into_iter().map(|container| Entry {
            network: report.name.clone(),
            container,
        }));
    }
    if network.is_none() {
        let registry = Registry::new(&Directories::of_this_user()?);
        let known = |running: &Running| entries.iter().any(|e| e.container.id == running.id);
        let others: Vec<Running> = registry.list().into_iter().filter(|r| !known(r)).collect();
        entries.extend(others.into_iter().map(held));
    }
    Ok((entries, answers.failures))
}

impl Entry {
    /// Whether `name` is the container's name, its process, or a start of its id of at least four
    /// digits.
    pub(super) fn is_meant_by(&self, name: &str) -> bool {
        let c = &self.container;
        is_meant_by(name, (&c.name, &c.id, c.pid))
    }
}

/// A container that `cnet run` holds, and no network's process knows.
fn held(running: Running) -> Entry {
    let mut container = ContainerReport::new(running.id, running.name);
    container.pid = Some(running.pid);
    Entry {
        network: running.network,
        container,
    }
}

fn lines(entries: &[Entry]) -> Vec<Vec<String>> {
    let heading = ["NAME", "NETWORK", "PID", "INTERFACE", "ADDRESSES", "PORTS"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    for Entry { network, container } in entries {
        let ipv4 = container.ipv4.iter().map(ToString::to_string);
        let ipv6 = container.ipv6.iter().map(ToString::to_string);
        let addresses: Vec<String> = ipv4.chain(ipv6).collect();
        let ports: Vec<String> = container.ports.iter().map(port).collect();
        lines.push(vec![
            container.name.clone(),
            network.clone(),
            container.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            container.interface.clone(),
            addresses.join(" "),
            ports.join(", "),
        ]);
    }
    lines
}

fn port(port: &PublishedPort) -> String {
    format!("{}->{}/{}", port.host, port.container.port(), port.protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_meant_by_what_is_its_own_and_shown_in_a_line() {
        let entry = held(Running {
            id: "ab".repeat(32),
            name: "web".to_owned(),
            pid: 4711,
            start_time: 1,
            network: "none".to_owned(),
        });
        for meant in ["web", "abab", "4711"] {
            assert!(entry.is_meant_by(meant), "{meant}");
        }
        for other in ["we", "aba", "abb0", "471", ""] {
            assert!(!entry.is_meant_by(other), "{other}");
        }
        let shown = table(&lines(&[entry]));
        let line: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line, ["web", "none", "4711"]);
    }
}
