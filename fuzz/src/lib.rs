//! Fuzz targets of cnet, and the fuzzer that runs them.
//!
//! A [`Target`] is a function of bytes that panics when an invariant does not hold. What a target
//! means by its bytes stands at its module; each reads any bytes without complaint, so that every
//! mutation is an input. The same bytes always do the same: no clock and no chance but what is in
//! them.
//!
//! `fuzz/corpus/<target>/` holds inputs from which mutation starts, and those that once found a fault
//! (`crash-…`). Plain `cargo test -p cnet-fuzz` replays all of them, and some thousand mutations.
//! `cargo run --release -p cnet-fuzz --bin fuzz -- --minutes N` mutates for longer.
//!
//! Without coverage from the compiler, which stable Rust does not give, a target tells the fuzzer by
//! [`feedback`] what it came by (a drop reason, a kind of answer). An input that came by something
//! new is kept for further mutation.
#![forbid(unsafe_code)]

pub mod corpus;
pub mod feedback;
pub mod mutate;
pub mod run;
pub mod seeds;
mod targets;

pub use targets::TARGETS;

/// Code under test and what it may be given.
#[derive(Clone, Copy)]
pub struct Target {
    /// What it is called on the command line, and its folder in the corpus.
    pub name: &'static str,
    /// What is tested, in one line.
    pub description: &'static str,
    /// How an input is laid out, which decides how it is mutated.
    pub layout: Layout,
    /// Runs one input; panics if an invariant does not hold.
    pub run: fn(&[u8]),
}

/// How an input is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Bytes without structure, or with one that mutation is to break.
    Plain,
    /// A byte of settings, then records ([`mutate::Record`]), most of them frames.
    Records,
}

/// The target called `name`.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
