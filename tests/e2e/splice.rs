//! Local splice: a published port reached from the host's own loopback, past the TAP.
//!
//! A spliced connection is told from one through the TAP by what the server sees as the client: its
//! own address, or the gateway's.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::container::{CONTAINER_V4, wait_for_ipv6};
use crate::lab::run::{self, Held};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, Payload, connect_and_echo, echo};
use crate::lab::{Lab, any, processes, wait_until};

const HOST_PORT: u16 = 8080;
const PORT: u16 = 80;

const LOOPBACKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Where clients on the host's loopback connect to.
const AT: SocketAddr = SocketAddr::new(LOOPBACKS[0], HOST_PORT);

fn published(lab: &Lab, user: run::Options) -> Held {
    let options = run::Options {
        arguments: format!("-p {HOST_PORT}:{PORT}"),
        ..user
    };
    let held = Held::start(lab, &options);
    wait_for_ipv6(&held.namespace);
    held
}

fn echo_server(held: &Held) -> TcpServer {
    TcpServer::echo(&held.namespace, any(AT.ip(), PORT))
}

fn connect(lab: &Lab) -> TcpStream {
    let stream = lab.host.connect(AT, CONNECT).expect("the published port");
    stream
        .set_read_timeout(Some(CONNECT))
        .expect("a limit of time");
    stream
}

/// What a process has open.
fn descriptors(pid: u32) -> usize {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
    open.expect("it lives").count()
}

/// The supplier: the child of `cnet run` with the command's network namespace, and cnet's own text.
fn supplier(held: &Held) -> Option<u32> {
    let parent = format!("PPid:\t{}", held.process.pid());
    let mut children = processes().filter(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| status.lines().any(|line| line == parent))
    });
    children.find(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).nth(1) == Some(b"run")
    })
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_server_sees_its_own_address_as_the_client() {
    let lab = Lab::direct();
    for user in [run::Options::default(), run::Options::ordinary_user()] {
        let held = published(&lab, user);
        for loopback in LOOPBACKS {
            let server = TcpServer::echo(&held.namespace, any(loopback, PORT));
            let at = SocketAddr::new(loopback, HOST_PORT);
            connect_and_echo(&lab.host, at, b"from the host").expect("the published server");
            let peers = server.log.peers();
            let own = held.namespace.ip(&format!("-o addr show to {}", peers[0]));
            assert!(own.contains("eth0"), "{peers:?} is not the container's");
        }
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bulk_is_spliced_both_ways() {
    let lab = Lab::direct();
    let held = published(&lab, run::Options::default());
    let payload = Payload::new(64 << 20, 5);
    let server = TcpServer::digest(&held.namespace, any(AT.ip(), PORT));
    payload.upload(&lab.host, AT).expect("upload");
    assert_eq!(server.log.peers(), [IpAddr::from(CONTAINER_V4)]);
    drop(server);
    let _server = TcpServer::source(&held.namespace, any(AT.ip(), PORT), &payload);
    payload.download(&lab.host, AT).expect("download");
}

/// Both ends of a stream pass, each by itself, and behind its data.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn half_closes_pass_both_ways() {
    let lab = Lab::direct();
    let held = published(&lab, run::Options::default());
    let server = TcpServer::start(&held.namespace, any(AT.ip(), PORT), |mut stream| {
        stream.write_all(b"hello")?;
        stream.shutdown(Shutdown::Write)?;
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard)?;
        match heard.as_slice() {
            b"goodbye" => Ok(()),
            other => panic!("heard {other:?}"),
        }
    });
    let mut stream = connect(&lab);
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("the server's end");
    assert_eq!(heard, b"hello");
    stream.write_all(b"goodbye").expect("the other way is open");
    stream.shutdown(Shutdown::Write).expect("our end");
    drop(server);

    let _server = echo_server(&held);
    let mut stream = connect(&lab);
    stream.write_all(b"all").expect("a connection");
    stream.shutdown(Shutdown::Write).expect("our end");
    heard.clear();
    stream.read_to_end(&mut heard).expect("the echo's end");
    assert_eq!(heard, b"all");
}

fn expect_reset(result: io::Result<usize>) {
    let error = result.expect_err("a reset");
    assert!(
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ),
        "{error}"
    );
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn resets_pass_both_ways() {
    let lab = Lab::direct();
    let held = published(&lab, run::Options::default());
    let (report, seen) = std::sync::mpsc::channel();
    let server = TcpServer::start(&held.namespace, any(AT.ip(), PORT), move |mut stream| {
        stream.write_all(b"ready")?;
        let met = stream.read(&mut [0]).map_err(|error| error.kind());
        report.send(met).map_err(io::Error::other)
    });
    let mut stream = connect(&lab);
    stream.read_exact(&mut [0; 5]).expect("the server");
    cnet_tap::socket::reset_on_close(&stream).expect("an option");
    drop(stream);
    let met = seen.recv_timeout(Duration::from_secs(5)).expect("an end");
    assert_eq!(met, Err(ErrorKind::ConnectionReset));
    drop(server);

    let _server = TcpServer::start(&held.namespace, any(AT.ip(), PORT), |mut stream| {
        stream.read_exact(&mut [0])?;
        stream.write_all(b"last words")?;
        // Closed with a byte unread, which the kernel answers with a reset.
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    });
    let mut stream = connect(&lab);
    stream.write_all(b"ab").expect("a connection");
    let mut words = [0; 10];
    stream.read_exact(&mut words).expect("what came before");
    assert_eq!(&words, b"last words");
    expect_reset(stream.read(&mut [0]));
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_refusal_is_one_and_loopback_is_not_published() {
    let lab = Lab::direct();
    let held = published(&lab, run::Options::default());
    let refused = || {
        let error = lab.host.connect(AT, CONNECT).expect_err("no one listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    };
    refused();
    let hidden = TcpServer::echo(&held.namespace, SocketAddr::new(AT.ip(), PORT));
    refused();
    assert_eq!(hidden.log.peers().len(), 0);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn urgent_data_stays_in_its_place() {
    let lab = Lab::direct();
    let held = published(&lab, run::Options::default());
    let _server = echo_server(&held);
    let mut stream = connect(&lab);
    for _ in 0..50 {
        stream.write_all(b"before").expect("a connection");
        let sent = rustix::net::send(&stream, b"!", SendFlags::OOB);
        assert_eq!(sent, Ok(1));
        stream.write_all(b"after").expect("a connection");
        let mut heard = [0; 12];
        stream.read_exact(&mut heard).expect("the echo");
        assert_eq!(&heard, b"before!after");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_thousand_connections_leave_nothing_behind() {
    let lab = Lab::direct();
    let held = published(&lab, run::Options::default());
    let server = echo_server(&held);
    let once = || connect_and_echo(&lab.host, AT, b"one of many").expect("the echo");
    // The stock of sockets and the spare pipes stay.
    (0..40).for_each(|_| once());
    let pid = held.process.pid();
    wait_until("all is closed", Duration::from_secs(2), || {
        let open = descriptors(pid);
        (open < 80).then_some(()).ok_or(format!("{open} open"))
    });
    let before = descriptors(pid);
    (0..1000).for_each(|_| once());
    // A refill may be on its way.
    wait_until("all is closed again", Duration::from_secs(2), || {
        let open = descriptors(pid);
        let kept = open <= before + 32;
        kept.then_some(()).ok_or(format!("{open}, not {before}"))
    });
    let own = IpAddr::from(CONTAINER_V4);
    assert!(server.log.peers().iter().all(|peer| *peer == own));
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn many_at_once_and_one_that_does_not_read() {
    let lab = Lab::direct();
    let held = published(&lab, run::Options::default());
    let _server = echo_server(&held);
    // Nobody reads the echo: this one fills up both ways, and holds nobody else up.
    let mut stuck = connect(&lab);
    stuck.set_nonblocking(true).expect("an option");
    let block = [0; 64 << 10];
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(500) {
        if let Err(error) = stuck.write_all(&block) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        }
    }
    let mut streams: Vec<TcpStream> = (0..200).map(|_| connect(&lab)).collect();
    for stream in &mut streams {
        echo(stream, b"not held up").expect("the echo");
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
}

/// Whoever ends the supplier gets the ordinary way, and connections that are there go on.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn without_the_supplier_connections_take_the_tap() {
    let lab = Lab::direct();
    let held = published(&lab, run::Options::default());
    let server = echo_server(&held);
    let mut before = connect(&lab);
    echo(&mut before, b"spliced").expect("the echo");
    for signal in [Signal::STOP, Signal::KILL] {
        let pid = supplier(&held).expect("a supplier");
        let process = Pid::from_raw(pid.cast_signed()).expect("a process id is not 0");
        kill_process(process, signal).expect("it lives");
        // More than there are in stock.
        for _ in 0..40 {
            connect_and_echo(&lab.host, AT, b"by the TAP").expect("the echo");
        }
        let last = server.log.peers().pop().expect("a client");
        assert_ne!(last, IpAddr::from(CONTAINER_V4), "after {signal:?}");
    }
    wait_until("the supplier is reaped", Duration::from_secs(2), || {
        supplier(&held).map_or(Ok(()), |pid| Err(pid.to_string()))
    });
    echo(&mut before, b"still spliced").expect("the echo");
}

/// What the command had sent when it ended is delivered, however late it is read.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn last_data_of_the_command_arrives_and_nothing_stays() {
    let lab = Lab::direct();
    let options = run::Options::with(&format!("-p {HOST_PORT}:{PORT}"));
    let script = "import socket; s = socket.create_server(('', 80)); print('ready', flush=True); \
                  c, _ = s.accept(); c.sendall(b'x' * (1 << 20)); c.close()";
    let mut process = options.command(&lab, &["python3", "-c", script]).spawn();
    process.wait_for_line(Duration::from_secs(10), |line| line == "ready");
    let mut stream = connect(&lab);
    std::thread::sleep(Duration::from_millis(700));
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("all of it");
    assert_eq!(heard.len(), 1 << 20);
    drop(stream);
    let status = process.wait(Duration::from_secs(2));
    assert!(status.is_some_and(|status| status.success()), "{process}");
    lab.assert_nothing_left(&[], Duration::from_secs(1));
}

/// The supplier dies with the program, though it is killed.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_supplier_does_not_outlive_the_program() {
    let lab = Lab::direct();
    for user in [run::Options::default(), run::Options::ordinary_user()] {
        let mut held = published(&lab, user);
        assert!(supplier(&held).is_some());
        held.process.signal(Signal::KILL);
        assert!(held.process.wait(Duration::from_secs(1)).is_some());
        lab.assert_nothing_left(&[], Duration::from_secs(1));
    }
}
