//! Deterministic simulation of the pure core on virtual time.
//!
//! [`world`] tells what is simulated and which properties hold for every seed. A failing seed is
//! printed with the one command that runs it again, with a trace of every frame.

mod app;
mod container;
mod corpus;
mod craft;
mod frozen;
mod fuzz;
mod host;
mod hostile;
mod offload;
mod plan;
mod record;
mod rng;
mod scenarios;
mod seeds;
mod two_stacks;
mod watch;
mod wire;
mod world;
