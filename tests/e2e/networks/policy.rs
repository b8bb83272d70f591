//! Policies by manifests of Kubernetes: between containers, to the world, from clients of published ports,
//! on what is open, and after a crash.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Member, Place};
use crate::lab::run::SHORT;
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{connect_and_echo, echo_datagram};
use crate::lab::{HOST_V4, Lab, REMOTE_V4, any, wait_until};

/// `db` takes TCP port 80 from the containers of `shop` that are called web, and opens nothing but DNS.
const MANIFESTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: one}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: data}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {team: one}}
      podSelector: {matchLabels: {app: web}}
    ports:
    - {protocol: TCP, port: 80}
";

/// Echo servers on all addresses of a container.
struct Servers {
    _kept: Vec<(TcpServer, UdpServer)>,
}

impl Servers {
    fn start(on: &Member, port: u16) -> Servers {
        let start = |address: IpAddr| {
            let at = SocketAddr::new(address, port);
            let tcp = TcpServer::echo(&on.namespace, at);
            (tcp, UdpServer::echo(&on.namespace, at))
        };
        Servers {
            _kept: on.addresses().into_iter().map(start).collect(),
        }
    }
}

fn tcp(from: &Member, to: &Member, port: u16) -> [bool; 2] {
    let connect = |address: &IpAddr| {
        let at = SocketAddr::new(*address, port);
        connect_and_echo(&from.namespace, at, b"hello").is_ok()
    };
    let reached: Vec<bool> = to.addresses().iter().map(connect).collect();
    [reached[0], reached[1]]
}

fn udp(from: &Member, to: &Member, port: u16) -> [bool; 2] {
    let ask = |address: &IpAddr| {
        let at = SocketAddr::new(*address, port);
        let socket = from
            .namespace
            .udp(any(*address, 0), Duration::from_millis(700));
        socket.connect(at).expect("a route");
        let _ = socket.send(b"hello");
        socket.recv(&mut [0; 64]).is_ok()
    };
    let reached: Vec<bool> = to.addresses().iter().map(ask).collect();
    [reached[0], reached[1]]
}

// Longer than 60 lines: one network, before its policies, with them, after a crash and without.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn policies_apply_between_containers_and_to_what_is_open() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    place.done("network create lan");
    let db = place.join("lan", "db", "--label namespace=data --label app=db");
    let web = place.join("lan", "web", "--label namespace=shop --label app=web");
    let other = place.join("lan", "other", "--label namespace=shop");
    let _servers = [Servers::start(&db, 80), Servers::start(&db, 81)];
    let _others = Servers::start(&other, 80);
    assert_eq!(tcp(&other, &db, 80), [true; 2]);
    let at = SocketAddr::new(db.v4, 80);
    let mut allowed = web.namespace.connect(at, SHORT).expect("open");
    let mut refused = other.namespace.connect(at, SHORT).expect("open");

    let file = lab.file("policy.yaml", MANIFESTS);
    place.done(&format!("policy apply --network lan -f {}", file.display()));
    assert_eq!(tcp(&web, &db, 80), [true; 2]);
    assert_eq!(tcp(&web, &db, 81), [false; 2]);
    assert_eq!(udp(&web, &db, 80), [false; 2]);
    assert_eq!(tcp(&other, &db, 80), [false; 2]);
    assert_eq!(tcp(&db, &other, 80), [false; 2]);
    // Between containers that no policy selects.
    assert_eq!(tcp(&web, &other, 80), [true; 2]);
    assert_eq!(udp(&web, &other, 80), [true; 2]);
    web.assert_no_ping(&lab, &db.v4.to_string());
    // What was open before.
    allowed.write_all(b"hello").expect("it is open");
    allowed.read_exact(&mut [0; 5]).expect("it is open");
    let _ = refused.write_all(b"hello");
    let ended = refused.read(&mut [0; 5]).expect_err("it was reset");
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);

    let why = |arguments: &str| {
        place
            .done(&format!("policy why --network lan {arguments}"))
            .stdout
    };
    assert!(why("web db:80").ends_with("ingress of `db`: allowed by data/db\nallowed\n"));
    assert!(why("other db:80").ends_with("ingress of `db`: closed by data/db\nrefused\n"));
    assert!(why("db 192.0.2.7:443").starts_with("egress of `db`: closed by data/db"));
    let listed = place.done("policy ls --network lan").stdout;
    assert!(
        listed.contains("data        db     ingress,egress"),
        "{listed}"
    );
    assert!(place.drops("lan", "other", "policy") > 0);

    // One that joins later is known to it, also after a crash.
    if let Some(process) = place.process("lan") {
        let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
    }
    wait_until("the network is back", SHORT, || match place.lists("db") {
        true => Ok(()),
        false => Err("not yet".to_owned()),
    });
    let late = place.join("lan", "late", "--label namespace=shop --label app=web");
    assert_eq!(tcp(&late, &db, 80), [true; 2]);
    assert_eq!(tcp(&other, &db, 80), [false; 2]);
    place.done("policy rm --network lan data/db");
    assert_eq!(tcp(&other, &db, 80), [true; 2]);
    let missing = place.refused("policy rm --network lan data/db");
    assert!(missing.contains("no policy `data/db`"), "{missing}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn policies_apply_to_the_world_and_to_published_ports() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let policy = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                 "ingress": [{"from": [{"ipBlock": {"cidr": "198.51.100.0/24", "except": ["198.51.100.66/32"]}}]}],
                 "egress": [{"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}], "ports": [{"port": 7001}]}]}}"#;
    let file = lab.file("policy.json", policy);
    place.done(&format!("network create lan --policy {}", file.display()));
    let web = place.join("lan", "web", "-p 18085:80");
    let remote = |port| SocketAddr::new(REMOTE_V4.into(), port);
    let _world = [7001, 7002].map(|port| {
        (
            TcpServer::echo(&lab.remote, remote(port)),
            UdpServer::echo(&lab.remote, remote(port)),
        )
    });
    connect_and_echo(&web.namespace, remote(7001), b"hello").expect("allowed");
    assert!(connect_and_echo(&web.namespace, remote(7002), b"hello").is_err());
    assert!(echo_datagram(&web.namespace, remote(7001), 10).is_err());
    // Names are the gateway's to answer.
    let asked = web
        .program(&lab, "getent")
        .args(["ahosts", "web"])
        .run(SHORT);
    assert!(asked.success(), "{asked}");

    let _server = TcpServer::echo(&web.namespace, any(web.v4, 80));
    let published = SocketAddr::new(HOST_V4.into(), 18085);
    connect_and_echo(&lab.remote, published, b"hello").expect("a client that is allowed");
    let loopback: SocketAddr = "127.0.0.1:18085".parse().expect("an address");
    assert!(connect_and_echo(&lab.host, loopback, b"hello").is_err());

    // What was open to the world and is not allowed any more is reset.
    let mut open = web.namespace.connect(remote(7001), SHORT).expect("allowed");
    let closed = policy.replace("7001", "7003");
    let file = lab.file("closed.json", &closed);
    place.done(&format!("policy apply --network lan -f {}", file.display()));
    let ended = open.read(&mut [0; 5]).expect_err("it was reset");
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    let _ = open.write_all(b"hello");

    let wrong = lab.file("wrong.yaml", &policy.replace("podSelector", "podSelektor"));
    let refused = place.refused(&format!(
        "policy apply --network lan -f {}",
        wrong.display()
    ));
    assert!(refused.contains("podSelektor"), "{refused}");
    let refused = place.refused(&format!(
        "network create other --policy {}",
        wrong.display()
    ));
    assert!(refused.contains("podSelektor"), "{refused}");
    assert!(!place.done("network ls").stdout.contains("other"));
}
