//! `cargo xtask test`: formatting, the rules of the house, lints, documentation, dependencies, and
//! the tests at their three heights, in stages.
//!
//! The stages stand in [`PARTS`], each part with the minutes that it may take on two cores; a new
//! stage is an entry there and nowhere else. What needs longer has a short form here and a long one
//! ([`LONG`]) that is run by its name alone.
//!
//! A failed stage does not keep the next from running. A test that cannot run is a failure.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::stage::Outcome;
use crate::{cargo, deny, house, machine};

/// Stages that are planned together.
struct Part {
    name: &'static str,
    /// How many minutes its stages take together, as planned.
    minutes: u64,
    stages: &'static [Stage],
}

/// A stage of the test command.
struct Stage {
    name: &'static str,
    about: &'static str,
    /// How many minutes it takes, as planned: on a fresh clone, on two cores.
    minutes: u64,
    run: fn(Duration) -> anyhow::Result<Outcome>,
}

impl Stage {
    /// When it is ended. A machine may be half as fast as planned and slow to begin.
    fn limit(&self) -> Duration {
        Duration::from_secs(60 * (2 * self.minutes + 5))
    }
}

/// The stages in the order they run in: what is quick to fail first, then by height.
const PARTS: &[Part] = &[
    Part {
        name: "build and lint",
        minutes: 15,
        stages: BUILD_AND_LINT,
    },
    Part {
        name: "unit, simulation, corpus",
        minutes: 12,
        stages: UNIT_AND_SIMULATION,
    },
    Part {
        name: "end to end",
        minutes: 15,
        stages: END_TO_END,
    },
    Part {
        name: "hostile and faults",
        minutes: 8,
        stages: HOSTILE_AND_FAULTS,
    },
    Part {
        name: "clients",
        minutes: 8,
        stages: CLIENTS,
    },
    Part {
        name: "several hosts and CNI",
        minutes: 6,
        stages: &[],
    },
];

const BUILD_AND_LINT: &[Stage] = &[
    Stage {
        name: "fmt",
        about: "rustfmt finds nothing to change",
        minutes: 1,
        run: |limit| cargo(limit, "fmt --all --check"),
    },
    Stage {
        name: "house",
        about: "the arrows between packages, and what each kind of package may hold",
        minutes: 1,
        run: |_| {
            Ok(match house::run()? {
                0 => Outcome::Passed,
                count => Outcome::Failed(format!("{count} findings")),
            })
        },
    },
    Stage {
        name: "clippy",
        about: "no warning from the compiler or clippy, in any target",
        minutes: 4,
        run: |limit| {
            let arguments = "clippy --locked --workspace --all-targets -- -D warnings";
            cargo(limit, arguments)
        },
    },
    Stage {
        name: "doc",
        about: "the documentation builds without a warning",
        minutes: 2,
        run: |limit| {
            // For those who work on the project: private items too, and links to them.
            let flags = "-D warnings -A rustdoc::private_intra_doc_links";
            let flags = [("RUSTDOCFLAGS", flags)];
            let arguments = "doc --locked --workspace --no-deps --document-private-items";
            cargo::run(limit, &flags, arguments)
        },
    },
    Stage {
        name: "deny",
        about: "licences, advisories, sources and duplicates of the dependencies (cargo-deny)",
        minutes: 3,
        run: deny::check,
    },
    Stage {
        name: "build",
        about: "the programs, with optimization",
        minutes: 4,
        run: build,
    },
];

const UNIT_AND_SIMULATION: &[Stage] = &[
    Stage {
        name: "unit",
        about: "plain `cargo test --workspace`, the fuzz corpus with it; of the simulation a part",
        minutes: 7,
        run: |limit| {
            let few = [("CNET_SIM_SEEDS", "1000")];
            cargo::run(limit, &few, "test --locked --workspace --no-fail-fast")
        },
    },
    Stage {
        name: "sim",
        about: "the pure core: ten thousand seeds on virtual time, a million mutated frames",
        minutes: 5,
        run: |limit| {
            let seeds = [("CNET_SIM_SEEDS", "10000")];
            let arguments = "test --locked --release --package cnet-tests --test sim";
            cargo::run(limit, &seeds, arguments)
        },
    },
];

const END_TO_END: &[Stage] = &[
    Stage {
        name: "tap",
        about: "the tap crate in namespaces of its own",
        minutes: 2,
        run: |limit| {
            machine::prepare()?;
            let arguments = "test --locked --package cnet-tap -- --ignored --test-threads=1";
            cargo(limit, arguments)
        },
    },
    Stage {
        name: "e2e",
        about: "the programs between real namespaces, with real programs (as root)",
        minutes: 13,
        run: |limit| in_namespaces(limit, "e2e"),
    },
];

const HOSTILE_AND_FAULTS: &[Stage] = &[
    Stage {
        name: "hostile",
        about: "frames that a container makes by hand, over a real TAP (as root)",
        minutes: 4,
        run: |limit| in_namespaces(limit, "hostile"),
    },
    Stage {
        name: "faults",
        about: "a full disk, few descriptors, little memory, killed programs (as root)",
        minutes: 4,
        run: |limit| in_namespaces(limit, "faults"),
    },
];

/// The long forms, each run by its name alone.
const LONG: Part = Part {
    name: "long forms",
    minutes: 195,
    stages: &[
        Stage {
            name: "shares",
            about: "what a neighbour costs that is hostile in any way (as root, alone on the machine)",
            minutes: 10,
            run: |limit| only_in_namespaces(limit, "hostile", "long_a_hostile"),
        },
        Stage {
            name: "mutations",
            about: "10^8 mutated frames through the pure core, 10^6 over a TAP (as root)",
            minutes: 90,
            run: |limit| {
                let sim =
                    "test --locked --release --package cnet-tests --test sim -- --ignored long_";
                match cargo(limit, sim)? {
                    Outcome::Passed => only_in_namespaces(limit, "hostile", "long_a_million"),
                    other => Ok(other),
                }
            },
        },
        Stage {
            name: "endurance",
            about: "10^7 short flows of each kind, 10,000 attaches: what is held is flat (as root)",
            minutes: 90,
            run: |limit| only_in_namespaces(limit, "faults", "long_"),
        },
        Stage {
            name: "repeats",
            about: "the faults of the host, five times (as root)",
            minutes: 5,
            run: |limit| {
                for _ in 0..5 {
                    let done = in_namespaces(limit, "faults")?;
                    if done != Outcome::Passed {
                        return Ok(done);
                    }
                }
                Ok(Outcome::Passed)
            },
        },
    ],
};

const CLIENTS: &[Stage] = &[Stage {
    name: "clients",
    about: "rootlesskit, podman, bubblewrap and slirp4netns from their packages (as root)",
    minutes: 6,
    run: |limit| {
        machine::offer_clients();
        in_namespaces(limit, "clients")
    },
}];

fn cargo(limit: Duration, arguments: &str) -> anyhow::Result<Outcome> {
    cargo::run::<&str>(limit, &[], arguments)
}

fn build(limit: Duration) -> anyhow::Result<Outcome> {
    cargo(limit, "build --locked --release --package cnet-cli --bins")
}

/// The tests of a target of cnet-tests that run the programs between real namespaces, but for its
/// long ones.
fn in_namespaces(limit: Duration, target: &str) -> anyhow::Result<Outcome> {
    only_in_namespaces(limit, target, "--skip long_")
}

/// As [`in_namespaces`], for those tests that `filter` means.
fn only_in_namespaces(limit: Duration, target: &str, filter: &str) -> anyhow::Result<Outcome> {
    if !machine::is_root() {
        bail!("makes network namespaces and their uplinks: run as root, cargo xtask test {target}");
    }
    machine::prepare()?;
    // The stage may have been asked for alone.
    let built = build(limit)?;
    if built != Outcome::Passed {
        return Ok(built);
    }
    let binaries = [("CNET_BIN_DIR", cargo::release_directory()?)];
    let arguments = format!(
        "test --locked --release --package cnet-tests --test {target} -- --ignored --test-threads=1 {filter}"
    );
    cargo::run(limit, &binaries, &arguments)
}

/// Prints the stages, what each shows, and the minutes planned for it.
pub fn list() {
    for part in PARTS.iter().chain([&LONG]) {
        for stage in part.stages {
            println!("{:8} {:3} min  {}", stage.name, stage.minutes, stage.about);
        }
    }
}

/// What became of a stage, and how long it took.
type Report = (&'static str, Duration, Outcome);

/// Runs the stages named, or all of them, and prints a summary. Returns whether none failed.
///
/// # Errors
/// A name that is no stage's.
pub fn run(names: &[&str]) -> anyhow::Result<bool> {
    let stages = || PARTS.iter().chain([&LONG]).flat_map(|part| part.stages);
    for name in names {
        if !stages().any(|stage| stage.name == *name) {
            bail!("no stage is called {name}; cargo xtask test --list names them");
        }
    }
    let mut reports: Vec<Report> = Vec::new();
    let is_usual = |stage: &Stage| LONG.stages.iter().all(|long| long.name != stage.name);
    let is_wanted = |stage: &&Stage| match names.is_empty() {
        true => is_usual(stage),
        false => names.contains(&stage.name),
    };
    for stage in stages().filter(is_wanted) {
        println!("\n==== {}: {}", stage.name, stage.about);
        let started = Instant::now();
        let outcome = (stage.run)(stage.limit());
        let outcome = outcome.unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        reports.push((stage.name, started.elapsed(), outcome));
    }
    let long = LONG.stages.iter().any(|stage| names.contains(&stage.name));
    let parts: Vec<&Part> = PARTS.iter().chain(long.then_some(&LONG)).collect();
    print!("\n{}", summary(&parts, &reports));
    let failed = |(_, _, outcome): &Report| matches!(outcome, Outcome::Failed(_));
    Ok(!reports.iter().any(failed))
}

/// The minutes of each stage and each part, taken and planned, and the verdict.
fn summary(parts: &[&Part], reports: &[Report]) -> String {
    let mut lines = vec!["==== summary: minutes taken, minutes planned".to_owned()];
    let mut line = |name: &str, taken: Duration, planned: u64, verdict: &str| {
        let taken = taken.as_secs_f64() / 60.0;
        let line = format!("{name:26} {taken:6.1} {planned:4}  {verdict}");
        lines.push(line.trim_end().to_owned());
    };
    for part in parts {
        let find = |stage: &Stage| reports.iter().find(|(name, ..)| *name == stage.name);
        let ran: Vec<(&Stage, &Report)> = part
            .stages
            .iter()
            .filter_map(|stage| Some((stage, find(stage)?)))
            .collect();
        let taken = ran.iter().map(|(_, (_, taken, _))| *taken).sum();
        let verdict = match (part.stages.is_empty(), ran.is_empty()) {
            (true, _) => "no stage yet",
            (false, true) => "not asked for",
            (false, false) => "",
        };
        line(part.name, taken, part.minutes, verdict);
        for (stage, (name, taken, outcome)) in ran {
            line(
                &format!("  {name}"),
                *taken,
                stage.minutes,
                &verdict_of(outcome),
            );
        }
    }
    let taken = reports.iter().map(|(_, taken, _)| *taken).sum();
    line(
        "all",
        taken,
        parts.iter().map(|part| part.minutes).sum(),
        "",
    );
    let count = |failed: bool| {
        let outcomes = reports.iter().map(|(_, _, outcome)| outcome);
        let matching = outcomes.filter(|one| matches!(one, Outcome::Failed(_)) == failed);
        matching.count()
    };
    let (passed, failed) = (count(false), count(true));
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    lines.push(format!(
        "test result: {verdict}. {passed} stages passed, {failed} failed\n"
    ));
    lines.join("\n")
}

fn verdict_of(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed => "passed".to_owned(),
        Outcome::Partly(rest) => format!("passed; {rest}"),
        Outcome::Failed(reason) => format!("FAILED: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stages_of_a_part_fit_into_its_minutes() {
        for part in PARTS.iter().chain([&LONG]) {
            let planned: u64 = part.stages.iter().map(|stage| stage.minutes).sum();
            assert!(planned <= part.minutes, "{}", part.name);
        }
    }

    #[test]
    fn the_summary_has_minutes_by_stage_and_by_part() {
        let seconds = Duration::from_secs;
        let reports = [
            ("fmt", seconds(6), Outcome::Passed),
            (
                "deny",
                seconds(120),
                Outcome::Partly("advisories not checked".to_owned()),
            ),
            (
                "unit",
                seconds(300),
                Outcome::Failed("exit status: 101".to_owned()),
            ),
        ];
        let expected = "\
==== summary: minutes taken, minutes planned
build and lint                2.1   15
  fmt                         0.1    1  passed
  deny                        2.0    3  passed; advisories not checked
unit, simulation, corpus      5.0   12
  unit                        5.0    7  FAILED: exit status: 101
end to end                    0.0   15  not asked for
hostile and faults            0.0    8  not asked for
clients                       0.0    8  not asked for
several hosts and CNI         0.0    6  no stage yet
all                           7.1   64
test result: FAILED. 2 stages passed, 1 failed
";
        let parts: Vec<&Part> = PARTS.iter().collect();
        assert_eq!(summary(&parts, &reports), expected);
    }
}
