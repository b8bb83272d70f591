//! Datagrams: UDP and ICMP echo, and the fragments they may come in.
//!
//! [`fragment`] cuts what is too long for the container's MTU, [`reassembly`] puts together what the
//! container's kernel cut.

pub mod fragment;
pub mod reassembly;
#[cfg(test)]
#[allow(dead_code)]
mod testing;

pub use fragment::{emit_in_place, emit_ip_payload};
pub use reassembly::{Expired, ReassembledFrame, Reassembly};
