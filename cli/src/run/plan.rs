//! What is to be made for a command, decided before there is a child.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use cnet_tap::InterfaceConfig;
use cnet_tap::sandbox::Mode;
use ipnet::{Ipv4Net, Ipv6Net};
use rustix::process::Pid;

use super::args::RunOptions;
use super::joined::Joined;
use super::mounts::OwnFiles;
use super::network_mode::{NetworkChoice, NetworkMode, OwnOptions};
use super::{INTERFACE, links, own_files};
use cnet::control::Attach;
use cnet::network::Network;
use cnet_dataplane::{NetworkConfig, PortPlan};
use cnet_netd::dns::resolv_conf::ResolvConf;
use cnet_wire::prefixes::{Ipv6Plan, Subnet};

use crate::program::event_loop;
use crate::publish_option::PublishOption;
use cnet::definition::{
    Directories, DnsServer, HostRoutes, SHORT_ID, Store, check_name, default_mtu, file, free_ula,
    random_id,
};
use cnet_netd::registry::{self, Ended, Entered, Registry, Running};

/// The namespaces of the command, as its child makes or enters them.
pub(super) enum Spaces {
    /// New ones, with a TAP that looks like this and has so many queues.
    Private(InterfaceConfig, u16),
    /// New ones, with a loopback interface; more may come from outside.
    Empty,
    /// Those it has.
    Inherited,
    /// Those of a container.
    Joined(Joined),
}

/// Where the command's packets go.
pub(super) enum ConnectivityPlan {
    /// Nowhere, or to a network that others have brought up.
    None,
    /// A network of its own.
    Private(Box<(NetworkConfig, PortPlan)>),
    /// Named networks.
    Networks(Vec<(Network, Attach)>),
}

/// All of it.
pub(super) struct Plan {
    pub(super) spaces: Spaces,
    pub(super) own_files: Option<OwnFiles>,
    pub(super) connectivity: ConnectivityPlan,
}

/// What the container is called.
pub(super) struct Identity {
    id: String,
    name: String,
    directories: Option<Directories>,
}

impl Identity {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn registry(&self) -> Option<Registry> {
        self.directories.as_ref().map(Registry::new)
    }

    /// # Errors
    ///
    /// An invalid name, or no directory to register a given one in.
    pub(super) fn new(options: &RunOptions) -> anyhow::Result<Identity> {
        let id = match &options.detached_id {
            Some(id) => id.clone(),
            None => random_id().context("cannot get random bytes from the kernel")?,
        };
        let short = &id[..SHORT_ID];
        let name = options.name.as_deref().unwrap_or(short).to_owned();
        check_name(&name)?;
        let directories = match Directories::of_this_user() {
            Ok(directories) => Some(directories),
            // A command on a network of its own needs no directory for networks.
            Err(_) if options.name.is_none() && options.detached_id.is_none() => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Identity {
            id,
            name,
            directories,
        })
    }

    /// Makes the runtime directory, which is there then when the command's mounts are made, and gives
    /// it; `None` where there is no place for one.
    pub(super) fn make_runtime(&self) -> Option<PathBuf> {
        let runtime = &self.directories.as_ref()?.runtime;
        let made = file::make_own_directory(runtime);
        made.is_ok().then(|| runtime.clone())
    }

    /// Writes the container, whose process is `child`, into the registry, where other commands find
    /// it.
    pub(super) fn enter(
        &self,
        options: &RunOptions,
        connectivity: &ConnectivityPlan,
        child: Pid,
    ) -> anyhow::Result<Option<(Entered, Running)>> {
        let Some(directories) = &self.directories else {
            return Ok(None);
        };
        let registry = Registry::new(directories);
        let pid = child.as_raw_nonzero().get();
        let mode = options.networks.first().map(|choice| &choice.mode);
        let command = options.command.iter();
        let running = Running {
            id: self.id.clone(),
            name: self.name.clone(),
            pid,
            start_time: cnet_tap::watch::start_time(pid).context("the child has ended")?,
            network: mode.map_or("private".to_owned(), NetworkMode::to_string),
            command: command
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            started: registry::now(),
            detached: options.detached_id.is_some(),
            ..addresses(connectivity)
        };
        match registry.enter(&running) {
            Ok(entered) => Ok(Some((entered, running))),
            Err(error) if options.name.is_some() => Err(error.into()),
            Err(error) => {
                tracing::info!(%error, "`cnet ps` will not show this container");
                Ok(None)
            }
        }
    }
}

impl Identity {
    /// Writes down how a container of the background has ended, unless nothing is to be kept of it.
    pub(super) fn end(&self, options: &RunOptions, running: &Running, exit_code: u8) {
        let Some(registry) = self.registry().filter(|_| running.detached) else {
            return;
        };
        if options.rm {
            registry.forget(&running.name);
            return;
        }
        let ended = Ended {
            was: running.clone(),
            exit_code,
            ended: registry::now(),
        };
        if let Err(error) = registry.end(&ended) {
            tracing::warn!(%error, "`cnet ps -a` will not show this container");
        }
    }
}

/// What is known of the interface on a network of the command's own.
fn addresses(connectivity: &ConnectivityPlan) -> Running {
    let ConnectivityPlan::Private(private) = connectivity else {
        return Running::default();
    };
    let (config, port) = &**private;
    let ipv4 = config.ipv4.zip(port.ipv4);
    let ipv6 = config.ipv6.zip(port.ipv6);
    Running {
        interface: INTERFACE.to_owned(),
        ipv4: ipv4.and_then(|(plan, address)| Ipv4Net::new(address, plan.prefix_len).ok()),
        ipv6: ipv6.and_then(|(plan, address)| Ipv6Net::new(address, plan.prefix_len).ok()),
        ..Running::default()
    }
}

/// Decides.
///
/// # Errors
///
/// When there is no such network or container, or an option does not fit the network mode.
pub(super) fn make(
    options: &RunOptions,
    host_conf: &ResolvConf,
    identity: &Identity,
) -> anyhow::Result<Plan> {
    let Some(choice) = options.networks.first() else {
        let (config, port) = private(options, host_conf, &identity.id);
        let address = port.addresses().next();
        return Ok(Plan {
            spaces: Spaces::Private(config.interface(&port), config.workers),
            own_files: Some(own_files(
                options,
                host_conf,
                (&config, &[]),
                (address, Vec::new()),
            )?),
            connectivity: ConnectivityPlan::Private(Box::new((config, port))),
        });
    };
    let mode = &choice.mode;
    check(options, mode)?;
    let without_network = |spaces, own_files| Plan {
        spaces,
        own_files,
        connectivity: ConnectivityPlan::None,
    };
    match mode {
        NetworkMode::None => Ok(without_network(Spaces::Empty, None)),
        NetworkMode::Host => Ok(without_network(Spaces::Inherited, None)),
        NetworkMode::Container(name) => {
            // The runtime ends here: the child is forked by a process with one thread.
            let mut joined = event_loop()?.block_on(Joined::of_container(name))?;
            let own_files = joined.own_files.take();
            Ok(without_network(Spaces::Joined(joined), own_files))
        }
        NetworkMode::Network(_) => on_networks(options, host_conf, identity),
    }
}

/// Refuses options that do not fit the network `mode`, which is the first.
fn check(options: &RunOptions, mode: &NetworkMode) -> anyhow::Result<()> {
    let single = |choice: &&NetworkChoice| !matches!(choice.mode, NetworkMode::Network(_));
    if let Some(alone) = options
        .networks
        .iter()
        .find(single)
        .filter(|_| options.networks.len() > 1)
    {
        bail!(
            "--network {} cannot be had beside another network",
            alone.mode
        );
    }
    let addressed = options.ip.is_some()
        || options.ip6.is_some()
        || options.mac_address.is_some()
        || !options.links.is_empty()
        || !options.aliases.is_empty();
    let on_network = matches!(mode, NetworkMode::Network(_));
    match options.sandbox.mode() {
        Mode::Off => bail!(
            "--no-sandbox is for a network of the command's own; the process of a named network is told by the environment variable {}=off when it is started",
            cnet::start::SANDBOX
        ),
        Mode::Required if !on_network => bail!(
            "--require-sandbox is about the process that reads the command's frames, and with `--network {mode}` there is none of its own"
        ),
        Mode::Required | Mode::Offered => {}
    }
    let filtered = !options.filter.filter().is_empty();
    if !on_network && (addressed || filtered || !options.publish.is_empty()) {
        bail!(
            "--publish, --alias, --link, --ip, --ip6, --mac-address, --allow, --deny and --no-host need an interface on a network, which `--network {mode}` does not make"
        );
    }
    if !on_network && options.names.any() {
        bail!(
            "--dns, --dns-search, --dns-option, --add-host and --hostname are for a command that has a network to itself or joins one by name, which `--network {mode}` does not"
        );
    }
    Ok(())
}

/// On one named network or several. What is given without saying on which one is meant of the first,
/// but for aliases, filters and DNS servers, which are the command's on all of them.
fn on_networks(
    options: &RunOptions,
    host_conf: &ResolvConf,
    identity: &Identity,
) -> anyhow::Result<Plan> {
    let store = Store::open(Directories::of_this_user()?);
    let routes = HostRoutes::read();
    let mut joined: Vec<(Network, Attach)> = Vec::new();
    for choice in &options.networks {
        let definition = store.settle(&choice.mode.to_string(), &routes)?;
        if joined
            .iter()
            .any(|(other, _)| other.name() == definition.name)
        {
            bail!("--network {} is given twice", definition.name);
        }
        let mut attach = attach(options, &choice.own, identity);
        if joined.is_empty() {
            attach.publish = PublishOption::specs(&options.publish);
            attach.publish_auto = PublishOption::auto(&options.publish);
            attach.ipv4 = attach.ipv4.or(options.ip);
            attach.ipv6 = attach.ipv6.or(options.ip6);
            attach.mac = attach.mac.or(options.mac_address);
        }
        joined.push((
            Network::new(definition, store.directories().clone()),
            attach,
        ));
    }
    let linked = match options.links.is_empty() {
        true => Vec::new(),
        // The runtime ends here: the child is forked by a process with one thread.
        false => event_loop()?.block_on(links::find(&options.links, &joined))?,
    };
    let first = joined
        .first()
        .context("there is no network")?
        .0
        .definition();
    let network_plan = (&cnet_netd::config(first), &first.dns_search[..]);
    let own_files = own_files(options, host_conf, network_plan, (None, linked))?;
    Ok(Plan {
        spaces: Spaces::Empty,
        own_files: Some(own_files),
        connectivity: ConnectivityPlan::Networks(joined),
    })
}

/// What is asked for on each of the networks.
fn attach(options: &RunOptions, own: &OwnOptions, identity: &Identity) -> Attach {
    let mut attach = Attach::new().name(&identity.name).id(&identity.id);
    attach.labels = options.labels.iter().cloned().collect();
    attach.aliases = [&options.aliases[..], &own.aliases].concat();
    (attach.ipv4, attach.ipv6, attach.mac) = (own.ipv4, own.ipv6, own.mac);
    attach.interface.clone_from(&own.interface);
    attach.filter = options.filter.filter();
    attach.trust = options.trust;
    attach.require_sandbox = options.sandbox.mode() == Mode::Required;
    attach.dns.clone_from(&options.names.dns);
    attach
}

/// The address of the command's host name in its `/etc/hosts` where the network has yet to choose
/// one: Debian's for a host without a permanent one.
const OWN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));

/// The files that the command has for itself on a network of this configuration, with this search
/// list. `address` is the command's, if it is known; `linked` are names of other containers.
fn own_files(
    options: &RunOptions,
    host_conf: &ResolvConf,
    (config, search): (&NetworkConfig, &[String]),
    (address, linked): (Option<IpAddr>, Vec<(String, IpAddr)>),
) -> anyhow::Result<OwnFiles> {
    let names = &options.names;
    let ipv4 = config.ipv4.map(|plan| IpAddr::V4(plan.gateway));
    let gateway = ipv4.or(config.ipv6.map(|plan| IpAddr::V6(plan.gateway)));
    let added = names.add_host.iter().map(|added| {
        let address = added.address.or(gateway);
        Some((added.name.clone(), address?))
    });
    let added = added.collect::<Option<Vec<_>>>();
    let mut added = added.context("`host-gateway` needs a network with a gateway")?;
    added.extend(linked);
    let hostname = names.hostname.as_deref();
    let hostname_at = hostname.map(|name| (name, address.unwrap_or(OWN_ADDRESS)));
    check_servers(&names.dns, config)?;
    let fixed = ResolvConf {
        nameservers: names
            .dns
            .iter()
            .filter(|server| server.domain.is_none())
            .map(|server| server.address.into())
            .collect(),
        ..ResolvConf::default()
    };
    let asked = match fixed.nameservers.is_empty() {
        true => host_conf,
        false => &fixed,
    };
    // A host without the file has no names in it.
    let host_hosts = fs::read_to_string(own_files::HOSTS).unwrap_or_default();
    Ok(OwnFiles {
        resolv_conf: own_files::resolv_conf((host_conf, asked), search, config, names),
        hosts: own_files::hosts(&host_hosts, hostname_at, &added),
        hostname: names.hostname.clone(),
    })
}

/// Checks that none of the DNS servers is the network's own service, which would ask itself.
fn check_servers(servers: &[DnsServer], config: &NetworkConfig) -> anyhow::Result<()> {
    let ipv4 = config.ipv4.iter();
    let ipv4 = ipv4.flat_map(|plan| [Some(plan.gateway), plan.dns].map(|a| a.map(IpAddr::V4)));
    let ipv6 = config.ipv6.iter();
    let ipv6 = ipv6.flat_map(|plan| [Some(plan.gateway), plan.dns].map(|a| a.map(IpAddr::V6)));
    let own: Vec<IpAddr> = ipv4.chain(ipv6).flatten().collect();
    match servers.iter().find(|s| own.contains(&s.address.ip())) {
        Some(server) => bail!(
            "--dns {server} is the command's own gateway, which would ask itself: leave it out, and the command asks the gateway all the same"
        ),
        None => Ok(()),
    }
}

/// The network, and the command's port on it.
fn private(options: &RunOptions, host_conf: &ResolvConf, id: &str) -> (NetworkConfig, PortPlan) {
    let routes = HostRoutes::read();
    let subnet = options.subnet.unwrap_or_else(|| {
        Subnet::free(|subnet| {
            let plan = subnet.plan();
            // A subnet's prefix is never longer than an address.
            let network = Ipv4Net::new(plan.network, plan.prefix_len);
            network.is_ok_and(|network| routes.overlapping(network.into()).is_some())
        })
    });
    // The id is random, and so is the prefix.
    let prefix = free_ula(id, |prefix| routes.overlapping(prefix).is_some());
    let prefix = prefix.filter(|_| !options.no_ipv6);
    let ipv6 = prefix.map(|prefix| Ipv6Plan::within(prefix.network()));
    let mtu = options.mtu.unwrap_or_else(default_mtu);
    let plan = subnet.plan();
    tracing::info!(
        "{INTERFACE} has {}/{} and {}; the gateway is {}, the MTU {mtu} bytes",
        subnet.container(),
        plan.prefix_len,
        ipv6.map_or("no IPv6".to_owned(), |ipv6| ipv6.container().to_string()),
        plan.gateway,
    );
    let mut config = NetworkConfig::new(mtu, Some(plan), ipv6);
    if options.allow_host_loopback {
        config.allow_host_loopback();
    }
    config.policy.allow_metadata = options.allow_metadata;
    config.policy.filter = cnet_netd::peer_filter(&options.filter.filter());
    config.search = host_conf.search.clone();
    config.busy_poll = Duration::from_micros(options.busy_poll.into());
    config.workers = options.workers;
    config.keep_tcp_ports = options.keep_ports;
    let port = PortPlan {
        ipv4: Some(subnet.container()),
        ipv6: ipv6.map(|plan| plan.container()),
        mac: options.mac_address,
        ..PortPlan::default()
    };
    (config, port)
}
