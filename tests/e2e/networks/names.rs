//! Names: a container is found by each of its names from the moment it joins until it leaves, and
//! its address leads back to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_proto::serialize::binary::BinDecodable;

use super::{Member, Place, upstream, wait_for_leave};
use crate::lab::run::SHORT;
use crate::lab::servers::TcpServer;
use crate::lab::{HOST_V4, Lab, REMOTE_V4, REMOTES, any, wait_until};

const ABSENT: ResponseCode = ResponseCode::NXDomain;

/// What a name is, as the gateway's DNS service answers: code and data.
fn ask(from: &Member, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    let name: Name = name.parse().expect("a name");
    query.add_query(Query::query(name, kind));
    let query = query.to_vec().expect("a query");
    let socket = from.namespace.udp(any(from.v4, 0), Duration::from_secs(5));
    socket.connect((from.gateway, 53)).expect("a route");
    socket.send(&query).expect("sent");
    let mut answer = [0; 4096];
    let length = socket.recv(&mut answer).expect("an answer");
    let answer = Message::from_bytes(&answer[..length]).expect("a message");
    let data = answer.answers.iter().map(|record| match &record.data {
        RData::A(a) => a.to_string(),
        RData::AAAA(a) => a.to_string(),
        RData::PTR(name) => name.to_string(),
        other => panic!("{other:?}"),
    });
    (answer.metadata.response_code, data.collect())
}

/// The name that an address is looked up by.
fn reverse(address: IpAddr) -> String {
    Name::from(address).to_string()
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn names_lead_to_a_container_and_back_from_joining_until_leaving() {
    let lab = Lab::direct();
    let known = Ipv4Addr::new(203, 0, 113, 77);
    let upstream = upstream(&lab, known);
    for place in Place::each(&lab) {
        place.done(&format!("network create lan --dns {REMOTE_V4}"));
        let asker = place.join("lan", "asker", "");
        let names = ["web", "www", "Shop", "web.lan"];
        for name in names {
            assert_eq!(ask(&asker, name, RecordType::A), (ABSENT, vec![]), "{name}");
        }
        for _ in 0..2 {
            let web = place.join("lan", "web", "--alias www --alias shop");
            let v6 = web.v6.expect("an address");
            let found = |data: &dyn ToString| (ResponseCode::NoError, vec![data.to_string()]);
            for name in names {
                assert_eq!(ask(&asker, name, RecordType::A), found(&web.v4), "{name}");
                assert_eq!(ask(&asker, name, RecordType::AAAA), found(&v6), "{name}");
            }
            for address in web.addresses() {
                let (code, data) = ask(&asker, &reverse(address), RecordType::PTR);
                assert_eq!(code, ResponseCode::NoError, "{address}");
                assert!(data[0].starts_with("web."), "{data:?}");
            }
            // The same by the C library, both ways.
            let script = format!("getent ahostsv4 www && getent hosts {}", web.v4);
            let done = asker.program(&lab, "sh").args(["-c", &script]).run(SHORT);
            assert!(done.success() && done.stdout.contains("web"), "{done}");
            place.done("detach web");
            for name in names {
                assert_eq!(ask(&asker, name, RecordType::A), (ABSENT, vec![]), "{name}");
            }
            let (code, data) = ask(&asker, &reverse(web.v4), RecordType::PTR);
            assert_eq!((code, data), (ABSENT, vec![]));
        }
        // One whose process ends leaves as well.
        let web = place.join("lan", "web", "");
        drop(web);
        wait_for_leave(&place, "web");
        assert_eq!(ask(&asker, "web", RecordType::A), (ABSENT, vec![]));
        let host = ask(&asker, "host.containers.internal", RecordType::A);
        assert_eq!(host, (ResponseCode::NoError, vec![HOST_V4.to_string()]));
        let far = ask(&asker, "known.example", RecordType::A);
        assert_eq!(far, (ResponseCode::NoError, vec![known.to_string()]));
        assert!(!upstream.log.peers().is_empty());
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn an_internal_network_has_no_way_out_and_asks_nobody_for_names() {
    let lab = Lab::direct();
    let upstream = upstream(&lab, Ipv4Addr::LOCALHOST);
    for place in Place::each(&lab) {
        place.done(&format!(
            "network create inner --internal --dns {REMOTE_V4}"
        ));
        let [a, b] = ["a", "b"].map(|name| place.join("inner", name, ""));
        assert_eq!(place.inspect("inner")["Internal"], true);
        a.assert_pings(&lab, "b");
        for address in b.addresses() {
            a.assert_pings(&lab, &address.to_string());
        }
        assert_eq!(ask(&a, "known.example", RecordType::A), (ABSENT, vec![]));
        // As it is, and with routes of the container's own making.
        for _ in 0..2 {
            for remote in REMOTES {
                a.assert_no_ping(&lab, &remote.to_string());
                let server = TcpServer::echo(&lab.remote, any(remote, 0));
                let at = SocketAddr::new(remote, server.address.port());
                let connected = a.namespace.connect(at, Duration::from_millis(500));
                assert!(connected.is_err(), "{remote}");
                let socket = a.namespace.udp(any(remote, 0), Duration::from_millis(1));
                // An error is as good as silence.
                let _ = socket.send_to(b"anybody there?", SocketAddr::new(remote, 53));
            }
            let inner = place.inspect("inner");
            for (family, config) in ["-4", "-6"].iter().zip(0..) {
                let gateway = inner["IPAM"]["Config"][config]["Gateway"].as_str();
                let gateway = gateway.expect("a gateway in each family");
                a.namespace
                    .ip(&format!("{family} route replace default via {gateway}"));
            }
        }
        assert_eq!(upstream.log.peers(), Vec::<IpAddr>::new());
        assert_no_way_in(&lab, &place);
    }
}

/// Nor does a port of the host lead into the network `inner`: who asks for one is told.
fn assert_no_way_in(lab: &Lab, place: &Place<'_>) {
    let (process, namespace) = place.container();
    let attach = format!(
        "attach --network inner --name c -p 18080:80 {}",
        process.pid()
    );
    for (arguments, code) in [
        (attach, 1),
        ("run --network inner -p 18080:80 -- true".to_owned(), 125),
    ] {
        let done = place.cnet(&arguments).run(SHORT);
        assert_eq!(done.code(), Some(code), "{done}");
        assert!(done.stderr.contains("`inner` is internal"), "{done}");
    }
    assert!(!namespace.ip("-o link").contains("eth0"));
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 18080);
    let connected = lab.host.connect(at, Duration::from_secs(1));
    assert!(connected.is_err(), "the port is open");
    assert!(!place.done("ps").stdout.contains(" c "));
}

/// A container on an internal and an ordinary network may ask by the one, whichever gateway it asks;
/// one on the internal network alone may not.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_on_an_internal_and_an_ordinary_network_resolves_outside_names() {
    let lab = Lab::direct();
    let known = Ipv4Addr::new(203, 0, 113, 77);
    let upstream = upstream(&lab, known);
    for place in Place::each(&lab) {
        place.done("network create back --internal");
        place.done(&format!("network create front --dns {REMOTE_V4}"));
        let both = place.join("back", "both", "");
        let alone = place.join("back", "alone", "");
        assert_eq!(ask(&both, "known.example", RecordType::A), (ABSENT, vec![]));
        let process = both.process.as_ref().expect("it runs").pid();
        place.done(&format!("attach --network front {process}"));
        let found = (ResponseCode::NoError, vec![known.to_string()]);
        wait_until("it is known to be on both", SHORT, || {
            match ask(&both, "known.example", RecordType::A) {
                answer if answer == found => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        assert_eq!(
            ask(&alone, "known.example", RecordType::A),
            (ABSENT, vec![])
        );
    }
    assert!(!upstream.log.peers().is_empty());
}

/// Names of containers are asked for nowhere else, nor are names of one label.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn names_of_containers_leave_the_network_neither_before_nor_after_their_time() {
    let lab = Lab::direct();
    let upstream = upstream(&lab, Ipv4Addr::LOCALHOST);
    let place = Place::ordinary(&lab);
    place.done(&format!("network create lan --dns {REMOTE_V4}"));
    let asker = place.join("lan", "asker", "");
    let web = place.join("lan", "web", "");
    for name in ["web", "web.lan"] {
        assert_eq!(ask(&asker, name, RecordType::A).0, ResponseCode::NoError);
    }
    drop(web);
    wait_for_leave(&place, "web");
    for name in ["web", "web.lan", "never", "never.lan"] {
        for kind in [RecordType::A, RecordType::AAAA] {
            assert_eq!(ask(&asker, name, kind), (ABSENT, vec![]), "{name}");
        }
    }
    assert_eq!(upstream.log.peers(), Vec::<IpAddr>::new());
    ask(&asker, "com", RecordType::NS);
    assert_eq!(upstream.log.peers().len(), 1);
}

/// A container may have servers of its own, by `attach` and by `run`; the gateway is none.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_on_a_network_may_have_dns_servers_of_its_own() {
    let lab = Lab::direct();
    let known = Ipv4Addr::new(203, 0, 113, 77);
    let _upstream = upstream(&lab, known);
    let place = Place::ordinary(&lab);
    place.done("network create lan --dns 192.0.2.1 --subnet 10.77.0.0/24");
    let own = place.join("lan", "own", &format!("--dns {REMOTE_V4}"));
    let domain = place.run("lan", "domain", &format!("--dns known.example={REMOTE_V4}"));
    let found = (ResponseCode::NoError, vec![known.to_string()]);
    for container in [&own, &domain] {
        assert_eq!(ask(container, "known.example", RecordType::A), found);
    }
    let (process, _) = place.container();
    for arguments in [
        format!("attach --network lan --dns 10.77.0.1 {}", process.pid()),
        "network create other --subnet 10.78.0.0/24 --dns 10.78.0.1".to_owned(),
    ] {
        assert!(place.refused(&arguments).contains("own gateway"));
    }
    place.done("network create inner --internal");
    let attach = format!("attach --network inner --dns 192.0.2.1 {}", process.pid());
    assert!(place.refused(&attach).contains("internal network"));
}

/// What a container asks for is told, as it is asked and afterwards, and counted by outcome.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_a_container_asks_for_is_logged_and_counted() {
    let lab = Lab::direct();
    let _upstream = upstream(&lab, Ipv4Addr::new(203, 0, 113, 77));
    for place in Place::each(&lab) {
        place.done(&format!(
            "network create lan --dns {REMOTE_V4} --dns-stale 60"
        ));
        let web = place.join("lan", "web", "");
        let other = place.join("lan", "other", "");
        ask(&web, "known.example", RecordType::A);
        let mut follows = place.cnet("dns log --follow web").spawn();
        follows.wait_for_line(SHORT, |line| line.contains("known.example"));
        ask(&web, "known.example", RecordType::A);
        ask(&other, "other", RecordType::A);
        ask(&web, "absent", RecordType::AAAA);
        follows.wait_for_line(SHORT, |line| line.contains("absent"));
        let log = place.done("dns log web").stdout;
        let told: Vec<Vec<&str>> = log
            .lines()
            .map(|line| line.split(' ').skip(1).take(5).collect())
            .collect();
        let expected = [
            "udp A known.example forwarded NOERROR",
            "udp A known.example cached NOERROR",
            "udp AAAA absent unknown NXDOMAIN",
        ];
        let expected = expected.map(|line| line.split(' ').collect::<Vec<_>>());
        assert_eq!(told, expected, "{log}");
        let counted = &place.json("inspect web")[0]["statistics"]["dns"];
        let expected = serde_json::json!({"forwarded": 1, "cached": 1, "unknown": 1});
        assert_eq!(counted, &expected);
        drop(web);
        // It ends with the container.
        assert!(follows.wait(SHORT).is_some_and(|status| status.success()));
        assert!(place.refused("dns log web").contains("no container `web`"));
    }
}
