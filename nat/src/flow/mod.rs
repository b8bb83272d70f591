//! What every flow has in common, whatever its protocol: the table that finds it, the timers that
//! end it, the limits on how many a container may have and on how many there may be.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use cnet_wire::tcp::Route;

pub mod budget;
pub mod fair_share;
pub mod table;
pub mod timer;

pub use budget::FlowBudget;
pub use fair_share::FairShare;
pub use table::{CACHED_FLOWS, FlowTable, Handle, PREFETCH_DEPTH, TableFull};
pub use timer::TimerWheel;

/// The two ends of a TCP flow, as the container sees them. Both are of one family. A table has one
/// for each flow, so it is packed: two [`SocketAddr`]s would take 64 bytes, this takes 38.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    container: IpAddr,
    remote: IpAddr,
    ports: [u16; 2],
}

impl Ends {
    /// `remote` is the far end before policy maps it to a host address.
    pub fn new(container: SocketAddr, remote: SocketAddr) -> Ends {
        Ends {
            container: container.ip(),
            remote: remote.ip(),
            ports: [container.port(), remote.port()],
        }
    }

    /// The container's address and port.
    pub fn container(&self) -> SocketAddr {
        SocketAddr::new(self.container, self.ports[0])
    }

    /// The far end's address and port.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.remote, self.ports[1])
    }
}

impl From<&Ends> for Route {
    /// The way from the remote end to the container.
    fn from(ends: &Ends) -> Route {
        Route {
            src: ends.remote(),
            dst: ends.container(),
        }
    }
}

impl Hash for Ends {
    /// In few and wide words: every packet is hashed.
    fn hash<H: Hasher>(&self, state: &mut H) {
        for address in [self.container, self.remote] {
            match address {
                IpAddr::V4(a) => state.write_u32(a.to_bits()),
                IpAddr::V6(a) => state.write_u128(a.to_bits()),
            }
        }
        state.write_u32(u32::from(self.ports[0]) << 16 | u32::from(self.ports[1]));
    }
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
