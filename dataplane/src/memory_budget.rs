//! How much memory this process may use, and for how many flows that is enough.
//!
//! # Theory of operation
//!
//! A control group with a limit ends a process that needs more (the OOM killer), and every flow with
//! it. So the limit is read before the network starts, and the tables are made no larger than what it
//! has room for: a flow that finds no room is refused, and the others stay. What may be used is the
//! smallest of
//!
//! - for each control group that the process is in, and for each above it: its limit less what its
//!   processes use, not counting file cache that the kernel can drop;
//! - the memory that the host has free (`MemAvailable`).
//!
//! Most of a flow's memory is the kernel's, for its socket, and counts towards the group as well.
//!
//! # Limits
//!
//! It is read once: a limit that is lowered later, and other processes of the group that grow, are
//! not noticed. What receive queues of sockets hold is bounded by the kernel, which lets TCP's window
//! shrink and drops datagrams when the group has no room.
//!
//! Sources: cgroups(7), proc_pid_mountinfo(5), Documentation/admin-guide/cgroup-v2.rst and
//! cgroup-v1/memory.rst of the kernel.

use std::fs;
use std::path::{Path, PathBuf};

/// What flows may take of the memory that may be used, as a divisor. The rest is for buffers
/// ([`PART_OF_UNSENT`]), reassembly, containers that come later, and other processes.
const PART_OF_FLOWS: u64 = 2;

/// Bytes that are set aside for a flow. An idle one was measured at 4.5 KiB, nearly all of it the
/// kernel's for the socket, its inode and its place in epoll; the rest is for bytes that wait in it.
const BYTES_A_FLOW: u64 = 16 << 10;

/// Flows that there are in any case.
const LEAST_FLOWS: usize = 16;

/// What bytes that sockets do not take may have of the memory that may be used, as a divisor.
const PART_OF_UNSENT: u64 = 8;

/// Bytes of memory that this process may use beyond what it uses now; `None` where the system does
/// not tell. To be asked before the sandbox closes `/proc` and `/sys`.
pub fn available_memory() -> Option<u64> {
    available_below(Path::new("/"))
}

/// For how many flows so much memory is enough.
pub(super) fn flows(memory: Option<u64>) -> usize {
    let flows = memory.map(|bytes| bytes / PART_OF_FLOWS / BYTES_A_FLOW);
    flows.map_or(usize::MAX, saturating).max(LEAST_FLOWS)
}

/// The limit of bytes that wait for sockets to take them: `usual`, or what so much memory has room
/// for.
pub(super) fn unsent_limit(memory: Option<u64>, usual: usize) -> usize {
    let most = memory.map(|bytes| saturating(bytes / PART_OF_UNSENT));
    most.map_or(usual, |most| most.min(usual))
}

fn saturating(number: u64) -> usize {
    number.try_into().unwrap_or(usize::MAX)
}

/// As [`available_memory`], of the system whose root directory is at `root`.
fn available_below(root: &Path) -> Option<u64> {
    let groups = hierarchies(root).into_iter().flat_map(|h| h.room());
    groups.chain(free(root)).min()
}

/// Bytes that the host can give out without swapping.
fn free(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The names of a control group's files, by version.
#[derive(Debug)]
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// The word in `memory.stat` that file cache not used lately stands behind.
    cache: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: "total_inactive_file",
};

const V2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    cache: "inactive_file",
};

/// A hierarchy of control groups that limits memory, and this process's place in it.
#[derive(Debug)]
struct Hierarchy {
    /// Where it is mounted.
    top: PathBuf,
    /// The process's group below that.
    group: PathBuf,
    files: &'static Files,
}

impl Hierarchy {
    /// What is left in the process's group, and in each above it that is visible.
    fn room(&self) -> Vec<u64> {
        let groups = self.group.ancestors().map(|group| self.top.join(group));
        groups.filter_map(|group| self.room_in(&group)).collect()
    }

    /// What is left in the group at `path`; `None` if it has no limit.
    fn room_in(&self, path: &Path) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(path.join(name)).ok();
        // "max" is no limit, and no number.
        let limit: u64 = read(self.files.limit)?.trim().parse().ok()?;
        let usage = read(self.files.usage).and_then(|text| text.trim().parse().ok());
        let cache = read("memory.stat").and_then(|text| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(self.files.cache)?.trim().parse().ok())
        });
        let held = usage.unwrap_or(0u64).saturating_sub(cache.unwrap_or(0));
        Some(limit.saturating_sub(held))
    }
}

/// The hierarchies that the process is in: that of version 2, that of version 1, or both.
fn hierarchies(root: &Path) -> Vec<Hierarchy> {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
    let hierarchies = groups.lines().filter_map(|line| {
        // Number, controllers, path (cgroups(7)).
        let mut fields = line.splitn(3, ':');
        let (number, controllers) = (fields.next()?, fields.next()?);
        let group = fields.next()?;
        let files = match (number, controllers) {
            ("0", "") => &V2,
            _ if controllers.split(',').any(|name| name == "memory") => &V1,
            _ => return None,
        };
        let mount = mounts.iter().find(|mount| mount.is_of(files))?;
        // Not below what is mounted, as in a container: then only the mount's own group is seen.
        let below = Path::new(group).strip_prefix(&mount.root);
        Some(Hierarchy {
            top: root.join(mount.at.trim_start_matches('/')),
            group: below.unwrap_or(Path::new("")).to_owned(),
            files,
        })
    });
    hierarchies.collect()
}

/// A line of `/proc/self/mountinfo`, as far as it matters here.
#[derive(Debug)]
struct Mount {
    /// What of the file system is mounted.
    root: String,
    /// Where.
    at: String,
    kind: String,
    options: String,
}

impl Mount {
    /// ID, parent, device, root, mount point, options, tags, `-`, type, source, the file system's
    /// options (proc_pid_mountinfo(5)).
    fn parse(line: &str) -> Option<Mount> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3).map(unescaped);
        let mut file_system = file_system.split(' ');
        Some(Mount {
            root: mount.next()?,
            at: mount.next()?,
            kind: file_system.next()?.to_owned(),
            options: file_system.nth(1)?.to_owned(),
        })
    }

    fn is_of(&self, files: &Files) -> bool {
        match files.limit == V2.limit {
            true => self.kind == "cgroup2",
            false => self.kind == "cgroup" && self.options.split(',').any(|o| o == "memory"),
        }
    }
}

/// Spaces, tabs, line ends and backslashes stand in mountinfo as a backslash and three octal digits.
fn unescaped(field: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    escapes
        .iter()
        .fold(field.to_owned(), |field, (code, sign)| {
            field.replace(code, sign)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A root directory with these files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn available(files: &[(&str, &str)]) -> Option<u64> {
        available_below(system(files).path())
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       4096000 kB\nMemFree:         102400 kB\nMemAvailable:    2097152 kB\n",
    );

    const V2_MOUNT: (&str, &str) = (
        "proc/self/mountinfo",
        "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
         30 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
    );

    #[test]
    fn without_control_groups_it_is_what_is_free() {
        assert_eq!(available(&[MEMINFO]), Some(2048 * MIB));
        assert_eq!(available(&[]), None);
        let unlimited = [
            MEMINFO,
            V2_MOUNT,
            ("proc/self/cgroup", "0::/user.slice\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "99\n"),
        ];
        assert_eq!(available(&unlimited), Some(2048 * MIB));
    }

    #[test]
    fn version_2_counts_the_smallest_up_to_the_top() {
        let files = [
            MEMINFO,
            V2_MOUNT,
            (
                "proc/self/cgroup",
                "0::/user.slice/user@1000.service/app.slice\n",
            ),
            ("sys/fs/cgroup/user.slice/memory.max", "104857600\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "52428800\n"),
            (
                "sys/fs/cgroup/user.slice/memory.stat",
                "anon 1\nfile 31457280\nactive_file 10485760\ninactive_file 20971520\n",
            ),
            (
                "sys/fs/cgroup/user.slice/user@1000.service/memory.max",
                "max\n",
            ),
            (
                "sys/fs/cgroup/user.slice/user@1000.service/app.slice/memory.max",
                "536870912\n",
            ),
        ];
        // 100 MiB, of which 50 are used, 20 of those for cache that can go.
        assert_eq!(available(&files), Some(70 * MIB));
    }

    #[test]
    fn in_a_control_group_namespace_the_mount_is_the_group() {
        let mut files = vec![
            V2_MOUNT,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "67108864\n"),
            ("sys/fs/cgroup/memory.current", "4194304\n"),
        ];
        assert_eq!(available(&files), Some(60 * MIB));
        // A path outside of what is mounted.
        files[1] = ("proc/self/cgroup", "0::/../other\n");
        assert_eq!(available(&files), Some(60 * MIB));
    }

    const V1_MOUNT: (&str, &str) = (
        "proc/self/mountinfo",
        "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
         33 31 0:31 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
         35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
         41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
    );

    #[test]
    fn version_1_and_both_together() {
        let files = [
            MEMINFO,
            V1_MOUNT,
            (
                "proc/self/cgroup",
                "5:devices:/\n4:memory:/a/b\n1:cpu:/a\n0::/\n",
            ),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            (
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "268435456\n",
            ),
            (
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes",
                "138412032\n",
            ),
            (
                "sys/fs/cgroup/memory/a/memory.stat",
                "inactive_file 1\ntotal_inactive_file 4194304\n",
            ),
            (
                "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ];
        assert_eq!(available(&files), Some((256 - 132 + 4) * MIB));
    }

    #[test]
    fn a_version_1_mount_of_a_container_begins_at_its_group() {
        let mount =
            "35 31 0:32 /docker/ab\\040c /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let files = [
            ("proc/self/mountinfo", mount),
            ("proc/self/cgroup", "4:cpu,memory:/docker/ab c/deeper\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "33554432\n"),
            (
                "sys/fs/cgroup/memory/deeper/memory.limit_in_bytes",
                "16777216\n",
            ),
        ];
        assert_eq!(available(&files), Some(16 * MIB));
    }

    #[test]
    fn nonsense_is_no_limit() {
        let files = [
            V2_MOUNT,
            ("proc/self/cgroup", "nonsense\n0\n\n0::/x\n"),
            ("sys/fs/cgroup/x/memory.max", "many\n"),
            ("proc/meminfo", "MemAvailable: some kB\n"),
        ];
        assert_eq!(available(&files), None);
    }

    #[test]
    fn tables_fit_the_memory() {
        assert_eq!(flows(None), usize::MAX);
        assert_eq!(flows(Some(64 * MIB)), 2048);
        assert_eq!(flows(Some(0)), LEAST_FLOWS);
        assert_eq!(unsent_limit(None, 64 << 20), 64 << 20);
        assert_eq!(unsent_limit(Some(64 * MIB), 64 << 20), 8 << 20);
        assert_eq!(unsent_limit(Some(u64::MAX), 64 << 20), 64 << 20);
    }

    #[test]
    fn this_system_tells() {
        assert!(available_memory().is_some_and(|bytes| bytes > MIB));
    }
}
