//! `cnet ps`: who is where.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::table::table;
use crate::control::{ContainerReport, PublishedPort};
use crate::handle::Network;
use crate::network::{Directories, Store};
use crate::registry::{Registry, Running};

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

/// One line.
#[derive(Serialize)]
struct Entry {
    network: String,
    #[serde(flatten)]
    container: ContainerReport,
}

/// Prints the containers of all networks that run, and those that `cnet run` holds elsewhere.
pub(super) async fn ps(options: PsOptions) -> anyhow::Result<()> {
    let mut entries = Vec::new();
    for network in networks(options.network.as_deref())? {
        let Some(report) = network.inspect().await? else {
            continue;
        };
        entries.extend(report.containers.into_iter().map(|container| Entry {
            network: report.name.clone(),
            container,
        }));
    }
    if options.network.is_none() {
        let registry = Registry::new(&Directories::of_this_user()?);
        let known = |running: &Running| entries.iter().any(|e| e.container.id == running.id);
        let others: Vec<Running> = registry.list().into_iter().filter(|r| !known(r)).collect();
        entries.extend(others.into_iter().map(held));
    }
    let text = match options.format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&entries)?),
        Format::Table => table(&lines(&entries)),
    };
    super::print(&text)?;
    Ok(())
}

/// A container that `cnet run` holds, and no network's process knows.
fn held(running: Running) -> Entry {
    let container = ContainerReport {
        id: running.id,
        name: running.name,
        aliases: Vec::new(),
        pid: Some(running.pid),
        path: None,
        vm: None,
        interface: String::new(),
        mac: String::new(),
        ipv4: None,
        ipv6: None,
        ports: Vec::new(),
    };
    Entry {
        network: running.network,
        container,
    }
}

/// The network of that name, or all of them.
pub(super) fn networks(name: Option<&str>) -> anyhow::Result<Vec<Network>> {
    if let Some(name) = name {
        return Ok(vec![Network::open(name)?]);
    }
    let directories = Directories::of_this_user()?;
    let all = Store::open(directories.clone()).list()?;
    let networks = all.into_iter();
    Ok(networks
        .map(|definition| Network::new(definition, directories.clone()))
        .collect())
}

fn lines(entries: &[Entry]) -> Vec<Vec<String>> {
    let heading = ["NAME", "NETWORK", "PID", "INTERFACE", "ADDRESSES", "PORTS"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    for Entry { network, container } in entries {
        let addresses: Vec<&str> = container
            .ipv4
            .iter()
            .chain(&container.ipv6)
            .map(String::as_str)
            .collect();
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
