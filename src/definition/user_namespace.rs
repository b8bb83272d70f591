//! Who this process's user is outside of its user namespace, since that decides whose files are whose.
//!
//! # Theory of operation
//!
//! In a user namespace anyone is root. The numbers by which the outside knows a user are in
//! `/proc/self/uid_map` (user_namespaces(7)). What else tells a user namespace from the initial one is
//! its number, which is fixed for that one.
//!
//! Most user namespaces share the host's files, as what `unshare`, `podman unshare` and `cnet run` make:
//! root in there is an ordinary user, for configuration, state and runtime alike. A container that has
//! files of its own is a system of its own: its root directory belongs to its root, whom the outside
//! knows by another number.
//!
//! # Limits
//!
//! Of several user namespaces, one in the other, the map tells the user in the one around this process's
//! alone.

use std::fs;
use std::os::unix::fs::MetadataExt;

use cnet_tap::namespace::Surroundings;

/// The number of the initial user namespace (`PROC_USER_INIT_INO`, include/linux/proc_ns.h).
const INITIAL: u64 = 0xefff_fffd;

/// The user of this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct User {
    /// Its number in the user namespace of this process: the one that files are seen to belong to.
    pub(super) seen: u32,
    /// The number that decides whose files are used.
    pub(super) uid: u32,
    /// The number of the user namespace, if that is not the initial one.
    pub(super) nested: Option<u64>,
    /// Whether files are those of a system around it, which it shares.
    pub(super) shares_files: bool,
}

impl User {
    /// That of this process. Without /proc it is taken for one of the initial user namespace.
    pub(super) fn of_this_process() -> User {
        let seen = rustix::process::geteuid().as_raw();
        let own = Surroundings::of("self").map(|own| own.user.1);
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let root = fs::metadata("/").map_or(u32::MAX, |root| root.uid());
        User::of(seen, own.unwrap_or(INITIAL), &map, root)
    }

    /// `root` is whom the root directory belongs to.
    fn of(seen: u32, namespace: u64, map: &str, root: u32) -> User {
        let own_files = root == 0 && outside(map, 0).is_some_and(|outside| outside != 0);
        let is_initial = namespace == INITIAL;
        let shares_files = !is_initial && !own_files;
        let uid = match shares_files {
            true => outside(map, seen).unwrap_or(seen),
            false => seen,
        };
        User {
            seen,
            uid,
            nested: (!is_initial).then_some(namespace),
            shares_files,
        }
    }
}

/// Which number a user has outside, by the lines of a `uid_map`: first inside, first outside, count.
fn outside(map: &str, uid: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let (inside, outside, count) = (next()?, next()?, next()?);
        let offset = uid.checked_sub(inside)?;
        (offset < count)
            .then(|| outside.checked_add(offset))
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "         0          0 4294967295\n";
    /// As podman's: the user, and its subordinate numbers.
    const PODMAN: &str = "0 1000 1\n1 100000 65536\n";

    #[test]
    fn numbers_are_mapped_line_by_line() {
        assert_eq!(outside(ALL, 1000), Some(1000));
        assert_eq!(outside(PODMAN, 0), Some(1000));
        assert_eq!(outside(PODMAN, 33), Some(100_032));
        assert_eq!(outside(PODMAN, 70_000), None);
        assert_eq!(outside("", 0), None);
        assert_eq!(outside("nonsense\n1 2\n", 1), None);
    }

    #[test]
    fn root_of_a_user_namespace_is_an_ordinary_user() {
        let user = User::of(0, INITIAL, ALL, 0);
        assert_eq!((user.uid, user.nested, user.shares_files), (0, None, false));
        let nobody = 65534;
        let user = User::of(0, 7, PODMAN, nobody);
        assert_eq!(
            (user.uid, user.nested, user.shares_files),
            (1000, Some(7), true)
        );
        // The host's root directory is seen as root's where root itself made the namespace.
        let user = User::of(0, 7, "0 0 1\n", 0);
        assert_eq!(
            (user.uid, user.nested, user.shares_files),
            (0, Some(7), true)
        );
    }

    #[test]
    fn a_container_with_files_of_its_own_is_a_system() {
        let user = User::of(0, 7, PODMAN, 0);
        assert_eq!(
            (user.uid, user.nested, user.shares_files),
            (0, Some(7), false)
        );
        let user = User::of(33, 7, PODMAN, 0);
        assert_eq!((user.uid, user.shares_files), (33, false));
    }
}
