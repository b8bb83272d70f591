//! Connections that do not come about, and connections that end one direction at a time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::lab::container::{Options, Slirp};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, noise};
use crate::lab::{Lab, REMOTES, SILENT_V4, SILENT_V6, UNREACHABLE_V4, UNREACHABLE_V6, wait_until};

/// Nothing listens here on the remote.
const CLOSED_PORT: u16 = 9;

fn errno_of(result: io::Result<TcpStream>) -> Errno {
    let error = result.expect_err("nothing there accepts");
    Errno::from_io_error(&error).unwrap_or_else(|| panic!("no answer of the kernel: {error}"))
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_closed_port_refuses_within_20_ms() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for remote in REMOTES {
        let closed = SocketAddr::new(remote, CLOSED_PORT);
        // The first may have to wait for neighbours to be resolved on the way.
        let _ = slirp.namespace().connect_once(closed, CONNECT);
        for _ in 0..5 {
            let started = Instant::now();
            let error = errno_of(slirp.namespace().connect_once(closed, CONNECT));
            let elapsed = started.elapsed();
            assert_eq!(error, Errno::CONNREFUSED, "{remote}");
            assert!(elapsed < Duration::from_millis(20), "{remote}: {elapsed:?}");
        }
    }
}

/// The host gives up after its own time; the container's connect ends with the same error, and
/// not before the host has given up.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_silent_host_times_out_as_the_hosts_kernel_says() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    // SYNs at 0 and 1 s, the end at 3 s on the host; at 0, 1, 3 and the end at 7 s inside.
    lab.host.sysctl("ipv4/tcp_syn_retries", "1");
    slirp.namespace().sysctl("ipv4/tcp_syn_retries", "2");
    for silent in [IpAddr::V4(SILENT_V4), IpAddr::V6(SILENT_V6)] {
        let silent = SocketAddr::new(silent, 80);
        let limit = Duration::from_secs(15);
        let on_host = errno_of(lab.host.connect(silent, limit));
        assert_eq!(on_host, Errno::TIMEDOUT, "on the host itself, {silent}");
        let started = Instant::now();
        let inside = errno_of(slirp.namespace().connect(silent, limit));
        let elapsed = started.elapsed();
        assert_eq!(inside, on_host, "{silent} after {elapsed:?}");
        assert!(elapsed > Duration::from_secs(2), "{silent}: {elapsed:?}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn an_unreachable_host_is_reported_as_unreachable() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for unreachable in [IpAddr::V4(UNREACHABLE_V4), IpAddr::V6(UNREACHABLE_V6)] {
        fails_at_once_as_on_the_host(&lab, &slirp, unreachable);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_host_without_a_route_reports_an_unreachable_network() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    lab.host.ip("-4 route del default");
    lab.host.ip("-6 route del default");
    for remote in REMOTES {
        fails_at_once_as_on_the_host(&lab, &slirp, remote);
    }
}

fn fails_at_once_as_on_the_host(lab: &Lab, slirp: &Slirp, address: IpAddr) {
    let address = SocketAddr::new(address, 80);
    let on_host = errno_of(lab.host.connect(address, CONNECT));
    assert!(
        [Errno::NETUNREACH, Errno::HOSTUNREACH].contains(&on_host),
        "on the host itself, {address}: {on_host}"
    );
    let started = Instant::now();
    let inside = errno_of(slirp.namespace().connect(address, CONNECT));
    let elapsed = started.elapsed();
    assert_eq!(inside, on_host, "{address}");
    assert!(elapsed < Duration::from_secs(1), "{address}: {elapsed:?}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_server_may_still_send_after_the_client_has_finished() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for remote in REMOTES {
        // Answers only once it has seen the end of what the client sends.
        let server = TcpServer::start(&lab.remote, SocketAddr::new(remote, 0), |mut stream| {
            let mut request = Vec::new();
            stream.read_to_end(&mut request)?;
            std::thread::sleep(Duration::from_millis(300));
            stream.write_all(&request)
        });
        let request = noise(3_000_000, 7);
        let mut stream = slirp
            .namespace()
            .connect(server.address, CONNECT)
            .expect("connected");
        stream.write_all(&request).expect("sent");
        stream.shutdown(Shutdown::Write).expect("finished");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the answer");
        assert!(answer == request, "{} bytes from {remote}", answer.len());
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_client_may_still_send_after_the_server_has_finished() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for remote in REMOTES {
        let (report, received) = std::sync::mpsc::channel();
        let server = TcpServer::start(
            &lab.remote,
            SocketAddr::new(remote, 0),
            move |mut stream| {
                stream.write_all(b"go on")?;
                stream.shutdown(Shutdown::Write)?;
                let mut request = Vec::new();
                stream.read_to_end(&mut request)?;
                report.send(request).map_err(io::Error::other)
            },
        );
        let mut stream = slirp
            .namespace()
            .connect(server.address, CONNECT)
            .expect("connected");
        let mut greeting = Vec::new();
        stream.read_to_end(&mut greeting).expect("the greeting");
        assert_eq!(greeting, b"go on");
        std::thread::sleep(Duration::from_millis(300));
        let request = noise(3_000_000, 8);
        stream.write_all(&request).expect("sent");
        stream.shutdown(Shutdown::Write).expect("finished");
        let seen = received.recv_timeout(Duration::from_secs(20));
        assert!(seen.expect("the server's report") == request, "{remote}");
    }
}

/// A reset is a reset at the other end, whichever end it comes from.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_reset_crosses_both_ways() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for remote in REMOTES {
        let at = SocketAddr::new(remote, 0);
        let resetting = TcpServer::start(&lab.remote, at, |mut stream| {
            stream.read_exact(&mut [0])?;
            reset(stream)
        });
        let mut stream = slirp
            .namespace()
            .connect(resetting.address, CONNECT)
            .expect("connected");
        stream.write_all(b"x").expect("sent");
        let error = stream.read(&mut [0]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{remote}");

        let (report, seen) = std::sync::mpsc::channel();
        let reading = TcpServer::start(&lab.remote, at, move |mut stream| {
            stream.write_all(b"x")?;
            let kind = stream.read(&mut [0]).map_err(|error| error.kind());
            report.send(kind).map_err(io::Error::other)
        });
        let mut stream = slirp
            .namespace()
            .connect(reading.address, CONNECT)
            .expect("connected");
        stream.read_exact(&mut [0]).expect("accepted");
        reset(stream).expect("closed");
        let seen = seen.recv_timeout(Duration::from_secs(5));
        let seen = seen.expect("the server's report");
        assert_eq!(seen, Err(ErrorKind::ConnectionReset), "{remote}");
    }
}

/// Closes with a reset: a linger of no time.
fn reset(stream: TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Back pressure: what nobody reads stays with the sender.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_server_that_does_not_read_stops_the_sender_and_then_gets_every_byte() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    let remote = REMOTES[0];
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let (report, received) = std::sync::mpsc::channel();
    let server = TcpServer::start(
        &lab.remote,
        SocketAddr::new(remote, 0),
        move |mut stream| {
            let waited = wait.lock().expect("one connection").recv();
            waited.map_err(io::Error::other)?;
            let mut request = Vec::new();
            stream.read_to_end(&mut request)?;
            report.send(request).map_err(io::Error::other)
        },
    );
    let mut stream = slirp
        .namespace()
        .connect(server.address, CONNECT)
        .expect("connected");
    stream.set_nonblocking(true).expect("nonblocking");
    let block = noise(1 << 20, 9);
    let mut sent = Vec::new();
    // Until nothing more has been taken for a second.
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_secs(1) {
        match stream.write(&block) {
            Ok(written) => {
                sent.extend_from_slice(&block[..written]);
                last = Instant::now();
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert!(sent.len() < 256 << 20, "nothing holds the sender back");
    }
    go.send(()).expect("the server waits");
    stream.set_nonblocking(false).expect("blocking");
    stream.shutdown(Shutdown::Write).expect("finished");
    let received = received.recv_timeout(Duration::from_secs(20));
    assert!(received.expect("the server's report") == sent);
}

/// A client that closes before anybody has accepted tells nobody: the host's attempt ends with the
/// host's own time, and nothing is kept of it.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn an_attempt_that_timed_out_leaves_no_socket_on_the_host() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    lab.host.sysctl("ipv4/tcp_syn_retries", "1");
    for silent in [IpAddr::V4(SILENT_V4), IpAddr::V6(SILENT_V6)] {
        let silent = SocketAddr::new(silent, 80);
        let limit = Duration::from_millis(300);
        let attempt = slirp.namespace().connect(silent, limit);
        let error = attempt.expect_err("not accepted by anybody");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{silent}");
    }
    wait_until(
        "no attempt is left",
        Duration::from_secs(15),
        || match attempts_on_host(&lab) {
            0 => Ok(()),
            left => Err(format!("{left} in SYN_SENT")),
        },
    );
}

/// How many connects of the host's are without an answer yet.
pub fn attempts_on_host(lab: &Lab) -> usize {
    lab.host.enter(|| {
        let lists = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
        let lists = lists.map(|path| std::fs::read_to_string(path).expect("a list of sockets"));
        // The fourth column is the state; 02 is SYN_SENT.
        let lines = lists.iter().flat_map(|list| list.lines());
        lines
            .filter(|line| line.split_whitespace().nth(3) == Some("02"))
            .count()
    })
}
