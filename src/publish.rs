//! The syntax of published ports: `[[HOSTIP:]HOSTPORT:]PORT[/tcp|udp]`.
//!
//! The last number is the container's port, the one before it the host's. Either may be a range
//! `FIRST-LAST`, if both are of one length. An IPv6 address stands in brackets, a link-local one with
//! its zone (`[fe80::1%eth0]`, RFC 4007). Without HOSTPORT, or with 0 (`80`, `0:80`, or `127.0.0.1::80`)
//! the host's port is any free one, as with Docker. Without HOSTIP the port is opened on all of the
//! host's addresses, IPv4 and IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use cnet_wire::{Protocol, ProtocolError};
use serde::{Deserialize, Serialize};

/// What one `-p` option asks for; in JSON its text. Read from text by [`str::parse`], or made by
/// [`PublishSpec::new`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublishSpec {
    protocol: Protocol,
    host_ip: Option<IpAddr>,
    /// The interface that a link-local `host_ip` is on: its name or its number.
    host_zone: Option<String>,
    /// As many as `ports`.
    host_ports: Option<RangeInclusive<u16>>,
    ports: RangeInclusive<u16>,
}

/// Why a text is no publish specification.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishSyntax {
    /// Neither `/tcp` nor `/udp`.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Not a port, nor a range of ports.
    #[error("`{0}` is not a port: it is a number from 1 to 65535, or a range such as 8000-8010")]
    Port(String),
    /// The host's address cannot be read.
    #[error("`{0}` is not an IP address; one of IPv6 stands in brackets, as in [::1]:8080:80")]
    Address(String),
    /// The ranges differ in length.
    #[error("{host} ports of the host cannot lead to {container} ports of the container")]
    Lengths {
        /// How many the host has.
        host: usize,
        /// How many the container has.
        container: usize,
    },
}

impl PublishSpec {
    /// The container's `ports`, opened at free ports on all of the host's addresses.
    ///
    /// # Errors
    ///
    /// [`PublishSyntax::Port`] for an empty range, or one with port 0.
    pub fn new(
        protocol: Protocol,
        ports: RangeInclusive<u16>,
    ) -> Result<PublishSpec, PublishSyntax> {
        check(&ports)?;
        Ok(PublishSpec {
            protocol,
            host_ip: None,
            host_zone: None,
            host_ports: None,
            ports,
        })
    }

    /// Opens the ports on this address of the host alone.
    #[must_use]
    pub fn on_address(mut self, host_ip: IpAddr) -> PublishSpec {
        self.host_ip = Some(host_ip);
        self
    }

    /// Opens the ports on this link-local address of the host, which is on the interface `zone` (a name or
    /// a number).
    #[must_use]
    pub fn on_link_local(mut self, host_ip: Ipv6Addr, zone: impl Into<String>) -> PublishSpec {
        self.host_ip = Some(host_ip.into());
        self.host_zone = Some(zone.into());
        self
    }

    /// Opens these ports of the host, in their order.
    ///
    /// # Errors
    ///
    /// [`PublishSyntax::Lengths`] if they are not as many as the container's;
    /// [`PublishSyntax::Port`] as for [`PublishSpec::new`].
    pub fn at_ports(
        mut self,
        host_ports: RangeInclusive<u16>,
    ) -> Result<PublishSpec, PublishSyntax> {
        check(&host_ports)?;
        if host_ports.len() != self.ports.len() {
            return Err(PublishSyntax::Lengths {
                host: host_ports.len(),
                container: self.ports.len(),
            });
        }
        self.host_ports = Some(host_ports);
        Ok(self)
    }

    /// The transport.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The host's address; `None` for all.
    pub fn host_ip(&self) -> Option<IpAddr> {
        self.host_ip
    }

    /// The interface that the host's address is on, by its name or its number, if it is a link-local one.
    pub fn host_zone(&self) -> Option<&str> {
        self.host_zone.as_deref()
    }

    /// The host's ports, as many as the container's; `None` for any free ones.
    pub fn host_ports(&self) -> Option<&RangeInclusive<u16>> {
        self.host_ports.as_ref()
    }

    /// The container's ports.
    pub fn ports(&self) -> &RangeInclusive<u16> {
        &self.ports
    }

    /// The ports, one by one: the host's, `None` for any free one, and the container's.
    pub fn pairs(&self) -> impl Iterator<Item = (Option<u16>, u16)> {
        let host = move |n: usize| {
            let first = *self.host_ports.as_ref()?.start();
            Some(first + n as u16)
        };
        let ports = self.ports.clone().enumerate();
        ports.map(move |(n, container)| (host(n), container))
    }
}

/// Whether `ports` are ports.
fn check(ports: &RangeInclusive<u16>) -> Result<(), PublishSyntax> {
    match ports.is_empty() || *ports.start() == 0 {
        true => Err(PublishSyntax::Port(format!(
            "{}-{}",
            ports.start(),
            ports.end()
        ))),
        false => Ok(()),
    }
}

impl FromStr for PublishSpec {
    type Err = PublishSyntax;

    fn from_str(text: &str) -> Result<PublishSpec, PublishSyntax> {
        let (rest, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, name)) => (rest, name.parse()?),
        };
        let (rest, ports) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((rest, ports)) => (Some(rest), ports),
        };
        let ports = parse_ports(ports)?;
        let host = match rest {
            None => Host::default(),
            Some(rest) => parse_host(rest)?,
        };
        let mut spec = PublishSpec::new(protocol, ports)?;
        spec.host_ip = host.ip;
        spec.host_zone = host.zone;
        match host.ports {
            Some(host_ports) => spec.at_ports(host_ports),
            None => Ok(spec),
        }
    }
}

/// What stands before the container's ports.
#[derive(Default)]
struct Host {
    ip: Option<IpAddr>,
    zone: Option<String>,
    ports: Option<RangeInclusive<u16>>,
}

/// `HOSTPORT`, `HOSTIP:HOSTPORT` or `HOSTIP:`.
fn parse_host(text: &str) -> Result<Host, PublishSyntax> {
    let (address, ports) = match text.rsplit_once(':') {
        None => {
            return Ok(Host {
                ports: parse_host_ports(text)?,
                ..Host::default()
            });
        }
        Some(parts) => parts,
    };
    let unreadable = || PublishSyntax::Address(address.to_owned());
    let bare = match address.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or_else(unreadable)?,
        // The colons of an address without brackets cannot be told from ours.
        None if address.contains(':') => return Err(unreadable()),
        None => address,
    };
    let (bare, zone) = match bare.split_once('%') {
        None => (bare, None),
        Some((bare, zone)) => (bare, Some(zone)),
    };
    let ip: IpAddr = bare.parse().map_err(|_| unreadable())?;
    if let Some(zone) = zone {
        // As IFNAMSIZ has it, and no more: which interfaces there are is the kernel's to say.
        let name = (1..16).contains(&zone.len()) && zone.bytes().all(|b| b.is_ascii_graphic());
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !name || !link_local {
            return Err(unreadable());
        }
    }
    let ports = match ports {
        "" => None,
        ports => parse_host_ports(ports)?,
    };
    Ok(Host {
        ip: Some(ip),
        zone: zone.map(str::to_owned),
        ports,
    })
}

/// As [`parse_ports`]; `None` for 0, which is any free one.
fn parse_host_ports(text: &str) -> Result<Option<RangeInclusive<u16>>, PublishSyntax> {
    match text {
        "0" => Ok(None),
        text => parse_ports(text).map(Some),
    }
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, PublishSyntax> {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|&port: &u16| plain && port > 0)
    };
    let range = match text.split_once('-') {
        None => number(text).map(|port| port..=port),
        Some((first, last)) => number(first)
            .zip(number(last))
            .filter(|(first, last)| first <= last)
            .map(|(first, last)| first..=last),
    };
    range.ok_or_else(|| PublishSyntax::Port(text.to_owned()))
}

impl TryFrom<String> for PublishSpec {
    type Error = String;

    /// Reads what came as JSON; the error names it.
    fn try_from(text: String) -> Result<PublishSpec, String> {
        text.parse()
            .map_err(|error: PublishSyntax| format!("cannot publish `{text}`: {error}"))
    }
}

impl From<PublishSpec> for String {
    fn from(spec: PublishSpec) -> String {
        spec.to_string()
    }
}

impl fmt::Display for PublishSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => match &self.host_zone {
                Some(zone) => write!(f, "[{ip}%{zone}]:")?,
                None => write!(f, "[{ip}]:")?,
            },
            None => {}
        }
        let ports = |ports: &RangeInclusive<u16>| match (ports.start(), ports.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        match &self.host_ports {
            Some(host) => write!(f, "{}:", ports(host))?,
            None if self.host_ip.is_some() => f.write_str(":")?,
            None => {}
        }
        write!(f, "{}/{}", ports(&self.ports), self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> PublishSpec {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn all_forms() {
        // What was written, and how it reads when every part is said.
        for (written, meant) in [
            ("80", "80/tcp"),
            ("80/udp", "80/udp"),
            ("80/TCP", "80/tcp"),
            ("8080:80", "8080:80/tcp"),
            ("8080:80/udp", "8080:80/udp"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080:80/tcp"),
            ("127.0.0.1::80", "127.0.0.1::80/tcp"),
            ("[::1]:8080:80/udp", "[::1]:8080:80/udp"),
            ("[::1]::80", "[::1]::80/tcp"),
            ("[::]:1:2", "[::]:1:2/tcp"),
            ("8000-8010:80-90", "8000-8010:80-90/tcp"),
            (
                "[2001:db8::1]:8000-8001:80-81",
                "[2001:db8::1]:8000-8001:80-81/tcp",
            ),
            ("0:80", "80/tcp"),
            ("127.0.0.1:0:80/udp", "127.0.0.1::80/udp"),
            ("[fe80::1%eth0]:80:80", "[fe80::1%eth0]:80:80/tcp"),
            ("[fe80::1%2]::80/udp", "[fe80::1%2]::80/udp"),
            ("5-5:6", "5:6/tcp"),
            ("65535:65535", "65535:65535/tcp"),
        ] {
            assert_eq!(parse(written).to_string(), meant);
            assert_eq!(parse(meant), parse(written));
        }
    }

    #[test]
    fn pairs() {
        let pairs = |text: &str| -> Vec<(Option<u16>, u16)> { parse(text).pairs().collect() };
        assert_eq!(pairs("80"), [(None, 80)]);
        assert_eq!(
            pairs("8000-8002:80-82"),
            [(Some(8000), 80), (Some(8001), 81), (Some(8002), 82)]
        );
        assert_eq!(
            pairs("65534-65535:1-2"),
            [(Some(65534), 1), (Some(65535), 2)]
        );
        assert_eq!(pairs("1-2"), [(None, 1), (None, 2)]);
        assert_eq!(pairs("1-65535:1-65535").len(), 65535);
    }

    #[test]
    fn what_is_made_reads_as_what_is_written() {
        let made = |ports| PublishSpec::new(Protocol::Udp, ports).unwrap();
        let on = made(80..=81).on_address([127, 0, 0, 1].into());
        let at = on.clone().at_ports(8080..=8081).unwrap();
        let zoned = made(80..=80).on_link_local("fe80::1".parse().unwrap(), "eth0");
        assert_eq!((zoned.host_zone(), at.host_zone()), (Some("eth0"), None));
        assert_eq!(zoned, parse("[fe80::1%eth0]::80/udp"));
        assert_eq!(at, parse("127.0.0.1:8080-8081:80-81/udp"));
        assert_eq!((on.host_ports(), on.ports()), (None, &(80..=81)));
        assert_eq!(at.host_ports(), Some(&(8080..=8081)));
        assert_eq!(on, parse("127.0.0.1::80-81/udp"));
        assert!(made(80..=80).at_ports(1..=2).is_err());
        assert!(made(80..=80).at_ports(0..=0).is_err());
        let reversed = RangeInclusive::new(81, 80);
        assert!(PublishSpec::new(Protocol::Tcp, reversed).is_err());
    }

    #[test]
    fn nonsense_is_named() {
        use PublishSyntax as S;
        let port = |text: &str| S::Port(text.to_owned());
        let address = |text: &str| S::Address(text.to_owned());
        let protocol = |text: &str| S::Protocol(ProtocolError(text.to_owned()));
        for (text, error) in [
            ("", port("")),
            ("0", port("0")),
            ("65536", port("65536")),
            ("+80", port("+80")),
            ("80-", port("80-")),
            ("90-80", port("90-80")),
            ("1-2-3", port("1-2-3")),
            ("http", port("http")),
            (":80", port("")),
            ("8080:", port("")),
            ("0-1:80-81", port("0-1")),
            ("80:0", port("0")),
            ("[fe80::1%]:80:80", address("[fe80::1%]")),
            ("[2001:db8::1%eth0]:80:80", address("[2001:db8::1%eth0]")),
            (
                "[fe80::1%interface-name-x]:80:80",
                address("[fe80::1%interface-name-x]"),
            ),
            ("::80", address("")),
            ("80/", protocol("")),
            ("80/sctp", protocol("sctp")),
            ("localhost:8080:80", address("localhost")),
            ("::1:8080:80", address("::1")),
            ("[::1:8080:80", address("[::1")),
            ("[::1]", port("1]")),
            ("300.0.0.1:1:2", address("300.0.0.1")),
            (
                "1-2:3",
                S::Lengths {
                    host: 2,
                    container: 1,
                },
            ),
            (
                "1:2-3",
                S::Lengths {
                    host: 1,
                    container: 2,
                },
            ),
        ] {
            assert_eq!(text.parse::<PublishSpec>(), Err(error), "{text}");
        }
    }
}
