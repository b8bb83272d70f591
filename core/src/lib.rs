//! One network, or one worker's part of it: the front door of cnet's pure core.
//!
//! [`Network`] joins what does not know each other: frames are parsed ([`cnet_wire`]), admitted and
//! delivered ([`cnet_vswitch`]), and what is for the router goes there ([`cnet_nat`]). Events of host
//! sockets, accepted clients, answers to DNS queries and deadlines go to the router as they are.
//!
//! The contract of the pure crates (`handle_*`, `poll_timeout`, `handle_timeout`) is told in
//! [`cnet_wire`].
#![forbid(unsafe_code)]

mod network;
mod port_lifecycle;
mod report;
mod steering;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use network::Network;
pub use report::{PortReport, Report};
