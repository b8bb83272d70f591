//! The programs of cnet: [`cnet`] behind the binary of that name, with [`run`] for its largest
//! command, and [`slirp`] behind `cnet-slirp`, the drop-in for slirp4netns.
#![forbid(unsafe_code)]

pub mod cnet;
mod logging;
mod registry;
pub mod run;
pub mod slirp;
