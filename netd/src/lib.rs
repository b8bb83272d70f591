//! Running networks.
//!
//! An [`Instance`] is one running network: dataplane, DNS service and published ports, for a
//! program that runs a network in its own process. A named network has a process of its own
//! ([`process`]), which serves the control API ([`serve`]) to the clients of the crate `cnet`:
//! containers join and leave as its members ([`members`]), whose addresses are leased ([`ipam`])
//! and whose names are answered by DNS ([`dns`]).
#![forbid(unsafe_code)]

pub mod auto_ports;
pub mod dns;
mod events;
pub mod forward;
pub mod holder;
mod host_addresses;
mod host_routes;
mod instance;
pub mod ipam;
pub mod journal;
mod liveness;
mod members;
pub mod metrics;
pub mod ns_helper;
pub mod outside;
mod peer;
mod peers;
pub mod process;
pub mod registry;
mod report;
pub mod serve;
mod starting_client;
pub mod vm_endpoint;
mod watcher;

pub use events::Subscriber;
pub use instance::{Forwards, Instance, InstanceBuilder, InstanceError, peer_filter};
pub use peers::PeersError;
pub use process::{config, in_one_line, main};
