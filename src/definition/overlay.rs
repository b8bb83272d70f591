//! The other hosts of a network that spans several: the part of a definition that the driver
//! [`OVERLAY`](super::OVERLAY) has.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use cnet_tap::socket::route_mtu;
use cnet_wire::vxlan::{OVERHEAD_V4, OVERHEAD_V6, PORT, Vni};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::name::is_domain;
use super::{LEAST_DEFAULT_MTU, default_mtu};

/// The smallest number that is chosen where none is asked for, as Docker does: small ones are for people.
const FIRST_CHOSEN: u32 = 4096;

/// The other hosts, and how this one talks with them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Overlay {
    /// The VXLAN network identifier, 1 to 16,777,215: the same on all hosts.
    pub vni: u32,
    /// The UDP port of this host.
    #[serde(default = "vxlan_port")]
    pub port: u16,
    /// The other hosts.
    #[serde(default)]
    pub peers: Vec<Peer>,
}

fn vxlan_port() -> u16 {
    PORT
}

/// What is asked for of an overlay.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct OverlayRequest {
    /// See [`Overlay::vni`]; by default one that is made of the network's name.
    pub vni: Option<u32>,
    /// See [`Overlay::port`]; by default 4789.
    pub port: Option<u16>,
    /// See [`Overlay::peers`].
    pub peers: Vec<Peer>,
}

/// Why there can be no such overlay.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// Its number.
    #[error("a VNI of {0} cannot be: it is 1 to {max}", max = Vni::MAX)]
    Vni(u32),
    /// Its port.
    #[error("0 is no UDP port")]
    Port,
    /// A peer twice.
    #[error("the peer {0} is named twice")]
    Twice(Peer),
    /// No range of addresses of its own.
    #[error(
        "the hosts of an overlay share its {0} subnet, and each gives out a part of it: give this host's with --ip-range"
    )]
    NoRange(&'static str),
    /// No subnet.
    #[error(
        "the hosts of an overlay share its subnet: give it with --subnet, the same on all of them"
    )]
    NoSubnet,
    /// The driver is another one.
    #[error("--peer, --vni and --port are for the driver `overlay`: give --driver overlay as well")]
    NotOverlay,
}

impl Overlay {
    /// What `request` asks for, in a network of that name.
    pub(super) fn new(name: &str, request: OverlayRequest) -> Overlay {
        let chosen = || {
            let digest = Sha256::digest(name);
            let number = u32::from_be_bytes([0, digest[0], digest[1], digest[2]]);
            FIRST_CHOSEN + number % (Vni::MAX - FIRST_CHOSEN + 1)
        };
        Overlay {
            vni: request.vni.unwrap_or_else(chosen),
            port: request.port.unwrap_or(PORT),
            peers: request.peers,
        }
    }

    /// Checks all of it.
    pub(super) fn check(&self) -> Result<(), OverlayError> {
        if self.vni == 0 || self.vni > Vni::MAX {
            return Err(OverlayError::Vni(self.vni));
        }
        if self.port == 0 {
            return Err(OverlayError::Port);
        }
        let mut hosts: Vec<&Peer> = self.peers.iter().collect();
        hosts.sort_by_key(|peer| &peer.host);
        match hosts.windows(2).find(|pair| pair[0].host == pair[1].host) {
            Some(pair) => Err(OverlayError::Twice(pair[1].clone())),
            None => Ok(()),
        }
    }
}

impl OverlayRequest {
    /// The largest MTU that fits into a tunnel to each peer: that of the host's route there, less the
    /// tunnel's headers.
    pub fn default_mtu(&self) -> u16 {
        let port = self.port.unwrap_or(PORT);
        let of_peer = |peer: &Peer| {
            let address = peer.resolve(port).ok()?;
            let overhead = match address.is_ipv4() {
                true => OVERHEAD_V4,
                false => OVERHEAD_V6,
            };
            Some(route_mtu(address)?.saturating_sub(overhead.into()))
        };
        let unknown = u32::from(default_mtu().saturating_sub(OVERHEAD_V6));
        let least = self.peers.iter().filter_map(of_peer).min();
        let mtu = least.unwrap_or(unknown).max(LEAST_DEFAULT_MTU);
        u16::try_from(mtu)
            .unwrap_or(u16::MAX)
            .min(*super::MTU_RANGE.end() as u16)
    }
}

/// Another host: `HOST[:PORT]`, where an IPv6 address with a port is in brackets.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Peer {
    /// An address or a name.
    pub host: String,
    /// Its UDP port, if it is not the same as this host's.
    pub port: Option<u16>,
}

/// A text names no host.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no host, such as 192.0.2.7, 192.0.2.7:4790, [2001:db8::7]:4790 or host.example")]
pub struct PeerError(String);

impl Peer {
    /// Where it is; `port` is this host's own.
    ///
    /// # Errors
    ///
    /// When a name has no address.
    pub fn resolve(&self, port: u16) -> io::Result<SocketAddr> {
        let port = self.port.unwrap_or(port);
        let mut found = (self.host.as_str(), port).to_socket_addrs()?;
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        found.next().ok_or_else(none)
    }
}

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Peer, PeerError> {
        let error = || PeerError(text.to_owned());
        let (host, port) = match (text.parse::<IpAddr>(), text.rsplit_once(':')) {
            (Ok(_), _) | (_, None) => (text, None),
            (_, Some((host, port))) => {
                let port = port.parse().ok().filter(|&port: &u16| port != 0);
                (host, Some(port.ok_or_else(error)?))
            }
        };
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bare {
            Some(bare) => bare.parse::<Ipv6Addr>().map_err(|_| error())?.to_string(),
            None => match host.parse::<IpAddr>() {
                // Its colons and the port's could not be told apart.
                Ok(IpAddr::V6(_)) if port.is_some() => return Err(error()),
                Ok(address) => address.to_string(),
                // Brackets and colons are an address's, cut short.
                Err(_) if is_domain(host) && !host.contains(['[', ']', ':']) => host.to_owned(),
                Err(_) => return Err(error()),
            },
        };
        Ok(Peer { host, port })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl Serialize for Peer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Peer, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_read_as_they_are_written() {
        for (text, host, port) in [
            ("192.0.2.7", "192.0.2.7", None),
            ("192.0.2.7:4790", "192.0.2.7", Some(4790)),
            ("2001:db8::7", "2001:db8::7", None),
            ("[2001:db8::7]:4790", "2001:db8::7", Some(4790)),
            ("host.example", "host.example", None),
            ("host.example:1", "host.example", Some(1)),
        ] {
            let peer: Peer = text.parse().unwrap();
            assert_eq!((peer.host.as_str(), peer.port), (host, port));
            assert_eq!(peer.to_string(), text);
        }
        for text in [
            "",
            "192.0.2.7:0",
            "a b",
            "h:65536",
            "[::1",
            "[host]:1",
            ":1",
            "h:",
        ] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_name_gives_one_number_on_all_hosts() {
        let of = |name: &str| Overlay::new(name, OverlayRequest::default());
        assert_eq!(of("web").vni, of("web").vni);
        assert_ne!(of("web").vni, of("db").vni);
        assert!(of("web").check().is_ok() && of("web").vni >= FIRST_CHOSEN);
    }

    #[test]
    fn what_cannot_be_is_told() {
        let overlay = |vni, port, peers: &[&str]| {
            let peers = peers.iter().map(|p| p.parse().unwrap()).collect();
            Overlay { vni, port, peers }.check()
        };
        assert_eq!(overlay(1, 1, &["a", "b"]), Ok(()));
        assert_eq!(overlay(0, 1, &[]), Err(OverlayError::Vni(0)));
        assert_eq!(overlay(1 << 24, 1, &[]), Err(OverlayError::Vni(1 << 24)));
        assert_eq!(overlay(1, 0, &[]), Err(OverlayError::Port));
        let twice = overlay(1, 1, &["a:1", "b", "a:2"]).unwrap_err();
        assert!(twice.to_string().contains("named twice"));
    }
}
