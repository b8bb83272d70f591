//! Few descriptors: enough for some flows, the others refused at once, or an error at the start.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::lab::container::{Container, Options, Slirp};
use crate::lab::measure::processor_use;
use crate::lab::place::Place;
use crate::lab::run::{self, SHORT};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, connect_and_echo, echo};
use crate::lab::{Lab, REMOTE_V4, wait_until};

/// The part of a processor, in hundredths, that may be used while nothing more can be opened.
const LITTLE: f64 = 5.0;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn too_few_descriptors_are_said_at_the_start() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let container = Container::start(&lab, None);
    let pid = container.pid().to_string();
    let slirp = Options::default().launch(&lab).args(["-c", &pid, "tap0"]);
    let run = run::Options::default().command(&lab, &["true"]);
    let attach = place.cnet(&format!("attach --name web {pid}"));
    let on_a_network = place.cnet("run --network cnet -- true");
    for (launch, code) in [(slirp, 1), (run, 125), (attach, 1), (on_a_network, 125)] {
        let done = launch.descriptors(12).run(SHORT);
        assert_eq!(done.code(), Some(code), "{done}");
        for word in ["limit of open files is 12", "at least 64", "ulimit"] {
            assert!(done.stderr.contains(word), "no {word}: {done}");
        }
        assert_eq!(done.stderr.lines().count(), 1, "{done}");
    }
    lab.assert_nothing_left(&[container.pid()], Duration::from_secs(1));
}

/// With any number of descriptors, a program says what is wrong, or works.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn no_number_of_descriptors_makes_a_program_panic() {
    let lab = Lab::direct();
    let options = run::Options::with("-p 127.0.0.1:18080:80");
    for limit in [8, 10, 12, 16, 24, 32, 63, 64, 65, 80] {
        let done = options
            .command(&lab, &["true"])
            .descriptors(limit)
            .run(SHORT);
        let expected = if limit < 64 { 125 } else { 0 };
        assert!(!done.stderr.contains("panicked"), "{limit}: {done}");
        assert_eq!(done.code(), Some(expected), "{limit}: {done}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn few_descriptors_carry_some_flows_and_refuse_the_others_at_once() {
    let lab = Lab::direct();
    let container = Container::start(&lab, None);
    let options = Options {
        descriptors: Some(128),
        ..Options::with("-c")
    };
    let slirp = Slirp::serve(&lab, &options, container);
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let mut open: Vec<TcpStream> = Vec::new();
    slirp.namespace().enter(|| {
        for number in 0..200 {
            let started = Instant::now();
            match crate::lab::namespace::connect_here(server.address, CONNECT) {
                Ok(stream) => open.push(stream),
                Err(error) => {
                    assert_eq!(
                        error.kind(),
                        ErrorKind::ConnectionRefused,
                        "{number}: {error}"
                    );
                    assert!(started.elapsed() < Duration::from_secs(1), "{number}");
                }
            }
        }
    });
    println!("{} of 200 connections", open.len());
    assert!((50..120).contains(&open.len()), "{}", open.len());
    let used = processor_use(slirp.process.pid(), Duration::from_secs(1));
    assert!(used < LITTLE, "{used} % of a processor");
    for stream in &mut open {
        echo(stream, b"kept").expect("an old flow");
    }
    drop(open);
    wait_until("a new flow", Duration::from_secs(1), || {
        let done = connect_and_echo(slirp.namespace(), server.address, b"again");
        done.map_err(|error| error.to_string())
    });
}

/// Clients of published ports that the program has no descriptors for wait in the kernel's queue, or
/// are refused: they cost it nothing.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_listener_without_descriptors_pauses_and_is_back_within_a_second() {
    let lab = Lab::direct();
    let options = run::Options::with("-p 18080:80");
    let launch = options.shell(&lab, run::HOLD).descriptors(96);
    let held = run::Held::of(launch.spawn());
    let inside = TcpServer::echo(&held.namespace, ([0, 0, 0, 0], 80).into());
    // From outside, through the TAP; from the host's loopback, spliced.
    for (from, address) in [(&lab.remote, [192, 0, 2, 1]), (&lab.host, [127, 0, 0, 1])] {
        let at: SocketAddr = (address, 18080).into();
        let mut first = from.connect(at, CONNECT).expect("a published port");
        echo(&mut first, b"one").expect("an echo");
        let clients: Vec<TcpStream> = from.enter(|| {
            let connect = |_| crate::lab::namespace::connect_here(at, CONNECT);
            (0..150).map(connect).filter_map(Result::ok).collect()
        });
        let used = processor_use(held.process.pid(), Duration::from_secs(2));
        println!("{} clients of {at}, {used} % of a processor", clients.len());
        assert!(used < LITTLE, "{used} % of a processor");
        echo(&mut first, b"kept").expect("an old client");
        drop(clients);
        wait_until("a new client", Duration::from_secs(1), || {
            let done = connect_and_echo(from, at, b"again");
            done.map_err(|error| error.to_string())
        });
    }
    drop(inside);
}
