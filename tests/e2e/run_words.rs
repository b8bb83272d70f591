//! `cnet run` in the words of `docker run` and `podman run`: in the background, with a terminal, with
//! the users of /etc/subuid; and `exec`, `logs`, `stop` and the rest for what it holds.

use std::fs;
use std::path::PathBuf;

use crate::lab::place::Place;
use crate::lab::run::{Options, SHORT};
use crate::lab::{Lab, wait_until};

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_in_the_background_is_listed_asked_and_ended() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        // The real-time signal of `systemd`'s halt.
        let script = "trap 'echo got; exit 9' RTMIN+3; echo up; while :; do sleep 0.05; done";
        let run = place.cnet("run -d --name job -e COLOUR=green -p 127.0.0.1:18080:80 -- bash -c");
        let started = run.arg(script).run(SHORT);
        assert!(started.success(), "{started}");
        let id = started.stdout.trim();
        assert_eq!(id.len(), 64, "{started}");
        let shown = place.done("ps --format {{.Name}}|{{.Network}}|{{.IPv4}}|{{.Ports}}|{{.ID}}");
        let expected = format!("job|private|10.0.2.100|127.0.0.1:18080->80/tcp|{id}\n");
        assert_eq!(shown.stdout, expected);
        let inside = "echo $COLOUR$MOOD; ip -br addr show eth0; cat /proc/1/comm /proc/1/cmdline";
        let exec = place.cnet("exec -e MOOD=good job sh -c").arg(inside);
        let done = exec.run(SHORT);
        assert!(done.stdout.starts_with("good\neth0"), "{done}");
        assert!(done.stdout.contains("10.0.2.100/24"), "{done}");
        assert!(done.stdout.contains("cnet\ncnet: init"), "{done}");
        let done = place.cnet("exec job sh -c").arg("exit 5").run(SHORT);
        assert_eq!(done.code(), Some(5), "{done}");
        let logged = |wanted: &str| {
            wait_until("the log", SHORT, || {
                let text = place.done("logs job").stdout;
                (text == wanted).then_some(()).ok_or(text)
            });
        };
        logged("up\n");
        place.done("kill -s SIGRTMIN+3 job");
        logged("up\ngot\n");
        wait_until("its end", SHORT, || {
            let text = place.done("ps -a --format {{.Name}}:{{.Status}}").stdout;
            (text == "job:Exited (9)\n").then_some(()).ok_or(text)
        });
        place.done("rm job");
        assert_eq!(place.done("ps -aq").stdout, "");
        place.done("run -d --rm --name short -- sleep 600");
        place.done("stop -t 3 short");
        wait_until("its end", SHORT, || {
            let text = place.done("ps -aq").stdout;
            text.is_empty().then_some(()).ok_or(text)
        });
        let done = place.cnet("run -d --network nowhere -- true").run(SHORT);
        assert_eq!(done.code(), Some(125), "{done}");
        assert!(done.stderr.contains("no network `nowhere`"), "{done}");
    }
    lab.assert_nothing_left(&[], SHORT);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_terminal_of_its_own_is_given_and_the_users_is_set_back() {
    let lab = Lab::direct();
    let cnet = crate::lab::binaries::binary("cnet").display().to_string();
    // `script` gives what it runs a terminal.
    let in_terminal = |line: &str| {
        let script = lab.command("script");
        let words = ["--quiet", "--return", "--command", line, "/dev/null"];
        script.args(words).input("typed\n").run(SHORT)
    };
    let inner = "test -t 0 && ps -o sid= -p $$ && read -r line && echo \"<$line>\" && exit 4";
    let done = in_terminal(&format!("{cnet} run -it -- sh -c '{inner}'"));
    assert_eq!(done.code(), Some(4), "{done}");
    assert!(done.stdout.contains("<typed>"), "{done}");
    // A command that is killed leaves the terminal as it had set it, and that is set back.
    let killed = "stty -echo -icanon; kill -KILL $$";
    for options in ["", "-t"] {
        let line = format!("{cnet} run {options} -- sh -c '{killed}'; stty -a");
        let done = in_terminal(&line);
        assert!(done.stdout.contains(" echo "), "{options}: {done}");
        assert!(done.stdout.contains(" icanon "), "{options}: {done}");
    }
    let done = Options::with("-t").command(&lab, &["true"]).run(SHORT);
    assert!(
        done.success() && done.stderr.contains("no terminal"),
        "{done}"
    );
    lab.assert_nothing_left(&[], SHORT);
}

/// A command that leaves its process group is noticed to end all the same.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_command_in_a_session_of_its_own_ends_its_container() {
    let lab = Lab::direct();
    let script = "import os; os.setpgid(0, 0); raise SystemExit(3)";
    let done = Options::default().command(&lab, &["python3", "-c", script]);
    assert_eq!(done.run(SHORT).code(), Some(3));
    lab.assert_nothing_left(&[], SHORT);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn several_networks_links_and_a_process_to_share_with() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    place.done("network create lan --subnet 10.70.0.0/24");
    place.done("network create wan --subnet 10.71.0.0/24");
    let db = place.run("lan", "db", "--mac-address 02:00:00:00:00:07");
    assert!(
        db.namespace
            .ip("link show eth0")
            .contains("02:00:00:00:00:07")
    );
    let options =
        "--net lan:ip=10.70.0.9,alias=front --network name=wan,ip=10.71.0.9 --link db:store";
    let script = "ip -br addr; getent hosts store; ping -n -c 1 -W 1 db >/dev/null && echo reached";
    let done = place.shell(options, script);
    assert!(done.success(), "{done}");
    for told in [
        "10.70.0.9/24",
        "eth1",
        "10.71.0.9/24",
        &db.v4.to_string(),
        "reached",
    ] {
        assert!(done.stdout.contains(told), "{told}: {done}");
    }
    let shared = place.shell(&format!("--network container:{}", db.pid()), "ip -br addr");
    assert!(
        !shared.stdout.contains("10.70.0."),
        "`cnet run` itself is outside: {shared}"
    );
    let pid = place.done("ps --format {{.PID}}").stdout;
    let shared = place.shell(
        &format!("--network container:{}", pid.trim()),
        "ip -br addr",
    );
    assert!(shared.stdout.contains(&db.v4.to_string()), "{shared}");
    let error = place.shell("--network lan --link nobody", "true");
    assert!(error.stderr.contains("--link nobody"), "{error}");
}

/// An `/etc` in which the ordinary user has a range.
fn etc_with_ranges(lab: &Lab) -> PathBuf {
    let etc = lab.directory().join("etc");
    fs::create_dir_all(&etc).expect("a directory");
    let files = [
        (
            "passwd",
            "root:x:0:0:root:/:/bin/sh\nann:x:12345:12345:ann:/:/bin/sh\nother:x:7:7:o:/:/bin/sh\n",
        ),
        ("group", "root:x:0:\nann:x:12345:\nother:x:7:\n"),
        ("subuid", "ann:100000:65536\n"),
        ("subgid", "ann:100000:65536\n"),
        ("resolv.conf", "nameserver 192.0.2.1\n"),
    ];
    for (name, text) in files {
        fs::write(etc.join(name), text).expect("a file");
    }
    etc
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn an_ordinary_user_has_its_ranges_inside_and_can_keep_its_number() {
    let lab = Lab::direct();
    let etc = etc_with_ranges(&lab);
    let with = |arguments: &str| Options {
        etc: Some(etc.clone()),
        arguments: arguments.to_owned(),
        ..Options::ordinary_user()
    };
    let change =
        "id -u; setpriv --reuid 7 --regid 7 --clear-groups id -u; wc -l </proc/self/uid_map";
    for options in ["", "--map-users"] {
        let done = with(options).shell(&lab, change).run(SHORT);
        assert_eq!(done.stdout, "0\n7\n2\n", "{options}: {done}");
    }
    let done = with("--keep-uid")
        .shell(&lab, "id -u; ip -br addr show eth0")
        .run(SHORT);
    assert!(done.stdout.starts_with("12345\neth0"), "{done}");
    fs::write(etc.join("subuid"), "").expect("a file");
    let done = with("")
        .shell(&lab, "id -u; wc -l </proc/self/uid_map")
        .run(SHORT);
    assert_eq!(done.stdout, "0\n1\n", "{done}");
    let done = with("--map-users").shell(&lab, "true").run(SHORT);
    assert_eq!(done.code(), Some(125), "{done}");
    assert!(done.stderr.contains("usermod --add-subuids"), "{done}");
}
