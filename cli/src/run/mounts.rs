//! What the command sees of the host's files in another way: `/etc/resolv.conf`.
//!
//! # Theory of operation
//!
//! The file is made on a tmpfs, which is mounted over `/etc` for as long as that takes, bound over
//! the place that `/etc/resolv.conf` leads to, and stays as long as the bind mount: there is no
//! temporary file, and nothing to remove. All of it happens in the command's own mount namespace.
//!
//! Some resolvers of the C library do not read `resolv.conf` but ask a daemon over a Unix socket,
//! which no network namespace keeps from them. The sockets of those daemons are covered with an
//! empty file, so that they are refused and go on to DNS.
//!
//! # Limits
//!
//! When the host replaces `/etc/resolv.conf` by renaming another file over it, the kernel takes
//! mounts on the old one away in all namespaces, and the command sees the host's new file.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use cnet_dataplane::NetworkConfig;
use cnet_netd::dns::resolv_conf::{PATH, ResolvConf};

/// The directory that the tmpfs covers for a moment: that of [`PATH`], so it exists.
const SCRATCH: &str = "/etc";

/// Sockets of daemons that answer for DNS: nss-resolve's and nscd's.
const RESOLVER_SOCKETS: [&str; 3] = [
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/nscd/socket",
    "/var/run/nscd/socket",
];

/// The text of the command's `resolv.conf`: the network's DNS addresses, with the host's search
/// list and options.
pub(super) fn resolv_conf(host: &ResolvConf, config: &NetworkConfig) -> String {
    let mut text = String::from("# made by cnet run\n");
    let mut line = |key: &str, value: &str| {
        text.push_str(key);
        text.push(' ');
        text.push_str(value);
        text.push('\n');
    };
    if let Some(dns) = config.ipv4.and_then(|plan| plan.dns) {
        line("nameserver", &dns.to_string());
    }
    if let Some(dns) = config.ipv6.and_then(|plan| plan.dns) {
        line("nameserver", &dns.to_string());
    }
    if !host.search.is_empty() {
        line("search", &host.search.join(" "));
    }
    if !host.options.is_empty() {
        line("options", &host.options.join(" "));
    }
    text
}

/// Keeps what is mounted from here on out of the host's sight, and lets the host's new mounts be
/// seen here.
pub(super) fn separate() -> anyhow::Result<()> {
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", slave).context("cannot separate the mounts from the host's")
}

/// Replaces `/etc/resolv.conf` by a file with this text.
///
/// # Errors
///
/// If there is no such file: it cannot be covered then, and making one would change the host's.
pub(super) fn replace_resolv_conf(text: &str) -> anyhow::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::open(PATH, flags, Mode::empty()).context(PATH)?;
    let sockets: Vec<_> = RESOLVER_SOCKETS
        .iter()
        .filter_map(|path| rustix::fs::open(*path, flags, Mode::empty()).ok())
        .collect();
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("cnet", SCRATCH, "tmpfs", safe, c"mode=0755,size=64k").context("cannot mount a tmpfs")?;
    let covered = cover(text, &place, &sockets);
    unmount(SCRATCH, UnmountFlags::DETACH).context("cannot unmount the tmpfs")?;
    covered
}

fn cover(text: &str, place: &impl AsRawFd, sockets: &[impl AsRawFd]) -> anyhow::Result<()> {
    let file = Path::new(SCRATCH).join("resolv.conf");
    fs::write(&file, text).context("cannot write on a tmpfs")?;
    let over = |fd: &dyn AsRawFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    mount_bind(&file, over(place)).context("cannot bind a file over it")?;
    let empty = Path::new(SCRATCH).join("empty");
    fs::write(&empty, "").context("cannot write on a tmpfs")?;
    for socket in sockets {
        mount_bind(&empty, over(socket)).context("cannot cover a resolver's socket")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnet_wire::prefixes::{Subnet, ipv6_plan};

    #[test]
    fn the_hosts_search_and_options_are_kept() {
        let mut config = NetworkConfig::new(1500, Some(Subnet::DEFAULT.plan()), Some(ipv6_plan()));
        let host = ResolvConf::parse(
            "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org lan\n",
        );
        assert_eq!(
            resolv_conf(&host, &config),
            "# made by cnet run\nnameserver 10.0.2.3\nnameserver fd00::3\n\
             search example.org lan\noptions edns0 trust-ad\n"
        );
        config.ipv6 = None;
        assert_eq!(
            resolv_conf(&ResolvConf::default(), &config),
            "# made by cnet run\nnameserver 10.0.2.3\n"
        );
    }
}
