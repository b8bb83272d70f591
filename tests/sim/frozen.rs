//! Seeds whose traces are kept, so that a change that shall not change behaviour can be shown not
//! to.
//!
//! `frozen/traces.txt` has a line a seed: its name, the digest of its trace ([`crate::record`]), the
//! frames and the host calls in it, and a digest of the drop counters. The seeds are those of
//! [`crate::seeds`], with attackers and without, and those of [`crate::fuzz`], which reach what
//! containers with nothing but TCP do not: ARP, neighbour discovery, DHCP, DNS, UDP, ICMP, fragments.
//!
//! Where a digest differs, `CNET_SIM_TRACE=SEED` writes the trace of that seed to a file, to be
//! compared with the other tree's. Where behaviour was meant to change, `CNET_SIM_FREEZE=1` writes
//! `traces.txt` anew.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fuzz;
use crate::plan::Plan;
use crate::record::{Keep, Recorder};
use crate::seeds::caught;
use crate::world::World;

const GOLDEN: &str = include_str!("frozen/traces.txt");
const HEADING: &str =
    "# seed, digest of its trace, frames, host calls, digest of its drop counters";

/// Where a seed's name leads, and how many seeds of that kind are kept.
const KINDS: [(&str, u64, Replay); 3] = [
    ("plan", 120, replay_plan),
    ("hostile", 80, replay_hostile),
    ("mutated", 40, replay_mutated),
];
/// Mutated frames of one seed.
const MUTATED_FRAMES: u64 = 4_000;

type Replay = fn(u64, Recorder) -> Result<Recorder, String>;

fn replay_plan(seed: u64, recorder: Recorder) -> Result<Recorder, String> {
    World::new(Plan::draw(seed), false).run_recorded(recorder)
}

fn replay_hostile(seed: u64, recorder: Recorder) -> Result<Recorder, String> {
    World::new(Plan::draw_hostile(seed), false).run_recorded(recorder)
}

fn replay_mutated(seed: u64, recorder: Recorder) -> Result<Recorder, String> {
    Ok(fuzz::run_recorded(seed, MUTATED_FRAMES, recorder))
}

/// The names of all seeds, in the order of the file.
fn names() -> Vec<String> {
    let mut names = Vec::new();
    for (kind, count, _) in KINDS {
        names.extend((0..count).map(|seed| format!("{kind}-{seed}")));
    }
    names
}

fn replay(name: &str, keep: Keep) -> Result<Recorder, String> {
    let parts = name.split_once('-').and_then(|(kind, seed)| {
        let &(_, _, replay) = KINDS.iter().find(|k| k.0 == kind)?;
        Some((replay, seed.parse().ok()?))
    });
    let (replay, seed) = parts.ok_or_else(|| format!("no seed is called {name:?}"))?;
    caught(|| replay(seed, Recorder::new(keep))).map_err(|what| format!("seed {name}: {what}"))
}

/// A line a seed, made on all processors.
fn replay_all(names: &[String]) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let lines = Mutex::new(vec![String::new(); names.len()]);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((n, name)) = take(names, &next) {
                    let outcome = replay(name, Keep::Digest);
                    let summary = outcome.map_or_else(|what| what, |r| r.summary());
                    lines.lock().unwrap()[n] = format!("{name} {summary}");
                }
            });
        }
    });
    lines.into_inner().unwrap()
}

fn take<'a>(names: &'a [String], next: &AtomicUsize) -> Option<(usize, &'a String)> {
    let n = next.fetch_add(1, Ordering::Relaxed);
    names.get(n).map(|name| (n, name))
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    eprintln!("written: {}", path.display());
}

/// Two trees run at once do not write to one file.
fn trace_path(name: &str) -> PathBuf {
    let file = format!("cnet-trace-{name}-{}.txt", std::process::id());
    std::env::temp_dir().join(file)
}

#[test]
fn frozen_seeds_give_the_same_traces() {
    if let Ok(name) = std::env::var("CNET_SIM_TRACE") {
        let recorder = replay(&name, Keep::Lines).unwrap_or_else(|what| panic!("{what}"));
        return write(&trace_path(&name), recorder.lines());
    }
    let found = replay_all(&names());
    if std::env::var("CNET_SIM_FREEZE").is_ok_and(|v| v == "1") {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/sim/frozen/traces.txt");
        return write(
            Path::new(golden),
            &format!("{HEADING}\n{}\n", found.join("\n")),
        );
    }
    let kept: Vec<&str> = GOLDEN.lines().filter(|l| !l.starts_with('#')).collect();
    assert_eq!(kept.len(), found.len(), "seeds kept, and seeds there are");
    let mut differing = kept
        .iter()
        .zip(&found)
        .filter(|(kept, found)| kept != found);
    if let Some((kept, found)) = differing.next() {
        let name = found.split(' ').next().unwrap_or_default();
        panic!(
            "{} seeds differ; the first:\n  kept  {kept}\n  found {found}\n  \
             CNET_SIM_TRACE={name} cargo test -p cnet-tests --test sim -- frozen --nocapture",
            differing.count() + 1
        );
    }
}
