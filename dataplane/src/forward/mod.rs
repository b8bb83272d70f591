//! Published ports of the host, and the ways their clients take to a container.
//!
//! [`rule`] opens what listens; [`splice`] carries connections of the host's loopback past the
//! container's device.

pub(crate) mod rule;
pub(crate) mod splice;

pub use rule::{ForwardId, Publish, PublishError};
pub use splice::supplier;
