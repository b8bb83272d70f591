//! Capabilities, and never getting any again.

use rustix::io::Errno;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use super::{Role, because};

/// `PR_SET_NO_NEW_PRIVS` (prctl(2)): execve(2) of a setuid program gains nothing.
pub(super) fn no_new_privileges() -> Result<(), String> {
    rustix::thread::set_no_new_privs(true).map_err(because("PR_SET_NO_NEW_PRIVS failed"))
}

/// Whether this process may bind ports below 1024 by a capability of its own.
pub(super) fn binds_low_ports() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_BIND_SERVICE))
}

/// What a helper of that role keeps of what it has: the one that is root's needs no more than these.
pub(super) fn needed_by(role: Role) -> CapabilitySet {
    match role {
        // Looks at other users' processes, and makes and meets sockets in their directories.
        Role::Outside => {
            CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE
        }
        // Enters namespaces, configures interfaces there, and kills a child that hangs in one.
        Role::Namespaces => {
            CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::KILL
        }
        Role::Network | Role::Private | Role::SocketHelper | Role::Init | Role::Files => {
            CapabilitySet::empty()
        }
    }
}

/// Gives up every capability, in all sets, but those of `kept` that this process has.
pub(super) fn drop_capabilities(kept: CapabilitySet) -> Result<(), String> {
    let has = rustix::thread::capabilities(None).map(|sets| sets.permitted);
    let kept = kept & has.unwrap_or(CapabilitySet::empty());
    // Fails without CAP_SETPCAP. Nothing can be gained from the bounding set then either: there is
    // no execve(2) with more privileges than now.
    let bounded = shrink_bounding_set(kept);
    let no_root = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    // As the bounding set: without CAP_SETPCAP there is nothing to lock.
    let _ = rustix::thread::set_capabilities_secure_bits(no_root);
    let _ = rustix::thread::clear_ambient_capability_set();
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)
        .map_err(because("capabilities cannot be given up"))?;
    bounded.map_err(because(
        "the bounding set cannot be emptied without CAP_SETPCAP or a user namespace",
    ))
}

/// Takes all but `kept` from the bounding set. The kernel names the end of its capabilities by
/// EINVAL.
fn shrink_bounding_set(kept: CapabilitySet) -> rustix::io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(false) => continue,
            Err(Errno::INVAL) => break,
            Ok(true) => rustix::thread::remove_capability_from_bounding_set(capability)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
