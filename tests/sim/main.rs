//! Deterministic simulation of the pure core on virtual time.
//!
//! [`world`] tells what is simulated and which properties hold for every seed. A failing seed is
//! printed with the one command that runs it again, with a trace of every frame.
#![forbid(unsafe_code)]

mod defects;
mod frozen;
mod fuzz;
mod hostile;
mod many;
mod model;
mod plan;
mod policy;
mod prefetch;
mod record;
mod scenarios;
mod seeds;
mod world;
