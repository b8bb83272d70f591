//! The laboratory of one test: namespaces joined by veth pairs, destroyed with it.
//!
//! ```text
//!   container            host                    (router)                 remote
//!   tap0  <- cnet ->  eth0 HOST_V4  ------  GATEWAY_V4 | …  ------  eth0 REMOTE_V4, REMOTE_V6
//!                     HOST_V6               (Lab::routed alone)          SILENT_V4, SILENT_V6
//! ```
//!
//! The program under test runs in `host`; servers run in `remote`. `remote` also owns two addresses
//! that drop whatever reaches them. `host` has a default route, and routes that the kernel answers
//! with an error for UNREACHABLE_V4 and UNREACHABLE_V6. Every address is of a documentation range
//! (RFC 5737, RFC 3849), and no packet can leave: the namespaces have no other interface.
//!
//! Every process of a test carries the laboratory's name in its environment, by which those that
//! outlive what started them are found ([`Lab::survivors`]), and ended with the laboratory.

pub mod binaries;
pub mod cgroup;
pub mod container;
pub mod dataplane;
pub mod measure;
pub mod mounts;
pub mod namespace;
pub mod place;
pub mod process;
pub mod raw;
pub mod run;
pub mod servers;
pub mod station;
pub mod traffic;
pub mod vm;

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use namespace::Namespace;
use process::Launch;

/// The host's own address, and the prefix it shares with its neighbour.
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The host's own address, and the prefix it shares with its neighbour.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// The router's address on the host's side; the remote's second one where there is no router.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
/// The router's address on the host's side; the remote's second one where there is no router.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xfe);
/// The second host.
pub const REMOTE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The second host.
pub const REMOTE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
/// An address on the second host that answers nothing.
pub const SILENT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);
/// An address on the second host that answers nothing.
pub const SILENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x66);
/// An address that the host's own routing table calls unreachable.
pub const UNREACHABLE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// An address that the host's own routing table calls unreachable.
pub const UNREACHABLE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 9);

/// The user and group that a test runs a program as when it is to run as an ordinary one. It needs
/// no entry in the machine's user database.
pub const ORDINARY_USER: u32 = 12345;

/// The variable of the environment that names a process's laboratory.
const MARK: &str = "CNET_E2E_LAB";

/// Two families, for the tests that do the same over both.
pub const REMOTES: [IpAddr; 2] = [IpAddr::V4(REMOTE_V4), IpAddr::V6(REMOTE_V6)];

static LABS: AtomicU32 = AtomicU32::new(0);

/// The namespaces and the directory of one test.
pub struct Lab {
    /// Where the program under test runs.
    pub host: Namespace,
    /// The second host.
    pub remote: Namespace,
    /// Between the two, where the test asked for it: kept, since veth pairs go with it.
    router: Option<Namespace>,
    name: String,
    directory: PathBuf,
}

impl Lab {
    /// The host and the remote, with one cable between them.
    pub fn direct() -> Self {
        let lab = Self::namespaces(None);
        cable(&lab.host, "eth0", &lab.remote, "eth0");
        lab.number_host();
        number(&lab.remote, "eth0", GATEWAY_V4.into(), GATEWAY_V6.into());
        lab.number_remote();
        // The remote speaks to the host by its own address, not by the gateway's.
        for (prefix, source) in [
            ("192.0.2.0/24", REMOTES[0]),
            ("2001:db8:1::/64", REMOTES[1]),
        ] {
            lab.remote.ip(&format!(
                "route replace {prefix} dev eth0 metric 10 src {source}"
            ));
            lab.remote
                .ip(&format!("route del {prefix} dev eth0 proto kernel"));
        }
        lab.assert_connected();
        lab
    }

    /// The host and the remote, with a router between them.
    pub fn routed() -> Self {
        let router = Namespace::create();
        router.sysctl("ipv4/ip_forward", "1");
        router.sysctl("ipv6/conf/all/forwarding", "1");
        let lab = Self::namespaces(Some(router.clone()));
        cable(&lab.host, "eth0", &router, "host");
        cable(&lab.remote, "eth0", &router, "remote");
        lab.number_host();
        number(&router, "host", GATEWAY_V4.into(), GATEWAY_V6.into());
        let (near_v4, near_v6) = (Ipv4Addr::new(198, 51, 100, 254), "2001:db8:2::fe");
        let near_v6 = near_v6.parse().expect("an address");
        number(&router, "remote", near_v4.into(), near_v6);
        lab.number_remote();
        lab.remote
            .ip(&format!("-4 route add default via {near_v4}"));
        lab.remote
            .ip(&format!("-6 route add default via {near_v6}"));
        lab.assert_connected();
        lab
    }

    fn namespaces(router: Option<Namespace>) -> Self {
        raise_descriptor_limit();
        let count = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("cnet-e2e-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir(&directory).expect("a directory of the test's own");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&directory, open).expect("the directory is ours");
        Self {
            host: Namespace::create(),
            remote: Namespace::create(),
            router,
            name,
            directory,
        }
    }

    fn number_host(&self) {
        number(&self.host, "eth0", HOST_V4.into(), HOST_V6.into());
        self.host
            .ip(&format!("-4 route add default via {GATEWAY_V4}"));
        self.host
            .ip(&format!("-6 route add default via {GATEWAY_V6}"));
        self.host
            .ip(&format!("-4 route add unreachable {UNREACHABLE_V4}/32"));
        self.host
            .ip(&format!("-6 route add unreachable {UNREACHABLE_V6}/128"));
        // As systemd sets it on a usual machine: without it there are no ping sockets.
        self.host.sysctl("ipv4/ping_group_range", "0 2147483647");
    }

    fn number_remote(&self) {
        number(&self.remote, "eth0", REMOTE_V4.into(), REMOTE_V6.into());
        number(&self.remote, "eth0", SILENT_V4.into(), SILENT_V6.into());
        self.remote.nft(&format!(
            "table inet silence {{
                chain input {{
                    type filter hook input priority 0;
                    ip daddr {SILENT_V4} drop
                    ip6 daddr {SILENT_V6} meta l4proto {{ tcp, udp }} drop
                    ip6 daddr {SILENT_V6} icmpv6 type echo-request drop
                }}
            }}"
        ));
    }

    /// The host reaches the remote before anything is tested.
    fn assert_connected(&self) {
        for remote in REMOTES {
            let arguments = format!("-n -c 1 -W 1 {remote}");
            wait_until("the remote", Duration::from_secs(10), || {
                let ping = self.host.command("ping").args(arguments.split(' '));
                let done = ping.run(Duration::from_secs(5));
                done.success().then_some(()).ok_or(done.to_string())
            });
        }
    }

    /// The router of a routed laboratory.
    pub fn router(&self) -> &Namespace {
        self.router.as_ref().expect("a routed laboratory")
    }

    /// A directory that any user may read and that goes with the laboratory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A directory that belongs to `user`, made anew, with mode 0700.
    pub fn private_directory(&self, name: &str, user: u32) -> PathBuf {
        let path = self.directory.join(name);
        fs::create_dir(&path).expect("a name not used before");
        chown(&path, Some(user), Some(user)).expect("chown as root");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("chmod as root");
        path
    }

    /// A file in the laboratory's directory, readable by all.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::write(&path, content).expect("a file in our directory");
        path
    }

    /// A program of this project's, in the host's namespace: as root, or as an ordinary user, whom
    /// a copy is made for, since the build's directory may be closed to others.
    pub fn program(&self, path: &Path, user: Option<u32>) -> Launch {
        let Some(user) = user else {
            return self.mark(Launch::new(path));
        };
        let name = path.file_name().expect("the path of a program");
        let copy = self.directory.join(name);
        if !copy.exists() {
            fs::copy(path, &copy).expect("a copy of the program");
        }
        let home = self.directory.join("home");
        if !home.exists() {
            self.private_directory("home", user);
        }
        self.mark(Launch::new(copy).user(user, &home))
    }

    /// Runs a program of the machine's in the host's namespace.
    pub fn command(&self, program: &str) -> Launch {
        self.mark(Launch::new(program))
    }

    /// Runs a program in the host's namespace, as one of this laboratory.
    pub fn mark(&self, launch: Launch) -> Launch {
        launch
            .namespace(self.host.descriptor())
            .env(MARK, &self.name)
    }

    /// The processes of this laboratory that live, apart from those of the given ids.
    pub fn survivors(&self, apart_from: &[u32]) -> Vec<Survivor> {
        let mark = format!("{MARK}={}", self.name);
        let host = self.host.identity();
        let own = std::process::id();
        let candidates = processes().filter(|pid| *pid != own && !apart_from.contains(pid));
        let ours = candidates.filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let marked = environment.split(|byte| *byte == 0).any(|variable| {
                // Equality, not a prefix: laboratory 1 is not laboratory 10.
                variable == mark.as_bytes()
            });
            marked || namespace_of(*pid).is_some_and(|namespace| namespace == host)
        });
        ours.map(Survivor::describe).collect()
    }

    /// Asserts that every process of this laboratory, apart from those of the given ids, has ended
    /// within `limit`.
    pub fn assert_nothing_left(&self, apart_from: &[u32], limit: Duration) {
        wait_until("no process is left", limit, || {
            let left = self.survivors(apart_from);
            match left.is_empty() {
                true => Ok(()),
                false => Err(format!("{left:?}")),
            }
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for survivor in self.survivors(&[]) {
            if let Some(pid) = Pid::from_raw(survivor.pid.cast_signed()) {
                // It may have ended meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A process found alive.
pub struct Survivor {
    /// Its id.
    pub pid: u32,
    command: String,
}

impl Survivor {
    fn describe(pid: u32) -> Self {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        Self { pid, command }
    }
}

impl fmt::Debug for Survivor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pid, self.command.trim())
    }
}

/// The ids of all processes.
pub fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The link text of a process's network namespace, where it lives and is no zombie.
pub fn namespace_of(pid: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// Repeats `attempt` every few milliseconds until it succeeds; fails the test with its last error
/// after `limit`.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(
                Instant::now() < deadline,
                "{what}: not within {limit:?}: {error}"
            ),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Joins two namespaces by a veth pair.
pub fn cable(a: &Namespace, a_name: &str, b: &Namespace, b_name: &str) {
    let b_path = b.path();
    a.ip(&format!(
        "link add {a_name} type veth peer name {b_name} netns {b_path}"
    ));
    a.ip(&format!("link set {a_name} up"));
    b.ip(&format!("link set {b_name} up"));
}

/// Gives an interface an address of each family, usable at once: no duplicate is looked for.
fn number(namespace: &Namespace, interface: &str, v4: IpAddr, v6: IpAddr) {
    namespace.ip(&format!("addr add {v4}/24 dev {interface}"));
    namespace.ip(&format!("addr add {v6}/64 dev {interface} nodad"));
}

/// The wildcard address of the family of `like`, with a port.
pub fn any(like: IpAddr, port: u16) -> SocketAddr {
    let any = match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(any, port)
}

/// Tests hold thousands of sockets at once themselves.
fn raise_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).expect("a soft limit up to the hard one");
}
