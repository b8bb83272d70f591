//! The allow-list of system calls, by the role of a process, with the reason of each (`calls`).
//!
//! # Theory of operation
//!
//! Two filters are installed; of what they say to a call, the kernel takes the strictest. The
//! allow-list answers every call that is not on it with ENOSYS: a library that tries a newer call
//! first then takes the path for older kernels, and code that broke in gets nothing. The second
//! ends the process at the calls that only such code makes: starting a program, reading another
//! process, changing mounts or namespaces, loading code into the kernel. A bare list of calls is
//! decided by their number alone, for which the kernel keeps a table of those that are always
//! allowed (`seccomp_cache_check_allow` in kernel/seccomp.c), so the calls that move packets cost
//! nothing more.
//!
//! # Limits
//!
//! A filter sees numbers, not what pointers lead to: which file is opened is for the root and for
//! Landlock to say.
//!
//! Source: seccomp(2), `seccompiler`.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

mod arguments;
mod calls;

pub use calls::{Call, FATAL, calls_of};

/// What a process is for, which says what calls it needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// The process of a named network: frames, the host's sockets, the control API, and the files
    /// in its directories.
    Network,
    /// The network of one container, for `cnet run` and `cnet-slirp`: frames, the host's sockets
    /// and an API socket that is open already. No file at all.
    Private,
    /// The socket helper: makes TCP sockets in a container's network namespace.
    SocketHelper,
    /// The init of `cnet run`, once the command runs: waits, passes signals on.
    Init,
    /// The helper outside, for files alone ([`crate::helper::outside`]).
    Files,
    /// The process outside, which looks at other processes and makes Unix sockets: every call but those
    /// of [`FATAL`].
    Outside,
    /// The namespace helper: every call but those of [`FATAL`], of which it keeps setns(2).
    Namespaces,
}

impl Role {
    /// Those that have an allow-list.
    pub const LISTED: [Role; 5] = [
        Role::Network,
        Role::Private,
        Role::SocketHelper,
        Role::Init,
        Role::Files,
    ];
}

/// Filters that are ready to be installed.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `None` without an allow-list.
    allowed: Option<BpfProgram>,
    fatal: BpfProgram,
}

/// Installs the filters of `role` in this thread, and so in all that it makes.
pub(super) fn apply(role: Role) -> Result<(), String> {
    install(&compile(role)?)
}

/// Compiles the filters of `role` for this machine.
///
/// # Errors
///
/// The text of what is wrong: an architecture without seccomp filters.
pub fn compile(role: Role) -> Result<Programs, String> {
    let text = |error: seccompiler::BackendError| error.to_string();
    let arch = TargetArch::try_from(ARCH).map_err(text)?;
    let build = |rules, mismatch, matched| {
        SeccompFilter::new(rules, mismatch, matched, arch)
            .and_then(BpfProgram::try_from)
            .map_err(text)
    };
    let allowed: BTreeMap<i64, Vec<SeccompRule>> = calls_of(role)
        .map(|call| Ok((call.number, call.rules()?)))
        .collect::<Result<_, seccompiler::BackendError>>()
        .map_err(text)?;
    let is_listed = Role::LISTED.contains(&role);
    let is_fatal = |number: &i64| role != Role::Namespaces || *number != libc::SYS_setns;
    let fatal = FATAL.iter().map(|(number, _)| (*number, Vec::new()));
    let fatal = fatal.filter(|(number, _)| is_fatal(number));
    let denied = SeccompAction::Errno(libc::ENOSYS as u32);
    let allowed = is_listed.then(|| build(allowed, denied, SeccompAction::Allow));
    Ok(Programs {
        allowed: allowed.transpose()?,
        fatal: build(
            fatal.collect(),
            SeccompAction::Allow,
            SeccompAction::KillProcess,
        )?,
    })
}

/// Installs filters in this thread. Makes system calls and nothing else, so that the child of a
/// process with threads may do it.
///
/// # Errors
///
/// The text of what the kernel says.
pub fn install(programs: &Programs) -> Result<(), String> {
    let text = |error: seccompiler::Error| {
        format!(
            "{error}: the kernel needs CONFIG_SECCOMP_FILTER, and the filter around us has to allow seccomp(2)"
        )
    };
    // seccomp(2) itself is not on the allow-list, so that one is last.
    seccompiler::apply_filter(&programs.fatal).map_err(text)?;
    match &programs.allowed {
        Some(allowed) => seccompiler::apply_filter(allowed).map_err(text),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
