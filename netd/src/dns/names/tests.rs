//! Names as they are asked for on the wire.

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record};

use super::*;
use crate::dns::message::tests::{query, with_opt};
use crate::dns::message::{Inspected, inspect};

fn ask_of(names: &LocalNames, name: &str, query_type: u16, over: Transport) -> Option<Message> {
    let query = query(9, name, query_type);
    let Inspected::Question(question) = inspect(&query) else {
        panic!("{name}");
    };
    let answer = names.answer(&query, &question, over)?;
    assert!(
        over == Transport::Tcp || answer.len() <= 512,
        "{}",
        answer.len()
    );
    Some(Message::from_vec(&answer).unwrap())
}

fn host() -> LocalNames {
    LocalNames::new(Some([10, 0, 2, 2].into()), Some("fd00::2".parse().unwrap()))
}

fn ask(name: &str, query_type: u16) -> Option<Message> {
    ask_of(&host(), name, query_type, Transport::Udp)
}

#[test]
fn the_hosts_name_leads_to_where_it_can_be_reached() {
    let ask = |host, name, kind| {
        let names = self::host().with_host(host);
        ask_of(&names, name, kind, Transport::Udp).unwrap()
    };
    for (kind, v6) in [(1, false), (28, true)] {
        let found = ask(HostAddress::DefaultRoute, HOST[0], kind);
        let there = default_route_address(v6);
        assert_eq!(found.answers.len(), usize::from(there.is_some()));
        let gone = ask(HostAddress::Unreachable, HOST[0], kind);
        assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
        let gateway = ask(HostAddress::Unreachable, GATEWAY, kind);
        assert_eq!(gateway.answers.len(), 1);
    }
}

#[test]
fn the_host_has_both_families_and_nothing_else() {
    for name in HOST.into_iter().chain([GATEWAY]) {
        let answer = ask(name, 1).unwrap();
        assert_eq!(answer.metadata.id, 9);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_desired);
        assert_eq!(answer.answers.len(), 1);
        assert_eq!(answer.answers[0].data, RData::A(A([10, 0, 2, 2].into())));
    }
    let answer = ask("HOST.Docker.internal", 28).unwrap();
    assert_eq!(
        answer.answers[0].data,
        RData::AAAA(AAAA("fd00::2".parse().unwrap()))
    );
    let mx = ask("host.docker.internal", 15).unwrap();
    assert_eq!(mx.metadata.response_code, ResponseCode::NoError);
    assert!(mx.answers.is_empty());
    assert_eq!(ask("host.docker.internal", 255).unwrap().answers.len(), 2);
}

#[test]
fn other_names_are_not_ours() {
    for name in [
        "example.org",
        "a.host.docker.internal",
        "docker.internal",
        "2.2.0.10.in-addr.arpa",
    ] {
        assert!(ask(name, 1).is_none(), "{name}");
    }
    let nobody = LocalNames::default();
    assert!(ask_of(&nobody, "host.docker.internal", 1, Transport::Udp).is_none());
}

const ID: &str = "0123456789abcdef0123456789abcdef";

fn web(last: u8) -> Host {
    Host {
        name: format!("Web_{last}"),
        aliases: vec!["www".into(), "a.b".into()],
        ipv4: Some([10, 89, 0, last].into()),
        ipv6: Some(Ipv6Addr::new(0xfd12, 0, 0, 0, 0, 0, 0, last.into())),
    }
}

fn network() -> (LocalNames, Names) {
    let names = Names::new(Zone {
        network: "Front".into(),
        search: vec!["corp.example.".into()],
        subnets: vec![
            "10.89.0.0/24".parse().unwrap(),
            "fd12::/64".parse().unwrap(),
        ],
    });
    let gateway = LocalNames::new(Some([10, 89, 0, 1].into()), None);
    (gateway.with_containers(names.clone()), names)
}

fn addresses(local: &LocalNames, name: &str) -> Option<Vec<String>> {
    let answer = ask_of(local, name, 255, Transport::Udp)?;
    let text = |record: &Record| record.data.ip_addr().unwrap().to_string();
    Some(answer.answers.iter().map(text).collect())
}

// Longer than 60 lines: one stay of one container, step by step.
#[test]
fn a_container_has_its_names_from_joining_to_leaving() {
    let (local, names) = network();
    let all = [
        "web_2",
        "WEB_2",
        "www",
        "a.b",
        "0123456789ab",
        "web_2.front",
        "www.FRONT",
        "a.b.front",
        "www.corp.example",
    ];
    let nobody = |local: &LocalNames| all.iter().all(|name| addresses(local, name).is_none());
    assert!(nobody(&local));
    names.join(ID, web(2));
    for name in all {
        assert_eq!(
            addresses(&local, name).unwrap(),
            ["10.89.0.2", "fd12::2"],
            "{name}"
        );
    }
    for name in [
        "web",
        "front",
        "x.web_2",
        "www.example",
        "wwwfront",
        "0123456789abc",
        "other.front",
    ] {
        assert_eq!(addresses(&local, name), None, "{name}");
    }
    let answer = ask_of(&local, "www", 1, Transport::Udp).unwrap();
    assert_eq!(
        (answer.answers.len(), answer.answers[0].ttl),
        (1, CONTAINER_TTL)
    );
    let txt = ask_of(&local, "www", 16, Transport::Udp).unwrap();
    assert_eq!(
        (txt.metadata.response_code, txt.answers.len()),
        (ResponseCode::NoError, 0)
    );
    assert!(addresses(&local, "host.containers.internal").is_some());

    names.join(
        ID,
        Host {
            aliases: vec![],
            ..web(3)
        },
    );
    assert_eq!(
        addresses(&local, "web_3").unwrap(),
        ["10.89.0.3", "fd12::3"]
    );
    assert!(addresses(&local, "web_2").is_none() && addresses(&local, "www").is_none());
    assert!(names.leave(ID) && !names.leave(ID));
    assert!(nobody(&local) && addresses(&local, "web_3").is_none());
    let table = names.0.table.read().unwrap();
    assert!(table.by_id.is_empty() && table.by_name.is_empty() && table.by_address.is_empty());
}

#[test]
fn those_who_share_a_name_take_turns() {
    let (local, names) = network();
    for last in 2..5 {
        names.join(&format!("{last}{ID}"), web(last));
    }
    let mut first = Vec::new();
    for _ in 0..3 {
        let found = addresses(&local, "www").unwrap();
        assert_eq!(found.len(), 6);
        first.push((found[0].clone(), found[3].clone()));
    }
    first.sort();
    first.dedup();
    assert_eq!(first.len(), 3, "{first:?}");
    assert_eq!(addresses(&local, "web_3").unwrap().len(), 2);
    names.leave(&format!("3{ID}"));
    assert!(
        !addresses(&local, "www")
            .unwrap()
            .contains(&"10.89.0.3".to_owned())
    );
}

fn reverse(local: &LocalNames, name: &str, query_type: u16) -> Option<(ResponseCode, Vec<String>)> {
    let answer = ask_of(local, name, query_type, Transport::Udp)?;
    let text = |record: &Record| record.data.to_string();
    let records = answer.answers.iter().map(text).collect();
    Some((answer.metadata.response_code, records))
}

#[test]
fn addresses_lead_back_to_names() {
    let (local, names) = network();
    names.join(ID, web(2));
    let found = |name: &str| reverse(&local, name, 12);
    let ok = |name: &str| Some((ResponseCode::NoError, vec![name.to_owned()]));
    assert_eq!(found("2.0.89.10.in-addr.arpa"), ok("Web_2.Front."));
    assert_eq!(
        found("1.0.89.10.IN-ADDR.ARPA"),
        ok("gateway.containers.internal.")
    );
    let six = format!("2{}2.1.d.f.ip6.arpa", ".0".repeat(27) + ".");
    assert_eq!(found(&six), ok("Web_2.Front."));
    let nobody = Some((ResponseCode::NXDomain, vec![]));
    assert_eq!(
        found("9.0.89.10.in-addr.arpa"),
        nobody,
        "not asked elsewhere"
    );
    assert_eq!(reverse(&local, "9.0.89.10.in-addr.arpa", 1), nobody);
    let empty = Some((ResponseCode::NoError, vec![]));
    assert_eq!(reverse(&local, "2.0.89.10.in-addr.arpa", 1), empty);
    assert_eq!(found("0.89.10.in-addr.arpa"), empty, "on the way");
    for name in [
        "2.1.89.10.in-addr.arpa",
        "89.10.in-addr.arpa",
        "in-addr.arpa",
        "x.2.0.89.10.in-addr.arpa",
        "300.0.89.10.in-addr.arpa",
    ] {
        assert_eq!(found(name), None, "{name}");
    }
    names.leave(ID);
    assert_eq!(found("2.0.89.10.in-addr.arpa"), nobody);
}

#[test]
fn a_crowd_behind_one_name_is_cut_over_udp_and_whole_over_tcp() {
    let (local, names) = network();
    for last in 2..102 {
        names.join(&format!("{last}{ID}"), web(last));
    }
    for (query_type, least) in [(1, 29), (28, 16), (255, 15)] {
        let cut = ask_of(&local, "www.front", query_type, Transport::Udp).unwrap();
        assert!(cut.metadata.truncation);
        assert!(
            cut.answers.len() >= least,
            "{query_type}: {}",
            cut.answers.len()
        );
        let whole = ask_of(&local, "www.front", query_type, Transport::Tcp).unwrap();
        assert!(!whole.metadata.truncation);
        assert_eq!(
            whole.answers.len(),
            if query_type == 255 { 200 } else { 100 }
        );
    }
}

#[test]
fn forty_containers_behind_one_name_fit_into_an_edns_answer() {
    let (local, names) = network();
    for last in 2..42 {
        names.join(&format!("{last}{ID}"), web(last));
    }
    for (kind, count) in [(1, 40), (28, 40)] {
        let query = with_opt(query(9, "www.front", kind), 0, 1232, &[]);
        let Inspected::Question(question) = inspect(&query) else {
            panic!("a question");
        };
        let answer = local.answer(&query, &question, Transport::Udp).unwrap();
        assert!(answer.len() <= 1232, "{}", answer.len());
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(
            (answer.answers.len(), answer.metadata.truncation),
            (count, false)
        );
        assert!(answer.edns.is_some());
    }
}

#[test]
fn names_of_special_use_are_answered_here() {
    let names = LocalNames::default();
    let ask = |name: &str, kind| ask_of(&names, name, kind, Transport::Udp).unwrap();
    for name in ["localhost", "a.LOCALHOST"] {
        assert_eq!(
            ask(name, 1).answers[0].data,
            RData::A(A(Ipv4Addr::LOCALHOST))
        );
        assert_eq!(
            ask(name, 28).answers[0].data,
            RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))
        );
        assert!(ask(name, 15).answers.is_empty());
    }
    let six = format!("1{}.ip6.arpa", ".0".repeat(31));
    for name in ["1.0.0.127.in-addr.arpa", &six] {
        assert_eq!(ask(name, 12).answers[0].data.to_string(), "localhost.");
    }
}

#[test]
fn what_no_server_may_be_asked_for() {
    let (local, names) = network();
    let (_, other) = network();
    let nowhere = |local: &LocalNames, name: &str, kind| {
        let query = query(9, name, kind);
        let Inspected::Question(question) = inspect(&query) else {
            panic!("{name}");
        };
        local.nowhere([&other].into_iter(), &question).is_some()
    };
    for name in [
        "web",
        "WEB",
        "com",
        "web.front",
        "a.b.FRONT",
        "x.invalid",
        "x.onion",
    ] {
        assert!(
            nowhere(&local, name, 1) && nowhere(&local, name, 28),
            "{name}"
        );
    }
    for (name, kind) in [("com", 2), ("web", 15), ("web.front", 16)] {
        assert!(!nowhere(&local, name, kind), "{name}");
    }
    assert!(nowhere(&local, "x.invalid", 15));
    for name in ["front.example", "x.corp.example", "example.org", "xfront.x"] {
        assert!(!nowhere(&local, name, 1), "{name}");
    }
    // A network may be called like a domain of the Internet.
    let com = Names::new(Zone {
        network: "com".into(),
        ..Zone::default()
    });
    let local = LocalNames::default().with_containers(com.clone());
    assert!(!nowhere(&local, "example.com", 1));
    com.join(ID, web(2));
    com.leave(ID);
    assert!(nowhere(&local, "web_2.com", 1) && !nowhere(&local, "example.com", 1));
    for n in 0..2 * MAX_DEPARTED {
        let host = Host {
            name: format!("n{n}"),
            ..Host::default()
        };
        com.join(&n.to_string(), host);
        com.leave(&n.to_string());
    }
    assert!(com.0.table.read().unwrap().departed.len() <= MAX_DEPARTED);
    drop(names);
}
