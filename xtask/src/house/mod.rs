//! `cargo xtask house`: the rules that keep the house in order, read off `cargo metadata` and the
//! sources. The same is the stage `house` of the test command.
//!
//! A rule is a file here. It takes the workspace as [`sources`] read it, or as cargo describes it,
//! and gives findings: a place, the rule, and what to do. There is no list of exceptions: where a
//! rule allows for a reason, the reason stands in the source.
//!
//! | rule | file | what it keeps |
//! |---|---|---|
//! | `arrow` | [`arrows`], [`plan`] | packages depend on packages below them |
//! | `unsafe` | [`unsafe_code`] | `unsafe` in tap alone, each with its reason |
//! | `pure` | [`purity`] | no clock, thread, socket or random source in a pure package |
//! | `anyhow` | [`errors`] | typed errors in libraries |
//! | `cycle` | [`cycles`] | no cycle of modules |
//! | `size` | [`size`] | files and functions that can be read at once |
//! | `orphan` | [`orphans`] | every file is compiled |

mod arrows;
mod cycles;
mod errors;
mod manifest;
mod orphans;
mod paths;
mod plan;
mod purity;
mod size;
mod sources;
mod test_code;
mod unsafe_code;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cargo;

/// A place that a rule forbids.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Finding {
    rule: &'static str,
    /// Seen from the root of the workspace.
    file: PathBuf,
    line: usize,
    /// What is the matter, and what to do.
    message: String,
}

impl Finding {
    fn new(rule: &'static str, file: &Path, line: usize, message: &str) -> Self {
        Self {
            rule,
            file: file.to_owned(),
            line,
            message: message.to_owned(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        write!(f, "{file}:{}: {}: {}", self.line, self.rule, self.message)
    }
}

/// Prints all findings, and how many each rule has. Returns how many there are.
///
/// # Errors
/// The workspace cannot be read.
pub fn run() -> anyhow::Result<usize> {
    let findings = findings()?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for finding in &findings {
        println!("{finding}");
        *counts.entry(finding.rule).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .into_iter()
        .map(|(rule, count)| format!("{rule} {count}"))
        .collect();
    match findings.len() {
        0 => println!("the house is in order"),
        count => println!("{count} findings: {}", counts.join(", ")),
    }
    Ok(findings.len())
}

fn findings() -> anyhow::Result<BTreeSet<Finding>> {
    let metadata = cargo::metadata()?;
    let root = &metadata.workspace_root;
    let read = |path: &Path| fs::read_to_string(root.join(path)).ok();
    let sources = sources::Sources::load(&metadata, &read)?;
    let found = [
        arrows::check(&metadata),
        unsafe_code::check(&sources),
        purity::check_manifests(&metadata),
        purity::check(&sources),
        errors::check_manifests(&metadata),
        errors::check(&sources),
        cycles::check(&sources),
        size::check(&sources),
        orphans::check(root, &metadata.target_directory, &sources)?,
    ];
    Ok(found.into_iter().flatten().collect())
}

#[cfg(test)]
fn lines(findings: &[Finding]) -> Vec<usize> {
    findings.iter().map(|finding| finding.line).collect()
}
