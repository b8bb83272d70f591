//! How flows begin, and what is said of those that do not.
//!
//! Outwards, a SYN becomes a connect of the host; inwards, an accepted client becomes a SYN. Until
//! its handshake is done on both sides a flow is *half-open* (embryonic): it may be ended to make
//! room for another of its port when the table or the host is full, the oldest first. Where the port
//! has none, the oldest flow whose container is gone ([`orphan`](super::orphan)) makes room.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::headers::Link;
use cnet_wire::tcp::{Route, Segment, Seq, quote_syn};
use cnet_wire::time::Instant;
use cnet_wire::{DropReason, Packet, PortId};

use super::emit::{refuse, reset_syn};
use super::flow::{Cx, State, TcpFlow, passed_on, said_in};
use super::quota::Owner;
use super::table::TcpSessions;
use crate::flow::{Ends, Handle};
use crate::host::{
    DatagramErrorKind, HostError, HostSockets, SocketId, TRACED_HOP_LIMIT, Token, TokenKind,
};
use crate::icmp_error::{IcmpErrorKind, emit_icmp_error};
use crate::in_hand::with_in_hand;
use crate::io::{Env, Io};
use crate::policy::is_routable;

impl TcpSessions {
    pub(super) fn open<E: Env>(
        &mut self,
        packet: &Packet<'_>,
        link: &Link,
        seg: &Segment<'_>,
        ends: Ends,
        host: IpAddr,
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        let now = packet.now;
        let iss = self.isn.isn(now, &ends);
        let mut flow = TcpFlow::new(now, State::Connecting, Some(*link), iss);
        flow.rcv_nxt = seg.seq + 1;
        flow.rcv_adv = flow.rcv_nxt;
        flow.fields_out = said_in(packet.ip);
        let fields = passed_on(flow.fields_out);
        flow.take_syn_options(seg, &self.config, &Route::from(&ends));
        let Some(handle) = self.insert(now, ends, flow, io) else {
            refuse(link, seg, &ends, io);
            return Err(DropReason::Quota);
        };
        let token = Token::new(TokenKind::Tcp, handle.index, handle.generation);
        let to = SocketAddr::new(host, ends.remote().port());
        let from = (self.config.keep_ports).then_some(ends.container().port());
        let torn = &mut self.torn;
        let connect = || io.hosts.tcp_connect(token, from, to, fields);
        let mut result = with_in_hand(torn, handle, connect);
        let owner = Some(link.port);
        if result == Err(HostError::Exhausted)
            && (self.evict(now, owner, Some(handle), io) || self.end_orphan(now, io))
        {
            result = io.hosts.tcp_connect(token, from, to, fields);
        }
        match result {
            Ok(socket) => {
                if let Some(flow) = self.flows.get_mut(handle) {
                    flow.socket = Some(socket);
                }
                self.counters.opened += 1;
                self.settle(handle);
                Ok(())
            }
            Err(e) => {
                self.connect_failed(handle, e, io);
                Err(match e {
                    HostError::Exhausted => DropReason::HostResource,
                    _ => DropReason::HostRefused,
                })
            }
        }
    }

    /// Whether `owner` may have one more flow without another's end.
    pub fn has_room(&self, owner: Option<PortId>) -> bool {
        self.quotas.admits(owner, self.flows.len())
    }

    /// Enters a half-open flow, if its port has as many flows as it may at the cost of its oldest
    /// half-open one, or of the oldest orphan.
    fn insert<E: Env>(
        &mut self,
        now: Instant,
        ends: Ends,
        flow: TcpFlow,
        io: &mut Io<'_, E>,
    ) -> Option<Handle> {
        let owner = flow.link.map(|link| link.port);
        let room = self.has_room(owner) || self.make_room(now, owner, io);
        let entered = match room {
            true => self.flows.insert(ends, flow).ok(),
            false => None,
        };
        let Some(handle) = entered else {
            self.counters.refused += 1;
            return None;
        };
        self.config.budget.take();
        self.list(owner, handle);
        Some(handle)
    }

    /// Ends a flow in whose place `owner` may have another. `false` if there is none.
    fn make_room<E: Env>(&mut self, now: Instant, owner: Owner, io: &mut Io<'_, E>) -> bool {
        if self.evict(now, owner, None, io) {
            return true;
        }
        // An orphan is no use to a port that is far over its share.
        let helps = self.quotas.admits_for_an_orphan(owner, self.flows.len());
        helps && self.end_orphan(now, io)
    }

    /// Enters a half-open flow with its owner.
    fn list(&mut self, owner: Owner, handle: Handle) {
        let flows = &self.flows;
        let current = |h| {
            let flow = flows.get(h);
            flow.is_some_and(|f| f.is_embryonic() && f.link.map(|link| link.port) == owner)
        };
        self.quotas.enter(owner, handle, current);
    }

    /// Ends the oldest half-open flow of `owner` other than `but`. `false` if there is none.
    pub(super) fn evict<E: Env>(
        &mut self,
        now: Instant,
        owner: Owner,
        but: Option<Handle>,
        io: &mut Io<'_, E>,
    ) -> bool {
        while let Some(handle) = self.quotas.pop_oldest(owner) {
            if Some(handle) == but {
                self.quotas.put_back(owner, handle);
                return false;
            }
            let evicted = with_flow!(self, handle, now, io, |flow, cx| {
                let current = flow.is_embryonic() && flow.link.map(|link| link.port) == owner;
                if current {
                    flow.abort(cx);
                }
                current
            });
            if evicted == Some(true) {
                self.counters.evicted += 1;
                self.settle(handle);
                return true;
            }
        }
        false
    }

    /// A client was accepted on a published port of `container`. `link` is where the container is, or
    /// `None` while its address is being resolved; then [`TcpSessions::link_resolved`] follows.
    /// `remote` is the client as the container shall see it.
    pub fn handle_accept<E: Env>(
        &mut self,
        now: Instant,
        link: Option<Link>,
        container: SocketAddr,
        remote: SocketAddr,
        socket: SocketId,
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        let Some(ends) = self.free_ends(container, remote) else {
            self.counters.refused += 1;
            io.hosts.tcp_reset(socket);
            return Err(DropReason::Quota);
        };
        let iss = self.isn.isn(now, &ends);
        let mut flow = TcpFlow::new(now, State::SynSent, link, iss);
        flow.socket = Some(socket);
        let Some(handle) = self.insert(now, ends, flow, io) else {
            io.hosts.tcp_reset(socket);
            return Err(DropReason::Quota);
        };
        let token = Token::new(TokenKind::Tcp, handle.index, handle.generation);
        let adopt = || io.hosts.tcp_adopt(token, socket);
        let adopted = with_in_hand(&mut self.torn, handle, adopt);
        with_flow!(self, handle, now, io, |flow, cx| {
            if let Ok(fields) = adopted {
                flow.fields_in = passed_on(fields);
                flow.open_handshake(cx)
            } else {
                flow.reset_host(cx)
            }
        });
        self.settle(handle);
        if adopted.is_err() {
            return Err(DropReason::HostResource);
        }
        self.counters.accepted += 1;
        Ok(())
    }

    /// Two forwards to one container port may bring the same client address and port: later ones are
    /// shown with another port.
    fn free_ends(&self, container: SocketAddr, mut remote: SocketAddr) -> Option<Ends> {
        for _ in 0..64 {
            let ends = Ends::new(container, remote);
            if self.flows.find(&ends).is_none() {
                return Some(ends);
            }
            remote.set_port(remote.port().checked_add(1).unwrap_or(1024));
        }
        None
    }

    /// The container with `address` was found at `link`: SYNs that waited for it go out.
    pub fn link_resolved<E: Env>(
        &mut self,
        now: Instant,
        address: IpAddr,
        link: Link,
        io: &mut Io<'_, E>,
    ) {
        let owner = Some(link.port);
        for handle in self.waiting_for(address) {
            let admitted = self.quotas.admits_in_place(owner, self.flows.len());
            if admitted {
                self.quotas.leave(None);
            }
            with_flow!(self, handle, now, io, |flow, cx| {
                if !admitted {
                    return flow.reset_host(cx);
                }
                flow.link = Some(link);
                // None of the earlier ones was ever sent.
                flow.tries = 0;
                flow.open_handshake(cx);
            });
            if admitted {
                self.list(owner, handle);
            }
            self.settle(handle);
        }
    }

    /// The container with `address` is not to be found: clients that wait for it are reset.
    pub fn link_failed<E: Env>(&mut self, now: Instant, address: IpAddr, io: &mut Io<'_, E>) {
        for handle in self.waiting_for(address) {
            with_flow!(self, handle, now, io, |flow, cx| flow.reset_host(cx));
            self.settle(handle);
        }
    }

    /// Flows of published ports whose SYN waits for the link to `address`.
    fn waiting_for(&self, address: IpAddr) -> Vec<Handle> {
        let waits = |h: Handle| {
            self.flows
                .get(h)
                .is_some_and(|flow| flow.link.is_none() && flow.is_embryonic())
                && (self.flows.key(h)).is_some_and(|ends| ends.container().ip() == address)
        };
        self.quotas.listed(None).filter(|&h| waits(h)).collect()
    }

    /// Tells the container that its connection will not be, and forgets it.
    pub(super) fn connect_failed<E: Env>(
        &mut self,
        handle: Handle,
        error: HostError,
        io: &mut Io<'_, E>,
    ) {
        let flow = self.flows.get(handle);
        let socket = flow.and_then(|flow| Some((flow.socket?, flow.fields_out.hop_limit)));
        let told = socket.and_then(|(socket, hop_limit)| {
            with_in_hand(&mut self.torn, handle, || {
                let traced = hop_limit < TRACED_HOP_LIMIT;
                let told = traced.then(|| told_on_the_way(io.hosts, socket)).flatten();
                io.hosts.close(socket);
                told
            })
        });
        let Some((ends, flow)) = self.take(handle) else {
            return;
        };
        self.counters.connect_failures += 1;
        let Some(link) = flow.link else { return };
        let syn = Seq(flow.rcv_nxt.0.wrapping_sub(1));
        if let Some(told) = told {
            self.report_unreachable(&link, &ends, syn, told, io);
            return;
        }
        let kind = match error {
            HostError::NetUnreachable => IcmpErrorKind::NetUnreachable,
            HostError::HostUnreachable => IcmpErrorKind::HostUnreachable,
            HostError::Prohibited => IcmpErrorKind::Prohibited,
            // See the module's theory: silence is what becomes ETIMEDOUT.
            HostError::TimedOut => return,
            _ => {
                reset_syn(&link, &ends, flow.rcv_nxt, io);
                return;
            }
        };
        self.report_unreachable(&link, &ends, syn, (kind, None), io);
    }

    /// Answers a SYN with an ICMP error, from the router that told of it or from the gateway.
    pub(super) fn report_unreachable<E: Env>(
        &self,
        link: &Link,
        ends: &Ends,
        syn: Seq,
        (kind, from): (IcmpErrorKind, Option<IpAddr>),
        io: &mut Io<'_, E>,
    ) {
        let to = ends.container().ip();
        let from = from.filter(|from| from.is_ipv4() == to.is_ipv4() && is_routable(*from));
        let Some(from) = from.or_else(|| self.config.gateway(to)) else {
            return;
        };
        let mut quote = [0; 60];
        let len = quote_syn(&mut quote, ends.container(), ends.remote(), syn);
        let quote = &quote[..len];
        // A lost ICMP error costs the container its own timeout, no more.
        let _ = emit_icmp_error(
            io.sink,
            io.buf,
            link,
            from,
            ends.container().ip(),
            kind,
            quote,
        );
    }
}

/// What ICMP said of a SYN that was to end on its way, and who said it.
fn told_on_the_way(
    hosts: &mut impl HostSockets,
    socket: SocketId,
) -> Option<(IcmpErrorKind, Option<IpAddr>)> {
    let error = hosts.datagram_error(socket, &mut [0; 64]).ok()?;
    let DatagramErrorKind::Icmp {
        icmp_type, code, ..
    } = error.kind
    else {
        return None;
    };
    let kind = IcmpErrorKind::Raw {
        icmp_type,
        code,
        info: 0,
    };
    Some((kind, error.offender))
}

/// The host's connect has ended, or has it?
pub(super) fn on_connected<E: Env>(
    flow: &mut TcpFlow,
    cx: &mut Cx<'_, '_, E>,
) -> Result<(), HostError> {
    let Some(socket) = flow.socket else {
        return Ok(());
    };
    match cx.io.hosts.tcp_connected(socket) {
        Err(HostError::WouldBlock) => Ok(()),
        Err(e) => Err(e),
        Ok(()) => {
            flow.state = State::SynReceived;
            flow.open_handshake(cx);
            Ok(())
        }
    }
}
