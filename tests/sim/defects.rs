//! Panics in the middle of the engine's work: each ends the flow it came from, and no other.
//!
//! The recorder between the core and its surroundings counts the calls of both, and has each so-many-th
//! one unwind in the place of being made. The world has the core recover, as the worker does, and goes
//! on. In the end everything holds that holds otherwise, but that each panic excuses one flow.

use crate::fuzz;
use crate::plan::Plan;
use crate::seeds::{self, number};
use crate::world::{Excuse, Summary, World};

/// Seeds of the test command, for each distance of panics.
const SEEDS: u64 = 2000;

/// Calls from one panic to the next: what is asked for, and one that meets everything more often.
const DISTANCES: [u64; 2] = [1000, 61];

fn run(seed: u64, distance: u64) -> Result<Summary, String> {
    World::new(Plan::draw(seed), false)
        .with_panics(distance)
        .run()
}

#[test]
fn a_panic_ends_its_flow_and_no_other() {
    let count = number("CNET_SIM_SEEDS").map_or(SEEDS, |n| n.min(SEEDS));
    for distance in DISTANCES {
        let again = |seed| {
            format!("CNET_SIM_FIRST={seed} CNET_SIM_SEEDS=1, panics at each {distance}th call")
        };
        let total = seeds::run_all(count, |seed| run(seed, distance), again);
        let excused = total.excuses.get(Excuse::Defect);
        assert!(total.defects >= count / 40, "{total:?}");
        assert!(excused <= total.defects, "{total:?}");
        assert!(total.done > 0, "{total:?}");
    }
}

/// Of all protocols, with mutated frames, small limits and containers that come and go: afterwards all
/// counts agree, and nothing is left.
#[test]
fn nothing_is_left_of_what_panicked() {
    for seed in 0..20 {
        for distance in DISTANCES {
            let defects = fuzz::run_with_panics(seed, 20_000, distance);
            assert!(
                defects > 1,
                "seed {seed}: {defects} panics at each {distance}th call"
            );
        }
    }
}
