//! `cnet publish`, `cnet unpublish` and `cnet port`: the ports of containers that run.

use anyhow::bail;
use clap::Args;

use super::container::meant;
use cnet::PublishSpec;
use cnet::control::PublishedPort;
use cnet::network::Network;

/// The options of `cnet publish` and `cnet unpublish`.
#[derive(Args, Debug)]
pub(crate) struct PublishOptions {
    /// The network by which the container is reached; needed if it is on several.
    #[arg(long, value_name = "NET")]
    network: Option<String>,

    /// The container: its name, its id or the start of it, or its process.
    #[arg(value_name = "NAME|PID")]
    container: String,

    /// The ports, as with `cnet run -p`; all or none.
    #[arg(required = true, value_name = "[[HOSTIP:]HOSTPORT:]PORT[/tcp|udp]")]
    ports: Vec<PublishSpec>,
}

/// The options of `cnet port`.
#[derive(Args, Debug)]
pub(crate) struct PortOptions {
    /// Only this network.
    #[arg(long, value_name = "NET")]
    network: Option<String>,

    /// The container: its name, its id or the start of it, or its process.
    #[arg(value_name = "NAME|PID")]
    container: String,
}

/// Opens ports, and prints where.
pub(super) async fn publish(options: PublishOptions) -> anyhow::Result<()> {
    let network = network_of(&options).await?;
    let opened = network.publish(&options.container, &options.ports).await?;
    print_ports(&opened.ports)
}

/// Closes ports, and prints which.
pub(super) async fn unpublish(options: PublishOptions) -> anyhow::Result<()> {
    let network = network_of(&options).await?;
    let closed = network
        .unpublish(&options.container, &options.ports)
        .await?;
    print_ports(&closed.ports)
}

/// Prints the ports of a container.
pub(super) async fn port(options: PortOptions) -> anyhow::Result<()> {
    let found = meant(options.network.as_deref(), &options.container).await?;
    for entry in &found {
        print_ports(&entry.container.ports)?;
    }
    Ok(())
}

/// The one network by which a container is reached.
async fn network_of(options: &PublishOptions) -> anyhow::Result<Network> {
    if let Some(name) = &options.network {
        return Ok(Network::open(name)?);
    }
    let found = meant(None, &options.container).await?;
    let on_networks = found.iter().filter(|e| !e.on_no_network);
    let names: Vec<&str> = on_networks.map(|e| e.network.as_str()).collect();
    match names.as_slice() {
        [name] => Ok(Network::open(name)?),
        [] => bail!(
            "`{}` is on no named network, whose ports alone change while it runs; give `-p` to `cnet run`, or run it with --network",
            options.container
        ),
        _ => bail!(
            "`{}` is on the networks {}; choose one by --network",
            options.container,
            names.join(", ")
        ),
    }
}

/// As `docker port` prints them.
fn print_ports(ports: &[PublishedPort]) -> anyhow::Result<()> {
    let line = |port: &PublishedPort| {
        let inside = port.container.port();
        format!("{inside}/{} -> {}\n", port.protocol, port.host)
    };
    let text: String = ports.iter().map(line).collect();
    super::print(&text).map(drop)
}
