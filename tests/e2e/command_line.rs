//! slirp4netns's command line, as podman and rootlesskit write it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::lab::container::{Container, GATEWAY_V4, Options, Slirp, program};
use crate::lab::process::{Finished, Launch};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, connect_and_echo, ping};
use crate::lab::{Lab, REMOTE_V4};

/// Runs the program to its end, which has to be near.
fn run(arguments: &[&str]) -> Finished {
    let launch = Launch::new(program()).args(arguments);
    launch.run(Duration::from_secs(5))
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn version_and_help_hold_what_callers_look_for() {
    for option in ["-v", "--version"] {
        let done = run(&[option]);
        assert_eq!(done.code(), Some(0), "{done}");
        let wanted = "SLIRP_CONFIG_VERSION_MAX: 4";
        let mut lines = done.stdout.lines();
        assert!(lines.next().is_some_and(|line| line.contains("version")));
        assert!(lines.any(|line| line == wanted), "{done}");
    }
    for option in ["-h", "--help"] {
        let done = run(&[option]);
        assert_eq!(done.code(), Some(0), "{done}");
        let wanted = [
            "--mtu",
            "--cidr",
            "--disable-host-loopback",
            "--enable-ipv6",
            "--outbound-addr",
            "--netns-type",
        ];
        for option in wanted {
            assert!(done.stdout.contains(option), "{option}: {done}");
        }
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn mistakes_end_with_1_and_a_message() {
    let own = std::process::id().to_string();
    let mistakes: &[&[&str]] = &[
        &[],
        &["-c"],
        &["--no-such-option", &own],
        &["-c", "--mtu=0", &own],
        &["-c", "--mtu=65522", &own],
        &["-c", "--mtu=many", &own],
        &["-c", "--cidr=10.0.2.1/24", &own],
        &["-c", "--cidr=10.0.2.0/26", &own],
        &["-c", "--cidr=nonsense", &own],
        &["-c", "--netns-type=nonsense", &own],
        &["-c", "--target-type=nonsense", &own],
        &["-c", "--macaddress=nonsense", &own],
        &["--macaddress=02:00:00:00:00:01", &own],
        &["-c", "--ready-fd=nonsense", &own],
        &["-c", "--exit-fd=nonsense", &own],
        // No process has an id this large: the kernel's limit is 2^22.
        &["-c", "99999999"],
        &["-c", "--netns-type=path", "/nonexistent"],
    ];
    for arguments in mistakes {
        let done = run(arguments);
        assert_eq!(done.code(), Some(1), "{done}");
        let message = [done.stdout.trim(), done.stderr.trim()].concat();
        assert!(!message.is_empty(), "{done}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_bess_target_is_refused_by_name() {
    let done = run(&["--target-type=bess", "/nonexistent.sock"]);
    assert_eq!(done.code(), Some(1), "{done}");
    assert!(done.stderr.contains("bess"), "{done}");
}

/// podman 4.3's words to a program whose help speaks of a sandbox.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn serves_a_namespace_by_its_path_as_podman_asks() {
    let lab = Lab::direct();
    let container = Container::start(&lab, None);
    let pid = container.pid();
    let arguments = format!(
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 -c \
         --netns-type=path \
         --userns-path=/proc/{pid}/ns/user /proc/{pid}/ns/net tap0"
    );
    let _process = Options::default()
        .launch(&lab)
        .args(arguments.split_whitespace())
        .spawn();
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    crate::lab::wait_until("a connection", CONNECT, || {
        let echoed = connect_and_echo(&container.namespace, server.address, b"podman");
        echoed.map_err(|error| error.to_string())
    });
    let link = container.namespace.ip("link show tap0");
    assert!(link.contains("mtu 65520"), "{link}");
}

/// rootlesskit 1.1: the TAP is there and configured; neither `-c` nor `-e` is given.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn takes_a_tap_that_its_caller_made_and_configured() {
    let lab = Lab::direct();
    let container = Container::start(&lab, None);
    for command in [
        "tuntap add name tap0 mode tap",
        "link set tap0 mtu 65520 up",
        "addr add 10.0.2.100/24 dev tap0",
        "route add default via 10.0.2.2",
    ] {
        container.namespace.ip(command);
    }
    let slirp = Slirp::serve(&lab, &Options::with("--mtu 65520"), container);
    ping(slirp.namespace(), GATEWAY_V4.into(), 56);
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let echoed = connect_and_echo(slirp.namespace(), server.address, b"rootlesskit");
    echoed.expect("a connection");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn cidr_moves_every_address_with_its_host_part() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::with("--cidr=10.77.1.0/24"));
    let addresses = slirp.namespace().ip("-4 -o addr show tap0");
    assert!(addresses.contains("10.77.1.100/24"), "{addresses}");
    ping(slirp.namespace(), Ipv4Addr::new(10, 77, 1, 2).into(), 56);
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let echoed = connect_and_echo(slirp.namespace(), server.address, b"moved");
    echoed.expect("a connection");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn configure_sets_address_route_mtu_and_mac() {
    let lab = Lab::direct();
    let arguments = "-c -m 1400 --macaddress=02:11:22:33:44:55";
    let slirp = Slirp::bare(&lab, &Options::with(arguments));
    let link = slirp.namespace().ip("link show tap0");
    assert!(link.contains("mtu 1400"), "{link}");
    assert!(link.contains("02:11:22:33:44:55"), "{link}");
    let addresses = slirp.namespace().ip("-4 -o addr show tap0");
    assert!(addresses.contains("10.0.2.100/24"), "{addresses}");
    let route = slirp.namespace().ip("-4 route show default");
    assert!(route.contains("via 10.0.2.2 dev tap0"), "{route}");
    let loopback = slirp.namespace().ip("link show lo");
    assert!(loopback.contains("UP"), "{loopback}");
    ping(slirp.namespace(), GATEWAY_V4.into(), 56);
}

/// An option does what it says, or is refused by name: never ignored.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn an_outbound_address_is_used_or_refused_by_name() {
    let lab = Lab::direct();
    let second: IpAddr = Ipv4Addr::new(192, 0, 2, 7).into();
    lab.host.ip(&format!("addr add {second}/24 dev eth0"));
    let option = format!("--outbound-addr={second}");
    let container = Container::start(&lab, None);
    let probe =
        Options::default()
            .launch(&lab)
            .args(["-c", &option, &container.pid().to_string(), "tap0"]);
    let mut process = probe.spawn();
    if let Some(status) = process.wait(Duration::from_secs(1)) {
        assert_eq!(status.code(), Some(1), "{process}");
        assert!(process.stderr().contains("--outbound-addr"), "{process}");
        return;
    }
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let echoed = connect_and_echo(&container.namespace, server.address, b"from the second");
    echoed.expect("a connection");
    assert_eq!(server.log.peers(), [second]);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn an_existing_socket_file_is_replaced() {
    let lab = Lab::direct();
    let path = lab.directory().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a stale socket"));
    let options = Options {
        api: true,
        ..Options::with("-c")
    };
    let slirp = Slirp::bare(&lab, &options);
    let answer = crate::api::request(&slirp, &serde_json::json!({"execute": "list_hostfwd"}));
    assert!(answer.get("entries").is_some(), "{answer}");
    assert_eq!(slirp.api.as_deref(), Some(Path::new(&path)));
}
