//! The host loses its way out, or its address: containers are told at once, and go on once it is back.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::lab::container::{Options, Slirp};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{CONNECT, connect_and_echo, echo_datagram};
use crate::lab::{GATEWAY_V4, HOST_V4, Lab, REMOTE_V4, wait_until};

/// How soon a container is told that there is no way.
const TOLD: Duration = Duration::from_secs(1);
/// How soon new flows work once there is one.
const BACK: Duration = Duration::from_secs(2);

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn an_upstream_that_is_down_is_told_and_new_flows_work_when_it_is_back() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    let tcp = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let udp = UdpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let works = || {
        connect_and_echo(slirp.namespace(), tcp.address, b"out")?;
        echo_datagram(slirp.namespace(), udp.address, 100)
    };
    works().expect("a way out");
    for other in [HOST_V4, [192, 0, 2, 77].into()] {
        lab.host.ip("link set eth0 down");
        let started = Instant::now();
        let refused = slirp.namespace().connect(tcp.address, CONNECT);
        let error = refused.expect_err("there is no way out");
        let unreachable = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable];
        assert!(unreachable.contains(&error.kind()), "{error}");
        assert!(started.elapsed() < TOLD, "{:?}", started.elapsed());

        // Back, the second time with another address.
        lab.host.ip("-4 addr flush dev eth0");
        lab.host.ip(&format!("addr add {other}/24 dev eth0"));
        lab.host.ip("link set eth0 up");
        lab.host
            .ip(&format!("-4 route add default via {GATEWAY_V4}"));
        let back = Instant::now();
        wait_until("new flows", BACK, || {
            works().map_err(|error| error.to_string())
        });
        println!("from {other}: new flows after {:?}", back.elapsed());
        let seen = tcp.log.peers();
        assert_eq!(seen.last(), Some(&other.into()), "{seen:?}");
    }
}
