//! `-p` as people know it: ports that the kernel chooses, told and written to a file; addresses with
//! zones; who has a port that is taken; and ports that are published as the container listens on them.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::lab::namespace::Namespace;
use crate::lab::place::Place;
use crate::lab::run::{self, SHORT};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{connect_and_echo, echo_datagram};
use crate::lab::{HOST_V4, Lab, any, wait_until};

/// The host's ports in a file that `--publish-file` has made.
fn ports(text: &str) -> Vec<(String, SocketAddr)> {
    let read: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let list = read.as_array().expect("a list").iter();
    let port = |port: &Value| {
        let protocol = port["protocol"].as_str().expect("a protocol").to_owned();
        let host = port["host"].as_str().expect("an address");
        (protocol, host.parse().expect("an address and port"))
    };
    list.map(port).collect()
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn chosen_ports_are_told_and_written_before_the_command_starts() {
    let lab = Lab::direct();
    let directory = lab.private_directory("ports", run::Options::ordinary_user().user.unwrap_or(0));
    let file = directory.join("ports.json");
    let shown = file.display();
    let options = run::Options {
        arguments: format!(
            "-p 0:80 -p 127.0.0.1:0:81/udp -p 9000-9299:9000-9299 --publish-file {shown}"
        ),
        ..run::Options::ordinary_user()
    };
    let done = options
        .command(&lab, &["cat", &shown.to_string()])
        .run(SHORT);
    assert!(done.success(), "{done}");
    let written = ports(&done.stdout);
    // One for all addresses of each family.
    assert_eq!(written.len(), 2 + 1 + 600, "{written:?}");
    assert!(written.iter().all(|(_, host)| host.port() != 0));
    let chosen = written[0].1.port();
    assert!(
        done.stderr
            .contains(&format!("{chosen} leads to port 80/tcp")),
        "{done}"
    );
    assert_eq!(
        fs::read_dir(&directory).expect("ours").count(),
        1,
        "nothing beside it"
    );

    let place = Place::ordinary(&lab);
    place.done(&format!(
        "run --network cnet -p 82 --publish-file {shown} -- true"
    ));
    let written = fs::read_to_string(&file).expect("written");
    assert_eq!(ports(&written).len(), 2);
    let (container, _namespace) = place.container();
    let pid = container.pid();
    let told = place
        .done(&format!("attach -p 83 --publish-file {shown} {pid}"))
        .stdout;
    let (_, host) = ports(&fs::read_to_string(&file).expect("written"))[0].clone();
    assert!(told.contains(&host.to_string()), "{told}");
    let nowhere = "attach -p 84 --publish-file /nonexistent/ports.json";
    let refused = place.refused(&format!("{nowhere} {pid}"));
    assert!(!refused.is_empty());
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_link_local_address_is_published_on_its_link() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    let shown = lab.host.ip("-6 -o addr show dev eth0 scope link");
    let mut words = shown.split_whitespace();
    let address = words
        .find_map(|word| word.strip_suffix("/64"))
        .expect("a link-local address");
    let index = lab
        .remote
        .enter(|| cnet_tap::netif::index_of("eth0").expect("an interface"));
    let from = |port| {
        format!("[{address}%{index}]:{port}")
            .parse()
            .expect("an address")
    };
    let options = format!("-p [{address}%eth0]:8080:80");
    let held = run::Held::start(&lab, &run::Options::with(&options));
    let _server = TcpServer::echo(&held.namespace, any(HOST_V4.into(), 80));
    connect_and_echo(&lab.remote, from(8080), b"link-local").expect("a published port");

    let web = place.join("cnet", "web", &format!("-p [{address}%eth0]:8081:80"));
    let _server = TcpServer::echo(&web.namespace, any(HOST_V4.into(), 80));
    connect_and_echo(&lab.remote, from(8081), b"link-local").expect("a published port");
    place.done(&format!("unpublish web [{address}%eth0]:8081:80"));
    let refused = place.refused(&format!("publish web [{address}%nonesuch]:8081:80"));
    assert!(refused.contains("no interface `nonesuch`"), "{refused}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_program_that_has_a_port_is_named() {
    let lab = Lab::direct();
    let taken = TcpServer::echo(&lab.host, any(HOST_V4.into(), 8080));
    let own = format!("(process {}) has it", std::process::id());
    let refused = run::Options::with("-p 8080:80")
        .command(&lab, &["true"])
        .run(SHORT);
    assert!(refused.stderr.contains(&own), "{refused}");
    let by_user = run::Options {
        arguments: "-p 8080:80".to_owned(),
        ..run::Options::ordinary_user()
    };
    let refused = by_user.command(&lab, &["true"]).run(SHORT);
    assert!(
        refused.stderr.contains("a program of the user 0 has it"),
        "{refused}"
    );
    for (place, said) in Place::each(&lab).into_iter().zip([&*own, "user 0 has it"]) {
        let (container, _namespace) = place.container();
        let attach = format!("attach -p 8080:80 {}", container.pid());
        let refused = place.refused(&attach);
        assert!(
            refused.contains("already in use") && refused.contains(said),
            "{refused}"
        );
    }
    drop(taken);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_the_container_listens_on_is_published_as_it_begins_and_ends() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    let auto = "-p auto,~7023 -p 7900:7022";
    let alone = run::Options {
        arguments: auto.to_owned(),
        ..run::Options::ordinary_user()
    };
    let held = run::Held::start(&lab, &alone);
    follows(&lab, &held.namespace);
    drop(held);
    let web = place.join("cnet", "web", auto);
    follows(&lab, &web.namespace);
    // A process that takes over goes on with it.
    let server = TcpServer::echo(&web.namespace, any(HOST_V4.into(), 7022));
    let at = SocketAddr::new(HOST_V4.into(), 7022);
    appears(&lab, at);
    let process = place.process("cnet").expect("a network process");
    kill_process(process, Signal::KILL).expect("a process to kill");
    place.done("ps");
    appears(&lab, at);
    drop(server);
    disappears(&lab, at);
    let listed = place.done("port web").stdout;
    assert!(!listed.contains("0.0.0.0:7022"), "{listed}");
    assert!(listed.contains("0.0.0.0:7900"), "{listed}");
}

fn appears(lab: &Lab, at: SocketAddr) {
    wait_until("the port is published", Duration::from_secs(5), || {
        connect_and_echo(&lab.remote, at, b"hello").map_err(|error| error.to_string())
    });
}

/// No program of the host has the port, nor cnet.
fn disappears(lab: &Lab, at: SocketAddr) {
    wait_until("the port is free", Duration::from_secs(5), || {
        let bound = lab.host.enter(|| TcpListener::bind(at));
        bound.map(drop).map_err(|error| error.to_string())
    });
}

fn follows(lab: &Lab, container: &Namespace) {
    let at = |port| SocketAddr::new(HOST_V4.into(), port);
    let all = |port| any(HOST_V4.into(), port);
    let server = TcpServer::echo(container, all(7022));
    let datagrams = UdpServer::echo(container, all(7022));
    let _left_out = TcpServer::echo(container, all(7023));
    let _own = TcpServer::echo(container, "127.0.0.1:7024".parse().expect("an address"));
    appears(lab, at(7022));
    echo_datagram(&lab.remote, at(7022), 100).expect("a datagram and its echo");
    for port in [7023, 7024] {
        disappears(lab, at(port));
    }
    drop((server, datagrams));
    disappears(lab, at(7022));
}
