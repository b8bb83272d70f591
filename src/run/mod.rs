//! `cnet run`: one command with a network of its own.
//!
//! # Theory of operation
//!
//! Before there is any thread, a child is forked. It makes the namespaces, opens and configures
//! the TAP inside them and puts a `resolv.conf` of its own in place ([`child`]), sends the TAP to
//! the parent, and waits. The parent starts the dataplane on the TAP, publishes the ports, and
//! lets the child go, which becomes the command. Then the parent looks after it ([`supervise`]):
//! signals go through, a stop stops both, and the command's end ends all.
//!
//! The command keeps the terminal, the session and the process group: to the shell that started
//! `cnet run` the two are one job.
//!
//! # What is left behind
//!
//! Nothing. Namespaces, mounts and the TAP live as long as the command's processes. Those that
//! outlive the command are killed. If the parent is killed, the kernel kills the command
//! (`PR_SET_PDEATHSIG`). Data that the command had handed to its kernel before it ended still goes
//! out ([`drain`]).
//!
//! # Limits
//!
//! There is no PID namespace: when cnet itself is killed by SIGKILL, processes that the command
//! had started stay, without a network. So does a command that has changed its credentials, as `su`
//! does when root runs it: the kernel takes that for a withdrawal (`PR_SET_PDEATHSIG`, prctl(2)).

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use cnet_tap::{Namespaces, Supplier, Tap};

use crate::addresses::{IPV6_CONTAINER, Subnet, ipv6_plan};
use crate::dataplane::{
    self, Control, Dataplane, ForwardId, NetworkConfig, PortDevice, PortPlan, Protocol, Publish,
    PublishError, STOPPED,
};
use crate::dns::resolv_conf::{self, ResolvConf};
use crate::dns::{LocalNames, Nameserver, Servers, Service, Sources};
use crate::logging::report;
use crate::publish::{PortPair, PublishSpec};

pub mod args;
mod child;
mod drain;
mod forbidden;
mod handover;
mod mounts;
mod process;
mod signals;
mod supervise;

use args::{Cli, Command, RunOptions};
use child::Setup;
use drain::TcpTables;
use handover::Child;
use supervise::Supervisor;

/// The exit code when cnet itself fails, as `env`, `timeout` and `docker run` have it.
const OWN_FAILURE: u8 = 125;

/// The interface's name in the namespace, as in other containers.
const INTERFACE: &str = "eth0";

/// How often a free port is looked for, when somebody else takes the one that was found.
const PORT_ATTEMPTS: usize = 16;

/// The program: reads the command line, runs the command, tells the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return match error.use_stderr() {
                true => OWN_FAILURE.into(),
                false => ExitCode::SUCCESS,
            };
        }
    };
    let options = match cli.command {
        Command::Run(options) => options,
        Command::Network(command) => return crate::network::cli::main(command),
    };
    match run(&options) {
        Ok(code) => code.into(),
        Err(error) => {
            tell(&report(&error));
            OWN_FAILURE.into()
        }
    }
}

/// A line to the person at the terminal, who may have closed standard error.
fn tell(text: &str) {
    let _ = io::stderr().write_all(format!("cnet: {text}\n").as_bytes());
}

fn run(options: &RunOptions) -> anyhow::Result<u8> {
    crate::logging::start(match options.verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    });
    let host_conf = ResolvConf::read(resolv_conf::PATH.as_ref()).unwrap_or_default();
    let (config, port) = network(options, &host_conf);
    let (signals, signal_mask) = signals::block().context("cannot take over the signals")?;
    let setup = Setup {
        interface: config.interface(&port),
        resolv_conf: mounts::resolv_conf(&host_conf, &config),
        command: &options.command,
        signal_mask,
    };
    process::become_subreaper().context("cannot look after the command's children")?;
    let child = child::start(&setup)?;
    match bring_up(options, config, port, child, signals) {
        Ok(code) => Ok(code),
        Err(error) => {
            // The child has noticed our end of the socket close, and ends.
            process::kill_all_children();
            Err(error)
        }
    }
}

/// Starts the network, and the command on it.
fn bring_up(
    options: &RunOptions,
    config: NetworkConfig,
    port: PortPlan,
    mut child: Child,
    signals: OwnedFd,
) -> anyhow::Result<u8> {
    let (tap, tables) = child.receive()?;
    let supplier = supplier(options, &child);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(attend(
        options,
        config,
        port,
        (tap, supplier, tables),
        child,
        signals,
    ))
}

/// What makes the sockets for published ports, if there are any.
fn supplier(options: &RunOptions, child: &Child) -> Option<Supplier> {
    let tcp = |spec: &PublishSpec| spec.protocol == Protocol::Tcp;
    if !options.publish.iter().any(tcp) {
        return None;
    }
    // The child waits to be let go, so it is there, and still has the number.
    match Namespaces::of_process(child.id().as_raw_pid()) {
        Ok(namespaces) => dataplane::supplier(&namespaces),
        Err(error) => {
            tracing::warn!(%error, "connections from the host's loopback are not spliced");
            None
        }
    }
}

async fn attend(
    options: &RunOptions,
    config: NetworkConfig,
    port: PortPlan,
    (tap, supplier, tables): (Tap, Option<Supplier>, TcpTables),
    child: Child,
    signals: OwnedFd,
) -> anyhow::Result<u8> {
    let dns = dns_service(options, &config);
    let guests = Guests {
        ipv4: port.ipv4,
        ipv6: port.ipv6,
    };
    let (dataplane, mut queries) = Dataplane::start(config)?;
    let control = dataplane.control();
    let (id, port_end) = control.add_port(port, PortDevice::Tap(tap)).await?;
    if let Some(supplier) = supplier {
        control.supply(id, supplier);
    }
    let answers = control.clone();
    tokio::spawn(async move {
        while let Some(query) = queries.recv().await {
            crate::dns::serve_query(&dns, &answers, query);
        }
    });
    for spec in &options.publish {
        for pair in spec.pairs() {
            publish(&control, &guests, spec, pair)
                .await
                .with_context(|| format!("cannot publish {spec}"))?;
        }
    }
    let ended = dataplane.ended_with(port_end);
    tokio::spawn(async move {
        let reason = ended.await;
        if reason != STOPPED {
            tell(&format!("the network has failed: {reason}"));
        }
    });
    let mut supervisor = Supervisor::new(child.id(), signals)?;
    child.go()?;
    let code = supervisor.wait().await?;
    process::kill_all_children();
    drain::wait(tables, &control, &mut supervisor).await;
    dataplane.stop()?;
    Ok(code)
}

/// The network, and the command's place in it.
fn network(options: &RunOptions, host_conf: &ResolvConf) -> (NetworkConfig, PortPlan) {
    let subnet = options.subnet.unwrap_or_else(|| {
        let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
        Subnet::free(&routes)
    });
    let ipv6 = (!options.no_ipv6).then(ipv6_plan);
    let mut config = NetworkConfig::new(options.mtu, Some(subnet.plan()), ipv6);
    if options.allow_host_loopback {
        config.allow_host_loopback();
    }
    config.policy.allow_metadata = options.allow_metadata;
    config.search = host_conf.search.clone();
    config.busy_poll = Duration::from_micros(options.busy_poll.into());
    let port = PortPlan {
        ipv4: Some(subnet.container()),
        ipv6: ipv6.map(|_| IPV6_CONTAINER),
        ..PortPlan::default()
    };
    (config, port)
}

fn dns_service(options: &RunOptions, config: &NetworkConfig) -> Arc<Service> {
    let names = LocalNames::new(
        config.ipv4.map(|plan| plan.gateway),
        config.ipv6.map(|plan| plan.gateway),
    );
    let servers = match options.dns.as_slice() {
        [] => Servers::from_file(resolv_conf::PATH),
        chosen => Servers::fixed(chosen.iter().copied().map(Nameserver::from).collect()),
    };
    Service::new(names, servers, Sources::default())
}

/// Where published ports lead.
struct Guests {
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

impl Guests {
    fn of_family(&self, host: IpAddr) -> anyhow::Result<IpAddr> {
        let guest = match host {
            IpAddr::V4(_) => self.ipv4.map(IpAddr::V4),
            IpAddr::V6(_) => self.ipv6.map(IpAddr::V6),
        };
        // A client's own address is shown to the command, so both sides are of one family.
        guest.with_context(|| format!("{host} needs IPv6, which --no-ipv6 leaves out"))
    }
}

/// Opens one port on all the addresses it is meant for, or on none.
async fn publish(
    control: &Control,
    guests: &Guests,
    spec: &PublishSpec,
    pair: PortPair,
) -> anyhow::Result<()> {
    let hosts = match spec.host_ip {
        Some(host) => vec![host],
        None if guests.ipv6.is_some() => {
            vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
        }
        None => vec![Ipv4Addr::UNSPECIFIED.into()],
    };
    let Some(first) = hosts.first().copied() else {
        bail!("there is no address to open it on");
    };
    let implied = spec.host_ip.is_none();
    let open = |port| {
        open_on(
            control,
            guests,
            spec.protocol,
            &hosts,
            port,
            pair.container,
            implied,
        )
    };
    if let Some(port) = pair.host {
        return Ok(open(port).await??);
    }
    for _ in 0..PORT_ATTEMPTS {
        let port = free_port(spec.protocol, first).context("cannot find a free port")?;
        match open(port).await? {
            Err(PublishError::InUse { .. }) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => {
                let at = SocketAddr::new(first, port);
                tell(&format!(
                    "{at} leads to port {}/{}",
                    pair.container, spec.protocol
                ));
                return Ok(());
            }
        }
    }
    bail!("no free port was found in {PORT_ATTEMPTS} attempts")
}

async fn open_on(
    control: &Control,
    guests: &Guests,
    protocol: Protocol,
    hosts: &[IpAddr],
    host_port: u16,
    port: u16,
    implied: bool,
) -> anyhow::Result<Result<(), PublishError>> {
    let mut opened: Vec<ForwardId> = Vec::new();
    for &host in hosts {
        let request = Publish {
            protocol,
            host: SocketAddr::new(host, host_port),
            guest: SocketAddr::new(guests.of_family(host)?, port),
        };
        match control.publish(request).await {
            Ok(id) => opened.push(id),
            // "All addresses" of a host without IPv6 are those of IPv4.
            Err(PublishError::NoFamily { .. } | PublishError::NotLocal { .. })
                if implied && host.is_ipv6() => {}
            Err(error) => {
                for id in opened {
                    // It was opened a moment ago; if it is gone, so much the better.
                    let _ = control.unpublish(id).await;
                }
                return Ok(Err(error));
            }
        }
    }
    Ok(Ok(()))
}

/// A port that nobody has now.
fn free_port(protocol: Protocol, host: IpAddr) -> io::Result<u16> {
    let any = SocketAddr::new(host, 0);
    let bound = match protocol {
        Protocol::Tcp => TcpListener::bind(any)?.local_addr()?,
        Protocol::Udp => UdpSocket::bind(any)?.local_addr()?,
    };
    Ok(bound.port())
}
