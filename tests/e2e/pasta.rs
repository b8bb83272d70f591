//! `pasta`: a namespace that looks like its host, under the command lines of podman and of a person.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use crate::lab::binaries::binary;
use crate::lab::container::Container;
use crate::lab::namespace::Namespace;
use crate::lab::process::{Finished, Launch};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{connect_and_echo, echo, echo_datagram};
use crate::lab::{GATEWAY_V4, HOST_V4, HOST_V6, Lab, REMOTE_V4, REMOTES, wait_until};

/// No ports, either way.
const NO_PORTS: [&str; 8] = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"];

/// A namespace at a path, and the program that serves it, which ends with the path.
struct Served {
    namespace: Namespace,
    path: PathBuf,
    pid: u32,
}

impl Served {
    /// Binds a new namespace to a path and has `pasta` connect it, in the background.
    fn start(lab: &Lab, arguments: &[&str]) -> Served {
        let namespace = Namespace::create();
        let path = lab.directory().join("netns");
        std::fs::write(&path, "").unwrap();
        let bound = rustix::mount::mount_bind(namespace.path(), &path);
        bound.expect("a bind mount of a namespace, as root");
        let pid_file = lab.directory().join("pid");
        let done = launch(lab)
            .args(["--pid", pid_file.to_str().unwrap()])
            .args(["--netns", path.to_str().unwrap()])
            .args(arguments)
            .run(Duration::from_secs(10));
        assert!(done.success(), "{done}");
        // In the background, nothing is said and nothing held open: `run` has read to the end.
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""));
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        Served {
            namespace,
            path,
            pid: pid.trim().parse().expect("a PID"),
        }
    }

    fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Takes the path away, with which the program has to end.
    fn end(&self) {
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_file(&self.path);
        until("the program's end", || !self.is_running());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Waits for what has to come soon.
fn until(what: &str, mut come: impl FnMut() -> bool) {
    wait_until(what, Duration::from_secs(5), || match come() {
        true => Ok(()),
        false => Err("not yet".to_owned()),
    });
}

fn launch(lab: &Lab) -> Launch {
    lab.mark(Launch::new(binary("pasta")).namespace(lab.host.descriptor()))
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn pasta_gives_the_hosts_own_addresses_and_routes_and_reaches_the_world() {
    let lab = Lab::direct();
    lab.host.ip("route add 203.0.113.128/25 via 192.0.2.253");
    let arguments = ["--config-net", "--no-map-gw", "--quiet"];
    let served = Served::start(&lab, &[&arguments[..], &NO_PORTS].concat());
    let inside = &served.namespace;
    let addresses = inside.ip("address show dev eth0");
    for expected in [
        format!("inet {HOST_V4}/24"),
        format!("inet6 {HOST_V6}/64"),
        "mtu 65520".to_owned(),
    ] {
        assert!(addresses.contains(&expected), "{expected}: {addresses}");
    }
    let routes = inside.ip("route show");
    assert!(
        routes.contains(&format!("default via {GATEWAY_V4}")),
        "{routes}"
    );
    assert!(
        routes.contains("203.0.113.128/25 via 192.0.2.253"),
        "{routes}"
    );
    for remote in REMOTES {
        let server = TcpServer::echo(&lab.remote, (remote, 7000).into());
        connect_and_echo(inside, (remote, 7000).into(), b"out").unwrap();
        // The host's own address, untranslated.
        let own = match remote {
            IpAddr::V4(_) => IpAddr::V4(HOST_V4),
            IpAddr::V6(_) => IpAddr::V6(HOST_V6),
        };
        assert_eq!(server.log.peers(), [own]);
        let _server = UdpServer::echo(&lab.remote, (remote, 7000).into());
        echo_datagram(inside, (remote, 7000).into(), 100).unwrap();
    }
    // A neighbour on the host's own subnet, which is also its router here.
    let neighbour = IpAddr::V4(GATEWAY_V4);
    let _server = TcpServer::echo(&lab.remote, (neighbour, 7001).into());
    connect_and_echo(inside, (neighbour, 7001).into(), b"neighbour").unwrap();
    served.end();
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn pasta_runs_podmans_command_line() {
    let lab = Lab::direct();
    let served = Served::start(
        &lab,
        &[
            "--config-net",
            "-t",
            "127.0.0.1/8080-8081:80-81",
            "--dns-forward",
            "169.254.1.1",
            "-u",
            "none",
            "-T",
            "none",
            "-U",
            "none",
            "--no-map-gw",
            "--quiet",
            "--map-guest-addr",
            "169.254.1.2",
        ],
    );
    let inside = &served.namespace;
    // The host, under the address that stands for its own.
    let server = TcpServer::echo(&lab.host, (HOST_V4, 7000).into());
    let alias = Ipv4Addr::new(169, 254, 1, 2);
    connect_and_echo(inside, (alias, 7000).into(), b"host").unwrap();
    assert_eq!(server.log.peers(), [IpAddr::V4(HOST_V4)]);
    let _udp = UdpServer::echo(&lab.host, (HOST_V4, 7000).into());
    echo_datagram(inside, (alias, 7000).into(), 100).unwrap();
    // Its loopback is out of reach under the gateway's address.
    let _loopback = TcpServer::echo(&lab.host, (Ipv4Addr::LOCALHOST, 7002).into());
    let limit = Duration::from_secs(2);
    assert!(
        inside
            .connect_once((GATEWAY_V4, 7002).into(), limit)
            .is_err()
    );
    // The published port.
    let _web = TcpServer::echo(inside, (Ipv4Addr::UNSPECIFIED, 81).into());
    connect_and_echo(&lab.host, (Ipv4Addr::LOCALHOST, 8081).into(), b"in").unwrap();
    served.end();
}

/// The exit code, and what was said.
fn run(lab: &Lab, arguments: &[&str]) -> Finished {
    launch(lab).args(arguments).run(Duration::from_secs(10))
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn pasta_runs_a_command_in_new_namespaces() {
    let lab = Lab::direct();
    let _server = TcpServer::echo(&lab.remote, (REMOTE_V4, 7000).into());
    let script = "echo $$; ip -br address show dev eth0; exec 3<>/dev/tcp/198.51.100.2/7000 && \
                  echo hello >&3 && head -n1 <&3; exit 7";
    let done = run(&lab, &["--config-net", "--", "bash", "-c", script]);
    assert_eq!(done.code(), Some(7), "{done}");
    let mut lines = done.stdout.lines();
    // The first process of its PID namespace.
    assert_eq!(lines.next(), Some("1"), "{done}");
    assert!(
        lines
            .next()
            .is_some_and(|line| line.contains("192.0.2.1/24"))
    );
    assert_eq!(lines.next(), Some("hello"), "{done}");
    assert_eq!(run(&lab, &["--", "no-such-program"]).code(), Some(127));
    assert_eq!(
        run(&lab, &["--", "sh", "-c", "kill -9 $$; sleep 9"]).code(),
        Some(0)
    );
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn pasta_without_config_net_answers_dhcp_and_solicitations() {
    let lab = Lab::direct();
    let served = Served::start(&lab, &[&NO_PORTS[..], &["--no-map-gw"]].concat());
    let inside = &served.namespace;
    let before = inside.ip("-br address show dev eth0");
    assert!(before.contains("DOWN"), "{before}");
    inside.sysctl("ipv6/conf/eth0/accept_ra", "2");
    inside.ip("link set eth0 up");
    // By router advertisement: an address in the host's prefix, and the way out.
    until("an address", || {
        inside
            .ip("-6 address show dev eth0")
            .contains("2001:db8:1:0:")
    });
    let routes = inside.ip("-6 route show");
    assert!(routes.contains("default via fe80::"), "{routes}");
    let remote = IpAddr::from(Ipv6Addr::from([0x2001, 0xdb8, 2, 0, 0, 0, 0, 2]));
    let _server = TcpServer::echo(&lab.remote, (remote, 7000).into());
    connect_and_echo(inside, (remote, 7000).into(), b"out").unwrap();
    served.end();
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn pasta_tells_what_is_wrong_and_ends_with_1() {
    let lab = Lab::direct();
    for (arguments, message) in [
        (
            &["--map-guest-address", "x"][..],
            "unrecognized option '--map-guest-address'",
        ),
        (
            &["--netns", "/nonexistent/n"],
            "existing path expected, not /nonexistent/n",
        ),
        (
            &["-i", "nowhere0", "--", "true"],
            "Invalid interface name nowhere0",
        ),
        (&["99999999"], "no process with PID 99999999"),
    ] {
        let done = run(&lab, arguments);
        assert_eq!(done.code(), Some(1), "{done}");
        assert!(done.stderr.contains(message), "{message}: {done}");
    }
    let probe = run(&lab, &["--host-lo-to-ns-lo", "--version"]);
    assert_eq!(probe.code(), Some(0), "{probe}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn pasta_follows_what_listens_both_ways() {
    let lab = Lab::direct();
    let served = Served::start(&lab, &["--config-net", "--host-lo-to-ns-lo", "-q"]);
    let inside = &served.namespace;
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let _in = TcpServer::echo(inside, (localhost, 7070).into());
    let _out = TcpServer::echo(&lab.host, (localhost, 7171).into());
    let _in_udp = UdpServer::echo(inside, (Ipv4Addr::UNSPECIFIED, 7272).into());
    let _out_udp = UdpServer::echo(&lab.host, (localhost, 7373).into());
    until("a port of the host", || {
        connect_and_echo(&lab.host, (localhost, 7070).into(), b"in").is_ok()
    });
    until("a port of the namespace", || {
        connect_and_echo(inside, (localhost, 7171).into(), b"out").is_ok()
    });
    echo_datagram(&lab.host, (HOST_V4, 7272).into(), 100).unwrap();
    echo_datagram(inside, (localhost, 7373).into(), 100).unwrap();
    // From the remote, to what listens on all addresses alone.
    let _all = TcpServer::echo(inside, (Ipv4Addr::UNSPECIFIED, 7474).into());
    until("a port for the world", || {
        connect_and_echo(&lab.remote, (HOST_V4, 7474).into(), b"in").is_ok()
    });
    served.end();
}

/// Runs `pesto` on the socket.
fn pesto(lab: &Lab, arguments: &[&str]) -> Finished {
    let socket = lab.directory().join("pesto.sock");
    Launch::new(binary("pesto"))
        .args(arguments)
        .arg(socket)
        .run(Duration::from_secs(10))
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn pesto_changes_ports_and_tells_which_could_not_be_had() {
    let lab = Lab::direct();
    let socket = lab.directory().join("pesto.sock");
    let control = ["--config-net", "-c", socket.to_str().unwrap()];
    let served = Served::start(&lab, &[&control[..], &NO_PORTS].concat());
    let inside = &served.namespace;
    let _web = TcpServer::echo(inside, (Ipv4Addr::UNSPECIFIED, 80).into());
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let added = pesto(
        &lab,
        &["--add", "-t", "0.0.0.0/8080:192.0.2.1/80", "-t", "8082:80"],
    );
    assert!(added.success(), "{added}");
    let mut stays = lab
        .host
        .connect((localhost, 8080).into(), Duration::from_secs(2))
        .unwrap();
    // One is taken on the host: it is told, the others stay, and so do their connections.
    let _taken = TcpServer::echo(&lab.host, (Ipv4Addr::UNSPECIFIED, 8081).into());
    let refused = pesto(&lab, &["--add", "-t", "8081:80", "-t", "8083:80"]);
    assert_eq!(refused.code(), Some(1), "{refused}");
    let wanted = "cannot forward TCP port 8081:80";
    assert!(
        refused.stderr.contains(wanted) && refused.stderr.contains("in use"),
        "{refused}"
    );
    echo(&mut stays, b"still").unwrap();
    for port in [8080, 8082, 8083] {
        connect_and_echo(&lab.host, (localhost, port).into(), b"in").unwrap();
    }
    let shown = pesto(&lab, &["--delete", "-t", "8082:80", "--show"]);
    assert!(shown.success(), "{shown}");
    let wanted = "HOST\n    TCP 0.0.0.0/8080:192.0.2.1/80\n    TCP 8083:80\nSPLICE\n";
    assert_eq!(shown.stdout, wanted);
    let limit = Duration::from_secs(1);
    assert!(
        lab.host
            .connect_once((localhost, 8082).into(), limit)
            .is_err()
    );
    served.end();
    assert!(!socket.exists());
}

/// rootlesskit's: addresses of its own, which is a process's namespace.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn pasta_runs_rootlesskits_command_line() {
    let lab = Lab::direct();
    let mut container = Container::start(&lab, None);
    let arguments = "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 \
                     --netmask=24 --gateway=10.0.2.2 --dns-forward=10.0.2.3 --ipv4-only \
                     --tcp-ports=auto --udp-ports=auto --host-lo-to-ns-lo";
    let pid = container.pid().to_string();
    let pid_file = lab.directory().join("pid");
    let started = launch(&lab)
        .args(arguments.split_whitespace())
        .args(["--pid", pid_file.to_str().unwrap(), &pid])
        .run(Duration::from_secs(10));
    assert!(started.success(), "{started}");
    let inside = container.namespace.clone();
    let addresses = inside.ip("-br -4 address show dev tap0");
    assert!(addresses.contains("10.0.2.100/24"), "{addresses}");
    let server = TcpServer::echo(&lab.remote, (REMOTE_V4, 7000).into());
    connect_and_echo(&inside, (REMOTE_V4, 7000).into(), b"out").unwrap();
    assert_eq!(server.log.peers(), [IpAddr::V4(HOST_V4)]);
    // The host's loopback, at the gateway's address.
    let _loopback = TcpServer::echo(&lab.host, (Ipv4Addr::LOCALHOST, 7002).into());
    connect_and_echo(&inside, (Ipv4Addr::new(10, 0, 2, 2), 7002).into(), b"map").unwrap();
    container.kill();
    let text = std::fs::read_to_string(&pid_file).unwrap();
    until("the program's end", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", text.trim()));
        !stat.is_ok_and(|stat| !stat.contains(") Z "))
    });
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn pasta_writes_what_passes_to_a_file() {
    let lab = Lab::direct();
    let file = lab.directory().join("packets.pcap");
    let arguments = ["--config-net", "-p", file.to_str().unwrap()];
    let served = Served::start(&lab, &[&arguments[..], &NO_PORTS].concat());
    let _server = TcpServer::echo(&lab.remote, (REMOTE_V4, 7000).into());
    let to = (REMOTE_V4, 7000).into();
    connect_and_echo(&served.namespace, to, b"seen in the capture").unwrap();
    until("the packets", || {
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!(bytes[..4], 0xa1b2_c3d4_u32.to_ne_bytes());
        let text = b"seen in the capture";
        bytes.windows(text.len()).filter(|w| w == text).count() >= 2
    });
    served.end();
}
