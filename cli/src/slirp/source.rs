//! The address to send from (`--outbound-addr`, `--outbound-addr6`): given, or an interface's first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use cnet_tap::host_addresses::HostAddresses;

use super::args::Source;

/// # Errors
///
/// When there is no such interface, or it has no IPv4 address.
pub(super) fn ipv4(source: &Source<Ipv4Addr>) -> anyhow::Result<Ipv4Addr> {
    match source {
        Source::Address(address) => Ok(*address),
        Source::Interface(name) => first(name, |address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .with_context(|| wrong("outbound-addr", "ipv4", name)),
    }
}

/// # Errors
///
/// When there is no such interface, or it has no IPv6 address but its link-local one, from which nothing
/// reaches another network.
pub(super) fn ipv6(source: &Source<Ipv6Addr>) -> anyhow::Result<Ipv6Addr> {
    match source {
        Source::Address(address) => Ok(*address),
        Source::Interface(name) => first(name, |address| match address {
            IpAddr::V6(address) => Some(address).filter(|a| !a.is_unicast_link_local()),
            IpAddr::V4(_) => None,
        })
        .with_context(|| wrong("outbound-addr6", "ipv6", name)),
    }
}

fn first<A>(name: &str, usable: impl Fn(IpAddr) -> Option<A>) -> anyhow::Result<A> {
    let open = HostAddresses::open().context("cannot ask for the host's addresses")?;
    let addresses = { open }.of_interface(name)?;
    let found = addresses.into_iter().find_map(usable);
    found.with_context(|| format!("interface `{name}` has no such address"))
}

/// As slirp4netns has it, with what was given.
fn wrong(option: &str, family: &str, given: &str) -> String {
    format!("{option} has to be valid {family} address or interface name, not \"{given}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_stands_for_its_first_address() {
        let of = |name: &str| Source::<Ipv4Addr>::Interface(name.to_owned());
        assert_eq!(ipv4(&of("lo")).unwrap(), Ipv4Addr::LOCALHOST);
        let error = ipv4(&of("no-such-if")).unwrap_err().to_string();
        assert_eq!(
            error,
            "outbound-addr has to be valid ipv4 address or interface name, not \"no-such-if\""
        );
        let given = Source::Address(Ipv6Addr::LOCALHOST);
        assert_eq!(ipv6(&given).unwrap(), Ipv6Addr::LOCALHOST);
    }
}
