//! Hosts for tests: implementations of [`HostSockets`](cnet_wire::host::HostSockets).
//!
//! [`null`] takes everything and keeps counts, for benchmarks. [`scripted`] does as a test tells it and
//! keeps all that is sent, for unit tests and for the model. [`simulated`] has a kernel's buffers
//! and remote applications on virtual time, for the simulation and the fuzz targets.

pub mod null;
pub mod scripted;
pub mod simulated;
