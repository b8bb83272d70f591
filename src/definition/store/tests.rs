//! The store on a directory of its own.

use std::sync::Arc;
use std::thread;

use super::super::file_format::NEVER;
use super::*;

struct Place {
    _root: tempfile::TempDir,
    store: Store,
}

fn place() -> Place {
    let root = tempfile::tempdir().unwrap();
    let directories = Directories {
        config: root.path().join("config"),
        state: root.path().join("state"),
        runtime: root.path().join("runtime"),
    };
    Place {
        _root: root,
        store: Store::open(directories),
    }
}

fn route(network: &str) -> HostRoutes {
    let network: ipnet::Ipv4Net = network.parse().unwrap();
    let hex = |a: std::net::Ipv4Addr| format!("{:08X}", u32::from_ne_bytes(a.octets()));
    let (address, mask) = (hex(network.network()), hex(network.netmask()));
    let line = format!("header\neth7 {address} 00000000 0001 0 0 0 {mask} 0 0 0\n");
    HostRoutes::parse(&line, "")
}

fn none() -> HostRoutes {
    HostRoutes::default()
}

fn with_subnets(name: &str, subnets: &[&str]) -> Request {
    Request {
        subnets: subnets.iter().map(|s| s.parse().unwrap()).collect(),
        ..Request::new(name)
    }
}

fn subnets(definition: &Definition) -> Vec<String> {
    definition.subnets().map(|s| s.to_string()).collect()
}

#[test]
fn the_default_is_there_without_a_file() {
    let Place { store, .. } = place();
    let default = store.get("cnet").unwrap();
    assert_eq!(subnets(&default)[0], "10.88.0.0/16");
    assert_eq!(default.ipv4.unwrap().gateway.to_string(), "10.88.0.1");
    assert!(subnets(&default)[1].starts_with("fd"));
    assert_eq!(default.check(), Ok(()));
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&default));
    assert_eq!(store.settle("cnet", &none()).unwrap(), default);
    assert!(
        !store.directories().networks().exists(),
        "nothing was written"
    );
    let other = place();
    assert_ne!(
        other.store.get("cnet").unwrap().id,
        default.id,
        "each user's own"
    );
    assert!(matches!(
        store.remove("cnet", None),
        Err(StoreError::Default)
    ));
    let error = store.create(Request::new("cnet"), &none()).unwrap_err();
    assert!(matches!(error, StoreError::Exists(_)), "{error}");
}

#[test]
fn the_default_moves_out_of_the_hosts_way_once() {
    let Place { store, .. } = place();
    store.create(Request::new("first"), &none()).unwrap();
    let moved = store.settle("cnet", &route("10.88.0.0/16")).unwrap();
    assert_eq!(subnets(&moved)[0], "10.89.1.0/24");
    assert_ne!(moved.created, NEVER);
    assert_eq!(store.get("cnet").unwrap(), moved);
    assert_eq!(store.settle("cnet", &route("10.89.0.0/16")).unwrap(), moved);
}

#[test]
fn the_default_stays_while_somebody_is_on_it() {
    let Place { store, .. } = place();
    let default = store.get("cnet").unwrap();
    let state = store.directories().state_file("cnet");
    std::fs::create_dir_all(state.parent().unwrap()).unwrap();
    std::fs::write(&state, "{}").unwrap();
    let settled = |store: &Store| store.settle("cnet", &route("10.88.0.0/16")).unwrap();
    assert_eq!(settled(&store), default);
    std::fs::remove_file(&state).unwrap();
    assert_ne!(settled(&store), default);
}

#[test]
fn networks_get_subnets_that_nobody_has() {
    let Place { store, .. } = place();
    let routes = route("10.89.1.0/24");
    let first = store.create(Request::new("first"), &routes).unwrap();
    let second = store.create(Request::new("second"), &routes).unwrap();
    assert_eq!(subnets(&first)[0], "10.89.0.0/24");
    assert_eq!(subnets(&second)[0], "10.89.2.0/24");
    assert_ne!(subnets(&first)[1], subnets(&second)[1]);
    assert_eq!(store.get("first").unwrap(), first);
    assert_eq!(store.get(&second.id[..12]).unwrap(), second);
    let names: Vec<_> = store.list().unwrap().into_iter().map(|d| d.name).collect();
    assert_eq!(names, ["cnet", "first", "second"]);
    assert!(humantime::parse_rfc3339(&first.created).is_ok());
}

#[test]
fn clashes_are_named() {
    let Place { store, .. } = place();
    store
        .create(with_subnets("a", &["172.27.0.0/16", "fd12::/64"]), &none())
        .unwrap();
    let error = |subnet: &str, routes: &HostRoutes| {
        store
            .create(with_subnets("b", &[subnet]), routes)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error("172.27.9.0/24", &none()),
        "172.27.9.0/24 overlaps 172.27.0.0/16 of the network `a`: choose another --subnet"
    );
    assert!(error("fd12::/48", &none()).contains("fd12::/64 of the network `a`"));
    assert!(error("10.88.7.0/24", &none()).contains("of the network `cnet`"));
    assert_eq!(
        error("10.7.0.0/16", &route("10.7.7.0/24")),
        "10.7.0.0/16 overlaps the host's route to 10.7.7.0/24 on eth7: choose another --subnet"
    );
    let taken = store.create(Request::new("a"), &none()).unwrap_err();
    assert_eq!(
        taken.to_string(),
        "there is a network `a` already: choose another name, or remove it"
    );
    let only_four = store
        .create(with_subnets("four", &["10.7.0.0/24"]), &none())
        .unwrap();
    assert_eq!(only_four.ipv6, None, "the families that were asked for");
}

#[test]
fn what_is_in_use_stays() {
    let Place { store, .. } = place();
    store.create(Request::new("web"), &none()).unwrap();
    let users = vec!["one".to_owned(), "two".to_owned()];
    let error = store.remove("web", Some(users)).unwrap_err().to_string();
    assert_eq!(
        error,
        "the network `web` is in use by one, two: `cnet detach` takes them off"
    );
    let error = store.remove("web", Some(vec![])).unwrap_err().to_string();
    assert!(error.contains("its process runs"), "{error}");
    let leases = store.directories().leases("web");
    file::make_directory(leases.parent().unwrap()).unwrap();
    fs::write(&leases, "x").unwrap();
    store.remove("web", None).unwrap();
    assert!(!leases.parent().unwrap().exists());
    for _ in 0..2 {
        let error = store.remove("web", None).unwrap_err();
        assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    }
}

#[test]
fn what_is_served_or_about_to_be_stays() {
    let Place { store, .. } = place();
    store.create(Request::new("web"), &none()).unwrap();
    let directories = store.directories().clone();
    let in_use = || match store.remove("web", None).unwrap_err() {
        StoreError::InUse { containers, .. } => assert!(containers.is_empty()),
        other => panic!("{other}"),
    };
    let directory = directories.make_network_runtime("web").unwrap();
    // A process that has not got as far as its socket.
    let lock = runtime::lock(&directory).unwrap().unwrap();
    in_use();
    drop(lock);
    let socket = std::os::unix::net::UnixListener::bind(directories.socket("web")).unwrap();
    in_use();
    drop(socket);
    // One that was killed, and has left containers.
    fs::write(directories.state_file("web"), "x").unwrap();
    in_use();
    fs::remove_file(directories.state_file("web")).unwrap();
    // One that a client is just starting.
    let (_, turn) = runtime::lock_directory(&directories, "web").unwrap();
    let remover = store.clone();
    let removing = thread::spawn(move || remover.remove("web", None));
    thread::sleep(std::time::Duration::from_millis(100));
    assert!(store.get("web").is_ok(), "removed while it was started");
    drop(turn);
    removing.join().unwrap().unwrap();
    assert!(!directory.exists(), "nothing is left of it");
}

#[test]
fn ids_stand_for_names() {
    let Place { store, .. } = place();
    let made = store.create(Request::new("web"), &none()).unwrap();
    for text in ["", "zzz", "web2", "host", "../web"] {
        let error = store.get(text).unwrap_err();
        assert!(matches!(error, StoreError::NotFound(_)), "{text}: {error}");
    }
    let path = store.directories().definition("twin");
    let twin = Definition {
        name: "twin".into(),
        ipv4: Some(Ipv4Pool::new("10.9.0.0/24".parse().unwrap(), None, None).unwrap()),
        ipv6: None,
        ..made.clone()
    };
    fs::write(path, toml::to_string(&twin).unwrap()).unwrap();
    let error = store.get(&made.id[..12]).unwrap_err();
    assert!(matches!(error, StoreError::Ambiguous(_)), "{error}");
}

#[test]
fn a_broken_file_is_named_and_can_be_removed() {
    let Place { store, .. } = place();
    let made = store.create(Request::new("web"), &none()).unwrap();
    let path = store.directories().definition("web");
    let text = fs::read_to_string(&path).unwrap();
    for (broken, why) in [
        ("nonsense".to_owned(), "web.toml cannot be understood"),
        (format!("colour = 1\n{text}"), "colour"),
        (
            text.replace("name = \"web\"", "name = \"other\""),
            "network `other`",
        ),
        (
            text.replace("10.89.0.0/24", "10.89.0.1/24"),
            "the network itself is 10.89.0.0/24",
        ),
    ] {
        fs::write(&path, broken).unwrap();
        let error = store.get("web").unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(store.list().is_err());
        let names: Vec<_> = store.each().unwrap().into_iter().map(|d| d.ok()).collect();
        assert!(matches!(&*names, [Some(default), None] if default.name == "cnet"));
    }
    fs::write(
        store.directories().networks().join("not a network.toml"),
        "x",
    )
    .unwrap();
    store.remove("web", None).unwrap();
    assert_eq!(
        store.list().unwrap().len(),
        1,
        "other files are none of ours"
    );
    assert_ne!(made.name, "cnet");
}

#[test]
fn a_broken_file_hides_no_other_network() {
    let Place { store, .. } = place();
    store.create(Request::new("sick"), &none()).unwrap();
    let web = store.create(Request::new("web"), &none()).unwrap();
    fs::write(store.directories().definition("sick"), "nonsense").unwrap();
    assert_eq!(store.get(&web.id[..12]).unwrap(), web);
    assert_eq!(store.get("web").unwrap(), web);
    let error = store.get("no-such-id").unwrap_err();
    assert!(matches!(error, StoreError::Broken { .. }), "{error}");
}

#[test]
fn creators_take_locks() {
    let place = Arc::new(place());
    let creators: Vec<_> = (0..8)
        .map(|n| {
            let place = Arc::clone(&place);
            thread::spawn(move || place.store.create(Request::new(format!("n{n}")), &none()))
        })
        .collect();
    let mut all: Vec<String> = creators
        .into_iter()
        .flat_map(|creator| subnets(&creator.join().unwrap().unwrap()))
        .collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 16, "{all:?}");
}
