//! The disk is full: what cannot be written down is refused, and all that is there goes on.

use std::fs;
use std::net::SocketAddr;

use rustix::process::{Signal, kill_process};

use crate::lab::measure::fill;
use crate::lab::mounts::with_tmpfs;
use crate::lab::place::Place;
use crate::lab::run::SHORT;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, connect_and_echo, echo};
use crate::lab::{Lab, REMOTE_V4, any, wait_until};

/// Bytes of the file system for definitions, leases, journals and logs.
const SIZE: usize = 256 << 10;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn nothing_joins_that_a_full_disk_forgets_and_forwarding_goes_on() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        let user = fs::metadata(&place.runtime).expect("it was made");
        let user = std::os::unix::fs::MetadataExt::uid(&user);
        with_tmpfs(&place.runtime, SIZE, user, || on_a_full_disk(&lab, &place));
    }
}

// Longer than 60 lines: one scenario in the order of its events.
fn on_a_full_disk(lab: &Lab, place: &Place<'_>) {
    place.done("network create lan");
    let web = place.join("lan", "web", "-p 127.0.0.1:18080:80");
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let inside = TcpServer::echo(&web.namespace, any(web.v4, 80));
    let mut stream = web.namespace.connect(server.address, CONNECT);
    let stream = stream.as_mut().expect("a way out");
    echo(stream, b"before").expect("an echo");
    let filler = fill(&place.runtime);

    let (process, namespace) = place.container();
    let pid = process.pid();
    let attach = format!("attach --network lan --name db -p 127.0.0.1:18081:80 {pid}");
    let refused = place.refused(&attach);
    for word in ["state.json", "No space left", "Make room"] {
        assert!(refused.contains(word), "no {word}: {refused}");
    }
    let links = namespace.ip("-o link");
    assert!(!links.contains("eth0"), "the interface is left: {links}");
    let run = place
        .cnet("run --network lan --name job -- true")
        .run(SHORT);
    assert_eq!(run.code(), Some(125), "{run}");
    assert!(run.stderr.contains("No space left"), "{run}");
    assert!(place.lists("web"), "the old container is lost");
    for name in ["db", "job"] {
        assert!(!place.lists(name), "{name} was refused");
    }
    let closed = lab.host.connect(([127, 0, 0, 1], 18081).into(), CONNECT);
    assert!(closed.is_err(), "its port is open");

    let published: SocketAddr = ([127, 0, 0, 1], 18080).into();
    let goes_on = |message: &[u8]| {
        connect_and_echo(&web.namespace, server.address, message).expect("a new flow");
        connect_and_echo(&lab.host, published, message).expect("a published port");
    };
    echo(stream, b"still there").expect("an old flow");
    goes_on(b"on a full disk");

    // What it has left is taken up again, though nothing can be written.
    let killed = place.process("lan").expect("a network process");
    kill_process(killed, Signal::KILL).expect("a process");
    assert!(place.lists("web"), "it was not taken up again");
    goes_on(b"after a crash");

    fs::remove_file(filler).expect("our file");
    place.done(&attach);
    wait_until("the newcomer outlives the process", SHORT, || {
        let link = namespace.ip("-d link show eth0");
        link.contains("persist on").then_some(()).ok_or(link)
    });
    for name in ["db", "web"] {
        place.done(&format!("detach {name}"));
    }
    drop(inside);
    lab.assert_nothing_left(&[pid, web.pid()], SHORT);
}
