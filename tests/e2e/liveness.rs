//! A far end that is gone is noticed in the container as it is on the host: by keepalive, and by bytes
//! that stay unacknowledged.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use cnet_tap::socket::unacknowledged;
use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
    set_tcp_user_timeout,
};

use crate::lab::container::{Options, Slirp};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, echo};
use crate::lab::{HOST_V4, HOST_V6, Lab, REMOTES};

const SECOND: Duration = Duration::from_secs(1);
/// Within which a dead far end is to be noticed: a second of silence, three probes, and room.
const NOTICED: Duration = Duration::from_secs(9);

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_dead_far_end_is_noticed_by_keepalive_and_by_user_timeout_and_one_that_lives_is_not() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    let servers = REMOTES.map(|remote| TcpServer::echo(&lab.remote, SocketAddr::new(remote, 0)));
    let connect = |server: &TcpServer| {
        let stream = slirp.namespace().connect(server.address, CONNECT);
        let stream = stream.expect("connected");
        stream.set_read_timeout(Some(NOTICED)).expect("a limit");
        stream.set_nodelay(true).expect("an option");
        stream
    };
    let probing = servers.each_ref().map(|server| {
        let stream = connect(server);
        set_socket_keepalive(&stream, true).expect("an option");
        set_tcp_keepidle(&stream, SECOND).expect("an option");
        set_tcp_keepintvl(&stream, SECOND).expect("an option");
        set_tcp_keepcnt(&stream, 3).expect("an option");
        stream
    });
    let writing = servers.each_ref().map(|server| {
        let stream = connect(server);
        set_tcp_user_timeout(&stream, 1500).expect("an option");
        stream
    });
    std::thread::sleep(5 * SECOND / 2);
    let mut all: Vec<TcpStream> = probing.into_iter().chain(writing).collect();
    for stream in &mut all {
        echo(stream, b"alive").expect("the echo");
    }
    let acknowledged = |stream: &TcpStream| unacknowledged(stream).expect("a TCP socket") == 0;
    assert!(all.iter().all(acknowledged));
    lab.remote
        .ip(&format!("-4 route add blackhole {HOST_V4}/32"));
    lab.remote
        .ip(&format!("-6 route add blackhole {HOST_V6}/128"));
    for stream in &mut all[2..] {
        stream.write_all(b"into the dark").expect("taken");
    }
    std::thread::sleep(SECOND / 2);
    assert!(!all[2..].iter().any(acknowledged), "acknowledged by nobody");
    let before = Instant::now();
    for stream in &mut all {
        let error = stream.read(&mut [0]).expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert!(before.elapsed() < NOTICED, "its own limit");
    }
}
