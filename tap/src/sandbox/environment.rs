//! What execve(2) has put on the stack: emptying the environment, and what `ps` shows.
//!
//! `/proc/PID/environ` and `/proc/PID/cmdline` show the strings where they were put, whatever the C
//! library makes of them. So they are overwritten in place.

use std::ffi::CStr;

// SAFETY: the declaration is that of the C library (environ(7)).
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

/// Has `ps` show `title` in place of the command line that this process was forked with, as far as
/// there is room: for a process of another task than its parent's. Left alone where /proc does not
/// tell the place. To be called while there is one thread.
pub(super) fn rename(title: &str) {
    let Some((start, length)) = command_line() else {
        return;
    };
    let title = &title.as_bytes()[..title.len().min(length.saturating_sub(1))];
    // SAFETY: the kernel says that the strings of the command line are there, which are writable
    // memory of the process's stack (proc_pid_stat(5): arg_start and arg_end). There is one thread,
    // and the standard library copies what it reads of them.
    unsafe {
        let place = std::ptr::with_exposed_provenance_mut::<u8>(start);
        std::ptr::write_bytes(place, 0, length);
        std::ptr::copy_nonoverlapping(title.as_ptr(), place, title.len());
    }
}

/// Where the command line begins, and how many bytes it has.
fn command_line() -> Option<(usize, usize)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything; the field after it is the third, these are 48 and
    // 49.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(45);
    let mut next = || fields.next()?.parse::<usize>().ok();
    let (start, end) = (next()?, next()?);
    (start > 0).then_some((start, end.checked_sub(start)?))
}
