//! Many at once: a thousand connects that nobody answers, and ten thousand connections that come
//! and go.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use crate::connect::attempts_on_host;
use crate::lab::container::{Options, Slirp};
use crate::lab::namespace::Namespace;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{connect_and_echo, median, open_exchange_close, rate_in, rate_out};
use crate::lab::{Lab, REMOTE_V4, SILENT_V4, wait_until};

/// Connections of a crowd: more than the router takes for few.
const CROWD: usize = cnet_nat::flow::CACHED_FLOWS + 400;
/// Of these so many send at a time.
const AT_ONCE: usize = 50;

/// What a flow and the newcomers beside it feel.
#[derive(Debug)]
struct Feel {
    out_gbps: f64,
    in_gbps: f64,
    connect_ms: f64,
    worst_connect_ms: f64,
}

fn feel(from: &Namespace, discard: &TcpServer, flood: &TcpServer, echo: &TcpServer) -> Feel {
    let time = Duration::from_millis(700);
    let rates = |rate: fn(&Namespace, SocketAddr, Duration) -> std::io::Result<f64>, to| {
        median(
            (0..3)
                .map(|_| rate(from, to, time).expect("bulk"))
                .collect(),
        )
    };
    let out_gbps = rates(rate_out, discard.address);
    let in_gbps = rates(rate_in, flood.address);
    let connects: Vec<f64> = (0..50)
        .map(|_| {
            let started = Instant::now();
            connect_and_echo(from, echo.address, b"hello").expect("a new connection");
            started.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    Feel {
        out_gbps,
        in_gbps,
        worst_connect_ms: connects.iter().copied().fold(0.0, f64::max),
        connect_ms: median(connects),
    }
}

/// Connects that are left in the air.
fn connects_in_the_air(from: &Namespace, to: SocketAddr, count: usize) -> Vec<OwnedFd> {
    from.enter(|| {
        let sockets = (0..count).map(|_| {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
            let socket = socket.expect("a socket");
            assert_eq!(connect(&socket, &to), Err(Errno::INPROGRESS));
            socket
        });
        sockets.collect()
    })
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_thousand_connects_to_a_silent_host_disturb_nobody() {
    // What else the machine does may disturb both halves unevenly: the best of three counts.
    let disturbed = (1..=3).map_while(|_| thousand_connects_to_a_silent_host().err());
    let reports: Vec<String> = disturbed.collect();
    assert!(reports.len() < 3, "{}", reports.join("; "));
}

/// How others fare before and during a thousand connects, if they are disturbed.
fn thousand_connects_to_a_silent_host() -> Result<(), String> {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    let at = SocketAddr::new(REMOTE_V4.into(), 0);
    let discard = TcpServer::discard(&lab.remote, at);
    let flood = TcpServer::flood(&lab.remote, at);
    let echo = TcpServer::echo(&lab.remote, at);

    let before = feel(slirp.namespace(), &discard, &flood, &echo);
    let silent = SocketAddr::new(SILENT_V4.into(), 80);
    let in_the_air = connects_in_the_air(slirp.namespace(), silent, 1000);
    wait_until(
        "the host's attempts",
        Duration::from_secs(5),
        || match attempts_on_host(&lab) {
            1000.. => Ok(()),
            attempts => Err(format!("{attempts} of 1000 in SYN_SENT")),
        },
    );
    let during = feel(slirp.namespace(), &discard, &flood, &echo);
    drop(in_the_air);

    println!("before {before:?}\nduring {during:?}");
    let undisturbed = during.out_gbps > 0.7 * before.out_gbps
        && during.in_gbps > 0.7 * before.in_gbps
        && during.connect_ms < 2.0 * before.connect_ms + 1.0
        && during.worst_connect_ms < 100.0;
    let report = format!("before {before:?}, during {during:?}");
    undisturbed.then_some(()).ok_or(report)
}

/// What the program holds: open descriptors, and resident memory in KiB, of all its processes.
fn holdings(lab: &Lab, slirp: &Slirp) -> (usize, u64) {
    let processes = lab.survivors(&[slirp.container.pid()]);
    let held = processes.iter().map(|process| {
        let directory = format!("/proc/{}", process.pid);
        let descriptors = fs::read_dir(format!("{directory}/fd")).map_or(0, Iterator::count);
        let status = fs::read_to_string(format!("{directory}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| {
            let kib = line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?;
            kib.trim().parse::<u64>().ok()
        });
        (descriptors, resident.unwrap_or(0))
    });
    held.fold((0, 0), |sum, held| (sum.0 + held.0, sum.1 + held.1))
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ten_thousand_connections_leave_no_descriptor_and_no_memory() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    let at = SocketAddr::new(REMOTE_V4.into(), 0);
    let open = |rounds: usize| {
        for round in 0..rounds {
            // A server of its own for each thousand: fresh five-tuples, whatever lingers.
            let server = TcpServer::echo(&lab.remote, at);
            let done = slirp
                .namespace()
                .enter(|| open_exchange_close(server.address, 1000, round));
            done.unwrap_or_else(|error| panic!("round {round} of {rounds}: {error}"));
        }
    };
    let (at_first, small) = holdings(&lab, &slirp);
    // What is made once and kept, such as pools and tables, is made here.
    open(2);
    let settled = |limit: u64| {
        wait_until(
            "descriptors and memory are back",
            Duration::from_secs(60),
            || {
                let (descriptors, resident) = holdings(&lab, &slirp);
                match descriptors <= at_first + 2 && resident <= limit {
                    true => Ok(resident),
                    false => Err(format!(
                        "{descriptors} descriptors, {resident} KiB; {at_first} and {small} KiB at first"
                    )),
                }
            },
        )
    };
    let warm = settled(u64::MAX);
    open(10);
    let after = settled(warm + 2048);
    println!(
        "{at_first} descriptors; {small} KiB at first, {warm} after 2,000, {after} after 12,000"
    );
}

/// Connections that stay, so many that the worker reads small frames several at a time: none is lost
/// to those that come and go, and what they send at once arrives where it belongs.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn four_thousand_open_connections_all_carry_data() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    slirp.namespace().enter(|| {
        let connect = || {
            let limit = Duration::from_secs(10);
            crate::lab::namespace::connect_here(server.address, limit)
        };
        let mut streams: Vec<TcpStream> = (0..CROWD)
            .map(|index| connect().unwrap_or_else(|error| panic!("connection {index}: {error}")))
            .collect();
        for (group, streams) in streams.chunks_mut(AT_ONCE).enumerate() {
            // Small ones and, among them, some that are sent on at once.
            let message = |n: usize| {
                let length = if n % 7 == 3 { 20_000 } else { 60 };
                crate::lab::traffic::noise(length, (group * AT_ONCE + n) as u64)
            };
            for (n, stream) in streams.iter_mut().enumerate() {
                stream.write_all(&message(n)).unwrap();
            }
            for (n, stream) in streams.iter_mut().enumerate() {
                let expected = message(n);
                let mut answer = vec![0; expected.len()];
                let read = stream.read_exact(&mut answer);
                read.unwrap_or_else(|error| panic!("{n} of group {group}: {error}"));
                assert!(answer == expected, "{n} of group {group}: the echo differs");
            }
        }
    });
}
