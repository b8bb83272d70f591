//! A DNS server that is to be asked: for all names, or for those of one domain.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::name::is_domain;

/// The port of DNS (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

/// A DNS server: `ADDRESS` or, for the names of one domain alone, `DOMAIN=ADDRESS`. A port may
/// follow, behind an IPv6 address in brackets.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DnsServer {
    /// The domain whose names it is asked for, in lower case; `None` for all names that no other
    /// server is for.
    pub domain: Option<String>,
    /// Where it is.
    pub address: SocketAddr,
}

/// Why a text names no DNS server.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DnsServerError {
    /// No address.
    #[error("`{0}` is no address of a DNS server, such as 192.0.2.1 or corp.example=192.0.2.1")]
    Address(String),
    /// No domain.
    #[error("`{0}` is no domain")]
    Domain(String),
}

impl From<IpAddr> for DnsServer {
    fn from(address: IpAddr) -> DnsServer {
        DnsServer {
            domain: None,
            address: SocketAddr::new(address, DNS_PORT),
        }
    }
}

impl FromStr for DnsServer {
    type Err = DnsServerError;

    fn from_str(text: &str) -> Result<DnsServer, DnsServerError> {
        let (domain, at) = match text.split_once('=') {
            Some((domain, at)) => (Some(domain), at),
            None => (None, text),
        };
        let bare = at.strip_prefix('[').and_then(|at| at.strip_suffix(']'));
        let address = match bare.unwrap_or(at).parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, DNS_PORT),
            Err(_) => at
                .parse()
                .map_err(|_| DnsServerError::Address(at.to_owned()))?,
        };
        let no_server = address.ip().is_unspecified() || address.ip().is_multicast();
        if no_server || address.port() == 0 {
            return Err(DnsServerError::Address(at.to_owned()));
        }
        let checked = |domain: &str| match is_domain(domain) {
            true => Ok(domain.trim_matches('.').to_ascii_lowercase()),
            false => Err(DnsServerError::Domain(domain.to_owned())),
        };
        Ok(DnsServer {
            domain: domain.map(checked).transpose()?,
            address,
        })
    }
}

impl fmt::Display for DnsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(domain) = &self.domain {
            write!(f, "{domain}=")?;
        }
        match self.address.port() {
            DNS_PORT => write!(f, "{}", self.address.ip()),
            _ => write!(f, "{}", self.address),
        }
    }
}

impl Serialize for DnsServer {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DnsServer {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<DnsServer, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_read_and_print_alike() {
        for (text, domain, address) in [
            ("192.0.2.1", None, "192.0.2.1:53"),
            ("192.0.2.1:5353", None, "192.0.2.1:5353"),
            ("fd00::1", None, "[fd00::1]:53"),
            ("[fd00::1]:5353", None, "[fd00::1]:5353"),
            (
                "corp.example=192.0.2.1",
                Some("corp.example"),
                "192.0.2.1:53",
            ),
        ] {
            let server: DnsServer = text.parse().unwrap();
            assert_eq!(server.domain.as_deref(), domain);
            assert_eq!(server.address, address.parse().unwrap());
            assert_eq!(server.to_string(), text);
            let json = serde_json::to_string(&server).unwrap();
            assert_eq!(serde_json::from_str::<DnsServer>(&json).unwrap(), server);
        }
        let server: DnsServer = "Corp.Example.=[fd00::1]".parse().unwrap();
        assert_eq!(server.to_string(), "corp.example=fd00::1");
    }

    #[test]
    fn what_is_no_server_is_refused() {
        for text in [
            "",
            "one.one",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "192.0.2.1:0",
            "=192.0.2.1",
            "a..b=192.0.2.1",
            "corp.example=",
            "corp.example",
        ] {
            assert!(text.parse::<DnsServer>().is_err(), "{text}");
        }
    }
}
