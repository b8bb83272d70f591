//! The programs of cnet, a folder each: [`cnet`] behind the binary of that name, `run` for its
//! largest command, and [`slirp`] behind `cnet-slirp`, the drop-in for slirp4netns. Beside them
//! stands what several of them need.
#![forbid(unsafe_code)]

pub mod cnet;
mod each_network;
mod filter;
mod log;
mod program;
mod registry;
mod run;
mod sandbox;
pub mod slirp;
