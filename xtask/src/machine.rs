//! What the namespace tests ask of the machine besides a Rust toolchain: a few programs, the tun
//! device, and the congestion controls they run under.
//!
//! As root on a machine with apt what is missing is put there; otherwise the error names it with
//! the command that would.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::stage::{self, Outcome};

/// A program that the tests run, and the Debian package that holds it.
const PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("setcap", "libcap2-bin"),
    ("ping", "iputils-ping"),
    ("traceroute", "traceroute"),
    ("unshare", "util-linux"),
    ("script", "bsdutils"),
    ("getent", "libc-bin"),
    ("modprobe", "kmod"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
];

/// Other projects' programs, and the Debian package of each: the tests that need one that is missing say
/// so and pass.
const CLIENTS: &[(&str, &str)] = &[
    ("slirp4netns", "slirp4netns"),
    ("pasta", "passt"),
    ("rootlesskit", "rootlesskit"),
    ("bwrap", "bubblewrap"),
    ("newuidmap", "uidmap"),
    ("podman", "podman"),
    ("runc", "runc"),
    ("promtool", "prometheus"),
    ("turnserver", "coturn"),
];

/// The device that every TAP is opened through.
const TUN: &str = "/dev/net/tun";

const APT_LIMIT: Duration = Duration::from_secs(600);

/// Whether this process runs as root: the owner of its own entry in `/proc` is its effective user.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

/// Sees to it that the programs are there, the tun device exists, and the modules are loaded.
///
/// # Errors
/// Names what is missing, and the command that installs it.
pub fn prepare() -> anyhow::Result<()> {
    install_programs()?;
    if is_root() {
        load_modules();
        make_tun_device()?;
    }
    if !Path::new(TUN).exists() {
        bail!("{TUN} does not exist; as root: modprobe tun");
    }
    Ok(())
}

/// Installs the other projects' programs where that is possible, one by one, and tells of those that are
/// not there then.
pub fn offer_clients() {
    for (program, package) in CLIENTS {
        if find_program(program).is_some() || !is_root() || find_program("apt-get").is_none() {
            continue;
        }
        let mut apt = Command::new("apt-get");
        apt.args(["install", "--yes", "--no-install-recommends", package])
            .env("DEBIAN_FRONTEND", "noninteractive");
        // What is missing then is told below.
        let _ = stage::run(&mut apt, APT_LIMIT);
    }
    for (program, package) in CLIENTS {
        if find_program(program).is_none() {
            println!("note: tests with {program} are skipped; its package is {package}");
        }
    }
}

fn install_programs() -> anyhow::Result<()> {
    let packages = missing_packages();
    if packages.is_empty() {
        return Ok(());
    }
    let command = format!(
        "apt-get update && apt-get install --yes --no-install-recommends {}",
        packages.join(" ")
    );
    if !is_root() || find_program("apt-get").is_none() {
        bail!("packages are missing; as root: {command}");
    }
    let mut apt = Command::new("sh");
    apt.args(["-c", &command])
        .env("DEBIAN_FRONTEND", "noninteractive");
    if let Outcome::Failed(reason) = stage::run(&mut apt, APT_LIMIT)? {
        bail!("cannot install {}: {reason}", packages.join(" "));
    }
    match missing_packages().as_slice() {
        [] => Ok(()),
        still => bail!("installed, but still not found: {}", still.join(" ")),
    }
}

fn missing_packages() -> Vec<&'static str> {
    let missing = PROGRAMS
        .iter()
        .filter(|(program, _)| find_program(program).is_none());
    missing.map(|(_, package)| *package).collect()
}

/// Looks a program up in PATH, and where Debian keeps those of the system, which an ordinary
/// user's PATH leaves out.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into);
    let mut candidates = env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(name));
    candidates.find(|candidate| candidate.is_file())
}

/// Loads what may be a module. A kernel that has it built in, or not at all, is found out by what
/// needs it.
fn load_modules() {
    for module in ["tun", "tcp_bbr", "veth", "nf_tables"] {
        let _ = Command::new("modprobe").args(["-q", module]).status();
    }
}

/// Makes the device node where no device manager did, with the mode that distributions give it.
fn make_tun_device() -> anyhow::Result<()> {
    if Path::new(TUN).exists() {
        return Ok(());
    }
    let script = format!("mkdir -p /dev/net && mknod -m 0666 {TUN} c 10 200");
    let status = Command::new("sh").args(["-c", &script]).status()?;
    status
        .success()
        .then_some(())
        .with_context(|| format!("cannot make {TUN}: {status}"))
}
