//! `cargo xtask dnsperf`: the gateway's DNS over its TAP against dnsmasq's over a veth, asked by the same
//! dnsperf in the same namespace.
//!
//! # Theory of operation
//!
//! One container has two interfaces: a TAP, on a network of cnet's, and a veth to the host, where dnsmasq
//! listens. Both caches ask the same server on the remote, a thread of this process, which has an address
//! for every name. Nine of ten questions are for one of [`HOT`] names, which either cache has after the
//! first second; each tenth is for a name that was never asked for. [`IDLE`] TCP connections from the
//! container to the remote are open meanwhile, by the way of the resolver that is measured, and carry
//! nothing.
//!
//! Rounds alternate between the two, and who begins changes. The figures are medians, the last line is their
//! ratio.
//!
//! # Limits
//!
//! dnsperf shares the processors with what it measures.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};

use super::contenders::CONTENDERS;
use super::daemon::Daemon;
use super::hosts::{Family, Hosts};
use super::namespace::Namespace;
use super::program::Launch;
use crate::machine::find_program;

/// How the command is to be called.
pub const USAGE: &str = "\
usage: cargo xtask dnsperf [--seconds N] [--rounds N]
measures queries a second of the gateway's DNS against dnsmasq's (5 seconds, 5 rounds)";

/// Names that either cache has.
const HOT: usize = 1000;
/// Questions of one run's file; it is read again from the start when it ends.
const QUESTIONS: usize = 1_000_000;
/// Connections that carry nothing.
const IDLE: usize = 1000;
/// Where they lead.
const IDLE_PORT: u16 = 7;
/// The network's name.
const NETWORK: &str = "dnsperf";
/// Its subnet, and the gateway there.
const SUBNET: &str = "10.91.0.0/24";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 1);
/// The veth's ends.
const VETH_HOST: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 1);
const VETH_CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 2);
/// A second address of the remote's, which is reached over the veth.
const REMOTE_BY_VETH: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);
/// How long a command of cnet's may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// One that answers.
struct Resolver {
    name: &'static str,
    at: Ipv4Addr,
    /// The remote, by its way.
    remote: IpAddr,
    samples: Vec<f64>,
}

/// Runs the command with the words after `dnsperf`.
///
/// # Errors
/// A wrong command line; not root; a program is missing; a sample fails.
pub fn run(words: &[&str]) -> anyhow::Result<bool> {
    let (seconds, rounds) = parse(words)?;
    if !crate::machine::is_root() {
        bail!("makes network namespaces: run as root, cargo xtask dnsperf");
    }
    crate::machine::prepare()?;
    for (program, package) in [("dnsperf", "dnsperf"), ("dnsmasq", "dnsmasq-base")] {
        if find_program(program).is_none() {
            bail!(
                "{program} is not installed: apt-get install --yes --no-install-recommends {package}"
            );
        }
    }
    let own = CONTENDERS.iter().find(|contender| contender.name == "cnet");
    let slirp = match std::env::var_os("CNET_SLIRP") {
        Some(path) => path.into(),
        None => super::build(own.context("cnet is a contender")?)?,
    };
    let cnet = slirp.with_file_name("cnet");
    super::interrupt::watch()?;
    let mut lab = Lab::create(cnet)?;
    let mut resolvers = [
        Resolver {
            name: "cnet over its TAP",
            at: GATEWAY,
            remote: Family::V4.remote(),
            samples: Vec::new(),
        },
        Resolver {
            name: "dnsmasq over a veth",
            at: VETH_HOST,
            remote: REMOTE_BY_VETH.into(),
            samples: Vec::new(),
        },
    ];
    for round in 0..rounds {
        for turn in 0..resolvers.len() {
            let place = (turn + round) % resolvers.len();
            let resolver = &mut resolvers[place];
            let rate = lab.sample(resolver, seconds)?;
            eprintln!(
                "round {} {}: {rate:.0} queries a second",
                round + 1,
                resolver.name
            );
            resolver.samples.push(rate);
            if super::interrupt::pending() {
                eprintln!("interrupted");
                return Ok(false);
            }
        }
    }
    let [cnet, dnsmasq] = resolvers.map(|resolver| (resolver.name, median(resolver.samples)));
    for (name, rate) in [cnet, dnsmasq] {
        println!("{name:20} {rate:10.0} queries a second");
    }
    println!("cnet / dnsmasq: {:.2}", cnet.1 / dnsmasq.1);
    Ok(true)
}

fn parse(words: &[&str]) -> anyhow::Result<(u32, usize)> {
    let (mut seconds, mut rounds) = (5, 5);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut number = || words.next().context(USAGE)?.parse::<u32>().context(USAGE);
        match *word {
            "--seconds" => seconds = number()?.max(1),
            "--rounds" => rounds = number()?.max(1) as usize,
            _ => bail!(USAGE),
        }
    }
    Ok((seconds, rounds))
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The namespaces of the run, and what runs in them. Dropped, all of it is gone.
struct Lab {
    cnet: PathBuf,
    /// Names that were never asked for, so far.
    fresh: usize,
    // In the order of their ends.
    _network: Option<Daemon>,
    _dnsmasq: super::program::Program,
    _upstream: Upstream,
    _sink: Sink,
    container: Namespace,
    hosts: Hosts,
}

impl Lab {
    fn create(cnet: PathBuf) -> anyhow::Result<Lab> {
        let hosts = Hosts::create()?;
        let container = Namespace::create("container")?;
        hosts.host.ip(&format!(
            "link add veth0 type veth peer name veth0 netns {}\n\
             link set veth0 up\n\
             addr add {VETH_HOST}/24 dev veth0",
            container.path().display()
        ))?;
        container.ip(&format!(
            "link set veth0 up\naddr add {VETH_CONTAINER}/24 dev veth0\n\
             route add {REMOTE_BY_VETH}/32 via {VETH_HOST}"
        ))?;
        hosts
            .remote
            .ip(&format!("addr add {REMOTE_BY_VETH}/32 dev lo"))?;
        hosts
            .remote
            .ip(&format!("route add 10.92.0.0/24 via {}", Family::V4.host()))?;
        let upstream = Upstream::start(&hosts.remote)?;
        let sink = Sink::start(&hosts.remote)?;
        let server = format!("--server={}", Family::V4.remote());
        let listen = format!("--listen-address={VETH_HOST}");
        let dnsmasq = Launch::new(&hosts.host, Path::new("dnsmasq"), hosts.directory()).args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--cache-size=10000",
            "--dns-forward-max=10000",
            "--user=root",
            "--pid-file",
            &listen,
            &server,
        ]);
        let mut lab = Lab {
            cnet,
            fresh: 0,
            _network: None,
            _dnsmasq: dnsmasq.spawn()?,
            _upstream: upstream,
            _sink: sink,
            container,
            hosts,
        };
        lab.attach()?;
        Ok(lab)
    }

    /// Puts the container on a network of cnet's.
    fn attach(&mut self) -> anyhow::Result<()> {
        let remote = Family::V4.remote().to_string();
        let namespace = self.container.named().context("a namespace with a name")?;
        let namespace = namespace.display().to_string();
        let create = [
            "network", "create", NETWORK, "--subnet", SUBNET, "--dns", &remote,
        ];
        self.run_cnet(&create)?;
        self.run_cnet(&[
            "attach",
            "--network",
            NETWORK,
            "--name",
            "client",
            &namespace,
        ])?;
        let socket = self
            .hosts
            .directory()
            .join("cnet")
            .join(NETWORK)
            .join("api.sock");
        self._network = Some(Daemon::listening_at(&socket)?);
        Ok(())
    }

    fn run_cnet(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let directory = self.hosts.directory();
        let launch = Launch::new(&self.hosts.host, &self.cnet, directory);
        let launch = ["XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"]
            .into_iter()
            .fold(launch, |launch, name| launch.env(name, directory));
        let done = launch.args(arguments).finish(COMMAND_LIMIT);
        done.map(drop)
            .with_context(|| format!("cnet {}", arguments.join(" ")))
    }

    /// Queries a second that a resolver answers.
    fn sample(&mut self, resolver: &Resolver, seconds: u32) -> anyhow::Result<f64> {
        let idle = self.container.enter(|| {
            let at = SocketAddr::new(resolver.remote, IDLE_PORT);
            let connect = || TcpStream::connect_timeout(&at, COMMAND_LIMIT);
            let idle: Result<Vec<TcpStream>, _> = (0..IDLE).map(|_| connect()).collect();
            Ok(idle?)
        })?;
        let file = self.hosts.directory().join("questions");
        // Once to fill the cache.
        fs::write(&file, self.questions(HOT * 10))?;
        self.dnsperf(resolver.at, &file, 1)?;
        fs::write(&file, self.questions(QUESTIONS))?;
        let rate = self.dnsperf(resolver.at, &file, seconds);
        drop(idle);
        rate
    }

    fn questions(&mut self, count: usize) -> String {
        let mut text = String::with_capacity(count * 20);
        for n in 0..count {
            let _ = match n % 10 {
                9 => {
                    self.fresh += 1;
                    writeln!(text, "f{}.example. A", self.fresh)
                }
                // A step that has no factor in common with their number comes to all of them.
                _ => writeln!(text, "h{}.example. A", n * 7 % HOT),
            };
        }
        text
    }

    fn dnsperf(&self, at: Ipv4Addr, file: &Path, seconds: u32) -> anyhow::Result<f64> {
        let done = self.container.enter(|| {
            let mut dnsperf = Command::new("dnsperf");
            dnsperf.args(["-s", &at.to_string(), "-l", &seconds.to_string()]);
            dnsperf
                .args(["-c", "8", "-T", "1", "-q", "200", "-d"])
                .arg(file);
            Ok(dnsperf.stdin(Stdio::null()).output()?)
        })?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let figure = |label: &str| {
            let line = said
                .lines()
                .find_map(|line| line.trim().strip_prefix(label));
            line?.split_whitespace().next()?.parse::<f64>().ok()
        };
        if let Some(lost) = figure("Queries lost:").filter(|lost| *lost > 0.0) {
            eprintln!("note: {lost} queries to {at} were lost");
        }
        figure("Queries per second:")
            .with_context(|| format!("dnsperf: {said}{}", String::from_utf8_lossy(&done.stderr)))
    }
}

/// A DNS server that has an address for every name, until it is dropped.
struct Upstream {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Upstream {
    fn start(namespace: &Namespace) -> anyhow::Result<Upstream> {
        let socket = namespace.enter(|| Ok(UdpSocket::bind((Family::V4.remote(), 53))?))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                if let Some(answer) = answer(&buffer[..length]) {
                    // Who has asked may have given up.
                    let _ = socket.send_to(&answer, peer);
                }
            }
        });
        Ok(Upstream {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One address, for ten minutes (RFC 1035, section 4). What stands behind the question is left out.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += usize::from(query[end]) + 1;
    }
    let mut answer = query.get(..end + 5)?.to_vec();
    // A response; recursion desired and available; one question, one answer.
    answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 2, 0x58, 0, 4, 203, 0, 113, 1]);
    Some(answer)
}

/// Accepts connections and keeps them, until it is dropped.
struct Sink {
    listener: Arc<TcpListener>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Sink {
    fn start(namespace: &Namespace) -> anyhow::Result<Sink> {
        let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), IDLE_PORT);
        let listener = Arc::new(namespace.enter(|| Ok(TcpListener::bind(at)?))?);
        let accepting = Arc::clone(&listener);
        let thread = thread::spawn(move || {
            // As many as are open at a time, and those of the sample before.
            let mut kept = std::collections::VecDeque::with_capacity(2 * IDLE);
            while let Ok((stream, _)) = accepting.accept() {
                kept.push_back(stream);
                if kept.len() > 2 * IDLE {
                    kept.pop_front();
                }
            }
        });
        Ok(Sink {
            listener,
            thread: Some(thread),
        })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Wakes `accept` with an error.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::io::stderr().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        assert_eq!(parse(&[]).unwrap(), (5, 5));
        assert_eq!(parse(&["--rounds", "2", "--seconds", "1"]).unwrap(), (1, 2));
        assert!(parse(&["--rounds"]).is_err() && parse(&["x"]).is_err());
    }

    #[test]
    fn every_name_has_an_address() {
        let mut query = vec![
            7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, b'h', b'1', 0, 0, 1, 0, 1,
        ];
        query.extend([0; 11]);
        let answer = answer(&query).unwrap();
        assert_eq!(&answer[..12], [7, 8, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert!(answer.ends_with(&[203, 0, 113, 1]));
        assert_eq!(super::answer(&query[..14]), None);
    }
}
