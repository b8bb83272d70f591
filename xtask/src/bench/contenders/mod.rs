//! Who is compared: what joins a container to the host's network, or two containers to each other.
//!
//! A contender is a line of [`CONTENDERS`]: what it can do, and how it is started. Started, it is
//! an [`Arena`]: containers to run load in, and the programs to be watched meanwhile. Each sample
//! gets an arena of its own, so nothing of one sample, and nothing of another contender, is left
//! when the next begins.
//!
//! Every program is started in its plain and fastest form, with no sandbox asked for, as an
//! ordinary user where it does not need root.

mod cnet;
mod kernel;
mod pasta;
mod slirp;
mod vde;

use std::io::{PipeReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::hosts::{Family, Hosts};
use super::interrupt;
use super::namespace::Namespace;
use super::program::{Launch, Program};
use super::usage::Usage;
use super::way::Way;

/// Which side of the comparison a contender stands on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The kernel alone: what to be measured by.
    Kernel,
    /// This project.
    Own,
    /// A user-space program of the same purpose.
    Peer,
}

/// A contender.
#[derive(Debug)]
pub struct Contender {
    /// What the command line and the report call it.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Its side.
    pub kind: Kind,
    /// The ways that it offers.
    pub ways: &'static [Way],
    /// The largest MTU in bytes that the container's interface may have.
    pub max_mtu: u32,
    /// The program that it consists of.
    pub program: Option<Needed>,
    start: fn(&Setup<'_>) -> anyhow::Result<Arena>,
}

/// A program that a contender needs.
#[derive(Debug)]
pub struct Needed {
    /// Its name in PATH.
    pub name: &'static str,
    /// The Debian package that holds it; none for this project's own.
    pub package: Option<&'static str>,
    /// What makes it tell its version.
    pub version: &'static [&'static str],
    /// A further program that is expected beside it.
    pub companion: Option<&'static str>,
}

const OUTSIDE: &[Way] = &[Way::Outbound, Way::Published, Way::Loopback];
const EVERYWHERE: &[Way] = &[Way::Outbound, Way::Published, Way::Loopback, Way::Neighbour];

/// All of them, in the order of the report.
pub const CONTENDERS: &[Contender] = &[
    Contender {
        name: "host",
        about: "no container at all: the host's own sockets",
        kind: Kind::Kernel,
        ways: OUTSIDE,
        max_mtu: 65520,
        program: None,
        start: kernel::host,
    },
    Contender {
        name: "rootful",
        about: "veth pair, kernel bridge, nftables masquerade and dnat",
        kind: Kind::Kernel,
        ways: EVERYWHERE,
        max_mtu: 65520,
        program: None,
        start: kernel::rootful,
    },
    Contender {
        name: "cnet",
        about: "this project's cnet-slirp; between containers, a network of cnet",
        kind: Kind::Own,
        ways: EVERYWHERE,
        max_mtu: 65520,
        program: Some(Needed {
            name: "cnet-slirp",
            package: None,
            version: &["--version"],
            companion: Some("cnet"),
        }),
        start: cnet::start,
    },
    Contender {
        name: "slirp4netns",
        about: "libslirp on a TAP",
        kind: Kind::Peer,
        ways: OUTSIDE,
        max_mtu: 65520,
        program: Some(Needed {
            name: "slirp4netns",
            package: Some("slirp4netns"),
            version: &["--version"],
            companion: None,
        }),
        start: slirp::start,
    },
    Contender {
        name: "pasta",
        about: "passt's mode for namespaces",
        kind: Kind::Peer,
        ways: OUTSIDE,
        max_mtu: 65520,
        program: Some(Needed {
            name: "pasta",
            package: Some("passt"),
            version: &["--version"],
            companion: None,
        }),
        start: pasta::start,
    },
    Contender {
        name: "vde",
        about: "VDE's switch, one vde_plug2tap a container",
        kind: Kind::Peer,
        ways: &[Way::Neighbour],
        max_mtu: 1500,
        program: Some(Needed {
            name: "vde_switch",
            package: Some("vde2"),
            version: &["--version"],
            companion: None,
        }),
        start: vde::start,
    },
];

/// A contender of this run, with its program found.
pub struct Chosen {
    /// The contender.
    pub contender: &'static Contender,
    /// Its program; empty if it needs none.
    pub program: PathBuf,
}

impl Chosen {
    /// Starts it.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(&self, request: &Request<'_>) -> anyhow::Result<Arena> {
        let setup = Setup {
            request,
            program: &self.program,
        };
        (self.contender.start)(&setup)
    }

    /// What its program says of its version; the package's where it says nothing of use.
    pub fn version(&self) -> Option<String> {
        let needed = self.contender.program.as_ref()?;
        let said = Command::new(&self.program).args(needed.version).output();
        let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let said = said.unwrap_or_default();
        let line = said.lines().next().unwrap_or_default().trim().to_owned();
        let packaged = needed.package.and_then(package_version);
        Some(match packaged {
            Some(version) if line.is_empty() => format!("package {version}"),
            Some(version) => format!("{line} (package {version})"),
            None => line,
        })
    }
}

fn package_version(package: &str) -> Option<String> {
    let query = ["--show", "--showformat=${Version}", package];
    let output = Command::new("dpkg-query").args(query).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !version.is_empty()).then_some(version)
}

/// What a sample asks of a contender.
pub struct Request<'a> {
    /// The hosts to join.
    pub hosts: &'a Hosts,
    /// How load will flow.
    pub way: Way,
    /// The family it will use.
    pub family: Family,
    /// The MTU in bytes of the container's interface. On ways to the remote the kernel's contenders
    /// keep to the cable's, which decides there.
    pub mtu: u32,
    /// The TCP port to be published under the same number.
    pub published: Option<u16>,
}

/// A request, and the program to fulfil it.
struct Setup<'a> {
    request: &'a Request<'a>,
    program: &'a Path,
}

/// A container's network namespace, and the addresses that a neighbour reaches it by.
struct Inside {
    namespace: Namespace,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

/// A contender in operation. Dropped, it is gone.
pub struct Arena {
    programs: Vec<Program>,
    containers: Vec<Inside>,
    startup: Option<Startup>,
    network: Option<cnet::Network>,
    /// What has to outlive the programs.
    _holders: Vec<Program>,
    _bridge: Option<kernel::Bridge>,
}

/// How long a start took.
#[derive(Clone, Copy, Debug)]
pub struct Startup {
    /// From the start of the program to its own word that it is ready, where it gives one.
    pub ready: Option<Duration>,
    /// From the start of the program to the first byte echoed by the remote.
    pub works: Duration,
}

/// Between which namespaces load flows, and by which addresses.
pub struct Route<'a> {
    /// Who connects.
    pub client: &'a Namespace,
    /// Who listens.
    pub server: &'a Namespace,
    /// What the server binds.
    pub bind: IpAddr,
    /// What the client connects to.
    pub dial: IpAddr,
}

impl Arena {
    /// The route of a way.
    ///
    /// # Errors
    /// The contender does not offer it.
    pub fn route<'a>(
        &'a self,
        hosts: &'a Hosts,
        way: Way,
        family: Family,
    ) -> anyhow::Result<Route<'a>> {
        let first = self.containers.first().context("no container")?;
        let into_container = |client, dial| Route {
            client,
            server: &first.namespace,
            bind: family.any(),
            dial,
        };
        Ok(match way {
            Way::Outbound => Route {
                client: &first.namespace,
                server: &hosts.remote,
                bind: family.remote(),
                dial: family.remote(),
            },
            Way::Published => into_container(&hosts.remote, family.host()),
            Way::Loopback => into_container(&hosts.host, family.loopback()),
            Way::Neighbour => {
                let second = self.containers.get(1).context("no second container")?;
                Route {
                    client: &first.namespace,
                    server: &second.namespace,
                    bind: family.any(),
                    dial: match family {
                        Family::V4 => second.v4.into(),
                        Family::V6 => second.v6.into(),
                    },
                }
            }
        })
    }

    /// How long its start took, where there was a program to start.
    pub fn startup(&self) -> Option<Startup> {
        self.startup
    }

    /// What its programs have used so far.
    pub fn usage(&self) -> Usage {
        let network = self.network.iter().flat_map(cnet::Network::family);
        let programs = self.programs.iter().flat_map(Program::family);
        Usage::of(&programs.chain(network).collect::<Vec<u32>>())
    }

    /// Fails if one of its programs has ended.
    ///
    /// # Errors
    /// One has; with its last words.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.programs.iter_mut().try_for_each(Program::check)?;
        self.network.iter().try_for_each(cnet::Network::check)
    }

    /// The network that its containers are on, where it is one of cnet's.
    pub fn network(&self) -> Option<&cnet::Network> {
        self.network.as_ref()
    }
}

/// A rootless container: a user and a network namespace, held by a process that ends with this one.
struct Container {
    namespace: Namespace,
    holder: Program,
}

/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);

impl Container {
    fn start(hosts: &Hosts) -> anyhow::Result<Self> {
        // `cat` ends with its standard input, which this process holds the other end of.
        let arguments = ["--user", "--map-root-user", "--net", "cat"];
        let mut holder = Launch::new(&hosts.host, Path::new("unshare"), hosts.directory())
            .ordinary()
            .args(arguments)
            .spawn()?;
        let comm = format!("/proc/{}/comm", holder.pid());
        let deadline = Instant::now() + PATIENCE;
        while std::fs::read_to_string(&comm).unwrap_or_default().trim() != "cat" {
            holder.check().context("unshare")?;
            if Instant::now() > deadline {
                bail!("unshare is not done after {PATIENCE:?}");
            }
            interrupt::sleep(Duration::from_millis(1))?;
        }
        Ok(Self {
            namespace: Namespace::of_process(holder.pid())?,
            holder,
        })
    }

    /// The arena of one such container served by one program.
    fn served(self, program: Program, startup: Startup) -> Arena {
        Arena {
            programs: vec![program],
            containers: vec![Inside {
                namespace: self.namespace,
                v4: Ipv4Addr::UNSPECIFIED,
                v6: Ipv6Addr::UNSPECIFIED,
            }],
            startup: Some(startup),
            network: None,
            _holders: vec![self.holder],
            _bridge: None,
        }
    }
}

/// Waits until `program` says so on `ready`, if it does, and until a byte makes the way from
/// `container` to the remote and back.
fn await_start(
    container: &Namespace,
    family: Family,
    program: &mut Program,
    ready: Option<PipeReader>,
) -> anyhow::Result<Startup> {
    let started = program.started();
    let deadline = started + PATIENCE;
    thread::scope(|scope| {
        let ready = ready.map(|pipe| scope.spawn(|| await_byte(pipe)));
        let works = container.enter(|| {
            loop {
                let error = match probe(Hosts::probe(family)) {
                    Ok(()) => return Ok(Instant::now()),
                    Err(error) => error,
                };
                program.check()?;
                if Instant::now() > deadline || interrupt::pending() {
                    let words = program.last_words();
                    bail!("{family:?} does not work after {PATIENCE:?}: {error}: {words}");
                }
                thread::sleep(Duration::from_micros(200));
            }
        });
        let ready = match ready.map(|thread| thread.join()) {
            Some(Ok(instant)) => Some(instant.context("it has not said that it is ready")?),
            _ => None,
        };
        Ok(Startup {
            ready: ready.map(|instant| instant - started),
            works: works? - started,
        })
    })
}

/// When a byte arrived.
fn await_byte(mut pipe: PipeReader) -> Option<Instant> {
    let limit = Timespec {
        tv_sec: PATIENCE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let mut descriptors = [PollFd::new(&pipe, PollFlags::IN)];
    poll(&mut descriptors, Some(&limit))
        .ok()
        .filter(|count| *count > 0)?;
    let arrived = Instant::now();
    let mut byte = [0];
    let read = pipe.read(&mut byte);
    read.is_ok_and(|count| count == 1).then_some(arrived)
}

/// Sends a byte and has it back, from the calling thread's namespace.
fn probe(to: SocketAddr) -> std::io::Result<()> {
    let limit = Duration::from_millis(20);
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])
}
