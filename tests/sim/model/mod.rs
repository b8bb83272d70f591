//! The network against a reference model: four containers, one to three workers, and no misfortune.
//!
//! # Theory of operation
//! A seed draws [`steps`]: a container sends to the world, to the gateway or to another container, says
//! what it may not say, or something arrives at a socket of the host. The [`reference`] says of each
//! step what it must lead to: the frames that leave, by port and content; the datagrams and connects
//! that the host is asked for; and **all** counters, those of each port, those by reason, those of TCP
//! and the sizes of the tables. The [`network`] does the step, and after each one everything is
//! compared, not only what the step was about.
//!
//! The model knows no bytes of headers and no table but a list of mappings and one of clients: who may
//! talk to whom, which mapping a datagram takes, which one makes room for another where there may be few,
//! which worker a frame is for, and what is counted where. What the network emits is read by [`cnet_testkit::offload`], which is not the core's reader.
//!
//! # What it does not have
//! Loss, delay and order (the simulation's other worlds have them), data on TCP connections (likewise;
//! here are their first and their stray segments), fragments and DHCP.

mod network;
mod reference;
mod steps;

use cnet_testkit::rng::Rng;

use crate::seeds::number;
use network::Network;
use reference::{Limits, Model, ROOMY, TIGHT};
use steps::Step;

/// Seeds of the test command, for each number of workers.
const SEEDS: u64 = 60;
/// Steps of a seed.
const STEPS: usize = 150;

/// Runs one seed; an error says what differed, and after which steps.
fn run(seed: u64, workers: usize, limits: Limits) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let mut model = Model::new(workers, limits);
    let mut network = Network::new(workers, limits);
    let mut done = Vec::new();
    for _ in 0..STEPS {
        let step = Step::draw(&mut rng, &model);
        done.push(step);
        let expected = steps::expect(step, &mut model);
        let observed = steps::perform(step, &mut network, &mut model);
        let compared = expected
            .compare(&observed)
            .and_then(|()| model.books().compare(&network.books()));
        compared.map_err(|what| {
            let last = &done[done.len().saturating_sub(12)..];
            format!(
                "{what}\nafter {} steps, the last of them {last:#?}",
                done.len()
            )
        })?;
    }
    network.finish()
}

#[test]
fn the_network_does_what_the_model_says() {
    let only = number("CNET_SIM_MODEL_SEED");
    let seeds = only.map_or(0..SEEDS, |seed| seed..seed + 1);
    for (workers, limits) in (1..=3).flat_map(|n| [(n, ROOMY), (n, TIGHT)]) {
        for seed in seeds.clone() {
            if let Err(what) = run(seed, workers, limits) {
                panic!("CNET_SIM_MODEL_SEED={seed}, {workers} workers, {limits:?}: {what}");
            }
        }
    }
}

/// What the model does not know of is noticed, be it a counter alone.
#[test]
fn a_difference_is_noticed() {
    let same = |steps: &[Step], unknown: Option<Step>| {
        let (mut model, mut network) = (Model::new(2, ROOMY), Network::new(2, ROOMY));
        if let Some(unknown) = unknown {
            steps::perform(unknown, &mut network, &mut Model::new(2, ROOMY));
        }
        for &step in steps {
            let expected = steps::expect(step, &mut model);
            let observed = steps::perform(step, &mut network, &mut model);
            expected.compare(&observed)?;
            model.books().compare(&network.books())?;
        }
        Ok::<(), String>(())
    };
    let udp = Step::Udp {
        c: 1,
        v6: false,
        port: 4000,
        remote: 0,
        len: 10,
        burst: 1,
    };
    assert_eq!(same(&[udp, Step::Vlan { c: 2 }, Step::Pass], None), Ok(()));
    // A frame too many at another port, a drop, a mapping.
    for unknown in [Step::Vlan { c: 3 }, Step::Runt { c: 1 }, udp] {
        let difference = same(&[Step::Broadcast { c: 0 }], Some(unknown));
        assert!(difference.is_err(), "{unknown:?}");
    }
}
