//! Which far ends a container may talk with: what `--allow`, `--deny` and `--no-host` ask for.
//!
//! The longest prefix that contains the far end's address decides, and between two of the same length
//! the one that denies. An address in no prefix is allowed, unless there are prefixes to allow and none
//! to deny: then what the container opens to it is refused. So `allow` alone is the whole list of where
//! the container may go, and leaves the clients of its published ports alone.

use std::net::IpAddr;

use cnet_wire::conversation::Direction;

use super::{HostAccess, Prefix};

/// The far ends of one container, or of all of a network.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerFilter {
    /// Far ends that are allowed although a shorter prefix of `deny` contains them.
    pub allow: Vec<Prefix>,
    /// Far ends that are refused, whichever end opens the conversation.
    pub deny: Vec<Prefix>,
    /// Whether the host's own addresses ([`super::Policy::host_addresses`]) are refused to what the
    /// container opens. Clients that the host itself sends to published ports are not concerned.
    pub no_host: bool,
    /// Ports of the host's loopback that are reached at [`super::Policy::host_access_at`], whatever
    /// `no_host` says, and whatever is not in `allow`.
    pub host_access: HostAccess,
}

impl PeerFilter {
    /// Whether it refuses nothing.
    #[inline]
    pub fn is_empty(&self) -> bool {
        let prefixes = self.allow.is_empty() && self.deny.is_empty();
        prefixes && !self.no_host && self.host_access.is_none()
    }

    /// Whether a prefix of `deny` refuses `address`: `None` if there is none that contains it.
    pub(super) fn denies(&self, address: IpAddr) -> Option<bool> {
        let longest = |prefixes: &[Prefix]| {
            let containing = prefixes.iter().filter(|prefix| prefix.contains(address));
            containing.map(|prefix| prefix.len).max()
        };
        match (longest(&self.deny), longest(&self.allow)) {
            (Some(deny), allow) => Some(allow.is_none_or(|allow| deny >= allow)),
            (None, Some(_)) => Some(false),
            (None, None) => None,
        }
    }

    /// Whether it refuses the far end at `address`; `host` has the host's own addresses.
    pub(super) fn refuses(&self, direction: Direction, address: IpAddr, host: &[IpAddr]) -> bool {
        let outwards = direction == Direction::Outwards;
        let nothing_else = outwards && self.deny.is_empty() && !self.allow.is_empty();
        let denied = self.denies(address).unwrap_or(nothing_else);
        denied || self.no_host && outwards && host.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        let parse = |text: &&str| {
            let (address, len) = text.split_once('/').unwrap();
            Prefix {
                address: address.parse().unwrap(),
                len: len.parse().unwrap(),
            }
        };
        texts.iter().map(parse).collect()
    }

    fn filter(allow: &[&str], deny: &[&str]) -> PeerFilter {
        PeerFilter {
            allow: prefixes(allow),
            deny: prefixes(deny),
            ..PeerFilter::default()
        }
    }

    fn refuses(filter: &PeerFilter, direction: Direction, address: &str) -> bool {
        let host = ["192.0.2.7".parse().unwrap()];
        filter.refuses(direction, address.parse().unwrap(), &host)
    }

    #[test]
    fn the_longest_prefix_decides_and_of_two_equal_ones_the_one_that_denies() {
        let f = filter(
            &["10.1.0.0/16", "10.2.0.0/16", "fd00::/8"],
            &["10.0.0.0/8", "10.1.2.0/24", "10.2.0.0/16"],
        );
        for direction in [Direction::Outwards, Direction::Inwards] {
            for (address, refused) in [
                ("10.9.9.9", true),
                ("10.1.9.9", false),
                ("10.1.2.9", true),
                ("10.2.9.9", true),
                ("192.0.2.1", false),
                ("fd00::1", false),
                ("2001:db8::1", false),
            ] {
                assert_eq!(refuses(&f, direction, address), refused, "{address}");
            }
        }
        assert!(!f.is_empty() && PeerFilter::default().is_empty());
    }

    #[test]
    fn allow_alone_is_all_that_may_be_reached_and_does_not_concern_clients() {
        let f = filter(&["10.1.0.0/16"], &[]);
        assert!(!refuses(&f, Direction::Outwards, "10.1.0.1"));
        assert!(refuses(&f, Direction::Outwards, "192.0.2.1"));
        assert!(refuses(&f, Direction::Outwards, "2001:db8::1"));
        assert!(!refuses(&f, Direction::Inwards, "192.0.2.1"));
    }

    #[test]
    fn the_hosts_own_addresses_are_refused_outwards() {
        let f = PeerFilter {
            no_host: true,
            ..PeerFilter::default()
        };
        assert!(refuses(&f, Direction::Outwards, "192.0.2.7"));
        assert!(!refuses(&f, Direction::Outwards, "192.0.2.8"));
        assert!(!refuses(&f, Direction::Inwards, "192.0.2.7"));
        assert!(!f.is_empty());
    }
}
