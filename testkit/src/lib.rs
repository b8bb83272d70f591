//! What the tests of cnet are made of, once for all crates. Only tests depend on this.
#![forbid(unsafe_code)]

pub mod packets;
