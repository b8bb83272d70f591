//! What the benches and the allocation tests share: a counting allocator, frames as containers send
//! them, a host that takes everything, and networks with many flows.
//!
//! The host is *null*: every connect succeeds, every send is taken, what is received is a number of
//! bytes that nobody writes. So what remains to be measured is the pure core itself.

// Each target uses a part of it.
#![allow(dead_code)]

pub mod containers;
pub mod counting;
pub mod craft;
pub mod null;
pub mod rng;
pub mod tcp;
pub mod udp;
pub mod world;
