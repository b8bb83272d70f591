//! Keeping memory from others: no ptrace(2) by the user's other processes, no core file. And giving back
//! what only the way into the sandbox needed.

use std::ops::Range;

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

/// Where code of files is mapped into this process (proc_pid_maps(5)); nothing without /proc.
pub(super) fn code() -> Vec<Range<usize>> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter_map(range_of_code).collect()
}

/// A line has the range, permissions, offset, device, inode and path. The kernel's own mappings have a
/// name in brackets, and no inode.
fn range_of_code(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_ascii_whitespace();
    let (range, permissions) = (words.next()?, words.next()?);
    let path = words.nth(3)?;
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let is_code = permissions == "r-xp" && path.starts_with('/');
    is_code.then_some(number(start)?..number(end)?)
}

/// Unmaps the pages of this code. What runs from here on is mapped again when it runs, a page fault for
/// each sixteen pages; what was needed to come so far stays out of this process's memory.
pub(super) fn give_back(code: &[Range<usize>]) {
    for range in code {
        let at = std::ptr::with_exposed_provenance_mut(range.start);
        // SAFETY: the range is a private mapping of a file that may be executed and not written, and
        // code has no relocations: its pages are the file's, and come back from there as they were.
        // The file is not written while it is executed (ETXTBSY), nor is a library in its place.
        unsafe { libc::madvise(at, range.len(), libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_data() {
        let code = "7f00-7f40 r-xp 00001000 fe:00 12    /usr/bin/cnet";
        assert_eq!(range_of_code(code), Some(0x7f00..0x7f40));
        for other in [
            "7f00-7f40 r--p 00001000 fe:00 12    /usr/bin/cnet",
            "7f00-7f40 rwxp 00001000 fe:00 12    /usr/bin/cnet",
            "7f00-7f40 r-xp 00000000 00:00 0     [vdso]",
            "7f00-7f40 rw-p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(range_of_code(other), None, "{other}");
        }
    }

    #[test]
    fn a_program_runs_on_without_the_code_it_needed_before() {
        let resident = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("RssFile:"));
            line.unwrap().trim_end_matches("kB").trim().parse().unwrap()
        };
        let code = code();
        assert!(!code.is_empty());
        // All of it, so that there is something to give back.
        for range in &code {
            let pages = range.clone().step_by(4096);
            for page in pages.map(std::ptr::with_exposed_provenance::<u8>) {
                // SAFETY: the address is one of a mapping that may be read, and code stays.
                std::hint::black_box(unsafe { page.read_volatile() });
            }
        }
        let before = resident();
        give_back(&code);
        let after = resident();
        assert!(after < before, "{before} KiB before, {after} KiB after");
    }
}
