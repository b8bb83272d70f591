//! Faults of the host: too few descriptors, a full disk, too little memory, a program that is
//! killed. Each test is a row of the table of faults, with its limit: forwarding goes on, or an error
//! says what is missing.
//!
//! `cargo xtask test faults` runs these tests, as root; by hand it is
//! `cargo test --release -p cnet-tests --test faults -- --ignored --test-threads=1 [NAME]`.
#![forbid(unsafe_code)]

use cnet_tests::lab;

mod descriptors;
mod disk;
mod ends;
mod endurance;
mod memory;
mod output;
mod survival;
mod taken;
mod upstream;
