//! What the processes that read containers' frames have given up, as `/proc` tells, and that no process
//! of a command outlives `cnet run`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::lab::container::{self, Slirp};
use crate::lab::place::Place;
use crate::lab::run::{self, SHORT};
use crate::lab::{Lab, processes, wait_until};

fn of(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// A field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(of(pid, "status")).expect("it lives");
    let prefix = format!("{field}:");
    let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
    value.expect("a field").trim().to_owned()
}

fn namespace(pid: u32, kind: &str) -> PathBuf {
    fs::read_link(of(pid, "ns").join(kind)).expect("a namespace")
}

const NONE: &str = "0000000000000000";

/// What every process that reads frames has given up.
fn assert_confined(pid: u32) {
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
    for set in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), NONE, "{set}");
    }
    let environment = fs::read(of(pid, "environ")).expect("an environment");
    let left = environment.split(|byte| *byte == 0).find(|v| !v.is_empty());
    assert_eq!(left.map(String::from_utf8_lossy), None);
    let limits = fs::read_to_string(of(pid, "limits")).expect("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.expect("a limit").split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);
    for kind in ["mnt", "ipc", "uts"] {
        assert_ne!(namespace(pid, kind), namespace(std::process::id(), kind));
    }
}

/// The names in its root directory.
fn root(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(of(pid, "root")).expect("a root");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let names = entries.map(|entry| name(entry).to_string_lossy().into_owned());
    names.collect()
}

/// The processes of this name for `ps` below `parent`.
fn titled(parent: u32, title: &str) -> Vec<u32> {
    let parent = parent.to_string();
    let is_it = |pid: &u32| {
        let line = fs::read(of(*pid, "cmdline")).unwrap_or_default();
        line.starts_with(title.as_bytes())
            && fs::read_to_string(of(*pid, "status")).is_ok_and(|text| {
                text.lines()
                    .any(|line| line.strip_prefix("PPid:\t") == Some(&parent))
            })
    };
    processes().filter(is_it).collect()
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_network_of_a_command_has_given_up_all_but_its_work() {
    let lab = Lab::direct();
    for options in [run::Options::default(), run::Options::ordinary_user()] {
        let mut process = options.shell(&lab, "echo up; exec sleep 60").spawn();
        process.wait_for_line(SHORT, |line| line == "up");
        let network = titled(process.pid(), "cnet: network");
        let [network] = network[..] else {
            panic!("{network:?}");
        };
        assert_confined(network);
        assert!(root(network).is_empty(), "{:?}", root(network));
        for kind in ["user", "pid"] {
            assert_ne!(namespace(network, kind), namespace(process.pid(), kind));
        }
        let helper = titled(process.pid(), "cnet: host files");
        assert_eq!(status(helper[0], "Seccomp"), "2");
        assert_eq!(status(helper[0], "CapBnd").len(), NONE.len());
        let init = titled(process.pid(), "cnet: init");
        assert_eq!(status(init[0], "NoNewPrivs"), "1");
        assert_eq!(status(init[0], "CapEff"), NONE);
        process.signal(Signal::KILL);
        process.wait(SHORT);
        // Their environment, which others are known by, is empty.
        for pid in [network, helper[0], init[0]] {
            wait_until("it ends as well", SHORT, || {
                let state = fs::read_to_string(of(pid, "stat")).unwrap_or_default();
                let ended = state.is_empty() || state.contains(") Z ");
                ended.then_some(()).ok_or(state)
            });
        }
        lab.assert_nothing_left(&[], SHORT);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn slirp_has_given_up_all_but_its_work() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &container::Options::with("-c --require-sandbox"));
    assert_confined(slirp.process.pid());
    assert!(root(slirp.process.pid()).is_empty());
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_networks_process_sees_its_own_directories_alone() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        let _web = place.join("cnet", "web", "");
        let process = place.process("cnet").expect("a process");
        let pid = process.as_raw_nonzero().get().cast_unsigned();
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        assert_eq!(status(pid, "Seccomp"), "2");
        // Root keeps what it may publish low ports by.
        let kept = ["0000000000000400", NONE];
        assert!(kept.contains(&&*status(pid, "CapEff")));
        assert!(kept.contains(&&*status(pid, "CapBnd")));
        let mut at = of(pid, "root");
        // Down to the runtime directory there is one name in each directory.
        for part in place.runtime.strip_prefix("/").expect("absolute").iter() {
            let names = fs::read_dir(&at).expect("a directory").count();
            assert_eq!(names, 1, "{}", at.display());
            at.push(part);
        }
        place.done("detach web");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn no_process_of_the_command_outlives_a_killed_run() {
    let lab = Lab::direct();
    for options in [run::Options::default(), run::Options::ordinary_user()] {
        let script = "sleep 61 & setsid sleep 62 & (sleep 63 &); echo $$; sleep 64";
        let mut process = options.shell(&lab, script).spawn();
        let own = process.wait_for_line(SHORT, |line| line.parse::<u32>().is_ok());
        assert_eq!(own, "2", "the command's number in its PID namespace");
        process.signal(Signal::KILL);
        process.wait(SHORT);
        wait_until("all are gone", Duration::from_secs(1), || {
            let left = lab.survivors(&[]);
            left.is_empty().then_some(()).ok_or(format!("{left:?}"))
        });
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_that_requires_the_sandbox_joins_no_network_without_it() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let (holder, _namespace) = place.container();
    let without = |arguments: &str| place.cnet(arguments).env("CNET_SANDBOX", "off").run(SHORT);
    let attach = format!("attach --require-sandbox --name web {}", holder.pid());
    let refused = without(&attach);
    assert_eq!(refused.code(), Some(1), "{refused}");
    assert!(
        refused.stderr.contains("outside of any sandbox"),
        "{refused}"
    );
    place.done("network create safe --require-sandbox");
    let joined = without(&attach.replace("attach", "attach --network safe"));
    assert!(joined.success(), "the definition insists: {joined}");
    let run = "run --network safe --require-sandbox -- true";
    assert!(without(run).success());
    place.done("detach web");
}
