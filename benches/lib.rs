//! Load for the pure core, shared by the benchmarks and the allocation tests: networks with many
//! flows, over a host and ports that take everything ([`cnet_testkit::host::null`]).
//!
//! Every connect succeeds, every send is taken, and what is received is a number of bytes that nobody
//! writes. So what remains to be measured is the core itself.
#![forbid(unsafe_code)]

pub mod load;
