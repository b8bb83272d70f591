//! `cnet doctor`: what this host offers, and what to do about what it does not.

use std::fs;
use std::io;

use anyhow::{Context, bail};
use cnet_tap::sandbox::{Stage, probe};

use super::print;

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
    let mut findings = vec![tun(), user_namespaces()];
    findings.extend(sandbox().context("cannot try the sandbox out")?);
    findings.extend([ping(), low_ports()]);
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
