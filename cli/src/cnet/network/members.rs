//! `cnet network connect`, `disconnect` and `restart`: what is done on networks that run.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use clap::Args;
use cnet::control::Attach;
use cnet::network::{Network, Target};
use cnet_wire::MacAddr;

use crate::cnet::container::meant;
use crate::program::{all_of, tell};

/// The options of `cnet network connect`.
#[derive(Args, Debug)]
pub(crate) struct ConnectOptions {
    /// A further name of the container on this network; may be given several times.
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<String>,

    /// The IPv4 address that it gets there.
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,

    /// The IPv6 address that it gets there.
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<Ipv6Addr>,

    /// The hardware address of its interface there.
    #[arg(long, visible_alias = "mac", value_name = "MAC")]
    mac_address: Option<MacAddr>,

    /// The network.
    #[arg(value_name = "NETWORK")]
    network: String,

    /// The container: its name, its id or the start of it, or its process.
    #[arg(value_name = "NAME|PID")]
    container: String,
}

/// The options of `cnet network disconnect`.
#[derive(Args, Debug)]
pub(crate) struct DisconnectOptions {
    /// Accepted for those who are used to it; nothing holds a container back in any case.
    #[arg(short, long)]
    force: bool,

    /// The network.
    #[arg(value_name = "NETWORK")]
    network: String,

    /// The container: its name, its id or the start of it, or its process.
    #[arg(value_name = "NAME|PID")]
    container: String,
}

/// The options of `cnet network restart`.
#[derive(Args, Debug)]
pub(crate) struct RestartOptions {
    /// Names, or beginnings of ids.
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

/// Gives a container that runs an interface on a further network.
pub(crate) async fn connect(options: ConnectOptions) -> anyhow::Result<()> {
    let network = Network::open(&options.network)?;
    let found = meant(None, &options.container).await?;
    let known = &found
        .first()
        .context("there is no such container")?
        .container;
    let target = match (known.pid, &known.path) {
        (Some(pid), _) => Target::Process(pid),
        (None, Some(path)) => Target::Path(path.clone()),
        (None, None) => anyhow::bail!("a virtual machine is on one network alone"),
    };
    let mut attach = Attach::new().name(&known.name).id(&known.id);
    attach.aliases = options.aliases;
    (attach.ipv4, attach.ipv6) = (options.ip, options.ip6);
    attach.mac = options.mac_address;
    network.attach(target, attach).await?;
    Ok(())
}

/// Takes a container off one network.
pub(crate) async fn disconnect(options: DisconnectOptions) -> anyhow::Result<()> {
    let network = Network::open(&options.network)?;
    Ok(network.detach(&options.container).await?)
}

/// Has this program take the place of networks' processes, and prints the networks' names.
pub(crate) async fn restart(options: RestartOptions) -> anyhow::Result<()> {
    let mut results = Vec::new();
    for name in &options.networks {
        results.push(restart_one(name).await);
    }
    all_of(results)
}

async fn restart_one(name: &str) -> anyhow::Result<()> {
    let network = Network::open(name)?;
    if !network.restart().await? {
        tell(&format!(
            "the network `{name}` does not run: its next process is this program in any case"
        ));
        return Ok(());
    }
    crate::cnet::print(&format!("{}\n", network.name())).map(drop)
}
