//! Which far ends a container may talk with (`--allow`, `--deny` and `--no-host`), and from which addresses
//! (`--trust`).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::Place;
use crate::lab::container::wait_for_ipv6;
use crate::lab::namespace::Namespace;
use crate::lab::run::{Held, Options};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{connect_and_echo, echo_datagram};
use crate::lab::{HOST_V4, HOST_V6, Lab, REMOTES, any, wait_until};

/// A refusal is told at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Echo servers of both transports and families on a namespace.
struct Servers {
    port: u16,
    _servers: Vec<(TcpServer, UdpServer)>,
}

impl Servers {
    fn start(on: &Namespace, addresses: &[IpAddr], port: u16) -> Servers {
        let start = |address: &IpAddr| {
            let at = SocketAddr::new(*address, port);
            (TcpServer::echo(on, at), UdpServer::echo(on, at))
        };
        Servers {
            port,
            _servers: addresses.iter().map(start).collect(),
        }
    }

    fn answer(&self, from: &Namespace, address: IpAddr) {
        let at = SocketAddr::new(address, self.port);
        let echoed = connect_and_echo(from, at, b"hello");
        echoed.unwrap_or_else(|error| panic!("TCP to {at}: {error}"));
        let echoed = echo_datagram(from, at, 100);
        echoed.unwrap_or_else(|error| panic!("UDP to {at}: {error}"));
    }

    fn are_refused(&self, from: &Namespace, address: IpAddr) {
        let at = SocketAddr::new(address, self.port);
        let begun = Instant::now();
        assert!(from.connect(at, AT_ONCE * 3).is_err(), "{at} accepts");
        let socket = from.udp(any(address, 0), AT_ONCE * 3);
        socket.connect(at).expect("a route");
        let _ = socket.send(b"hello");
        assert!(socket.recv(&mut [0; 64]).is_err(), "{at} answers");
        let sent = from.command("ping").args(["-c", "1", "-W", "3"]);
        let sent = sent.arg(address.to_string()).run(AT_ONCE * 5);
        assert!(!sent.success(), "{sent}");
        assert!(begun.elapsed() < AT_ONCE, "the refusal was not told");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_denied_far_end_is_refused_both_ways_and_the_others_are_not() {
    let lab = Lab::direct();
    lab.remote.ip("addr add 198.51.100.77/24 dev eth0");
    let other: IpAddr = "198.51.100.77".parse().expect("an address");
    let [v4, v6] = REMOTES;
    let servers = Servers::start(&lab.remote, &[v4, v6, other], 7000);
    let filter = format!("--deny 198.51.100.0/24 --deny 2001:db8::/32 --allow {other} -p 18081:80");
    let held = Held::start(&lab, &Options::with(&filter));
    let inside = &held.namespace;
    wait_for_ipv6(inside);
    servers.answer(inside, other);
    servers.are_refused(inside, v4);
    servers.are_refused(inside, v6);
    // The remote is a client that is refused, loopback is not.
    let _server = TcpServer::echo(inside, any(v4, 80));
    let published = |host: IpAddr| SocketAddr::new(host, 18081);
    let loopback = published("127.0.0.1".parse().expect("an address"));
    connect_and_echo(&lab.host, loopback, b"hello").expect("a client of loopback");
    for host in [IpAddr::V4(HOST_V4), IpAddr::V6(HOST_V6)] {
        let at = published(host);
        assert!(connect_and_echo(&lab.remote, at, b"hello").is_err(), "{at}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_is_allowed_alone_is_all_there_is() {
    let lab = Lab::direct();
    let [v4, v6] = REMOTES;
    let servers = Servers::start(&lab.remote, &REMOTES, 7000);
    let held = Held::start(&lab, &Options::with(&format!("--allow {v4}")));
    wait_for_ipv6(&held.namespace);
    servers.answer(&held.namespace, v4);
    servers.are_refused(&held.namespace, v6);
}

/// Of the network and of one container, before and after the network's process was killed.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_hosts_addresses_are_refused_as_they_change_and_after_a_crash() {
    let lab = Lab::direct();
    let [v4, _] = REMOTES;
    let remote = Servers::start(&lab.remote, &[v4], 7000);
    let host = Servers::start(&lab.host, &[any(v4, 0).ip()], 7001);
    for place in Place::each(&lab) {
        place.done("network create closed --no-host");
        place.done("network create open");
        let closed = place.join("closed", "a", "");
        let strict = place.join("open", "b", "--no-host");
        let free = place.join("open", "c", "");
        for refused in [&closed, &strict] {
            host.are_refused(&refused.namespace, HOST_V4.into());
            remote.answer(&refused.namespace, v4);
        }
        host.answer(&free.namespace, HOST_V4.into());
        let new: IpAddr = "203.0.113.77".parse().expect("an address");
        lab.host.ip(&format!("addr add {new}/32 dev lo"));
        host.answer(&free.namespace, new);
        for refused in [&closed, &strict] {
            let at = SocketAddr::new(new, host.port);
            wait_until("the new address is refused", AT_ONCE, || {
                match refused.namespace.connect(at, AT_ONCE) {
                    Err(_) => Ok(()),
                    Ok(_) => Err("it accepts".to_owned()),
                }
            });
            host.are_refused(&refused.namespace, new);
        }
        let killed = place.process("open").expect("it runs");
        rustix::process::kill_process(killed, rustix::process::Signal::KILL).expect("it runs");
        // A client starts the next one, which takes its members up.
        let new_member = place.join("open", "d", "");
        host.are_refused(&strict.namespace, new);
        remote.answer(&strict.namespace, v4);
        lab.host.ip(&format!("addr del {new}/32 dev lo"));
        drop((closed, strict, free, new_member));
        for network in ["open", "closed"] {
            place.done(&format!("network rm {network}"));
        }
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_prefix_that_is_none_is_refused_by_name() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let told = place
        .cnet("network create x --deny 10.0.0.0/33")
        .run(AT_ONCE);
    assert_eq!(told.code(), Some(2), "{told}");
    assert!(told.stderr.contains("such as 10.0.0.0/8"), "{told}");
    let told = place.cnet("run --network none --deny 10.0.0.0/8 true");
    let told = told.run(AT_ONCE);
    assert_eq!(told.code(), Some(125), "{told}");
    assert!(told.stderr.contains("--network none"), "{told}");
}

/// An address that the container gives itself, as a container behind it would have.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn only_a_container_that_is_trusted_sends_from_other_addresses() {
    let lab = Lab::direct();
    let [v4, _] = REMOTES;
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(v4, 7000));
    let place = Place::root(&lab);
    place.done("network create lan --subnet 172.27.0.0/24");
    place.done("network create open --subnet 172.28.0.0/24 --trust");
    let guarded = place.join("lan", "guarded", "");
    let trusted = place.join("lan", "trusted", "--trust");
    let on_open = place.join("open", "a", "");
    for (member, subnet, passes) in [
        (&guarded, "172.27.0", false),
        (&trusted, "172.27.0", true),
        (&on_open, "172.28.0", true),
    ] {
        let namespace = &member.namespace;
        namespace.ip(&format!("addr add {subnet}.200/32 dev eth0"));
        namespace.ip("route del default");
        let gateway = format!("{subnet}.1");
        namespace.ip(&format!("route add default via {gateway} src {subnet}.200"));
        let echoed = namespace.connect_once(server.address, AT_ONCE);
        assert_eq!(echoed.is_ok(), passes, "{subnet}: {echoed:?}");
        drop(echoed);
        namespace.ip(&format!("addr del {subnet}.200/32 dev eth0"));
    }
    assert!(place.drops("lan", "guarded", "spoofed") > 0);
    assert_eq!(place.drops("lan", "trusted", "spoofed"), 0);
    // Said once, with the way out, and of that container alone.
    let log = std::fs::read_to_string(place.runtime.join("cnet/lan/log")).expect("the log");
    let said: Vec<&str> = log.lines().filter(|l| l.contains("`--trust`")).collect();
    let names = |text: &str| said.len() == 1 && said[0].contains(text);
    assert!(
        names("172.27.0.200 at") && names(&guarded.v4.to_string()),
        "{log}"
    );
    for (member, warned) in [(&guarded, true), (&trusted, false), (&on_open, false)] {
        let inspected = place.json(&format!("inspect {}", member.name));
        let warnings = inspected[0]["statistics"]["warnings"].to_string();
        assert_eq!(warnings.contains("--trust"), warned, "{inspected}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_says_at_its_end_what_was_dropped_for_its_source() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    place.done("network create lan --subnet 172.27.0.0/24");
    let foreign = "ip addr add 172.27.0.200/32 dev eth0; ping -c1 -W0.2 -I 172.27.0.200 172.27.0.1";
    for (options, script, warned) in [
        ("-v", foreign, true),
        ("", foreign, false),
        ("-v --trust", foreign, false),
        ("-v", "ping -c1 -W1 172.27.0.1", false),
    ] {
        let run = format!("--network lan {options}");
        let done = place.shell(&run, &format!("{script}; true"));
        assert_eq!(
            done.stderr.contains("`--trust`"),
            warned,
            "{options}: {done}"
        );
    }
}
