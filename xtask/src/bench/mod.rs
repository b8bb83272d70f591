//! `cargo xtask bench`: cnet and its peers at the same work, side by side.
//!
//! # Theory of operation
//!
//! Two hosts in network namespaces, joined by a cable ([`hosts`]); containers on one of them, each
//! served by a contender ([`contenders`]); load from threads of this process, whose sockets are made
//! inside those namespaces ([`load`]); rows of load on a way, in a family, at an MTU ([`work`]).
//!
//! A run goes round by round. In a round every row is measured with every contender, one straight
//! after the other, and whoever begins changes from row to row: what disturbs the machine for a
//! while disturbs all alike. Every sample has a container and a program of its own. The report
//! ([`report`], [`svg`]) gives medians, and ratios between medians of the run.
//!
//! # Limits
//!
//! Load and contender share the processors, as they do in life; on few cores a contender that needs
//! less leaves more to the load. Figures of different machines cannot be compared, their ratios
//! with care.
//!
//! Nothing is sent but between the namespaces of the run. They go with it, also after an error or
//! Ctrl-C.

mod arguments;
mod contenders;
mod daemon;
pub mod dns;
mod hosts;
mod interrupt;
mod load;
mod machine;
mod namespace;
mod program;
mod report;
mod svg;
mod usage;
mod way;
mod work;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use arguments::{Options, Request, USAGE};
use contenders::{CONTENDERS, Chosen, Contender};
use hosts::Hosts;
use machine::Machine;
use report::{Record, Report, figure};

use crate::cargo;

/// Runs the command with the words after `bench`. Returns whether every sample succeeded.
///
/// # Errors
/// A wrong command line; not root; a program is missing that was asked for.
pub fn run(words: &[&str]) -> anyhow::Result<bool> {
    match arguments::parse(words)? {
        Request::Help => println!("{USAGE}"),
        Request::List => list(),
        Request::Run(options) => return measure(&options),
    }
    Ok(true)
}

fn list() {
    println!("rows:");
    for work in work::all() {
        println!("  {}", work.name);
    }
    println!("contenders:");
    for contender in CONTENDERS {
        println!("  {:12} {}", contender.name, contender.about);
    }
}

fn measure(options: &Options) -> anyhow::Result<bool> {
    if !crate::machine::is_root() {
        bail!("makes network namespaces: run as root, cargo xtask bench");
    }
    crate::machine::prepare()?;
    if let Some(name) = &options.congestion_control {
        namespace::choose_congestion_control(name);
    }
    let programs = programs(options)?;
    interrupt::watch()?;
    let mut hosts = Hosts::create()?;
    let contenders = choose(options, &programs, &hosts)?;
    let machine = Machine::describe(&contenders);
    if let Some(warning) = machine.warning() {
        eprintln!("{warning}");
    }
    let (records, rounds) = rounds(options, &mut hosts, &contenders);
    drop(hosts);
    let seconds = options.pace.window.length.as_secs_f64();
    let extent = (rounds, seconds);
    let report = Report::new(machine, extent, &options.works, &contenders, &records);
    write(&report, options.write)?;
    print!("{}", report.markdown());
    Ok(!interrupt::pending() && report.failures.is_empty())
}

/// Takes all samples. Returns them, and how many rounds were begun.
fn rounds(options: &Options, hosts: &mut Hosts, contenders: &[Chosen]) -> (Vec<Record>, usize) {
    let mut records = Vec::new();
    for round in 0..options.rounds {
        for (index, work) in options.works.iter().enumerate() {
            for turn in 0..contenders.len() {
                let place = (turn + round + index) % contenders.len();
                let Some(chosen) = contenders.get(place) else {
                    continue;
                };
                if !work.suits(chosen.contender) {
                    continue;
                }
                let result = work.sample(hosts, chosen, &options.pace);
                if interrupt::pending() {
                    // What an interruption broke off is not the contender's failure.
                    eprintln!("interrupted");
                    return (records, round + 1);
                }
                let result = result.map_err(|error| format!("{error:#}"));
                let name = chosen.contender.name;
                eprintln!(
                    "round {} {} {name}: {}",
                    round + 1,
                    work.name,
                    brief(&result)
                );
                records.push(Record {
                    work: index,
                    contender: place,
                    result,
                });
            }
        }
    }
    (records, options.rounds)
}

fn brief(result: &Result<work::Figures, String>) -> String {
    match result {
        Err(reason) => format!("FAILED: {reason}"),
        Ok(figures) => {
            let parts = figures.iter().map(|(metric, value)| {
                format!("{} {} {}", metric.name, figure(*value), metric.unit)
            });
            parts.collect::<Vec<_>>().join(", ")
        }
    }
}

/// The programs given by path, and cnet's own: given, or built now.
fn programs(options: &Options) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut programs = options.programs.clone();
    let own = |contender: &&Contender| contender.kind == contenders::Kind::Own;
    for contender in options.contenders.iter().copied().filter(own) {
        if programs.iter().any(|(name, _)| name == contender.name) {
            continue;
        }
        let path = match std::env::var_os("CNET_SLIRP") {
            Some(path) => path.into(),
            None => build(contender)?,
        };
        programs.push((contender.name.to_owned(), path));
    }
    Ok(programs)
}

/// Builds a program of this project's with optimization, and returns its path.
fn build(contender: &Contender) -> anyhow::Result<PathBuf> {
    let needed = contender.program.as_ref().context("nothing to build")?;
    let mut command = cargo::command("build --locked --release --package cnet-cli");
    command.args(["--bin", needed.name]);
    if let Some(companion) = needed.companion {
        command.args(["--bin", companion]);
    }
    let status = command.stdin(Stdio::null()).status()?;
    if !status.success() {
        bail!("cargo build of {}: {status}", needed.name);
    }
    Ok(cargo::release_directory()?.join(needed.name))
}

/// Finds the contenders' programs. One that is not installed is left out, unless it was asked for.
fn choose(
    options: &Options,
    programs: &[(String, PathBuf)],
    hosts: &Hosts,
) -> anyhow::Result<Vec<Chosen>> {
    let mut chosen = Vec::new();
    for contender in options.contenders.iter().copied() {
        let given = programs.iter().find(|(name, _)| name == contender.name);
        let program = match (&contender.program, given) {
            (None, _) => PathBuf::new(),
            (Some(needed), Some((_, path))) => {
                let companion = needed.companion.map(|name| path.with_file_name(name));
                // Without it some rows fail, and say so.
                if let Some(companion) = companion.filter(|path| path.exists()) {
                    copy(&companion, hosts)?;
                }
                copy(path, hosts)?
            }
            (Some(needed), None) if installed(needed) => needed.name.into(),
            (Some(needed), None) => {
                let package = needed.package.unwrap_or(needed.name);
                let remedy = format!("apt-get install --yes --no-install-recommends {package}");
                let missing = format!("{} is not installed: {remedy}", needed.name);
                if options.strict {
                    bail!(missing);
                }
                eprintln!("left out: {missing}");
                continue;
            }
        };
        chosen.push(Chosen { contender, program });
    }
    Ok(chosen)
}

/// A copy in the run's directory: the way to the original may be closed to ordinary users.
fn copy(path: &Path, hosts: &Hosts) -> anyhow::Result<PathBuf> {
    let name = path.file_name().context("a program's path has no name")?;
    let copy = hosts.directory().join(name);
    fs::copy(path, &copy).with_context(|| path.display().to_string())?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

fn installed(needed: &contenders::Needed) -> bool {
    Command::new(needed.name)
        .args(needed.version)
        .stdin(Stdio::null())
        .output()
        .is_ok()
}

/// Writes the report into the target directory, and into the tree if it is to be kept.
fn write(report: &Report, keep: bool) -> anyhow::Result<()> {
    let mut directories = vec![cargo::metadata()?.target_directory.join("bench")];
    if keep {
        directories.push(Path::new(cargo::ROOT).join("benches").join("results"));
    }
    let files = [
        ("report.md", report.markdown()),
        ("report.json", serde_json::to_string_pretty(report)? + "\n"),
        ("chart.svg", svg::draw(report)),
    ];
    for directory in directories {
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        for (name, content) in &files {
            let path = directory.join(name);
            fs::write(&path, content).with_context(|| path.display().to_string())?;
        }
        eprintln!("written: {}", directory.display());
    }
    Ok(())
}
