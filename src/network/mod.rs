//! What a network is, apart from the packets: its definition, its addresses, its inspection.
//!
//! # Theory of operation
//!
//! A network is defined by one small TOML file, which outlives all containers ([`Definition`],
//! [`Store`]). While containers are on it, one process serves it; that process hands out the
//! addresses of the network's pools and remembers them by the container's name ([`Ipam`]). What
//! people and programs see of it has the shape that Docker gave it ([`inspect`]).
//!
//! The default network [`DEFAULT_NETWORK`] exists without a file.
//!
//! # Invariants
//!
//! - No two networks overlap, nor does a network overlap a route of the host when it is made.
//! - Files are replaced whole or not at all ([`mod@file`]); creators take turns.
//! - A definition that was read has been checked as thoroughly as one that was asked for.

pub mod cli;
mod definition;
mod directories;
pub mod file;
pub mod inspect;
mod ipam;
mod name;
mod pool;
mod routes;
pub mod runtime;
mod store;

pub use definition::{BRIDGE, Definition, DefinitionError, Request};
pub use directories::Directories;
pub use ipam::{Addresses, Ipam, IpamError, Wanted};
pub use name::{DEFAULT_NETWORK, NameError, check_name, check_network_name};
pub use pool::{Ipv4Pool, Ipv6Pool, PoolError};
pub use routes::{HostRoute, HostRoutes};
pub use store::{Store, StoreError};
