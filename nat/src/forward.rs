//! Published ports: what becomes of a client that comes to one.
//!
//! # Theory of operation
//!
//! A client has come to a socket of the host that leads to an address and port of a container. Three
//! things can become of it ([`client_path`]):
//!
//! - *splice*: client and container are on one machine, so two kernel sockets are joined and no
//!   packet is needed. Only for clients of the host's loopback: on the container's link a loopback
//!   address means the container itself, so it cannot be shown there anyway.
//! - *frames*: the client is shown to the container under an address that the container can answer
//!   ([`shown_as`]), and becomes a flow.
//! - *refuse*: there is no such address.
//!
//! The container's program may listen on one family alone, and the container may have one alone. So a
//! published port leads to a [`ContainerEnd`], one port at up to two addresses: a client is brought to
//! the address of its own family unless only the other one would answer it.
//!
//! A client of any other address, one of the host's own included, is shown as what it is: a service
//! that trusts an address must not be deceived (CVE-2021-20199).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a published port leads: one port of a container, at its address of either family. At least
/// one address is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ContainerEnd {
    /// The container's IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The container's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// The port.
    pub port: u16,
}

impl ContainerEnd {
    /// The end of the family of `like`.
    pub fn of_family(&self, like: IpAddr) -> Option<SocketAddr> {
        let address = match like {
            IpAddr::V4(_) => self.ipv4.map(IpAddr::V4),
            IpAddr::V6(_) => self.ipv6.map(IpAddr::V6),
        };
        address.map(|address| SocketAddr::new(address, self.port))
    }

    /// The ends in the order in which a client with the address `client` is to try them: its own
    /// family's first.
    pub fn in_order(&self, client: IpAddr) -> impl Iterator<Item = SocketAddr> + use<> {
        let (v4, v6) = (self.ipv4.map(IpAddr::V4), self.ipv6.map(IpAddr::V6));
        let (first, second) = match client.to_canonical() {
            IpAddr::V4(_) => (v4, v6),
            IpAddr::V6(_) => (v6, v4),
        };
        let port = self.port;
        let ends = first.into_iter().chain(second);
        ends.map(move |address| SocketAddr::new(address, port))
    }

    /// Whether `address` is one of its addresses.
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.ipv4 == Some(v4),
            IpAddr::V6(v6) => self.ipv6 == Some(v6),
        }
    }

    /// Whether it has addresses of both families.
    pub fn has_both(&self) -> bool {
        self.ipv4.is_some() && self.ipv6.is_some()
    }

    /// The one end that `client` is to be brought to: the first that `answers` is not known to deny,
    /// if the other one is known to answer. `answers` is asked only where there is a choice.
    pub fn choose(
        &self,
        client: IpAddr,
        mut answers: impl FnMut(SocketAddr) -> Option<bool>,
    ) -> Option<SocketAddr> {
        let mut ends = self.in_order(client);
        match (ends.next(), ends.next()) {
            (Some(near), Some(far)) => {
                let only_far = answers(near) == Some(false) && answers(far) == Some(true);
                Some(if only_far { far } else { near })
            }
            (only, _) => only,
        }
    }
}

impl From<SocketAddr> for ContainerEnd {
    fn from(end: SocketAddr) -> ContainerEnd {
        let (ipv4, ipv6) = match end.ip() {
            IpAddr::V4(v4) => (Some(v4), None),
            IpAddr::V6(v6) => (None, Some(v6)),
        };
        ContainerEnd {
            ipv4,
            ipv6,
            port: end.port(),
        }
    }
}

/// What becomes of a client of a published TCP port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientPath {
    /// Join its socket with one inside the container's network namespace.
    Splice,
    /// Bring it to the container by frames.
    Frames,
    /// Reset it: the container could not answer it under any address.
    Refuse,
}

/// A client, and what the network knows that matters for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ForwardedClient {
    /// Its address; one of IPv4 is not IPv4-mapped.
    pub address: SocketAddr,
    /// Where the published port leads.
    pub container: SocketAddr,
    /// The gateway's address of the container's family, if the network has that family.
    pub gateway: Option<IpAddr>,
    /// The container would look for the client's address on its own link.
    pub is_on_link: bool,
}

/// What becomes of `client`. `can_splice` tells whether sockets inside the container's network
/// namespace can be made now.
pub fn client_path(client: &ForwardedClient, can_splice: bool) -> ClientPath {
    if can_splice && client.address.ip().is_loopback() {
        return ClientPath::Splice;
    }
    match shown_as(client) {
        Some(_) => ClientPath::Frames,
        None => ClientPath::Refuse,
    }
}

/// What `client` looks like to the container: itself, unless the container could not answer it. Such
/// are a client of the host's loopback, one of another family, and one that the container would look
/// for on its own link, because it is of the host's link alone or because the host has the
/// container's subnet as well. Those look like the gateway. `None` if the network has no gateway of
/// that family.
pub fn shown_as(client: &ForwardedClient) -> Option<SocketAddr> {
    let ForwardedClient {
        address, container, ..
    } = client;
    let foreign = address.is_ipv4() != container.is_ipv4();
    if !foreign && !address.ip().is_loopback() && !client.is_on_link {
        return Some(*address);
    }
    let gateway = client.gateway?;
    Some(SocketAddr::new(gateway, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client of a container that has both families, in a network with a gateway.
    fn client(address: &str) -> ForwardedClient {
        let address: SocketAddr = address.parse().unwrap();
        let of_family = |v4: &str, v6: &str| if address.is_ipv4() { v4 } else { v6 }.to_owned();
        ForwardedClient {
            address,
            container: of_family("10.0.2.100:80", "[fd00::100]:80")
                .parse()
                .unwrap(),
            gateway: Some(of_family("10.0.2.2", "fd00::2").parse().unwrap()),
            is_on_link: false,
        }
    }

    #[test]
    fn a_client_is_brought_to_the_family_that_answers() {
        let end = ContainerEnd {
            ipv4: Some([10, 0, 2, 100].into()),
            ipv6: Some("fd00::100".parse().unwrap()),
            port: 80,
        };
        let chosen = |client: &str, v4: Option<bool>, v6: Option<bool>| {
            let answers = |end: SocketAddr| if end.is_ipv4() { v4 } else { v6 };
            let chosen = end.choose(client.parse().unwrap(), answers);
            chosen.map(|end| end.is_ipv4())
        };
        let (yes, no) = (Some(true), Some(false));
        for (client, v4, v6, is_v4) in [
            ("192.0.2.1", yes, yes, true),
            ("::ffff:192.0.2.1", yes, yes, true),
            ("2001:db8::1", yes, yes, false),
            ("192.0.2.1", no, yes, false),
            ("2001:db8::1", yes, no, true),
            // Refused by both, or not known: the client's own family tells it.
            ("2001:db8::1", no, no, false),
            ("2001:db8::1", None, None, false),
            ("2001:db8::1", None, no, false),
        ] {
            assert_eq!(
                chosen(client, v4, v6),
                Some(is_v4),
                "{client} {v4:?} {v6:?}"
            );
        }
        let only = ContainerEnd { ipv6: None, ..end };
        let asked = |_| panic!("there is no choice");
        let at = only.choose("2001:db8::1".parse().unwrap(), asked);
        assert_eq!(at, Some("10.0.2.100:80".parse().unwrap()));
        assert!(only.has([10, 0, 2, 100].into()) && !only.has_both());
    }

    #[test]
    fn clients_of_loopback_are_spliced_where_that_can_be() {
        for (address, is_loopback) in [
            ("127.0.0.1:9", true),
            ("127.9.9.9:9", true),
            ("[::1]:9", true),
            ("192.0.2.1:9", false),
            ("[2001:db8::1]:9", false),
            ("10.0.2.2:9", false),
        ] {
            let path = client_path(&client(address), true);
            assert_eq!(path == ClientPath::Splice, is_loopback, "{address}");
            let path = client_path(&client(address), false);
            assert_eq!(path, ClientPath::Frames, "{address}");
        }
    }

    #[test]
    fn a_client_is_shown_as_itself_where_the_container_can_answer_it() {
        let seen = |client: &ForwardedClient| shown_as(client).map(|a| a.to_string());
        for (address, shown) in [
            ("192.0.2.1:9", "192.0.2.1:9"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
            ("127.0.0.1:9", "10.0.2.2:9"),
            ("[::1]:9", "[fd00::2]:9"),
        ] {
            assert_eq!(seen(&client(address)).as_deref(), Some(shown));
        }
        let on_link = ForwardedClient {
            is_on_link: true,
            ..client("10.0.2.7:9")
        };
        assert_eq!(seen(&on_link).as_deref(), Some("10.0.2.2:9"));
        let foreign = ForwardedClient {
            address: "[2001:db8::1]:9".parse().unwrap(),
            ..client("192.0.2.1:9")
        };
        assert_eq!(seen(&foreign).as_deref(), Some("10.0.2.2:9"));
    }

    #[test]
    fn a_client_without_an_address_to_be_shown_under_is_refused() {
        let without = |address: &str| ForwardedClient {
            gateway: None,
            ..client(address)
        };
        let path = |address: &str, can_splice| client_path(&without(address), can_splice);
        assert_eq!(path("127.0.0.1:9", false), ClientPath::Refuse);
        assert_eq!(path("127.0.0.1:9", true), ClientPath::Splice);
        assert_eq!(path("192.0.2.1:9", false), ClientPath::Frames);
    }
}
