//! `cargo xtask test`: formatting, lints, documentation, dependencies, and the tests at their
//! three heights, in stages.
//!
//! A failed stage does not keep the next from running. Only what cannot be checked on the machine
//! at all, and is checked elsewhere, is skipped; a test that cannot run is a failure.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::machine;
use crate::stage::{self, Outcome};

/// A stage of the test command.
struct Stage {
    name: &'static str,
    about: &'static str,
    limit: Duration,
    run: fn(Duration) -> anyhow::Result<Outcome>,
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// The stages in the order they run in: what is quick to fail first, then by height.
const STAGES: &[Stage] = &[
    Stage {
        name: "fmt",
        about: "rustfmt finds nothing to change",
        limit: minutes(2),
        run: |limit| cargo(limit, &[], "fmt --all --check"),
    },
    Stage {
        name: "clippy",
        about: "no warning from the compiler or clippy, in any target",
        limit: minutes(15),
        run: |limit| {
            let arguments = "clippy --locked --workspace --all-targets -- -D warnings";
            cargo(limit, &[], arguments)
        },
    },
    Stage {
        name: "doc",
        about: "the documentation builds without a warning",
        limit: minutes(10),
        run: |limit| {
            // For those who work on the project: private items too, and links to them.
            let flags = "-D warnings -A rustdoc::private_intra_doc_links";
            let flags = [("RUSTDOCFLAGS", flags)];
            let arguments = "doc --locked --workspace --no-deps --document-private-items";
            cargo(limit, &flags, arguments)
        },
    },
    Stage {
        name: "deny",
        about: "licences, advisories, sources and duplicates of the dependencies (cargo-deny)",
        limit: minutes(5),
        run: deny,
    },
    Stage {
        name: "unit",
        about: "plain `cargo test --workspace`; of the simulation a part, the rest is its own stage",
        limit: minutes(15),
        run: |limit| {
            let few = [("CNET_SIM_SEEDS", "1000")];
            cargo(limit, &few, "test --locked --workspace --no-fail-fast")
        },
    },
    Stage {
        name: "sim",
        about: "the pure core: ten thousand seeds on virtual time, a million mutated frames",
        limit: minutes(10),
        run: |limit| {
            let seeds = [("CNET_SIM_SEEDS", "10000")];
            cargo(limit, &seeds, "test --locked --release --test sim")
        },
    },
    Stage {
        name: "build",
        about: "the two binaries, with optimization",
        limit: minutes(15),
        run: |limit| cargo(limit, &[], "build --locked --release --bins"),
    },
    Stage {
        name: "tap",
        about: "the tap crate in namespaces of its own",
        limit: minutes(10),
        run: |limit| {
            machine::prepare()?;
            let arguments = "test --locked --package cnet-tap -- --ignored --test-threads=1";
            cargo(limit, &[], arguments)
        },
    },
    Stage {
        name: "e2e",
        about: "the two binaries between real namespaces, with real programs (as root)",
        limit: minutes(25),
        run: end_to_end,
    },
];

/// Prints the stages and what each shows.
pub fn list() {
    for stage in STAGES {
        println!("{:8} {}", stage.name, stage.about);
    }
}

/// Runs the stages named, or all of them, and prints a summary. Returns whether none failed.
///
/// # Errors
/// A name that is no stage's.
pub fn run(names: &[&str]) -> anyhow::Result<bool> {
    for name in names {
        if !STAGES.iter().any(|stage| stage.name == *name) {
            bail!("no stage is called {name}; cargo xtask test --list names them");
        }
    }
    let chosen = STAGES
        .iter()
        .filter(|stage| names.is_empty() || names.contains(&stage.name));
    let mut results = Vec::new();
    for stage in chosen {
        println!("\n==== {}: {}", stage.name, stage.about);
        let started = Instant::now();
        let outcome =
            (stage.run)(stage.limit).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        results.push((stage.name, started.elapsed(), outcome));
    }
    Ok(summarize(&results))
}

fn summarize(results: &[(&str, Duration, Outcome)]) -> bool {
    println!("\n==== summary");
    for (name, elapsed, outcome) in results {
        let verdict = match outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::Skipped(reason) => format!("skipped: {reason}"),
            Outcome::Failed(reason) => format!("FAILED: {reason}"),
        };
        println!("{name:8} {:6.1} s  {verdict}", elapsed.as_secs_f64());
    }
    let count = |wanted: fn(&Outcome) -> bool| {
        let outcomes = results.iter().map(|(_, _, outcome)| outcome);
        outcomes.filter(|outcome| wanted(outcome)).count()
    };
    let passed = count(|outcome| matches!(outcome, Outcome::Passed));
    let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} stages passed, {failed} failed, {skipped} skipped");
    failed == 0
}

/// Runs cargo, the one that runs this program, with `arguments` split at spaces.
fn cargo(limit: Duration, variables: &[(&str, &str)], arguments: &str) -> anyhow::Result<Outcome> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace)
        .args(arguments.split_whitespace())
        .envs(variables.iter().copied());
    stage::run(&mut command, limit)
}

fn deny(limit: Duration) -> anyhow::Result<Outcome> {
    let installed = Command::new("cargo-deny").arg("--version").output().is_ok();
    if !installed {
        return Ok(Outcome::Skipped("cargo-deny is not installed".to_owned()));
    }
    cargo(limit, &[], "deny check")
}

fn end_to_end(limit: Duration) -> anyhow::Result<Outcome> {
    if !machine::is_root() {
        bail!("makes network namespaces and their uplinks: run as root, cargo xtask test e2e");
    }
    machine::prepare()?;
    let arguments = "test --locked --release --test e2e -- --ignored --test-threads=1";
    cargo(limit, &[], arguments)
}
