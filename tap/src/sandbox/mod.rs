//! The sandbox: what a process gives up before it reads what containers send.
//!
//! # Theory of operation
//!
//! A container is the attacker. The process that parses its frames runs outside the container with
//! the user's rights, so before the first frame it gives up all that its work does not need, in the
//! stages of [`Stage`]. [`enter`] runs them in order, in a process that still has one thread;
//! threads made later inherit all of it. What a process needs of the host afterwards it asks of a
//! helper process outside, which knows a fixed set of requests ([`crate::helper::outside`]).
//!
//! The order follows from what each stage takes away: namespaces need `/proc/self/uid_map`, which a
//! process that is not dumpable may not write; the root needs mount(2), which capabilities permit;
//! the bounding set needs CAP_SETPCAP; Landlock and seccomp(2) need no new privileges; seccomp
//! forbids all of these calls, so it is last. Only the pages of code that all of it took are given back
//! after it.
//!
//! # Invariants
//!
//! - A stage that the host does not offer is reported with the reason, never passed over in
//!   silence; under [`Mode::Required`] it is an error, before any frame is read.
//! - Nothing is given back: there is no way out of the sandbox for a process that is in it.
//!
//! # Limits
//!
//! The process keeps the host's network namespace, since its work is to open connections there.
//!
//! Source: capabilities(7), user_namespaces(7), pid_namespaces(7), pivot_root(2), landlock(7),
//! seccomp(2), prctl(2).

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::thread::CapabilitySet;

use crate::error::TapError;
use crate::fork::require_one_thread;

mod descriptors;
mod environment;
mod isolated;
mod landlock;
mod memory;
mod namespaces;
mod privileges;
pub mod probe;
mod root;
pub mod seccomp;

pub use isolated::{Isolated, spawn_isolated};
pub use namespaces::Isolation;
use privileges::no_new_privileges;
pub use seccomp::Role;

/// One thing that a process gives up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// Every descriptor that came through execve(2) is closed, unless this program was told of it. A
    /// forked process closes its parent's by itself ([`begin`]).
    Descriptors,
    /// The environment is emptied, but for the variables that are read later.
    Environment,
    /// Mount, IPC and UTS namespaces of its own, in a user namespace of its own unless a capability
    /// has to be kept.
    Namespaces,
    /// A PID namespace of its own: no other process has a number there.
    Processes,
    /// A root directory with nothing in it but the directories that are used at run time.
    Root,
    /// No capability but those that are kept on purpose, and none to be regained: the bounding set
    /// is as empty.
    Capabilities,
    /// Not dumpable, and no core file: no other process of the user reads its memory.
    Memory,
    /// No program that it could start would have more rights (`PR_SET_NO_NEW_PRIVS`).
    NoNewPrivileges,
    /// Landlock: no file but below the directories of its root, no signal to a process outside and
    /// no abstract Unix socket outside.
    Landlock,
    /// The allow-list of system calls ([`seccomp`]).
    Seccomp,
}

impl Stage {
    /// All stages, in their order.
    pub const ALL: [Stage; 10] = [
        Stage::Descriptors,
        Stage::Environment,
        Stage::Namespaces,
        Stage::Processes,
        Stage::Root,
        Stage::Capabilities,
        Stage::Memory,
        Stage::NoNewPrivileges,
        Stage::Landlock,
        Stage::Seccomp,
    ];

    /// Its name in the log and in `cnet doctor`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Descriptors => "descriptors",
            Stage::Environment => "environment",
            Stage::Namespaces => "namespaces",
            Stage::Processes => "PID namespace",
            Stage::Root => "empty root",
            Stage::Capabilities => "capabilities",
            Stage::Memory => "memory",
            Stage::NoNewPrivileges => "no new privileges",
            Stage::Landlock => "Landlock",
            Stage::Seccomp => "seccomp",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much of the sandbox is insisted upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Every stage that the host offers; the others are reported.
    #[default]
    Offered,
    /// Every stage, or an error.
    Required,
    /// None: for debugging.
    Off,
}

/// What one process gives up, and what it keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Whether all stages have to be there.
    pub mode: Mode,
    /// Which system calls it keeps.
    pub role: Role,
    /// Whether it keeps CAP_NET_BIND_SERVICE if it has it, to publish ports below 1024 later. It
    /// has no user namespace of its own then, in which that capability would be worth nothing.
    pub binds_low_ports: bool,
    /// Directories that it reads and writes at run time. One that does not exist is left out.
    pub writable: Vec<PathBuf>,
    /// Directories that it reads at run time. One that does not exist is left out.
    pub readable: Vec<PathBuf>,
    /// Environment variables that are read later.
    pub environment: Vec<&'static str>,
    /// The namespaces that the process was forked into already.
    pub isolation: Option<Isolation>,
}

impl Policy {
    /// For a process of that role, which keeps nothing but its system calls and descriptors.
    pub fn new(role: Role, mode: Mode) -> Policy {
        Policy {
            mode,
            role,
            binds_low_ports: false,
            writable: Vec::new(),
            readable: Vec::new(),
            environment: Vec::new(),
            isolation: None,
        }
    }
}

/// A stage that is not there, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// Which one.
    pub stage: Stage,
    /// The reason, and what would change it.
    pub why: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage, self.why)
    }
}

/// What [`enter`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Stages that the host does not offer, in their order.
    pub missing: Vec<Missing>,
}

impl Report {
    fn note(&mut self, stage: Stage, outcome: Result<(), String>) {
        if let Err(why) = outcome {
            self.missing.push(Missing { stage, why });
        }
    }
}

/// Why a process is not in its sandbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// [`enter`] was called too late.
    #[error(transparent)]
    Threads(#[from] TapError),
    /// A stage is missing, and all of them are required.
    #[error(
        "the sandbox is incomplete, and --require-sandbox was given: {}; `cnet doctor` tells what to do",
        .0.iter().map(Missing::to_string).collect::<Vec<_>>().join("; ")
    )]
    Incomplete(Vec<Missing>),
}

/// Puts this process into the sandbox, for good.
///
/// # Errors
///
/// [`SandboxError::Threads`] if it has more threads than one; [`SandboxError::Incomplete`] under
/// [`Mode::Required`]. What was given up until then is not given back.
pub fn enter(policy: &Policy) -> Result<Report, SandboxError> {
    let mut report = Report::default();
    if policy.mode == Mode::Off {
        return Ok(report);
    }
    require_one_thread()?;
    learn_auxiliary_vector();
    let code = memory::code();
    report.note(Stage::Descriptors, descriptors::close_inherited());
    environment::keep(&policy.environment);
    let isolation = policy
        .isolation
        .clone()
        .unwrap_or_else(|| Isolation::make(policy.binds_low_ports));
    isolation.report_to(&mut report);
    let root = root::empty(&isolation, &policy.writable, &policy.readable);
    report.note(Stage::Root, root);
    let kept = match policy.binds_low_ports && !isolation.user {
        true => CapabilitySet::NET_BIND_SERVICE,
        false => CapabilitySet::empty(),
    };
    report.note(Stage::Capabilities, privileges::drop_capabilities(kept));
    report.note(Stage::Memory, memory::hide());
    report.note(Stage::NoNewPrivileges, no_new_privileges());
    report.note(
        Stage::Landlock,
        landlock::restrict(&policy.writable, &policy.readable),
    );
    // Said before the last stage: what the error needs is not among the calls that are left.
    let incomplete = |report: &Report| policy.mode == Mode::Required && !report.missing.is_empty();
    if incomplete(&report) {
        return Err(SandboxError::Incomplete(report.missing));
    }
    report.note(Stage::Seccomp, seccomp::apply(policy.role));
    memory::give_back(&code);
    if incomplete(&report) {
        return Err(SandboxError::Incomplete(report.missing));
    }
    Ok(report)
}

/// The stages of a helper process, which has no namespaces of its own: descriptors but `kept` and
/// the standard streams are closed, its environment is empty, it is not dumpable, holds the
/// capabilities that it needs and has, and keeps the calls of its role. Its standard streams lead nowhere;
/// only one without an allow-list keeps standard error, for what it has to say.
/// What fails is not told: a helper has no log.
pub(crate) fn confine_helper(role: Role, kept: &[RawFd]) {
    learn_auxiliary_vector();
    leave_streams(Role::LISTED.contains(&role));
    descriptors::keep_only(kept);
    environment::keep(&[]);
    let _ = privileges::drop_capabilities(privileges::needed_by(role));
    let _ = no_new_privileges();
    let _ = memory::hide();
    let code = memory::code();
    let _ = seccomp::apply(role);
    memory::give_back(&code);
}

/// Begins the life of a process that was forked for a task of its own: closes its parent's descriptors
/// but `kept` and the standard streams, and has `ps` show `title`.
pub fn begin(title: &str, kept: &[RawFd]) {
    descriptors::keep_only(kept);
    environment::rename(title);
}

/// The stages of the init of a container, which stays in the container's namespaces: it keeps `kept`
/// and the calls of [`Role::Init`]. It stays dumpable, since its namespaces are what other programs
/// find the container by. What fails is not told: the container's processes have as much as it has.
pub fn confine_init(title: &str, kept: &[BorrowedFd<'_>]) {
    learn_auxiliary_vector();
    let kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    leave_streams(true);
    begin(title, &kept);
    environment::keep(&[]);
    let _ = rustix::process::chdir("/");
    let _ = privileges::drop_capabilities(CapabilitySet::empty());
    let _ = no_new_privileges();
    let code = memory::code();
    let _ = seccomp::apply(Role::Init);
    memory::give_back(&code);
}

/// Has the standard streams lead nowhere: a reader that waits for the end of the parent's output must
/// not wait for this process. Standard error is kept unless `error` is said.
fn leave_streams(error: bool) {
    let null = OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(null) = rustix::fs::open("/dev/null", null, rustix::fs::Mode::empty()) {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        if error {
            let _ = rustix::stdio::dup2_stderr(&null);
        }
    }
}

/// Has `rustix` learn what the kernel tells a program at its start (getauxval(3)), which it does at the
/// first call that needs it, from a file that is out of sight then.
fn learn_auxiliary_vector() {
    let _ = rustix::param::page_size();
}

/// A reason made of what was tried and what the kernel said.
fn because(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> String {
    move |errno| format!("{what}: {}", io::Error::from(errno))
}
