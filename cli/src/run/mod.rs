//! `cnet run`: one command with a network of its own, or in another place ([`place`]).
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

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::Context;
use cnet_tap::{Namespaces, SocketHelper, Tap};

pub(crate) use crate::cnet::{OWN_FAILURE, tell};

use crate::logging::report;
use cnet::publish::PublishSpec;
use cnet_netd::dns::resolv_conf::{self, ResolvConf};
use cnet_wire::Protocol;

pub mod args;
mod child;
mod drain;
mod forbidden;
mod handshake;
mod mounts;
pub mod place;
mod plan;
mod process;
mod signals;
mod supervise;
mod uplink;

use args::RunOptions;
use child::Setup;
use drain::TcpTables;
use handshake::Child;
use plan::{Identity, Uplink};
use supervise::Supervisor;
use uplink::Up;

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
    let identity = Identity::new(options)?;
    let plan = plan::make(options, &host_conf, &identity)?;
    let (signals, signal_mask) = signals::block().context("cannot take over the signals")?;
    let setup = Setup {
        spaces: plan.spaces,
        resolv_conf: plan.resolv_conf,
        command: &options.command,
        signal_mask,
    };
    process::become_subreaper().context("cannot look after the command's children")?;
    let child = child::start(&setup)?;
    let id = child.id();
    let done = bring_up(options, &identity, plan.uplink, child, signals);
    if done.is_err() {
        // It has noticed our end of the socket close, and ends. A network's process that we have
        // started may be our child too, and goes on: it has others to serve.
        process::kill_child(id);
    }
    done
}

/// Starts the network, and the command on it.
fn bring_up(
    options: &RunOptions,
    identity: &Identity,
    uplink: Uplink,
    mut child: Child,
    signals: OwnedFd,
) -> anyhow::Result<u8> {
    let (tap, tables) = child.receive()?;
    let supplier = match &uplink {
        Uplink::Private(_) => supplier(options, &child),
        // The network's process has the ports.
        Uplink::Network(_) | Uplink::None => None,
    };
    let entered = identity.enter(options, child.id())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let made = (tap, supplier, tables);
    let ended = runtime.block_on(attend(options, uplink, made, child, signals));
    drop(entered);
    ended
}

/// What makes the sockets for published ports, if there are any.
fn supplier(options: &RunOptions, child: &Child) -> Option<SocketHelper> {
    let tcp = |spec: &PublishSpec| spec.protocol() == Protocol::Tcp;
    if !options.publish.iter().any(tcp) {
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
    options: &RunOptions,
    uplink: Uplink,
    (tap, supplier, tables): (Option<Tap>, Option<SocketHelper>, TcpTables),
    child: Child,
    signals: OwnedFd,
) -> anyhow::Result<u8> {
    let up = Up::bring(options, uplink, tap, supplier, child.id()).await?;
    let mut supervisor = Supervisor::new(child.id(), signals)?;
    child.go()?;
    let waited = supervisor.wait().await;
    process::kill_all_children(up.spared());
    let code = waited?;
    drain::wait(tables, up.control(), &mut supervisor).await;
    up.end().await?;
    Ok(code)
}
