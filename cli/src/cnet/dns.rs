//! `cnet dns`: what containers ask for by name.

use clap::{Args, Subcommand};

use super::container::on_no_network;
use crate::each_network::{Answers, each};
use crate::program::all_of;
use cnet::control::LoggedQuery;
use cnet::network::Network;

/// The subcommands of `cnet dns`.
#[derive(Subcommand, Debug)]
pub(crate) enum DnsCommand {
    /// Show what a container has asked for, and what came of it.
    ///
    /// The last 256 queries of a container on a network are kept. A command of `cnet run` that is on
    /// no network tells its queries on standard error with `-vv`.
    Log(LogOptions),
}

/// The options of `cnet dns log`.
#[derive(Args, Debug)]
pub(crate) struct LogOptions {
    /// Go on with each query that comes, until the container leaves.
    #[arg(short, long)]
    follow: bool,

    /// Print each query as a line of JSON.
    #[arg(long)]
    json: bool,

    /// The container: its name, its id or the start of it, or its process.
    #[arg(value_name = "NAME|PID")]
    container: String,
}

/// Prints the log of a container, of the first network that it is on.
pub(super) async fn log(options: LogOptions) -> anyhow::Result<()> {
    let ask = |network: Network| {
        let container = options.container.clone();
        async move {
            match network.dns_log(&container, 0, false).await {
                Ok(report) => Ok(report.map(|report| (network, report))),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        }
    };
    let Answers { given, failures } = each(ask).await?;
    let Some((network, mut report)) = given.into_iter().next() else {
        all_of(failures.into_iter().map(Err))?;
        return Err(on_no_network(&options.container));
    };
    let mut last = 0;
    loop {
        for query in &report.queries {
            last = query.number;
            if !super::print(&line(query, options.json)?)? {
                return Ok(());
            }
        }
        if !options.follow {
            return Ok(());
        }
        report = match network.dns_log(&options.container, last, true).await {
            Ok(Some(report)) => report,
            Ok(None) => return Ok(()),
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
    }
}

fn line(query: &LoggedQuery, json: bool) -> anyhow::Result<String> {
    if json {
        return Ok(format!("{}\n", serde_json::to_string(query)?));
    }
    Ok(format!(
        "{} {} {} {} {} {} {} ms\n",
        query.time,
        query.transport,
        query.kind,
        query.name,
        query.outcome,
        query.code,
        query.millis
    ))
}
