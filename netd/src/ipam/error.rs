//! Why a container gets no address, or not the one it asked for.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use cnet::control::{Kind, Refusal};
use cnet_wire::MacAddr;
use ipnet::IpNet;

/// Why there is no such lease.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IpamError {
    /// An address is asked for in a family the network does not have.
    #[error("the network has no {0}, so it cannot give {1}")]
    NoFamily(&'static str, IpAddr),
    /// An address from elsewhere.
    #[error("{address} is not within the network's {subnet}")]
    Outside {
        /// The address.
        address: IpAddr,
        /// Where it should be.
        subnet: IpNet,
    },
    /// An address that is not for containers.
    #[error("{0} is not for containers: it is the network's, broadcast, the gateway's or reserved")]
    NotForContainers(IpAddr),
    /// Another container has it.
    #[error(
        "{address} belongs to the container `{holder}`: choose another, or leave it to the network"
    )]
    Taken {
        /// The address, of whatever kind.
        address: String,
        /// Who has it.
        holder: String,
    },
    /// The container is there, with another address.
    #[error("the container `{name}` is on the network already, with {has} and not {wanted}")]
    HasAnother {
        /// The container.
        name: String,
        /// What it has.
        has: String,
        /// What was asked for.
        wanted: String,
    },
    /// A MAC address no container can have.
    #[error("{0} is not the MAC address of one station other than the gateway")]
    Mac(MacAddr),
    /// Nothing is left.
    #[error("no address of {pool} is free: {held} of {usable} are held, the gateway's not counted")]
    Exhausted {
        /// The subnet, or the range within it.
        pool: IpNet,
        /// How many are held within it.
        held: usize,
        /// How many there are for containers.
        usable: u128,
    },
    /// The file does not say what it should.
    #[error("{path} cannot be understood: {reason}; remove it, and addresses are given anew", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file system refuses.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Another container's address is a conflict, an impossible one a mistake.
impl From<IpamError> for Refusal {
    fn from(error: IpamError) -> Refusal {
        let kind = match error {
            IpamError::Taken { .. }
            | IpamError::HasAnother { .. }
            | IpamError::Exhausted { .. } => Kind::Conflict,
            IpamError::Broken { .. } | IpamError::File { .. } => Kind::Internal,
            _ => Kind::Invalid,
        };
        Refusal::new(kind, error.to_string())
    }
}
