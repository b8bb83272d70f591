//! `cnet-slirp`: what slirp4netns does, under its command line.
//!
//! # Theory of operation
//!
//! The order of steps is the contract with the caller:
//!
//! 1. The command line is read and the descriptors it names are taken ([`cnet_tap::inherited_fd`]).
//! 2. The target is pinned: a process by a pidfd, a path by its file (`target`).
//! 3. Still single-threaded, the TAP is opened and configured inside the namespaces, and the helpers
//!    are forked.
//! 4. The API socket is bound, the sandbox is entered, the worker starts, DNS is served.
//! 5. `1` is written to the ready descriptor, which is closed.
//! 6. The main thread waits for the end.
//!
//! # How it ends
//!
//! With 0 when the exit descriptor hangs up (`exit`), on SIGTERM and SIGINT, and when the target is gone:
//! its process has ended, or its path was removed or stands for another file. With 1 on any error,
//! and when the TAP was taken away under it. Each time connections are reset, ports closed and the
//! API socket removed. slirp4netns itself knows nothing of its target's end, and dies of SIGTERM
//! without removing its socket.
//!
//! # Limits
//!
//! A namespace named by a path is noticed to be gone when the path is; an unmount that leaves the
//! file in place fires no event until something else happens in its directory.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::Context;
use cnet_tap::{InterfaceConfig, TapError};
use tokio::signal::unix::{SignalKind, signal};

use crate::log::{self, report};
use crate::program::{DENY_METADATA, event_loop, metadata_is_denied, write_err, write_out};
use cnet_dataplane::{NetworkConfig, PortPlan, Quirks};
use cnet_netd::Instance;
use cnet_netd::outside::{Host, HostFiles};
use cnet_tap::inherited_fd;
use cnet_tap::sandbox::{Mode, Policy, Role};
use cnet_wire::prefixes::{IPV6_CONTAINER, ipv6_plan};

mod api;
mod args;
mod exit;
mod link;
mod source;

use crate::target::Target;
use api::{Api, ApiSocket};
use args::{Invocation, Options};
use exit::{ExitEvent, ExitFd};
use link::Link;

/// The smallest MTU of a link with IPv6 (RFC 8200 section 5).
const IPV6_MIN_MTU: u16 = 1280;

/// The program: reads the command line, whose first word is the name that it was called by, runs until
/// the end, tells the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_else(|| "cnet-slirp".into());
    let program = program.to_string_lossy();
    match args::parse(args) {
        Ok(Invocation::Help) => {
            print(&args::usage(&program));
            ExitCode::SUCCESS
        }
        Ok(Invocation::Version) => {
            print(&version());
            ExitCode::SUCCESS
        }
        Ok(Invocation::Run(options)) => match run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                write_err(&format!("{program}: {}{}\n", report(&error), hint(&error)));
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            write_err(&format!("{program}: {error}\n"));
            print(&args::usage(&program));
            ExitCode::FAILURE
        }
    }
}

/// The option that helps where a namespace belongs to a user namespace which was not named.
fn hint(error: &anyhow::Error) -> &'static str {
    match error.downcast_ref() {
        Some(
            TapError::CreateDenied { .. }
            | TapError::EnterDenied {
                kind: "network", ..
            },
        ) => "; or name that user namespace with --userns-path",
        _ => "",
    }
}

/// In the form of slirp4netns, whose callers look for the fourth line to learn what it can do.
fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("CNET_COMMIT").unwrap_or("unknown");
    format!(
        "cnet-slirp version {version}\ncommit: {commit}\nlibslirp: none, cnet {version}\n\
         SLIRP_CONFIG_VERSION_MAX: 4\nlibseccomp: none\n"
    )
}

/// To standard output, as far as that goes.
fn print(text: &str) {
    let _ = write_out(text);
}

fn run(options: &Options) -> anyhow::Result<()> {
    // Before anything is opened: what they name is what the caller has left open.
    let exit = ExitFd::take(options.exit_fd);
    // A descriptor that is not open, or not any more, has no process that waits at it.
    let ready_fd = options.ready_fd.and_then(|fd| inherited_fd::take(fd).ok());
    let tap = link::take_tap(&options.target);
    for warning in &options.warnings {
        write_err(&format!("WARNING: {warning}\n"));
    }
    log::start(tracing::Level::WARN);
    cnet_dataplane::check_descriptors()?;
    let (config, mut port) = network(options)?;
    let interface = options.configure.then(|| interface(&config, &port));
    let Some(link) = Link::open(options, tap, interface.as_ref(), &exit)? else {
        return Ok(());
    };
    if link.lacks_ipv6() {
        write_err("WARNING: IPv6 is left out: it is switched off in the namespace\n");
        port.ipv6 = None;
    }
    let host = host(options, link.target.as_ref())?;
    event_loop()?.block_on(serve(options, (config, port, host), link, exit, ready_fd))
}

/// The container's interface. Its IPv6 route leads to the gateway's link-local address, as the one that
/// comes with router advertisements does.
fn interface(config: &NetworkConfig, port: &PortPlan) -> InterfaceConfig {
    let mut interface = config.interface(port);
    if let (Some(plan), Some(link_local)) = (config.ipv6, config.quirks.link_local) {
        for gateway in &mut interface.gateways {
            if *gateway == IpAddr::V6(plan.gateway) {
                *gateway = link_local.into();
            }
        }
    }
    interface
}

/// What is asked of the host while the program runs, which no file is in sight of then.
fn host(options: &Options, target: Option<&Target>) -> anyhow::Result<Host> {
    let absolute = options.api_socket.as_ref().map(std::path::absolute);
    let files = HostFiles {
        watched: target.and_then(Target::watched),
        socket: absolute
            .transpose()
            .context("cannot use the API socket's path")?,
    };
    Ok(match options.sandbox {
        Mode::Off => Host::here(files),
        Mode::Offered | Mode::Required => Host::outside(files)?,
    })
}

/// What the sandbox is to be. The API may publish ports below 1024 at any time.
fn sandbox(options: &Options) -> Policy {
    let mut policy = Policy::new(Role::Private, options.sandbox);
    policy.binds_low_ports = options.api_socket.is_some();
    policy.environment = cnet_dataplane::ENVIRONMENT.to_vec();
    policy
}

/// The network, and the container's port on it.
///
/// # Errors
///
/// When an interface to send from is not there, or has no address.
fn network(options: &Options) -> anyhow::Result<(NetworkConfig, PortPlan)> {
    let ipv4 = options.subnet.plan();
    let ipv6 = (options.ipv6 && options.mtu >= IPV6_MIN_MTU).then(ipv6_plan);
    if options.ipv6 && ipv6.is_none() {
        let mtu = options.mtu;
        write_err(&format!(
            "WARNING: IPv6 is left out: it needs an MTU of {IPV6_MIN_MTU}, not of {mtu}\n"
        ));
    }
    let mut config = NetworkConfig::new(options.mtu, Some(ipv4), ipv6);
    if !options.disable_host_loopback {
        config.allow_host_loopback();
    }
    config.quirks = Quirks {
        silent_dns: options.disable_dns,
        ..Quirks::slirp4netns()
    };
    // As slirp4netns, which has no such guard; its callers bring their own.
    config.policy.allow_metadata = !metadata_is_denied();
    if config.policy.allow_metadata {
        tracing::info!(
            "the cloud's instance metadata can be reached; {DENY_METADATA}=1 refuses it"
        );
    }
    config.outbound_v4 = match &options.outbound_v4 {
        Some(source) => Some(source::ipv4(source)?),
        None => None,
    };
    config.outbound_v6 = match &options.outbound_v6 {
        Some(source) => Some(source::ipv6(source)?),
        None => None,
    };
    config.busy_poll = options.busy_poll;
    config.workers = options.workers;
    let port = PortPlan {
        mac: options.mac,
        ipv4: Some(options.subnet.container()),
        ipv6: ipv6.map(|_| IPV6_CONTAINER),
        ..PortPlan::default()
    };
    Ok((config, port))
}

async fn serve(
    options: &Options,
    (config, port, host): (NetworkConfig, PortPlan, Host),
    link: Link,
    exit: ExitFd,
    ready_fd: Option<OwnedFd>,
) -> anyhow::Result<()> {
    // Before readiness is told, so that none of these is lost.
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let target = link.target.map(|target| target.watch(host.clone()));
    let target = target.transpose()?;
    let gone = async {
        match target {
            Some(gone) => gone.await,
            None => std::future::pending().await,
        }
    };
    let exit = ExitEvent::new(exit)?;
    let text = summary(options, &config);

    let (guest_v4, guest_v6) = (options.subnet.container(), port.ipv6);
    let bind = |path| ApiSocket::bind(path, host.clone());
    let socket = options.api_socket.as_deref().map(bind).transpose()?;
    let builder = Instance::builder(config).sandbox(sandbox(options), host.clone());
    let instance = builder.start()?;
    let joined = instance.join(port, link.device, link.socket_helper);
    let (_, port_end) = joined.await?;
    let api = Api::new(instance.control(), guest_v4, guest_v6);
    print(&text);
    if let Some(fd) = ready_fd {
        // A caller that has gone does not wait for it.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&fd, b"1"));
    }
    let serving = async {
        match &socket {
            Some(socket) => socket.serve(api).await,
            None => std::future::pending().await,
        }
    };
    let ended = instance.ended_with(port_end);
    let failure = tokio::select! {
        () = serving => None,
        () = exit.wait() => None,
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        () = gone => None,
        reason = ended => Some(reason),
    };
    drop(socket);
    let stopped = instance.stop();
    match failure {
        Some(reason) => Err(anyhow::Error::msg(reason)),
        None => Ok(stopped?),
    }
}

/// In slirp4netns's form, which people look for.
fn summary(options: &Options, config: &NetworkConfig) -> String {
    use std::fmt::Write;

    let plan = options.subnet.plan();
    let mask = Ipv4Addr::from(!(u32::MAX >> plan.prefix_len));
    let mut text = format!(
        "Starting cnet-slirp\n* MTU:             {}\n* Network:         {}\n\
         * Netmask:         {mask}\n* Gateway:         {}\n",
        options.mtu, plan.network, plan.gateway
    );
    if let (Some(dns), false) = (plan.dns, options.disable_dns) {
        let _ = writeln!(text, "* DNS:             {dns}");
    }
    let _ = writeln!(
        text,
        "* DHCP begin:      {}\n* DHCP end:        {}\n* Recommended IP:  {}",
        plan.dhcp_range.0,
        plan.dhcp_range.1,
        options.subnet.container()
    );
    if let Some(path) = &options.api_socket {
        let _ = writeln!(text, "* API Socket:      {}", path.display());
    }
    if let Some(source) = config.outbound_v4 {
        let _ = writeln!(text, "* Outbound IPv4:   {source}");
    }
    if let Some(source) = config.outbound_v6 {
        let _ = writeln!(text, "* Outbound IPv6:   {source}");
    }
    if let Some(mac) = options.mac {
        let _ = writeln!(text, "* MAC address:     {mac}");
    }
    if !options.disable_host_loopback {
        let _ = writeln!(
            text,
            "WARNING: 127.0.0.1:* on the host is accessible as {} (set --disable-host-loopback to \
             prohibit connecting to 127.0.0.1:*)",
            plan.gateway
        );
    }
    text
}
