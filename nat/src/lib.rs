//! The pure gateway and NAT flow engine of cnet.
//!
//! [`router::Router`] is the whole of it: frames from containers and events of host sockets go in,
//! frames and socket operations come out through [`cnet_wire::FrameSink`] and
//! [`host::HostSockets`]. Inside stand the [`gateway`], which answers for the gateway's own
//! addresses (*hairpin*), and the flows: [`tcp`] splices the container's TCP to a host socket,
//! [`datagram`] maps UDP and ICMP echo to host sockets. [`policy`] is asked before anything enters
//! the [`flow`] table.
//!
//! The contract of the pure crates (`handle_*`, `poll_timeout`, `handle_timeout`) is told in
//! [`cnet_wire`].
#![forbid(unsafe_code)]

#[macro_use]
mod counters;
pub mod datagram;
#[cfg(test)]
mod fake_stations;
pub mod flow;
pub mod forward;
pub mod fragment;
pub mod gateway;
pub mod icmp_error;
mod in_hand;
pub mod io;
pub mod policy;
pub mod router;
pub mod tcp;

pub use cnet_wire::host;
