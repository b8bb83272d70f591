//! The addresses of one family that a network gives to its containers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use cnet::definition::pool::number;
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::Addresses;

/// The addresses of one family, as they are given.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) subnet: IpNet,
    pub(super) range: IpNet,
    /// Those of the subnet that hosts may have.
    pub(super) hosts: RangeInclusive<u128>,
    /// Those that are given unasked.
    pub(super) given: RangeInclusive<u128>,
}

impl Pool {
    pub(super) fn address(&self, n: u128) -> IpAddr {
        match self.subnet {
            // An IPv4 pool has no larger number.
            IpNet::V4(_) => Ipv4Addr::from_bits(n as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from_bits(n).into(),
        }
    }

    /// The address of this family.
    pub(super) fn own(&self, addresses: &Addresses) -> Option<u128> {
        let own = match self.subnet {
            IpNet::V4(_) => addresses.v4.map(IpAddr::V4),
            IpNet::V6(_) => addresses.v6.map(IpAddr::V6),
        };
        own.map(number)
    }

    /// An address of the range with a hash of `name` behind its prefix. The hash has 64 bits, as
    /// many as an interface identifier; a wider range has zeros between.
    pub(super) fn hashed(&self, name: &str, attempt: u32) -> u128 {
        let host_bits = u32::from(self.range.max_prefix_len() - self.range.prefix_len());
        let mask = u128::MAX
            .checked_shl(host_bits)
            .map_or(u128::MAX, |prefix| !prefix);
        let [a, b, c, d, e, f, g, h, ..] = hash(name, attempt);
        let hashed = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        number(self.range.network()) | (u128::from(hashed) & mask)
    }
}

/// A hash of a name, another one for each attempt.
pub(super) fn hash(name: &str, attempt: u32) -> [u8; 32] {
    let hash = Sha256::new().chain_update(attempt.to_be_bytes());
    hash.chain_update(name).finalize().into()
}
