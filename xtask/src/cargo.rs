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
    /// Where cargo builds, whichever of its settings said so.
    pub target_directory: PathBuf,
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
