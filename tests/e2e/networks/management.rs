//! `cnet network connect`, `disconnect`, `restart`, `ls` and `inspect`, and `cnet events`.

use super::Place;
use crate::lab::Lab;
use crate::lab::run::SHORT;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_that_runs_is_connected_and_disconnected_and_events_tell() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    place.done("network create lan --subnet 10.70.0.0/24 --label team=a");
    let mut events = place.cnet("events --network lan").spawn();
    let _held = place.cnet("run --name alone -- sleep 600").spawn();
    place.wait_until_listed("alone");
    let db = place.join("lan", "db", "");
    // From here on the network runs, and is listened to.
    events.wait_for_line(SHORT, |line| {
        line.ends_with("lan db joins with 10.70.0.2/24")
    });
    place.done("network connect --alias solo --ip 10.70.0.9 lan alone");
    events.wait_for_line(SHORT, |line| {
        line.contains("lan alone joins with 10.70.0.9")
    });
    db.assert_pings(&lab, "solo");
    let done = place.done("exec alone ip -br addr show eth1").stdout;
    assert!(done.contains("10.70.0.9/24"), "{done}");
    let template = "{{range.Containers}}{{.Name}}={{.IPv4Address}};{{end}}";
    let inspected = place
        .done(&format!("network inspect -f {template} lan"))
        .stdout;
    assert!(inspected.contains("alone=10.70.0.9/24;"), "{inspected}");
    place.done("network disconnect lan alone");
    events.wait_for_line(SHORT, |line| line.contains("lan alone leaves"));
    let listed = place
        .done("network ls --filter label=team=a --format {{.Name}}")
        .stdout;
    assert_eq!(listed, "lan\n");
    let error = place.cnet("network ls --filter size=1").run(SHORT);
    assert!(error.stderr.contains("there is no such field"), "{error}");
    let error = place.cnet("network inspect -f {{.Nmae}} lan").run(SHORT);
    assert!(error.stderr.contains(".Name,"), "{error}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_network_is_free_once_its_container_is_stopped() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        place.done("network create lan");
        place.done("run -d --network lan --name web -- sleep 600");
        place.done("stop web");
        place.done("network rm lan");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_network_is_moved_to_another_process_with_its_containers_in_place() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        let web = place.join("cnet", "web", "-p 18083:80");
        let db = place.run("cnet", "db", "");
        let before = place.process("cnet").expect("a process");
        let listed = place.done("ps").stdout;
        assert_eq!(place.done("network restart cnet").stdout, "cnet\n");
        let after = place.process("cnet").expect("a process");
        assert_ne!(before, after);
        assert_eq!(place.done("ps").stdout, listed);
        web.assert_pings(&lab, "db");
        db.assert_pings(&lab, &web.v4.to_string());
        // The watcher of the first process is gone, and that of the second is there.
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(place.process("cnet"), Some(after));
    }
}
