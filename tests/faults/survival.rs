//! Processes of a network are killed, one by one and together, and no client comes: the network is
//! started again by itself, and takes up its containers, their addresses and ports.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::place::Place;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{connect_and_echo, connected_again};
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

/// The helper that enters namespaces: the child of `outside` that is neither the network's process nor
/// the watcher, which alone holds a pidfd.
fn helper(outside: Pid, process: Pid) -> Pid {
    let number = outside.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children"));
    let children = children.expect("it lives");
    let mut children = children.split_whitespace().filter(|child| {
        let open = fs::read_dir(format!("/proc/{child}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        let is_watcher = links.any(|link| link.to_string_lossy().contains("pidfd"));
        !is_watcher && **child != process.as_raw_nonzero().to_string()
    });
    let child = children.next().and_then(|child| child.parse().ok());
    child.and_then(Pid::from_raw).expect("a helper")
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
        for what in ["the helper", "the process", "the one outside", "both"] {
            let process = place.process("lan").expect("a network process");
            let outside = parent(process);
            let doomed = match what {
                "the process" => vec![process],
                "the one outside" => vec![outside],
                "the helper" => vec![helper(outside, process)],
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
