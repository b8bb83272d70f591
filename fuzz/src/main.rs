//! The fuzzer's command line.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cnet_fuzz::run::{Crash, Fuzzer};
use cnet_fuzz::{TARGETS, Target, corpus, find, seeds};

const USAGE: &str = "usage: fuzz --minutes N [--seed S] [TARGET…]
       fuzz --list
       fuzz --write-corpus

Mutates the inputs of fuzz/corpus/TARGET for N minutes in all, divided among the targets (all of them
if none is named). Stops at the first panic, keeps its input as fuzz/corpus/TARGET/crash-…, and exits
with 1. --write-corpus writes the inputs to start from anew.";

/// Executions between two looks at the clock.
const ROUND: u64 = 64;

/// What the command line asks for.
struct Arguments {
    minutes: f64,
    seed: u64,
    targets: Vec<&'static Target>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.first().map(String::as_str) {
        Some("--list") => list(),
        Some("--write-corpus") => seeds::write().context("writing the corpus").map(|()| true),
        _ => parse(&words).and_then(|arguments| fuzz(&arguments)),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn parse(words: &[String]) -> anyhow::Result<Arguments> {
    let (mut minutes, mut seed, mut targets) = (None, 0, Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--minutes" => minutes = Some(words.next().context(USAGE)?.parse().context(USAGE)?),
            "--seed" => seed = words.next().context(USAGE)?.parse().context(USAGE)?,
            option if option.starts_with('-') => bail!(USAGE),
            name => {
                targets.push(find(name).with_context(|| {
                    format!("no target is called {name:?}; --list tells which there are")
                })?);
            }
        }
    }
    if targets.is_empty() {
        targets = TARGETS.iter().collect();
    }
    let minutes: f64 = minutes.context(USAGE)?;
    if !(minutes > 0.0 && minutes.is_finite()) {
        bail!(USAGE);
    }
    Ok(Arguments {
        minutes,
        seed,
        targets,
    })
}

fn list() -> anyhow::Result<bool> {
    for target in TARGETS {
        println!("{:14} {}", target.name, target.description);
    }
    Ok(true)
}

/// Whether no target panicked.
fn fuzz(arguments: &Arguments) -> anyhow::Result<bool> {
    let count = arguments.targets.len() as u32;
    let each = Duration::from_secs_f64(arguments.minutes * 60.0) / count;
    println!(
        "{:14}{:>12}{:>10}{:>12}{:>8}",
        "target", "executions", "seconds", "a second", "kept"
    );
    for target in &arguments.targets {
        let loaded = corpus::load(target.name)
            .with_context(|| format!("{}", corpus::directory(target.name).display()))?;
        let inputs = loaded.into_iter().map(|(_, bytes)| bytes).collect();
        let mut fuzzer = Fuzzer::new(target, inputs, arguments.seed);
        let started = Instant::now();
        let outcome = run_for(&mut fuzzer, each, started);
        let seconds = started.elapsed().as_secs_f64();
        let executions = fuzzer.executions();
        println!(
            "{:14}{executions:12}{seconds:10.1}{:12.0}{:8}",
            target.name,
            executions as f64 / seconds,
            fuzzer.kept()
        );
        if let Err(Crash { input }) = outcome {
            let path = corpus::save_crash(target.name, &input).context("keeping the input")?;
            println!("{} panicked; its input is {}", target.name, path.display());
            return Ok(false);
        }
    }
    Ok(true)
}

fn run_for(fuzzer: &mut Fuzzer<'_>, span: Duration, started: Instant) -> Result<(), Crash> {
    fuzzer.replay()?;
    while started.elapsed() < span {
        for _ in 0..ROUND {
            fuzzer.step()?;
        }
    }
    Ok(())
}
