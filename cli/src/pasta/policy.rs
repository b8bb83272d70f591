//! What the namespace may reach, and under which addresses the host.

use std::net::IpAddr;

use cnet_dataplane::{Direction, NetworkConfig, PolicyRule, Refusal};
use cnet_tap::netif::host_link::HostLinks;
use cnet_wire::frame::protocol;

use super::args::{Mapped, Options};

/// Sets it in `config`, whose addresses are set already.
pub(super) fn set(options: &Options, config: &mut NetworkConfig, host: &HostLinks) {
    let gateways = || {
        let v4 = config.ipv4.map(|plan| IpAddr::V4(plan.gateway));
        let v6 = config.ipv6.map(|plan| IpAddr::V6(plan.gateway));
        let link_local = config.ipv6.and(config.quirks.link_local).map(IpAddr::V6);
        v4.into_iter().chain(v6).chain(link_local).collect()
    };
    let loopback: Vec<IpAddr> = match (options.host_loopback.given, options.map_gateway) {
        (true, _) => both(options.host_loopback).collect(),
        (false, true) => gateways(),
        (false, false) => Vec::new(),
    };
    let own = both(options.host_own).filter_map(|alias| {
        let of_host = host.default(alias.is_ipv6())?.addresses.iter();
        let own = of_host
            .map(|(at, _)| *at)
            .find(|at| at.is_ipv6() == alias.is_ipv6());
        Some((alias, own?))
    });
    config.policy.host_own = own.collect();
    config.policy.host_loopback = loopback;
    // As pasta, which has no such guard; its callers bring their own.
    config.policy.allow_metadata = !crate::program::metadata_is_denied();
    let refused = options.refused;
    for (is_refused, number) in [
        (refused.tcp || options.splice_only, protocol::TCP),
        (refused.udp || options.splice_only, protocol::UDP),
        (refused.icmp || options.splice_only, protocol::ICMP),
        (refused.icmp || options.splice_only, protocol::ICMPV6),
    ] {
        if is_refused {
            config.policy.rules.push(PolicyRule {
                protocol: Some(number),
                ..PolicyRule::all(Direction::Outwards, Some(Refusal::Prohibited))
            });
        }
    }
}

fn both(mapped: Mapped) -> impl Iterator<Item = IpAddr> {
    let v4 = mapped.ipv4.map(IpAddr::V4);
    v4.into_iter().chain(mapped.ipv6.map(IpAddr::V6))
}
