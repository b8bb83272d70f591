//! The pure learning switch of cnet.
//!
//! A frame enters described ([`cnet_wire::Frame`]), and the [`switch`] gives its [`Verdict`]: to a port,
//! to several, or dropped for a named [`cnet_wire::DropReason`]. It writes it to those ports, but for
//! the router's, whose caller takes it there. The bytes themselves are never touched, so segmentation offloads survive the switch.
//!
//! Every method follows the contract of the pure crates told in [`cnet_wire`].
#![forbid(unsafe_code)]

mod admit;
mod conntrack;
pub mod fdb;
pub mod port;
mod router_port;
pub mod stations;
pub mod switch;
pub mod uplink;

pub use port::{AddPortError, Lease, PortConfig, PortCounters, PortRole};
pub use router_port::{Neighbours, RouterPort};
pub use stations::{Stations, SwitchConfig};
pub use switch::{Delivery, Switch, Verdict};
