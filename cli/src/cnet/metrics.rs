//! `cnet metrics`: what networks count, for Prometheus.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::each_network::{Answers, one_or_each};
use crate::log::report;
use crate::program::{all_of, tell};
use cnet::control::StatisticsReport;
use cnet::network::Network;
use cnet_netd::metrics::{self, Format};

/// The options of `cnet metrics`.
#[derive(Args, Debug)]
pub(crate) struct MetricsOptions {
    /// Only this network.
    #[arg(long, value_name = "NET")]
    network: Option<String>,

    /// Serve them there as /metrics until a signal, and print where, instead of printing them once; an
    /// address that is left out is 127.0.0.1.
    ///
    /// Every user of the host, or of the network where the address is not a loopback one, can read them:
    /// the names of networks and containers, and what they count.
    #[arg(long, value_name = "[ADDR:]PORT", value_parser = parse_listen)]
    listen: Option<SocketAddr>,
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let port = text.parse().map(loopback);
    port.or_else(|_| text.parse())
        .map_err(|_| "it is a port, or an address and a port such as [::1]:9199".to_owned())
}

/// Prints a page, or serves pages.
pub(super) async fn metrics(options: MetricsOptions) -> anyhow::Result<()> {
    let Some(address) = options.listen else {
        let (page, failures) = page(options.network.as_deref(), Format::Prometheus).await?;
        super::print(&page)?;
        return all_of(failures.into_iter().map(Err));
    };
    if let Some(name) = &options.network {
        // One that does not exist is told now, not by empty pages.
        Network::open(name)?;
    }
    let listening = TcpListener::bind(address).await;
    let listener = listening.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    super::print(&format!("http://{address}/metrics\n"))?;
    let make = move |format| {
        let network = options.network.clone();
        async move {
            match page(network.as_deref(), format).await {
                Ok((page, failures)) => {
                    for failure in failures {
                        tell(&report(&failure));
                    }
                    page
                }
                Err(error) => {
                    tell(&report(&error));
                    metrics::page(Vec::new(), network.into_iter().collect(), format)
                }
            }
        }
    };
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        never = metrics::serve(listener, make) => match never {},
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// A page of one network, or of all that run, and what is wrong with those that do not answer.
async fn page(
    network: Option<&str>,
    format: Format,
) -> anyhow::Result<(String, Vec<anyhow::Error>)> {
    let ask = |network: Network| async move {
        let answer: Option<Result<StatisticsReport, _>> = network.statistics().await.transpose();
        Ok(answer.map(|answer| answer.map_err(|error| (network.name().to_owned(), error))))
    };
    let Answers {
        given,
        mut failures,
    } = one_or_each(network, ask).await?;
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    for answer in given {
        match answer {
            Ok(report) => reports.push(report),
            Err((name, error)) => {
                let error = anyhow::Error::new(error);
                failures.push(error.context(format!("the network `{name}`")));
                failed.push(name);
            }
        }
    }
    Ok((metrics::page(reports, failed, format), failures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_of_the_loopback() {
        let read = |text| parse_listen(text).map(|address| address.to_string());
        assert_eq!(read("9199").unwrap(), "127.0.0.1:9199");
        assert_eq!(read("[::]:1").unwrap(), "[::]:1");
        assert!(read("host:1").is_err() && read("70000").is_err());
    }
}
