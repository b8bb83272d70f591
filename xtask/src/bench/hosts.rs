//! The two hosts of a run, joined by a veth pair of MTU 1500, and what belongs to the run.
//!
//! ```text
//!   container             host                                   remote
//!   tap0 or veth  <->  eth0 HOST_V4, HOST_V6  ---  eth0 GATEWAY_V4, GATEWAY_V6, REMOTE_V4, REMOTE_V6
//! ```
//!
//! The host's default route leads to the remote by its gateway address; load goes to the other one,
//! because some contenders give the gateway's a meaning of its own. Every address is of a
//! documentation range (RFC 5737, RFC 3849), and no packet can leave: there is no other interface.
//!
//! The cable's MTU is 1500 in every row, as the Internet's is; a row's MTU is that of the
//! container's interface.

use std::fs;
use std::io::{PipeWriter, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::namespace::Namespace;
use super::program::ORDINARY_USER;

/// The host's own address.
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The host's own address.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// The remote as the host's router.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
/// The remote as the host's router.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xfe);
/// The remote.
const REMOTE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The remote.
const REMOTE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);

/// Where the remote always answers: what tells that a contender works.
const PROBE_PORT: u16 = 2000;

/// The ports that a run's servers listen on, below the ephemeral ones of
/// [`SETTINGS`](super::namespace::SETTINGS).
const SERVER_PORTS: std::ops::Range<u16> = 2048..30000;

/// Consecutive ports that one sample may listen on.
pub const PORTS_PER_SAMPLE: u16 = 64;

/// Descriptors that a run may need: for 100,000 flows here, and twice as many in a contender.
const DESCRIPTORS: u64 = 1 << 18;

/// An address family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The address that stands for all.
    pub fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The loopback address.
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// The host's address.
    pub fn host(self) -> IpAddr {
        match self {
            Self::V4 => HOST_V4.into(),
            Self::V6 => HOST_V6.into(),
        }
    }

    /// The remote's address.
    pub fn remote(self) -> IpAddr {
        match self {
            Self::V4 => REMOTE_V4.into(),
            Self::V6 => REMOTE_V6.into(),
        }
    }
}

/// The hosts of a run, its directory, and the ports not used yet. Dropped, they are gone.
pub struct Hosts {
    /// Where the programs under test run.
    pub host: Namespace,
    /// The other end of the cable.
    pub remote: Namespace,
    directory: PathBuf,
    next_port: u16,
    prober: Option<Prober>,
}

impl Hosts {
    /// Makes them, and lets this process and its children hold as many descriptors as a run needs.
    ///
    /// # Errors
    /// Not root; `ip` or a setting fails.
    pub fn create() -> anyhow::Result<Self> {
        raise_descriptor_limit()?;
        super::namespace::sweep();
        let directory = std::env::temp_dir().join(format!("cnb{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        let made =
            Namespace::create("host").and_then(|host| Ok((host, Namespace::create("remote")?)));
        let (host, remote) = match made {
            Ok(made) => made,
            Err(error) => {
                let _ = fs::remove_dir(&directory);
                return Err(error);
            }
        };
        let mut hosts = Self {
            host,
            remote,
            directory,
            next_port: SERVER_PORTS.start,
            prober: None,
        };
        hosts.cable()?;
        hosts.prober = Some(Prober::start(&hosts.remote)?);
        Ok(hosts)
    }

    fn cable(&self) -> anyhow::Result<()> {
        let forwarding = [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];
        self.host.sysctl(&forwarding)?;
        let remote = self.remote.path();
        self.host.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}\n\
             link set eth0 up\n\
             addr add {HOST_V4}/24 dev eth0\n\
             addr add {HOST_V6}/64 dev eth0 nodad",
            remote.display()
        ))?;
        self.remote.ip(&format!(
            "link set eth0 up\n\
             addr add {GATEWAY_V4}/24 dev eth0\n\
             addr add {GATEWAY_V6}/64 dev eth0 nodad\n\
             addr add {REMOTE_V4}/32 dev eth0\n\
             addr add {REMOTE_V6}/128 dev eth0 nodad\n\
             route change 192.0.2.0/24 dev eth0 src {REMOTE_V4}\n\
             route add {HOST_V6}/128 dev eth0 src {REMOTE_V6}"
        ))?;
        self.host.ip(&format!(
            "route add default via {GATEWAY_V4}\nroute add default via {GATEWAY_V6}"
        ))
    }

    /// A directory that goes with the run.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A directory in it for an ordinary user alone, made anew.
    ///
    /// # Errors
    /// The file system's.
    pub fn private_directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        chown(&path, Some(ORDINARY_USER), Some(ORDINARY_USER))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        Ok(path)
    }

    /// The first of [`PORTS_PER_SAMPLE`] ports that no earlier sample has used, or none lately.
    pub fn fresh_ports(&mut self) -> u16 {
        let first = self.next_port;
        let next = first + PORTS_PER_SAMPLE;
        let fits = next + PORTS_PER_SAMPLE <= SERVER_PORTS.end;
        self.next_port = if fits { next } else { SERVER_PORTS.start };
        first
    }

    /// Where the remote echoes one byte a connection.
    pub fn probe(family: Family) -> SocketAddr {
        SocketAddr::new(family.remote(), PROBE_PORT)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.prober = None;
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The remote's server for the question whether a contender works. It sleeps but for that.
struct Prober {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    fn start(remote: &Namespace) -> anyhow::Result<Self> {
        // A socket bound to the IPv6 wildcard serves both families.
        let address = SocketAddr::new(Family::V6.any(), PROBE_PORT);
        let listener = remote.enter(|| Ok(TcpListener::bind(address)?))?;
        let (stopped, stop) = std::io::pipe()?;
        let thread = thread::spawn(move || {
            loop {
                let mut descriptors = [
                    PollFd::new(&listener, PollFlags::IN),
                    PollFd::new(&stopped, PollFlags::IN),
                ];
                let _ = poll(&mut descriptors, None);
                if !descriptors[1].revents().is_empty() {
                    return;
                }
                // A probe that was given up is no concern of ours.
                let _ = answer(&listener);
            }
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

fn answer(listener: &TcpListener) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)
}

impl Drop for Prober {
    fn drop(&mut self) {
        // The closed pipe wakes the thread.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Raises it to [`DESCRIPTORS`], or, where this root may not, to the hard limit.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let limit = |count| Rlimit {
        current: count,
        maximum: count,
    };
    if setrlimit(Resource::Nofile, limit(Some(DESCRIPTORS))).is_ok() {
        return Ok(());
    }
    let hard = getrlimit(Resource::Nofile).maximum;
    if let Some(hard) = hard {
        eprintln!("no right to more than {hard} descriptors a process: idle flows are shared out");
    }
    setrlimit(Resource::Nofile, limit(hard)).context("cannot raise the limit of descriptors")
}
