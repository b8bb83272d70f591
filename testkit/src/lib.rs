//! What the tests, benchmarks and fuzz targets of cnet are made of. It knows [`cnet_wire`] and no
//! crate above it, so that the unit tests of those can use it as well.
//!
//! - Packets: [`packets`] are headers and bodies byte by byte, right or deliberately wrong;
//!   [`independent`] is etherparse's opinion on them; [`frames`] are whole frames of a container to its gateway; [`corpus`] has one of each kind;
//!   [`template`] has frames as a kernel with offloads hands them out, to be sent again and again.
//! - The far sides of the core: [`host`] has the sockets of a host, [`sink`] the ports of a switch,
//!   [`container`] an independent TCP stack with the applications of [`app`] on it.
//! - What lies between: [`link`] loses, doubles, delays and reorders on virtual time, [`offload`] is
//!   what the kernel does on either side of a TAP, and the oracle for what the core sends.
//! - Chance: [`rng`], from a seed.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod app;
pub mod container;
pub mod corpus;
pub mod frames;
pub mod host;
pub mod independent;
pub mod link;
pub mod offload;
pub mod packets;
pub mod rng;
pub mod sink;
pub mod template;
mod watch;
