//! Ports that are published as a container listens on them (`--publish auto`).
//!
//! # Theory of operation
//!
//! The kernel tells nothing of new listeners, so the container's sockets are asked for each second
//! ([`Control::bound_sockets`]). What the container listens on, at an address that clients can be brought
//! to, is opened at the same port of all of the host's addresses; what it no longer listens on is closed.
//!
//! # Limits
//!
//! - Of UDP only ports below [`FIRST_EPHEMERAL`] are servers': a client's socket looks like one.
//! - A port that cannot be opened, since another program has it or this user may not, is told once and
//!   tried again each second.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use cnet::AutoPublish;
use cnet_dataplane::{BoundSockets, Control, ForwardId, OpenForward, PortId, Rule};
use cnet_wire::Protocol;

use crate::forward::{ContainerAddresses, close};

/// How often a container is asked.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Where the ports begin that the kernel gives to clients (`net.ipv4.ip_local_port_range`).
const FIRST_EPHEMERAL: u16 = 32768;

/// A transport and a port.
type Port = (Protocol, u16);

/// The ports of one container that are published so.
#[derive(Debug)]
pub struct AutoPorts {
    auto: AutoPublish,
    open: HashMap<Port, OpenForward>,
    /// Those that could not be opened, and were told.
    failed: HashSet<Port>,
}

/// What a step has changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Ports that are open now.
    pub opened: Vec<OpenForward>,
    /// Ports that are closed now.
    pub closed: Vec<ForwardId>,
}

impl AutoPorts {
    /// None yet, but those of `before` that look as if they were opened so.
    pub fn new(auto: AutoPublish, before: impl IntoIterator<Item = OpenForward>) -> AutoPorts {
        let is_own = |open: &OpenForward| {
            open.rule.both_families && open.rule.container.port == open.bound.port()
        };
        let own = before.into_iter().filter(is_own);
        AutoPorts {
            auto,
            open: own.map(|open| (port_of(&open), open)).collect(),
            failed: HashSet::new(),
        }
    }

    /// Opens and closes what has changed. `others` are open ports of the container that are not this
    /// one's; `None` once the container cannot be asked, or the network has stopped.
    pub async fn step(
        &mut self,
        control: &Control,
        (port, addresses): (PortId, ContainerAddresses),
        others: impl IntoIterator<Item = OpenForward>,
    ) -> Option<Changes> {
        let sockets = control.bound_sockets(port).await?;
        let mut wanted = wanted(&self.auto, addresses, &sockets);
        let is_own: HashSet<ForwardId> = self.open.values().map(|open| open.id).collect();
        for other in others
            .into_iter()
            .filter(|other| !is_own.contains(&other.id))
        {
            wanted.remove(&port_of(&other));
        }
        self.failed.retain(|port| wanted.contains(port));
        let gone = self.open.extract_if(|port, _| !wanted.contains(port));
        let gone: Vec<OpenForward> = gone.map(|(_, open)| open).collect();
        close(control, &gone).await;
        let new = wanted
            .into_iter()
            .filter(|port| !self.open.contains_key(port));
        let new: Vec<Port> = new.collect();
        let rules = new
            .iter()
            .map(|&(protocol, port)| Rule::on_all(protocol, port, addresses.end(port)));
        let results = match new.is_empty() {
            true => Vec::new(),
            false => control
                .replace_forwards(Vec::new(), rules.collect())
                .await
                .ok()?,
        };
        let mut opened = Vec::new();
        for (port, result) in new.into_iter().zip(results) {
            match result {
                Ok(open) => {
                    self.failed.remove(&port);
                    self.open.insert(port, open);
                    opened.push(open);
                }
                Err(error) if self.failed.insert(port) => tracing::warn!(
                    %error,
                    "the container listens on port {}/{}, which is not published",
                    port.1,
                    port.0
                ),
                Err(_) => {}
            }
        }
        Some(Changes {
            opened,
            closed: gone.iter().map(|open| open.id).collect(),
        })
    }
}

fn port_of(open: &OpenForward) -> Port {
    (open.rule.protocol, open.bound.port())
}

/// The ports that a container listens on and that are to be published.
fn wanted(
    auto: &AutoPublish,
    addresses: ContainerAddresses,
    sockets: &BoundSockets,
) -> HashSet<Port> {
    let reached = |socket: &&cnet_tap::socket::BoundSocket| {
        let v4 = addresses.ipv4.map(Into::into).into_iter();
        v4.chain(addresses.ipv6.map(Into::into))
            .any(|address| socket.takes(address))
    };
    let ports = |protocol, sockets: &[cnet_tap::socket::BoundSocket]| {
        let reached = sockets
            .iter()
            .filter(reached)
            .map(|socket| socket.at.port());
        reached.map(|port| (protocol, port)).collect::<Vec<Port>>()
    };
    let tcp = ports(Protocol::Tcp, &sockets.tcp);
    let udp = ports(Protocol::Udp, &sockets.udp).into_iter();
    let udp = udp.filter(|(_, port)| *port < FIRST_EPHEMERAL);
    let all = tcp.into_iter().chain(udp);
    all.filter(|(_, port)| auto.has(*port)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use cnet_tap::socket::BoundSocket;

    use super::*;

    #[test]
    fn servers_that_clients_can_be_brought_to_are_wanted() {
        let at = |at: &str| BoundSocket {
            at: at.parse::<SocketAddr>().unwrap(),
            v6_only: false,
            uid: 0,
            inode: 1,
        };
        let sockets = BoundSockets {
            tcp: [
                "0.0.0.0:80",
                "127.0.0.1:81",
                "10.0.2.100:40000",
                "[::]:22",
                "10.9.9.9:82",
            ]
            .map(at)
            .to_vec(),
            udp: ["0.0.0.0:53", "0.0.0.0:40001", "[fd00::1]:54"]
                .map(at)
                .to_vec(),
        };
        let addresses = ContainerAddresses {
            ipv4: Some([10, 0, 2, 100].into()),
            ipv6: Some("fd00::1".parse::<IpAddr>().ok().and_then(v6).unwrap()),
        };
        let auto = "auto,~22".parse().unwrap();
        let mut found: Vec<_> = wanted(&auto, addresses, &sockets)
            .into_iter()
            .map(|(protocol, port)| format!("{port}/{protocol}"))
            .collect();
        found.sort();
        assert_eq!(found, ["40000/tcp", "53/udp", "54/udp", "80/tcp"]);
    }

    fn v6(address: IpAddr) -> Option<std::net::Ipv6Addr> {
        match address {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        }
    }
}
