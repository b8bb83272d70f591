//! What is on a network now and what has passed it, asked of its process.

use std::collections::BTreeMap;

use super::NetworkCommand;
use super::json::{Container, Live, Running, endpoint_id};
use crate::program::event_loop;
use cnet::control::{ContainerReport, NetworkReport};
use cnet::definition::{Definition, Directories};
use cnet::network::{Network, NetworkError};

/// Asks the process of the network `definition`. A process without containers is told to end if
/// the network may be about to be removed.
pub(super) fn ask(
    command: &NetworkCommand,
) -> impl Fn(&Definition) -> anyhow::Result<Live> + use<> {
    let removes = matches!(command, NetworkCommand::Rm(_) | NetworkCommand::Prune(_));
    // Only these are shown; nothing else should fail because they cannot be had.
    let shows_counters = matches!(command, NetworkCommand::Inspect(_));
    move |definition| {
        let network = Network::new(definition.clone(), Directories::of_this_user()?);
        let asked = async {
            let report = network.inspect().await?;
            if removes && report.as_ref().is_some_and(|r| r.containers.is_empty()) {
                return match network.stop(false).await {
                    Ok(()) => Ok(None),
                    // A container is joining, and has no entry yet that could be shown.
                    Err(error) if error.is_conflict() => Ok(Some(Running::default())),
                    Err(error) => Err(error.into()),
                };
            }
            match report {
                Some(report) if shows_counters => Ok(Some(running(&network, report).await?)),
                Some(report) => Ok(Some(Running {
                    containers: containers(report),
                    ..Running::default()
                })),
                None => Ok(None),
            }
        };
        event_loop()?.block_on(asked)
    }
}

/// All that the process of `network` tells, of which `report` is the first part.
///
/// # Errors
///
/// When it does not answer.
pub(crate) async fn running(
    network: &Network,
    mut report: NetworkReport,
) -> Result<Running, NetworkError> {
    Ok(Running {
        uplinks: std::mem::take(&mut report.uplinks),
        containers: containers(report),
        counters: network.statistics().await?.map(Into::into),
    })
}

/// In the shape of `docker network inspect`, by id.
fn containers(report: NetworkReport) -> BTreeMap<String, Container> {
    let network = report.id;
    let entries = report.containers.into_iter();
    entries
        .map(|c| (c.id.clone(), container(&network, c)))
        .collect()
}

fn container(network: &str, report: ContainerReport) -> Container {
    Container {
        name: report.name,
        endpoint_id: endpoint_id(network, &report.id),
        mac_address: text(report.mac),
        ipv4_address: text(report.ipv4),
        ipv6_address: text(report.ipv6),
    }
}

/// An address as Docker shows it; one that is not there is empty.
fn text(address: Option<impl ToString>) -> String {
    address.map_or(String::new(), |address| address.to_string())
}
