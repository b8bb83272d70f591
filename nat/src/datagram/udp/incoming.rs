//! Who comes to a published UDP port, and what of the container it is brought to.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::DropReason;
use cnet_wire::conversation::{Conversation, Decision, Direction};
use cnet_wire::frame::protocol;
use cnet_wire::headers::Link;
use cnet_wire::time::Instant;

use crate::datagram::forward::{Forwards, HostKey, PeerKey};
use crate::forward::ContainerEnd;
use crate::host::HostSockets;
use crate::policy::Policy;

/// What the network knows of containers and of those who come to their published ports.
pub trait Clients {
    /// The way to a container's address.
    fn link_to(&self, container: IpAddr) -> Option<Link>;

    /// How the container's end is shown a client; `None` if it cannot be.
    fn shown_as(&self, client: SocketAddr, container: SocketAddr) -> Option<SocketAddr>;
}

/// A datagram that came to a published port.
pub(super) struct Incoming {
    pub(super) now: Instant,
    pub(super) end: ContainerEnd,
    pub(super) host: HostKey,
}

impl Incoming {
    /// The client of the datagram as the container is to see it, and the way to the container.
    /// `unresolved` is set to a container whose link is not known.
    pub(super) fn meet(
        &self,
        forwards: &mut Forwards,
        clients: &impl Clients,
        policy: &Policy,
        hosts: &mut impl HostSockets,
        unresolved: &mut Option<IpAddr>,
    ) -> Result<(PeerKey, Link), DropReason> {
        let Incoming { now, end, host } = self;
        let known = forwards.known(*now, host);
        let container = match known {
            Some(key) => key.container,
            None => {
                let answers = |container| hosts.udp_is_bound(container);
                let chosen = end.choose(host.client.ip(), answers);
                chosen.ok_or(DropReason::NotServed)?
            }
        };
        let Some(link) = clients.link_to(container.ip()) else {
            *unresolved = Some(container.ip());
            return Err(DropReason::NoFlow);
        };
        let client = SocketAddr::new(host.client.ip().to_canonical(), host.client.port());
        if let Some(key) = known.filter(|key| key.port == link.port) {
            admit_client(policy, &link, container, client, key.client)?;
            return Ok((key, link));
        }
        let shown = clients.shown_as(client, container);
        let shown = shown.ok_or(DropReason::MartianSource)?;
        admit_client(policy, &link, container, client, shown)?;
        let key = forwards.remember(*now, *host, link.port, container, shown);
        Ok((key.ok_or(DropReason::Quota)?, link))
    }
}

/// Asks policy about a datagram from `peer`, which the container is to see as `client`, to the published
/// port of `container`. The client is told of no refusal: to it the port looks as if it lost the
/// datagram.
fn admit_client(
    policy: &Policy,
    link: &Link,
    container: SocketAddr,
    peer: SocketAddr,
    client: SocketAddr,
) -> Result<(), DropReason> {
    let conversation = Conversation {
        direction: Direction::Inwards,
        port: Some(link.port),
        protocol: protocol::UDP,
        container,
        remote: client,
    };
    if policy.refuses_client(&conversation, peer.ip()) {
        return Err(DropReason::Policy);
    }
    match policy.decide(&conversation) {
        Decision::Refuse(_) => Err(DropReason::Policy),
        _ => Ok(()),
    }
}
