//! Emptying the environment.
//!
//! The strings are on the stack, where execve(2) has put them, and `/proc/PID/environ` shows them
//! there whatever the C library makes of them. So they are overwritten in place.

use std::ffi::CStr;

unsafe extern "C" {
    /// The C library's list of the environment's strings (environ(7)).
    static mut environ: *mut *mut libc::c_char;
}

/// Overwrites every variable but `kept`.
pub(super) fn keep(kept: &[&str]) {
    // SAFETY: this process has one thread (the callers see to it), so that no other reads or changes
    // the environment meanwhile. The list ends with a null pointer, and its strings are writable
    // memory of the process (environ(7)). The standard library copies what it reads, so no borrow of
    // them is alive.
    unsafe {
        if environ.is_null() {
            return;
        }
        let (mut from, mut to) = (environ, environ);
        while !(*from).is_null() {
            let variable = CStr::from_ptr(*from).to_bytes();
            let length = variable.len();
            let name = variable.split(|&byte| byte == b'=').next();
            if kept.iter().any(|kept| Some(kept.as_bytes()) == name) {
                *to = *from;
                to = to.add(1);
            } else {
                std::ptr::write_bytes(*from, 0, length);
            }
            from = from.add(1);
        }
        *to = std::ptr::null_mut();
    }
}
