//! Reads the flows of several packets, or of several sockets' events, ahead of their work.
//!
//! What a packet costs in a network with more flows than a processor's caches hold is the wait for its
//! flow: index, key, state and timer come from memory one after the other, a hundred nanoseconds or
//! more each. A processor can wait for many at once, but not across the work of a packet. So the flows
//! of a whole batch are read first, which takes little longer than reading one, and then the packets
//! are handled as ever, with what they need at hand. To read ahead changes nothing, and where it
//! guessed wrong the packet waits as it would have.

use std::net::SocketAddr;

use cnet_wire::PortId;
use cnet_wire::frame::{Frame, IpHeader, L3, protocol};

use super::Router;
use crate::flow::{CACHED_FLOWS, Ends, PREFETCH_DEPTH};
use crate::host::{Token, TokenKind};

impl Router {
    /// Whether there are so many flows that to read them ahead is of use.
    pub fn prefetches(&self) -> bool {
        self.flows() >= CACHED_FLOWS
    }

    /// Reads the flows of `frames`, at most [`PREFETCH_DEPTH`], ahead of [`Router::handle_frame`] for
    /// each.
    pub fn prefetch<'a>(&self, frames: impl Iterator<Item = (PortId, &'a Frame<'a>)> + Clone) {
        let packets = frames.filter_map(packet);
        let of = |protocols: [u8; 2]| {
            packets
                .clone()
                .filter(move |p| protocols.contains(&p.ip.protocol))
        };
        let (tcp, udp) = ([protocol::TCP; 2], [protocol::UDP; 2]);
        let ping = [protocol::ICMP, protocol::ICMPV6];
        self.tcp
            .prefetch(of(tcp).map(|p| Ends::new(p.container(), p.remote())));
        self.udp.prefetch(of(udp).map(|p| (p.port, p.container())));
        self.ping.prefetch(of(ping).map(|p| (p.port, p.pinging())));
    }

    /// Reads the flows of sockets that are ready, of which the first [`PREFETCH_DEPTH`] count, ahead of
    /// [`Router::handle_socket`] for each.
    pub fn prefetch_sockets(&self, tokens: impl Iterator<Item = Token>) {
        if !self.prefetches() {
            return;
        }
        let (mut tcp, mut udp, mut ping) = (Slots::NONE, Slots::NONE, Slots::NONE);
        for token in tokens.take(PREFETCH_DEPTH) {
            match token.kind() {
                TokenKind::Tcp => tcp.push(token.index()),
                TokenKind::Udp => udp.push(token.index()),
                TokenKind::Ping => ping.push(token.index()),
                _ => {}
            }
        }
        self.tcp.prefetch_at(tcp.get());
        self.udp.prefetch_at(udp.get());
        self.ping.prefetch_at(ping.get());
    }
}

/// Places in a table of flows.
struct Slots {
    slots: [u32; PREFETCH_DEPTH],
    count: usize,
}

impl Slots {
    const NONE: Slots = Slots {
        slots: [0; PREFETCH_DEPTH],
        count: 0,
    };

    fn push(&mut self, slot: u32) {
        if let Some(free) = self.slots.get_mut(self.count) {
            *free = slot;
            self.count += 1;
        }
    }

    fn get(&self) -> &[u32] {
        &self.slots[..self.count]
    }
}

/// As much of a packet as tells its flow.
#[derive(Clone, Copy)]
struct Glimpse<'a> {
    port: PortId,
    ip: &'a IpHeader,
    /// The first words of the transport header: the ports, or the type of an echo and its
    /// identifier.
    words: [u16; 3],
}

impl Glimpse<'_> {
    fn container(&self) -> SocketAddr {
        SocketAddr::new(self.ip.src, self.words[0])
    }

    fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.ip.dst, self.words[1])
    }

    fn pinging(&self) -> SocketAddr {
        SocketAddr::new(self.ip.src, self.words[2])
    }
}

fn packet<'a>((port, frame): (PortId, &'a Frame<'a>)) -> Option<Glimpse<'a>> {
    let L3::Ip(ip) = &frame.l3 else { return None };
    let &[a, b, c, d, e, f] = frame.l4(ip).first_chunk()?;
    Some(Glimpse {
        port,
        ip,
        words: [[a, b], [c, d], [e, f]].map(u16::from_be_bytes),
    })
}
