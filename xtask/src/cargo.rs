//! The cargo that runs this program: how it is started, and what it says of the workspace.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::stage::{self, Outcome};

/// The root of the workspace.
pub const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A command line of cargo in the workspace's root, its arguments split at spaces.
pub fn command(arguments: &str) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(ROOT).args(arguments.split_whitespace());
    command
}

/// Runs cargo under a time limit, with `variables` set.
///
/// # Errors
/// Cargo cannot be started.
pub fn run<V: AsRef<OsStr>>(
    limit: Duration,
    variables: &[(&str, V)],
    arguments: &str,
) -> anyhow::Result<Outcome> {
    let mut command = command(arguments);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    stage::run(&mut command, limit)
}

/// The workspace as `cargo metadata` describes it, without the packages of others.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// The packages of the workspace.
    pub packages: Vec<Package>,
    /// Where cargo builds, whichever of its settings said so.
    pub target_directory: PathBuf,
    /// The root of the workspace, an absolute path.
    pub workspace_root: PathBuf,
}

/// A package of the workspace.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Its name, which others depend on it by.
    pub name: String,
    /// Its `Cargo.toml`, an absolute path.
    pub manifest_path: PathBuf,
    /// What it depends on, in the workspace and outside.
    pub dependencies: Vec<Dependency>,
    /// What cargo builds from it.
    pub targets: Vec<Target>,
}

/// A dependency of a package.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The name of the package depended on.
    pub name: String,
    /// `dev` or `build`; none for an ordinary one.
    pub kind: Option<String>,
}

/// A library, program, test, benchmark or example of a package.
#[derive(Debug, Deserialize)]
pub struct Target {
    /// `lib`, `bin`, `test`, `bench`, `example` or `custom-build`, and further kinds of library.
    pub kind: Vec<String>,
    /// The file that it starts with, an absolute path.
    pub src_path: PathBuf,
}

/// Asks cargo to describe the workspace.
///
/// # Errors
/// Cargo cannot read it.
pub fn metadata() -> anyhow::Result<Metadata> {
    let output = command("metadata --no-deps --format-version 1").output()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("cargo metadata: {}", words.trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata says what is not understood")
}

/// Where cargo puts the programs that it builds with optimization, an absolute path.
///
/// # Errors
/// Cargo cannot read the workspace.
pub fn release_directory() -> anyhow::Result<PathBuf> {
    Ok(metadata()?.target_directory.join("release"))
}
