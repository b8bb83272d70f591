//! `cnet ps`: which container is where.

use clap::Args;
use serde::Serialize;

use super::format::{Filter, Format, filled, passes, short};
use super::table::table;
use crate::each_network::one_or_each;
use crate::program::{all_of, tell};
use cnet::control::{ContainerReport, PublishedPort};
use cnet::definition::{Directories, HostRoutes, Store};
use cnet::network::Network;
use cnet_netd::registry::{Ended, Registry, Running, is_meant_by};

/// The options of `cnet ps`.
#[derive(Args, Debug)]
pub(crate) struct PsOptions {
    /// Only this network.
    #[arg(long, value_name = "NET")]
    network: Option<String>,

    /// Those of the background that have ended as well, until `cnet rm`.
    #[arg(short, long)]
    all: bool,

    /// The ids alone.
    #[arg(short, long)]
    quiet: bool,

    /// Those alone for which this holds, of name, id, network and status (`running` or `exited`); may
    /// be given several times.
    #[arg(short, long, value_name = "FIELD=VALUE")]
    filter: Vec<Filter>,

    /// How to print it: `table`, `json` or a template such as '{{.Name}}', of Name, ID, Network, PID,
    /// Interface, IPv4, IPv6, Addresses, Ports, Status, Command and Created.
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    format: Format,

    /// As --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// A line, as templates have it: all text, as Docker's are.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    name: String,
    names: String,
    #[serde(rename = "ID")]
    id: String,
    network: String,
    networks: String,
    #[serde(rename = "PID")]
    pid: String,
    interface: String,
    #[serde(rename = "IPv4")]
    ipv4: String,
    #[serde(rename = "IPv6")]
    ipv6: String,
    addresses: String,
    ports: String,
    status: String,
    command: String,
    created: String,
}

/// A container and the network it is on.
#[derive(Clone, Serialize)]
pub(super) struct Entry {
    pub(super) network: String,
    #[serde(flatten)]
    pub(super) container: ContainerReport,
    /// Whether `cnet run` alone knows it: it is on no named network.
    #[serde(skip)]
    pub(super) on_no_network: bool,
}

/// Prints the containers of all networks that run, and those that `cnet run` holds elsewhere. A
/// network that cannot be asked is an error, after all others are listed.
pub(super) async fn ps(options: PsOptions) -> anyhow::Result<()> {
    let (mut entries, failures) = entries(options.network.as_deref()).await?;
    let registry = Registry::new(&Directories::of_this_user()?);
    let ended = match options.all {
        true => registry.ended(),
        false => Vec::new(),
    };
    entries.extend(ended.iter().map(|ended| {
        let mut entry = held(ended.was.clone());
        entry.container.pid = None;
        entry
    }));
    let running = registry.list();
    let known: Vec<&Running> = running.iter().chain(ended.iter().map(|e| &e.was)).collect();
    let mut shown: Vec<(Entry, Row)> = Vec::new();
    for entry in entries {
        let row = row(&entry, &known, &ended);
        if passes(&options.filter, "name, id, network and status", |f| {
            row.is(f)
        })? {
            shown.push((entry, row));
        }
    }
    let (entries, rows): (Vec<Entry>, Vec<Row>) = shown.into_iter().unzip();
    let text = match options.format {
        _ if options.quiet => rows
            .iter()
            .map(|row| format!("{}\n", short(&row.id)))
            .collect(),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&entries)?),
        _ if options.json => format!("{}\n", serde_json::to_string_pretty(&entries)?),
        Format::Table => table(&lines(&entries, &rows, options.all)),
        Format::Template(template, heading) => filled(&template, heading, &rows)?,
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
            on_no_network: false,
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
    container.interface = running.interface;
    (container.ipv4, container.ipv6) = (running.ipv4, running.ipv6);
    container.ports = running.ports;
    Entry {
        network: running.network,
        container,
        on_no_network: true,
    }
}

impl Row {
    fn is(&self, filter: &Filter) -> Option<bool> {
        let value = filter.value.as_str();
        Some(match filter.key.as_str() {
            "name" => self.name.contains(value),
            "id" => self.id.starts_with(value),
            "network" => self.network == value,
            "status" => self.status.to_lowercase().starts_with(value),
            _ => return None,
        })
    }
}

fn row(entry: &Entry, known: &[&Running], ended: &[Ended]) -> Row {
    let container = &entry.container;
    let text = |address: Option<String>| address.unwrap_or_default();
    let ipv4 = text(container.ipv4.map(|net| net.addr().to_string()));
    let ipv6 = text(container.ipv6.map(|net| net.addr().to_string()));
    let addresses = [&*ipv4, &*ipv6].into_iter().filter(|a| !a.is_empty());
    let addresses: Vec<&str> = addresses.collect();
    let ports: Vec<String> = container.ports.iter().map(port).collect();
    let run = known.iter().find(|running| running.id == container.id);
    let exited = ended.iter().find(|ended| ended.was.id == container.id);
    Row {
        name: container.name.clone(),
        names: container.name.clone(),
        id: container.id.clone(),
        network: entry.network.clone(),
        networks: entry.network.clone(),
        pid: text(container.pid.map(|pid| pid.to_string())),
        interface: container.interface.clone(),
        addresses: addresses.join(" "),
        ports: ports.join(", "),
        status: match exited {
            Some(ended) => format!("Exited ({})", ended.exit_code),
            None => "Running".to_owned(),
        },
        command: run.map_or(String::new(), |run| run.command.join(" ")),
        created: run.map_or(String::new(), |run| run.started.clone()),
        ipv4,
        ipv6,
    }
}

fn lines(entries: &[Entry], rows: &[Row], all: bool) -> Vec<Vec<String>> {
    let heading = ["NAME", "NETWORK", "PID", "INTERFACE", "ADDRESSES", "PORTS"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    for Entry {
        network, container, ..
    } in entries
    {
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
    if all {
        lines[0].push("STATUS".to_owned());
        let statuses = rows.iter().map(|row| row.status.clone());
        lines[1..]
            .iter_mut()
            .zip(statuses)
            .for_each(|(line, status)| line.push(status));
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
            ..Running::default()
        });
        for meant in ["web", "abab", "4711"] {
            assert!(entry.is_meant_by(meant), "{meant}");
        }
        for other in ["we", "aba", "abb0", "471", ""] {
            assert!(!entry.is_meant_by(other), "{other}");
        }
        let shown = table(&lines(&[entry], &[], false));
        let line: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line, ["web", "none", "4711"]);
    }
}
