//! Several containers on one worker: they reach each other and the world, and what one of them
//! suffers or does is its own affair.
//!
//! The dataplane runs in the test's own process, its worker in the laboratory's host namespace.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use cnet_dataplane::{PortError, PortStatistics, Rule};
use cnet_wire::{DropReason, Protocol};

use crate::lab::dataplane::{Member, Network};
use crate::lab::namespace::Namespace;
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{
    CONNECT, Payload, connect_and_echo, echo, echo_datagram, flood, median, ping, rate_out,
};
use crate::lab::{Lab, REMOTE_V4, REMOTES, any, cable, wait_until};

/// What traffic from container to container has to reach of a kernel bridge with veth pairs.
const RATIO: f64 = 0.5;

/// How long a container that takes nothing is flooded.
const FLOOD: Duration = Duration::from_secs(8);
/// How long a change at one container may take to show.
const SOON: Duration = Duration::from_secs(2);

/// Descriptors of this process, those of the laboratories included.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc").count()
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn containers_reach_each_other_and_the_world() {
    let lab = Lab::direct();
    let network = Network::start(&lab, 1500);
    let members = [5, 6, 7].map(|n| network.join(n));
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        for to in [members[b].v4, members[b].v6] {
            ping(&members[a].namespace, to, 56);
            ping(&members[a].namespace, to, 20_000);
        }
    }
    let payload = Payload::new(64 << 20, 7);
    for (to, member) in members.iter().enumerate() {
        let from = &members[(to + 1) % 3].namespace;
        for address in [member.v4, member.v6] {
            let at = SocketAddr::new(address, 0);
            let server = TcpServer::digest(&member.namespace, at);
            let sent = payload.upload(from, server.address);
            sent.expect("a stream between containers");
            // By this address, not by one that it made up itself.
            let server = UdpServer::echo(&member.namespace, at);
            for length in [0, 1, 1400, 9000, 60_000] {
                let echoed = echo_datagram(from, server.address, length);
                echoed.unwrap_or_else(|e| panic!("{length} bytes to {address}: {e}"));
            }
        }
    }
    for remote in REMOTES {
        let server = TcpServer::echo(&lab.remote, any(remote, 0));
        let at = SocketAddr::new(remote, server.address.port());
        for member in &members {
            connect_and_echo(&member.namespace, at, b"to the world").expect("a way out");
        }
    }
    let statistics = network.statistics();
    assert_eq!(statistics.tcp.opened, 6, "{statistics:?}");
    for port in &statistics.ports {
        // Each received the payload in both families, and sent it as well.
        assert!(
            port.bytes_in > 128 << 20 && port.bytes_out > 128 << 20,
            "{port:?}"
        );
        // Its kernel's reports on groups go to all ports, and the router has no use for them.
        let of_groups = port.drops.get(DropReason::MartianDestination);
        assert_eq!(port.drops.total(), of_groups, "{port:?}");
    }
}

// Longer than 60 lines: one scenario in the order of its events.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_that_takes_nothing_harms_nobody() {
    let lab = Lab::direct();
    let network = Network::start(&lab, 1500);
    let [a, b, stopped, sender] = [5, 6, 7, 8].map(|n| network.join(n));
    let deaf = stopped.namespace.udp(any(stopped.v4, 9), CONNECT);
    ping(&sender.namespace, stopped.v4, 56);

    // A socket that nobody reads, and a reader of TCP that stops.
    let listener = stopped.namespace.listen(any(stopped.v4, 80));
    let full = sender
        .namespace
        .connect((stopped.v4, 80).into(), CONNECT)
        .expect("a connect");
    let (_unread, _) = listener.accept().expect("the connection");
    full.set_nonblocking(true).expect("a socket");
    let mut writer = &full;
    wait_until("a full connection", SOON * 5, || {
        match writer.write(&[0; 1 << 16]) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let flooding = thread::spawn({
        let (from, to) = (sender.namespace.clone(), (stopped.v4, 9).into());
        move || flood(&from, to, FLOOD)
    });
    let server = TcpServer::echo(&b.namespace, any(b.v4, 0));
    let at = SocketAddr::new(b.v4, server.address.port());
    let mut stream = a.namespace.connect(at, CONNECT).expect("a connect");
    let started = Instant::now();
    for _ in 0..1000 {
        echo(&mut stream, b"undisturbed").expect("an echo");
    }
    let took = started.elapsed();
    // The flood takes a processor of the machine, whichever container reads it. Neighbours who got
    // nothing done meanwhile would be through only after it.
    assert!(took < FLOOD * 3 / 4, "a thousand round trips took {took:?}");
    assert!(flooding.join().expect("a flood") > 1000);
    drop(deaf);

    // A device that takes no frame at all: whatever goes there is lost, and counted there alone.
    let before = network.of_port(stopped.port);
    let neighbour = hardware_address(&stopped.namespace);
    sender.namespace.ip(&format!(
        "neigh replace {} lladdr {neighbour} dev eth0 nud permanent",
        stopped.v4
    ));
    stopped.namespace.ip("link set eth0 down");
    let sent = flood(
        &sender.namespace,
        (stopped.v4, 9).into(),
        Duration::from_secs(1),
    );
    echo(&mut stream, b"still undisturbed").expect("an echo");
    let after = network.of_port(stopped.port);
    let lost = |s: &PortStatistics| s.drops.get(DropReason::PortFull);
    assert!(lost(&after) > lost(&before), "{after:?}");
    assert!(
        lost(&after) - lost(&before) <= sent + 100,
        "{sent} {after:?}"
    );
    assert_eq!(lost(&network.of_port(b.port)), 0);
    stopped.namespace.ip("link set eth0 up");
    ping(&b.namespace, stopped.v4, 56);
}

/// The hardware address of a container's interface.
fn hardware_address(namespace: &Namespace) -> String {
    let shown = namespace.ip("-o link show eth0");
    let mut words = shown.split_whitespace().skip_while(|w| *w != "link/ether");
    words.nth(1).expect("an Ethernet address").to_owned()
}

// Longer than 60 lines: one scenario in the order of its events.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_leaves_while_others_talk() {
    let lab = Lab::direct();
    let network = Network::start(&lab, 1500);
    let [a, b] = [5, 6].map(|n| network.join(n));
    let echoing = TcpServer::echo(&b.namespace, any(b.v4, 0));
    let at = SocketAddr::new(b.v4, echoing.address.port());
    let mut stream = a.namespace.connect(at, CONNECT).expect("a connect");
    let far = lab.remote.listen(SocketAddr::new(REMOTE_V4.into(), 0));
    let far_at = far.local_addr().expect("it is bound");
    // Once it has answered, the connection is accepted, and its descriptor there to be counted.
    echo(&mut stream, b"well").expect("an echo");
    let resting = descriptors();
    for round in 0..3 {
        let leaver = network.join(7);
        assert_eq!(network.statistics().ports.len(), 3);
        let out = leaver
            .namespace
            .connect(far_at, CONNECT)
            .expect("a way out");
        let (mut peer, _) = far.accept().expect("its connection");
        let remote = lab
            .remote
            .udp(SocketAddr::new(REMOTE_V4.into(), 0), CONNECT);
        let datagram = leaver.namespace.udp(any(leaver.v4, 0), CONNECT);
        let to = remote.local_addr().expect("it is bound");
        datagram.send_to(b"a mapping", to).expect("a datagram");
        remote.recv(&mut [0; 100]).expect("the datagram");
        let published: SocketAddr = "192.0.2.1:8080".parse().expect("an address");
        let rule = Rule::new(Protocol::Tcp, published, SocketAddr::new(leaver.v4, 80));
        let opened = network.control.add_forward(rule);
        network.runtime.block_on(opened).expect("a free port");
        let flows = network.of_port(leaver.port).flows;
        assert_eq!((flows.tcp, flows.udp), (1, 1), "{flows:?}");

        let bulk = thread::spawn({
            let (from, to) = (a.namespace.clone(), (leaver.v4, 9).into());
            move || flood(&from, to, Duration::from_millis(300))
        });
        if round == 0 {
            // Its device goes under it.
            leaver.namespace.ip("link del eth0");
            let reason = network.runtime.block_on(leaver.end);
            assert!(reason.starts_with("the TAP is gone: "), "{reason}");
            assert_eq!(
                network.remove(leaver.port),
                Err(PortError::Unknown(leaver.port))
            );
        } else {
            assert_eq!(network.remove(leaver.port), Ok(()));
            assert_eq!(network.runtime.block_on(leaver.end), "removed");
        }
        peer.set_read_timeout(Some(SOON)).expect("a socket");
        let error = peer.read(&mut [0]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let refused = lab
            .host
            .connect(published, CONNECT)
            .expect_err("a closed port");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        echo(&mut stream, b"undisturbed").expect("an echo");
        bulk.join().expect("a flood");
        let statistics = network.statistics();
        assert_eq!(
            (statistics.ports.len(), statistics.flows),
            (2, 0),
            "{statistics:?}"
        );
        drop((out, peer, remote, datagram, leaver.namespace));
        wait_until("descriptors are given back", SOON, || match descriptors() {
            now if now <= resting => Ok(()),
            now => Err(format!("{now} instead of {resting}")),
        });
    }
    drop(stream);
    let Member { end, .. } = a;
    network.dataplane.stop().expect("an orderly end");
    assert_eq!(network.runtime.block_on(end), "stopped");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn one_stream_between_containers_reaches_its_part_of_a_kernel_bridge() {
    let lab = Lab::direct();
    let bridged = [1, 2].map(|n| {
        let member = Namespace::create();
        if n == 1 {
            lab.host.ip("link add bridge0 type bridge");
            lab.host.ip("link set bridge0 up");
        }
        cable(&lab.host, &format!("veth{n}"), &member, "eth0");
        lab.host.ip(&format!("link set veth{n} master bridge0"));
        member.ip(&format!("addr add 10.88.0.{n}/24 dev eth0"));
        member
    });
    let peer = TcpServer::discard(&bridged[1], "10.88.0.2:0".parse().expect("an address"));
    for mtu in [1500, 65520] {
        let network = Network::start(&lab, mtu);
        let [a, b] = [5, 6].map(|n| network.join(n));
        let server = TcpServer::discard(&b.namespace, SocketAddr::new(b.v4, 0));
        let measure = |from: &Namespace, to| {
            rate_out(from, to, Duration::from_secs(1)).expect("a bulk connection")
        };
        let mut ratios = (0..3).map(|_| {
            let pairs: Vec<(f64, f64)> = (0..5)
                .map(|_| {
                    let kernel = measure(&bridged[0], peer.address);
                    (kernel, measure(&a.namespace, server.address))
                })
                .collect();
            let kernel = median(pairs.iter().map(|pair| pair.0).collect());
            let ours = median(pairs.iter().map(|pair| pair.1).collect());
            let ratio = ours / kernel;
            println!("MTU {mtu}: {ours:.2} of {kernel:.2} Gbit/s, {ratio:.2}; all: {pairs:.2?}");
            ratio
        });
        assert!(
            ratios.any(|ratio| ratio >= RATIO),
            "MTU {mtu}: below {RATIO} of the kernel's bridge"
        );
    }
}
