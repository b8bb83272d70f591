//! The addresses of the containers that `--link` names.

use std::net::IpAddr;

use anyhow::bail;
use cnet::control::Attach;
use cnet::network::Network;

use super::args::Link;
use cnet_netd::registry::is_meant_by;

/// What the command calls the containers of `links`, which are on one of `networks`, and their
/// addresses there. They have them now; a container that comes back with another address is not found
/// by that name, but by its own, over DNS.
///
/// # Errors
///
/// When a container is on none of the networks.
pub(super) async fn find(
    links: &[Link],
    networks: &[(Network, Attach)],
) -> anyhow::Result<Vec<(String, IpAddr)>> {
    let mut containers = Vec::new();
    for (network, _) in networks {
        containers.extend(
            network
                .inspect()
                .await?
                .into_iter()
                .flat_map(|r| r.containers),
        );
    }
    let mut found = Vec::new();
    for Link { container, name } in links {
        let linked = containers.iter().find(|c| {
            is_meant_by(container, (&c.name, &c.id, c.pid)) || c.aliases.contains(container)
        });
        let Some(linked) = linked else {
            let names: Vec<&str> = networks.iter().map(|(network, _)| network.name()).collect();
            bail!(
                "--link {container}: there is no such container on {}",
                names.join(", ")
            );
        };
        let addresses = linked.ipv4.map(|net| IpAddr::V4(net.addr()));
        let addresses = addresses
            .into_iter()
            .chain(linked.ipv6.map(|net| IpAddr::V6(net.addr())));
        found.extend(addresses.map(|address| (name.clone(), address)));
    }
    Ok(found)
}
