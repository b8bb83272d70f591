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
//! `cnet run` the two are one job. With `-t` it has a terminal and a session of its own ([`terminal`]),
//! and with `-d` there is another process of `cnet run` that goes on in the background ([`detached`]).
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
use cnet::control::PublishedPort;
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
mod detached;
mod drain;
pub(crate) mod exec;
mod handshake;
pub(crate) mod id_maps;
mod init;
mod init_messages;
mod joined;
mod links;
pub(crate) mod mounts;
pub(crate) mod network_mode;
mod own_files;
mod plan;
mod private;
pub(crate) mod process;
mod signals;
mod supervise;
mod terminal;
mod userns_restrictions;

use args::RunOptions;
use child::Setup;
use command::CommandPlan;
use connectivity::Connectivity;
pub(crate) use connectivity::write_ports;
use detached::Report;
use drain::TcpTables;
use handshake::{Child, Made};
use id_maps::IdMaps;
use plan::{ConnectivityPlan, Identity, Spaces};
use private::Started;
use supervise::Supervisor;
use terminal::Pty;

/// Above this are the exit codes of commands that a signal has ended.
const SIGNALLED: u8 = 128;

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
    if options.detach && options.detached_id.is_none() {
        return detached::start();
    }
    let identity = Identity::new(options)?;
    let mut told = Report::take(options, identity.registry().as_ref(), identity.name())?;
    let done = start(options, &identity, &mut told);
    if let (Err(error), true) = (&done, options.detached_id.is_some()) {
        told.failed(OWN_FAILURE, &report(error));
        return Ok(OWN_FAILURE);
    }
    done
}

/// Makes the child, and looks after it.
fn start(options: &RunOptions, identity: &Identity, told: &mut Report) -> anyhow::Result<u8> {
    let host_conf = ResolvConf::read(resolv_conf::PATH.as_ref()).unwrap_or_default();
    let plan = plan::make(options, &host_conf, identity)?;
    let id_maps = IdMaps::choose(options)?;
    let (signals, signal_mask) = signals::block().context("cannot take over the signals")?;
    let saved = terminal::Saved::now();
    let pty = own_terminal(options, &saved)?;
    let (master, slave) = pty.map(|pty| (pty.master, pty.slave)).unzip();
    let pid_namespace = !matches!(plan.spaces, Spaces::Inherited);
    let mut setup = Setup {
        pid_namespace,
        spaces: plan.spaces,
        own_files: plan.own_files,
        networks: identity.make_runtime(),
        command: CommandPlan {
            words: &options.command,
            env: &options.env,
            workdir: options.workdir.as_deref(),
            terminal: slave,
        },
        id_maps,
        signal_mask,
    };
    become_subreaper().context("cannot look after the command's children")?;
    let (child, made) = child::start(&mut setup)?;
    let id = child.id();
    tell_spaces(&setup, id);
    // The terminal ends with the command's descriptors of it.
    setup.command.terminal = None;
    let streams = Streams { signals, master };
    let done = bring_up(
        (options, identity),
        plan.connectivity,
        (child, made),
        (streams, told),
    );
    match &done {
        // It has noticed our end of the socket close, and ends. A network's process that we have
        // started may be our child too, and goes on: it has others to serve.
        Err(_) => process::kill_child(id),
        // A command that was killed has left the terminal as it was.
        Ok(code) if *code > SIGNALLED => saved.restore(),
        Ok(_) => {}
    }
    done
}

/// A terminal for the command, if it is to have one.
fn own_terminal(options: &RunOptions, saved: &terminal::Saved) -> anyhow::Result<Option<Pty>> {
    let in_background = options.detached_id.is_some();
    match options.tty {
        true if saved.is_terminal() || in_background => Pty::open().map(Some),
        true => {
            tell("--tty: standard input is no terminal, so the command gets none");
            Ok(None)
        }
        false => Ok(None),
    }
}

/// What comes in while the command runs: signals, and this program's end of its terminal.
struct Streams {
    signals: OwnedFd,
    master: Option<OwnedFd>,
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
    (options, identity): (&RunOptions, &Identity),
    connectivity: ConnectivityPlan,
    (child, (tap, tables)): (Child, Made),
    (streams, told): (Streams, &mut Report),
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
        ConnectivityPlan::Networks(_) | ConnectivityPlan::None => None,
    };
    let entered = identity.enter(options, &connectivity, child.id())?;
    let runtime = event_loop()?;
    let made = (private, tables);
    let publish_file = options.publish_file.as_deref();
    let begin = |ports: &[PublishedPort]| {
        if let (Some((entered, running)), false) = (&entered, ports.is_empty()) {
            let mut running = running.clone();
            running.ports = ports.to_vec();
            if let Err(error) = entered.update(&running) {
                tracing::info!(%error, "`cnet ps` will not show the ports");
            }
        }
        told.ready();
    };
    let ended = runtime.block_on(attend(
        (connectivity, publish_file),
        made,
        (child, streams),
        begin,
    ));
    if let (Some((_, running)), Ok(code)) = (&entered, &ended) {
        identity.end(options, running, *code);
    }
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

/// Looks after the command. `begin` is called when it starts, with the published ports of a network of
/// its own.
async fn attend(
    (connectivity, publish_file): (ConnectivityPlan, Option<&Path>),
    (private, tables): (Option<Started>, TcpTables),
    (child, streams): (Child, Streams),
    begin: impl FnOnce(&[PublishedPort]),
) -> anyhow::Result<u8> {
    let (network, ports) =
        Connectivity::bring(connectivity, private, child.id(), publish_file).await?;
    let mut supervisor = Supervisor::new(child.id(), streams.signals)?;
    let copied = match streams.master {
        Some(master) => {
            let copied = terminal::Copied::start(&master)?;
            supervisor.has_terminal(master);
            Some(copied)
        }
        None => None,
    };
    let is_private = network.private().is_some();
    begin(if is_private { &ports } else { &[] });
    tracing::info!("the command starts");
    supervisor.talk_with(child.go()?)?;
    let waited = supervisor.wait().await;
    if !supervisor.has_init() {
        process::kill_all_children(&network.spared());
    }
    if let Some(copied) = copied {
        copied.end();
    }
    let code = waited?;
    drain::wait(tables, network.private(), &mut supervisor).await;
    network.end().await?;
    Ok(code)
}
