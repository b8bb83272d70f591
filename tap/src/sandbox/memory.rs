//! Keeping memory from others: no ptrace(2) by the user's other processes, no core file.

use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::because;

/// Makes this process not dumpable, for which `/proc/PID/mem` and the like belong to root from then
/// on, and forbids core files. A change of credentials makes it dumpable again, so this comes after
/// all of those.
pub(super) fn hide() -> Result<(), String> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)
        .map_err(because("core files cannot be forbidden"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(because("PR_SET_DUMPABLE failed"))
}
