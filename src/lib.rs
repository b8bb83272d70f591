//! The shell of cnet: what joins the pure crates to the kernel.
//!
//! `cnet-vswitch` and `cnet-nat` decide; this crate gives them descriptors, sockets, time and
//! threads, and gives people and programs three doors to it: [`cli`] behind the binary `cnet`,
//! [`slirp`] behind `cnet-slirp`, the drop-in for slirp4netns, and [`Network`] for programs in Rust
//! that run containers.

pub mod addresses;
pub mod cli;
pub mod control;
pub mod dataplane;
pub mod dns;
mod handle;
pub mod inherited;
pub mod logging;
pub mod netd;
pub mod network;
pub mod opener;
pub mod publish;
pub mod published;
pub mod registry;
pub mod run;
pub mod slirp;
pub mod vm;
pub mod watched;

pub use control::{
    Attach, Attached, ContainerReport, ContainerStatistics, NetworkReport, Published,
    PublishedPort, StatisticsReport,
};
pub use handle::{Network, NetworkError, Target};
