//! The worker's published ports: opening, accepting, closing.

use cnet_wire::Protocol;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use cnet_nat::host::{DatagramKind, HostSockets, Readiness, Token, TokenKind};
use cnet_wire::time::{Duration, Instant};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::super::canonical;
use super::super::forward::rule::{self, Forward, ForwardId, ForwardSocket, Publish, PublishError};
use super::super::forward::splice::Client;
use super::Worker;

/// Connections accepted from one listener before other events are looked at.
const ACCEPTS_A_ROUND: usize = 64;
/// Wait before accepting again when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

impl Worker {
    pub(crate) fn publish(&mut self, publish: Publish) -> Result<ForwardId, PublishError> {
        let fd = rule::open(&publish)?;
        let slot = match self.forwards.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.forwards.push(None);
                self.forwards.len() - 1
            }
        };
        let id = ForwardId(self.next_forward);
        let token = Token::new(TokenKind::Forward, slot as u32, id.0);
        let failed = |reason: String| PublishError::Other {
            protocol: publish.protocol,
            host: publish.host,
            reason,
        };
        let socket = match publish.protocol {
            Protocol::Tcp => {
                let data = epoll::EventData::new_u64(token.to_bits());
                let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
                epoll::add(&*self.epoll, fd.as_fd(), data, flags)
                    .map_err(|e| failed(e.to_string()))?;
                ForwardSocket::Listener(fd)
            }
            Protocol::Udp => {
                let v6 = publish.host.is_ipv6();
                self.hosts
                    .prepare_datagram(&fd, DatagramKind::Udp, v6)
                    .map_err(|e| failed(format!("{e:?}")))?;
                let socket = self.hosts.insert(fd, v6, true);
                let published = self
                    .router
                    .publish_udp(token, socket, publish.guest)
                    .map_err(|e| e.to_string())
                    .and_then(|()| {
                        self.hosts
                            .watch(socket, token)
                            .map_err(|e| format!("{e:?}"))
                    });
                if let Err(reason) = published {
                    self.with_router(|router, io| router.unpublish_udp(token, io));
                    self.hosts.close(socket);
                    return Err(failed(reason));
                }
                ForwardSocket::Datagram
            }
        };
        self.next_forward += 1;
        self.forwards[slot] = Some(Forward {
            id,
            publish,
            socket,
        });
        Ok(id)
    }

    pub(crate) fn unpublish(&mut self, id: ForwardId) -> Result<(), PublishError> {
        let (index, slot) = self
            .forwards
            .iter_mut()
            .enumerate()
            .find(|(_, f)| f.as_ref().is_some_and(|f| f.id == id))
            .ok_or(PublishError::Unknown(id.0))?;
        if let Some(Forward {
            socket: ForwardSocket::Datagram,
            ..
        }) = slot.take()
        {
            let token = Token::new(TokenKind::Forward, index as u32, id.0);
            self.with_router(|router, io| router.unpublish_udp(token, io));
        }
        Ok(())
    }

    pub(crate) fn serve_forward(&mut self, now: Instant, token: Token, ready: Readiness) {
        let slot = token.index() as usize;
        let Some(Some(forward)) = self.forwards.get(slot) else {
            return;
        };
        if forward.id.0 != token.generation() {
            return;
        }
        match forward.socket {
            ForwardSocket::Listener(_) => self.accept_from(now, slot),
            ForwardSocket::Datagram => {
                self.with_router(|r, io| r.handle_socket(now, token, ready, io));
            }
        }
    }

    /// Accepts what waits at a listener. Without a free descriptor all listeners pause: the kernel
    /// keeps the clients in their queues.
    pub(crate) fn accept_from(&mut self, now: Instant, slot: usize) {
        for round in 0.. {
            let Some(Some(forward)) = self.forwards.get(slot) else {
                return;
            };
            let ForwardSocket::Listener(listener) = &forward.socket else {
                return;
            };
            let guest = forward.publish.guest;
            if self.paused.is_some_and(|until| until > now) {
                return;
            }
            if round == ACCEPTS_A_ROUND {
                // Edge triggered: nobody else will remind us of those who wait. This holds no other
                // listener up, so that a flood at one does not starve the rest.
                self.paused.get_or_insert(now);
                return;
            }
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let accepted = rustix::net::acceptfrom_with(listener, flags);
            match accepted {
                Ok((fd, peer)) => {
                    let Some(peer) = peer.and_then(|p| SocketAddr::try_from(p).ok()) else {
                        continue;
                    };
                    let peer = canonical(peer);
                    let client = Client { fd, peer, guest };
                    if let Some(client) = self.splices.admit(now, client) {
                        self.bring_by_frames(now, client);
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.paused = Some(now + ACCEPT_PAUSE);
                    return;
                }
                // The client is gone already, or its packet was refused: the next one.
                Err(_) => {}
            }
        }
    }

    /// The ordinary way of a client: through the TCP engine and the container's device.
    fn bring_by_frames(&mut self, now: Instant, client: Client) {
        let Client { fd, peer, guest } = client;
        let socket = self.hosts.insert(fd, peer.is_ipv6(), false);
        self.with_router(|r, io| r.handle_accept(now, guest, peer, socket, io));
    }

    /// Gives spliced connections their turns, and those that cannot be spliced to the router.
    pub(crate) fn serve_splices(&mut self, now: Instant) {
        self.splices.serve(now);
        while let Some(client) = self.splices.take_refused() {
            self.bring_by_frames(now, client);
        }
    }
}
