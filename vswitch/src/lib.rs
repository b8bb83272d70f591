//! The pure learning switch of cnet.
//!
//! A frame enters with its virtio-net header in front ([`vnet`]), is checked and described once
//! ([`frame`]), and the [`switch`] gives its [`Verdict`]: to the gateway, to a port, to several, or dropped for
//! a named [`DropReason`]. The bytes themselves are never touched, so segmentation offloads
//! survive the switch.
//!
//! # The contract of the pure crates
//!
//! `cnet-vswitch` and `cnet-nat` hold no descriptor, clock, thread or random source. Time comes in
//! as a [`time::Instant`], seeds come in at construction, and effects leave through small traits
//! with static dispatch. A state machine's methods are sorted by name:
//!
//! - `handle_*(now, …)` takes one event in (a frame, a socket's readiness, an expired deadline);
//! - `poll_timeout()` tells when `handle_timeout(now)` wants to be called next, if at all;
//! - everything else is a getter or a configuration change.
//!
//! A packet that is refused is an outcome, not an error: it is counted under its [`DropReason`].
#![forbid(unsafe_code)]

pub mod addr;
pub mod arp;
pub mod checksum;
pub mod drops;
pub mod fdb;
pub mod frame;
mod guard;
mod ipv4;
pub mod ipv6;
pub mod port;
pub mod segment;
pub mod sink;
pub mod switch;
pub mod time;
pub mod vnet;

pub use addr::{MacAddr, PortId};
pub use drops::{DropCounters, DropReason};
pub use frame::{Fragment, Frame, IpHeader, L3};
pub use port::{Lease, PortConfig, PortCounters};
pub use segment::Segments;
pub use sink::{FrameSink, PortFull};
pub use switch::{AddPortError, Switch, SwitchConfig, Verdict};
pub use vnet::VnetHeader;
