//! Namespaces of its own around this process.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::thread::UnshareFlags;

use super::{Missing, Report, Stage, privileges};

/// What the host offers to one who may not make namespaces.
const CURE: &str = "allow user namespaces (`sysctl -w user.max_user_namespaces=28633`, and \
     `kernel.apparmor_restrict_unprivileged_userns=0` or a profile with `userns,` where AppArmor \
     restricts them)";

/// The namespaces that a process has of its own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Isolation {
    /// A user namespace, in which it is the same user and no other exists.
    pub user: bool,
    /// Mount, IPC and UTS namespaces.
    pub mount: bool,
    missing: Vec<Missing>,
}

impl Isolation {
    /// Moves this process into new mount, IPC and UTS namespaces, and a user namespace. One that
    /// keeps CAP_NET_BIND_SERVICE has no user namespace, if it can do without.
    pub fn make(binds_low_ports: bool) -> Isolation {
        Isolation::unshare(binds_low_ports, UnshareFlags::empty())
    }

    /// As [`Isolation::make`], and has the next child, and all after it, be in a new PID namespace.
    pub fn make_for_child(binds_low_ports: bool) -> Isolation {
        let mut made = Isolation::unshare(binds_low_ports, UnshareFlags::NEWPID);
        if !made.mount {
            let why = format!("not made either; {CURE}");
            let stage = Stage::Processes;
            made.missing.push(Missing { stage, why });
        }
        made
    }

    fn unshare(binds_low_ports: bool, more: UnshareFlags) -> Isolation {
        let mut made = Isolation::default();
        let inner = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | more;
        if binds_low_ports && privileges::binds_low_ports() && unshare(inner).is_ok() {
            made.mount = true;
            return made;
        }
        match unshare_user(inner) {
            Ok(()) => (made.user, made.mount) = (true, true),
            Err(errno) => {
                let why = format!("{}; {CURE}", io::Error::from(errno));
                let stage = Stage::Namespaces;
                made.missing.push(Missing { stage, why });
            }
        }
        made
    }

    pub(super) fn report_to(&self, report: &mut Report) {
        report.missing.extend(self.missing.iter().cloned());
    }
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: unshare(2) is a danger only with CLONE_FILES, which takes descriptors from other
    // threads; it is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// A user namespace in which this user and group alone exist, with the same numbers, and the other
/// namespaces in it.
fn unshare_user(inner: UnshareFlags) -> rustix::io::Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | inner)?;
    let failed = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    // A group may be mapped only by a process that cannot drop groups (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny").map_err(failed)?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1")).map_err(failed)?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1")).map_err(failed)
}
