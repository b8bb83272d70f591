//! The command line of `cargo xtask bench`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use super::contenders::{CONTENDERS, Contender};
use super::load::Window;
use super::work::{self, Pace, Work};

/// What `--help` prints.
pub const USAGE: &str = "\
usage: cargo xtask bench [OPTION]…    compare cnet with its peers, as root
  --rounds N             samples of each row and contender (5)
  --seconds S            seconds of load in a sample (2)
  --quick                one round of one second, IPv4, without the 100,000 flows
  --only ROW,…           only rows whose names begin so
  --contenders NAME,…    only these
  --program NAME=PATH    a contender's program, instead of the one in PATH; for cnet its cnet-slirp,
                         with cnet beside it, instead of building them (CNET_SLIRP=PATH does the
                         same)
  --congestion-control C of every host and container: cubic, bbr (cubic)
  --write                keep the results in benches/results
  --list                 name rows and contenders";

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// To print [`USAGE`].
    Help,
    /// To name rows and contenders.
    List,
    /// To measure.
    Run(Options),
}

/// The options of a run.
#[derive(Debug)]
pub struct Options {
    /// Samples of each row and contender.
    pub rounds: usize,
    /// How long a sample takes.
    pub pace: Pace,
    /// The rows.
    pub works: Vec<Work>,
    /// The contenders, and whether they were asked for by name.
    pub contenders: Vec<&'static Contender>,
    /// Whether a contender that is not installed is an error.
    pub strict: bool,
    /// Programs given by path, by contender.
    pub programs: Vec<(String, PathBuf)>,
    /// The congestion control of all hosts and containers, where it is not the usual one.
    pub congestion_control: Option<String>,
    /// Whether to keep the results in the tree.
    pub write: bool,
}

/// Reads the words after `bench`.
///
/// # Errors
/// What is wrong with them.
pub fn parse(words: &[&str]) -> anyhow::Result<Request> {
    let mut raw = Raw::default();
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let (option, mut attached) = match word.split_once('=') {
            Some((option, value)) if word.starts_with("--") => (option, Some(value)),
            _ => (word, None),
        };
        let mut value = || {
            let value = attached.take().or_else(|| words.next());
            value.with_context(|| format!("{option} needs a value"))
        };
        match option {
            "--rounds" => raw.rounds = Some(value()?.parse().context("--rounds")?),
            "--seconds" => raw.seconds = Some(value()?.parse().context("--seconds")?),
            "--quick" => raw.quick = true,
            "--only" => raw.only.extend(list(value()?)),
            "--contenders" => raw.contenders.extend(list(value()?)),
            "--program" => {
                let (name, path) = value()?.split_once('=').context("--program NAME=PATH")?;
                contender(name)?;
                raw.programs.push((name.to_owned(), path.into()));
            }
            "--congestion-control" => raw.congestion_control = Some(value()?.to_owned()),
            "--write" => raw.write = true,
            "--list" => return Ok(Request::List),
            "--help" | "-h" => return Ok(Request::Help),
            _ => bail!("unknown: {word}\n{USAGE}"),
        }
        if attached.is_some() {
            bail!("{option} takes no value");
        }
    }
    raw.resolve().map(Request::Run)
}

#[derive(Default)]
struct Raw {
    rounds: Option<usize>,
    seconds: Option<f64>,
    quick: bool,
    only: Vec<String>,
    contenders: Vec<String>,
    programs: Vec<(String, PathBuf)>,
    congestion_control: Option<String>,
    write: bool,
}

impl Raw {
    fn resolve(self) -> anyhow::Result<Options> {
        let rounds = self.rounds.unwrap_or(if self.quick { 1 } else { 5 });
        let seconds = self.seconds.unwrap_or(if self.quick { 1.0 } else { 2.0 });
        anyhow::ensure!((1..=1000).contains(&rounds), "--rounds is from 1 to 1000");
        anyhow::ensure!(
            (0.1..=600.0).contains(&seconds),
            "--seconds is from 0.1 to 600"
        );
        let mut contenders = Vec::new();
        for name in &self.contenders {
            contenders.push(contender(name)?);
        }
        let strict = !contenders.is_empty();
        if !strict {
            contenders.extend(CONTENDERS);
        }
        Ok(Options {
            rounds,
            pace: pace(seconds, self.quick),
            works: self.works()?,
            contenders,
            strict,
            programs: self.programs,
            congestion_control: self.congestion_control,
            write: self.write,
        })
    }

    fn works(&self) -> anyhow::Result<Vec<Work>> {
        let all = work::all();
        let begins = |work: &Work, name: &String| work.name.starts_with(name.as_str());
        for name in &self.only {
            if !all.iter().any(|work| begins(work, name)) {
                bail!("no row begins with {name}; cargo xtask bench --list names them");
            }
        }
        let chosen = all.into_iter().filter(|work| match self.only.is_empty() {
            true => !self.quick || work.is_quick(),
            false => self.only.iter().any(|name| begins(work, name)),
        });
        Ok(chosen.collect())
    }
}

fn pace(seconds: f64, quick: bool) -> Pace {
    let watch = if quick { 1 } else { 5 };
    let opening = if quick { 10 } else { 60 };
    Pace {
        window: Window {
            // Slow start and the growth of buffers are over by then.
            warm_up: Duration::from_secs_f64((seconds / 5.0).min(0.5)),
            length: Duration::from_secs_f64(seconds),
        },
        watch: Duration::from_secs(watch),
        opening: Duration::from_secs(opening),
    }
}

fn list(words: &str) -> impl Iterator<Item = String> {
    words
        .split(',')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
}

fn contender(name: &str) -> anyhow::Result<&'static Contender> {
    let known = CONTENDERS.iter().find(|contender| contender.name == name);
    known.with_context(|| {
        format!("no contender is called {name}; cargo xtask bench --list names them")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        match parse(words) {
            Ok(Request::Run(options)) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rows_are_chosen_by_how_they_begin() {
        let options = options(&["--only", "tcp-out,crr", "--rounds=3"]);
        let names: Vec<&str> = options
            .works
            .iter()
            .map(|work| work.name.as_str())
            .collect();
        let expected = [
            "tcp-out-1500-v4",
            "tcp-out-65520-v4",
            "crr-v4",
            "tcp-out-1500-v6",
            "tcp-out-65520-v6",
            "crr-v6",
        ];
        assert_eq!(names, expected);
        assert_eq!(options.rounds, 3);
        assert!(!options.strict);
        assert_eq!(options.contenders.len(), CONTENDERS.len());
    }

    #[test]
    fn quick_leaves_out_what_takes_long_unless_it_is_asked_for() {
        let quick = options(&["--quick"]);
        assert!(quick.works.iter().all(|work| !work.name.ends_with("-v6")));
        assert!(quick.works.iter().all(|work| work.name != "flows-100k"));
        assert_eq!((quick.rounds, quick.pace.window.length.as_secs()), (1, 1));
        let asked = options(&["--quick", "--only=flows-100k"]);
        assert_eq!(asked.works.len(), 1);
    }

    #[test]
    fn mistakes_are_named() {
        let mistakes: &[(&[&str], &str)] = &[
            (&["--only", "tpc"], "tpc"),
            (&["--contenders", "docker"], "docker"),
            (&["--program", "pasta"], "NAME=PATH"),
            (&["--rounds", "0"], "--rounds"),
            (&["--seconds", "0"], "--seconds"),
            (&["--seconds"], "--seconds"),
            (&["--write=yes"], "--write"),
            (&["tcp-out"], "tcp-out"),
        ];
        for (words, named) in mistakes {
            let error = format!("{:#}", parse(words).unwrap_err());
            assert!(error.contains(named), "{words:?}: {error}");
        }
    }

    #[test]
    fn programs_are_given_by_path() {
        let options = options(&["--program", "pasta=/opt/pasta", "--contenders=cnet,pasta"]);
        assert_eq!(
            options.programs,
            [("pasta".to_owned(), "/opt/pasta".into())]
        );
        assert!(options.strict);
        let names: Vec<&str> = options.contenders.iter().map(|known| known.name).collect();
        assert_eq!(names, ["cnet", "pasta"]);
    }
}
