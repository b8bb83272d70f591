//! The callers, with their own command lines.

use std::net::SocketAddr;
use std::time::Duration;

use crate::caller::{Caller, has};
use crate::lab::servers::TcpServer;
use crate::lab::{Lab, REMOTE_V4};

/// For a caller with all its processes.
const LIMIT: Duration = Duration::from_secs(60);
const GONE: Duration = Duration::from_secs(10);

/// Asks a server at the host's loopback until it answers; prints the answer.
const ASK: &str = r#"
ask() {
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        answer=$(busybox nc -w 2 127.0.0.1 $1 < /dev/null 2> /dev/null)
        test -n "$answer" && break
        sleep 0.3
    done
    echo "answer: $answer"
}"#;

/// A command inside that reaches a server of the world.
fn outwards(server: &TcpServer) -> String {
    let (ip, port) = (server.address.ip(), server.address.port());
    format!("echo across | busybox nc -w 3 {ip} {port}")
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn rootlesskit_reaches_the_world_with_its_sandbox_options() {
    if !has(&["rootlesskit", "newuidmap", "busybox"]) {
        return;
    }
    let lab = Lab::direct();
    let caller = Caller::new(&lab);
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let inside = outwards(&server);
    let inside = format!("ping -n -c 1 -W 3 10.0.2.2 | grep -c '1 received'; {inside}");
    let script = format!(
        "rootlesskit --net=slirp4netns --slirp4netns-binary=$SLIRP --slirp4netns-sandbox=true \
         --slirp4netns-seccomp=true --disable-host-loopback --mtu 65520 --copy-up=/etc \
         sh -c \"{inside}\""
    );
    let done = caller.script(&script).run(LIMIT);
    assert!(done.success(), "{done}");
    assert_eq!(done.stdout, "1\nacross\n", "{done}");
    lab.assert_nothing_left(&[], GONE);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn rootlesskit_publishes_ports_with_both_of_its_drivers() {
    if !has(&["rootlesskit", "newuidmap", "busybox"]) {
        return;
    }
    let lab = Lab::direct();
    let caller = Caller::new(&lab);
    for driver in ["builtin", "slirp4netns"] {
        let script = format!(
            "{ASK}
             rootlesskit --net=slirp4netns --slirp4netns-binary=$SLIRP --mtu 65520 \
                --port-driver={driver} -p 127.0.0.1:18080:80/tcp --copy-up=/etc \
                busybox nc -l -p 80 -e /bin/echo from-inside &
             ask 18080; wait $!"
        );
        let done = caller.script(&script).run(LIMIT);
        assert!(done.success(), "{driver}: {done}");
        assert_eq!(done.stdout, "answer: from-inside\n", "{driver}: {done}");
        lab.assert_nothing_left(&[], GONE);
    }
}

/// bubblewrap tells its child's process and waits, as flatpak's and others' callers have it.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bubblewrap_waits_for_its_network() {
    if !has(&["bwrap", "busybox"]) {
        return;
    }
    let lab = Lab::direct();
    let caller = Caller::new(&lab);
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let inside = outwards(&server);
    let script = format!(
        "mkfifo block ready
         bwrap --dev-bind / / --unshare-user --uid 0 --gid 0 --unshare-net \
            --info-fd 4 --block-fd 5 sh -c \"{inside}\" 4> info 5<> block &
         until grep -q '}}' info; do sleep 0.1; done
         pid=$(sed -n 's/.*child-pid\": \\([0-9]*\\).*/\\1/p' info)
         $SLIRP -c --ready-fd=6 $pid tap0 6> ready > log 2>&1 & read -r one < ready
         echo > block
         wait"
    );
    let done = caller.script(&script).run(LIMIT);
    assert!(done.success(), "{done}");
    assert_eq!(done.stdout, "across\n", "{done}");
    lab.assert_nothing_left(&[], GONE);
}

/// podman's configuration, and an image of busybox alone.
const PODMAN: &str = r#"
mkdir -p .config/containers image/bin image/etc image/tmp
printf '[engine]\nnetwork_cmd_path = "%s"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n[containers]\nlog_driver = "k8s-file"\n' "$SLIRP" > .config/containers/containers.conf
printf '[storage]\ndriver = "vfs"\n' > .config/containers/storage.conf
cp /bin/busybox image/bin/
for name in sh nc ip cat sleep echo grep; do ln -sf busybox image/bin/$name; done
tar -C image -c . | podman import - small > import.log 2>&1 || { cat import.log; exit 77; }
"#;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn podman_runs_containers_and_publishes_ports_with_both_handlers() {
    if !has(&["podman", "runc", "newuidmap", "busybox", "tar"]) {
        return;
    }
    let lab = Lab::direct();
    let caller = Caller::new(&lab);
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let (ip, port) = (server.address.ip(), server.address.port());
    let done = caller.script(PODMAN).run(LIMIT);
    if done.code() == Some(77) {
        eprintln!("SKIPPED: podman does not run here: {done}");
        return;
    }
    for (options, subnet) in [
        ("slirp4netns", "10.0.2.100/24"),
        (
            "slirp4netns:enable_ipv6=true,mtu=1500,cidr=10.9.0.0/24",
            "10.9.0.100/24",
        ),
        (
            "slirp4netns:allow_host_loopback=true,outbound_addr=eth0",
            "10.0.2.100/24",
        ),
    ] {
        let inside =
            format!("ip -o addr show tap0 | grep -o {subnet}; echo across | nc -w 3 {ip} {port}");
        let script = format!("podman run --rm --network={options} small sh -c '{inside}'");
        let done = caller.script(&script).run(LIMIT);
        assert_eq!(
            done.stdout,
            format!("{subnet}\nacross\n"),
            "{options}: {done}"
        );
    }
    for handler in ["rootlesskit", "slirp4netns"] {
        let script = format!(
            "{ASK}
             podman run -d --name web --network=slirp4netns:port_handler={handler} \
                -p 127.0.0.1:18081:80 small \
                sh -c 'while true; do nc -l -p 80 -e /bin/echo hello; done' > /dev/null
             podman run -d --name other --network=slirp4netns small sleep 100 > /dev/null
             ask 18081
             podman kill web other > /dev/null
             podman rm -f web other > /dev/null"
        );
        let done = caller.script(&script).run(LIMIT);
        assert_eq!(done.stdout, "answer: hello\n", "{handler}: {done}");
        let left = slirps_of(&lab);
        assert!(left.is_empty(), "{handler}: {left:?}");
    }
}

/// The programs under test that still run for the laboratory; podman's own pause process stays.
fn slirps_of(lab: &Lab) -> Vec<String> {
    let deadline = std::time::Instant::now() + GONE;
    loop {
        let survivors = lab.survivors(&[]);
        let names = survivors.iter().map(|survivor| format!("{survivor:?}"));
        let slirps: Vec<String> = names.filter(|name| name.contains("slirp4netns")).collect();
        if slirps.is_empty() || std::time::Instant::now() > deadline {
            return slirps;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
