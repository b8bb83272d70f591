//! Programs under test: started in a namespace, watched, and ended by their own process ids.
//!
//! Those that need no root run as an ordinary user ([`ORDINARY_USER`]), as they do in life. Where
//! the machine keeps `/dev/net/tun` from ordinary users, such a program gets a mount namespace of
//! its own in which the device has the mode that distributions give it; nothing of the machine is
//! changed. Standard output and error go to a file, whose end is quoted when something fails.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, chmod, makedev, mknodat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::namespace::Namespace;

/// The user and group of programs that need no root. It needs no entry in the user database.
pub const ORDINARY_USER: u32 = 12345;

/// How long a program may take to end when asked to, before it is killed.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// A program about to be started.
pub struct Launch<'a> {
    namespace: &'a Namespace,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    log: PathBuf,
    ordinary: bool,
    kept: Vec<OwnedFd>,
}

impl<'a> Launch<'a> {
    /// As root, inside `namespace`, with its output in `directory`.
    pub fn new(namespace: &'a Namespace, program: &Path, directory: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = program.file_name().unwrap_or(program.as_os_str());
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            namespace,
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log: directory.join(name).with_extension(format!("{count}.log")),
            ordinary: false,
            kept: Vec::new(),
        }
    }

    /// As an ordinary user instead.
    pub fn ordinary(mut self) -> Self {
        self.ordinary = true;
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        let arguments = arguments.into_iter();
        self.arguments
            .extend(arguments.map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &'static str, value: &Path) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Keeps a descriptor open in it, under the same number.
    pub fn keep(mut self, descriptor: OwnedFd) -> Self {
        self.kept.push(descriptor);
        self
    }

    /// Starts it. Its standard input stays open and empty until the [`Program`] is dropped, or this
    /// process ends, however it does.
    ///
    /// # Errors
    /// There is no such program, or no way into its namespace.
    pub fn spawn(self) -> anyhow::Result<Program> {
        let log = File::create(&self.log).with_context(|| self.log.display().to_string())?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log);
        if self.ordinary {
            command
                .uid(ORDINARY_USER)
                .gid(ORDINARY_USER)
                .current_dir("/")
                .env_clear()
                .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        }
        let environment = self.environment.iter();
        command.envs(environment.map(|(name, value)| (name, value)));
        let own_tun = self.ordinary && tun_is_closed();
        let (mut child, started) = self.namespace.enter(|| {
            if own_tun {
                open_tun()?;
            }
            for descriptor in &self.kept {
                // No other thread of this process starts programs meanwhile.
                fcntl_setfd(descriptor, FdFlags::empty())?;
            }
            let started = Instant::now();
            let child = command.spawn();
            let what = || format!("cannot start {}", self.program.display());
            Ok((child.with_context(what)?, started))
        })?;
        let stdin = child.stdin.take();
        Ok(Program {
            child,
            log: self.log,
            started,
            _stdin: stdin,
        })
    }

    /// Starts it, and waits until it has done its work. Returns how long that took.
    ///
    /// # Errors
    /// It does not start, fails, or is not done within `limit`; then it is ended.
    pub fn finish(self, limit: Duration) -> anyhow::Result<Duration> {
        let mut program = self.spawn()?;
        let pid = Pid::from_child(&program.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
        if !wait_for_end(&pidfd, limit) {
            bail!("not done after {limit:?}: {}", program.last_words());
        }
        let took = program.started.elapsed();
        let status = program.child.wait()?;
        if !status.success() {
            bail!("{status}: {}", program.last_words());
        }
        Ok(took)
    }
}

/// Waits for the process behind a pidfd for at most `limit`. Returns whether it has ended.
pub fn wait_for_end(pidfd: impl AsFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut descriptors = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut descriptors, Some(&left)) {
            Ok(count) => return count > 0,
            // A signal: whoever waits goes on, the limit is short.
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Whether an ordinary user cannot open the device.
fn tun_is_closed() -> bool {
    fs::metadata("/dev/net/tun").is_ok_and(|device| device.mode() & 0o006 != 0o006)
}

/// Gives the calling thread, and what it starts, an open `/dev/net/tun`.
fn open_tun() -> anyhow::Result<()> {
    // This thread alone moves, and ends soon.
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private).context("mount --make-rprivate /")?;
    mount(c"tmpfs", c"/dev/net", c"tmpfs", MountFlags::empty(), None)
        .context("mount a tmpfs on /dev/net")?;
    let mode = Mode::from_raw_mode(0o666);
    let (path, device) = (c"/dev/net/tun", makedev(10, 200));
    mknodat(CWD, path, FileType::CharacterDevice, mode, device).context("mknod /dev/net/tun")?;
    // Beyond the umask.
    chmod(path, mode).context("chmod /dev/net/tun")
}

/// A program that runs. Dropped, it is ended, with what it started.
pub struct Program {
    child: Child,
    log: PathBuf,
    started: Instant,
    _stdin: Option<ChildStdin>,
}

impl Program {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Fails once it has ended, quoting what it said.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("ended with {status}: {}", self.last_words()),
        }
    }

    /// The end of its output.
    pub fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        lines.join(" | ")
    }

    /// It and its descendants.
    pub fn family(&self) -> Vec<u32> {
        family(self.pid())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let descendants = Descendants::of(self.family());
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.pid(), Signal::TERM);
            let deadline = Instant::now() + PATIENCE;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        }
        // One that has ended already cannot be killed: `Child` knows.
        let _ = self.child.kill();
        let _ = self.child.wait();
        descendants.kill();
        let _ = fs::remove_file(&self.log);
    }
}

/// A process and its descendants, itself first.
pub fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(pid) = family.get(next).copied() {
        family.extend(children(pid));
        next += 1;
    }
    family
}

/// What a process has started, to be killed should it outlive that process. They are no children
/// of ours, so each is known by when it was born as well: its number may be another's by then.
pub struct Descendants(Vec<(u32, Option<String>)>);

impl Descendants {
    /// Those of a [`family`], without its head.
    pub fn of(family: Vec<u32>) -> Self {
        let others = family.into_iter().skip(1);
        Self(others.map(|pid| (pid, birth(pid))).collect())
    }

    /// Kills those that are left.
    pub fn kill(self) {
        for (pid, born) in self.0 {
            if born.is_some() && birth(pid) == born {
                signal(pid, Signal::KILL);
            }
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, signal);
    }
}

/// When a process was born, in clock ticks after the machine (proc_pid_stat(5), field 22).
fn birth(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, which may hold anything, ends with the last parenthesis; field 3 follows.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let lists = tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let pids = list.split_whitespace().map(str::parse);
            pids.flatten().collect::<Vec<u32>>()
        })
        .collect()
}
