//! The machine that figures come from, described for the reader of a report.

use std::fs;
use std::process::Command;

use serde::Serialize;

use super::contenders::Chosen;

/// A load average above which figures are not to be trusted: others are using the machine.
const BUSY: f64 = 0.3;

/// The description.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The day of the run, in UTC.
    pub date: String,
    /// The commit measured; with a plus if the tree differs.
    pub commit: String,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub processor: String,
    /// Processors that may be used.
    pub cores: usize,
    /// Memory in GiB.
    pub memory: f64,
    /// What new interfaces queue by (`net.core.default_qdisc`).
    pub qdisc: String,
    /// The load average of the minute before the run.
    pub load: f64,
    /// The contenders' programs, by contender.
    pub versions: Vec<(String, String)>,
}

impl Machine {
    /// Looks at this one.
    pub fn describe(contenders: &[Chosen]) -> Self {
        let versions = contenders.iter().filter_map(|chosen| {
            let version = chosen.version()?;
            Some((chosen.contender.name.to_owned(), version))
        });
        let cores = std::thread::available_parallelism();
        Self {
            date: said("date", &["-u", "+%Y-%m-%d"]),
            commit: commit(),
            kernel: content("/proc/sys/kernel/osrelease"),
            processor: field("/proc/cpuinfo", "model name"),
            cores: cores.map_or(1, std::num::NonZero::get),
            memory: memory(),
            qdisc: content("/proc/sys/net/core/default_qdisc"),
            load: load(),
            versions: versions.collect(),
        }
    }

    /// A warning, where others are using the machine.
    pub fn warning(&self) -> Option<String> {
        (self.load > BUSY).then(|| {
            format!(
                "The machine was not idle when the run began (load average {:.2}): these figures \
                 are a trial, not a result.",
                self.load
            )
        })
    }
}

fn commit() -> String {
    let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let commit = said("git", &["-C", tree, "rev-parse", "--short=10", "HEAD"]);
    let changes = said(
        "git",
        &["-C", tree, "status", "--porcelain", "--untracked-files=no"],
    );
    match changes.is_empty() {
        true => commit,
        false => format!("{commit}+"),
    }
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    said.unwrap_or_default()
}

fn content(path: &str) -> String {
    let content = fs::read_to_string(path).unwrap_or_default();
    content.trim().to_owned()
}

fn field(path: &str, key: &str) -> String {
    let content = fs::read_to_string(path).unwrap_or_default();
    let line = content.lines().find(|line| line.starts_with(key));
    let value = line.and_then(|line| line.split_once(':'));
    value
        .map_or("unknown", |(_, value)| value.trim())
        .to_owned()
}

fn memory() -> f64 {
    let total = field("/proc/meminfo", "MemTotal");
    let kilobytes = total.split_whitespace().next().map(str::parse::<f64>);
    kilobytes.and_then(Result::ok).unwrap_or_default() / f64::from(1 << 20)
}

fn load() -> f64 {
    let content = content("/proc/loadavg");
    let first = content.split_whitespace().next().map(str::parse);
    first.and_then(Result::ok).unwrap_or_default()
}
