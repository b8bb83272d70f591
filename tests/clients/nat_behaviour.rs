//! What RFC 5780's tests say of the NAT, by coturn's `turnutils_natdiscovery` against its server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::caller::has;
use crate::lab::namespace::Namespace;
use crate::lab::process::Running;
use crate::lab::run::{Held, Options};
use crate::lab::{HOST_V4, HOST_V6, Lab, REMOTES, wait_until};

const LIMIT: Duration = Duration::from_secs(20);

/// A STUN server needs a second address of each family: the remote's, and these.
const SECOND: [&str; 2] = ["198.51.100.3", "2001:db8:2::3"];

/// coturn's server on the remote, with two addresses of each family and two ports.
fn server(lab: &Lab) -> Running {
    let [v4, v6] = SECOND;
    lab.remote.ip(&format!("addr add {v4}/24 dev eth0"));
    lab.remote.ip(&format!("addr add {v6}/64 dev eth0 nodad"));
    let pid = lab.directory().join("turnserver.pid");
    let options =
        "-n --stun-only --no-auth --no-tls --no-dtls --no-cli --log-file stdout --pidfile";
    let server = lab.remote.command("turnserver");
    let server = server.args(options.split_whitespace()).arg(&pid);
    let addresses = REMOTES.map(|remote| remote.to_string());
    let addresses = addresses.iter().map(String::as_str).chain(SECOND);
    let server = addresses.fold(server, |server, address| server.args(["-L", address]));
    let server = server.spawn();
    wait_until("the STUN server", LIMIT, || {
        let said = discover(&lab.host, "-m", REMOTES[1]);
        let answered = said.contains("RFC 5780 response 2");
        answered.then_some(()).ok_or(said)
    });
    server
}

/// What one of the program's tests says.
fn discover(from: &Namespace, test: &str, server: IpAddr) -> String {
    let program = from.command("turnutils_natdiscovery");
    let done = program
        .args(test.split(' '))
        .arg(server.to_string())
        .run(LIMIT);
    done.stdout + &done.stderr
}

/// The addresses that `said` gives behind `what`.
fn told(said: &str, what: &str) -> Vec<SocketAddr> {
    let lines = said.lines().filter_map(|line| line.split_once(what));
    let addresses = lines.map(|(_, address)| {
        // IPv6 has no brackets there.
        let (ip, port) = address.trim().rsplit_once(':').expect("a port");
        let ip = ip.parse().expect("an address");
        SocketAddr::new(ip, port.parse().expect("a port"))
    });
    addresses.collect()
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn natdiscovery_finds_endpoint_independence_hairpinning_and_kept_ports() {
    if !has(&["turnserver", "turnutils_natdiscovery"]) {
        return;
    }
    let lab = Lab::direct();
    let _server = server(&lab);
    let held = Held::start(&lab, &Options::default());
    for (remote, host) in REMOTES
        .into_iter()
        .zip([HOST_V4.into(), IpAddr::from(HOST_V6)])
    {
        for (test, says) in [
            ("-m", "NAT with Endpoint Independent Mapping!"),
            ("-f", "NAT with Endpoint Independent Filtering!"),
            ("-H", "successful hairpinning"),
            // The answer that is asked for three seconds later comes by the old mapping.
            ("-t -T 3", "RFC 5780 response 2"),
        ] {
            let said = discover(&held.namespace, test, remote);
            assert!(said.contains(says), "{test} {remote}: {said}");
            let (mapped, local) = (
                told(&said, "UDP reflexive addr: "),
                told(&said, "Local addr: : "),
            );
            assert!(!mapped.is_empty() && mapped.len() == local.len(), "{said}");
            for (mapped, local) in mapped.iter().zip(local) {
                assert_eq!(*mapped, SocketAddr::new(host, local.port()), "{said}");
            }
        }
    }
}
