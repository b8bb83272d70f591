//! `cnet network` on a directory of its own.

use clap::Parser;

use super::json::{Container, Running};
use super::*;
use std::collections::BTreeMap;

#[derive(Parser)]
struct Words {
    #[command(subcommand)]
    command: NetworkCommand,
}

fn parse(line: &str) -> Result<NetworkCommand, clap::Error> {
    let words = std::iter::once("network").chain(line.split_whitespace());
    Words::try_parse_from(words).map(|line| line.command)
}

struct Place {
    _root: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Place {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(Directories {
            config: root.path().join("config"),
            state: root.path().join("state"),
            runtime: root.path().join("runtime"),
        });
        Place { _root: root, store }
    }

    fn run_with(&self, line: &str, ask: Ask<'_>) -> (String, anyhow::Result<()>) {
        let mut out = Vec::new();
        let result = run(
            parse(line).unwrap(),
            &self.store,
            &HostRoutes::default(),
            ask,
            &mut out,
        );
        (String::from_utf8(out).unwrap(), result)
    }

    fn run(&self, line: &str) -> String {
        let (out, result) = self.run_with(line, &|_| Ok(None));
        result.unwrap();
        out
    }
}

/// `one` is on the network `busy`.
fn busy(definition: &Definition) -> anyhow::Result<Live> {
    let container = Container {
        name: "one".into(),
        endpoint_id: String::new(),
        mac_address: String::new(),
        ipv4_address: "10.7.0.2/24".into(),
        ipv6_address: String::new(),
    };
    let running = Running {
        uplinks: Vec::new(),
        containers: BTreeMap::from([("c".repeat(64), container)]),
        counters: None,
    };
    Ok((definition.name == "busy").then_some(running))
}

#[test]
fn all_options_arrive_in_the_definition() {
    let place = Place::new();
    let id = place.run(
        "create web --subnet 192.0.2.0/25 --subnet 2001:db8:7::/64 --gateway 192.0.2.9 \
         --ip-range 192.0.2.64/26 --internal --isolate --require-sandbox --mtu 1400 --dns 192.0.2.53 \
         --dns-search corp.example --label a=b=c --label d --driver bridge",
    );
    let made = place.store.get("web").unwrap();
    assert_eq!(id, format!("{}\n", made.id));
    assert_eq!(made.ipv4.unwrap().gateway.to_string(), "192.0.2.9");
    assert_eq!(
        made.ipv4.unwrap().ip_range.unwrap().to_string(),
        "192.0.2.64/26"
    );
    assert_eq!(made.ipv6.unwrap().gateway.to_string(), "2001:db8:7::1");
    assert!(made.internal && made.isolate && made.require_sandbox);
    assert_eq!(
        (made.mtu, made.dns_search),
        (1400, vec!["corp.example".to_owned()])
    );
    let labels = [
        ("a".to_owned(), "b=c".to_owned()),
        ("d".to_owned(), String::new()),
    ];
    assert_eq!(made.labels, BTreeMap::from(labels));
}

#[test]
fn lists_for_people_and_programs() {
    let place = Place::new();
    place.run("create web --subnet 192.0.2.0/25");
    let table = place.run("ls");
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("NETWORK ID     NAME   DRIVER   SUBNETS"),
        "{table}"
    );
    assert!(
        lines[1].contains("   cnet   bridge   10.88.0.0/16,fd"),
        "{table}"
    );
    assert!(
        lines[2].ends_with("   web    bridge   192.0.2.0/25"),
        "{table}"
    );
    let ids = place.run("ls -q --no-trunc");
    assert_eq!(
        ids.lines().nth(1).unwrap(),
        place.store.get("web").unwrap().id
    );
    let json = place.run("list --format json");
    let line: Line = serde_json::from_str(json.lines().nth(1).unwrap()).unwrap();
    assert_eq!((&*line.name, &*line.ipv6), ("web", "false"));
}

#[test]
fn inspect_shows_who_is_there_and_all_that_was_found() {
    let place = Place::new();
    place.run("create busy --subnet 192.0.2.0/25");
    let (out, result) = place.run_with("inspect busy none cnet nobody", &busy);
    let shown: Vec<Network> = serde_json::from_str(&out).unwrap();
    assert_eq!((&*shown[0].name, &*shown[1].name), ("busy", "cnet"));
    assert_eq!(shown[0].containers["c".repeat(64).as_str()].name, "one");
    assert!(shown[0].cnet.running && !shown[1].cnet.running);
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("`none`") && error.contains("`nobody`"),
        "{error}"
    );
}

#[test]
fn rm_and_prune_leave_what_is_in_use() {
    let place = Place::new();
    for name in ["busy", "a", "b", "c"] {
        place.run(&format!("create {name}"));
    }
    let (out, result) = place.run_with("rm a busy cnet b", &busy);
    assert_eq!(out, "a\nb\n");
    let error = result.unwrap_err().to_string();
    assert!(error.contains("`busy` is in use by one"), "{error}");
    assert!(error.contains("always there"), "{error}");
    let (out, result) = place.run_with("prune --force", &busy);
    assert_eq!((&*out, result.is_ok()), ("c\n", true));
    let left = place.store.list().unwrap();
    assert_eq!(
        left.iter().map(|d| &*d.name).collect::<Vec<_>>(),
        ["busy", "cnet"]
    );
    let (_, result) = place.run_with("prune --force", &|_| bail!("no answer"));
    assert!(
        result
            .unwrap_err()
            .to_string()
            .contains("who is on the network `busy`")
    );
}

#[test]
fn a_socket_that_is_listened_to_is_a_network_in_use() {
    let place = Place::new();
    place.run("create web");
    let web = place.store.get("web").unwrap();
    assert_eq!(listening(&place.store, &web).unwrap(), None);
    let socket = place.store.directories().socket("web");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let ask = |d: &Definition| listening(&place.store, d);
    let (_, result) = place.run_with("rm web", &ask);
    assert!(result.unwrap_err().to_string().contains("in use"));
    drop(listener);
    place
        .run_with("rm web", &ask)
        .1
        .expect("its process has ended");
}

#[test]
fn who_has_come_meanwhile_is_asked_for_again() {
    let place = Place::new();
    place.run("create web");
    place.run("create busy");
    let directories = place.store.directories();
    // No process at first; then one has come. The socket is that of its process.
    let ask = |busy_at: usize| {
        let asked = std::cell::Cell::new(0);
        move |d: &Definition| {
            asked.set(asked.get() + 1);
            match asked.get() < busy_at {
                true => Ok(None),
                false => busy(d),
            }
        }
    };
    for name in ["web", "busy"] {
        directories.make_network_runtime(name).unwrap();
    }
    let bind = |name| std::os::unix::net::UnixListener::bind(directories.socket(name)).unwrap();
    let listeners = ["web", "busy"].map(bind);
    let (_, result) = place.run_with("rm busy", &ask(2));
    assert!(result.unwrap_err().to_string().contains("in use by one"));
    let (_, result) = place.run_with("rm web", &ask(2));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("its process runs"), "{error}");
    let (out, result) = place.run_with("prune --force", &ask(2));
    assert_eq!((&*out, result.is_ok()), ("", true), "in use is no failure");
    drop(listeners);
    assert_eq!(place.run("rm web busy"), "web\nbusy\n");
}

#[test]
fn bad_options_say_why() {
    let error = |line: &str| parse(line).unwrap_err().to_string();
    assert!(error("create").contains("NAME"));
    assert!(error("create n --subnet 10.7.0.0").contains("prefix length, such as"));
    assert!(error("create n --label =x").contains("key is empty"));
    assert!(error("create n --mtu 9").contains("68..=65521"));
    assert!(error("rm").contains("NETWORK"));
    let place = Place::new();
    for (line, why) in [
        ("create none", "no network but loopback"),
        (
            "create n --driver ipvlan",
            "no driver `ipvlan`: there are `bridge`, `overlay` and `macvlan`",
        ),
        ("create n --mtu 1000", "at least 1280"),
        ("create n --dns-search a..b", "`a..b` is no domain"),
        (
            "create n --subnet 10.7.0.1/24",
            "the network itself is 10.7.0.0/24",
        ),
        ("create n --gateway 10.7.0.1", "belongs to no subnet"),
    ] {
        let (_, result) = place.run_with(line, &|_| Ok(None));
        let error = result.unwrap_err().to_string();
        assert!(error.contains(why), "{line}: {error}");
    }
    assert!(!place.store.directories().definition("n").exists());
}

/// Whether a process answers at the network's control socket.
fn listening(store: &Store, definition: &Definition) -> anyhow::Result<Live> {
    let path = store.directories().socket(&definition.name);
    match std::os::unix::net::UnixStream::connect(&path) {
        Ok(_) => Ok(Some(Running::default())),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
            _ => Err(error).with_context(|| path.display().to_string()),
        },
    }
}
