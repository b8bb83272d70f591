//! Programs that a test runs: in which namespace, as which user, before which device and
//! `resolv.conf`, and for how long at most.
//!
//! Nothing of the machine is changed for them. A program that is to meet `/dev/net/tun` with
//! another mode, or another `/etc/resolv.conf`, gets a mount namespace of its own with those two
//! in their places. The soft limit of descriptors is set back to the usual 1024, which the test
//! process itself raises. What a test has started is killed by process id when its
//! [`Running`] is dropped.

use std::ffi::{CString, OsStr};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cnet_tap::fork::before_exec;
use cnet_tap::namespace::{NewNamespaces, unshare};
use cnet_tap::signal::restore_default;
use rustix::fs::{CWD, FileType, Mode, chmod, makedev, mknodat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{
    Gid, Pid, Resource, Rlimit, Signal, Uid, getrlimit, kill_process, setrlimit,
};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// The soft limit of open descriptors that a login shell gives its programs.
const USUAL_DESCRIPTORS: u64 = 1024;

/// A program about to be started.
pub struct Launch {
    command: Command,
    input: Option<Vec<u8>>,
    setup: Setup,
}

/// What the child does to itself between fork and exec. Made before the fork: nothing in it may
/// allocate afterwards.
#[derive(Default)]
struct Setup {
    namespace: Option<Arc<OwnedFd>>,
    user: Option<u32>,
    tun_mode: Option<u32>,
    resolv_conf: Option<CString>,
    etc: Option<CString>,
    kept: Vec<OwnedFd>,
    descriptors: Option<u64>,
    control_group: Option<Arc<OwnedFd>>,
}

impl Launch {
    /// A program, found in PATH, as root in the test's own namespaces.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            input: None,
            setup: Setup::default(),
        }
    }

    /// Runs it in the network namespace of this descriptor.
    pub fn namespace(mut self, descriptor: Arc<OwnedFd>) -> Self {
        self.setup.namespace = Some(descriptor);
        self
    }

    /// Runs it as an ordinary user and group of this number, in no other group, with an
    /// environment that holds nothing but PATH and HOME.
    pub fn user(mut self, id: u32, home: &Path) -> Self {
        self.setup.user = Some(id);
        self.command.env_clear().env("HOME", home).env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        self
    }

    /// Lets it see `/dev/net/tun` with this mode.
    pub fn tun_mode(mut self, mode: u32) -> Self {
        self.setup.tun_mode = Some(mode);
        self
    }

    /// Lets it see this file as `/etc/resolv.conf`.
    pub fn resolv_conf(mut self, path: &Path) -> Self {
        let path = path.to_str().expect("a UTF-8 path");
        self.setup.resolv_conf = Some(CString::new(path).expect("a path without NUL"));
        self
    }

    /// Limits how many descriptors it may have, softly and hard.
    pub fn descriptors(mut self, limit: u64) -> Self {
        self.setup.descriptors = Some(limit);
        self
    }

    /// Lets it see this directory as `/etc`.
    pub fn etc(mut self, path: &Path) -> Self {
        let path = path.to_str().expect("a UTF-8 path");
        self.setup.etc = Some(CString::new(path).expect("a path without NUL"));
        self
    }

    /// Moves it into a control group by its `cgroup.procs`.
    pub fn control_group(mut self, door: Arc<OwnedFd>) -> Self {
        self.setup.control_group = Some(door);
        self
    }

    /// Keeps a descriptor open in it, under the same number.
    pub fn keep(mut self, fd: OwnedFd) -> Self {
        self.setup.kept.push(fd);
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Feeds it this on its standard input, which is empty otherwise.
    pub fn input(mut self, text: &str) -> Self {
        self.input = Some(text.as_bytes().to_vec());
        self
    }

    /// Starts it.
    pub fn spawn(mut self) -> Running {
        let name = format!("{:?}", self.command);
        let setup = self.setup;
        before_exec(&mut self.command, move || setup.apply());
        let stdin = match self.input {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        };
        self.command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        if let Some(input) = self.input {
            let mut stdin = child.stdin.take().expect("a pipe to its standard input");
            // It may end without reading everything.
            thread::spawn(move || stdin.write_all(&input));
        }
        let stdout = Transcript::follow(child.stdout.take().expect("a pipe"));
        let stderr = Transcript::follow(child.stderr.take().expect("a pipe"));
        Running {
            name,
            child,
            started,
            stdout,
            stderr,
        }
    }

    /// Runs it to its end; a program that runs longer than `limit` fails the test.
    pub fn run(self, limit: Duration) -> Finished {
        let mut running = self.spawn();
        match running.wait(limit) {
            Some(status) => running.finish(status),
            None => panic!("not finished after {limit:?}: {running}"),
        }
    }
}

impl Setup {
    fn apply(&self) -> io::Result<()> {
        if self.tun_mode.is_some() || self.resolv_conf.is_some() || self.etc.is_some() {
            self.mount()?;
        }
        if let Some(namespace) = &self.namespace {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        for fd in &self.kept {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        if let Some(door) = &self.control_group {
            // Itself (cgroups(7)).
            rustix::io::write(door, b"0")?;
        }
        let hard = self.descriptors.or(getrlimit(Resource::Nofile).maximum);
        let limit = Rlimit {
            current: Some(USUAL_DESCRIPTORS.min(hard.unwrap_or(u64::MAX))),
            maximum: hard,
        };
        setrlimit(Resource::Nofile, limit)?;
        // Tests started by nohup(1), or in the background of a script, ignore them, and so would the
        // programs, for good.
        for signal in [Signal::HUP, Signal::INT, Signal::QUIT] {
            restore_default(signal);
        }
        if let Some(user) = self.user {
            let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
            set_thread_groups(&[])?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)?;
        }
        Ok(())
    }

    fn mount(&self) -> io::Result<()> {
        let mounts = NewNamespaces {
            mount: true,
            ..NewNamespaces::default()
        };
        unshare(mounts).map_err(io::Error::other)?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change(c"/", private)?;
        if let Some(mode) = self.tun_mode {
            mount(c"tmpfs", c"/dev/net", c"tmpfs", MountFlags::empty(), None)?;
            let device = makedev(10, 200);
            let mode = Mode::from_raw_mode(mode);
            mknodat(
                CWD,
                c"/dev/net/tun",
                FileType::CharacterDevice,
                mode,
                device,
            )?;
            // Beyond the umask.
            chmod(c"/dev/net/tun", mode)?;
        }
        if let Some(path) = &self.etc {
            mount_bind(path.as_c_str(), c"/etc")?;
        }
        if let Some(path) = &self.resolv_conf {
            mount_bind(path.as_c_str(), c"/etc/resolv.conf")?;
        }
        Ok(())
    }
}

/// A program that runs. Dropped, it is killed.
pub struct Running {
    name: String,
    child: Child,
    started: Instant,
    stdout: Transcript,
    stderr: Transcript,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id is not 0");
        kill_process(pid, signal).expect("it has not been waited for");
    }

    /// Its exit status, once it has ended within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until a line of its standard output satisfies `wanted`, and returns that line.
    pub fn wait_for_line(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + limit;
        loop {
            // Asked first: what it writes last is in the text then.
            let over = self.stdout.is_over();
            let text = self.stdout.text();
            if let Some(line) = text.lines().find(|line| wanted(line)) {
                return line.to_owned();
            }
            assert!(
                Instant::now() < deadline && !over,
                "the line never came: {self}"
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    fn finish(self, status: ExitStatus) -> Finished {
        let elapsed = self.started.elapsed();
        // A descendant may hold the pipes open beyond its end; what it writes then is not waited
        // for.
        self.stdout.wait(Duration::from_secs(1));
        self.stderr.wait(Duration::from_secs(1));
        Finished {
            name: self.name.clone(),
            status,
            elapsed,
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.name)?;
        writeln!(f, "stdout: {}", self.stdout.text())?;
        write!(f, "stderr: {}", self.stderr.text())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail once it has ended and has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that has ended.
pub struct Finished {
    name: String,
    status: ExitStatus,
    /// From its start to its end.
    pub elapsed: Duration,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Finished {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Its exit code; `None` where a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({:?})", self.name, self.elapsed)?;
        match self.status.signal() {
            Some(signal) => writeln!(f, "ended by signal {signal}")?,
            None => writeln!(f, "{}", self.status)?,
        }
        writeln!(f, "stdout: {}", self.stdout)?;
        write!(f, "stderr: {}", self.stderr)
    }
}

/// What a program writes to a pipe, collected by a thread of its own.
#[derive(Clone)]
struct Transcript(Arc<(Mutex<Collected>, Condvar)>);

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    over: bool,
}

impl Transcript {
    fn follow(mut pipe: impl Read + AsRawFd + Send + 'static) -> Self {
        let transcript = Self(Arc::new((Mutex::default(), Condvar::new())));
        let writer = transcript.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let read = pipe.read(&mut buffer).unwrap_or(0);
                let (collected, changed) = &*writer.0;
                let mut collected = collected.lock().expect("no panic while it is held");
                collected.bytes.extend_from_slice(&buffer[..read]);
                collected.over = read == 0;
                changed.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        transcript
    }

    fn text(&self) -> String {
        let collected = self.0.0.lock().expect("no panic while it is held");
        String::from_utf8_lossy(&collected.bytes).into_owned()
    }

    fn is_over(&self) -> bool {
        self.0.0.lock().expect("no panic while it is held").over
    }

    fn wait(&self, limit: Duration) {
        let (collected, changed) = &*self.0;
        let guard = collected.lock().expect("no panic while it is held");
        let over = changed.wait_timeout_while(guard, limit, |collected| !collected.over);
        drop(over.expect("no panic while it is held"));
    }
}
