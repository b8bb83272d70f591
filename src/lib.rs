//! Networks for programs that run containers.
//!
//! A [`Network`] is a handle to a named network, which the program `cnet` serves. This crate is
//! what a runtime embeds: it defines networks, starts their processes, and speaks their control
//! API. It moves no packet.
#![forbid(unsafe_code)]

mod auto_publish;
pub mod control;
pub mod definition;
mod filter;
mod host_access;
pub mod log;
pub mod network;
pub mod policy;
pub mod publish;
pub mod start;
pub mod vm;

pub use auto_publish::{AutoPublish, AutoPublishError};
pub use cnet_wire::{MacAddr, Protocol};
pub use control::{
    Attach, Attached, ContainerReport, ContainerStatistics, Counters, Event, Events, NetworkReport,
    Published, PublishedPort, StatisticsReport,
};
pub use definition::{Definition, Request};
pub use filter::Filter;
pub use host_access::{HostAccess, HostAccessError};
pub use network::{Network, NetworkError, Target};
pub use publish::PublishSpec;
pub use vm::VmAddress;
