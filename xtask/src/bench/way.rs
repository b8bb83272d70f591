//! The ways that load takes, which rows ask for and contenders offer.

/// How load flows between the namespaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// From the container to the remote.
    Outbound,
    /// From the remote to a published port of the container.
    Published,
    /// From the host's loopback to a published port of the container.
    Loopback,
    /// From one container to another.
    Neighbour,
}
