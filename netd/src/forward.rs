//! Opening the ports of a `-p` option, on all the addresses they are meant for or on none.
//!
//! # A published port's shapes
//!
//! A published port has four shapes on its way from the command line to the listener:
//!
//! 1. text, `[[HOSTIP:]HOSTPORT:]PORT[/tcp|udp]`, from a command line or the control API;
//! 2. [`PublishSpec`], the text's meaning: ranges of ports, an address or all of them, a port to be
//!    chosen;
//! 3. [`Rule`], one socket to be opened: one address and port of the host, one of the container. This
//!    module makes rules of specifications: it expands ranges, stands in for "all addresses" the
//!    wildcards of the families that the container has, and chooses a free port;
//! 4. [`OpenForward`], the rule with its id and the address that it is bound to, which the
//!    dataplane's table holds beside the socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use cnet::PublishSpec;
use cnet_dataplane::{Control, ForwardError, ForwardId, OpenForward, Rule};
use cnet_wire::Protocol;

/// How often a free port is looked for, when another program takes the one that was found.
const PORT_ATTEMPTS: usize = 16;

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
    /// The address of the family of `host`: a client's own address is shown to the container, so
    /// both sides are of one family.
    fn of_family(self, host: IpAddr) -> Option<IpAddr> {
        match host {
            IpAddr::V4(_) => self.ipv4.map(IpAddr::V4),
            IpAddr::V6(_) => self.ipv6.map(IpAddr::V6),
        }
    }

    /// "All addresses" of the host, of the families that the container has.
    fn wildcards(self) -> Vec<IpAddr> {
        let v4 = self.ipv4.map(|_| Ipv4Addr::UNSPECIFIED.into());
        let v6 = self.ipv6.map(|_| Ipv6Addr::UNSPECIFIED.into());
        v4.into_iter().chain(v6).collect()
    }
}

/// Why a specification was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// One of its ports.
    #[error("cannot publish {spec}: {source}")]
    Port {
        /// The specification.
        spec: String,
        /// What is wrong with the port.
        source: ForwardError,
    },
    /// The container has no address of that family.
    #[error(
        "cannot publish {spec}: the container has no address of the family of {host}; open the port on an address of the other family"
    )]
    Family {
        /// The specification.
        spec: String,
        /// The host's address.
        host: IpAddr,
    },
    /// There is no free port.
    #[error("cannot publish {spec}: no free port was found: {source}")]
    NoneFree {
        /// The specification.
        spec: String,
        /// What the kernel says.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether another program has the port.
    pub fn is_conflict(&self) -> bool {
        matches!(
            self,
            OpenError::Port {
                source: ForwardError::InUse { .. },
                ..
            }
        )
    }
}

/// Opens all ports of `spec` and leads them to the container at `addresses`.
///
/// # Errors
///
/// See [`OpenError`]; nothing is open then.
pub async fn open(
    control: &Control,
    addresses: ContainerAddresses,
    spec: &PublishSpec,
) -> Result<Vec<OpenForward>, OpenError> {
    let mut opened = Vec::new();
    for ports in spec.pairs() {
        match open_pair(control, addresses, spec, ports).await {
            Ok(more) => opened.extend(more),
            Err(error) => {
                close(control, &opened).await;
                return Err(error);
            }
        }
    }
    Ok(opened)
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
    let (host, container) = (open.bound, open.rule.container);
    spec.protocol() == open.rule.protocol
        && spec.host_ip().is_none_or(|ip| ip == host.ip())
        && spec.pairs().any(|(host_port, port)| {
            port == container.port() && host_port.is_none_or(|port| port == host.port())
        })
}

/// Opens one port of the host, or a free one, on all the addresses it is meant for.
async fn open_pair(
    control: &Control,
    addresses: ContainerAddresses,
    spec: &PublishSpec,
    (host_port, port): (Option<u16>, u16),
) -> Result<Vec<OpenForward>, OpenError> {
    let hosts = match spec.host_ip() {
        Some(host) => vec![host],
        None => addresses.wildcards(),
    };
    let failed = |source| OpenError::Port {
        spec: spec.to_string(),
        source,
    };
    if let Some(host_port) = host_port {
        let rules = rules(addresses, spec, &hosts, (host_port, port))?;
        return open_rules(control, spec, rules).await.map_err(failed);
    }
    let none_free = |source| OpenError::NoneFree {
        spec: spec.to_string(),
        source,
    };
    let first = hosts.first().copied();
    let first = first.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    for _ in 0..PORT_ATTEMPTS {
        let free = free_port(spec.protocol(), first).map_err(none_free)?;
        let rules = rules(addresses, spec, &hosts, (free, port))?;
        match open_rules(control, spec, rules).await {
            Err(ForwardError::InUse { .. }) => {}
            opened => return opened.map_err(failed),
        }
    }
    Err(none_free(io::ErrorKind::AddrInUse.into()))
}

/// The rules that lead one port of each of `hosts` to the container.
fn rules(
    addresses: ContainerAddresses,
    spec: &PublishSpec,
    hosts: &[IpAddr],
    (host_port, port): (u16, u16),
) -> Result<Vec<Rule>, OpenError> {
    let rule = |&host| {
        let container = addresses.of_family(host).ok_or_else(|| OpenError::Family {
            spec: spec.to_string(),
            host,
        })?;
        let host = SocketAddr::new(host, host_port);
        let container = SocketAddr::new(container, port);
        Ok(Rule::new(spec.protocol(), host, container))
    };
    hosts.iter().map(rule).collect()
}

/// Opens all of `rules` or none; but "all addresses" of a host without IPv6 are those of IPv4.
async fn open_rules(
    control: &Control,
    spec: &PublishSpec,
    rules: Vec<Rule>,
) -> Result<Vec<OpenForward>, ForwardError> {
    let implied = spec.host_ip().is_none();
    let is_v6: Vec<bool> = rules.iter().map(|rule| rule.host.is_ipv6()).collect();
    let results = control.replace_forwards(Vec::new(), rules).await?;
    let (mut opened, mut failed) = (Vec::new(), None);
    for (result, is_v6) in results.into_iter().zip(is_v6) {
        match result {
            Ok(open) => opened.push(open),
            Err(ForwardError::NoFamily { .. } | ForwardError::NotLocal { .. })
                if implied && is_v6 => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        None => Ok(opened),
        Some(error) => {
            close(control, &opened).await;
            Err(error)
        }
    }
}

/// A port that no program has now.
fn free_port(protocol: Protocol, host: IpAddr) -> io::Result<u16> {
    let any = SocketAddr::new(host, 0);
    let bound = match protocol {
        Protocol::Tcp => TcpListener::bind(any)?.local_addr()?,
        Protocol::Udp => UdpSocket::bind(any)?.local_addr()?,
    };
    Ok(bound.port())
}

#[cfg(test)]
mod tests {
    use cnet_dataplane::{Dataplane, NetworkConfig};
    use cnet_wire::prefixes::Subnet;

    use super::*;

    #[test]
    fn ports_lead_to_the_family_they_are_opened_in() {
        let addresses = ContainerAddresses {
            ipv4: Some([10, 88, 0, 2].into()),
            ipv6: None,
        };
        assert_eq!(addresses.wildcards(), [IpAddr::V4(Ipv4Addr::UNSPECIFIED)]);
        assert_eq!(
            addresses.of_family([127, 0, 0, 1].into()),
            Some([10, 88, 0, 2].into())
        );
        assert_eq!(addresses.of_family("::1".parse().unwrap()), None);
        assert!(ContainerAddresses::default().wildcards().is_empty());
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
        };
        assert!(of(in_use).is_conflict());
        assert!(!of(ForwardError::Privileged { port: 80 }).is_conflict());
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
        let opened = open(&dataplane.control(), addresses, &spec).await.unwrap();
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
