//! What every flow has in common, whatever its protocol: the table that finds it, the timers that
//! end it, the limits on how many a container may have.

use std::net::SocketAddr;

pub mod share;
pub mod table;
pub mod timer;

pub use share::Share;
pub use table::{FlowTable, Handle, TableFull};
pub use timer::TimerWheel;

/// The two ends of a TCP flow, as the container sees them. Both are of one family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ends {
    /// The container's address and port.
    pub container: SocketAddr,
    /// The far end's address and port, before policy maps it to a host address.
    pub remote: SocketAddr,
}

/// Limits on what one container may hold (RFC 6888, REQ-4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// TCP flows a container.
    pub tcp_flows: usize,
    /// UDP mappings a container.
    pub udp_mappings: usize,
    /// ICMP echo mappings a container.
    pub ping_mappings: usize,
}

impl Limits {
    /// None at all.
    pub const NONE: Limits = Limits {
        tcp_flows: usize::MAX,
        udp_mappings: usize::MAX,
        ping_mappings: usize::MAX,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            tcp_flows: 200_000,
            udp_mappings: 20_000,
            ping_mappings: 1_000,
        }
    }
}
