//! The control socket is no way out: who knocks is judged by where it is, and refused if that is a
//! container of cnet's or a user namespace that nothing has admitted.

use crate::lab::Lab;
use crate::lab::place::Place;
use crate::lab::process::{Finished, Launch};
use crate::lab::run::SHORT;

/// Asks at the socket of its argument without `cnet`, and prints the answer.
const KNOCK: &str = r#"
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
body = b'{"detach":{"container":"web"}}'
s.sendall(b'POST /v1/actions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n' % len(body) + body)
answer = b''
while piece := s.recv(4096):
    answer += piece
print(answer.decode())
"#;

/// A script that manages networks by `cnet`, and by the socket, where it is covered and where not.
fn script(place: &Place<'_>, network: &str) -> String {
    let program = place.cnet_path().display().to_string();
    let runtime = place.runtime.join("cnet").display().to_string();
    format!(
        "{program} attach --network {network} --name thief $$
         {program} detach --network {network} web
         {program} ps
         ls -A {runtime} | grep -v '^[.]userns' && echo seen
         umount {runtime} && python3 -c '{}' {runtime}/{network}/api.sock",
        KNOCK.replace('\'', "'\\''")
    )
}

fn assert_turned_away(done: &Finished) {
    assert!(done.stdout.contains("HTTP/1.1 403"), "{done}");
    assert!(done.stdout.contains("cnet trust --netns /proc/"), "{done}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_of_cnet_manages_no_network() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        place.done("network create inner --internal");
        let web = place.join("inner", "web", "");
        for mode in ["none", "inner"] {
            let done = place.shell(&format!("--network {mode}"), &script(&place, "inner"));
            let listed = done.stdout.lines().filter(|line| line.starts_with("web "));
            assert_eq!(listed.count(), 0, "{mode}: {done}");
            assert!(!done.stdout.contains("thief"), "{mode}: {done}");
            assert!(!done.stdout.contains("seen"), "{mode}: {done}");
            assert_turned_away(&done);
            assert!(place.lists("web"), "{mode}");
        }
        drop(web);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_program_in_the_servers_user_namespace_is_let_in() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let web = place.join("cnet", "web", "");
    // A network namespace that cnet has nothing to do with, such as a VPN's.
    let elsewhere = place.command("unshare").args(["--net", "--"]);
    let done = elsewhere.arg(place.cnet_path()).arg("ps").run(SHORT);
    assert!(done.success() && done.stdout.contains("web"), "{done}");
    drop(web);
}

/// `program` where an engine's set-up runs.
fn inside(place: &Place<'_>, engine: u32) -> Launch {
    let target = engine.to_string();
    let enter = ["--user", "--net", "--preserve-credentials", "--target"];
    place.command("nsenter").args(enter).arg(target).arg("--")
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn an_engines_user_namespace_is_let_in_once_it_is_trusted() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    let web = place.join("cnet", "web", "");
    let (engine, _namespace) = place.container();
    let cnet = |arguments: &str| {
        let launch = inside(&place, engine.pid()).arg(place.cnet_path());
        launch.args(arguments.split_whitespace()).run(SHORT)
    };
    let socket = place.runtime.join("cnet/cnet/api.sock");
    let knock = ["python3", "-c", KNOCK, socket.to_str().expect("UTF-8")];

    let own = cnet("ps");
    assert!(own.success() && !own.stdout.contains("web"), "{own}");
    assert_turned_away(&inside(&place, engine.pid()).args(knock).run(SHORT));

    let path = format!("/proc/{}/ns/net", engine.pid());
    place.done(&format!("trust --netns {path}"));
    assert!(
        place
            .done("trust")
            .stdout
            .contains(&format!("{path}   trusted"))
    );
    // A container of the engine's shares its user namespace.
    let unshared = inside(&place, engine.pid()).args(["unshare", "--net", "--"]);
    let mut other = unshared
        .args(["sh", "-c", "echo up; exec sleep 60"])
        .spawn();
    other.wait_for_line(SHORT, |line| line == "up");
    let joined = cnet(&format!("attach --name db {}", other.pid()));
    assert!(joined.success(), "{joined}");
    let listed = cnet("ps");
    assert!(listed.stdout.contains("web"), "{listed}");
    assert!(place.lists("db"));
    // It is none of the set-up.
    let container = inside(&place, engine.pid()).args(["unshare", "--net", "--"]);
    assert_turned_away(&container.args(knock).run(SHORT));

    place.done(&format!("trust --revoke {path}"));
    assert_turned_away(&inside(&place, engine.pid()).args(knock).run(SHORT));
    assert!(!cnet("ps").stdout.contains("web"));
    assert!(place.lists("web") && place.lists("db"));
    drop((web, other));
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_nested_cnet_captures_no_network_of_the_users() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    place.done("network create lan");
    let (engine, _namespace) = place.container();
    let cnet = |arguments: &str| {
        let launch = inside(&place, engine.pid()).arg(place.cnet_path());
        launch.args(arguments.split_whitespace()).run(SHORT)
    };
    let unknown = cnet("network inspect lan");
    assert_eq!(unknown.code(), Some(1), "{unknown}");
    let made = cnet("network create lan --subnet 10.99.0.0/24");
    assert!(made.success(), "{made}");
    let served = cnet("run --network lan -- true");
    assert!(served.success(), "{served}");
    let subnet = place.inspect("lan")["IPAM"]["Config"][0]["Subnet"].clone();
    assert_ne!(subnet, "10.99.0.0/24");
    // Nor does one that is trusted start the user's networks where they would go out elsewhere.
    let path = format!("/proc/{}/ns/net", engine.pid());
    place.done(&format!("trust --netns {path}"));
    let refused = cnet(&format!("attach --network lan {}", engine.pid()));
    assert!(
        refused.stderr.contains("does not start from another"),
        "{refused}"
    );
}
