//! The worker: one thread, one epoll, everything that is done per packet.
//!
//! A round is: wait; act on every event; drain the TAP in batches of [`BATCH`] frames with the
//! router's end of batch after each; act on deadlines. The TAP is level triggered and gets
//! [`BATCHES_A_ROUND`] batches before sockets have their turn again, so neither starves the other.
//! Frames are read into one buffer ([`super::frames`]) and built in another: both stay in the cache.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;

use anyhow::Context;
use cnet_nat::flow::LOOK_AHEAD;
use cnet_nat::host::{DatagramKind, HostSockets, Readiness, Token, TokenKind};
use cnet_nat::link::{FRAME_BUFFER_LEN, Io};
use cnet_nat::router::Router;
use cnet_tap::device::TapQueue;
use cnet_vswitch::port::PortConfig;
use cnet_vswitch::time::{Duration, Instant};
use cnet_vswitch::{FrameSink, MacAddr, PortFull, PortId};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::sync::mpsc as async_mpsc;

use super::forwards::{self, Forward, ForwardId, ForwardSocket, Protocol, Publish, PublishError};
use super::frames::{Frames, Next};
use super::sockets::{Features, HostTable};
use super::spin::Spin;
use super::{Command, DnsQuery, NetworkConfig, canonical};

/// Frames read from the TAP before what they caused is acknowledged.
const BATCH: usize = 8;
/// Batches read before other events are looked at.
const BATCHES_A_ROUND: usize = 8;
/// Events fetched at once.
const EVENTS: usize = 128;
/// Connections accepted from one listener before other events are looked at.
const ACCEPTS_A_ROUND: usize = 64;
/// Wait before accepting again when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// The one container's port.
const CONTAINER: PortId = PortId(1);

/// Do not wait.
const NO_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Tokens of the worker's own descriptors, by index.
const TAP: u32 = 0;
const WAKE: u32 = 1;

/// How the worker talks to the rest of the process.
pub(super) struct Channels {
    pub inbox: mpsc::Receiver<Command>,
    pub wake: Arc<OwnedFd>,
    pub queries: async_mpsc::Sender<DnsQuery>,
}

/// Where frames go: the TAP's queue.
struct TapPort {
    queue: TapQueue,
}

impl FrameSink for TapPort {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        if port != CONTAINER {
            return Err(PortFull);
        }
        self.queue.write(frame).map(|_| ()).map_err(|_| PortFull)
    }
}

struct Worker {
    epoll: Rc<OwnedFd>,
    router: Router,
    hosts: HostTable,
    tap: TapPort,
    frames: Frames,
    out: Box<[u8]>,
    forwards: Vec<Option<Forward>>,
    next_forward: u32,
    /// Listeners that had to stop accepting, and until when.
    paused: Option<Instant>,
    channels: Channels,
    spin: Spin,
}

/// What a turn at the TAP ended with.
enum TapState {
    Drained,
    More,
    Gone(io::Error),
}

fn now() -> Instant {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Instant::from_nanos(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// Runs until told to stop or the TAP is gone.
pub(super) fn run(
    config: &NetworkConfig,
    tap: cnet_tap::Tap,
    secret: [u8; 32],
    channels: Channels,
) -> anyhow::Result<()> {
    let mut worker = Worker::new(config, tap, secret, channels)?;
    worker.run()
}

impl Worker {
    fn new(
        config: &NetworkConfig,
        tap: cnet_tap::Tap,
        secret: [u8; 32],
        channels: Channels,
    ) -> anyhow::Result<Worker> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll instance")?;
        let epoll = Rc::new(epoll);
        let plan =
            super::plan::router_config(config, CONTAINER, MacAddr(tap.mac), tap.offloads.uso);
        let mut router = Router::new(plan, secret, now());
        router
            .add_port(CONTAINER, PortConfig::default())
            .context("cannot plug the container in")?;
        let queue = tap
            .queues
            .into_iter()
            .next()
            .context("the TAP has no queue")?;
        let shell =
            |index| epoll::EventData::new_u64(Token::new(TokenKind::Shell, index, 0).to_bits());
        epoll::add(&*epoll, queue.as_fd(), shell(TAP), epoll::EventFlags::IN)
            .context("cannot watch the TAP")?;
        epoll::add(
            &*epoll,
            channels.wake.as_fd(),
            shell(WAKE),
            epoll::EventFlags::IN,
        )
        .context("cannot watch the command channel")?;
        let hosts = HostTable::new(
            Rc::clone(&epoll),
            Features::detect(),
            config.outbound_v4,
            config.outbound_v6,
        );
        Ok(Worker {
            epoll,
            router,
            hosts,
            tap: TapPort { queue },
            frames: Frames::new(),
            out: vec![0; FRAME_BUFFER_LEN].into_boxed_slice(),
            forwards: Vec::new(),
            next_forward: 1,
            paused: None,
            channels,
            spin: Spin::new(config.busy_poll),
        })
    }

    /// Lends the router the worker's effects.
    fn with_router<T>(
        &mut self,
        f: impl FnOnce(&mut Router, &mut Io<'_, TapPort, HostTable>) -> T,
    ) -> T {
        let mut io = Io {
            sink: &mut self.tap,
            hosts: &mut self.hosts,
            buf: &mut self.out,
        };
        f(&mut self.router, &mut io)
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let timeout = self.timeout();
            let spinning = self.spin.is_on();
            let timeout = if spinning { Some(NO_WAIT) } else { timeout };
            events.clear();
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&*self.epoll, space, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("epoll_wait failed"),
            }
            let now = now();
            self.spin.waited(now, !events.is_empty());
            let mut tap_ready = false;
            for events in events.chunks(LOOK_AHEAD) {
                self.router.look_ahead(events.iter().filter_map(token));
                for event in events {
                    let Some(token) = token(event) else {
                        continue;
                    };
                    let ready = readiness(event.flags);
                    match token.kind() {
                        TokenKind::Shell if token.index() == TAP => tap_ready = true,
                        TokenKind::Shell => {
                            if self.run_commands(now) {
                                return Ok(());
                            }
                        }
                        TokenKind::Forward => self.serve_forward(now, token, ready),
                        _ => self.with_router(|r, io| r.handle_socket(now, token, ready, io)),
                    }
                }
            }
            if tap_ready && let TapState::Gone(e) = self.drain_tap(now) {
                return Err(e).context("the TAP is gone");
            }
            self.act_on_time();
            self.pass_queries();
        }
    }

    /// How long to wait for events: until the router's next deadline.
    fn timeout(&self) -> Option<Timespec> {
        let due = [self.router.poll_timeout(), self.paused]
            .into_iter()
            .flatten()
            .min()?;
        let wait = due.saturating_since(now());
        Some(Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        })
    }

    fn act_on_time(&mut self) {
        let now = now();
        if self.router.poll_timeout().is_some_and(|due| due <= now) {
            self.with_router(|r, io| r.handle_timeout(now, io));
        }
        if self.paused.is_some_and(|until| until <= now) {
            self.paused = None;
            for i in 0..self.forwards.len() {
                self.accept_from(now, i);
            }
        }
    }

    fn drain_tap(&mut self, now: Instant) -> TapState {
        for _ in 0..BATCHES_A_ROUND {
            match self.read_batch(now) {
                TapState::More => {}
                state => return state,
            }
        }
        TapState::More
    }

    fn read_batch(&mut self, now: Instant) -> TapState {
        let mut state = TapState::More;
        let gather = self.router.looks_ahead();
        for _ in 0..BATCH {
            match self.frames.read(CONTAINER, &self.tap.queue, gather) {
                Ok(Next::Read) => {}
                Ok(Next::HandOn) => self.hand_on(now),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    state = TapState::Drained;
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    state = TapState::Gone(e);
                    break;
                }
            }
        }
        self.hand_on(now);
        self.with_router(|r, io| r.end_batch(now, io));
        state
    }

    /// Has the router handle the frames that were read.
    fn hand_on(&mut self, now: Instant) {
        let mut io = Io {
            sink: &mut self.tap,
            hosts: &mut self.hosts,
            buf: &mut self.out,
        };
        self.frames.hand_on(now, &mut self.router, &mut io);
    }

    fn pass_queries(&mut self) {
        while let Some(query) = self.router.take_query() {
            // A service that cannot keep up loses queries, and the client asks again.
            let _ = self.channels.queries.try_send(query);
        }
    }

    /// Carries out waiting commands; `true` when told to stop.
    fn run_commands(&mut self, now: Instant) -> bool {
        let mut count = [0; 8];
        // Whether it was signalled once or often, the channel tells what there is.
        let _ = rustix::io::read(&*self.channels.wake, &mut count);
        while let Ok(command) = self.channels.inbox.try_recv() {
            match command {
                Command::Publish(publish, reply) => {
                    let _ = reply.send(self.publish(publish));
                }
                Command::Unpublish(id, reply) => {
                    let _ = reply.send(self.unpublish(id));
                }
                Command::AnswerDns(id, message) => {
                    self.with_router(|r, io| r.answer_dns(now, id, &message, io));
                }
                Command::Stop => {
                    self.with_router(|r, io| r.shut_down(now, io));
                    return true;
                }
            }
        }
        false
    }

    // ---- published ports ----

    fn publish(&mut self, publish: Publish) -> Result<ForwardId, PublishError> {
        let fd = forwards::open(&publish)?;
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
                    self.router.unpublish_udp(token, &mut self.hosts);
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

    fn unpublish(&mut self, id: ForwardId) -> Result<(), PublishError> {
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
            self.router.unpublish_udp(token, &mut self.hosts);
        }
        Ok(())
    }

    fn serve_forward(&mut self, now: Instant, token: Token, ready: Readiness) {
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
    fn accept_from(&mut self, now: Instant, slot: usize) {
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
                    let socket = self.hosts.insert(fd, peer.is_ipv6(), false);
                    let peer = canonical(peer);
                    self.with_router(|r, io| r.handle_accept(now, guest, peer, socket, io));
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
}

fn token(event: &epoll::Event) -> Option<Token> {
    Token::from_bits(event.data.u64())
}

fn readiness(flags: epoll::EventFlags) -> Readiness {
    Readiness {
        readable: flags.contains(epoll::EventFlags::IN),
        writable: flags.contains(epoll::EventFlags::OUT),
        // A read stops short at urgent data, too, and the rest is no event of its own.
        read_closed: flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::PRI),
        error: flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP),
    }
}
