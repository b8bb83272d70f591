//! Replays the corpus of every target, and a few thousand mutations of it.
//!
//! A crash that the fuzzer found stays in the corpus and is replayed here, so it stays found.

use cnet_fuzz::run::Fuzzer;
use cnet_fuzz::{TARGETS, corpus};

/// Mutations of each target.
const MUTATIONS: u64 = 2_000;

#[test]
fn corpus_and_mutations_hold() {
    for target in TARGETS {
        let loaded = corpus::load(target.name)
            .unwrap_or_else(|error| panic!("corpus of {}: {error}", target.name));
        assert!(!loaded.is_empty(), "{} has no corpus", target.name);
        for (path, input) in &loaded {
            println!("{}", path.display());
            (target.run)(input);
        }
        let inputs = loaded.into_iter().map(|(_, bytes)| bytes).collect();
        let mut fuzzer = Fuzzer::new(target, inputs, 1);
        for _ in 0..MUTATIONS {
            if let Err(crash) = fuzzer.step() {
                let kept = corpus::save_crash(target.name, &crash.input);
                panic!("{}: kept as {kept:?}", target.name);
            }
        }
    }
}

#[test]
fn every_target_has_a_name_of_its_own() {
    for (n, target) in TARGETS.iter().enumerate() {
        assert!(TARGETS[..n].iter().all(|other| other.name != target.name));
    }
}
