//! A container's namespaces held by a sleeping process, and `cnet-slirp` serving them.
//!
//! `CNET_E2E_SLIRP` names another program with the same command line to be tested in its place:
//! slirp4netns, whose behaviour the tests were proven on.

use std::io::{PipeReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::binaries::binary;
use super::namespace::Namespace;
use super::process::{Launch, Running};
use super::{Lab, ORDINARY_USER, wait_until};

/// The address of the container that `-c` sets up.
pub const CONTAINER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// The gateway; for `cnet-slirp` also the host's loopback, unless told otherwise.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The gateway.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// Where DNS is answered.
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// How long a program may take until it is ready.
pub const READY: Duration = Duration::from_secs(10);

/// Whether another program stands in for `cnet-slirp`.
pub fn program() -> PathBuf {
    match std::env::var_os("CNET_E2E_SLIRP") {
        Some(path) => path.into(),
        None => binary("cnet-slirp"),
    }
}

/// A user and a network namespace with nothing in them but loopback, held by a process.
pub struct Container {
    /// Its network namespace.
    pub namespace: Namespace,
    holder: Running,
}

impl Container {
    /// Made by root, or by an ordinary user; its root is that user.
    pub fn start(lab: &Lab, user: Option<u32>) -> Self {
        let unshare = match user {
            Some(user) => lab.command("unshare").user(user, lab.directory()),
            None => lab.command("unshare"),
        };
        let arguments = "--user --map-root-user --net sleep 1800";
        // `user` has emptied the environment: the mark has to be set after it.
        let holder = lab.mark(unshare).args(arguments.split_whitespace()).spawn();
        let pid = holder.pid();
        wait_until("the container's process", READY, || {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            match name.as_deref().map(str::trim) {
                Ok("sleep") => Ok(()),
                other => Err(format!("{other:?}: {}", holder.stderr())),
            }
        });
        Self {
            namespace: Namespace::of_process(pid),
            holder,
        }
    }

    /// The process that holds the namespaces.
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// Ends that process.
    pub fn kill(&mut self) {
        self.holder.signal(rustix::process::Signal::KILL);
        let ended = self.holder.wait(Duration::from_secs(5));
        assert!(ended.is_some(), "SIGKILL ends a process");
    }
}

/// Waits for a global IPv6 address that is no longer tentative, and a default route, and returns
/// the address.
pub fn wait_for_ipv6(namespace: &Namespace) -> Ipv6Addr {
    wait_until("a global IPv6 address and a route", READY, || {
        let addresses = namespace.ip("-6 -o addr show scope global");
        let routes = namespace.ip("-6 route show default");
        let address = addresses
            .lines()
            .filter(|line| !line.contains("tentative"))
            .find_map(|line| {
                let mut words = line.split_whitespace().skip_while(|word| *word != "inet6");
                let (address, _) = words.nth(1)?.split_once('/')?;
                address.parse().ok()
            });
        match (address, routes.is_empty()) {
            (Some(address), false) => Ok(address),
            _ => Err(format!("{addresses}{routes}")),
        }
    })
}

/// How `cnet-slirp` is to be started.
#[derive(Clone, Default)]
pub struct Options {
    /// Its own and the container's user; root if none.
    pub user: Option<u32>,
    /// The mode that it sees `/dev/net/tun` with; the machine's own if none.
    pub tun_mode: Option<u32>,
    /// What it sees as `/etc/resolv.conf`; the machine's own if none.
    pub resolv_conf: Option<PathBuf>,
    /// Where its standard streams lead, as the shell has it: `>/dev/full 2>&1`.
    pub redirection: Option<&'static str>,
    /// How many descriptors it may have; as many as usual if none.
    pub descriptors: Option<u64>,
    /// The door of a control group that limits its memory ([`super::cgroup::MemoryGroup::door`]).
    pub memory: Option<Arc<OwnedFd>>,
    /// Whether to ask for an API socket.
    pub api: bool,
    /// More arguments, split at spaces, before the process id.
    pub arguments: String,
}

impl Options {
    /// As an ordinary user, with the tun device as distributions have it.
    pub fn ordinary_user() -> Self {
        Self {
            user: Some(ORDINARY_USER),
            tun_mode: Some(0o666),
            ..Self::default()
        }
    }

    /// With arguments, split at spaces.
    pub fn with(arguments: &str) -> Self {
        Self {
            arguments: arguments.to_owned(),
            ..Self::default()
        }
    }

    /// The program, yet without arguments.
    pub fn launch(&self, lab: &Lab) -> Launch {
        let mut launch = match self.redirection {
            None => lab.program(&program(), self.user),
            Some(redirection) => {
                let script = format!("exec \"$0\" \"$@\" {redirection}");
                let shell = lab.command("sh").args(["-c", script.as_str()]);
                shell.arg(program())
            }
        };
        if let Some(mode) = self.tun_mode {
            launch = launch.tun_mode(mode);
        }
        if let Some(path) = &self.resolv_conf {
            launch = launch.resolv_conf(path);
        }
        if let Some(limit) = self.descriptors {
            launch = launch.descriptors(limit);
        }
        if let Some(door) = &self.memory {
            launch = launch.control_group(Arc::clone(door));
        }
        launch
    }
}

/// `cnet-slirp` serving a container.
pub struct Slirp {
    /// The program.
    pub process: Running,
    /// Its container.
    pub container: Container,
    /// Its API socket, where it was asked for.
    pub api: Option<PathBuf>,
    exit: Option<OwnedFd>,
}

impl Slirp {
    /// With `-c`, IPv6, and the address and route that come with it.
    pub fn start(lab: &Lab, options: &Options) -> Self {
        let mut configured = options.clone();
        configured.arguments = format!("-c -6 {}", options.arguments);
        let slirp = Self::bare(lab, &configured);
        wait_for_ipv6(&slirp.container.namespace);
        slirp
    }

    /// Without anything that was not asked for; ready when this returns.
    pub fn bare(lab: &Lab, options: &Options) -> Self {
        let container = Container::start(lab, options.user);
        Self::serve(lab, options, container)
    }

    /// For a container that is there.
    pub fn serve(lab: &Lab, options: &Options, container: Container) -> Self {
        let (ready, ready_writer) = std::io::pipe().expect("a pipe");
        let (exit_reader, exit) = std::io::pipe().expect("a pipe");
        let (ready_writer, exit_reader) = (OwnedFd::from(ready_writer), OwnedFd::from(exit_reader));
        let mut arguments: Vec<String> = options
            .arguments
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        arguments.push(format!("--ready-fd={}", ready_writer.as_raw_fd()));
        arguments.push(format!("--exit-fd={}", exit_reader.as_raw_fd()));
        let api = options.api.then(|| api_path(lab, options.user));
        if let Some(path) = &api {
            arguments.push(format!("--api-socket={}", path.display()));
        }
        arguments.push(container.pid().to_string());
        arguments.push("tap0".to_owned());
        let process = options
            .launch(lab)
            .args(arguments)
            .keep(ready_writer)
            .keep(exit_reader)
            .spawn();
        let slirp = Self {
            process,
            container,
            api,
            exit: Some(exit.into()),
        };
        slirp.wait_until_ready(ready);
        slirp
    }

    /// Exactly the byte `1`, and then the end of the pipe.
    fn wait_until_ready(&self, mut ready: PipeReader) {
        let mut bytes = [0; 8];
        let mut length = 0;
        wait_until("the ready byte and the end", READY, || {
            if !readable(&ready) {
                return Err(self.process.to_string());
            }
            let read = ready.read(&mut bytes[length..]);
            let read = read.map_err(|error| error.to_string())?;
            length += read;
            match read {
                0 => Ok(()),
                _ => Err(format!("{length} bytes and no end yet")),
            }
        });
        assert_eq!(&bytes[..length], b"1", "{}", self.process);
    }

    /// The container's network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.container.namespace
    }

    /// Closes the other end of `--exit-fd`.
    pub fn close_exit_fd(&mut self) {
        self.exit = None;
    }

    /// What the container reaches its gateway by, in each family.
    pub fn gateways() -> [IpAddr; 2] {
        [GATEWAY_V4.into(), GATEWAY_V6.into()]
    }
}

fn readable(pipe: &PipeReader) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut descriptors = [PollFd::new(pipe, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut descriptors, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn api_path(lab: &Lab, user: Option<u32>) -> PathBuf {
    let directory: &Path = &match user {
        Some(user) => lab.private_directory("api", user),
        None => lab.directory().to_owned(),
    };
    directory.join("api.sock")
}
