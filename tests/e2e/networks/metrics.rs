//! What Prometheus is told: by a network's process, and by `cnet metrics` of all of them.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::Place;
use crate::lab::Lab;
use crate::lab::run::SHORT;

const ASK: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

/// The value of the sample that begins so.
fn sample(page: &str, start: &str) -> Option<f64> {
    let line = page.lines().find(|line| line.starts_with(start))?;
    line.rsplit(' ').next()?.parse().ok()
}

// Longer than 60 lines: the three ways to the same page.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn networks_tell_prometheus_what_they_count() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    for network in ["lan", "dmz"] {
        place.done(&format!("network create {network}"));
    }
    let web = place.join("lan", "web", "");
    let db = place.join("lan", "db", "");
    let other = place.join("dmz", "other", "");
    web.assert_pings(&lab, &db.v4.to_string());
    let asked = web
        .program(&lab, "getent")
        .args(["ahosts", "db"])
        .run(SHORT);
    assert!(asked.success(), "{asked}");

    let page = place.done("metrics").stdout;
    let of_web =
        |name: &str| format!("{name}{{network=\"lan\",container=\"web\",interface=\"eth0\"}}");
    for name in [
        "cnet_port_transmit_packets_total",
        "cnet_port_receive_packets_total",
    ] {
        let count = sample(&page, &of_web(name));
        assert!(count.is_some_and(|count| count > 0.0), "{name}: {page}");
    }
    let local = "cnet_dns_queries_total{network=\"lan\",container=\"web\",outcome=\"local\"}";
    assert!(
        sample(&page, local).is_some_and(|count| count > 0.0),
        "{page}"
    );
    for network in ["lan", "dmz"] {
        let up = format!("cnet_network_up{{network=\"{network}\"}}");
        assert_eq!(sample(&page, &up), Some(1.0), "{page}");
    }
    assert_eq!(page.matches("# TYPE cnet_flows gauge").count(), 1, "{page}");

    // By the network's own process, on its control socket.
    let socket = place.runtime.join("cnet/dmz/api.sock");
    let mut stream = UnixStream::connect(socket).expect("the network runs");
    stream.set_read_timeout(Some(SHORT)).expect("a time");
    stream.write_all(ASK).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let interface = format!("container=\"other\",interface=\"{}\"", other.interface);
    assert!(
        answer.contains(&interface) && !answer.contains("lan"),
        "{answer}"
    );

    // Over TCP, for all networks, until the program is ended.
    let mut server = place.cnet("metrics --listen 9199").spawn();
    server.wait_for_line(SHORT, |line| line.ends_with("/metrics"));
    let address: SocketAddr = "127.0.0.1:9199".parse().expect("an address");
    let mut stream = lab.host.connect(address, SHORT).expect("it listens");
    stream.write_all(ASK).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(
        answer.contains("network=\"lan\"") && answer.contains("network=\"dmz\""),
        "{answer}"
    );
    server.signal(rustix::process::Signal::TERM);
    let ended = server.wait(Duration::from_secs(5)).expect("it ends");
    assert!(ended.success(), "{server}");
}
