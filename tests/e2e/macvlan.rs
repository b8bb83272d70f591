//! Containers on the host's LAN (`--driver macvlan`): a third machine reaches them at their own addresses,
//! and they reach it, with no NAT between.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::lab::binaries::binary;
use crate::lab::place::{Member, Place};
use crate::lab::run::SHORT;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{Payload, connect_and_echo, ping};
use crate::lab::{GATEWAY_V4, GATEWAY_V6, HOST_V4, Lab, ORDINARY_USER, any};

/// The LAN of the laboratory's host, with a part that containers have.
const NETWORK: &str = "--driver macvlan -o parent=eth0 \
    --subnet 192.0.2.0/24 --gateway 192.0.2.254 --ip-range 192.0.2.32/27 \
    --subnet 2001:db8:1::/64 --gateway 2001:db8:1::fe --ip-range 2001:db8:1::1:0/112";

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_third_machine_reaches_a_container_at_its_own_address() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    place.done(&format!("network create {NETWORK} lan"));
    let member = place.join("lan", "web", "");
    let other = place.join("lan", "db", "");
    let payload = Payload::new(8 << 20, 6);
    for (own, gateway) in member
        .addresses()
        .into_iter()
        .zip([GATEWAY_V4.into(), GATEWAY_V6.into()])
    {
        let gateway: IpAddr = gateway;
        ping(&member.namespace, gateway, 1000);
        ping(&lab.remote, own, 1400);
        // From it: the LAN sees its own address.
        let sink = TcpServer::digest(&lab.remote, any(own, 0));
        let to = SocketAddr::new(gateway, sink.address.port());
        payload
            .upload(&member.namespace, to)
            .unwrap_or_else(|e| panic!("to {to}: {e}"));
        assert!(
            sink.log
                .peers()
                .iter()
                .all(|peer| peer.to_canonical() == own)
        );
        // And to it.
        let source = TcpServer::source(&member.namespace, any(own, 0), &payload);
        let from = SocketAddr::new(own, source.address.port());
        payload
            .download(&lab.remote, from)
            .unwrap_or_else(|e| panic!("from {own}: {e}"));
    }
    // Each other, and not the host by its own interface, as with the kernel's macvlan.
    other.assert_pings(&lab, &member.v4.to_string());
    member.assert_no_ping(&lab, &HOST_V4.to_string());
    let echo = TcpServer::echo(&member.namespace, any(member.v4, 0));
    let to = SocketAddr::new(member.v4, echo.address.port());
    connect_and_echo(&other.namespace, to, b"neighbour").unwrap();
    let shown = place.inspect("lan")["Cnet"]["Uplinks"][0].to_string();
    for part in ["\"raw\"", "eth0", &GATEWAY_V4.to_string()] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let refused = place.refused(&format!("publish {} 8080:80", member.name));
    assert!(refused.contains("own addresses"), "{refused}");
}

/// An `/etc` whose rules let the ordinary user use `parent`.
fn etc_with_rules(lab: &Lab, parent: &str) -> PathBuf {
    let etc = lab.directory().join(format!("etc-{parent}"));
    fs::create_dir_all(etc.join("cnet")).expect("a directory");
    let rules = format!("[[allow]]\nuid = {ORDINARY_USER}\nparents = [\"{parent}\"]\n");
    fs::write(etc.join("cnet/uplinks.toml"), rules).expect("a file");
    fs::write(etc.join("passwd"), "root:x:0:0::/:/bin/sh\n").expect("a file");
    etc
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_program_with_the_privilege_opens_it_for_whom_the_rules_let() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    place.done(&format!("network create {NETWORK} lan"));
    // Beside the user's `cnet`, as it would be installed.
    let program = lab.directory().join("cnet-uplink");
    fs::copy(binary("cnet-uplink"), &program).expect("a copy of the program");
    let setcap = lab.command("setcap").arg("cap_net_raw+ep").arg(&program);
    let done = setcap.run(SHORT);
    assert!(done.success(), "{done}");
    let (process, namespace) = place.container();
    let attach = format!("attach --json --network lan --name web {}", process.pid());
    let elsewhere = place
        .cnet(&attach)
        .etc(&etc_with_rules(&lab, "eth1"))
        .run(SHORT);
    assert!(
        elsewhere
            .stderr
            .contains("does not let user 12345 use eth0"),
        "{elsewhere}"
    );
    let done = place
        .cnet(&attach)
        .etc(&etc_with_rules(&lab, "eth0"))
        .run(SHORT);
    assert!(done.success(), "{done}");
    let joined = serde_json::from_str(&done.stdout).expect("JSON");
    let member = Member::read(&joined, Some(process), namespace);
    for own in member.addresses() {
        ping(&lab.remote, own, 1400);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn without_the_privilege_the_error_says_what_to_do() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    place.done(&format!("network create {NETWORK} lan"));
    let (process, _namespace) = place.container();
    let refused = place.refused(&format!("attach --network lan {}", process.pid()));
    for part in [
        "CAP_NET_RAW",
        "setcap cap_net_raw+ep",
        "/etc/cnet/uplinks.toml",
        "uid = 12345",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
}
