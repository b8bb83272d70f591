//! A root directory with nothing in it but the directories that are used at run time.
//!
//! # Theory of operation
//!
//! Copies of the mounts of those directories are taken first (open_tree(2)). Then a tmpfs is mounted,
//! the copies are attached at the same paths in it, it becomes the root (pivot_root(2)), and the old
//! one is let go of with all that is in it. A directory is attached, not a file: what the host
//! replaces in it by renaming is seen.

use std::ffi::CStr;
use std::fs::DirBuilder;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};

use super::{Isolation, because};

/// Where the new root is mounted until it is the root: the first of these that exists.
const PLACES: [&str; 3] = ["/tmp", "/run", "/proc"];

/// What no mount of the new root has: setuid programs, devices, programs.
const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Bytes and inodes of the tmpfs: for the directories alone.
const OPTIONS: &CStr = c"mode=0755,size=64k,nr_inodes=256";

/// Makes it the root of this process's mount namespace.
pub(super) fn empty(
    isolation: &Isolation,
    writable: &[PathBuf],
    readable: &[PathBuf],
) -> Result<(), String> {
    if !isolation.mount {
        return Err("needs a mount namespace of its own, which was not made".to_owned());
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(because("mounts cannot be separated"))?;
    let mut trees = Vec::new();
    for (paths, read_only) in [(writable, false), (readable, true)] {
        for path in paths {
            // It is there already, to be written to.
            if read_only && writable.iter().any(|above| path.starts_with(above)) {
                continue;
            }
            match copy_of(path, read_only) {
                Ok(tree) => trees.push((path, tree)),
                Err(Errno::NOENT) => {}
                Err(errno) => {
                    return Err(because("a directory cannot be carried over")(errno));
                }
            }
        }
    }
    // Those above others first.
    trees.sort_by_key(|(path, _)| path.components().count());
    let place = PLACES.iter().find(|place| Path::new(place).is_dir());
    let place = *place.ok_or("there is no directory to mount the new root at")?;
    mount("cnet", place, "tmpfs", SAFE, OPTIONS).map_err(because("cannot mount a tmpfs"))?;
    chdir(place).map_err(because("cannot enter the new root"))?;
    for (path, tree) in &trees {
        attach(path, tree)?;
    }
    // The old root is mounted over the new one, and then let go of (pivot_root(2), NOTES).
    pivot_root(".", ".").map_err(because("pivot_root failed"))?;
    unmount(".", UnmountFlags::DETACH).map_err(because("cannot let go of the old root"))?;
    chdir("/").map_err(because("cannot enter the new root"))?;
    let read_only = SAFE | MountFlags::BIND | MountFlags::RDONLY;
    mount_remount("/", read_only, "").map_err(because("the root cannot be made read-only"))
}

fn attach(path: &Path, tree: &OwnedFd) -> Result<(), String> {
    let inside = path.strip_prefix("/").map_err(|error| error.to_string())?;
    let made = DirBuilder::new().recursive(true).mode(0o755).create(inside);
    // Within a directory that was attached before, it is there.
    made.map_err(|error| format!("cannot make {} in the new root: {error}", path.display()))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree.as_fd(), "", CWD, inside, flags).map_err(because("move_mount failed"))
}

/// A copy of the mount of the directory at `path` and of those below it.
fn copy_of(path: &Path, read_only: bool) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, path, flags)?;
    harden(&tree, read_only)?;
    Ok(tree)
}

/// `struct mount_attr` (mount_setattr(2)).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn harden(tree: &OwnedFd, read_only: bool) -> rustix::io::Result<()> {
    let read_only = if read_only {
        libc::MOUNT_ATTR_RDONLY
    } else {
        0
    };
    let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let attributes = MountAttr {
        set: set | read_only,
        ..MountAttr::default()
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a C string and the structure as large as is said; both live through the
    // call, which only reads them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
