//! The programs of cnet, a folder each: [`cnet`] behind the binary of that name, `run` for its
//! largest command, [`slirp`] behind `cnet-slirp`, the drop-in for slirp4netns, and [`cni`] and
//! [`netavark`] behind the plug-ins of engines, and [`uplink`] behind the one program with a privilege. Beside them stands what several of them need.
#![forbid(unsafe_code)]

pub mod cnet;
pub mod cni;
mod each_network;
mod filter;
mod getopt;
mod label;
mod log;
pub mod netavark;
pub mod pasta;
pub mod pesto;
mod plugin;
mod program;
mod publish_option;
mod run;
mod sandbox;
pub mod slirp;
mod target;
pub mod uplink;
