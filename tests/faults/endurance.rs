//! The long forms: many short flows of each kind, and many containers that come and go, after which a
//! process holds what it held before. `cargo xtask test endurance` runs them; `CNET_LONG_FLOWS` and
//! `CNET_LONG_ATTACHES` say how many, where it is not to take so long.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use cnet::definition::{Directories, Store};
use cnet::{Attach, Network, Target};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};

use crate::lab::container::{Options, Slirp};
use crate::lab::measure::descriptors;
use crate::lab::namespace::connect_here;
use crate::lab::place::Place;
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{CONNECT, echo};
use crate::lab::{Lab, REMOTE_V4, any, wait_until};

/// Flows of each kind, and containers.
const FLOWS: u64 = 10_000_000;
const ATTACHES: u64 = 10_000;

/// How much more memory a process may have at the end, in KiB: what an allocator keeps.
const SLACK_KIB: u64 = 2048;

/// As many descriptors more.
const SLACK: usize = 4;

/// The longest that an idle mapping lives, and some time for a busy machine.
const SETTLED: Duration = Duration::from_secs(400);

/// Flows at a time.
const THREADS: u64 = 4;

fn count(variable: &str, usual: u64) -> u64 {
    let said = std::env::var(variable).ok();
    said.map_or(usual, |text| text.parse().expect("a number"))
}

/// Descriptors, and KiB of memory that is no file's, of some processes together.
fn held(processes: &[u32]) -> (usize, u64) {
    let memory = |pid: &u32| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let line = line.expect("a kernel since 4.5").trim_end_matches("kB");
        line.trim().parse().expect("a number")
    };
    let open = processes.iter().map(|pid| descriptors(*pid)).sum();
    (open, processes.iter().map(memory).sum())
}

/// After the first tenth of `count` rounds and after all of them the processes hold the same, once what
/// ends with time has ended.
fn assert_flat(what: &str, processes: &[u32], count: u64, mut rounds: impl FnMut(u64)) {
    let (idle, _) = held(processes);
    let settled = || {
        wait_until("idle flows have ended", SETTLED, || {
            let (open, memory) = held(processes);
            let is_idle = open <= idle + SLACK;
            is_idle
                .then_some(memory)
                .ok_or(format!("{open}, {idle} before"))
        })
    };
    rounds(count / 10);
    let before = settled();
    let started = Instant::now();
    rounds(count - count / 10);
    let took = started.elapsed();
    let after = settled();
    println!("{what}: {count}, the last nine tenths in {took:?}; {before} KiB, then {after} KiB");
    assert!(
        after <= before + SLACK_KIB,
        "{before} KiB, then {after} KiB"
    );
}

fn tcp(to: SocketAddr) -> io::Result<()> {
    let mut stream = connect_here(to, CONNECT)?;
    // A port that waits for a minute would be missed.
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    echo(&mut stream, b"x")
}

fn udp(to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(CONNECT))?;
    socket.send(b"x")?;
    socket.recv(&mut [0; 8]).map(drop)
}

/// An echo request with an identifier that the kernel chooses anew.
fn ping(to: SocketAddr) -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(CONNECT))?;
    rustix::net::sendto(&socket, &[8, 0, 0, 0, 0, 0, 0, 1], SendFlags::empty(), &to)?;
    rustix::net::recv(&socket, &mut [0; 64], RecvFlags::empty())?;
    Ok(())
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn long_ten_million_short_flows_of_each_kind() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    slirp.namespace().sysctl("ipv4/ping_group_range", "0 0");
    let pid = slirp.process.pid();
    let streams = TcpServer::echo(&lab.remote, any(REMOTE_V4.into(), 0));
    let datagrams = UdpServer::echo(&lab.remote, any(REMOTE_V4.into(), 0));
    let at = |port| SocketAddr::new(REMOTE_V4.into(), port);
    type Flow = fn(SocketAddr) -> io::Result<()>;
    let kinds: [(&str, Flow, SocketAddr); 3] = [
        ("TCP", tcp, at(streams.address.port())),
        ("UDP", udp, at(datagrams.address.port())),
        ("ping", ping, at(0)),
    ];
    let flows = count("CNET_LONG_FLOWS", FLOWS);
    for (name, flow, to) in kinds {
        let rounds = |count: u64| {
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    let namespace = slirp.namespace();
                    scope.spawn(move || {
                        namespace.enter(|| {
                            let lost = (0..count / THREADS).filter(|_| flow(to).is_err()).count();
                            // A datagram may be lost on a machine that does much else.
                            assert!(lost as u64 <= count / 10_000, "{lost} {name} flows failed");
                        });
                    });
                }
            });
        };
        assert_flat(name, &[pid], flows, rounds);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn long_ten_thousand_attaches() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let _stays = place.join("cnet", "stays", "");
    let (holder, _namespace) = place.container();
    let directory = place.runtime.join("cnet");
    let directories = Directories {
        config: directory.clone(),
        state: directory.clone(),
        runtime: directory,
    };
    let definition = Store::open(directories.clone())
        .get("cnet")
        .expect("it is defined");
    let network = Network::new(definition, directories);
    let process = place.process("cnet").expect("a network process");
    let process = process.as_raw_nonzero().get().cast_unsigned();
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
    let outside = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let outside: u32 = outside
        .and_then(|pid| pid.trim().parse().ok())
        .expect("a parent");
    let children = fs::read_to_string(format!("/proc/{outside}/task/{outside}/children"));
    let children = children.expect("it lives");
    let children = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    let processes: Vec<u32> = children.chain([outside]).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("an event loop");
    let rounds = |count: u64| {
        runtime.block_on(async {
            for round in 0..count {
                let name = format!("web{}", round % 50);
                let attach = Attach::new().name(&name);
                let target = Target::Process(holder.pid().cast_signed());
                network.attach(target, attach).await.expect("it joins");
                network.detach(&name).await.expect("it leaves");
            }
        });
    };
    let attaches = count("CNET_LONG_ATTACHES", ATTACHES);
    assert_flat("attaches", &processes, attaches, rounds);
    place.done("detach stays");
}
