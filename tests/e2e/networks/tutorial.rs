//! What the tutorials of Docker's networks show, shown here: the drivers `none`, `host`, `bridge`
//! and `container:NAME`, subnets of one's own, networks without a way out or without neighbours.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;

use super::{Member, Place, upstream};
use crate::lab::run::SHORT;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, connect_and_echo};
use crate::lab::{Lab, REMOTE_V4, REMOTES, any};

/// Where the tests' servers in containers listen.
const PORT: u16 = 7000;

/// A TCP connection to `name`, over which a line comes back.
fn says_hello(from: &Member, lab: &Lab, name: &str) {
    let script = format!(
        "exec 3<>/dev/tcp/{name}/{PORT} && echo hello >&3 && read -r line <&3 && test $line = hello"
    );
    let done = from.program(lab, "bash").args(["-c", &script]).run(SHORT);
    assert!(done.success(), "TCP to {name}: {done}");
}

fn reaches_the_world(from: &Member, lab: &Lab) {
    for remote in REMOTES {
        from.assert_pings(lab, &remote.to_string());
        let server = TcpServer::echo(&lab.remote, SocketAddr::new(remote, 0));
        let echoed = connect_and_echo(&from.namespace, server.address, b"the world");
        echoed.unwrap_or_else(|error| panic!("{} to {remote}: {error}", from.name));
    }
}

/// The entry of the container called `name` in what `cnet network inspect` shows.
fn entry<'a>(network: &'a Value, name: &str) -> &'a Value {
    let containers = network["Containers"].as_object().expect("a table");
    let found = containers.values().find(|c| c["Name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {network}"))
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn none_has_loopback_alone() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        let script = "ip -o link && ping -n -c 1 -W 1 127.0.0.1 >/dev/null && echo alive";
        let done = place.shell("--network none", script);
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert!(done.success() && lines.len() == 2, "{done}");
        assert!(
            lines[0].contains(" lo: ") && lines[0].contains("UP"),
            "{done}"
        );
        let done = place.shell("--network none", "ip route; ip -6 route");
        assert_eq!(done.stdout.trim(), "", "{done}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn host_shows_the_hosts_interfaces() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        let done = place.shell("--network host", "ip -o address");
        assert!(done.success(), "{done}");
        assert_eq!(done.stdout, lab.host.ip("-o address"));
        assert!(done.stdout.contains("eth0"), "{done}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn containers_reach_each_other_by_address_name_and_alias_and_the_world() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        let web = place.join("cnet", "web", "--alias www");
        // One that `cnet run` holds, beside those that joined while they ran.
        let db = place.run("cnet", "db", "--alias postgres");
        for (from, to, alias) in [(&web, &db, "postgres"), (&db, &web, "www")] {
            let server = TcpServer::echo(&to.namespace, any(to.v4, PORT));
            for name in [to.v4.to_string(), to.name.clone(), alias.to_owned()] {
                from.assert_pings(&lab, &name);
                says_hello(from, &lab, &name);
            }
            drop(server);
            let v6 = to.v6.expect("the default network has IPv6");
            from.assert_pings(&lab, &v6.to_string());
            let server = TcpServer::echo(&to.namespace, SocketAddr::new(v6, 0));
            connect_and_echo(&from.namespace, server.address, b"hello").expect("TCP over IPv6");
            let ping = from.program(&lab, "ping");
            let done = ping.args(["-6", "-c", "1", "-w", "2", alias]).run(SHORT);
            assert!(done.success(), "{done}");
            reaches_the_world(from, &lab);
        }
        // The same as a program inside sees it, without a hand of the test's.
        let script = "ping -c 1 -w 2 web && ping -c 1 -w 2 postgres";
        let done = place.shell("--network cnet", script);
        assert!(done.success(), "{done}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn two_networks_do_not_reach_each_other_and_a_container_on_both_reaches_both() {
    let lab = Lab::direct();
    // So that it is told at once that the other network's names do not exist.
    let _upstream = upstream(&lab, Ipv4Addr::LOCALHOST);
    for place in Place::each(&lab) {
        for network in ["front", "back"] {
            place.done(&format!("network create {network} --dns {REMOTE_V4}"));
        }
        let web = place.join("front", "web", "");
        let db = place.join("back", "db", "");
        for (from, to) in [(&web, &db), (&db, &web)] {
            for address in to.addresses() {
                from.assert_no_ping(&lab, &address.to_string());
            }
            from.assert_no_ping(&lab, &to.name);
        }
        let front = place.join("front", "proxy", "");
        let pid = front.pid();
        let joined = place.json(&format!("attach --json --network back --name proxy {pid}"));
        assert_eq!(
            (&*front.interface, &joined["interface"]),
            ("eth0", &Value::from("eth1"))
        );
        let back = Member::read(&joined, None, front.namespace.clone());
        for (proxy, neighbour) in [(&front, &web), (&back, &db)] {
            proxy.assert_pings(&lab, &neighbour.name);
            for (own, theirs) in proxy.addresses().into_iter().zip(neighbour.addresses()) {
                proxy.assert_pings(&lab, &theirs.to_string());
                neighbour.assert_pings(&lab, &own.to_string());
            }
        }
        reaches_the_world(&front, &lab);
        // Whichever gateway it asks, it finds all its neighbours by name, back and forth.
        front.assert_pings(&lab, "db");
        front.assert_pings(&lab, "db.back");
        back.assert_pings(&lab, "web");
        let reverse = front.program(&lab, "getent");
        let reverse = reverse.args(["hosts", &db.v4.to_string()]).run(SHORT);
        assert!(reverse.stdout.contains("db.back"), "{reverse}");
        web.assert_no_ping(&lab, "db");
        // It is no way between the two.
        web.assert_no_ping(&lab, &db.v4.to_string());
        // With the first network goes the first default route; the second is there.
        place.done("detach --network front proxy");
        reaches_the_world(&back, &lab);
        back.assert_pings(&lab, "db");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn container_shares_one_address() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        let joined = place.join("cnet", "joined", "");
        let ran = place.run("cnet", "ran", "");
        for member in [&joined, &ran] {
            let options = format!("--network container:{}", member.name);
            let server = TcpServer::echo(&member.namespace, ([127, 0, 0, 1], PORT).into());
            let done = place.shell(
                &options,
                "readlink /proc/self/ns/net; ip -4 -o addr show eth0",
            );
            assert!(done.stdout.contains(&member.namespace.identity()), "{done}");
            assert!(done.stdout.contains(&format!(" {}/", member.v4)), "{done}");
            let script = format!("exec 3<>/dev/tcp/127.0.0.1/{PORT}");
            let run = place.cnet(&format!("run {options} --"));
            let done = run.args(["bash", "-c", &script]).run(SHORT);
            assert!(done.success(), "{done}");
            assert_eq!(server.log.peers().len(), 1);
        }
        // Names are those of the container's network.
        let done = place.shell("--network container:ran", "ping -c 1 -w 2 joined");
        assert!(done.success(), "{done}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_network_has_the_subnet_it_was_given_and_inspect_shows_who_is_there() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        place.done("network create lan --subnet 172.27.0.0/16 --gateway 172.27.0.1 --label a=b");
        let web = place.join("lan", "web", "");
        let db = place.join("lan", "db", "--ip 172.27.9.9 --mac 02:42:ac:1b:09:09");
        assert_eq!(db.v4.to_string(), "172.27.9.9");
        assert!(web.v4.to_string().starts_with("172.27.0."), "{}", web.v4);
        let route = web.namespace.ip("route show default");
        assert!(
            route.starts_with("default via 172.27.0.1 dev eth0"),
            "{route}"
        );
        web.assert_pings(&lab, "172.27.0.1");
        web.assert_pings(&lab, "db");
        let shown = place.inspect("lan");
        assert_eq!(shown["Name"], "lan");
        assert_eq!(shown["Driver"], "bridge");
        assert_eq!(shown["Internal"], false);
        assert_eq!(shown["Labels"]["a"], "b");
        assert_eq!(shown["IPAM"]["Config"][0]["Subnet"], "172.27.0.0/16");
        assert_eq!(shown["IPAM"]["Config"][0]["Gateway"], "172.27.0.1");
        assert_eq!(shown["Id"].as_str().map(str::len), Some(64));
        assert_eq!(shown["Containers"].as_object().map(|c| c.len()), Some(2));
        for member in [&web, &db] {
            let found = entry(&shown, &member.name);
            assert_eq!(found["IPv4Address"], format!("{}/16", member.v4));
            assert_eq!(found["IPv6Address"], "");
            let link = member.namespace.ip("-o link show eth0");
            let mac = found["MacAddress"].as_str().expect("a MAC address");
            assert!(link.contains(mac), "{mac}: {link}");
            let endpoint = found["EndpointID"].as_str().expect("an id");
            assert_eq!(endpoint.len(), 64);
            assert!(
                shown["Containers"].get(endpoint).is_none(),
                "it is the container's"
            );
        }
        assert_eq!(entry(&shown, "db")["MacAddress"], "02:42:ac:1b:09:09");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_routers_port_is_counted_as_those_of_containers() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    place.done("network create lan");
    let [a, b] = ["a", "b"].map(|name| place.join("lan", name, ""));
    let counted = || {
        let router = place.inspect("lan")["Cnet"]["Counters"]["Router"].take();
        ["frames_sent", "frames_received"].map(|name| router[name].as_u64().expect("a counter"))
    };
    a.assert_pings(&lab, &a.gateway.to_string());
    let before = counted();
    assert!(before.iter().all(|frames| *frames > 0), "{before:?}");
    // What passes between containers is no concern of the router's, but for a few questions to all.
    a.assert_pings(&lab, &b.v4.to_string());
    for _ in 0..10 {
        a.assert_pings(&lab, &a.gateway.to_string());
    }
    for (before, after) in before.into_iter().zip(counted()) {
        assert!(after >= before + 10, "{before} {after}");
    }
    let done = place.done("top --once --verbose");
    assert!(done.stdout.contains("frames_received "), "{done}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn isolated_containers_reach_the_gateway_and_the_world_but_not_each_other() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        place.done("network create apart --isolate");
        let [a, b] = ["a", "b"].map(|name| place.join("apart", name, ""));
        for (from, to) in [(&a, &b), (&b, &a)] {
            from.assert_pings(&lab, &from.gateway.to_string());
            reaches_the_world(from, &lab);
            for address in to.addresses() {
                from.assert_no_ping(&lab, &address.to_string());
                let server = TcpServer::echo(&to.namespace, SocketAddr::new(address, 0));
                let connected = from.namespace.connect(server.address, CONNECT / 10);
                assert!(connected.is_err(), "{address}");
            }
        }
        assert_eq!(place.inspect("apart")["Cnet"]["Isolate"], true);
    }
}
