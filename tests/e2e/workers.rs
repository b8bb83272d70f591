//! Two workers: TCP on both queues of the TAP, everything else as with one.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::api::request;
use crate::lab::container::{CONTAINER_V4, Options, Slirp};
use crate::lab::run;
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{Payload, connect_and_echo, echo_datagram, open_exchange_close, ping};
use crate::lab::{HOST_V4, Lab, REMOTES, any};

fn two_workers() -> Options {
    Options {
        api: true,
        ..Options::with("--workers=2")
    }
}

/// Streams enough that both queues have some: each has its queue by a hash of its ports.
const STREAMS: u64 = 8;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn two_workers_carry_streams_both_ways_at_once() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &two_workers());
    for remote in REMOTES {
        let at = SocketAddr::new(remote, 0);
        let sink = TcpServer::digest(&lab.remote, at);
        let payloads: Vec<_> = (0..STREAMS)
            .map(|seed| Payload::new(16 << 20, seed))
            .collect();
        let sources: Vec<_> = payloads
            .iter()
            .map(|payload| TcpServer::source(&lab.remote, at, payload))
            .collect();
        thread::scope(|scope| {
            for (payload, source) in payloads.iter().zip(&sources) {
                let (inside, sink) = (slirp.namespace(), sink.address);
                scope.spawn(move || payload.upload(inside, sink).expect("out"));
                scope.spawn(move || payload.download(inside, source.address).expect("in"));
            }
        });
        let echo = TcpServer::echo(&lab.remote, at);
        let many = slirp
            .namespace()
            .enter(|| open_exchange_close(echo.address, 200, 1));
        many.expect("each of 200 connections has its echo");
    }
    // Each worker's thread has worked.
    let busy = thread_times(slirp.process.pid());
    assert_eq!(busy.len(), 2, "{busy:?}");
    assert!(busy.iter().all(|(_, ticks)| *ticks > 0), "{busy:?}");
}

/// The workers of a process, and the clock ticks that each has had (proc_pid_stat(5)).
fn thread_times(pid: u32) -> Vec<(String, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let stats = tasks.flatten().map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).expect("a thread");
        let (name, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
        let fields: Vec<u64> = fields
            .split_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        // User and system time are the 14th and 15th field; the name was the second.
        (name.to_owned(), fields[11] + fields[12])
    });
    stats
        .filter(|(name, _)| name.contains("cnet-worker"))
        .collect()
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn all_but_tcp_has_one_owner() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &two_workers());
    for remote in REMOTES {
        let at = SocketAddr::new(remote, 0);
        let servers = [
            UdpServer::echo(&lab.remote, at),
            UdpServer::echo(&lab.remote, at),
        ];
        // One mapping for both (RFC 4787, section 4.1), whichever queue each flow has: the more
        // sockets, the surer that some pair is on two.
        for _ in 0..16 {
            let socket = slirp
                .namespace()
                .udp(any(remote, 0), Duration::from_secs(5));
            let seen = servers.each_ref().map(|server| {
                socket.send_to(b"who am I", server.address).expect("sent");
                let mut buffer = [0; 64];
                let (_, from) = socket.recv_from(&mut buffer).expect("the echo");
                assert_eq!(from, server.address);
                *server.log.sockets().last().expect("somebody came")
            });
            assert_eq!(seen[0], seen[1], "seen from two servers on {remote}");
        }
        // Fragments, from and to the container.
        echo_datagram(slirp.namespace(), servers[0].address, 20_000).expect("the echo");
        ping(slirp.namespace(), remote, 56);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn two_workers_publish_ports() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &two_workers());
    let server = TcpServer::echo(slirp.namespace(), any(CONTAINER_V4.into(), 80));
    let answer = request(
        &slirp,
        &json!({"execute": "add_hostfwd", "arguments": {
            "proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080,
            "guest_addr": CONTAINER_V4, "guest_port": 80,
        }}),
    );
    assert_eq!(answer["return"]["id"], 1, "{answer}");
    let at = SocketAddr::new(HOST_V4.into(), 8080);
    for round in 0..32 {
        let message = format!("from outside, {round}");
        connect_and_echo(&lab.remote, at, message.as_bytes()).expect("the published server");
    }
    assert_eq!(server.log.peers(), [REMOTES[0]; 32]);
}

/// The kernel forgets which queue a flow was written by after three seconds (`TUN_FLOW_EXPIRE` in
/// `drivers/net/tun.c`): what the container then says goes where its hash says.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn connections_to_published_ports_outlive_a_silence() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &two_workers());
    let at = any(CONTAINER_V4.into(), 80);
    let _server = TcpServer::start(slirp.namespace(), at, |mut stream| {
        use std::io::{Read, Write};
        stream.read_exact(&mut [0; 5])?;
        thread::sleep(Duration::from_secs(5));
        stream.write_all(b"later")
    });
    let publish = json!({"execute": "add_hostfwd", "arguments": {
        "proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080,
        "guest_addr": CONTAINER_V4, "guest_port": 80,
    }});
    request(&slirp, &publish);
    let at = SocketAddr::new(HOST_V4.into(), 8080);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                use std::io::{Read, Write};
                let mut stream = lab
                    .remote
                    .connect(at, Duration::from_secs(5))
                    .expect("open");
                stream
                    .set_read_timeout(Some(Duration::from_secs(15)))
                    .expect("a timeout");
                stream.write_all(b"hello").expect("sent");
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).expect("the answer");
                assert_eq!(answer, b"later");
            });
        }
    });
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_command_on_two_workers_has_its_network_and_its_end() {
    let lab = Lab::direct();
    let mut options = run::Options::ordinary_user();
    options.arguments = "--workers 2".to_owned();
    let script = "ip -o link show eth0 >/dev/null && ping -n -c 1 -W 5 198.51.100.2 >/dev/null";
    let done = options.shell(&lab, script).run(run::SHORT);
    assert!(done.success(), "{done}");
    let done = options.shell(&lab, "exit 7").run(run::SHORT);
    assert_eq!(done.code(), Some(7), "{done}");
    lab.assert_nothing_left(&[], Duration::from_secs(2));
}

/// The command ends while the far end has yet to read most of what it sent: what the container was
/// told is taken has to come, whichever worker has it.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_commands_last_data_waits_for_a_slow_reader() {
    let lab = Lab::direct();
    let (came, all) = std::sync::mpsc::channel();
    let server = TcpServer::start(&lab.remote, any(REMOTES[0], 0), move |mut stream| {
        use std::io::Read;
        thread::sleep(Duration::from_millis(500));
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes).map(|_| bytes.len());
        let _ = came.send(read.map_err(|e| e.to_string()));
        Ok(())
    });
    let to = SocketAddr::new(REMOTES[0], server.address.port());
    for workers in [1, 2] {
        let mut options = run::Options::ordinary_user();
        options.arguments = format!("--workers {workers}");
        // Less than the worker takes ahead of the far end, by connections enough for both queues.
        for len in [200_000, 200_001, 300_000, 400_000] {
            let upload = format!(
                "head -c {len} /dev/zero >/dev/tcp/{}/{}",
                to.ip(),
                to.port()
            );
            let done = options
                .command(&lab, &["bash", "-c", &upload])
                .run(run::SHORT);
            assert!(done.success(), "{done}");
            let read = all.recv_timeout(Duration::from_secs(10)).expect("an end");
            assert_eq!(read, Ok(len), "with {workers} workers");
        }
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn two_workers_end_with_their_container() {
    let lab = Lab::direct();
    let mut slirp = Slirp::start(&lab, &two_workers());
    slirp.container.kill();
    let ended = slirp.process.wait(Duration::from_secs(2));
    assert!(ended.is_some(), "{}", slirp.process);

    let slirp = Slirp::start(&lab, &two_workers());
    slirp.namespace().ip("link del tap0");
    let mut process = slirp.process;
    let ended = process.wait(Duration::from_secs(2));
    assert!(ended.is_some(), "{process}");
    let told = process.stderr();
    assert_eq!(told.matches("the TAP is gone").count(), 1, "{told}");
}
