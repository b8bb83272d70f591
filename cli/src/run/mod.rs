//! `cnet run`: one command with a network of its own, or on another one ([`network_mode`]).
//!
//! # Theory of operation
//!
//! Before there is any thread, a child is forked. It makes the namespaces, opens and configures
//! the TAP inside them and puts a `resolv.conf` of its own in place ([`child`]), sends the TAP to
//! the parent, and waits. The parent starts the dataplane on the TAP, publishes the ports, and
//! lets the child go, which becomes the command. Then the parent looks after it ([`supervise`]):
//! signals go through, a stop stops both, and the command's end ends all.
//!
//! On a named network the interface comes from that network's process instead: the child is
//! attached like any other container, and the network's process is started again if it dies.
//!
//! The command keeps the terminal, the session and the process group: to the shell that started
//! `cnet run` the two are one job.
//!
//! # What is left behind
//!
//! Nothing. Namespaces, mounts and the TAP live as long as the command's processes, and those no
//! longer than the command: they are in a PID namespace, whose first process ([`init`]) ends with the
//! command and with this program, however that ends. Data that the command had handed to its kernel
//! before it ended still goes out ([`drain`]).
//!
//! # Limits
//!
//! Where /proc cannot be mounted anew, as in many containers, and on the host's network
//! (`--network host`), there is no PID namespace: when cnet itself is killed by SIGKILL, the kernel
//! kills the command (`PR_SET_PDEATHSIG`), but processes that the command had started stay, and so
//! does a command that has changed its credentials: the kernel takes that for a withdrawal (prctl(2)).
//! A command in a PID namespace sees its own processes alone.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use cnet_tap::fork::become_subreaper;
use cnet_tap::{Namespaces, SocketHelper};
use rustix::process::Pid;

use crate::log::{self, report};
use crate::program::{OWN_FAILURE, event_loop, tell};
use cnet_netd::dns::resolv_conf::{self, ResolvConf};

pub(crate) mod args;
pub(crate) mod child;
pub(crate) mod command;
mod connectivity;
mod drain;
mod handshake;
mod init;
mod init_messages;
mod joined;
pub(crate) mod mounts;
pub(crate) mod network_mode;
mod own_files;
mod plan;
mod private;
pub(crate) mod process;
mod signals;
mod supervise;
mod userns_restrictions;

use args::RunOptions;
use child::Setup;
use connectivity::Connectivity;
pub(crate) use connectivity::write_ports;
use drain::TcpTables;
use handshake::{Child, Made};
use plan::{ConnectivityPlan, Identity, Spaces};
use private::Started;
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
    cnet_dataplane::check_descriptors()?;
    log::start(match options.verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    });
    if let Err(code) = command::check(&options.command) {
        return Ok(code);
    }
    let host_conf = ResolvConf::read(resolv_conf::PATH.as_ref()).unwrap_or_default();
    let identity = Identity::new(options)?;
    let plan = plan::make(options, &host_conf, &identity)?;
    let (signals, signal_mask) = signals::block().context("cannot take over the signals")?;
    let pid_namespace = !matches!(plan.spaces, Spaces::Inherited);
    let mut setup = Setup {
        pid_namespace,
        spaces: plan.spaces,
        own_files: plan.own_files,
        networks: identity.make_runtime(),
        command: &options.command,
        signal_mask,
    };
    become_subreaper().context("cannot look after the command's children")?;
    let (child, made) = child::start(&mut setup)?;
    let id = child.id();
    tell_spaces(&setup, id);
    let done = bring_up(
        options,
        &identity,
        plan.connectivity,
        (child, made),
        signals,
    );
    if done.is_err() {
        // It has noticed our end of the socket close, and ends. A network's process that we have
        // started may be our child too, and goes on: it has others to serve.
        process::kill_child(id);
    }
    done
}

/// Logs what the child has made, for `-v`.
fn tell_spaces(setup: &Setup<'_>, id: Pid) {
    let spaces = match setup.spaces {
        Spaces::Private(..) | Spaces::Empty => "a network namespace of its own",
        Spaces::Inherited => "the host's network",
        Spaces::Joined(_) => "the namespaces of a container",
    };
    tracing::info!("process {} is on {spaces}", id.as_raw_nonzero());
    if setup.pid_namespace {
        tracing::info!("it is the first process of a PID namespace");
    }
    if let Some(own) = &setup.own_files {
        let names: Vec<&str> = own.names().collect();
        tracing::info!("it has files of its own in /etc: {}", names.join(", "));
    }
}

/// Starts the network, and the command on it.
fn bring_up(
    options: &RunOptions,
    identity: &Identity,
    connectivity: ConnectivityPlan,
    (child, (tap, tables)): (Child, Made),
    signals: OwnedFd,
) -> anyhow::Result<u8> {
    let private = match &connectivity {
        ConnectivityPlan::Private(private) => {
            let (config, port) = (**private).clone();
            let parts = private::Parts {
                config,
                port,
                tap: tap.context("the child sent no TAP")?,
                socket_helper: socket_helper(options, &child),
            };
            Some(private::start(options, parts)?)
        }
        ConnectivityPlan::Network(_) | ConnectivityPlan::None => None,
    };
    let entered = identity.enter(options, child.id())?;
    let runtime = event_loop()?;
    let made = (private, tables);
    let publish_file = options.publish_file.as_deref();
    let ended = runtime.block_on(attend((connectivity, publish_file), made, child, signals));
    drop(entered);
    ended
}

/// What makes the sockets for published ports, if there are any.
fn socket_helper(options: &RunOptions, child: &Child) -> Option<SocketHelper> {
    if options.publish.is_empty() {
        return None;
    }
    // The child waits to be let go, so it is there, and still has the number.
    match Namespaces::of_process(child.id().as_raw_pid()) {
        Ok(namespaces) => cnet_dataplane::start_socket_helper(&namespaces),
        Err(error) => {
            tracing::warn!(%error, "connections from the host's loopback are not spliced");
            None
        }
    }
}

async fn attend(
    (connectivity, publish_file): (ConnectivityPlan, Option<&Path>),
    (private, tables): (Option<Started>, TcpTables),
    child: Child,
    signals: OwnedFd,
) -> anyhow::Result<u8> {
    let network = Connectivity::bring(connectivity, private, child.id(), publish_file).await?;
    let mut supervisor = Supervisor::new(child.id(), signals)?;
    tracing::info!("the command starts");
    supervisor.talk_with(child.go()?)?;
    let waited = supervisor.wait().await;
    if !supervisor.has_init() {
        process::kill_all_children(&network.spared());
    }
    let code = waited?;
    drain::wait(tables, network.private(), &mut supervisor).await;
    network.end().await?;
    Ok(code)
}
