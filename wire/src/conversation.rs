//! Who speaks to whom, as policy sees it, and what it says to that.
//!
//! A [`Conversation`] can be told of a packet ([`crate::Packet::conversation`]), and without one: a
//! client that the host has accepted has sent no frame.

use std::net::{IpAddr, SocketAddr};

use crate::addr::PortId;

/// Which way a conversation is opened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From a container to the world, or to the host.
    Outwards,
    /// From a client of a published port to a container.
    Inwards,
    /// From one container to another, or to all.
    Between,
}

/// A conversation that one end wants to open, or a datagram of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conversation {
    /// Which way it is opened.
    pub direction: Direction,
    /// The switch port of `container`; `None` where that is not known yet.
    pub port: Option<PortId>,
    /// IP protocol number.
    pub protocol: u8,
    /// The container's end; that of the sender between containers. Protocols without ports have 0 in
    /// the port's place, as a packet has that shows none.
    pub container: SocketAddr,
    /// The other end, before policy maps its address to one of the host; the client as the container
    /// is to see it.
    pub remote: SocketAddr,
}

impl Conversation {
    /// The port of the end that is spoken to.
    pub fn service(&self) -> u16 {
        match self.direction {
            Direction::Outwards | Direction::Between => self.remote.port(),
            Direction::Inwards => self.container.port(),
        }
    }
}

/// What a sender is told whose conversation is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// No route to the network.
    NetUnreachable,
    /// Forbidden by an administrator.
    Prohibited,
}

/// What policy says to a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decision {
    /// It may be: outwards with this address of the host's network, else with the other end as it is.
    Allow(IpAddr),
    /// It may not be; the end that opened it is told so, where there is a way to tell.
    Refuse(Refusal),
}
