//! IP fragments, both ways: packets of containers put together, and packets to containers cut.
//!
//! [`reassembly`] collects the fragments that a container's kernel sends until a packet is whole.
//! [`emit`] sends an IP payload to a container, in fragments where it exceeds the link's MTU.

pub mod emit;
pub mod reassembly;

pub use emit::{emit_in_place, emit_ip_payload};
pub use reassembly::{Expired, ReassembledFrame, Reassembly};

pub(crate) use emit::IP_OFFSET;
