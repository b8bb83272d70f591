//! slirp4netns's command line, as podman and rootlesskit write it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use cnet_tap::Tap;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};

use crate::lab::container::{Container, GATEWAY_V4, Options, Slirp, program};
use crate::lab::process::{Finished, Launch};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, connect_and_echo, ping};
use crate::lab::{Lab, REMOTE_V4, wait_until};

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

/// A machine of User Mode Linux (`vec0:transport=bess,dst=PATH`): it connects, and each packet is a
/// frame. Its end is the program's.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_machine_that_connects_as_bess_is_served() {
    let lab = Lab::direct();
    let path = lab.directory().join("uml.sock");
    let arguments = ["--target-type=bess", path.to_str().expect("UTF-8")];
    let launch = Options::default().launch(&lab);
    let mut process = launch.args(arguments).spawn();
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let machine = wait_until("a connection", CONNECT, || {
        let address = SocketAddrUnix::new(&path).map_err(|error| error.to_string())?;
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(kind.0, kind.1, flags, None).map_err(|e| e.to_string())?;
        connect(&socket, &address).map_err(|error| error.to_string())?;
        Ok(socket)
    });
    let mac = [2, 0, 0, 0, 0, 7];
    let mut who_has = [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    who_has.extend(mac);
    who_has.extend([10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    let answer = wait_until("the gateway's answer", CONNECT, || {
        rustix::io::write(&machine, &who_has).map_err(|error| error.to_string())?;
        let mut frame = [0; 2048];
        let received = recv(&machine, &mut frame, RecvFlags::DONTWAIT);
        let (length, _) = received.map_err(|error| error.to_string())?;
        Ok(frame[..length].to_vec())
    });
    assert_eq!(answer[..6], mac);
    assert_eq!(answer[28..32], GATEWAY_V4.octets(), "{answer:?}");
    assert!(!path.exists(), "one machine is served");
    drop(machine);
    let ended = process.wait(Duration::from_secs(5));
    assert_eq!(ended.and_then(|status| status.code()), Some(1), "{process}");
    assert!(process.stderr().contains("virtual machine"), "{process}");
}

/// The caller opens the TAP and gives its descriptor.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_tap_that_the_caller_has_opened_is_served() {
    let lab = Lab::direct();
    let container = Container::start(&lab, None);
    let tap = container.namespace.enter(|| Tap::create("tap0", 1));
    let (mut queues, _) = tap.expect("a TAP as root").into_fds();
    let tap = queues.pop().expect("one queue");
    let number = tap.as_raw_fd().to_string();
    for command in [
        "link set tap0 up",
        "addr add 10.0.2.100/24 dev tap0",
        "route add default via 10.0.2.2",
    ] {
        container.namespace.ip(command);
    }
    let launch = Options::default().launch(&lab).keep(tap);
    let _process = launch.args(["--netns-type=tapfd", &number]).spawn();
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let data = vec![7; 200_000];
    wait_until("a connection", CONNECT, || {
        let echoed = connect_and_echo(&container.namespace, server.address, &data);
        echoed.map_err(|error| error.to_string())
    });
    ping(&container.namespace, GATEWAY_V4.into(), 56);
}

/// As slirp4netns: neither a descriptor that nobody reads nor one that is not open keeps it from running,
/// and an exit descriptor that is not open is the caller's end.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn descriptors_that_are_not_open_are_no_mistakes() {
    let lab = Lab::direct();
    let container = Container::start(&lab, None);
    let pid = container.pid().to_string();
    let socket = lab.directory().join("api.sock");
    let api = format!("--api-socket={}", socket.display());
    let launch = Options::default().launch(&lab);
    let arguments = ["-c", "--ready-fd=77", "--exit-fd=78", &api, &pid, "tap0"];
    let done = launch.args(arguments).run(Duration::from_secs(5));
    assert_eq!(done.code(), Some(0), "{done}");
    assert!(!socket.exists());

    let (reader, ready) = std::io::pipe().expect("a pipe");
    drop(reader);
    let ready = OwnedFd::from(ready);
    let option = format!("--ready-fd={}", ready.as_raw_fd());
    let launch = Options::default().launch(&lab).keep(ready);
    let arguments = ["-c", "-6", "--mtu=576", option.as_str(), &pid, "tap0"];
    let mut process = launch.args(arguments).spawn();
    ping_until(&container, GATEWAY_V4.into());
    assert!(process.wait(Duration::ZERO).is_none(), "{process}");
    let addresses = container.namespace.ip("-6 -o addr show tap0 scope global");
    assert_eq!(addresses, "", "an MTU of 576 has no IPv6");
}

fn ping_until(container: &Container, to: IpAddr) {
    wait_until("an answer", CONNECT, || {
        let ping = container.namespace.command("ping");
        let arguments = format!("-n -c 1 -W 1 {to}");
        let done = ping.args(arguments.split(' ')).run(Duration::from_secs(3));
        done.success().then_some(()).ok_or(done.to_string())
    });
}

/// Callers that look for `slirp4netns` are given a link of that name.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn under_the_name_slirp4netns_it_is_slirp4netns() {
    let lab = Lab::direct();
    let link = lab.directory().join("slirp4netns");
    std::os::unix::fs::symlink(program(), &link).expect("a link");
    let done = Launch::new(&link).args(["--help"]).run(CONNECT);
    let usage = format!(
        "Usage: {} [OPTION]... PID|PATH|FD [TAPNAME]",
        link.display()
    );
    assert_eq!(done.stdout.lines().next(), Some(usage.as_str()), "{done}");
    let done = Launch::new(&link).args(["--foo"]).run(CONNECT);
    let refused = format!("{}: unrecognized option '--foo'", link.display());
    assert_eq!(done.stderr.lines().next(), Some(refused.as_str()), "{done}");
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
    wait_until("a connection", CONNECT, || {
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

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn an_outbound_address_is_used_everywhere() {
    let lab = Lab::direct();
    let second: IpAddr = Ipv4Addr::new(192, 0, 2, 7).into();
    lab.host.ip(&format!("addr add {second}/24 dev eth0"));
    let option = format!("--outbound-addr={second}");
    // Towards the host's loopback too.
    let local = TcpServer::echo(&lab.host, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
    let container = Container::start(&lab, None);
    let probe =
        Options::default()
            .launch(&lab)
            .args(["-c", &option, &container.pid().to_string(), "tap0"]);
    let _process = probe.spawn();
    ping_until(&container, GATEWAY_V4.into());
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let echoed = connect_and_echo(&container.namespace, server.address, b"from the second");
    echoed.expect("a connection");
    assert_eq!(server.log.peers(), [second]);
    let gateway = SocketAddr::new(GATEWAY_V4.into(), local.address.port());
    let echoed = connect_and_echo(&container.namespace, gateway, b"to loopback");
    echoed.expect("a connection");
    assert_eq!(local.log.peers(), [second]);
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
