//! Capabilities, and never getting any again.

use rustix::io::Errno;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use super::because;

/// `PR_SET_NO_NEW_PRIVS` (prctl(2)): execve(2) of a setuid program gains nothing.
pub(super) fn no_new_privileges() -> Result<(), String> {
    rustix::thread::set_no_new_privs(true).map_err(because("PR_SET_NO_NEW_PRIVS failed"))
}

/// Whether this process may bind ports below 1024 by a capability of its own.
pub(super) fn binds_low_ports() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_BIND_SERVICE))
}

/// Gives up every capability, in all sets; with `keep_bind` all but CAP_NET_BIND_SERVICE, if this
/// process has it.
pub(super) fn drop_capabilities(keep_bind: bool) -> Result<(), String> {
    let kept = match keep_bind && binds_low_ports() {
        true => CapabilitySet::NET_BIND_SERVICE,
        false => CapabilitySet::empty(),
    };
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
