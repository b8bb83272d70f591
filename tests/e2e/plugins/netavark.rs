//! `cnet-netavark`, called as netavark calls plug-ins from its version 1.6 on.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Netns, STEP, json, plugin};
use crate::lab::Lab;
use crate::lab::namespace::Namespace;
use crate::lab::place::Place;
use crate::lab::process::Finished;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::connect_and_echo;

fn call(place: &Place<'_>, arguments: &[&str], request: &Value) -> Finished {
    let plugin = plugin(place, "cnet-netavark").args(arguments);
    plugin.input(&request.to_string()).run(STEP)
}

fn done(place: &Place<'_>, arguments: &[&str], request: &Value) -> Finished {
    let done = call(place, arguments, request);
    assert!(done.success(), "{arguments:?}: {done}");
    done
}

/// A network as podman gives it to `create`.
fn network() -> Value {
    json!({
        "name": "lan", "driver": "cnet", "network_interface": "", "internal": false,
        "id": "53ce4390f2adb1681eb1a90ec8b48c49c015e0a8d336c197637e7f65e365fa9e",
        "created": "2026-01-01T12:00:00.000000000Z", "ipv6_enabled": false, "dns_enabled": true,
        "ipam_options": {"driver": "host-local"}, "options": {"mtu": "1400"},
    })
}

fn container(n: u16, network: &Value) -> Value {
    json!({
        "container_id": format!("{n:02x}").repeat(32),
        "container_name": format!("c{n}"),
        "port_mappings": [
            {"container_port": 80, "host_ip": "", "host_port": 18090 + n, "protocol": "tcp", "range": 1}
        ],
        "network": network,
        "network_options": {
            "aliases": [format!("alias{n}"), format!("{n:02x}").repeat(6)],
            "interface_name": "eth0", "static_ips": null, "static_mac": null,
        },
    })
}

// Longer than 60 lines: one network from its making to its last container.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn netavark_gets_a_network_with_names_addresses_and_ports() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let info = json(&done(&place, &["info"], &Value::Null));
    assert_eq!(info["api_version"], "1.0.0", "{info}");

    let created = json(&done(&place, &["create"], &network()));
    // All that was given is given back, with the subnets.
    for (key, value) in network().as_object().expect("an object") {
        if key != "ipv6_enabled" {
            assert_eq!(created[key], *value, "{created}");
        }
    }
    let subnets = created["subnets"].as_array().expect("subnets");
    assert_eq!(subnets.len(), 2, "{created}");
    // Twice gives the same one.
    assert_eq!(json(&done(&place, &["create"], &created)), created);

    let netns = [Netns::create(&lab, "one"), Netns::create(&lab, "two")];
    let mut addresses = Vec::new();
    for (n, netns) in (1..).zip(&netns) {
        let path = netns.path.to_str().expect("a path");
        let status = json(&done(&place, &["setup", path], &container(n, &created)));
        let interface = &status["interfaces"]["eth0"];
        assert_eq!(
            interface["mac_address"].as_str().map(str::len),
            Some(17),
            "{status}"
        );
        assert_eq!(
            interface["subnets"][0]["gateway"], subnets[0]["gateway"],
            "{status}"
        );
        assert_eq!(
            status["dns_server_ips"][0], subnets[0]["gateway"],
            "{status}"
        );
        let address = interface["subnets"][0]["ipnet"]
            .as_str()
            .expect("an address");
        addresses.push(address.split('/').next().expect("an address").to_owned());
    }
    netns[0].assert_reaches(&addresses[1]);
    let gateway = subnets[0]["gateway"].as_str().expect("an address");
    for name in ["c2", "alias2"] {
        let asked = netns[0].run(&format!("busybox nslookup {name} {gateway}"));
        assert!(asked.stdout.contains(&addresses[1]), "{asked}");
    }
    let inside = Namespace::of(
        std::fs::File::open(&netns[1].path)
            .expect("it is there")
            .into(),
    );
    let _server = TcpServer::echo(&inside, "0.0.0.0:80".parse().expect("an address"));
    let published: SocketAddr = "127.0.0.1:18092".parse().expect("an address");
    connect_and_echo(&lab.host, published, b"hello").expect("the published port");

    let path = netns[1].path.to_str().expect("a path");
    for _ in 0..2 {
        done(&place, &["teardown", path], &container(2, &created));
    }
    let refused = call(
        &place,
        &["setup", "/no/such/netns"],
        &container(2, &created),
    );
    assert!(
        !refused.success() && json(&refused)["error"].is_string(),
        "{refused}"
    );
    let first = netns[0].path.to_str().expect("a path");
    done(&place, &["teardown", first], &container(1, &created));
    // A verb without a request.
    assert!(json(&call(&place, &["setup", first], &Value::Null))["error"].is_string());
}
