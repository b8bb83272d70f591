//! cnet: `cnet-slirp` for a container that is alone, a network of `cnet` for two.
//!
//! A network is made for the sample, and everything about it is in a directory of the sample's: its
//! definition, leases, socket and log. Its process is started by the first `cnet attach`, in the
//! host's namespace, as the ordinary user that the containers belong to as well; no step needs
//! root.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use super::{Arena, Container, Inside, PATIENCE, Setup, slirp};
use crate::bench::daemon::Daemon;
use crate::bench::namespace::Namespace;
use crate::bench::program::Launch;
use crate::bench::way::Way;

/// What the network is called.
const NAME: &str = "bench";

/// Its subnets, which nothing else of a run is in.
const SUBNETS: [&str; 2] = ["10.90.0.0/16", "fd90::/64"];

/// A container with `cnet-slirp` serving it, or two on a network.
pub fn start(setup: &Setup<'_>) -> anyhow::Result<Arena> {
    match setup.request.way {
        Way::Neighbour => neighbours(setup),
        _ => slirp::start(setup),
    }
}

fn neighbours(setup: &Setup<'_>) -> anyhow::Result<Arena> {
    let hosts = setup.request.hosts;
    let held = [Container::start(hosts)?, Container::start(hosts)?];
    let mut network = Network::create(setup)?;
    let mut containers = Vec::new();
    let mut holders = Vec::new();
    for (index, container) in (0..).zip(held) {
        let member = Member::new(index, container.holder.pid());
        containers.push(Inside {
            namespace: container.namespace,
            v4: member.v4,
            v6: member.v6,
        });
        network.add(member)?;
        holders.push(container.holder);
    }
    Ok(Arena {
        programs: Vec::new(),
        containers,
        startup: None,
        network: Some(network),
        _holders: holders,
        _bridge: None,
    })
}

/// A container on the network.
struct Member {
    pid: u32,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Member {
    fn new(index: u16, pid: u32) -> Self {
        // The first address is the gateway's.
        let last = index + 2;
        Self {
            pid,
            v4: Ipv4Addr::new(10, 90, 0, last.to_be_bytes()[1]),
            v6: Ipv6Addr::new(0xfd90, 0, 0, 0, 0, 0, 0, last),
        }
    }
}

/// A network. Dropped, it is gone: its process, and its directory.
pub struct Network {
    host: Namespace,
    program: PathBuf,
    logs: PathBuf,
    directory: PathBuf,
    members: Vec<Member>,
    process: Option<Daemon>,
    first_join: Duration,
}

impl Network {
    /// One that nobody is on.
    fn create(setup: &Setup<'_>) -> anyhow::Result<Self> {
        let hosts = setup.request.hosts;
        let program = setup.program.with_file_name("cnet");
        if !program.exists() {
            bail!(
                "there was no `cnet` beside `cnet-slirp`: cargo build --release --package cnet-cli --bins"
            );
        }
        let network = Self {
            host: hosts.host.clone(),
            program,
            logs: hosts.directory().to_owned(),
            directory: hosts.private_directory("networks")?,
            members: Vec::new(),
            process: None,
            first_join: Duration::ZERO,
        };
        let mtu = setup.request.mtu.to_string();
        let [v4, v6] = SUBNETS;
        let arguments = [
            "network", "create", NAME, "--mtu", &mtu, "--subnet", v4, "--subnet", v6,
        ];
        network.cnet(&arguments)?;
        Ok(network)
    }

    /// Runs `cnet` in the host's namespace until it is done. Returns how long that took.
    fn cnet(&self, arguments: &[&str]) -> anyhow::Result<Duration> {
        let launch = Launch::new(&self.host, &self.program, &self.logs).ordinary();
        let launch = ["XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"]
            .into_iter()
            .fold(launch, |launch, name| launch.env(name, &self.directory));
        let done = launch.args(arguments).finish(PATIENCE);
        done.with_context(|| format!("cnet {}", arguments.join(" ")))
    }

    fn add(&mut self, member: Member) -> anyhow::Result<()> {
        self.members.push(member);
        let took = self.join_last()?;
        if self.process.is_none() {
            self.first_join = took;
            self.process = Some(Daemon::listening_at(&self.socket())?);
        }
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("cnet").join(NAME).join("api.sock")
    }

    fn last(&self) -> anyhow::Result<&Member> {
        self.members.last().context("nobody is on the network")
    }

    /// Lets the last container join. Returns how long `cnet attach` took.
    ///
    /// # Errors
    /// What `cnet` says.
    pub fn join_last(&self) -> anyhow::Result<Duration> {
        let member = self.last()?;
        let (pid, v4, v6) = (&member.pid, &member.v4, &member.v6);
        let [pid, v4, v6] = [pid.to_string(), v4.to_string(), v6.to_string()];
        self.cnet(&["attach", "--network", NAME, "--ip", &v4, "--ip6", &v6, &pid])
    }

    /// Lets the last container leave.
    ///
    /// # Errors
    /// What `cnet` says.
    pub fn leave_last(&self) -> anyhow::Result<()> {
        let pid = self.last()?.pid.to_string();
        self.cnet(&["detach", "--network", NAME, &pid])?;
        Ok(())
    }

    /// How long the first container took to join: the start of the network's process is in it.
    pub fn first_join(&self) -> Duration {
        self.first_join
    }

    /// The network's process and its descendants.
    pub fn family(&self) -> Vec<u32> {
        self.process.iter().flat_map(Daemon::family).collect()
    }

    /// Fails once its process has ended, quoting what it said.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&self) -> anyhow::Result<()> {
        let process = self.process.as_ref().context("no network process")?;
        if process.has_ended() {
            let log = self.directory.join("cnet").join(NAME).join("log");
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let last = log.lines().next_back().unwrap_or_default().trim();
            bail!("the network's process has ended; the end of its log: {last}");
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // One that came up although the first attachment failed is not known yet. Should it not
        // listen yet either, it ends by itself when no container comes.
        let process = self.process.take();
        drop(process.or_else(|| Daemon::listening_at(&self.socket()).ok()));
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
