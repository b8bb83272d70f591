//! `cnet-cni`, verb by verb as the specification has them, and killed at any point.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Netns, STEP, json, plugin};
use crate::lab::Lab;
use crate::lab::place::Place;
use crate::lab::process::{Finished, Launch};
use crate::lab::servers::TcpServer;

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

struct Engine<'a> {
    place: Place<'a>,
    configuration: Value,
}

impl<'a> Engine<'a> {
    fn new(lab: &'a Lab, configuration: Value) -> Self {
        let place = Place::root(lab);
        Self {
            place,
            configuration,
        }
    }

    fn launch(&self, verb: &str, container: &str, netns: Option<&Netns<'_>>) -> Launch {
        let plugin = plugin(&self.place, "cnet-cni")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAME={container}"),
            );
        let plugin = plugin.input(&self.configuration.to_string());
        match netns {
            Some(netns) => plugin.env("CNI_NETNS", &netns.path),
            None => plugin,
        }
    }

    fn call(&self, verb: &str, container: &str, netns: Option<&Netns<'_>>) -> Finished {
        self.launch(verb, container, netns).run(STEP)
    }

    /// Calls what has to succeed, silently but for ADD.
    fn done(&self, verb: &str, container: &str, netns: Option<&Netns<'_>>) -> Finished {
        let done = self.call(verb, container, netns);
        assert!(done.success(), "{verb}: {done}");
        assert_eq!(done.stdout.is_empty(), verb != "ADD", "{verb}: {done}");
        done
    }

    /// Calls what has to fail, and gives the code of the error.
    fn code(&self, verb: &str, container: &str, netns: Option<&Netns<'_>>) -> u64 {
        code(&self.call(verb, container, netns))
    }

    fn with(&self, key: &str, value: Value) -> Engine<'a> {
        let mut configuration = self.configuration.clone();
        configuration[key] = value;
        Engine {
            place: self.place.clone(),
            configuration,
        }
    }

    fn members(&self) -> Vec<String> {
        let rows = self.place.json("ps --format json");
        let rows = rows.as_array().expect("a list").iter();
        rows.map(|row| row["name"].as_str().expect("a name").to_owned())
            .collect()
    }
}

/// The code of an error, whose JSON is as in the specification's table.
fn code(done: &Finished) -> u64 {
    assert!(!done.success(), "{done}");
    let error = json(done);
    let version = error["cniVersion"].as_str();
    assert!(version.is_some_and(|v| VERSIONS.contains(&v)), "{done}");
    assert!(
        error["msg"].as_str().is_some_and(|msg| !msg.is_empty()),
        "{done}"
    );
    assert!(
        error["details"].is_null() || error["details"].is_string(),
        "{done}"
    );
    error["code"].as_u64().expect("a code")
}

/// Checks a result against the tables of the specification's section 5: its keys, their kinds, and those
/// that each version has.
fn assert_result(result: &Value, version: &str, netns: &Netns<'_>) {
    let only = |value: &Value, keys: &[&str]| {
        for key in value.as_object().expect("an object").keys() {
            assert!(keys.contains(&key.as_str()), "{key} in {result}");
        }
    };
    only(
        result,
        &["cniVersion", "interfaces", "ips", "routes", "dns"],
    );
    assert_eq!(result["cniVersion"], version);
    let interfaces = result["interfaces"].as_array().expect("a list");
    for interface in interfaces {
        match version {
            "1.1.0" => only(
                interface,
                &["name", "mac", "mtu", "sandbox", "socketPath", "pciID"],
            ),
            _ => only(interface, &["name", "mac", "sandbox"]),
        }
        assert_eq!(interface["name"], "eth0");
        assert_eq!(
            interface["mac"].as_str().map(str::len),
            Some(17),
            "{result}"
        );
        assert_eq!(interface["sandbox"], json!(netns.path));
    }
    for ip in result["ips"].as_array().expect("a list") {
        let address = ip["address"].as_str().expect("an address");
        assert!(address.contains('/'), "{result}");
        let index = ip["interface"].as_u64().expect("an index");
        assert!(index < interfaces.len() as u64, "{result}");
        let family = if address.contains(':') { "6" } else { "4" };
        match version.starts_with("0.") {
            true => assert_eq!(ip["version"], family, "{result}"),
            false => only(ip, &["address", "gateway", "interface"]),
        }
    }
    for route in result["routes"].as_array().expect("a list") {
        only(route, &["dst", "gw"]);
    }
    only(
        &result["dns"],
        &["nameservers", "domain", "search", "options"],
    );
}

fn configuration(version: &str) -> Value {
    json!({"cniVersion": version, "name": "pods", "type": "cnet", "subnet": "10.77.0.0/16"})
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn each_verb_does_what_the_specification_says_in_every_version() {
    let lab = Lab::direct();
    let first = Engine::new(&lab, configuration("1.0.0"));
    let said = first.call("VERSION", "", None);
    assert_eq!(json(&said)["supportedVersions"], json!(VERSIONS), "{said}");
    assert_eq!(json(&said)["cniVersion"], "1.0.0", "{said}");
    let other = Netns::create(&lab, "other");
    for version in VERSIONS {
        let engine = first.with("cniVersion", version.into());
        engine.done("STATUS", "", None);
        let netns = Netns::create(&lab, &format!("netns-{version}"));
        let added = json(&engine.done("ADD", "web", Some(&netns)));
        assert_result(&added, version, &netns);
        json(&engine.done("ADD", "db", Some(&other)));
        let gateway = added["ips"][0]["gateway"].as_str().expect("a gateway");
        netns.assert_reaches(gateway);
        let address = added["ips"][0]["address"].as_str().expect("an address");
        let (address, _) = address.split_once('/').expect("a prefix");
        other.assert_reaches(address);
        // What is there is not added again.
        assert_eq!(engine.code("ADD", "web", Some(&netns)), 100);

        let with_result = engine.with("prevResult", added.clone());
        with_result.done("CHECK", "web", Some(&netns));
        assert_eq!(engine.code("CHECK", "web", Some(&netns)), 7);
        let mut wrong = added;
        wrong["ips"][0]["address"] = "10.77.9.9/16".into();
        let wrong = engine.with("prevResult", wrong);
        assert_eq!(wrong.code("CHECK", "web", Some(&netns)), 102);

        // Without the namespace, and again and again.
        engine.done("DEL", "web", None);
        engine.done("DEL", "web", Some(&netns));
        with_result.done("DEL", "web", Some(&netns));
        assert_eq!(with_result.code("CHECK", "web", Some(&netns)), 101);
        let links = netns.run("ip -o link").stdout;
        assert!(!links.contains("eth0"), "{links}");
        engine.done("DEL", "db", Some(&other));
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn errors_have_the_codes_of_the_specification() {
    let lab = Lab::direct();
    let engine = Engine::new(&lab, configuration("1.0.0"));
    let netns = Netns::create(&lab, "netns");
    assert_eq!(
        engine
            .with("cniVersion", "9.0.0".into())
            .code("ADD", "web", Some(&netns)),
        1
    );
    let more = json!({"bandwidth": {"ingressRate": -1}});
    assert!(matches!(
        engine
            .with("runtimeConfig", more)
            .code("ADD", "web", Some(&netns)),
        2 | 7
    ));
    let gone = Netns {
        lab: &lab,
        path: lab.directory().join("gone"),
    };
    assert_eq!(engine.code("ADD", "web", Some(&gone)), 3);
    assert_eq!(engine.code("ADD", "web", None), 4);
    assert_eq!(engine.code("ADD", "../web", Some(&netns)), 4);
    assert_eq!(engine.code("NONE", "web", Some(&netns)), 4);
    let broken = plugin(&engine.place, "cnet-cni").env("CNI_COMMAND", "GC");
    assert_eq!(code(&broken.input("{").run(STEP)), 6);
    assert_eq!(
        engine
            .with("subnet", "x".into())
            .code("ADD", "web", Some(&netns)),
        7
    );
    // A network of that name, and other subnets.
    engine.done("ADD", "web", Some(&netns));
    let second = Netns::create(&lab, "second");
    let other = engine.with("subnet", "10.78.0.0/16".into());
    assert_eq!(other.code("ADD", "db", Some(&second)), 7);
    // What chained plug-ins have made is left alone by DEL of another container.
    engine.done("DEL", "db", Some(&second));
    assert_eq!(engine.members(), ["web"]);
    engine.done("DEL", "web", Some(&netns));
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn capabilities_give_addresses_names_and_ports() {
    let lab = Lab::direct();
    let engine = Engine::new(&lab, configuration("1.0.0"));
    let (web, db) = (Netns::create(&lab, "web"), Netns::create(&lab, "db"));
    let capabilities = json!({
        "ips": ["10.77.0.9/16"],
        "mac": "02:00:00:00:00:09",
        "aliases": ["www"],
        "portMappings": [{"hostPort": 18077, "containerPort": 80, "protocol": "tcp"}],
    });
    let before = json!({"interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00"}], "ips": []});
    let chained = engine
        .with("runtimeConfig", capabilities)
        .with("prevResult", before);
    let added = json(&chained.done("ADD", "web", Some(&web)));
    assert_eq!(added["interfaces"][0]["name"], "lo", "passed on: {added}");
    assert_eq!(added["interfaces"][1]["mac"], "02:00:00:00:00:09");
    assert_eq!(
        added["ips"][0],
        json!({"address": "10.77.0.9/16", "gateway": "10.77.0.1", "interface": 1})
    );
    engine.done("ADD", "db", Some(&db));
    let asked = db.run("busybox nslookup www 10.77.0.1");
    assert!(asked.stdout.contains("10.77.0.9"), "{asked}");
    let inside = std::fs::File::open(&web.path).expect("the namespace");
    let inside = crate::lab::namespace::Namespace::of(inside.into());
    let _server = TcpServer::echo(&inside, "0.0.0.0:80".parse().expect("an address"));
    let published: SocketAddr = "127.0.0.1:18077".parse().expect("an address");
    let echoed = crate::lab::traffic::connect_and_echo(&lab.host, published, b"hello");
    echoed.expect("the published port");
    chained.done("DEL", "web", Some(&web));
    let refused = lab.host.connect(published, STEP);
    assert!(refused.is_err(), "the port is closed with its container");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_killed_steps_have_left_is_cleaned_up() {
    let lab = Lab::direct();
    let engine = Engine::new(&lab, configuration("1.1.0"));
    let kept = Netns::create(&lab, "kept");
    engine.done("ADD", "kept", Some(&kept));
    let all: Vec<Netns<'_>> = (0..8)
        .map(|n| Netns::create(&lab, &format!("n{n}")))
        .collect();
    for (n, netns) in all.iter().enumerate() {
        let name = format!("c{n}");
        let mut adding = engine.launch("ADD", &name, Some(netns)).spawn();
        sleep(Duration::from_millis(4 * n as u64));
        adding.signal(rustix::process::Signal::KILL);
        adding.wait(STEP).expect("SIGKILL ends a process");
        if n % 2 == 0 {
            let mut deleting = engine.launch("DEL", &name, Some(netns)).spawn();
            sleep(Duration::from_millis(n as u64));
            deleting.signal(rustix::process::Signal::KILL);
            deleting.wait(STEP).expect("SIGKILL ends a process");
            engine.done("DEL", &name, None);
        }
    }
    // The network's process, too: what is left is in its journal.
    if let Some(process) = engine.place.process("pods") {
        let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
    }
    let valid = json!([{"containerID": "kept", "ifname": "eth0"}]);
    engine
        .with("cni.dev/valid-attachments", valid)
        .done("GC", "", None);
    assert_eq!(engine.members(), ["kept"]);
    kept.assert_reaches("10.77.0.1");
    engine
        .with("cni.dev/valid-attachments", json!([]))
        .done("GC", "", None);
    assert_eq!(engine.members(), [""; 0]);
    assert_eq!(engine.code("GC", "", None), 7);
}
