//! The command line of `cnet`: what there is, and who does it.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::logging::report;

use crate::run::args::RunOptions;

mod attach;
pub(crate) mod each;
mod network;
pub mod network_command;
pub mod network_json;
mod ps;
mod table;
mod top;

/// The exit code when `cnet run` itself fails, as `env`, `timeout` and `docker run` have it; the
/// others exit with 1.
pub(crate) const OWN_FAILURE: u8 = 125;

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
    Network(crate::cnet::network_command::NetworkCommand),
    /// Give a running container an interface on a network.
    Attach(attach::AttachOptions),
    /// Take a container off a network.
    Detach(attach::DetachOptions),
    /// List the containers on networks.
    Ps(ps::PsOptions),
    /// Show all about containers or networks, as JSON.
    Inspect(ps::InspectOptions),
    /// Show what passes, by container.
    Top(top::TopOptions),
    /// Serve a network; started by the other commands.
    #[command(name = cnet::start::SUBCOMMAND, hide = true)]
    NetworkProcess {
        /// The network.
        name: String,
    },
}

/// The program: reads the command line, does what it says, tells the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let is_run = std::env::args_os().nth(1).is_some_and(|word| word == "run");
            return match (error.use_stderr(), is_run) {
                (true, true) => OWN_FAILURE.into(),
                (true, false) => ExitCode::from(2),
                (false, _) => ExitCode::SUCCESS,
            };
        }
    };
    let done = match cli.command {
        Command::Run(options) => return crate::run::main(&options),
        Command::Network(command) => {
            let ask = network::ask(&command);
            return crate::cnet::network_command::main(command, &ask);
        }
        Command::NetworkProcess { name } => return cnet_netd::main(&name, network_log),
        Command::Attach(options) => attended(attach::attach(options)),
        Command::Detach(options) => attended(attach::detach(options)),
        Command::Ps(options) => attended(ps::ps(options)),
        Command::Inspect(options) => attended(ps::inspect(options)),
        Command::Top(options) => attended(top::top(options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&report(&error));
            ExitCode::FAILURE
        }
    }
}

/// Has a network's process log to its own file, if that is its standard error.
fn network_log(own: Option<cnet::log::Bounded>) {
    match own {
        Some(log) => crate::logging::start_into(tracing::Level::INFO, Mutex::new(log)),
        None => crate::logging::start(tracing::Level::INFO),
    }
}

/// Runs a command that asks network processes.
fn attended(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    crate::logging::start(tracing::Level::WARN);
    runtime()?.block_on(command)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.context("cannot start the event loop")
}

/// A line to the person at the terminal, who may have closed standard error.
pub(crate) fn tell(text: &str) {
    let _ = io::stderr().write_all(format!("cnet: {text}\n").as_bytes());
}

/// A result on standard output. `false` once nobody reads it any more.
fn print(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
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
