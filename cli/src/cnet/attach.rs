//! `cnet attach` and `cnet detach`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use super::container::{on_no_network, process_of};
use crate::each_network::{Answers, each};
use crate::filter::FilterOptions;
use crate::label::parse_label;
use crate::program::all_of;
use crate::publish_option::PublishOption;
use crate::run::write_ports;
use cnet::control::Attach;
use cnet::definition::{DEFAULT_NETWORK, DnsServer};
use cnet::network::{Network, Target};
use cnet::vm::VmAddress;

/// The options of `cnet attach`.
#[derive(Args, Debug)]
pub(crate) struct AttachOptions {
    /// The network to join.
    #[arg(long, value_name = "NET", default_value = DEFAULT_NETWORK)]
    network: String,

    /// What the container is called on the network; by default the start of a random id.
    #[arg(long)]
    name: Option<String>,

    /// A further name; may be given several times.
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<String>,

    /// A note for programs; may be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,

    /// The IPv4 address it gets; by default the one it had before, or one that is free.
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,

    /// The IPv6 address it gets.
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<Ipv6Addr>,

    /// The interface's hardware address.
    #[arg(long)]
    mac: Option<String>,

    /// The interface's name; by default the first free of eth0, eth1 and so on.
    #[arg(long, value_name = "NAME")]
    ifname: Option<String>,

    /// Open a port of the host and lead it to the container; as with `cnet run`. Refused on an
    /// internal network.
    #[arg(
        short,
        long,
        value_name = "[[HOSTIP:]HOSTPORT:]PORT[/tcp|udp]|auto[,~PORT]"
    )]
    publish: Vec<PublishOption>,

    /// Write the published ports to this file, as JSON, in one step.
    #[arg(long, value_name = "FILE")]
    publish_file: Option<PathBuf>,

    /// Let it send from other addresses than its own: for further addresses in the subnet, and for
    /// containers, virtual machines or networks behind it.
    ///
    /// Its neighbours then have to trust it: it can take the addresses that no lease pins.
    #[arg(long)]
    trust: bool,

    /// Join only a network whose process is in its whole sandbox.
    #[arg(long)]
    require_sandbox: bool,

    #[command(flatten)]
    filter: FilterOptions,

    /// Have this DNS server asked for the container instead of the network's, or, with a domain, for
    /// the names in that domain alone; may be given several times.
    #[arg(long, value_name = "[DOMAIN=]ADDRESS")]
    dns: Vec<DnsServer>,

    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,

    /// A virtual machine instead of a container: where QEMU meets the network.
    ///
    /// `stream:PATH` listens there for QEMU's `-netdev stream`, `dgram:LOCAL:REMOTE` is for `-netdev
    /// dgram`. The arguments for QEMU are printed. The machine gets its addresses by DHCP, and has
    /// its place until `cnet detach`, whether QEMU runs or not.
    #[arg(
        long,
        value_name = "stream:PATH|dgram:LOCAL:REMOTE",
        conflicts_with = "ifname"
    )]
    vm: Option<VmAddress>,

    /// A process of the container, the path of its network namespace, or what it is called already.
    #[arg(
        value_name = "PID|NETNS|NAME",
        required_unless_present = "vm",
        conflicts_with = "vm"
    )]
    target: Option<String>,
}

/// The options of `cnet detach`.
#[derive(Args, Debug)]
pub(crate) struct DetachOptions {
    /// The network to leave; by default every one that the container is on.
    #[arg(long, value_name = "NET")]
    network: Option<String>,

    /// The container: its name, its id or the start of it, or its process.
    #[arg(value_name = "NAME|PID")]
    container: String,
}

/// Joins, and prints the addresses.
pub(super) async fn attach(options: AttachOptions) -> anyhow::Result<()> {
    let target = target(&options).await?;
    let network = Network::open(&options.network)?;
    let mut attach = Attach::new();
    attach.name = options.name;
    attach.aliases = options.aliases;
    attach.labels = options.labels.into_iter().collect();
    attach.ipv4 = options.ip;
    attach.ipv6 = options.ip6;
    attach.mac = options.mac.as_deref().map(str::parse).transpose()?;
    attach.interface = options.ifname;
    attach.publish = PublishOption::specs(&options.publish);
    attach.publish_auto = PublishOption::auto(&options.publish);
    attach.filter = options.filter.filter();
    attach.trust = options.trust;
    attach.require_sandbox = options.require_sandbox;
    attach.dns = options.dns;
    let joined = network.attach(target, attach).await?;
    if let Some(path) = &options.publish_file {
        write_ports(path, &joined.container.ports)?;
    }
    if options.json {
        super::print(&format!("{}\n", serde_json::to_string_pretty(&joined)?))?;
        return Ok(());
    }
    let container = joined.container;
    let mut line = container.name;
    let interface = Some(&container.interface).filter(|name| !name.is_empty());
    let ipv4 = container.ipv4.iter().map(ToString::to_string);
    let ipv6 = container.ipv6.iter().map(ToString::to_string);
    for word in interface.into_iter().cloned().chain(ipv4).chain(ipv6) {
        line.push(' ');
        line.push_str(&word);
    }
    line.push('\n');
    for port in &container.ports {
        line.push_str(&format!(
            "{} -> {}/{}\n",
            port.host, port.container, port.protocol
        ));
    }
    if let (Some(address), Some(mac)) = (options.vm, container.mac) {
        let arguments = address.qemu_arguments(mac).join(" ");
        line.push_str(&format!("{arguments}\n"));
    }
    super::print(&line)?;
    Ok(())
}

/// The container that is to join.
async fn target(options: &AttachOptions) -> anyhow::Result<Target> {
    if let Some(address) = &options.vm {
        return Ok(Target::Vm(address.clone()));
    }
    let text = options.target.as_deref().unwrap_or_default();
    if ["/proc/self/", "/proc/thread-self/"]
        .iter()
        .any(|own| text.starts_with(own))
    {
        bail!(
            "`{text}` is the namespace of this very command; a shell names its own by /proc/$$/ns/net, and by $$ its process"
        );
    }
    match Target::parse(text) {
        Some(target) => Ok(target),
        None => Ok(Target::Process(process_of(text).await.with_context(|| {
            format!(
                "`{text}` is neither the number of a process nor the path of a network namespace, such as /run/netns/NAME"
            )
        })?)),
    }
}

/// Leaves one network, or all.
pub(super) async fn detach(options: DetachOptions) -> anyhow::Result<()> {
    if let Some(name) = &options.network {
        Network::open(name)?.detach(&options.container).await?;
        return Ok(());
    }
    let leave = |network: Network| {
        let container = options.container.clone();
        async move {
            // A network that does not run has no containers, and is not started for this.
            if network.inspect().await?.is_none() {
                return Ok(None);
            }
            match network.detach(&container).await {
                Ok(()) => Ok(Some(())),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        }
    };
    let Answers { given, failures } = each(leave).await?;
    if given.is_empty() && failures.is_empty() {
        return Err(on_no_network(&options.container));
    }
    all_of(failures.into_iter().map(Err))
}
