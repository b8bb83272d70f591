//! Whether policies allow a packet from one container to another.
//!
//! # Theory of operation
//!
//! A conversation needs the consent of both ends: of the sender's rules for what it opens, and of the
//! receiver's for what is opened to it ([`cnet_wire::access`]). A packet is of a conversation that its
//! sender opens, or an answer in one that the other end has opened, which [`Conntrack`] knows; either way the
//! rules have to allow the conversation still, so a change of them ends those that are open. An ICMP error
//! goes with the conversation that it quotes.
//!
//! Address resolution is no conversation, and is not asked about; nor is what the router gets.
//!
//! # Limits
//!
//! A TCP connection that is older than the policies is taken for opened by the end with the higher port. So
//! a closed container can send segments that open nothing to whom may connect to it, from the port that they
//! may connect to; the receiver's kernel answers with a reset. A fragment that comes before the first one of
//! its datagram is refused.

use std::net::IpAddr;

use cnet_wire::PortId;
use cnet_wire::access::{Access, Asked, Way};
use cnet_wire::frame::{Frame, IpHeader, protocol};
use cnet_wire::icmp::{self, IcmpMessage, Quote, v4, v6};
use cnet_wire::tcp::{is_last, is_opening};
use cnet_wire::time::Instant;

use crate::conntrack::{Conntrack, FRAGMENT, Key};

/// Two containers, the sender first, with what policies allow to them.
pub(crate) struct Pair<'a> {
    pub(crate) sender: Option<&'a Access>,
    pub(crate) receiver: Option<&'a Access>,
    /// The sender's port.
    pub(crate) ingress: PortId,
}

/// Whether the packet tells or asks where an address is.
pub(crate) fn resolves_address(frame: &Frame<'_>, ip: &IpHeader) -> bool {
    ip.protocol == protocol::ICMPV6
        && ip.fragment.is_none()
        && matches!(
            frame.l4(ip).first(),
            Some(&(v6::NEIGHBOUR_SOLICITATION | v6::NEIGHBOUR_ADVERTISEMENT))
        )
}

impl Pair<'_> {
    /// Whether no policy selects either.
    pub(crate) fn is_open(&self) -> bool {
        self.sender.is_none() && self.receiver.is_none()
    }

    /// Whether `src`, the sender, may open this conversation to `dst`.
    fn may_open(&self, [src, dst]: [IpAddr; 2], protocol: u8, service: Option<u16>) -> bool {
        both(self.sender, self.receiver, [src, dst], protocol, service)
    }

    /// Whether the receiver, which has the address `dst`, may have opened this conversation to `src`.
    fn may_answer(&self, [src, dst]: [IpAddr; 2], protocol: u8, service: Option<u16>) -> bool {
        both(self.receiver, self.sender, [dst, src], protocol, service)
    }

    /// Whether an answer to what the sender opens would be refused without being known as one.
    fn answers_need_track(&self) -> bool {
        self.sender.is_some_and(|access| access.ingress.is_some())
            || self.receiver.is_some_and(|access| access.egress.is_some())
    }

    /// Whether the packet may pass.
    pub(crate) fn admits(
        &self,
        now: Instant,
        frame: &Frame<'_>,
        ip: &IpHeader,
        conntrack: &Conntrack,
    ) -> bool {
        let ends = [ip.src, ip.dst];
        let fragment = ip.fragment.map(|fragment| {
            let id = fragment.id.to_be_bytes();
            let key = Key {
                src: ip.src,
                dst: ip.dst,
                protocol: FRAGMENT,
                ports: [
                    u16::from_be_bytes([id[0], id[1]]),
                    u16::from_be_bytes([id[2], id[3]]),
                ],
            };
            (fragment.offset, key)
        });
        if let Some((1.., key)) = fragment {
            return self.may_open(ends, ip.protocol, None) || conntrack.is_open(now, &key);
        }
        let admitted = match ip.protocol {
            protocol::TCP => self.admits_tcp(now, ends, frame, ip, conntrack),
            protocol::UDP => self.admits_udp(now, ends, frame, ip, conntrack),
            protocol::ICMP | protocol::ICMPV6 => self.admits_icmp(now, frame, ip, conntrack),
            _ => self.may_open(ends, ip.protocol, None),
        };
        match fragment {
            // The others of the datagram follow.
            Some((_, key)) if admitted => conntrack.open(now, self.ingress, key),
            _ => admitted,
        }
    }

    fn admits_tcp(
        &self,
        now: Instant,
        ends: [IpAddr; 2],
        frame: &Frame<'_>,
        ip: &IpHeader,
        conntrack: &Conntrack,
    ) -> bool {
        let Some(ports @ [source, destination]) = frame.transport_ports(ip) else {
            return false;
        };
        let (key, l4) = (key(ends, protocol::TCP, ports), frame.l4(ip));
        if is_opening(l4) {
            let may_open = self.may_open(ends, protocol::TCP, Some(destination));
            if may_open {
                conntrack.connect(now, self.ingress, key);
            }
            return may_open;
        }
        match conntrack.has_opened(now, &key, is_last(l4)) {
            true => self.may_open(ends, protocol::TCP, Some(destination)),
            false => self.may_answer(ends, protocol::TCP, Some(source)),
        }
    }

    fn admits_udp(
        &self,
        now: Instant,
        ends: [IpAddr; 2],
        frame: &Frame<'_>,
        ip: &IpHeader,
        conntrack: &Conntrack,
    ) -> bool {
        let Some(ports) = frame.transport_ports(ip) else {
            return false;
        };
        let key = key(ends, protocol::UDP, ports);
        if self.may_open(ends, protocol::UDP, Some(ports[1])) {
            return !self.answers_need_track() || conntrack.open(now, self.ingress, key);
        }
        self.may_answer(ends, protocol::UDP, Some(ports[0]))
            && conntrack.is_open(now, &key.reversed())
    }

    fn admits_icmp(
        &self,
        now: Instant,
        frame: &Frame<'_>,
        ip: &IpHeader,
        conntrack: &Conntrack,
    ) -> bool {
        let (ends, l4) = ([ip.src, ip.dst], frame.l4(ip));
        let Some(message) = IcmpMessage::read(l4) else {
            return false;
        };
        let is_v6 = ip.protocol == protocol::ICMPV6;
        if icmp::is_error(ip.protocol, message.kind) {
            let quote = Quote::read(l4, is_v6);
            let open = self.may_open(ends, ip.protocol, None);
            return open
                || quote.is_some_and(|quote| self.admits_error(now, ends, &quote, conntrack));
        }
        let [request, reply] = match is_v6 {
            true => [v6::ECHO_REQUEST, v6::ECHO_REPLY],
            false => [v4::ECHO_REQUEST, v4::ECHO_REPLY],
        };
        let identifier = message.echo_identifier().unwrap_or_default();
        let key = key(ends, ip.protocol, [identifier, 0]);
        let may_open = self.may_open(ends, ip.protocol, None);
        if message.kind == request {
            let track = may_open && self.answers_need_track();
            return may_open && (!track || conntrack.open(now, self.ingress, key));
        }
        may_open
            || message.kind == reply
                && self.may_answer(ends, ip.protocol, None)
                && conntrack.is_open(now, &key.reversed())
    }

    /// An error about a packet that went from `dst` to `src`.
    fn admits_error(
        &self,
        now: Instant,
        ends: [IpAddr; 2],
        quote: &Quote,
        conntrack: &Conntrack,
    ) -> bool {
        let [src, dst] = ends;
        let (from, to) = (quote.source, quote.destination);
        if [from.ip(), to.ip()] != [dst, src] {
            return false;
        }
        // The receiver of the error had opened the conversation, or had answered in it.
        let opened = self.may_answer(ends, quote.protocol, Some(to.port()));
        let answered = self.may_open(ends, quote.protocol, Some(from.port()));
        if quote.protocol == protocol::TCP {
            let quoted = key([dst, src], quote.protocol, [from.port(), to.port()]);
            return match conntrack.has_opened(now, &quoted, false) {
                true => opened,
                false => answered,
            };
        }
        let key = match quote.protocol {
            protocol::UDP => key([dst, src], quote.protocol, [from.port(), to.port()]),
            // Of an echo the quote has the identifier in the second place.
            _ => {
                let key = key([dst, src], quote.protocol, [to.port(), 0]);
                let opened = self.may_answer(ends, quote.protocol, None);
                return opened && conntrack.is_open(now, &key);
            }
        };
        opened && conntrack.is_open(now, &key)
            || answered && conntrack.is_open(now, &key.reversed())
    }

    /// Whether a packet that goes to several containers may go to this one.
    pub(crate) fn admits_flooded(&self, frame: &Frame<'_>, ip: &IpHeader) -> bool {
        let service = frame
            .transport_ports(ip)
            .map(|[_, destination]| destination);
        self.may_open([ip.src, ip.dst], ip.protocol, service)
    }
}

fn key([src, dst]: [IpAddr; 2], protocol: u8, ports: [u16; 2]) -> Key {
    Key {
        src,
        dst,
        protocol,
        ports,
    }
}

/// Whether `opener`, which has the address `src`, may open a conversation to `opened` at `dst`.
fn both(
    opener: Option<&Access>,
    opened: Option<&Access>,
    [src, dst]: [IpAddr; 2],
    protocol: u8,
    service: Option<u16>,
) -> bool {
    let asked = |peer| Asked {
        peer,
        protocol,
        service,
    };
    opener.is_none_or(|access| access.allows(Way::Egress, &asked(dst)))
        && opened.is_none_or(|access| access.allows(Way::Ingress, &asked(src)))
}
