//! Networks under load, by what the load is made of.

pub mod containers;
pub mod tcp;
pub mod udp;
pub mod world;
