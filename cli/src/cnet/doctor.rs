//! `cnet doctor`: what this host offers, and what to do about what it does not.

use std::fs;
use std::io;

use anyhow::{Context, bail};
use cnet_tap::sandbox::{Stage, probe};

use super::print;
use crate::run::id_maps;

/// The oldest kernel that everything works with.
const OLDEST_KERNEL: (u32, u32) = (5, 4);

/// Bytes that a UDP socket may keep for a burst to pass: 4 MiB.
const WANTED_RECEIVE_BUFFER: u64 = 4 * 1024 * 1024;

/// One line of the report.
struct Finding {
    what: String,
    /// What is wrong, and what to do.
    wrong: Option<String>,
    /// Whether something does not work for it, or only is less than it could be.
    matters: bool,
}

/// Looks at the host and prints what is found.
///
/// # Errors
///
/// If something is missing, or cannot be found out.
pub(super) fn doctor() -> anyhow::Result<()> {
    let mut findings = vec![
        versions(),
        tun(),
        user_namespaces(),
        restricted_namespaces(),
    ];
    findings.extend(sandbox().context("cannot try the sandbox out")?);
    findings.extend([subordinate_ids(), ping(), low_ports(), receive_buffers()]);
    let mut text = String::new();
    for Finding {
        what,
        wrong,
        matters,
    } in &findings
    {
        let line = match (wrong, matters) {
            (None, _) => format!("ok       {what}\n"),
            (Some(wrong), true) => format!("missing  {what}: {wrong}\n"),
            (Some(wrong), false) => format!("note     {what}: {wrong}\n"),
        };
        text.push_str(&line);
    }
    print(&text)?;
    let missing = |finding: &&Finding| finding.matters && finding.wrong.is_some();
    match findings.iter().filter(missing).count() {
        0 => Ok(()),
        1 => bail!("one thing is missing"),
        count => bail!("{count} things are missing"),
    }
}

fn finding(what: impl Into<String>, wrong: Option<String>, matters: bool) -> Finding {
    Finding {
        what: what.into(),
        wrong,
        matters,
    }
}

fn tun() -> Finding {
    let path = "/dev/net/tun";
    let opened = fs::File::options().read(true).write(true).open(path);
    let wrong = opened.err().map(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{error}; run `chmod 0666 {path}` as root: it gives no rights by itself")
        }
        _ => format!("{error}; load the driver with `modprobe tun`"),
    });
    finding(path, wrong, true)
}

fn user_namespaces() -> Finding {
    let limit = read("/proc/sys/user/max_user_namespaces");
    let wrong = match limit.as_deref() {
        None => Some("this kernel has none (CONFIG_USER_NS)".to_owned()),
        Some("0") => Some(
            "none may be made; as root, run `sysctl -w user.max_user_namespaces=28633`".to_owned(),
        ),
        Some(_) => None,
    };
    finding("user namespaces", wrong, true)
}

/// The stages of the sandbox, each tried out.
fn sandbox() -> anyhow::Result<Vec<Finding>> {
    let missing = probe::missing()?;
    let stage = |stage: Stage| {
        let found = missing.iter().find(|(missing, _)| *missing == stage);
        let why = found.map(|(_, why)| why.clone());
        finding(format!("sandbox: {stage}"), why, true)
    };
    Ok(Stage::ALL.into_iter().map(stage).collect())
}

/// This program's version and the kernel's; the oldest kernel that works.
fn versions() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let version = (
        numbers.next().and_then(Result::ok).unwrap_or(0),
        numbers.next().and_then(Result::ok).unwrap_or(0),
    );
    let wrong = (version < OLDEST_KERNEL).then(|| {
        let (major, minor) = OLDEST_KERNEL;
        format!("cnet needs Linux {major}.{minor} or newer; install a newer kernel")
    });
    let own = env!("CARGO_PKG_VERSION");
    finding(format!("cnet {own} on Linux {release}"), wrong, true)
}

/// What distributions restrict user namespaces by. A process that may make them all the same, such as
/// root's, is not concerned.
fn restricted_namespaces() -> Finding {
    let switches = [
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
    ];
    let is_root = rustix::process::geteuid().is_root();
    let set = switches.iter().find(|(name, value, _)| {
        read(&format!("/proc/sys/{}", name.replace('.', "/"))).as_deref() == Some(value)
    });
    let wrong = set.filter(|_| !is_root).map(|(name, _, open)| {
        format!("{name} forbids them to ordinary users; as root, run `sysctl -w {name}={open}`")
    });
    finding("user namespaces of ordinary users", wrong, true)
}

/// Whether `cnet run` can give the command more users than root.
fn subordinate_ids() -> Finding {
    let uid = rustix::process::geteuid();
    let found = id_maps::subordinate_ranges();
    let wrong = match (uid.is_root(), found) {
        (true, _) | (_, (true, true)) => None,
        (false, (false, _)) => Some(
            "the command of `cnet run` has no users but root, so `su nobody` and `tcpdump` fail in it; as root, run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`".to_owned(),
        ),
        (false, (true, false)) => Some(
            "newuidmap(1) and newgidmap(1) are missing, so the command of `cnet run` has no users but root; as root, run `apt-get install uidmap`".to_owned(),
        ),
    };
    finding("subordinate user ids", wrong, false)
}

/// Whether UDP sockets may have buffers as large as a burst is.
fn receive_buffers() -> Finding {
    let name = "net.core.rmem_max";
    let most = read("/proc/sys/net/core/rmem_max").and_then(|most| most.parse::<u64>().ok());
    let wrong = most.filter(|most| *most < WANTED_RECEIVE_BUFFER).map(|most| {
        format!(
            "{name} is {most} bytes, so bursts of UDP are lost earlier than need be; as root, run `sysctl -w {name}={WANTED_RECEIVE_BUFFER}`"
        )
    });
    finding("receive buffers", wrong, false)
}

fn ping() -> Finding {
    let name = "net.ipv4.ping_group_range";
    let range = read("/proc/sys/net/ipv4/ping_group_range").unwrap_or_default();
    let group = rustix::process::getegid().as_raw();
    let mut ends = range.split_whitespace().map(str::parse::<u32>);
    let permitted = match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => (first..=last).contains(&group),
        _ => false,
    };
    let wrong = (!permitted).then(|| {
        format!(
            "containers' pings to the world are not answered: {name} is `{range}`; as root, run `sysctl -w {name}=\"0 2147483647\"`"
        )
    });
    finding("ping", wrong, false)
}

fn low_ports() -> Finding {
    let name = "net.ipv4.ip_unprivileged_port_start";
    let first = read("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first = first.and_then(|first| first.parse::<u16>().ok());
    let first = first.unwrap_or(1024);
    let is_root = rustix::process::geteuid().is_root();
    let wrong = (first > 1 && !is_root).then(|| {
        format!(
            "ports below {first} cannot be published by this user; as root, run `sysctl -w {name}=80` or the like"
        )
    });
    finding("published ports", wrong, false)
}

fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}
