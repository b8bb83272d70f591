//! `cnet inspect`: all about containers and networks, as JSON.

use anyhow::{Context, anyhow};
use clap::Args;
use serde::Serialize;

use super::format::{Format, filled};
use super::network::{json, live};
use super::ps::{Entry, entries};
use crate::each_network::one_or_each;
use crate::log::report;
use crate::program::{all_of, tell};
use cnet::control::{ContainerStatistics, StatisticsReport};
use cnet::definition::{Directories, Store, StoreError};
use cnet::network::Network;

/// The options of `cnet inspect`.
#[derive(Args, Debug)]
pub(crate) struct InspectOptions {
    /// How to print it: `json` or a template such as '{{.ipv4}}', which each is put in.
    #[arg(short, long, default_value = "json", value_name = "FORMAT")]
    format: Format,

    /// As --format json, the default.
    #[arg(long)]
    json: bool,

    /// Containers, by name, id or process, or networks.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// A container, with what has passed its interface where a network's process counts that.
#[derive(Serialize)]
struct Container<'a> {
    #[serde(flatten)]
    entry: &'a Entry,
    #[serde(skip_serializing_if = "Option::is_none")]
    statistics: Option<&'a ContainerStatistics>,
}

/// Prints all about containers, once for each network that they are on, and about networks.
pub(super) async fn inspect(options: InspectOptions) -> anyhow::Result<()> {
    let (entries, failures) = entries(None).await?;
    for failure in &failures {
        // A container that is asked for may be on that network.
        tell(&report(failure));
    }
    // What is wrong with the other networks has been told.
    let ask = |network: Network| async move { network.statistics().await };
    let counted = one_or_each(None, ask).await?.given;
    let mut found = Vec::new();
    let (mut missing, mut failed) = (Vec::new(), Vec::new());
    for name in &options.names {
        let before = found.len();
        for entry in entries.iter().filter(|entry| entry.is_meant_by(name)) {
            let statistics = statistics_of(entry, &counted);
            found.push(serde_json::to_value(Container { entry, statistics })?);
        }
        if found.len() > before {
            continue;
        }
        match network(name).await {
            Ok(Some(network)) => found.push(serde_json::to_value(network)?),
            Ok(None) => missing.push(name.as_str()),
            Err(error) => failed.push(error),
        }
    }
    let text = match &options.format {
        Format::Template(template, heading) if !options.json => filled(template, *heading, &found)?,
        _ => format!("{}\n", serde_json::to_string_pretty(&found)?),
    };
    super::print(&text)?;
    if !missing.is_empty() {
        let names = missing.join(", ");
        failed.push(anyhow!("there is no container and no network {names}"));
    }
    all_of(failed.into_iter().map(Err))
}

/// What has passed the container's interface on its network.
fn statistics_of<'a>(
    entry: &Entry,
    counted: &'a [StatisticsReport],
) -> Option<&'a ContainerStatistics> {
    let report = counted
        .iter()
        .find(|report| report.network == entry.network)?;
    let mut containers = report.containers.iter();
    containers.find(|container| container.name == entry.container.name)
}

/// The network of that name, if there is one.
async fn network(name: &str) -> anyhow::Result<Option<json::Network>> {
    let directories = Directories::of_this_user()?;
    let definition = match Store::open(directories.clone()).get(name) {
        Err(StoreError::NotFound(_)) => return Ok(None),
        got => got.with_context(|| format!("cannot tell what `{name}` is"))?,
    };
    let network = Network::new(definition, directories);
    let asked = async {
        match network.inspect().await? {
            Some(report) => Ok(Some(live::running(&network, report).await?)),
            None => Ok(None),
        }
    };
    let asked: Result<_, cnet::network::NetworkError> = asked.await;
    let live = asked.with_context(|| format!("the network `{name}`"))?;
    Ok(Some(json::Network::new(network.definition(), live)))
}
