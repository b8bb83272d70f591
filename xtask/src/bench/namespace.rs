//! Network namespaces: made, entered and deleted.
//!
//! A socket belongs to the namespace that its thread was in when it was made, and may be used from
//! any thread afterwards; a program starts in the namespace of the thread that starts it. So both
//! are made on a thread that enters the namespace first ([`Namespace::enter`]). Only root of the
//! initial user namespace may enter any network namespace so.
//!
//! Namespaces are named `cnb<pid>-<what>` after this process, as `ip netns` names them, so that one
//! can look into a running benchmark. They are deleted when dropped; those of a run that was
//! killed, by the next ([`sweep`]).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// How the names of a benchmark's namespaces begin; its process id follows.
const PREFIX: &str = "cnb";

/// A network namespace; clones are the same one.
#[derive(Clone, Debug)]
pub struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    name: Option<String>,
}

impl Namespace {
    /// A new one, with its loopback up and every setting of [`SETTINGS`].
    ///
    /// # Errors
    /// Not root, or `ip` fails.
    pub fn create(what: &str) -> anyhow::Result<Self> {
        let name = format!("{PREFIX}{}-{what}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).output()?;
        if !made.status.success() {
            let message = String::from_utf8_lossy(&made.stderr);
            bail!("ip netns add {name}: {}", message.trim());
        }
        let path = Path::new(NAMES).join(&name);
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        let inner = Arc::new(Inner {
            file,
            name: Some(name),
        });
        let namespace = Self { inner };
        namespace.prepare()?;
        Ok(namespace)
    }

    /// The one that a process is in, prepared like one of our own.
    ///
    /// # Errors
    /// The process has ended.
    pub fn of_process(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).context(path)?;
        let namespace = Self {
            inner: Arc::new(Inner { file, name: None }),
        };
        namespace.prepare()?;
        Ok(namespace)
    }

    fn prepare(&self) -> anyhow::Result<()> {
        self.ip("link set lo up")?;
        self.sysctl(SETTINGS)?;
        self.choose_congestion_control()
    }

    /// Only a congestion control that the machine allows to everybody may be chosen in a namespace.
    /// Where it does not allow ours, it does for as long as that takes.
    fn choose_congestion_control(&self) -> anyhow::Result<()> {
        let name = congestion_control();
        let choice = [("ipv4/tcp_congestion_control", name)];
        if self.sysctl(&choice).is_ok() {
            return Ok(());
        }
        let allowed = fs::read_to_string(ALLOWED).context(ALLOWED)?;
        let more = format!("{} {name}", allowed.trim());
        fs::write(ALLOWED, more).with_context(|| format!("no {name}"))?;
        let chosen = self.sysctl(&choice);
        fs::write(ALLOWED, allowed.trim()).context(ALLOWED)?;
        chosen
    }

    /// A path that leads to it.
    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        let descriptor = self.inner.file.as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{descriptor}", std::process::id()))
    }

    /// The path of its name, if it has one: it lasts longer than this process's descriptors.
    pub fn named(&self) -> Option<PathBuf> {
        let name = self.inner.name.as_ref()?;
        Some(Path::new(NAMES).join(name))
    }

    /// Moves the calling thread into it for good.
    ///
    /// # Errors
    /// Not root.
    pub fn join(&self) -> anyhow::Result<()> {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.inner.file.as_fd(), kind).context("setns(CLONE_NEWNET)")
    }

    /// Runs `action` on a thread inside it.
    ///
    /// # Errors
    /// Those of `action`, and of entering.
    pub fn enter<R: Send>(
        &self,
        action: impl FnOnce() -> anyhow::Result<R> + Send,
    ) -> anyhow::Result<R> {
        let inside = || {
            self.join()?;
            action()
        };
        let result = thread::scope(|scope| scope.spawn(inside).join());
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs lines of `ip` commands, each without its leading `ip`.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, lines: &str) -> anyhow::Result<()> {
        self.feed("ip", &["-batch", "-"], lines)
    }

    /// Runs nftables commands.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn nft(&self, commands: &str) -> anyhow::Result<()> {
        self.feed("nft", &["-f", "-"], commands)
    }

    fn feed(&self, program: &str, arguments: &[&str], input: &str) -> anyhow::Result<()> {
        let output = self.enter(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start {program}"))?;
            let stdin = child.stdin.take();
            let mut stdin = stdin.context("no pipe to its standard input")?;
            stdin.write_all(input.as_bytes())?;
            stdin.write_all(b"\n")?;
            drop(stdin);
            Ok(child.wait_with_output()?)
        })?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {} in\n{input}", message.trim())
    }

    /// Writes values under `/proc/sys/net`.
    ///
    /// # Errors
    /// The kernel has no such name, or refuses the value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.enter(|| {
            for (name, value) in settings {
                let path = Path::new("/proc/sys/net").join(name);
                let what = || format!("{} = {value}", path.display());
                fs::write(&path, value).with_context(what)?;
            }
            Ok(())
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            delete(name);
        }
    }
}

/// The congestion control of every namespace of a run, unless another one is chosen.
pub const CONGESTION_CONTROL: &str = "cubic";

static CHOSEN_CONGESTION_CONTROL: OnceLock<String> = OnceLock::new();

/// Chooses the congestion control of every namespace that is made from now on; the first choice
/// holds.
pub fn choose_congestion_control(name: &str) {
    CHOSEN_CONGESTION_CONTROL.get_or_init(|| name.to_owned());
}

/// The congestion control of this run.
pub fn congestion_control() -> &'static str {
    CHOSEN_CONGESTION_CONTROL
        .get()
        .map_or(CONGESTION_CONTROL, String::as_str)
}

/// Where the machine lists the congestion controls that any namespace may choose.
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// What every namespace of a run is set to, so that figures do not depend on the machine's own
/// settings: a namespace inherits some of them, and takes the kernel's defaults for others.
///
/// Buffers are the kernel's defaults of a machine with some gigabytes of memory. Ephemeral ports
/// lie above the ports that servers listen on. Nothing learnt of one path is kept for the next
/// connection. Addresses of IPv6 are usable at once.
pub const SETTINGS: &[(&str, &str)] = &[
    ("ipv4/tcp_rmem", "4096 131072 6291456"),
    ("ipv4/tcp_wmem", "4096 16384 4194304"),
    ("ipv4/ip_local_port_range", "30000 65535"),
    ("ipv4/tcp_no_metrics_save", "1"),
    ("ipv4/tcp_tw_reuse", "1"),
    ("ipv4/tcp_max_tw_buckets", "262144"),
    ("ipv4/tcp_max_syn_backlog", "8192"),
    ("core/somaxconn", "8192"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
];

/// Deletes namespaces that a run left behind which is no more.
pub fn sweep() {
    for entry in fs::read_dir(NAMES).into_iter().flatten().flatten() {
        if let Some(name) = entry.file_name().to_str().filter(|name| is_orphan(name)) {
            delete(name);
        }
    }
}

fn is_orphan(name: &str) -> bool {
    let owner = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split_once('-'))
        .and_then(|(pid, _)| pid.parse::<u32>().ok());
    owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn delete(name: impl AsRef<OsStr>) {
    // There is nothing to be done about a failure: the next run tries again.
    let _ = Command::new("ip")
        .args(["netns", "delete"])
        .arg(name)
        .stderr(Stdio::null())
        .status();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ended_runs_are_orphans() {
        let own = std::process::id();
        assert!(!is_orphan(&format!("cnb{own}-host")));
        // Beyond the largest process id (PID_MAX_LIMIT, 2^22).
        assert!(is_orphan("cnb4194305-host"));
        assert!(!is_orphan("cnb-host"));
        assert!(!is_orphan("cnb12x-host"));
        assert!(!is_orphan("host-4194305"));
    }
}
