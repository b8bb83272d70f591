//! File systems for one test alone, in a mount namespace of its own.

use std::path::Path;
use std::thread;

use cnet_tap::namespace::{NewNamespaces, unshare};
use rustix::fs::{Gid, Uid, chown};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

/// Runs `body` on a thread that alone, with the programs it starts, sees a tmpfs of `size` bytes at
/// `path`, which belongs to `user`. It is gone with them.
pub fn with_tmpfs<R: Send>(
    path: &Path,
    size: usize,
    user: u32,
    body: impl FnOnce() -> R + Send,
) -> R {
    let options = std::ffi::CString::new(format!("size={size},mode=0700")).expect("no NUL");
    let on_it = || {
        let mounts = NewNamespaces {
            mount: true,
            ..NewNamespaces::default()
        };
        // Only this thread, which ends here, moves.
        unshare(mounts).expect("unshare(CLONE_NEWNS) as root");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change(c"/", private).expect("mounts of its own");
        mount(
            c"tmpfs",
            path,
            c"tmpfs",
            MountFlags::empty(),
            Some(&*options),
        )
        .expect("a tmpfs");
        chown(path, Some(Uid::from_raw(user)), Some(Gid::from_raw(user))).expect("chown as root");
        body()
    };
    let result = thread::scope(|scope| scope.spawn(on_it).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
