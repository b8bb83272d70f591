//! Landlock: what this process may open by a path, and whom it may signal.
//!
//! It says again what the empty root says, in a way that needs no namespaces, and adds what
//! namespaces do not say: no signal to a process outside the sandbox, and no abstract Unix socket
//! outside, which belong to the network namespace that this process shares with the host.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// What is asked for: that of Linux 6.12, the first with scopes.
const NEWEST: ABI = ABI::V6;

/// Restricts this thread, and those it makes.
pub(super) fn restrict(writable: &[PathBuf], readable: &[PathBuf]) -> Result<(), String> {
    let status = enforce(writable, readable).map_err(|error| error.to_string())?;
    match status {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced => Err(
            "in force, but this kernel has no scopes for signals and abstract sockets (Linux 6.12)"
                .to_owned(),
        ),
        RulesetStatus::NotEnforced => Err(
            "this kernel has no Landlock, or it is not switched on (Linux 5.13, `lsm=landlock,…`)"
                .to_owned(),
        ),
    }
}

fn enforce(writable: &[PathBuf], readable: &[PathBuf]) -> Result<RulesetStatus, RulesetError> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let writing = reading
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let all: [(&[PathBuf], BitFlags<AccessFs>); 2] = [(writable, writing), (readable, reading)];
    for (paths, access) in all {
        for path in paths {
            // One that does not exist is left out, as in the root.
            if let Ok(directory) = PathFd::new(path) {
                rules = rules.add_rule(PathBeneath::new(directory, access))?;
            }
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}
