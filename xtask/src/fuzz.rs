//! `cargo xtask fuzz`: builds the fuzz targets with optimization and lets them run for a while.
//!
//! What they are and what they print is the package `cnet-fuzz`'s; what they found before is
//! replayed by plain `cargo test`.

use std::time::Duration;

use anyhow::{Context, bail};

use crate::cargo;
use crate::stage::{self, Outcome};

/// What the command line may say.
pub const USAGE: &str = "usage: cargo xtask fuzz --minutes N [TARGET…]";

const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);

/// What a run may take beyond its minutes, to replay the corpus and to report.
const SPARE: Duration = Duration::from_secs(2 * 60);

/// Runs the command with the words after `fuzz`. Returns whether no target failed.
///
/// # Errors
/// A wrong command line; cargo cannot be started.
pub fn run(words: &[&str]) -> anyhow::Result<bool> {
    let (minutes, targets) = parse(words)?;
    let build = "build --locked --release --package cnet-fuzz --bin fuzz";
    let built = cargo::run(BUILD_LIMIT, NO_VARIABLES, build)?;
    if let Outcome::Failed(reason) = built {
        bail!("cannot build the fuzz targets: {reason}");
    }
    let start = "run --quiet --locked --release --package cnet-fuzz --bin fuzz -- --minutes";
    let mut command = cargo::command(start);
    command.arg(minutes.to_string()).args(targets);
    let limit = Duration::from_secs(60 * minutes) + SPARE;
    match stage::run(&mut command, limit)? {
        Outcome::Failed(reason) => bail!("fuzzing failed: {reason}"),
        _ => Ok(true),
    }
}

const NO_VARIABLES: &[(&str, &str)] = &[];

/// The minutes of the whole run, and the targets: none for all of them.
fn parse<'a>(words: &[&'a str]) -> anyhow::Result<(u64, Vec<&'a str>)> {
    let mut minutes = None;
    let mut targets = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--minutes" => {
                let number = words.next().context(USAGE)?;
                minutes = Some(number.parse().context(USAGE)?);
            }
            option if option.starts_with('-') => bail!(USAGE),
            target => targets.push(target),
        }
    }
    let minutes = minutes.filter(|minutes| *minutes > 0).context(USAGE)?;
    Ok((minutes, targets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_a_must_and_targets_are_not() {
        assert_eq!(parse(&["--minutes", "3"]).unwrap(), (3, vec![]));
        let given = parse(&["tcp", "--minutes", "3", "dns"]).unwrap();
        assert_eq!(given, (3, vec!["tcp", "dns"]));
        for wrong in [
            &["tcp"][..],
            &["--minutes"],
            &["--minutes", "0"],
            &["--hours", "1"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
