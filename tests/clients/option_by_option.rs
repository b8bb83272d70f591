//! `cnet-slirp` beside slirp4netns: the same options, the same question inside the container, the same
//! answer. Where the answers are meant to differ, the row says why.

use std::path::Path;
use std::time::Duration;

use crate::caller::has;
use crate::lab::container::{Container, program};
use crate::lab::process::Launch;
use crate::lab::{Lab, wait_until};

const READY: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(20);

const ADDRESSES: &str = "ip -4 -o addr show tap0 | grep -o 'inet [^ ]*'; ip -4 route show default \
     | grep -o 'via [^ ]* dev tap0'; cat /sys/class/net/tap0/mtu";
const ROUTE_V6: &str = "for i in 1 2 3 4 5 6 7 8 9; do ip -6 route show default | grep -q fe80::2 \
     && break; sleep 1; done; ip -6 route show default | grep -o 'via fe80::2' | head -1; \
     ip -6 -o addr show tap0 scope global | grep -c /64 | grep -q '[12]' && echo global";
const LEASE: &str = "busybox udhcpc -i tap0 -n -q -f -t 3 -T 1 -s /bin/true 2>&1 \
     | grep -o 'lease of [0-9.]*'";
const LEASE_OF_22: &str = "busybox udhcpc -i tap0 -n -q -f -t 3 -T 1 -r 10.0.2.22 -s /bin/true 2>&1 \
     | grep -o 'lease of [0-9.]*'";
const PING_DNS: &str = "ping -n -c 1 -W 2 10.0.2.3 | grep -o '1 received'";
/// Another port of the DNS address, and the host's loopback where that is out of reach.
const CONNECT_DNS: &str = "busybox nc -w 2 10.0.2.3 80 < /dev/null 2>&1 | grep -o 'unreachable'";
const CONNECT_GATEWAY: &str = "busybox nc -w 2 10.0.2.2 9 < /dev/null 2>&1 \
     | grep -o 'unreachable\\|refused'";

/// Options, and what is asked inside the container.
const ROWS: &[(&str, &str)] = &[
    ("-c", ADDRESSES),
    ("-c --mtu=9000", ADDRESSES),
    ("-c -m +1400", ADDRESSES),
    ("-c --cidr=10.77.0.0/16", ADDRESSES),
    (
        "-c --macaddress=02:11:22:33:44:55",
        "cat /sys/class/net/tap0/address",
    ),
    ("-c -6", ROUTE_V6),
    ("-c -6 -m 576", "ip -6 -o addr show tap0 scope global"),
    ("-c", LEASE),
    ("-c", LEASE_OF_22),
    ("-c --disable-dns", PING_DNS),
    ("-c", CONNECT_DNS),
    ("-c", CONNECT_GATEWAY),
    ("-c --disable-host-loopback", CONNECT_GATEWAY),
    ("-c --outbound-addr=eth0", CONNECT_GATEWAY),
    // An address that the host does not have.
    ("-c --outbound-addr=203.0.113.200", CONNECT_GATEWAY),
    ("-c --enable-sandbox --enable-seccomp", ADDRESSES),
];

/// Command lines that are refused; PID stands for the container's.
const REFUSED: &[&str] = &[
    "",
    "PID",
    "0 tap0",
    "x tap0",
    "-c --mtu=0 PID tap0",
    "-c --mtu=65522 PID tap0",
    "-c --mtu=5x PID tap0",
    "-c --cidr=10.0.2.1/24 PID tap0",
    "-c --cidr=10.0.2.0/26 PID tap0",
    "-c --cidr=10.0.2.0/0 PID tap0",
    "-c --cidr=x PID tap0",
    "-c --cidr=300.0.0.0/8 PID tap0",
    "--exit-fd=-1 PID tap0",
    "--ready-fd=x PID tap0",
    "--netns-type=foo PID tap0",
    "--netns-type=path /nonexistent tap0",
    "--target-type=foo PID tap0",
    "--userns-path=/nonexistent PID tap0",
    "--macaddress=02:00:00:00:00:01 PID tap0",
    "-c --macaddress=zz PID tap0",
    "-c --outbound-addr=no-such-if PID tap0",
    "-c PID tap%d",
    "--nonsense PID tap0",
    "--enable PID tap0",
    "--configure=1 PID tap0",
    "--target-type=bess --configure /x",
    "--target-type=bess --netns-type=path /x",
    "--target-type=bess /x tap0",
];

fn slirp(lab: &Lab, program: &Path) -> Launch {
    lab.mark(Launch::new(program))
}

/// The answer inside a container that `program` serves with `options`.
fn answer(lab: &Lab, program: &Path, options: &str, question: &str) -> String {
    let container = Container::start(lab, None);
    let pid = container.pid().to_string();
    let launch = slirp(lab, program).args(options.split_whitespace());
    let process = launch.args([&pid, "tap0"]).spawn();
    wait_until("the interface's address", READY, || {
        let addresses = container.namespace.ip("-4 -o addr");
        let there = addresses.contains("tap0");
        there
            .then_some(())
            .ok_or_else(|| format!("{addresses}{process}"))
    });
    let shell = container.namespace.command("sh");
    shell.args(["-c", question]).run(ANSWER).stdout
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn each_option_has_the_effect_that_it_has_in_slirp4netns() {
    if !has(&["slirp4netns", "busybox"]) {
        return;
    }
    let lab = Lab::direct();
    let mut different = Vec::new();
    for (options, question) in ROWS {
        let original = answer(&lab, Path::new("slirp4netns"), options, question);
        let ours = answer(&lab, &program(), options, question);
        if ours != original {
            different.push(format!("{options}: {question}\n  {original:?}\n  {ours:?}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_slirp4netns_refuses_is_refused() {
    if !has(&["slirp4netns"]) {
        return;
    }
    let lab = Lab::direct();
    let container = Container::start(&lab, None);
    let mut different = Vec::new();
    for line in REFUSED {
        let line = line.replace("PID", &container.pid().to_string());
        let code = |program: &Path| {
            let launch = slirp(&lab, program).args(line.split_whitespace());
            launch.run(READY).code()
        };
        let codes = [code(Path::new("slirp4netns")), code(&program())];
        if codes != [Some(1); 2] {
            different.push(format!("{line}: {codes:?}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}
