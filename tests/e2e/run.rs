//! `cnet run`: the command's exit, signals, input and terminal are its own, and nothing is left
//! behind.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;

use crate::lab::binaries::binary;
use crate::lab::run::{Held, Options, SHORT};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::connect_and_echo;
use crate::lab::{Lab, REMOTE_V4};

const AT_ONCE: Duration = Duration::from_secs(1);

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_commands_exit_code_is_its_own() {
    let lab = Lab::direct();
    for options in [Options::default(), Options::ordinary_user()] {
        for code in [0, 1, 42, 255] {
            let script = format!("exit {code}");
            let done = options.shell(&lab, &script).run(SHORT);
            assert_eq!(done.code(), Some(code), "{done}");
        }
        lab.assert_nothing_left(&[], AT_ONCE);
        if options.user.is_some() {
            break;
        }
    }
}

/// As a shell reports it: 128 and the signal's number; 127 and 126 for what cannot be run.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_command_that_died_or_never_ran_is_reported_as_a_shell_does() {
    let lab = Lab::direct();
    let options = Options::default();
    let done = options.shell(&lab, "kill -TERM $$").run(SHORT);
    assert_eq!(done.code(), Some(128 + 15), "{done}");
    let done = options.shell(&lab, "kill -KILL $$").run(SHORT);
    assert_eq!(done.code(), Some(128 + 9), "{done}");
    let done = options.command(&lab, &["/nonexistent/program"]).run(SHORT);
    assert_eq!(done.code(), Some(127), "{done}");
    assert!(done.stderr.contains("/nonexistent/program"), "{done}");
    let document = lab.file("document", "not a program\n");
    let document = document.to_str().expect("a UTF-8 path");
    let done = options.command(&lab, &[document]).run(SHORT);
    assert_eq!(done.code(), Some(126), "{done}");
    lab.assert_nothing_left(&[], AT_ONCE);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn signals_reach_the_command() {
    let lab = Lab::direct();
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
    ] {
        let script =
            format!("trap 'echo got {name}; exit 7' {name}; echo up; while :; do sleep 0.05; done");
        let mut process = Options::default().shell(&lab, &script).spawn();
        process.wait_for_line(SHORT, |line| line == "up");
        process.signal(signal);
        process.wait_for_line(SHORT, |line| line == format!("got {name}"));
        let status = process.wait(AT_ONCE);
        let status = status.unwrap_or_else(|| panic!("still there: {process}"));
        assert_eq!(status.code(), Some(7), "{process}");
        lab.assert_nothing_left(&[], AT_ONCE);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn input_arguments_directory_and_environment_are_the_commands() {
    let lab = Lab::direct();
    let done = Options::default()
        .command(&lab, &["cat"])
        .input("typed\n")
        .run(SHORT);
    assert!(done.success() && done.stdout == "typed\n", "{done}");
    let done = Options::default()
        .command(&lab, &["printf", "%s|", "-p", "two words", "--", ""])
        .run(SHORT);
    assert_eq!(done.stdout, "-p|two words|--||", "{done}");
    let done = Options::default()
        .shell(&lab, "echo $COLOUR; pwd; echo aside >&2")
        .env("COLOUR", "green")
        .run(SHORT);
    let directory = std::env::current_dir().expect("a working directory");
    let expected = format!("green\n{}\n", directory.display());
    assert_eq!(done.stdout, expected, "{done}");
    assert!(done.stderr.contains("aside"), "{done}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_terminal_is_the_commands() {
    let lab = Lab::direct();
    let program = binary("cnet").display().to_string();
    // `script` gives what it runs a terminal of its own. To read from it, the command has to be in
    // the terminal's foreground.
    let inner = format!(
        "{program} run -- sh -c 'test -t 0 && test -t 1 && stty -echo && read -r line && echo \"read $line\"'"
    );
    let done = lab
        .command("script")
        .args(["--quiet", "--return", "--command", &inner, "/dev/null"])
        .input("typed\n")
        .run(SHORT);
    assert!(done.success(), "{done}");
    assert!(done.stdout.contains("read typed"), "{done}");
    lab.assert_nothing_left(&[], AT_ONCE);
}

/// What there is of the machine before and after.
fn traces(lab: &Lab, runtime: &std::path::Path) -> [String; 4] {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("a list");
    let runtime = fs::read_dir(runtime).expect("our directory").flatten();
    let runtime: Vec<_> = runtime.map(|entry| entry.path()).collect();
    [
        mounts,
        lab.host.ip("-o link"),
        lab.host.ip("route show table all"),
        format!("{runtime:?}"),
    ]
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn nothing_is_left_behind() {
    let lab = Lab::direct();
    for (index, options) in [Options::default(), Options::ordinary_user()]
        .into_iter()
        .enumerate()
    {
        let user = options.user.unwrap_or(0);
        let runtime = lab.private_directory(&format!("runtime{index}"), user);
        let before = traces(&lab, &runtime);
        let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
        // A child of the command that outlives it, and a connection in use.
        let script = format!(
            "exec 3<>/dev/tcp/{REMOTE_V4}/{}; sleep 600 & exit 3",
            server.address.port()
        );
        let done = options
            .command(&lab, &["bash", "-c", &script])
            .env("XDG_RUNTIME_DIR", &runtime)
            .run(SHORT);
        assert_eq!(done.code(), Some(3), "{done}");
        let after = traces(&lab, &runtime);
        assert_eq!(after, before);
        // What the command itself has left running is its own; of ours nothing is there.
        let left = lab.survivors(&[]);
        let ours = left
            .iter()
            .filter(|survivor| format!("{survivor:?}").contains("cnet run"));
        assert_eq!(ours.count(), 0, "{left:?}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn killed_it_leaves_no_process() {
    let lab = Lab::direct();
    for options in [Options::default(), Options::ordinary_user()] {
        let mut held = Held::start(&lab, &options);
        held.process.signal(Signal::KILL);
        assert!(held.process.wait(AT_ONCE).is_some());
        lab.assert_nothing_left(&[], AT_ONCE);
    }
}

/// Two at once, each with a network of its own.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn several_run_side_by_side() {
    let lab = Lab::direct();
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let held: Vec<Held> = (0..4)
        .map(|_| Held::start(&lab, &Options::default()))
        .collect();
    for held in &held {
        let echoed = connect_and_echo(&held.namespace, server.address, b"side by side");
        echoed.expect("a connection");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn mistakes_are_named() {
    let lab = Lab::direct();
    for (arguments, named) in [
        ("--no-such-option", "--no-such-option"),
        ("-p nonsense", "nonsense"),
        ("-p 80:80/sctp", "sctp"),
        ("-p 70000:80", "70000"),
    ] {
        let done = Options::with(arguments).command(&lab, &["true"]).run(SHORT);
        assert!(!done.success(), "{done}");
        assert!(done.stderr.contains(named), "{done}");
    }
}
