//! What each process of cnet's has given up, as `/proc` tells, beside pasta and slirp4netns with its two
//! options of that kind: the process that reads frames is in no column weaker than either, and in four at
//! least stricter. All run as an ordinary user, with a descriptor open that is none of theirs.
//!
//! The table is printed; SECURITY.md has it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::Pid;

use crate::caller::has;
use crate::lab::container::{Container, Options, READY, Slirp};
use crate::lab::place::Place;
use crate::lab::process::{Launch, Running};
use crate::lab::run::SHORT;
use crate::lab::{Lab, ORDINARY_USER, processes, run, wait_until};

/// The columns after the name.
const COLUMNS: [&str; 9] = [
    "capabilities",
    "bounding set",
    "new privileges",
    "seccomp",
    "own namespaces",
    "names in its root",
    "dumpable",
    "variables",
    "descriptors (inherited)",
];

/// What reads the frames of a named network.
const NETWORK_PROCESS: &str = "network process";

/// A process, and for each column what is shown and how weak that is: 0 is best.
struct Row {
    name: &'static str,
    cells: [(String, u64); 9],
}

impl Row {
    fn of(name: &'static str, pid: u32) -> Row {
        let at = |file: &str| format!("/proc/{pid}/{file}");
        let text = fs::read_to_string(at("status")).expect("it lives");
        let field = |field: &str| {
            let prefix = format!("{field}:\t");
            let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
            value.unwrap_or_default().to_owned()
        };
        let bits = |set: &str| {
            let set = u64::from_str_radix(&field(set), 16).expect("a set");
            let count: u64 = set.count_ones().into();
            match count {
                0 => ("none".to_owned(), 0),
                count => (count.to_string(), count),
            }
        };
        let no_new = field("NoNewPrivs") == "1";
        let filtered = field("Seccomp") == "2";
        let kinds = ["user", "mnt", "pid", "ipc", "uts"];
        let shared = kinds.iter().filter(|kind| {
            let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
            link(&pid.to_string()) == link("self")
        });
        let shared = shared.count();
        let names = fs::read_dir(at("root")).map_or(0, Iterator::count);
        // The files of a process that is not dumpable are given to root (`task_dump_owner` in
        // fs/proc/base.c).
        let owner = fs::metadata(at("environ")).expect("it lives").uid();
        let dumpable = owner == ORDINARY_USER;
        let variables = fs::read(at("environ")).unwrap_or_default();
        let variables = variables
            .split(|byte| *byte == 0)
            .filter(|one| !one.is_empty());
        let variables = variables.count();
        let open = fs::read_dir(at("fd")).expect("it lives").flatten();
        let links: Vec<_> = open
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .collect();
        let inherited = links
            .iter()
            .filter(|link| *link == Path::new(FOREIGN))
            .count();
        let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        Row {
            name,
            cells: [
                bits("CapEff"),
                bits("CapBnd"),
                (yes(!no_new), u64::from(!no_new)),
                (yes(filtered), u64::from(!filtered)),
                (format!("{} of 5", kinds.len() - shared), shared as u64),
                (names.to_string(), names as u64),
                (yes(dumpable), u64::from(dumpable)),
                (variables.to_string(), variables as u64),
                (format!("{} ({inherited})", links.len()), inherited as u64),
            ],
        }
    }

    fn line(&self) -> String {
        let cells: Vec<&str> = self.cells.iter().map(|(text, _)| text.as_str()).collect();
        format!("| {} | {} |", self.name, cells.join(" | "))
    }

    /// In no column weaker than `peer`, and in four at least stricter.
    fn assert_stricter(&self, peer: &Row) {
        // The process of a named network has its own directories, which none of the peers has.
        let apart = |column: &str| self.name == NETWORK_PROCESS && column == COLUMNS[5];
        let columns = COLUMNS.iter().zip(self.cells.iter().zip(&peer.cells));
        let columns = || columns.clone().filter(|(column, _)| !apart(column));
        for (column, ((own, weak), (theirs, peers))) in columns() {
            assert!(
                weak <= peers,
                "{column}: {} {own}, {} {theirs}",
                self.name,
                peer.name
            );
        }
        let stricter = columns().filter(|(_, ((_, weak), (_, peers)))| weak < peers);
        let stricter = stricter.count();
        assert!(stricter >= 4, "{} and {}: {stricter}", self.name, peer.name);
    }
}

/// What the descriptor leads to that every program finds open.
const FOREIGN: &str = "/etc";

fn foreign() -> OwnedFd {
    fs::File::open(FOREIGN).expect("a directory").into()
}

/// Processes that descend from `pid`, and how `ps` shows them.
fn descendants(pid: u32) -> Vec<(u32, String)> {
    let parent = |pid: u32| -> Option<u32> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = text.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        parent.trim().parse().ok()
    };
    let descends = |one: &u32| {
        let mut above = *one;
        std::iter::from_fn(|| {
            above = parent(above)?;
            Some(above)
        })
        .any(|above| above == pid)
    };
    let title = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let all = processes().filter(descends);
    all.map(|pid| (pid, String::from_utf8_lossy(&title(pid)).into_owned()))
        .collect()
}

fn titled(pid: u32, title: &str) -> u32 {
    let all = descendants(pid);
    let found = all.iter().find(|(_, line)| line.starts_with(title));
    found
        .unwrap_or_else(|| panic!("no {title} among {all:?}"))
        .0
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().cast_unsigned()
}

/// The processes of `cnet run`.
fn of_run(lab: &Lab) -> (Running, Vec<Row>) {
    let shell = run::Options::ordinary_user().shell(lab, "echo up; exec sleep 60");
    let mut process = shell.keep(foreign()).spawn();
    process.wait_for_line(SHORT, |line| line == "up");
    let pid = process.pid();
    let rows = vec![
        Row::of("network of `cnet run`", titled(pid, "cnet: network")),
        Row::of("its host files", titled(pid, "cnet: host files")),
        Row::of("its init", titled(pid, "cnet: init")),
    ];
    (process, rows)
}

/// The processes of a named network.
fn of_network(place: &Place<'_>) -> Vec<Row> {
    let process = number(place.process("cnet").expect("a network process"));
    let family = descendants(number(parent_of(process)));
    let others = family
        .iter()
        .map(|(pid, _)| *pid)
        .filter(|pid| *pid != process);
    let others: Vec<u32> = others.collect();
    let filtered = |pid: &&u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains("Seccomp:\t2")
    };
    let helper = others.iter().find(filtered).expect("a helper");
    let watcher = others.iter().find(|pid| !filtered(pid)).expect("a watcher");
    vec![
        Row::of(NETWORK_PROCESS, process),
        Row::of("its process outside", number(parent_of(process))),
        Row::of("its namespace helper", *helper),
        Row::of("its watchers", *watcher),
    ]
}

fn parent_of(pid: u32) -> Pid {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let parent = text.lines().find_map(|line| line.strip_prefix("PPid:"));
    let parent = parent.and_then(|parent| parent.trim().parse().ok());
    parent.and_then(Pid::from_raw).expect("a parent")
}

/// A peer that serves a container, once its interface is there.
fn peer(lab: &Lab, launch: impl FnOnce(u32) -> Launch) -> (Container, Running) {
    let container = Container::start(lab, Some(ORDINARY_USER));
    let process = lab.mark(launch(container.pid())).keep(foreign()).spawn();
    wait_until("a second interface", READY, || {
        let links = container.namespace.ip("-o link");
        (links.lines().count() > 1)
            .then_some(())
            .ok_or(process.to_string())
    });
    (container, process)
}

/// The process that has the TAP open: the one that reads frames.
fn reader(of: &Running) -> u32 {
    let reads = |pid: &u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.any(|link| link.file_name().is_some_and(|name| name == "tun"))
    };
    let is_confined = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains("Seccomp:\t2")
    };
    wait_until("its sandbox", READY, || {
        let family = descendants(of.pid()).into_iter().map(|(pid, _)| pid);
        let mut family = std::iter::once(of.pid()).chain(family);
        let found = family.find(|pid| reads(pid) && is_confined(pid));
        found.ok_or_else(|| of.to_string())
    })
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn no_process_that_reads_frames_keeps_more_than_its_peers_do() {
    let lab = Lab::direct();
    let user = |name: &str| {
        lab.command(name)
            .user(ORDINARY_USER, lab.directory())
            .tun_mode(0o666)
    };
    let (_run, mut rows) = of_run(&lab);
    let place = Place::ordinary(&lab);
    let web = place.join("cnet", "web", "");
    rows.extend(of_network(&place));
    let options = Options::ordinary_user();
    let slirp = Slirp::start(&lab, &options);
    rows.push(Row::of("`cnet-slirp`", slirp.process.pid()));
    let own = rows.len();
    let mut kept = Vec::new();
    if has(&["slirp4netns"]) {
        let (container, process) = peer(&lab, |pid| {
            let options = ["-c", "--enable-sandbox", "--enable-seccomp"];
            user("slirp4netns")
                .args(options)
                .arg(pid.to_string())
                .arg("tap0")
        });
        rows.push(Row::of(
            "slirp4netns, sandbox and seccomp on",
            reader(&process),
        ));
        kept.push((container, process));
    }
    if has(&["pasta"]) {
        let (container, process) = peer(&lab, |pid| {
            user("pasta")
                .args(["--foreground", "--config-net"])
                .arg(pid.to_string())
        });
        rows.push(Row::of("pasta", reader(&process)));
        kept.push((container, process));
    }
    println!("| process | {} |", COLUMNS.join(" | "));
    println!("|---|{}", "---|".repeat(COLUMNS.len()));
    for row in &rows {
        println!("{}", row.line());
    }
    let (ours, peers) = rows.split_at(own);
    let readers = ["network of `cnet run`", NETWORK_PROCESS, "`cnet-slirp`"];
    for row in ours.iter().filter(|row| readers.contains(&row.name)) {
        for peer in peers {
            row.assert_stricter(peer);
        }
    }
    drop((web, kept));
}
