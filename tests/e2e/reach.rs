//! What a container reaches: its gateway, and a second host by TCP, UDP and ICMP over IPv4 and
//! IPv6, whoever runs the program.

use std::net::SocketAddr;
use std::time::Duration;

use crate::lab::container::{Container, GATEWAY_V4, Options, Slirp, wait_for_ipv6};
use crate::lab::namespace::Namespace;
use crate::lab::run::{self, Held};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{connect_and_echo, echo_datagram, ping};
use crate::lab::{Lab, ORDINARY_USER, REMOTES};

fn reaches_by_tcp_and_udp(lab: &Lab, container: &Namespace) {
    for remote in REMOTES {
        let tcp = TcpServer::echo(&lab.remote, SocketAddr::new(remote, 0));
        connect_and_echo(container, tcp.address, b"over TCP").expect("TCP to the remote");
        let udp = UdpServer::echo(&lab.remote, SocketAddr::new(remote, 0));
        echo_datagram(container, udp.address, 100).expect("UDP to the remote");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_answers_ping_at_its_gateway() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for gateway in Slirp::gateways() {
        ping(slirp.namespace(), gateway, 56);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_reaches_a_remote_by_tcp_and_udp_as_root() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    reaches_by_tcp_and_udp(&lab, slirp.namespace());
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_reaches_a_remote_by_tcp_and_udp_as_an_ordinary_user() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::ordinary_user());
    reaches_by_tcp_and_udp(&lab, slirp.namespace());
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_pings_a_remote_as_root() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for remote in REMOTES {
        ping(slirp.namespace(), remote, 56);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_pings_a_remote_as_an_ordinary_user() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::ordinary_user());
    for remote in REMOTES {
        ping(slirp.namespace(), remote, 56);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_works_on_when_the_host_forbids_ping_sockets() {
    let lab = Lab::direct();
    lab.host.sysctl("ipv4/ping_group_range", "1 0");
    let slirp = Slirp::start(&lab, &Options::ordinary_user());
    ping(slirp.namespace(), GATEWAY_V4.into(), 56);
    reaches_by_tcp_and_udp(&lab, slirp.namespace());
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_names_a_closed_tun_device_and_the_remedy() {
    let lab = Lab::direct();
    let options = Options {
        tun_mode: Some(0o600),
        ..Options::ordinary_user()
    };
    let container = Container::start(&lab, options.user);
    let done = options
        .launch(&lab)
        .args(["-c", &container.pid().to_string(), "tap0"])
        .run(Duration::from_secs(5));
    assert_eq!(done.code(), Some(1), "{done}");
    assert!(names_device_and_remedy(&done.stderr), "{done}");
    lab.assert_nothing_left(&[container.pid()], Duration::from_secs(1));
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_names_a_closed_tun_device_and_the_remedy() {
    let lab = Lab::direct();
    let options = run::Options {
        tun_mode: Some(0o600),
        ..run::Options::ordinary_user()
    };
    let done = options.command(&lab, &["true"]).run(run::SHORT);
    assert!(!done.success(), "{done}");
    assert!(names_device_and_remedy(&done.stderr), "{done}");
    lab.assert_nothing_left(&[], Duration::from_secs(1));
}

fn names_device_and_remedy(error: &str) -> bool {
    let remedy = ["chmod", "0666", "udev"]
        .iter()
        .any(|word| error.contains(word));
    error.contains("/dev/net/tun") && remedy
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_answers_ping_at_its_gateway() {
    let lab = Lab::direct();
    for options in [run::Options::default(), run::Options::ordinary_user()] {
        let done = options.shell(&lab, "ping -c1 -w5 10.0.2.2").run(run::SHORT);
        assert!(done.success(), "{done}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_reaches_a_remote_as_root() {
    run_reaches_a_remote(&run::Options::default());
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_reaches_a_remote_as_an_ordinary_user() {
    let options = run::Options::ordinary_user();
    assert_eq!(options.user, Some(ORDINARY_USER));
    run_reaches_a_remote(&options);
}

fn run_reaches_a_remote(options: &run::Options) {
    let lab = Lab::direct();
    let held = Held::start(&lab, options);
    wait_for_ipv6(&held.namespace);
    reaches_by_tcp_and_udp(&lab, &held.namespace);
    for remote in REMOTES {
        ping(&held.namespace, remote, 56);
    }
}

/// The command has its network from its first instruction: both families, with no waiting.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_has_both_families_at_the_first_instruction() {
    let lab = Lab::direct();
    for remote in REMOTES {
        let server = TcpServer::start(&lab.remote, SocketAddr::new(remote, 0), |mut stream| {
            std::io::Write::write_all(&mut stream, b"hello\n")
        });
        let script = format!(
            "exec 3<>/dev/tcp/{}/{} && read -r line <&3 && echo \"$line\"",
            remote,
            server.address.port()
        );
        let done = run::Options::default()
            .command(&lab, &["bash", "-c", &script])
            .run(run::SHORT);
        assert!(done.success(), "{done}");
        assert_eq!(done.stdout, "hello\n", "{done}");
    }
}
