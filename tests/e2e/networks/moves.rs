//! The host moves while containers run: addresses, default routes, more specific ones, IPv6, and a host
//! that has no network yet.

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::lab::namespace::Namespace;
use crate::lab::place::Place;
use crate::lab::run::{Held, Options};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::{HOST_V4, HOST_V6, Lab, REMOTES, any, cable, wait_until};

/// How long existing mappings and new flows may take to go the new way.
const MOVE_LIMIT: Duration = Duration::from_secs(2);
/// How long an answer may take.
const LIMIT: Duration = Duration::from_millis(200);

/// The host's addresses on its second cable, and the remote's.
const SECOND: [[&str; 2]; 2] = [
    ["203.0.113.1", "203.0.113.2"],
    ["2001:db8:4::1", "2001:db8:4::2"],
];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A second cable between host and remote.
fn second_way(lab: &Lab) {
    cable(&lab.host, "eth1", &lab.remote, "eth1");
    for [own, far] in SECOND {
        let (length, option) = match address(own) {
            IpAddr::V4(_) => (24, ""),
            IpAddr::V6(_) => (64, "nodad"),
        };
        for (at, address) in [(&lab.host, own), (&lab.remote, far)] {
            at.ip(&format!("addr add {address}/{length} dev eth1 {option}"));
        }
    }
}

/// A container's UDP socket, and the servers that it and new connections speak to.
struct Watched<'a> {
    container: &'a Namespace,
    socket: UdpSocket,
    udp: UdpServer,
    tcp: TcpServer,
}

impl<'a> Watched<'a> {
    fn new(lab: &Lab, container: &'a Namespace, remote: IpAddr) -> Watched<'a> {
        Watched {
            container,
            socket: container.udp(any(remote, 0), LIMIT),
            udp: UdpServer::echo(&lab.remote, SocketAddr::new(remote, 0)),
            tcp: TcpServer::hold(&lab.remote, SocketAddr::new(remote, 0)),
        }
    }

    /// From where a datagram of the old mapping, and a new connection, are heard.
    fn heard_from(&self) -> Result<[IpAddr; 2], String> {
        let text = |error: std::io::Error| error.to_string();
        let seen = self.udp.log.sockets().len();
        self.socket.send_to(b"x", self.udp.address).map_err(text)?;
        self.socket.recv(&mut [0; 9]).map_err(text)?;
        let udp = self
            .udp
            .log
            .peers()
            .get(seen)
            .copied()
            .ok_or("no datagram")?;
        let seen = self.tcp.log.peers().len();
        let _stream = self
            .container
            .connect_once(self.tcp.address, LIMIT)
            .map_err(text)?;
        let tcp = wait_until("the connection", LIMIT, || {
            self.tcp
                .log
                .peers()
                .get(seen)
                .copied()
                .ok_or("none".to_owned())
        });
        Ok([udp, tcp])
    }

    /// Both are heard from `source` within the limit.
    fn assert_moves_to(&self, source: IpAddr) {
        within(MOVE_LIMIT, [source; 2], || self.heard_from());
    }
}

/// `found` is what is `wanted`, soon.
fn within<T: PartialEq + Debug>(limit: Duration, wanted: T, found: impl Fn() -> Result<T, String>) {
    let started = Instant::now();
    loop {
        let last = found();
        if last.as_ref() == Ok(&wanted) {
            return;
        }
        assert!(started.elapsed() < limit, "{wanted:?}: {last:?}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn mappings_and_new_flows_follow_the_hosts_routes_and_addresses() {
    let lab = Lab::direct();
    second_way(&lab);
    let held = Held::start(&lab, &Options::default());
    let cases = [
        (
            REMOTES[0],
            SECOND[0],
            IpAddr::from(HOST_V4),
            "203.0.113.9/24",
            "",
        ),
        (
            REMOTES[1],
            SECOND[1],
            HOST_V6.into(),
            "2001:db8:4::9/64",
            " nodad",
        ),
    ];
    for (remote, [own, far], first, later, option) in cases {
        let (family, length) = if remote.is_ipv4() {
            ("-4", 32)
        } else {
            ("-6", 128)
        };
        let ip = |command: &str| lab.host.ip(&format!("{family} {command}"));
        let watched = Watched::new(&lab, &held.namespace, remote);
        watched.assert_moves_to(first);
        // A VPN with a more specific route comes, and goes.
        ip(&format!("route add {remote}/{length} via {far}"));
        watched.assert_moves_to(address(own));
        ip(&format!("route del {remote}/{length} via {far}"));
        watched.assert_moves_to(first);
        // The default route.
        ip("route del default");
        ip(&format!("route add default via {far}"));
        watched.assert_moves_to(address(own));
        // The address.
        ip("addr flush dev eth1 scope global");
        ip(&format!("addr add {later} dev eth1{option}"));
        ip(&format!("route replace default via {far}"));
        watched.assert_moves_to(address(later.split('/').next().expect("an address")));
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_host_that_has_no_network_yet_gets_one() {
    let lab = Lab::direct();
    lab.host.ip("link set eth0 down");
    let held = Held::start(&lab, &Options::default());
    let watched = REMOTES.map(|remote| Watched::new(&lab, &held.namespace, remote));
    for watched in &watched {
        assert!(watched.heard_from().is_err());
    }
    lab.host.ip("link set eth0 up");
    // IPv6 addresses went with the link.
    let v6 = format!("-6 addr replace {HOST_V6}/64 dev eth0 nodad");
    lab.host.ip(&v6);
    let [v4_gateway, v6_gateway] = [
        crate::lab::GATEWAY_V4.to_string(),
        crate::lab::GATEWAY_V6.to_string(),
    ];
    lab.host
        .ip(&format!("-4 route replace default via {v4_gateway}"));
    lab.host
        .ip(&format!("-6 route replace default via {v6_gateway}"));
    watched[0].assert_moves_to(HOST_V4.into());
    watched[1].assert_moves_to(HOST_V6.into());
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ipv6_vanishes_from_the_host_and_ipv4_goes_on() {
    let lab = Lab::direct();
    let held = Held::start(&lab, &Options::default());
    let [v4, v6] = REMOTES.map(|remote| Watched::new(&lab, &held.namespace, remote));
    v6.assert_moves_to(HOST_V6.into());
    lab.host.sysctl("ipv6/conf/all/disable_ipv6", "1");
    assert!(v6.heard_from().is_err());
    let refused = held.namespace.connect_once(v6.tcp.address, MOVE_LIMIT);
    let errno = refused.expect_err("there is no IPv6").raw_os_error();
    assert_eq!(errno, Some(rustix::io::Errno::NETUNREACH.raw_os_error()));
    v4.assert_moves_to(HOST_V4.into());
    // And a start without it.
    let later = Held::start(&lab, &Options::default());
    Watched::new(&lab, &later.namespace, REMOTES[0]).assert_moves_to(HOST_V4.into());
}

/// A route that comes up within a network's subnet while it runs is said once in its log.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_route_within_a_running_networks_subnet_is_said_once() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    place.done("network create --subnet 10.44.0.0/24 --subnet fd44::/64 v");
    let _web = place.run("v", "web", "");
    let told = || {
        let log = std::fs::read_to_string(place.runtime.join("cnet/v/log")).expect("the log");
        ["10.44.0.0/25 on eth0", "fd44::/80 on eth0"].map(|route| log.matches(route).count())
    };
    assert_eq!(told(), [0, 0]);
    lab.host.ip("route add 10.44.0.0/25 dev eth0");
    lab.host.ip("-6 route add fd44::/80 dev eth0");
    within(MOVE_LIMIT, [1, 1], || Ok(told()));
    // Another route's coming and going says nothing.
    lab.host.ip("route add 10.45.0.0/25 dev eth0");
    sleep(Duration::from_millis(700));
    assert_eq!(told(), [1, 1]);
    let listed = place.done("ps").stderr;
    assert!(listed.contains("10.44.0.0/25 on eth0"), "{listed}");
    let inspected = place.inspect("v")["Cnet"]["Warnings"].to_string();
    assert!(inspected.contains("fd44::/80 on eth0"), "{inspected}");
}

/// A container whose namespace has IPv6 switched off joins with IPv4 alone.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_namespace_without_ipv6_joins_with_ipv4_and_that_is_said_once() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    place.done("network create v");
    let (process, namespace) = place.container();
    namespace.sysctl("ipv6/conf/default/disable_ipv6", "1");
    let joined = place.json(&format!(
        "attach --json --network v --name old {}",
        process.pid()
    ));
    assert_eq!(joined["ipv6"], serde_json::Value::Null, "{joined}");
    let server = TcpServer::hold(&lab.remote, SocketAddr::new(REMOTES[0], 0));
    let connected = namespace.connect(server.address, MOVE_LIMIT);
    connected.expect("IPv4");
    let other = place.join("v", "other", "");
    let found = other
        .program(&lab, "getent")
        .args(["ahosts", "old"])
        .run(crate::lab::run::SHORT);
    assert!(found.success() && !found.stdout.contains(':'), "{found}");
    let log = std::fs::read_to_string(place.runtime.join("cnet/v/log")).expect("the log");
    assert_eq!(log.matches("IPv6 is switched off").count(), 1, "{log}");
}
