//! The stage `deny`: cargo-deny's word on licences, sources and versions of the dependencies.
//!
//! The program is installed from crates.io into `target/tools`, once: without optimization, for
//! its work is short and its making is not. Advisories are checked where their database, which is
//! not on crates.io, can be fetched; the summary says so where it cannot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::cargo;
use crate::stage::{self, Outcome};

/// The version installed: one that the project's toolchain builds.
const VERSION: &str = "0.20.2";

/// How long the advisories' database may take to arrive.
const FETCH_LIMIT: Duration = Duration::from_secs(60);

/// Runs the checks, all of them within `limit`.
///
/// # Errors
/// The program cannot be installed.
pub fn check(limit: Duration) -> anyhow::Result<Outcome> {
    let end = Instant::now() + limit;
    let left = || end.saturating_duration_since(Instant::now());
    let program = match installed()? {
        Some(program) => program,
        None => install(left())?,
    };
    let checks = "--workspace --locked check --hide-inclusion-graph bans licenses sources";
    let outcome = stage::run(&mut command(&program, checks), left())?;
    if outcome != Outcome::Passed {
        return Ok(outcome);
    }
    let fetched = stage::run(&mut command(&program, "fetch db"), left().min(FETCH_LIMIT))?;
    if fetched != Outcome::Passed {
        let missing = "advisories not checked: their database cannot be had here";
        return Ok(Outcome::Partly(missing.to_owned()));
    }
    stage::run(
        &mut command(&program, "--workspace --locked check advisories"),
        left(),
    )
}

fn command(program: &Path, arguments: &str) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(cargo::ROOT)
        .args(arguments.split_whitespace());
    command
}

/// Where the project keeps programs that it installed for itself.
fn tools() -> anyhow::Result<PathBuf> {
    Ok(cargo::metadata()?.target_directory.join("tools"))
}

/// The program, if it is there in the version wanted: the project's own, or the machine's.
fn installed() -> anyhow::Result<Option<PathBuf>> {
    let own = tools()?.join("bin").join("cargo-deny");
    let mut candidates = [own, "cargo-deny".into()].into_iter();
    Ok(candidates.find(|program| {
        let said = Command::new(program).arg("--version").output();
        said.is_ok_and(|said| {
            let words = String::from_utf8_lossy(&said.stdout);
            words.trim() == format!("cargo-deny {VERSION}")
        })
    }))
}

fn install(limit: Duration) -> anyhow::Result<PathBuf> {
    let tools = tools()?;
    let build = tools.join("build");
    let mut command = cargo::command("install --locked --debug cargo-deny --version");
    command
        .args([VERSION, "--root"])
        .arg(&tools)
        .env("CARGO_TARGET_DIR", &build)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0");
    match stage::run(&mut command, limit)? {
        Outcome::Failed(reason) => bail!("cannot install cargo-deny {VERSION}: {reason}"),
        _ => {
            // The build directory is not needed any more, and is half a gigabyte.
            let _ = fs::remove_dir_all(&build);
            Ok(tools.join("bin").join("cargo-deny"))
        }
    }
}
