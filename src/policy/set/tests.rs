//! What manifests mean for nine pods: a, b and c in each of the namespaces x, y and z.

use serde_json::{Value, json};

use super::*;

fn pods() -> Vec<Pod> {
    let mut pods = Vec::new();
    for (n, namespace) in (1..).zip(["x", "y", "z"]) {
        for (m, name) in (1..).zip(["a", "b", "c"]) {
            let labels = [
                ("namespace", namespace),
                ("pod", name),
                ("port.serve", "80"),
            ];
            pods.push(Pod {
                name: format!("{namespace}/{name}"),
                labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                addresses: vec![
                    [10, 0, n, m].into(),
                    format!("fd00::{n}:{m}").parse().unwrap(),
                ],
            });
        }
    }
    pods
}

fn set(spec: Value) -> PolicySet {
    let mut set = PolicySet::default();
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "x", "creationTimestamp": null},
        "spec": spec,
    });
    let labelled = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "y", "labels": {"team": "one"}},
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [labelled, policy]});
    set.apply(Manifest::read(list).unwrap());
    set
}

/// Those that may open TCP port `service` to `x/a`, as a row of nine.
fn who_reaches_xa(set: &PolicySet, protocol: u8, service: u16) -> String {
    let pods = pods();
    let access = set.access(&pods[0], &pods);
    let reaches = |pod: &Pod| {
        let reach = |peer: &IpAddr| {
            let asked = Asked {
                peer: *peer,
                protocol,
                service: Some(service),
            };
            let allowed = access
                .as_ref()
                .is_none_or(|a| a.allows(Way::Ingress, &asked));
            let why = set.why(&pods[0], &pods, Way::Ingress, &asked);
            assert_eq!(why.allows(), allowed, "{why:?}");
            allowed
        };
        let both: Vec<bool> = pod.addresses.iter().map(reach).collect();
        assert_eq!(both[0], both[1], "the families differ");
        both[0]
    };
    pods.iter()
        .map(|pod| if reaches(pod) { 'y' } else { '.' })
        .collect()
}

#[test]
fn peers_are_selected_by_both_kinds_of_selectors() {
    let from = |peers: Value| json!({"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [{"from": peers}]});
    for (peers, row) in [
        (json!([]), "yyyyyyyyy"),
        (json!([{"podSelector": {}}]), "yyy......"),
        (
            json!([{"podSelector": {"matchLabels": {"pod": "b"}}}]),
            ".y.......",
        ),
        (json!([{"namespaceSelector": {}}]), "yyyyyyyyy"),
        (
            json!([{"namespaceSelector": {"matchLabels": {"team": "one"}}}]),
            "...yyy...",
        ),
        (
            json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "z"}},
                    "podSelector": {"matchLabels": {"pod": "c"}}}]),
            "........y",
        ),
        (
            json!([{"namespaceSelector": {"matchLabels": {"team": "one"}}},
                   {"podSelector": {"matchLabels": {"pod": "c"}}}]),
            "..yyyy...",
        ),
        (
            json!([{"podSelector": {"matchExpressions": [{"key": "pod", "operator": "In", "values": ["b", "c"]}]}}]),
            ".yy......",
        ),
        (
            json!([{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}]),
            "yyy...yyy",
        ),
        (
            json!([{"podSelector": {"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["a"]},
                                                         {"key": "pod", "operator": "Exists"}]}}]),
            ".yy......",
        ),
    ] {
        assert_eq!(
            who_reaches_xa(&set(from(peers.clone())), 6, 80),
            row,
            "{peers}"
        );
    }
    let block = json!([{"ipBlock": {"cidr": "10.0.2.0/24", "except": ["10.0.2.2/32"]}}]);
    let pods = pods();
    let access = set(from(block)).access(&pods[0], &pods).unwrap();
    let asked = |peer: &str| Asked {
        peer: peer.parse().unwrap(),
        protocol: 6,
        service: Some(1),
    };
    assert!(access.allows(Way::Ingress, &asked("10.0.2.1")));
    assert!(!access.allows(Way::Ingress, &asked("10.0.2.2")));
}

#[test]
fn policies_select_close_and_add_up() {
    let closed = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    assert_eq!(who_reaches_xa(&set(closed.clone()), 6, 80), ".........");
    // Of another pod, another namespace, or another direction.
    for spec in [
        json!({"podSelector": {"matchLabels": {"pod": "b"}}}),
        json!({"podSelector": {}, "policyTypes": ["Egress"]}),
    ] {
        assert_eq!(who_reaches_xa(&set(spec), 6, 80), "yyyyyyyyy");
    }
    let mut both = set(closed);
    let allow = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "more", "namespace": "x"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]},
    });
    both.apply(Manifest::read(allow).unwrap());
    assert_eq!(who_reaches_xa(&both, 6, 80), "yyy......");
    assert!(both.remove("x/more") && !both.remove("x/more") && !both.remove("p"));
    assert_eq!(who_reaches_xa(&both, 6, 80), ".........");
    let pods = pods();
    let asked = Asked {
        peer: pods[1].addresses[0],
        protocol: 6,
        service: Some(80),
    };
    let why = both.why(&pods[0], &pods, Way::Ingress, &asked);
    assert_eq!(why, Verdict::ClosedBy(vec!["x/p".to_owned()]));
    assert_eq!(
        both.why(&pods[8], &pods, Way::Ingress, &asked),
        Verdict::Open
    );
}

#[test]
fn ports_are_numbers_ranges_and_names() {
    let ports = |ports: Value| json!({"podSelector": {}, "ingress": [{"ports": ports}]});
    for (list, protocol, service, allowed) in [
        (json!([{"port": 80}]), 6, 80, true),
        (json!([{"port": 80}]), 6, 81, false),
        (json!([{"port": 80}]), 17, 80, false),
        (json!([{"port": 80, "protocol": "UDP"}]), 17, 80, true),
        (json!([{"port": 80, "endPort": 90}]), 6, 90, true),
        (json!([{"port": 80, "endPort": 90}]), 6, 91, false),
        (json!([{"protocol": "UDP"}]), 17, 9, true),
        (json!([{"protocol": "UDP"}]), 6, 9, false),
        (json!([{"port": "serve"}]), 6, 80, true),
        (json!([{"port": "serve"}]), 6, 81, false),
        (json!([{"port": "other"}]), 6, 80, false),
        (json!([{"port": 80, "protocol": "SCTP"}]), 6, 80, false),
        (json!([]), 17, 9, true),
    ] {
        let row = who_reaches_xa(&set(ports(list.clone())), protocol, service);
        assert_eq!(
            row == "yyyyyyyyy",
            allowed,
            "{list} {protocol} {service}: {row}"
        );
    }
    // Outwards a name means the port of each of the others.
    let egress = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "serve"}]}]});
    let mut pods = pods();
    pods[4]
        .labels
        .insert("port.serve".to_owned(), "8080".to_owned());
    let access = set(egress).access(&pods[0], &pods).unwrap();
    let allows = |n: usize, service| {
        let asked = Asked {
            peer: pods[n].addresses[1],
            protocol: 6,
            service: Some(service),
        };
        access.allows(Way::Egress, &asked)
    };
    assert!(allows(3, 80) && !allows(3, 8080) && allows(4, 8080) && !allows(4, 80));
}

#[test]
fn what_is_misspelt_is_refused() {
    let read = |spec: Value| {
        Manifest::read(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": spec,
        }))
    };
    assert!(read(json!({"podSelector": {}, "ingress": null})).is_ok());
    for wrong in [
        json!({"podSelektor": {}}),
        json!({"podSelector": {}, "policyTypes": ["ingress"]}),
        json!({"podSelector": {}, "ingress": [{"form": []}]}),
        json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}]}),
        json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}),
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": 70000}]}]}),
    ] {
        assert!(read(wrong.clone()).is_err(), "{wrong}");
    }
    let other = Manifest::read(json!({"apiVersion": "v1", "kind": "Pod"}));
    assert!(other.unwrap_err().to_string().contains("`Pod` of `v1`"));
}
