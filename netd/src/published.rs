//! Opening the ports of a `-p` option, on all the addresses they are meant for or on none.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use cnet::publish::{PortPair, PublishSpec};
use cnet_dataplane::{Control, ForwardId, Publish, PublishError};
use cnet_wire::Protocol;

/// How often a free port is looked for, when somebody else takes the one that was found.
const PORT_ATTEMPTS: usize = 16;

/// Where published ports lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Guests {
    /// The container's IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The container's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

impl Guests {
    /// The address of the family of `host`: a client's own address is shown to the container, so
    /// both sides are of one family.
    fn like(self, host: IpAddr) -> Option<IpAddr> {
        match host {
            IpAddr::V4(_) => self.ipv4.map(IpAddr::V4),
            IpAddr::V6(_) => self.ipv6.map(IpAddr::V6),
        }
    }

    /// "All addresses", of the families that the container has.
    fn any(self) -> Vec<IpAddr> {
        let v4 = self.ipv4.map(|_| Ipv4Addr::UNSPECIFIED.into());
        let v6 = self.ipv6.map(|_| Ipv6Addr::UNSPECIFIED.into());
        v4.into_iter().chain(v6).collect()
    }
}

/// An open port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// What closes it.
    pub id: ForwardId,
    /// What it is.
    pub publish: Publish,
    /// Whether the host's port was ours to choose.
    pub chosen: bool,
}

/// Why a specification was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// One of its ports.
    #[error("cannot publish {spec}: {source}")]
    Port {
        /// The specification.
        spec: String,
        /// What is wrong with the port.
        source: PublishError,
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
    /// Whether it is somebody else's port.
    pub fn is_conflict(&self) -> bool {
        matches!(
            self,
            OpenError::Port {
                source: PublishError::InUse { .. },
                ..
            }
        )
    }
}

/// Opens all ports of `spec` and leads them to `guests`.
///
/// # Errors
///
/// See [`OpenError`]; nothing is open then.
pub async fn open(
    control: &Control,
    guests: Guests,
    spec: &PublishSpec,
) -> Result<Vec<Opened>, OpenError> {
    let mut opened = Vec::new();
    for pair in spec.pairs() {
        match open_pair(control, guests, spec, pair).await {
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
pub async fn close(control: &Control, opened: &[Opened]) {
    for port in opened {
        let _ = control.unpublish(port.id).await;
    }
}

async fn open_pair(
    control: &Control,
    guests: Guests,
    spec: &PublishSpec,
    pair: PortPair,
) -> Result<Vec<Opened>, OpenError> {
    let hosts = match spec.host_ip {
        Some(host) => vec![host],
        None => guests.any(),
    };
    let failed = |source| OpenError::Port {
        spec: spec.to_string(),
        source,
    };
    if let Some(port) = pair.host {
        let on = open_on(control, guests, spec, &hosts, (port, pair.container));
        return on.await?.map_err(failed);
    }
    let none_free = |source| OpenError::NoneFree {
        spec: spec.to_string(),
        source,
    };
    let first = hosts.first().copied();
    let first = first.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    for _ in 0..PORT_ATTEMPTS {
        let port = free_port(spec.protocol, first).map_err(none_free)?;
        match open_on(control, guests, spec, &hosts, (port, pair.container)).await? {
            Err(PublishError::InUse { .. }) => {}
            Err(error) => return Err(failed(error)),
            Ok(mut opened) => {
                opened.iter_mut().for_each(|port| port.chosen = true);
                return Ok(opened);
            }
        }
    }
    Err(none_free(io::ErrorKind::AddrInUse.into()))
}

async fn open_on(
    control: &Control,
    guests: Guests,
    spec: &PublishSpec,
    hosts: &[IpAddr],
    (host_port, port): (u16, u16),
) -> Result<Result<Vec<Opened>, PublishError>, OpenError> {
    let implied = spec.host_ip.is_none();
    let mut opened: Vec<Opened> = Vec::new();
    for &host in hosts {
        let guest = guests.like(host).ok_or_else(|| OpenError::Family {
            spec: spec.to_string(),
            host,
        })?;
        let publish = Publish {
            protocol: spec.protocol,
            host: SocketAddr::new(host, host_port),
            guest: SocketAddr::new(guest, port),
        };
        match control.publish(publish).await {
            Ok(id) => opened.push(Opened {
                id,
                publish,
                chosen: false,
            }),
            // "All addresses" of a host without IPv6 are those of IPv4.
            Err(PublishError::NoFamily { .. } | PublishError::NotLocal { .. })
                if implied && host.is_ipv6() => {}
            Err(error) => {
                close(control, &opened).await;
                return Ok(Err(error));
            }
        }
    }
    Ok(Ok(opened))
}

/// A port that nobody has now.
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
    use super::*;

    #[test]
    fn ports_lead_to_the_family_they_are_opened_in() {
        let guests = Guests {
            ipv4: Some([10, 88, 0, 2].into()),
            ipv6: None,
        };
        assert_eq!(guests.any(), [IpAddr::V4(Ipv4Addr::UNSPECIFIED)]);
        assert_eq!(
            guests.like([127, 0, 0, 1].into()),
            Some([10, 88, 0, 2].into())
        );
        assert_eq!(guests.like("::1".parse().unwrap()), None);
        assert!(Guests::default().any().is_empty());
    }

    #[test]
    fn a_conflict_is_told_from_a_mistake() {
        let in_use = PublishError::InUse {
            protocol: Protocol::Tcp,
            host: "0.0.0.0:80".parse().unwrap(),
        };
        let of = |source| OpenError::Port {
            spec: "80:80/tcp".to_owned(),
            source,
        };
        assert!(of(in_use).is_conflict());
        assert!(!of(PublishError::Privileged { port: 80 }).is_conflict());
    }
}
