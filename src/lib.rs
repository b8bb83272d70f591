//! The shell of cnet: what joins the pure crates to the kernel.
//!
//! `cnet-vswitch` and `cnet-nat` decide; this crate gives them descriptors, sockets, time and
//! threads, and gives people and programs two doors to it: [`run`] behind the binary `cnet`, and
//! [`slirp`] behind `cnet-slirp`, the drop-in for slirp4netns.

pub mod addresses;
pub mod dataplane;
pub mod dns;
pub mod inherited;
pub mod logging;
pub mod network;
pub mod publish;
pub mod run;
pub mod slirp;
pub mod vm;
pub mod watched;
