//! Which ports of the host's loopback a container reaches at the gateway's address: what `--host-access`
//! asks for.

use std::ops::RangeInclusive;

/// Ports of the host's loopback, of TCP and UDP alike.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum HostAccess {
    /// None.
    #[default]
    None,
    /// These.
    Ports(Vec<RangeInclusive<u16>>),
    /// All.
    All,
}

impl HostAccess {
    /// Whether it opens nothing.
    #[inline]
    pub fn is_none(&self) -> bool {
        match self {
            HostAccess::None => true,
            HostAccess::Ports(ports) => ports.is_empty(),
            HostAccess::All => false,
        }
    }

    /// Whether it opens `port`.
    pub(super) fn opens(&self, port: u16) -> bool {
        match self {
            HostAccess::None => false,
            HostAccess::Ports(ports) => ports.iter().any(|range| range.contains(&port)),
            HostAccess::All => true,
        }
    }
}
