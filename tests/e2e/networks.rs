//! Named networks: containers join and leave while others run, find each other and the world, and
//! keep their places when the network's process is killed.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::lab::namespace::Namespace;
use crate::lab::process::{Finished, Launch, Running};
use crate::lab::run::SHORT;
use crate::lab::{Lab, REMOTE_V4, processes, wait_until};

/// How long a killed network may be away.
const BACK: Duration = Duration::from_millis(500);

/// `cnet` with directories of its own.
pub struct Place<'a> {
    lab: &'a Lab,
    runtime: PathBuf,
}

impl<'a> Place<'a> {
    /// Without any networks yet.
    pub fn new(lab: &'a Lab) -> Self {
        let runtime = lab.private_directory("networks", 0);
        Self { lab, runtime }
    }

    /// `cnet` with these arguments, split at spaces.
    pub fn cnet(&self, arguments: &str) -> Launch {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_cnet"));
        let launch = self.lab.program(&program, None);
        let launch = launch.args(arguments.split_whitespace());
        ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME"]
            .iter()
            .fold(launch, |launch, name| launch.env(name, &self.runtime))
    }

    /// Runs it; it has to succeed.
    pub fn done(&self, arguments: &str) -> Finished {
        let done = self.cnet(arguments).run(SHORT);
        assert!(done.success(), "{arguments}: {done}");
        done
    }

    /// The network's process: the one that has a child, the opener, which looks the same.
    pub fn process(&self) -> Pid {
        let runtime = format!("XDG_RUNTIME_DIR={}", self.runtime.display());
        let found = processes().find(|pid| {
            let read =
                |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let has = |name: &str, word: &str| read(name).split('\0').any(|w| w == word);
            has("cmdline", "network-process")
                && has("environ", &runtime)
                && !read(&format!("task/{pid}/children")).trim().is_empty()
        });
        let pid = found.and_then(|pid| Pid::from_raw(pid.cast_signed()));
        pid.expect("a network process")
    }
}

/// A container that somebody else has made: a process in namespaces of its own.
pub fn container(lab: &Lab, unshare: &str) -> (Running, Namespace) {
    let script = "echo here; exec sleep 1800";
    let launch = lab.command("unshare").args(unshare.split_whitespace());
    let mut process = launch.args(["--", "sh", "-c", script]).spawn();
    process.wait_for_line(SHORT, |line| line == "here");
    let namespace = Namespace::of_process(process.pid());
    (process, namespace)
}

fn pings(from: &Namespace, whom: &str) -> bool {
    let ping = Launch::new("ping").namespace(from);
    ping.args(["-c", "1", "-W", "1", whom]).run(SHORT).success()
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn containers_join_find_each_other_survive_a_crash_and_leave() {
    let lab = Lab::direct();
    let place = Place::new(&lab);
    let (web, web_namespace) = container(&lab, "--user --map-root-user --net");
    let (db, db_namespace) = container(&lab, "--net");
    let joined = place.done(&format!("attach --name web --alias www {}", web.pid()));
    assert!(
        joined.stdout.starts_with("web eth0 10.88.0.2/16"),
        "{joined}"
    );
    place.done(&format!(
        "attach --name db -p 127.0.0.1:18080:80 {}",
        db.pid()
    ));
    assert!(pings(&db_namespace, "10.88.0.2"), "by address");
    assert!(pings(&web_namespace, &REMOTE_V4.to_string()), "the world");
    let resolved = place
        .cnet("run --network cnet -- getent ahostsv4 www")
        .run(SHORT);
    assert!(resolved.stdout.contains("10.88.0.2"), "{resolved}");
    let refused = place
        .cnet(&format!("attach --name web {}", db.pid()))
        .run(SHORT);
    assert_eq!(refused.code(), Some(1), "{refused}");
    assert!(refused.stderr.contains("`web`"), "{refused}");

    rustix::process::kill_process(place.process(), Signal::KILL).expect("a process to kill");
    let killed = Instant::now();
    let listed = place.done("ps");
    assert!(pings(&db_namespace, "10.88.0.2"), "after the crash");
    assert!(killed.elapsed() < BACK, "{:?}", killed.elapsed());
    for kept in ["10.88.0.2/16", "10.88.0.3/16", "127.0.0.1:18080->80/tcp"] {
        assert!(listed.stdout.contains(kept), "{listed}");
    }

    place.done("detach db");
    let gone = db_namespace.enter(|| cnet_tap::netif::index_of("eth0").is_err());
    assert!(gone, "the interface is left");
    drop(web);
    wait_until("the network is empty", SHORT, || {
        let listed = place.done("ps").stdout;
        match listed.lines().count() {
            1 => Ok(()),
            _ => Err(listed),
        }
    });
    lab.assert_nothing_left(&[db.pid()], Duration::from_secs(3));
}
