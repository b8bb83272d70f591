//! A container joins a network on which another one is, and leaves it, again and again.
//!
//! Timed is `cnet attach` as its caller sees it: from the start of the program to its end, when the
//! interface is there with its addresses and routes. To leave takes time that is not counted.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::Window;
use crate::bench::contenders::Arena;
use crate::bench::interrupt;

/// How long joining took.
pub struct Outcome {
    /// The median.
    pub median: Duration,
    /// The longest.
    pub longest: Duration,
    /// Of the first container: the start of the network's process is in it.
    pub first: Duration,
}

/// Measures.
///
/// # Errors
/// The arena is no network, or a command fails.
pub fn measure(arena: &Arena, window: Window) -> anyhow::Result<Outcome> {
    let network = arena.network().context("no network to join")?;
    let warm = Instant::now() + window.warm_up;
    let end = warm + window.length;
    let mut times = Vec::new();
    while times.is_empty() || Instant::now() < end {
        // A sleep of no length fails when the run is to end.
        interrupt::sleep(Duration::ZERO)?;
        network.leave_last()?;
        let counts = Instant::now() >= warm;
        let took = network.join_last()?;
        if counts {
            times.push(took);
        }
    }
    times.sort_unstable();
    Ok(Outcome {
        median: times[times.len() / 2],
        longest: times[times.len() - 1],
        first: network.first_join(),
    })
}
