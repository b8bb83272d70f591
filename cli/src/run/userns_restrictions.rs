//! Why namespaces cannot be made here, and what to do about it.
//!
//! Distributions forbid user namespaces to ordinary users in several ways, and the kernel's answer
//! is EPERM for most. The switches are files under `/proc/sys`; the one that is set is named.

use std::fs;
use std::path::Path;

use rustix::io::Errno;

/// Where the switches are.
pub(super) const SYSCTL: &str = "/proc/sys";

/// What to tell a user whose user namespace was refused with `errno`. `sysctl` is [`SYSCTL`].
pub(super) fn explain(errno: Errno, sysctl: &Path) -> String {
    let is = |name: &str, value: &str| {
        let read = fs::read_to_string(sysctl.join(name.replace('.', "/")));
        read.is_ok_and(|text| text.trim() == value)
    };
    let cure = |name: &str, value: &str| {
        format!(
            "this system forbids user namespaces to ordinary users ({name}); as root, run `sysctl -w {name}={value}`, or run cnet as root"
        )
    };
    if is("kernel.unprivileged_userns_clone", "0") {
        return cure("kernel.unprivileged_userns_clone", "1");
    }
    if is("user.max_user_namespaces", "0") {
        return cure("user.max_user_namespaces", "28633");
    }
    if errno == Errno::NOSPC {
        return "a limit on user namespaces is reached (user.max_user_namespaces); as root, raise it with `sysctl -w user.max_user_namespaces=28633`, or end what holds the others".to_owned();
    }
    if is("kernel.apparmor_restrict_unprivileged_userns", "1") {
        return format!(
            "{}; or allow this program alone with an AppArmor profile that has `userns,`",
            cure("kernel.apparmor_restrict_unprivileged_userns", "0")
        );
    }
    match errno {
        Errno::NOSYS | Errno::INVAL => "this kernel has no user namespaces (CONFIG_USER_NS)".into(),
        _ => "user namespaces are forbidden here, most likely by the seccomp filter of a container; allow unshare(2) in it, or run cnet as root with CAP_SYS_ADMIN".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(set: &[(&str, &str)]) -> Scratch {
            let id = (std::process::id(), set.as_ptr() as usize);
            let root = std::env::temp_dir().join(format!("cnet-sysctl-{}-{:x}", id.0, id.1));
            for (name, value) in set {
                let path = root.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, value).unwrap();
            }
            Scratch(root)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_switch_is_named() {
        for (name, value) in [
            ("kernel/unprivileged_userns_clone", "0\n"),
            ("user/max_user_namespaces", "0\n"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1\n"),
        ] {
            let set = [(name, value)];
            let root = Scratch::new(&set);
            let text = explain(Errno::PERM, &root.0);
            assert!(text.contains(&name.replace('/', ".")), "{name}: {text}");
        }
        let none = Path::new("/nonexistent");
        assert!(explain(Errno::NOSPC, none).contains("user.max_user_namespaces"));
        assert!(explain(Errno::INVAL, none).contains("CONFIG_USER_NS"));
        assert!(explain(Errno::PERM, none).contains("seccomp"));
    }
}
