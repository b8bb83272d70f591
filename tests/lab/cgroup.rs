//! A control group with a limit of memory, where the machine has a controller for it.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where the controllers are mounted, as systemd and container engines do: by the name of the file
/// with the limit, of version 2 and of version 1.
const PLACES: [(&str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
];

static GROUPS: AtomicU32 = AtomicU32::new(0);

/// A control group, gone with its value. Its processes have to be gone by then.
pub struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// A new one whose processes together may use `limit` bytes; `None` where no controller of memory
    /// can be used.
    pub fn create(limit: u64) -> Option<Self> {
        PLACES
            .iter()
            .find_map(|(top, file)| Self::below(top.as_ref(), file, limit))
    }

    fn below(top: &Path, file: &str, limit: u64) -> Option<Self> {
        if !top.join("cgroup.procs").exists() {
            return None;
        }
        if top.join("cgroup.subtree_control").exists() {
            fs::write(top.join("cgroup.subtree_control"), "+memory").ok()?;
        }
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let path = top.join(format!("cnet-tests-{}-{number}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let group = Self(path);
        fs::write(group.0.join(file), limit.to_string()).ok()?;
        Some(group)
    }

    /// The file that a process moves itself into the group by: it writes `0` to it.
    pub fn door(&self) -> OwnedFd {
        let path = self.0.join("cgroup.procs");
        let file = File::options().write(true).open(path);
        file.expect("a group of our own").into()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A process that has just been killed may still be there for a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
