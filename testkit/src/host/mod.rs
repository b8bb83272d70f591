//! Hosts for tests: implementations of [`HostSockets`](cnet_wire::host::HostSockets).
//!
//! [`null`] takes everything and keeps counts, for benchmarks. [`simulated`] has a kernel's buffers
//! and remote applications on virtual time, for the simulation and the fuzz targets.

pub mod null;
pub mod simulated;
