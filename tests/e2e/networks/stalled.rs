//! A container whose interface takes nothing: what is sent to it is lost, and nobody waits.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{Member, Place};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, median, rate_out};
use crate::lab::{Lab, any};

/// What two others keep of their rate at least, so that a noisy machine does not fail the test. The
/// aim is 0.95.
const KEPT: f64 = 0.8;

/// Sends datagrams to `to` at a steady 20,000 a second while `action` runs.
fn while_sending<T>(from: &Member, to: SocketAddr, action: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let socket = from.namespace.udp(any(to.ip(), 0), CONNECT);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for _ in 0..20 {
                    // What the sender's own queue has no room for is lost as well.
                    let _ = socket.send_to(&[0x5a; 1400], to);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        let result = action();
        over.store(true, Ordering::Relaxed);
        result
    })
}

/// The hardware address of a container's interface.
fn hardware_address(member: &Member) -> String {
    let shown = member.namespace.ip("-o link show eth0");
    let mut words = shown.split_whitespace().skip_while(|w| *w != "link/ether");
    words.nth(1).expect("an Ethernet address").to_owned()
}

/// The same is sent to a container that takes it and to one that does not, so that the difference is
/// what the second one costs.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_that_never_reads_does_not_slow_the_others() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let [a, b, sender, healthy, stalled] =
        ["a", "b", "sender", "healthy", "stalled"].map(|name| place.join("cnet", name, ""));
    for to in [&healthy, &stalled] {
        let (address, mac) = (to.v4, hardware_address(to));
        sender.namespace.ip(&format!(
            "neigh replace {address} lladdr {mac} dev eth0 nud permanent"
        ));
    }
    // Nobody reads there either, but the container's kernel takes what comes.
    let _deaf = healthy.namespace.udp(any(healthy.v4, 9), CONNECT);
    stalled.namespace.ip("link set eth0 down");
    let server = TcpServer::discard(&b.namespace, any(b.v4, 0));
    let at = SocketAddr::new(b.v4, server.address.port());
    let measure = |to: &Member| {
        while_sending(&sender, (to.v4, 9).into(), || {
            let time = Duration::from_millis(500);
            rate_out(&a.namespace, at, time).expect("a bulk connection")
        })
    };
    let mut ratios = (0..3).map(|_| {
        let pairs: Vec<_> = (0..4)
            .map(|_| (measure(&healthy), measure(&stalled)))
            .collect();
        let beside_healthy = median(pairs.iter().map(|pair| pair.0).collect());
        let beside_stalled = median(pairs.iter().map(|pair| pair.1).collect());
        let ratio = beside_stalled / beside_healthy;
        println!("{beside_stalled:.2} of {beside_healthy:.2} Gbit/s, {ratio:.2}; all: {pairs:.2?}");
        ratio
    });
    assert!(ratios.any(|ratio| ratio >= KEPT), "below {KEPT}");
    assert!(place.drops("cnet", "stalled", "port_full") > 10_000);
    assert_eq!(place.drops("cnet", "b", "port_full"), 0);
    stalled.namespace.ip("link set eth0 up");
    // By IPv4: an interface that goes down loses its IPv6 addresses.
    b.assert_pings(&lab, &stalled.v4.to_string());
}
