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
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cnet_tap::Tap;

use crate::addresses::{IPV6_CONTAINER, Subnet, ipv6_plan};
use crate::dataplane::{Dataplane, NetworkConfig, PortDevice, PortPlan, STOPPED};
use crate::dns::resolv_conf::{self, ResolvConf};
use crate::dns::{LocalNames, Nameserver, Servers, Service, Sources};
pub(crate) use crate::cli::{OWN_FAILURE, tell};
use crate::logging::report;
use crate::published::{self, Guests, Opened};

pub mod args;
mod child;
mod drain;
mod forbidden;
mod handover;
mod mounts;
pub(crate) mod process;
mod signals;
mod supervise;

use args::RunOptions;
use child::Setup;
use drain::TcpTables;
use handover::Child;
use supervise::Supervisor;

/// The interface's name in the namespace, as in other containers.
const INTERFACE: &str = "eth0";

/// Runs the command, and gives its exit code.
pub(crate) fn main(options: &RunOptions) -> ExitCode {
    match run(options) {
        Ok(code) => code.into(),
        Err(error) => {
            tell(&report(&error));
            OWN_FAILURE.into()
        }
    }
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(attend(options, config, port, (tap, tables), child, signals))
}

async fn attend(
    options: &RunOptions,
    config: NetworkConfig,
    port: PortPlan,
    (tap, tables): (Tap, TcpTables),
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
    let (_, port_end) = control.add_port(port, PortDevice::Tap(tap)).await?;
    let answers = control.clone();
    tokio::spawn(async move {
        while let Some(query) = queries.recv().await {
            crate::dns::serve_query(&dns, &answers, query);
        }
    });
    for spec in &options.publish {
        let opened = published::open(&control, guests, spec).await?;
        tell_chosen(&opened);
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
    drain::wait(tables, &mut supervisor).await;
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

/// Tells which ports were chosen, each once.
fn tell_chosen(opened: &[Opened]) {
    let mut told = None;
    for Opened {
        publish, chosen, ..
    } in opened
    {
        let at = (publish.protocol, publish.host.port());
        if *chosen && told.replace(at) != Some(at) {
            let (host, port) = (publish.host, publish.guest.port());
            tell(&format!("{host} leads to port {port}/{}", publish.protocol));
        }
    }
}
