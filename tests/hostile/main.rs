//! Hostile input: frames that a container makes by hand, sent from inside its namespace over a real
//! TAP. Each is dropped and counted under its own reason, nothing panics, and the neighbours notice
//! nothing. What was a vulnerability elsewhere is a test of the CVE's name.
//!
//! `cargo xtask test hostile` runs these tests, as root; by hand it is
//! `cargo test --release -p cnet-tests --test hostile -- --ignored --test-threads=1 [NAME]`. The
//! simulation has more of each kind, on virtual time (`tests/sim/hostile.rs`), and the fuzz targets
//! have what nobody has thought of.
//!
//! # Limits
//!
//! A container's kernel lets no frame below 14 bytes through, and writes the virtio-net header
//! itself: those that lie are in the unit tests of `wire` and in the fuzz corpus.
#![forbid(unsafe_code)]

use cnet_tests::lab;

mod arena;
mod control;
mod dns;
mod fragments;
mod frames;
mod icmp;
mod ip;
mod knock;
mod link;
mod mutations;
mod segments;
mod services;
mod shares;
mod tcp;
mod transport;
mod tunnel;
