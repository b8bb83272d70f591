//! Which address stands for the host when a container asks for `host.containers.internal`.

use cnet::Filter;
use cnet_dataplane::NetworkConfig;

/// What the host's name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HostAddress {
    /// The gateway's address: policy leads from there to the host's loopback, or to some ports of it.
    #[default]
    Gateway,
    /// The address that the host has towards its default route. Services of the host that listen on
    /// all addresses answer there.
    DefaultRoute,
    /// Nothing: the host is out of reach, and its name does not exist.
    Unreachable,
}

impl HostAddress {
    /// What suits a network of that configuration.
    pub fn of(config: &NetworkConfig) -> HostAddress {
        let policy = &config.policy;
        let internal = !policy.ipv4 && !policy.ipv6;
        if !policy.filter.host_access.is_none() {
            return HostAddress::Gateway;
        }
        match (policy.filter.no_host, policy.host_loopback.is_empty()) {
            (true, _) => HostAddress::Unreachable,
            (false, true) if !internal => HostAddress::DefaultRoute,
            (false, _) => HostAddress::Gateway,
        }
    }

    /// What suits a container with a filter of its own; `None` if that says nothing of the host.
    pub(crate) fn of_container(filter: &Filter) -> Option<HostAddress> {
        match (filter.host_access.is_none(), filter.no_host) {
            (false, _) => Some(HostAddress::Gateway),
            (true, true) => Some(HostAddress::Unreachable),
            (true, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use cnet_wire::prefixes::Subnet;

    use super::*;

    #[test]
    fn policy_says_where_the_host_is() {
        let mut config = NetworkConfig::new(1500, Some(Subnet::DEFAULT.plan()), None);
        assert_eq!(HostAddress::of(&config), HostAddress::DefaultRoute);
        config.allow_host_loopback();
        assert_eq!(HostAddress::of(&config), HostAddress::Gateway);
        config.policy.filter.no_host = true;
        assert_eq!(HostAddress::of(&config), HostAddress::Unreachable);
        config.policy.filter.host_access = cnet_dataplane::HostAccess::All;
        assert_eq!(HostAddress::of(&config), HostAddress::Gateway);
        let mut filter = Filter::new();
        assert_eq!(HostAddress::of_container(&filter), None);
        filter.no_host = true;
        let of_filter = HostAddress::of_container(&filter);
        assert_eq!(of_filter, Some(HostAddress::Unreachable));
        filter.host_access = cnet::HostAccess::all();
        let of_filter = HostAddress::of_container(&filter);
        assert_eq!(of_filter, Some(HostAddress::Gateway));
        let mut internal = NetworkConfig::new(1500, Some(Subnet::DEFAULT.plan()), None);
        internal.policy.ipv4 = false;
        internal.policy.ipv6 = false;
        assert_eq!(HostAddress::of(&internal), HostAddress::Gateway);
    }
}
