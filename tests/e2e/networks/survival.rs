//! The process of a network is killed under its containers: it is started again and takes up what
//! was there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use super::{GONE, Member, Place};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{connect_and_echo, connected_again};
use crate::lab::{Lab, REMOTE_V4, any};

/// How long new flows may be refused after the process is killed, its start included.
const BACK: Duration = Duration::from_millis(500);

/// Kills the network's process; gives when.
fn kill(place: &Place<'_>, network: &str) -> Instant {
    let process = place.process(network).expect("a network process");
    kill_process(process, Signal::KILL).expect("a process to kill");
    Instant::now()
}

/// Two containers with their addresses, names and a port of the host, as it was before.
fn assert_unchanged(lab: &Lab, place: &Place<'_>, before: &str, web: &Member, db: &Member) {
    let listed = place.done("ps --network lan").stdout;
    assert_eq!(listed, before);
    for (from, to) in [(web, db), (db, web)] {
        for address in to.addresses() {
            assert!(
                from.namespace
                    .ip("addr show eth0")
                    .contains(&from.v4.to_string())
            );
            from.assert_pings(lab, &address.to_string());
        }
        from.assert_pings(lab, &to.name);
    }
    db.assert_pings(lab, "www");
    let server = TcpServer::echo(&db.namespace, any(db.v4, 80));
    let at = ([127, 0, 0, 1], 18080).into();
    connect_and_echo(&lab.host, at, b"a published port").expect("a published port");
    assert!(!server.log.peers().is_empty());
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_next_operation_starts_a_killed_network_again() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        place.done("network create lan");
        let web = place.join("lan", "web", "--alias www");
        let db = place.join("lan", "db", "-p 127.0.0.1:18080:80");
        let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
        let before = place.done("ps --network lan").stdout;
        for round in 0..3 {
            let killed = kill(&place, "lan");
            place.done("ps --network lan");
            let listed = killed.elapsed();
            let took = connected_again(&web.namespace, server.address, killed, BACK * 10);
            println!("{round}: listed {listed:?}, a new flow {took:?} after the kill");
            assert!(took < BACK, "{took:?}");
            assert_unchanged(&lab, &place, &before, &web, &db);
        }
        place.done("detach db");
        let gone = db
            .namespace
            .enter(|| cnet_tap::netif::index_of("eth0").is_err());
        assert!(gone, "the interface is left");
        let holders = [web.pid(), db.pid()];
        place.done("detach web");
        lab.assert_nothing_left(&holders, GONE);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_starts_a_killed_network_again_by_itself() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        place.done("network create lan");
        let web = place.run("lan", "web", "--alias www");
        let db = place.run("lan", "db", "-p 127.0.0.1:18080:80");
        let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
        let before = place.done("ps --network lan").stdout;
        for round in 0..3 {
            let killed = kill(&place, "lan");
            let took = connected_again(&web.namespace, server.address, killed, BACK * 10);
            println!("{round}: a new flow {took:?} after the kill");
            assert!(took < BACK, "{took:?}");
            assert_unchanged(&lab, &place, &before, &web, &db);
        }
        drop((web, db));
        lab.assert_nothing_left(&[], GONE);
    }
}
