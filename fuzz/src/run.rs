//! The fuzzer: mutates, runs, keeps what came by something new, and stops at the first panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cnet_testkit::rng::Rng;

use crate::mutate::mutate;
use crate::{Target, feedback};

/// Inputs that are kept for further mutation, beside the corpus.
const KEPT: usize = 2_000;

/// A target that is being fuzzed.
pub struct Fuzzer<'a> {
    target: &'a Target,
    rng: Rng,
    pool: Vec<Vec<u8>>,
    corpus: usize,
    seen: std::collections::HashSet<u128>,
    executions: u64,
}

/// An input at which the target panicked.
#[derive(Debug)]
pub struct Crash {
    /// The input.
    pub input: Vec<u8>,
}

impl<'a> Fuzzer<'a> {
    /// Starts from `corpus`; without any, from the empty input.
    pub fn new(target: &'a Target, mut corpus: Vec<Vec<u8>>, seed: u64) -> Fuzzer<'a> {
        if corpus.is_empty() {
            corpus.push(Vec::new());
        }
        Fuzzer {
            target,
            rng: Rng::new(seed),
            corpus: corpus.len(),
            pool: corpus,
            seen: std::collections::HashSet::new(),
            executions: 0,
        }
    }

    /// Inputs that were run so far.
    pub fn executions(&self) -> u64 {
        self.executions
    }

    /// Inputs that were kept beside the corpus.
    pub fn kept(&self) -> usize {
        self.pool.len() - self.corpus
    }

    /// Runs every input of the corpus as it is.
    ///
    /// # Errors
    /// The input at which the target panicked.
    pub fn replay(&mut self) -> Result<(), Crash> {
        for n in 0..self.corpus {
            let input = self.pool[n].clone();
            self.run(&input)?;
        }
        Ok(())
    }

    /// Runs one mutated input.
    ///
    /// # Errors
    /// The input at which the target panicked.
    pub fn step(&mut self) -> Result<(), Crash> {
        let input = mutate(self.target.layout, &self.pool, &mut self.rng);
        if self.run(&input)? {
            if self.pool.len() < self.corpus + KEPT {
                self.pool.push(input);
            } else {
                let place = self.corpus + self.rng.below(KEPT);
                self.pool[place] = input;
            }
        }
        Ok(())
    }

    /// Runs an input; whether it came by a set of features that none before it had.
    fn run(&mut self, input: &[u8]) -> Result<bool, Crash> {
        self.executions += 1;
        feedback::take();
        // A target keeps nothing from one input to the next, so a panic leaves nothing half done.
        match catch_unwind(AssertUnwindSafe(|| (self.target.run)(input))) {
            Ok(()) => Ok(self.seen.insert(feedback::take())),
            Err(_) => Err(Crash {
                input: input.to_vec(),
            }),
        }
    }
}
