//! Several frames, or several sockets' events, at a time: for networks with more flows than a
//! processor's caches hold.
//!
//! What a packet costs in such a network is the wait for its flow: index, key, state and timer come
//! from memory one after the other, a hundred nanoseconds or more each. A processor can wait for many
//! at once, but not across the work of a packet. So the flows of a whole batch are read first, which
//! takes little longer than reading one, and then the packets are handled as ever, with what they
//! need at hand. To read ahead changes nothing, and where it guessed wrong the packet waits as it
//! would have. With fewer flows than [`CACHED_FLOWS`] none of this is done.

use std::net::SocketAddr;

use cnet_wire::frame::{Frame, IpHeader, L3, protocol};
use cnet_wire::time::Instant;
use cnet_wire::{DropReason, PortId};

use super::Router;
use crate::flow::{CACHED_FLOWS, Ends, LOOK_AHEAD};
use crate::host::{Token, TokenKind};
use crate::io::{Env, Io};

impl Router {
    /// Whether there are so many flows that to hand over several frames at a time is of use.
    pub fn looks_ahead(&self) -> bool {
        self.flows() >= CACHED_FLOWS
    }

    /// Frames from containers, virtio-net headers first, in the order they came in: as many calls of
    /// [`Router::handle_frame`].
    pub fn handle_frames<E: Env>(
        &mut self,
        now: Instant,
        frames: &[(PortId, &[u8])],
        io: &mut Io<'_, E>,
    ) {
        if !self.looks_ahead() {
            for &(port, bytes) in frames {
                self.handle_frame(now, port, bytes, io);
            }
            return;
        }
        for frames in frames.chunks(LOOK_AHEAD) {
            let mut parsed = [Err(DropReason::FrameTooShort); LOOK_AHEAD];
            for (parsed, (_, bytes)) in parsed.iter_mut().zip(frames) {
                *parsed = Frame::parse(bytes, self.mtu);
            }
            let packets = frames.iter().zip(&parsed).filter_map(packet);
            let of = |protocols: [u8; 2]| {
                packets
                    .clone()
                    .filter(move |p| protocols.contains(&p.ip.protocol))
            };
            let (tcp, udp) = ([protocol::TCP; 2], [protocol::UDP; 2]);
            let ping = [protocol::ICMP, protocol::ICMPV6];
            self.tcp
                .look_ahead(of(tcp).map(|p| Ends::new(p.container(), p.remote())));
            self.udp
                .look_ahead(of(udp).map(|p| (p.port, p.container())));
            self.ping
                .look_ahead(of(ping).map(|p| (p.port, p.pinging())));
            for (&(port, bytes), parsed) in frames.iter().zip(parsed) {
                self.handle_parsed(now, port, bytes, parsed, io);
            }
        }
    }

    /// Reads the flows of sockets that are ready, of which the first [`LOOK_AHEAD`] count, ahead of
    /// [`Router::handle_socket`] for each.
    pub fn look_ahead(&self, tokens: impl Iterator<Item = Token> + Clone) {
        if !self.looks_ahead() {
            return;
        }
        let slots = |kind| {
            let mut slots = [0; LOOK_AHEAD];
            let of_kind = tokens.clone().filter(|t| t.kind() == kind);
            let filled = slots.iter_mut().zip(of_kind);
            let count = filled.map(|(slot, token)| *slot = token.index()).count();
            (slots, count)
        };
        let (tcp, count) = slots(TokenKind::Tcp);
        self.tcp.look_ahead_at(&tcp[..count]);
        let (udp, count) = slots(TokenKind::Udp);
        self.udp.look_ahead_at(&udp[..count]);
        let (ping, count) = slots(TokenKind::Ping);
        self.ping.look_ahead_at(&ping[..count]);
    }
}

/// As much of a packet as tells its flow.
#[derive(Clone, Copy)]
struct Packet {
    port: PortId,
    ip: IpHeader,
    /// The first words of the transport header: the ports, or the type of an echo and its
    /// identifier.
    words: [u16; 3],
}

impl Packet {
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

fn packet(
    (&(port, _), parsed): (&(PortId, &[u8]), &Result<Frame<'_>, DropReason>),
) -> Option<Packet> {
    let Ok(frame) = parsed else { return None };
    let L3::Ip(ip) = frame.l3 else { return None };
    let &[a, b, c, d, e, f] = frame.l4(&ip).first_chunk()?;
    Some(Packet {
        port,
        ip,
        words: [[a, b], [c, d], [e, f]].map(u16::from_be_bytes),
    })
}
