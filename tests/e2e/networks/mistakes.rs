//! Mistakes: the error says what is wrong and what to do, and nothing half-done stays behind.

use super::Place;
use crate::lab::namespace::Namespace;
use crate::lab::{HOST_V4, Lab, wait_until};

/// What must not change by what is refused.
fn state(place: &Place<'_>, inside: &[&Namespace]) -> String {
    let mut state = place.done("network ls").stdout + &place.done("ps").stdout;
    for namespace in inside {
        state += &namespace.ip("-o link");
        state += &namespace.ip("-o addr");
    }
    // A link-local address becomes usable by itself.
    state.replace(" tentative", "")
}

/// `arguments` is refused with all of `words`, and everything is as before.
fn refused(place: &Place<'_>, inside: &[&Namespace], arguments: &str, words: &[&str]) {
    let before = state(place, inside);
    let error = place.refused(arguments);
    println!("{arguments}: {error}");
    for word in words {
        assert!(error.contains(word), "{arguments}: no {word} in {error}");
    }
    assert_eq!(state(place, inside), before, "{arguments}");
}

// Longer than 60 lines: a list of mistakes on one network, after which nothing may be left.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_cannot_join_is_told_why_and_leaves_nothing() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        let web = place.join("cnet", "web", "");
        let (process, namespace) = place.container();
        let pid = process.pid();
        let inside = [&web.namespace, &namespace];
        let web_mac = web.namespace.ip("-o link show eth0");
        let mut words = web_mac
            .split_whitespace()
            .skip_while(|w| *w != "link/ether");
        let web_mac = words.nth(1).expect("an Ethernet address").to_owned();
        let taken = lab.host.listen((HOST_V4, 18081).into());
        let attach = |options: &str| format!("attach {options} {pid}");
        for (options, words) in [
            ("--name web".to_owned(), &["`web`", "another --name"][..]),
            (
                format!("--ip {}", web.v4),
                &[&*web.v4.to_string(), "`web`", "choose another"],
            ),
            (
                format!("--mac {web_mac}"),
                &[&*web_mac, "`web`", "choose another"],
            ),
            (format!("--ip {}", web.gateway), &["gateway's"]),
            (
                "--ip 192.0.2.77".to_owned(),
                &["192.0.2.77", "10.88.0.0/16"],
            ),
            (
                "--network nowhere".to_owned(),
                &["`nowhere`", "cnet network ls"],
            ),
            ("--ifname lo".to_owned(), &["`lo`", "another name"]),
            ("--alias a/b".to_owned(), &["a/b"]),
            (format!("-p {HOST_V4}:18081:80"), &["18081"]),
        ] {
            refused(&place, &inside, &attach(&options), words);
        }
        let twice = format!("attach --name other {}", web.pid());
        refused(&place, &inside, &twice, &["already", "`web`"]);
        refused(&place, &inside, "detach nobody", &["`nobody`", "cnet ps"]);
        refused(
            &place,
            &inside,
            "attach nonsense",
            &["`nonsense`", "process"],
        );
        refused(
            &place,
            &inside,
            "attach /etc/passwd",
            &["/etc/passwd", "network namespace"],
        );
        drop(taken);
        // What was refused holds neither name nor address nor port.
        place.done(&attach(&format!("--name other -p {HOST_V4}:18081:80")));
        drop(process);
        let gone = format!("attach {pid}");
        wait_until("its end is known", super::SHORT, || {
            let listed = place.done("ps").stdout;
            (!listed.contains("other")).then_some(()).ok_or(listed)
        });
        refused(
            &place,
            &[&web.namespace],
            &gone,
            &[&pid.to_string(), "ended"],
        );
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_of_another_user_is_not_for_an_ordinary_one() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    let (process, namespace) = Place::root(&lab).container();
    let attach = format!("attach {}", process.pid());
    refused(
        &place,
        &[&namespace],
        &attach,
        &["no permission", "same user"],
    );
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn networks_that_clash_or_are_in_use_are_told_why() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        place.done("network create lan --subnet 172.27.0.0/16");
        let web = place.join("lan", "web", "");
        for (arguments, words) in [
            ("create lan", &["`lan`", "another name"][..]),
            (
                "create x --subnet 172.27.5.0/24",
                &["172.27.5.0/24", "172.27.0.0/16", "`lan`", "--subnet"],
            ),
            (
                "create x --subnet 10.88.5.0/24",
                &["10.88.0.0/16", "`cnet`", "--subnet"],
            ),
            (
                "create x --subnet 192.0.2.0/25",
                &["192.0.2.0/25", "192.0.2.0/24", "--subnet"],
            ),
            (
                "create x --subnet 172.28.0.1/16",
                &["172.28.0.1/16", "172.28.0.0/16"],
            ),
            (
                "create x --subnet 172.28.0.0/16 --gateway 172.29.0.1",
                &["172.29.0.1"],
            ),
            ("create x --driver macvlan", &["LAN", "--subnet"]),
            ("create x --driver ipvlan", &["ipvlan", "macvlan"]),
            ("create none", &["none"]),
            ("rm lan", &["`lan`", "web", "cnet detach"]),
            ("rm cnet", &["`cnet`", "default"]),
            ("rm nowhere", &["`nowhere`", "cnet network ls"]),
            ("inspect nowhere", &["`nowhere`", "cnet network ls"]),
        ] {
            let inside = [&web.namespace];
            if arguments.starts_with("inspect") {
                let done = place
                    .cnet(&format!("network {arguments}"))
                    .run(super::SHORT);
                assert_eq!((done.code(), &*done.stdout), (Some(1), "[]\n"), "{done}");
                assert!(
                    words.iter().all(|word| done.stderr.contains(word)),
                    "{done}"
                );
                continue;
            }
            refused(&place, &inside, &format!("network {arguments}"), words);
        }
        place.done("detach web");
        place.done("network rm lan");
        assert!(!place.done("network ls").stdout.contains("lan"));
    }
}

/// `cnet ps` lists it, so it is not told that there is no such container.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_on_no_network_is_told_as_one() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let _held = place.cnet("run --name alone -- sleep 600").spawn();
    place.wait_until_listed("alone");
    for arguments in ["detach alone", "dns log alone"] {
        let error = place.refused(arguments);
        assert!(error.contains("`alone` is on no named network"), "{error}");
    }
}
