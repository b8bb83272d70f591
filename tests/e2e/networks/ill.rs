//! A network that cannot start, or whose process hangs, is told of, and nobody else is kept waiting
//! for it or out of sight.

use std::fs;

use rustix::process::{Signal, kill_process};

use super::{GONE, Place, SHORT};
use crate::lab::{Lab, wait_until};

/// `ps` shows `web`, and says all of `words` of the network that it cannot ask.
fn assert_listed_but(place: &Place<'_>, words: &[&str]) {
    for (command, code) in [
        ("ps --format json", 1),
        ("inspect web", 0),
        ("top --once --format json", 1),
    ] {
        let done = place.cnet(command).run(SHORT * 2);
        assert_eq!(done.code(), Some(code), "{done}");
        assert!(done.stdout.contains("\"web\""), "{done}");
        assert!(!done.stdout.contains("\"db\""), "{done}");
        for word in words {
            assert!(done.stderr.contains(word), "no {word}: {done}");
        }
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn one_network_that_fails_leaves_the_others_in_sight() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    for network in ["lan", "sick"] {
        place.done(&format!("network create {network}"));
    }
    let web = place.join("lan", "web", "");
    let db = place.join("sick", "db", "");
    let process = place.process("sick").expect("a network process");

    kill_process(process, Signal::STOP).expect("a process");
    let end_it = format!("kill -KILL {}", process.as_raw_nonzero());
    assert_listed_but(&place, &["`sick`", "does not answer", &end_it]);
    kill_process(process, Signal::CONT).expect("a process");
    wait_until("both are listed", SHORT, || {
        let listed = place.done("ps").stdout;
        let both = ["web", "db"].iter().all(|name| listed.contains(name));
        both.then_some(()).ok_or(listed)
    });

    // Killed, and not to be started again: neither by its watcher nor by a client.
    let definition = place.runtime.join("cnet/networks/sick.toml");
    let text = fs::read_to_string(&definition).expect("a definition");
    fs::write(&definition, "nonsense").expect("it can be written");
    kill_process(process, Signal::KILL).expect("a process");
    assert_listed_but(&place, &["sick.toml", "cannot be understood"]);
    let listed = place.cnet("network ls").run(SHORT);
    assert_eq!(listed.code(), Some(1), "{listed}");
    assert!(listed.stdout.contains("lan"), "{listed}");
    assert!(listed.stderr.contains("sick.toml"), "{listed}");
    let detached = place.cnet("detach web").run(SHORT);
    assert_eq!(
        detached.code(),
        Some(1),
        "it may be on the other: {detached}"
    );
    assert!(!web.namespace.ip("-o link").contains("eth0"));

    fs::write(&definition, text).expect("it can be written");
    assert!(place.lists("db"));
    let holders = [web.pid(), db.pid()];
    place.done("detach db");
    lab.assert_nothing_left(&holders, GONE);
}
