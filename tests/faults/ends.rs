//! A container dies, or a network's process is told to end: what was theirs is given back in time.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::lab::measure::descriptors;
use crate::lab::namespace::Namespace;
use crate::lab::place::Place;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, connect_and_echo, echo};
use crate::lab::{Lab, REMOTE_V4, wait_until};

/// How soon it is done.
const SOON: Duration = Duration::from_secs(1);

/// What a container has open.
const OPEN: usize = 300;

/// Connections to `to` by a program in the container, which hold no descriptor of the test's.
fn connections(namespace: &Namespace, to: SocketAddr) -> crate::lab::process::Running {
    let script = format!(
        "import socket,time\n\
         held=[socket.create_connection(('{}',{})) for _ in range({OPEN})]\n\
         print('connected',flush=True)\n\
         time.sleep(1800)",
        to.ip(),
        to.port()
    );
    let mut clients = namespace
        .command("python3")
        .args(["-c", script.as_str()])
        .spawn();
    clients.wait_for_line(CONNECT * 4, |line| line == "connected");
    clients
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_a_dead_container_held_is_free_within_a_second() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let web = place.join("cnet", "web", "");
    let hold = TcpServer::hold(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let mut stream = web
        .namespace
        .connect(server.address, CONNECT)
        .expect("a way out");
    echo(&mut stream, b"before").expect("an echo");
    let process = place.process("cnet").expect("a network process");
    let pid = u32::try_from(process.as_raw_nonzero().get()).expect("a process id");
    let before = descriptors(pid);
    let (holder, namespace) = place.container();
    place.done(&format!(
        "attach --name db -p 127.0.0.1:18081:80 {}",
        holder.pid()
    ));
    let clients = connections(&namespace, hold.address);
    assert!(
        descriptors(pid) >= before + OPEN,
        "{} now",
        descriptors(pid)
    );
    drop((clients, namespace));
    drop(holder);
    let died = Instant::now();
    wait_until("descriptors are given back", SOON, || {
        let now = descriptors(pid);
        // The neighbours' spare ones may have come meanwhile.
        (now <= before + 2)
            .then_some(())
            .ok_or(format!("{now} instead of {before}"))
    });
    println!("free after {:?}", died.elapsed());
    echo(&mut stream, b"after").expect("a neighbour's echo");
    assert!(!place.lists("db"));
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_network_told_to_end_is_gone_within_a_second_and_resets_its_peers() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let web = place.join("cnet", "web", "");
    let (report, seen) = std::sync::mpsc::channel();
    let server = TcpServer::start(
        &lab.remote,
        SocketAddr::new(REMOTE_V4.into(), 0),
        move |mut stream| {
            let mut bytes = [0; 64];
            let ended = loop {
                match stream.read(&mut bytes) {
                    Ok(0) => break Ok(()),
                    Ok(_) => {}
                    Err(error) => break Err(error.kind()),
                }
            };
            report.send(ended).map_err(std::io::Error::other)
        },
    );
    let mut stream = web
        .namespace
        .connect(server.address, CONNECT)
        .expect("a way out");
    std::io::Write::write_all(&mut stream, b"half an upload").expect("it is sent");
    std::thread::sleep(Duration::from_millis(50));
    let process = place.process("cnet").expect("a network process");
    kill_process(process, Signal::TERM).expect("a process");
    wait_until("the process has ended", SOON, || {
        match place.process("cnet") {
            Some(now) if now == process => Err("it lives".to_owned()),
            _ => Ok(()),
        }
    });
    let ended = seen.recv_timeout(SOON).expect("the far end is told");
    assert_eq!(
        ended,
        Err(std::io::ErrorKind::ConnectionReset),
        "an upload cut looks whole"
    );
    // The container is taken up by the process that serves the network next.
    assert!(place.done("ps").stdout.contains("web"));
    let echoing = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    connect_and_echo(&web.namespace, echoing.address, b"again").expect("a new flow");
}
