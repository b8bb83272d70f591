//! Opening the ports of a `-p` option, on all the addresses they are meant for or on none.
//!
//! # A published port's shapes
//!
//! A published port has four shapes on its way from the command line to the listener:
//!
//! 1. text, `[[HOSTIP:]HOSTPORT:]PORT[/tcp|udp]`, from a command line or the control API;
//! 2. [`PublishSpec`], the text's meaning: ranges of ports, an address or all of them, a port to be
//!    chosen;
//! 3. [`Rule`], one socket to be opened: one address and port of the host, or one port of all its
//!    addresses, and one port of the container. This module makes rules of specifications: it
//!    expands ranges;
//! 4. [`OpenForward`], the rule with its id and the address that it is bound to, which the
//!    dataplane's table holds beside the socket.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use cnet::PublishSpec;
use cnet::control::PublishedPort;
use cnet_dataplane::{
    ContainerEnd, Control, ForwardError, ForwardId, OpenForward, Rule, most_forwards,
};
use cnet_wire::Protocol;

use crate::dns::resolv_conf::interface_index;

/// Ports that are opened or closed by one command to the worker, which serves no frame meanwhile:
/// some hundred microseconds.
pub(crate) const PORTS_A_COMMAND: usize = 64;

/// Where published ports lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ContainerAddresses {
    /// The container's IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The container's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

impl ContainerAddresses {
    /// A port at them.
    pub(crate) fn end(self, port: u16) -> ContainerEnd {
        ContainerEnd {
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            port,
        }
    }
}

/// Why a specification was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// One of its ports.
    #[error("cannot publish {spec}: {source}{}", has_it(holder.as_deref()))]
    Port {
        /// The specification.
        spec: String,
        /// What is wrong with the port.
        source: ForwardError,
        /// Who has it, if it is taken and that is known.
        holder: Option<String>,
    },
    /// There is no such interface.
    #[error("cannot publish {spec}: there is no interface `{zone}`")]
    NoZone {
        /// The specification.
        spec: String,
        /// What it calls the interface.
        zone: String,
    },
    /// More ports than there may be.
    #[error("cannot publish {count} ports: {source}")]
    TooMany {
        /// How many.
        count: usize,
        /// Which limit that is over.
        source: ForwardError,
    },
    /// The container has no address.
    #[error("cannot publish {spec}: the container has no address on the network")]
    NoAddress {
        /// The specification.
        spec: String,
    },
}

impl OpenError {
    /// The port that another program has, if that is why.
    pub fn conflict(&self) -> Option<(Protocol, SocketAddr)> {
        match self {
            OpenError::Port {
                source: ForwardError::InUse { protocol, host },
                ..
            } => Some((*protocol, *host)),
            _ => None,
        }
    }

    /// With the name of the program that has the port, as `find` finds it.
    pub(crate) fn with_holder(
        mut self,
        find: impl FnOnce(Protocol, SocketAddr) -> Option<String>,
    ) -> OpenError {
        let found = self
            .conflict()
            .and_then(|(protocol, at)| find(protocol, at));
        if let OpenError::Port { holder, .. } = &mut self {
            *holder = found;
        }
        self
    }
}

/// What an error says of who has a port.
pub fn has_it(holder: Option<&str>) -> String {
    holder.map_or(String::new(), |holder| format!("; {holder} has it"))
}

/// Opens all ports of all `specs`, or none, and leads them to the container at `addresses`. Gives the
/// ports of each specification, in their order.
///
/// # Errors
///
/// See [`OpenError`]; nothing is open then.
pub async fn open(
    control: &Control,
    addresses: ContainerAddresses,
    specs: &[PublishSpec],
) -> Result<Vec<OpenForward>, OpenError> {
    let count = specs.iter().map(|spec| spec.ports().len()).sum();
    let limit = most_forwards();
    if count > limit {
        // Told at once, before the first of them has taken its descriptor.
        let source = ForwardError::TooMany { limit };
        return Err(OpenError::TooMany { count, source });
    }
    let no_address = addresses == ContainerAddresses::default();
    if let Some(spec) = specs.first().filter(|_| no_address) {
        let spec = spec.to_string();
        return Err(OpenError::NoAddress { spec });
    }
    let mut all: Vec<(&PublishSpec, Rule)> = Vec::with_capacity(count);
    for spec in specs {
        let zone = zone_index(spec)?;
        let rules = spec
            .pairs()
            .map(|ports| rule(addresses, (spec, zone), ports));
        all.extend(rules.map(|rule| (spec, rule)));
    }
    let mut opened = Vec::with_capacity(count);
    for some in all.chunks(PORTS_A_COMMAND) {
        let rules = some.iter().map(|(_, rule)| *rule).collect();
        let results = match control.replace_forwards(Vec::new(), rules).await {
            Ok(results) => results,
            Err(ended) => vec![Err(ended)],
        };
        let mut failed = None;
        for (result, (spec, _)) in results.into_iter().zip(some) {
            match result {
                Ok(open) => opened.push(open),
                Err(source) => failed = failed.or(Some((*spec, source))),
            }
        }
        if let Some((spec, source)) = failed {
            close(control, &opened).await;
            return Err(OpenError::Port {
                spec: spec.to_string(),
                source,
                holder: None,
            });
        }
    }
    Ok(opened)
}

/// The number of the interface that a specification's address is on; 0 if it names none.
fn zone_index(spec: &PublishSpec) -> Result<u32, OpenError> {
    let Some(zone) = spec.host_zone() else {
        return Ok(0);
    };
    interface_index(zone).map_err(|_| OpenError::NoZone {
        spec: spec.to_string(),
        zone: zone.to_owned(),
    })
}

/// Closes ports. One that is closed already is no error.
pub async fn close(control: &Control, opened: &[OpenForward]) {
    for some in opened.chunks(PORTS_A_COMMAND) {
        let ids: Vec<ForwardId> = some.iter().map(|open| open.id).collect();
        // A network that has stopped has closed them.
        let _ = control.remove_forwards(ids).await;
    }
}

/// Whether `open` is one of the ports that `spec` stands for: a host's address or port that is not
/// said means any.
pub fn means(spec: &PublishSpec, open: &OpenForward) -> bool {
    let (host, port) = (open.bound, open.rule.container.port);
    let same_zone = || match (host, zone_index(spec)) {
        (SocketAddr::V6(host), Ok(zone)) => spec.host_zone().is_none() || host.scope_id() == zone,
        (_, zone) => zone.is_ok(),
    };
    let same_address = |ip| !open.rule.both_families && ip == host.ip() && same_zone();
    let same_port = || {
        // The place of the port among the container's.
        let at = spec
            .ports()
            .contains(&port)
            .then(|| port - spec.ports().start())?;
        let first = match spec.host_ports() {
            None => return Some(()),
            Some(hosts) => *hosts.start(),
        };
        (first + at == host.port()).then_some(())
    };
    spec.protocol() == open.rule.protocol
        && spec.host_ip().is_none_or(same_address)
        && same_port().is_some()
}

/// The rule that leads one port of the host, or a free one, to the container.
fn rule(
    addresses: ContainerAddresses,
    (spec, zone): (&PublishSpec, u32),
    (host_port, port): (Option<u16>, u16),
) -> Rule {
    let (host_port, end) = (host_port.unwrap_or(0), addresses.end(port));
    match spec.host_ip() {
        Some(IpAddr::V6(host)) => {
            let host = SocketAddrV6::new(host, host_port, 0, zone);
            Rule::new(spec.protocol(), host.into(), end)
        }
        Some(host) => Rule::new(spec.protocol(), SocketAddr::new(host, host_port), end),
        None => Rule::on_all(spec.protocol(), host_port, end),
    }
}

/// An open port as clients and the journal know it: an entry for all IPv4 addresses of the host and
/// one for all of IPv6.
pub fn published(open: &OpenForward) -> impl Iterator<Item = PublishedPort> + use<> {
    let protocol = open.rule.protocol;
    let ends = open.ends();
    ends.map(move |(host, container)| PublishedPort::new(protocol, host, container))
}

/// The rules that open `ports` again, which lead to the container at `addresses`.
pub fn rules_of(addresses: ContainerAddresses, ports: &[PublishedPort]) -> Vec<Rule> {
    let is_all = |port: &PublishedPort, v6: bool| {
        port.host.ip().is_unspecified() && port.host.is_ipv6() == v6
    };
    let key = |port: &PublishedPort| {
        let udp = port.protocol == Protocol::Udp;
        (udp, port.host.port(), port.container.port())
    };
    let of = |v6: bool| -> HashSet<_> {
        let all = ports.iter().filter(move |port| is_all(port, v6));
        all.map(key).collect()
    };
    let (all_v4, all_v6) = (of(false), of(true));
    let rules = ports.iter().filter_map(|port| {
        let end = addresses.end(port.container.port());
        let (is_v4, is_v6) = (is_all(port, false), is_all(port, true));
        if is_v4 && all_v6.contains(&key(port)) {
            // Its other half opens both.
            return None;
        }
        Some(match is_v6 && all_v4.contains(&key(port)) {
            true => Rule::on_all(port.protocol, port.host.port(), end),
            false => Rule::new(port.protocol, port.host, end),
        })
    });
    rules.collect()
}

#[cfg(test)]
mod tests {
    use cnet_dataplane::{Dataplane, NetworkConfig};
    use cnet_wire::prefixes::Subnet;

    use super::*;

    #[test]
    fn what_was_open_is_opened_again() {
        let addresses = ContainerAddresses {
            ipv4: Some([10, 88, 0, 2].into()),
            ipv6: None,
        };
        let specs = ["8080:80", "127.0.0.1:53:53/udp", "[::]:7:7", "0.0.0.0:7:7"];
        let specs = specs.map(|spec| spec.parse::<PublishSpec>().unwrap());
        let rules = specs.iter().flat_map(|spec| {
            let pairs: Vec<_> = spec.pairs().collect();
            pairs
                .into_iter()
                .map(|pair| rule(addresses, (spec, 0), pair))
        });
        let rules: Vec<Rule> = rules.take(3).collect();
        let ports = |rules: &[Rule]| -> Vec<PublishedPort> {
            let open = rules
                .iter()
                .map(|rule| OpenForward::new(ForwardId(1), *rule, rule.host));
            open.flat_map(|open| published(&open)).collect()
        };
        let told = ports(&rules);
        let shown: Vec<String> = told.iter().map(|port| port.host.to_string()).collect();
        assert_eq!(
            shown,
            ["0.0.0.0:8080", "[::]:8080", "127.0.0.1:53", "[::]:7"]
        );
        assert!(told.iter().all(|port| port.container.is_ipv4()));
        assert_eq!(rules_of(addresses, &told), rules);
    }

    #[test]
    fn a_conflict_is_told_from_a_mistake() {
        let in_use = ForwardError::InUse {
            protocol: Protocol::Tcp,
            host: "0.0.0.0:80".parse().unwrap(),
        };
        let of = |source| OpenError::Port {
            spec: "80:80/tcp".to_owned(),
            source,
            holder: None,
        };
        let at = "0.0.0.0:80".parse().unwrap();
        assert_eq!(of(in_use.clone()).conflict(), Some((Protocol::Tcp, at)));
        let named = of(in_use).with_holder(|_, at| Some(format!("`x` at {at}")));
        assert!(named.to_string().ends_with("; `x` at 0.0.0.0:80 has it"));
        let privileged = of(ForwardError::Privileged { port: 80 });
        assert_eq!(privileged.conflict(), None);
        let named = privileged.with_holder(|_, _| panic!("no one has it"));
        assert!(!named.to_string().contains("has it"));
    }

    #[tokio::test]
    async fn ports_are_meant_by_what_is_said_of_them() {
        let config = NetworkConfig::new(1500, Some(Subnet::DEFAULT.plan()), None);
        let (dataplane, _queries) = Dataplane::start(config).unwrap();
        let addresses = ContainerAddresses {
            ipv4: Some([10, 0, 2, 100].into()),
            ipv6: None,
        };
        let spec = "127.0.0.1::80".parse().unwrap();
        let opened = open(&dataplane.control(), addresses, &[spec])
            .await
            .unwrap();
        let port = opened[0].bound.port();
        let meant = |text: String| means(&text.parse().unwrap(), &opened[0]);
        assert!(meant("80".into()) && meant(format!("{port}:80")));
        assert!(meant(format!("127.0.0.1:{port}:80")));
        assert!(meant(format!("{}-{}:79-81", port - 1, port + 1)));
        assert!(!meant("80/udp".into()) && !meant(format!("{}:80", port - 1)));
        assert!(!meant(format!("127.0.0.2:{port}:80")));
        assert!(!meant(format!("{port}:81")) && !meant(port.to_string()));
    }
}
