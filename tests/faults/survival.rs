//! Processes of a network are killed, one by one and together, and no client comes: the network is
//! started again by itself, and takes up its containers, their addresses and ports.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::place::Place;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{connect_and_echo, connected_again, echo};
use crate::lab::{Lab, REMOTE_V4, any, wait_until};

/// How long new flows may be refused, the start included; with binaries that were not optimised, on a
/// machine that does much else, four times as long.
const BACK: Duration = Duration::from_millis(if cfg!(debug_assertions) { 2000 } else { 500 });

/// The parent of a process.
fn parent(pid: Pid) -> Pid {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    let status = status.expect("it lives");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let parent = parent.and_then(|parent| parent.trim().parse().ok());
    parent.and_then(Pid::from_raw).expect("a parent")
}

/// The children of `outside` apart from the network's process, and whether each is the watcher, which
/// alone holds a pidfd.
fn children(outside: Pid, process: Pid) -> Vec<(Pid, bool)> {
    let number = outside.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children"));
    let children = children.expect("it lives");
    let children = children.split_whitespace().filter_map(|child| {
        let open = fs::read_dir(format!("/proc/{child}/fd")).ok()?.flatten();
        let mut links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        let is_watcher = links.any(|link| link.to_string_lossy().contains("pidfd"));
        Some((Pid::from_raw(child.parse().ok()?)?, is_watcher))
    });
    children.filter(|(child, _)| *child != process).collect()
}

/// The helper that enters namespaces, or the watcher.
fn child(outside: Pid, process: Pid, watcher: bool) -> Pid {
    let mut children = children(outside, process).into_iter();
    let found = children.find(|(_, is_watcher)| *is_watcher == watcher);
    found.expect("a child of the process outside").0
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_network_outlives_its_processes_without_a_client() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        place.done("network create lan");
        let web = place.join("lan", "web", "-p 127.0.0.1:18080:80");
        let db = place.join("lan", "db", "");
        let inside = TcpServer::echo(&web.namespace, any(web.v4, 80));
        let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
        for what in [
            "the helper",
            "the process",
            "the one outside",
            "both",
            "the watcher too",
        ] {
            let process = place.process("lan").expect("a network process");
            let outside = parent(process);
            let doomed = match what {
                "the process" => vec![process],
                "the one outside" => vec![outside],
                "the helper" => vec![child(outside, process, false)],
                "the watcher too" => vec![child(outside, process, true), outside, process],
                _ => vec![outside, process],
            };
            for pid in doomed {
                kill_process(pid, Signal::KILL).expect("a process to kill");
            }
            let since = Instant::now();
            // It may end only now, for want of its helper.
            wait_until("it is another", BACK, || match place.process("lan") {
                Some(now) if now != process => Ok(()),
                other => Err(format!("{other:?}")),
            });
            let took = connected_again(&web.namespace, server.address, since, BACK * 10);
            println!("{what}: a new flow after {took:?}");
            assert!(took < BACK, "{what}: {took:?}");
            let at = ([127, 0, 0, 1], 18080).into();
            wait_until("a published port", BACK, || {
                connect_and_echo(&lab.host, at, b"published").map_err(|error| error.to_string())
            });
            db.assert_pings(&lab, &web.v4.to_string());
        }
        assert!(place.lists("web") && place.lists("db"));
        drop(inside);
        let holders = [web.pid(), db.pid()];
        for name in ["web", "db"] {
            place.done(&format!("detach {name}"));
        }
        lab.assert_nothing_left(&holders, Duration::from_secs(5));
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_connection_that_a_crash_cuts_is_ended_in_the_container_at_once() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        place.done("network create lan");
        let web = place.join("lan", "web", "");
        let db = place.join("lan", "db", "");
        let far = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
        let near = TcpServer::echo(&db.namespace, any(db.v4, 80));
        let connect = |to: SocketAddr| {
            let stream = web.namespace.connect(to, BACK).expect("a connection");
            stream.set_read_timeout(Some(BACK * 10)).expect("a limit");
            stream
        };
        let mut cut = connect(far.address);
        let mut whole = connect(SocketAddr::new(db.v4, 80));
        for stream in [&mut cut, &mut whole] {
            echo(stream, b"before").expect("an echo");
        }
        let process = place.process("lan").expect("a network process");
        kill_process(process, Signal::KILL).expect("a process to kill");
        let since = Instant::now();
        let told = cut.read(&mut [0]).expect_err("the connection is cut");
        println!("told after {:?}: {told}", since.elapsed());
        assert_eq!(told.kind(), ErrorKind::ConnectionAborted);
        assert!(since.elapsed() < BACK, "{:?}", since.elapsed());
        // What the switch leads to a neighbour goes on.
        echo(&mut whole, b"after").expect("an echo");
        drop((cut, whole, far, near));
        for name in ["web", "db"] {
            place.done(&format!("detach {name}"));
        }
    }
}
