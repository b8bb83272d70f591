//! The program `cnet`: its subcommands, one file or folder each, and its exit codes.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::log::{self, report};
use crate::program::{OWN_FAILURE, event_loop, tell, write_err, write_out};
use crate::run::args::RunOptions;
use crate::sandbox::SandboxOptions;

mod attach;
mod container;
mod dns;
mod doctor;
mod documentation;
mod events;
mod format;
mod held;
mod inspect;
mod metrics;
mod mistakes;
mod network;
mod policy;
mod ps;
mod publish;
mod table;
mod template;
mod top;
mod trust;

/// The exit code for a command line that cannot be read, of all commands but `cnet run` and `exec`.
const UNREADABLE: u8 = 2;

/// Networks for containers, in user space and without privileges.
#[derive(Parser, Debug)]
#[command(name = "cnet", version, propagate_version = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a command with a network of its own, or on a network.
    Run(Box<RunOptions>),
    /// Make, show and remove networks.
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Give a running container an interface on a network.
    Attach(Box<attach::AttachOptions>),
    /// Take a container off a network.
    Detach(attach::DetachOptions),
    /// Show what containers ask for by name.
    #[command(subcommand)]
    Dns(dns::DnsCommand),
    /// Open ports of the host that lead to a container on a network, while it runs.
    Publish(publish::PublishOptions),
    /// Close published ports of a container.
    Unpublish(publish::PublishOptions),
    /// List the published ports of a container.
    Port(publish::PortOptions),
    /// List the containers on networks.
    Ps(ps::PsOptions),
    /// Run a further command in a container.
    Exec(Box<crate::run::exec::ExecOptions>),
    /// Print what a container in the background has written.
    Logs(held::LogsOptions),
    /// End containers of `cnet run`: by a signal, and after a while by SIGKILL.
    Stop(held::StopOptions),
    /// Send a signal to containers of `cnet run`.
    Kill(held::KillOptions),
    /// Forget containers of the background that have ended.
    Rm(held::RemoveOptions),
    /// Print which containers join networks and leave them, as it happens.
    Events(events::EventsOptions),
    /// Show all about containers or networks, as JSON.
    Inspect(inspect::InspectOptions),
    /// Show what passes, by container.
    Top(top::TopOptions),
    /// Say who may speak to whom on a network.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Print what networks count, for Prometheus, or serve it.
    Metrics(metrics::MetricsOptions),
    /// Let programs of another user namespace, such as a container engine's, use the networks.
    Trust(trust::TrustOptions),
    /// Tell what this host offers, and what to do about what it does not.
    Doctor,
    /// Print what a shell completes the command line by.
    Completion(documentation::CompletionOptions),
    /// Write the manual pages.
    Man(documentation::ManOptions),
    /// Serve a network; started by the other commands.
    #[command(name = cnet::start::SUBCOMMAND, hide = true)]
    NetworkProcess {
        /// The network.
        name: String,
        /// What its process gives up.
        #[command(flatten)]
        sandbox: SandboxOptions,
    },
}

/// The program: reads the command line, does what it says, tells the exit code.
pub fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error, &words),
    };
    let done = match cli.command {
        Command::Run(options) => return crate::run::main(&options),
        Command::Network(command) => network::main(command),
        Command::NetworkProcess { name, sandbox } => {
            return cnet_netd::main(&name, sandbox.mode(), log::start_to);
        }
        Command::Attach(options) => attended(attach::attach(*options)),
        Command::Detach(options) => attended(attach::detach(options)),
        Command::Dns(dns::DnsCommand::Log(options)) => attended(dns::log(options)),
        Command::Publish(options) => attended(publish::publish(options)),
        Command::Unpublish(options) => attended(publish::unpublish(options)),
        Command::Port(options) => attended(publish::port(options)),
        Command::Ps(options) => attended(ps::ps(options)),
        Command::Inspect(options) => attended(inspect::inspect(options)),
        Command::Policy(command) => attended(policy::policy(command)),
        Command::Exec(options) => return crate::run::exec::main(&options),
        Command::Logs(options) => attended(held::logs(options)),
        Command::Stop(options) => attended(held::stop(options)),
        Command::Kill(options) => attended(held::kill(options)),
        Command::Rm(options) => attended(held::remove(options)),
        Command::Events(options) => attended(events::events(options)),
        Command::Metrics(options) => attended(metrics::metrics(options)),
        Command::Trust(options) => trust::trust(&options),
        Command::Doctor => doctor::doctor(),
        Command::Completion(options) => documentation::completion(&options),
        Command::Man(options) => documentation::man(&options),
        Command::Top(options) => attended(top::top(options)),
    };
    code_of(done)
}

/// The exit code of a command other than `cnet run`, whose failure is told.
fn code_of(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&report(&error));
            ExitCode::FAILURE
        }
    }
}

/// Prints the help or version that was asked for, or what is wrong with the command line.
fn not_parsed(error: &clap::Error, words: &[OsString]) -> ExitCode {
    if !error.use_stderr() {
        return code_of(print(&error.render().to_string()).map(drop));
    }
    write_err(&mistakes::explain(error, words));
    match words
        .get(1)
        .is_some_and(|word| word == "run" || word == "exec")
    {
        true => OWN_FAILURE.into(),
        false => ExitCode::from(UNREADABLE),
    }
}

/// Runs a command that asks network processes.
fn attended(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    log::start(tracing::Level::WARN);
    event_loop()?.block_on(command)
}

/// A result on standard output. `false` once nothing reads it any more.
fn print(text: &str) -> anyhow::Result<bool> {
    print_bytes(text.as_bytes())
}

/// As [`print()`], of what may be no text.
fn print_bytes(bytes: &[u8]) -> anyhow::Result<bool> {
    match write_out(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
