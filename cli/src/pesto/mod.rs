//! `pesto`: shows and changes the ports of a running [`pasta`](crate::pasta), under the command line of
//! passt's program of that name.
//!
//! # Theory of operation
//!
//! The server tells its tables, the client sends changed ones back, and the server tells what became
//! of each rule. Tables that do not change are not sent. Two clients at a time may undo each other's
//! change: the protocol has no word for it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use cnet_wire::Protocol;

use crate::log::report;
use crate::pasta::ports::subtract;
use crate::pasta::wire::{self, Table};
use crate::program::{write_err, write_out};

mod args;
#[cfg(test)]
mod tests;

use args::{ArgsError, Change, Invocation, Options};

/// How long the server may take.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);

/// The program, whose first word is the name that it was called by.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_else(|| "pesto".into());
    let program = program.to_string_lossy();
    match args::parse(args) {
        Ok(Invocation::Help) => {
            let _ = write_out(args::usage(&program));
            ExitCode::SUCCESS
        }
        Ok(Invocation::Version) => {
            let _ = write_out(format!("pesto of cnet {}\n", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        Ok(Invocation::Run(options)) => match run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                write_err(&format!("{program}: {}\n", report(&error)));
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            write_err(&format!("{program}: {error}\n"));
            if let ArgsError::Syntax(_) = error {
                write_err(&args::usage(&program));
            }
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let shown = options.socket.display();
    let mut server = UnixStream::connect(&options.socket)
        .with_context(|| format!("no pasta listens at {shown}"))?;
    server.set_read_timeout(Some(SERVER_TIMEOUT))?;
    let before = wire::read_greeting(&mut server).with_context(|| shown.to_string())?;
    let changed = changed(options, &before)?;
    let only_shown = options.ports.is_empty() && !options.clear;
    let mut errors = Vec::new();
    if !only_shown {
        let sent = server.write_all(&wire::change(&changed));
        sent.context("cannot talk to pasta")?;
        server.shutdown(Shutdown::Write)?;
        errors = failures(&mut server, &changed)?;
    }
    if options.show || only_shown {
        let now = match only_shown {
            true => before,
            false => {
                let mut again = UnixStream::connect(&options.socket)?;
                wire::read_greeting(&mut again)?
            }
        };
        write_out(table_text(&now))?;
    }
    match errors.is_empty() {
        true => Ok(()),
        false => bail!("{}", errors.join("\n")),
    }
}

/// The tables as they are to be: those alone that an option names.
fn changed(options: &Options, before: &[Table]) -> anyhow::Result<Vec<Table>> {
    let mut after = before.to_vec();
    if options.clear && options.ports.is_empty() {
        after.iter_mut().for_each(|(_, rules)| rules.clear());
        return Ok(after);
    }
    let mut cleared: Vec<(wire::Side, Protocol)> = Vec::new();
    for ports in &options.ports {
        let place = after.iter_mut().find(|(side, _)| *side == ports.side);
        let (_, rules) = place.context("this pasta has no such table")?;
        let key = (ports.side, ports.protocol);
        if options.change == Change::Replace && !cleared.contains(&key) {
            rules.retain(|rule| rule.protocol != ports.protocol);
            cleared.push(key);
        }
        for rule in &ports.rules {
            match options.change {
                // What is there already stays as it is.
                Change::Add | Change::Replace if rules.contains(rule) => {}
                Change::Add | Change::Replace => rules.push(rule.clone()),
                Change::Delete => {
                    let left = subtract(rules, rule);
                    *rules = left.with_context(|| format!("port {rule} is not forwarded"))?;
                }
            }
        }
    }
    let named = |side| options.ports.iter().any(|ports| ports.side == side);
    after.retain(|(side, _)| named(*side));
    Ok(after)
}

/// Which rules are not in force, and why.
fn failures(server: &mut impl Read, sent: &[Table]) -> anyhow::Result<Vec<String>> {
    let results = wire::read_answer(server).context("cannot hear what became of the ports")?;
    // Another server tells nothing.
    let results = results.unwrap_or_default();
    let mut errors = Vec::new();
    for (side, texts) in results {
        let rules = sent.iter().find(|(of, _)| *of == side);
        let rules = rules.map(|(_, rules)| rules.as_slice()).unwrap_or_default();
        let failed = rules.iter().zip(texts).filter(|(_, text)| !text.is_empty());
        errors.extend(failed.map(|(rule, text)| {
            let protocol = protocol_name(rule.protocol);
            format!("cannot forward {protocol} port {rule}: {text}")
        }));
    }
    Ok(errors)
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

/// The tables for a person.
fn table_text(tables: &[Table]) -> String {
    let mut text = String::new();
    for (side, rules) in tables {
        text.push_str(side.name());
        text.push('\n');
        for rule in rules {
            let scan = if rule.scan { " (auto)" } else { "" };
            let protocol = protocol_name(rule.protocol);
            text.push_str(&format!("    {protocol} {rule}{scan}\n"));
        }
    }
    text
}
