//! The pure learning switch of cnet.
//!
//! A frame enters with its virtio-net header in front ([`vnet`]), is checked and described once
//! ([`frame`]), and the [`switch`] gives its [`Verdict`]: to the gateway, to a port, to several, or dropped for
//! a named [`DropReason`]. The bytes themselves are never touched, so segmentation offloads
//! survive the switch..
//!
//! Every method follows the contract of the pure crates told in [`cnet_wire`].
#![forbid(unsafe_code)]

pub mod fdb;
mod guard;
pub mod port;
pub mod switch;

pub use port::{Lease, PortConfig, PortCounters};
pub use switch::{AddPortError, Switch, SwitchConfig, Verdict};
