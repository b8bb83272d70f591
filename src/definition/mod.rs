//! What a network is, apart from the packets: its definition, where it is kept, and its names.
//!
//! # Theory of operation
//!
//! A network is defined by one small TOML file, which outlives all containers ([`Definition`],
//! [`Store`]). While containers are on it, one process serves it; that process hands out the
//! addresses of the network's pools and remembers them by the container's name.
//!
//! The default network [`DEFAULT_NETWORK`] exists without a file.
//!
//! # Invariants
//!
//! - No two networks overlap, nor does a network overlap a route of the host when it is made.
//! - Files are replaced whole or not at all ([`mod@file`]); creators serialise on a lock of the
//!   directory.
//! - A definition that was read has been checked as thoroughly as one that was asked for.

mod directories;
mod dns_server;
pub mod file;
mod file_format;
mod id;
mod lan;
mod name;
mod overlay;
pub mod pool;
mod routes;
pub mod runtime;
mod store;
mod trust;
mod user_namespace;

pub use directories::{Directories, DirectoriesError};
pub use dns_server::{DnsServer, DnsServerError};
pub use file_format::{BRIDGE, Definition, DefinitionError, MACVLAN, OVERLAY, Request};
pub use id::{SHORT_ID, is_id, random_id};
pub use lan::{Lan, LanError};
pub use name::{
    DEFAULT_NETWORK, NameError, check_host_name, check_name, check_network_name, is_domain,
};
pub use overlay::{Overlay, OverlayError, OverlayRequest, Peer, PeerError};
pub use pool::{Ipv4Pool, Ipv6Pool, PoolError};
pub use routes::{HostRoute, HostRoutes, free_ula};
pub use store::{Store, StoreError};
pub use trust::{Admission, TrustError, Trusted};

/// The MTU without `--mtu` where the host has no route to tell one.
const ETHERNET_MTU: u16 = 1500;

/// The smallest MTU that `--mtu` need not ask for, so that containers have IPv6 (RFC 8200, section 5).
const LEAST_DEFAULT_MTU: u32 = 1280;

/// The MTU without `--mtu`: that of the host's default route, so that containers learn of paths what a
/// program of the host learns. Offloads carry 64 KiB a system call at any MTU.
pub fn default_mtu() -> u16 {
    let of_route = cnet_tap::socket::default_route_mtu();
    of_route.map_or(ETHERNET_MTU, |mtu| {
        let most = *MTU_RANGE.end() as u32;
        mtu.clamp(LEAST_DEFAULT_MTU, most) as u16
    })
}

/// The smallest MTU IPv4 allows (RFC 791), and the largest a TAP takes.
pub const MTU_RANGE: std::ops::RangeInclusive<i64> = 68..=65521;
