//! Rule `pure`: the pure packages hold no clock, thread, socket, descriptor or random source. Time,
//! seeds and effects come in through arguments and traits.
//!
//! Checked are the packages that they depend on, and the paths in their code, imports followed.
//! Tests are free.

use std::collections::BTreeMap;

use super::plan::{self, Kind};
use super::sources::{Module, Sources};
use super::{Finding, manifest, paths};
use crate::cargo::Metadata;

const RULE: &str = "pure";

/// What a pure package may not name, and what each of them is.
const FORBIDDEN: &[(&str, &str)] = &[
    ("std::collections::hash_map::RandomState", "a random source"),
    ("std::fs", "a descriptor"),
    ("std::hash::RandomState", "a random source"),
    ("std::net::TcpListener", "a socket"),
    ("std::net::TcpStream", "a socket"),
    ("std::net::UdpSocket", "a socket"),
    ("std::os", "a descriptor"),
    ("std::process", "a process"),
    ("std::thread", "a thread"),
    ("std::time::Instant", "a clock"),
    ("std::time::SystemTime", "a clock"),
    ("foldhash::fast::RandomState", "a random source"),
    ("foldhash::quality::RandomState", "a random source"),
    ("fastrand", "a random source"),
    ("getrandom", "a random source"),
    ("rand", "a random source"),
    ("libc", "the kernel"),
    ("mio", "the kernel"),
    ("nix", "the kernel"),
    ("rustix", "the kernel"),
    ("socket2", "a socket"),
    ("tokio", "a clock, threads and sockets"),
];

/// The last names of a path that reads a clock, whoever's it is.
const CLOCKS: &[[&str; 2]] = &[["Instant", "now"], ["SystemTime", "now"]];

/// What is found in the manifests.
pub fn check_manifests(metadata: &Metadata) -> Vec<Finding> {
    let mut found = Vec::new();
    for package in metadata.packages.iter().filter(|one| is_pure(&one.name)) {
        let ordinary = |kind: &Option<String>| kind.as_deref() != Some("dev");
        for dependency in package
            .dependencies
            .iter()
            .filter(|one| ordinary(&one.kind))
        {
            if let Some(what) = forbidden(std::slice::from_ref(&dependency.name)) {
                let message = format!(
                    "{} depends on {}, {what}: let its caller bring that in",
                    package.name, dependency.name
                );
                found.push(manifest::finding(
                    RULE,
                    metadata,
                    package,
                    &dependency.name,
                    message,
                ));
            }
        }
    }
    found
}

/// What is found in the sources.
pub fn check(sources: &Sources) -> Vec<Finding> {
    let modules = sources.production();
    let pure = modules.filter(|(package, _)| is_pure(package));
    pure.flat_map(|(package, module)| of_module(package, module))
        .collect()
}

fn is_pure(package: &str) -> bool {
    plan::find(package).is_some_and(|planned| planned.kind == Kind::Pure)
}

fn of_module(package: &str, module: &Module) -> Vec<Finding> {
    let imports = paths::imports(&module.items);
    let mut found = Vec::new();
    let mut add = |path: &paths::Path, what: &str| {
        let names = path.names.join("::");
        let message = format!(
            "{package} names {names}, {what}: let its caller bring that in, as an argument or \
             through a trait"
        );
        found.push(Finding::new(RULE, &module.file.path, path.line, &message));
    };
    let mut names: BTreeMap<&str, &paths::Path> = BTreeMap::new();
    for import in &imports {
        match (forbidden(&import.path.names), &import.name) {
            (Some(what), _) => add(&import.path, what),
            (None, Some(name)) => {
                names.insert(name, &import.path);
            }
            // What an import of everything brings in cannot be seen where it is used.
            (None, None) => {
                if let Some(what) = hidden(&import.path.names) {
                    add(&import.path, what);
                }
            }
        }
    }
    for mention in paths::mentions(&module.items) {
        let mut path = mention.clone();
        if let Some(import) = mention
            .names
            .first()
            .and_then(|first| names.get(first.as_str()))
        {
            path.names.splice(..1, import.names.iter().cloned());
        }
        // A single name is a variable, or was imported, which is found above.
        if mention.names.len() > 1
            && let Some(what) = forbidden(&path.names)
        {
            add(&path, what);
        }
    }
    found
}

/// What a path leads to that a pure package may not have.
fn forbidden(path: &[String]) -> Option<&'static str> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    if CLOCKS.iter().any(|clock| path.ends_with(clock)) {
        return Some("a clock");
    }
    let mut entries = FORBIDDEN.iter();
    let entry = entries.find(|(name, _)| path.starts_with(&name.split("::").collect::<Vec<_>>()));
    entry.map(|(_, what)| *what)
}

/// What an import of everything below `path` brings in that a pure package may not have.
fn hidden(path: &[String]) -> Option<&'static str> {
    let prefix = path.join("::") + "::";
    let mut entries = FORBIDDEN.iter();
    entries
        .find(|(name, _)| name.starts_with(&prefix))
        .map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::super::lines;
    use super::*;

    fn found(package: &str, text: &str) -> Vec<usize> {
        lines(&check(&Sources::of(package, &[("nat/src/lib.rs", text)])))
    }

    #[test]
    fn clocks_threads_sockets_and_chance_are_found() {
        let text = "
            use std::time::{Duration, Instant};
            use std::net::*;
            use std::time;
            fn f() {
                let now = time::SystemTime::now();
                let later = crate::time::Instant::now();
                m!(std::thread::spawn(g));
                let seed = getrandom::u64();
                let host: std::os::fd::RawFd = 1;
            }";
        assert_eq!(found("cnet-nat", text), [2, 3, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn addresses_durations_and_tests_are_free() {
        let text = "
            use std::net::{IpAddr, SocketAddr};
            use std::time::Duration;
            use crate::time::Instant;
            // std::thread
            fn f(rand: u8, now: Instant) { rand.libc(\"std::thread\"); }
            #[cfg(test)]
            mod tests { use std::time::Instant; }";
        assert_eq!(found("cnet-nat", text), [0; 0]);
        assert_eq!(found("cnet-dataplane", "use std::thread;"), [0; 0]);
    }

    #[test]
    fn packages_are_found_by_their_manifest() {
        assert!(forbidden(&["rustix".to_owned()]).is_some());
        assert!(forbidden(&["smoltcp".to_owned()]).is_none());
    }
}
