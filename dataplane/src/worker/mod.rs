//! The worker: one thread, one epoll, everything that is done per packet.
//!
//! A round is: wait; act on every event of sockets and commands; give the ports that may be read
//! from their turns; act on deadlines. A turn is a batch of [`BATCH`] frames, fewer if they are large
//! ([`LARGE_BATCH`]) or go to many ports ([`BATCH_WRITES`]), with the router's end of batch after it,
//! and a round has [`TURNS_A_ROUND`] turns, which go round among the ports
//! ([`port`](super::port)): so neither sockets nor ports starve, however many ports are busy. Frames are read into one buffer ([`frames`]), from
//! which they go on to another port or a socket, and those that the router makes are built in
//! another: both stay in the cache.
//!
//! Devices are level triggered. One that fails ends its port, and no other.
//!
//! A network may have several workers ([`workers`]); what they do with each other's news and
//! frames is in [`crew`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;

use anyhow::Context;
use cnet_nat::flow::LOOK_AHEAD;
use cnet_nat::host::{Readiness, Token, TokenKind};
use cnet_nat::io::Io;
use cnet_nat::router::Router;
use cnet_wire::PortId;
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::time::Instant;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::busy_poll::BusyPoll;
use super::forward::rule::Forward;
use super::forward::splice::Splices;
use super::handoff::Outlet;
use super::port::Ports;
use super::socket::{Features, HostTable};
use super::{Command, DnsQuery, NetworkConfig};

mod crew;
mod forwards;
mod frames;
mod ports;
pub(crate) mod workers;

use frames::{Frames, Next, SMALL};
use workers::Crew;

/// Frames read from a port before what they caused is acknowledged, and datagrams go on their way.
const BATCH: usize = 64;
/// Of them, frames of more than [`SMALL`] bytes.
const LARGE_BATCH: usize = 8;
/// Frames written that end a batch as well: a broadcast is written to every port, and who sends many
/// shall not have a longer turn for it.
const BATCH_WRITES: u64 = 4 * BATCH as u64;
/// Batches read before other events are looked at.
const TURNS_A_ROUND: usize = 8;
/// Events fetched at once.
const EVENTS: usize = 128;

/// Do not wait.
const NO_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// The token of the command channel; ports have their numbers, from 1 on.
const WAKE: u32 = 0;

/// How the worker talks to the rest of the process.
pub(crate) struct Channels {
    pub inbox: mpsc::Receiver<Command>,
    pub wake: Arc<OwnedFd>,
    pub queries: async_mpsc::Sender<DnsQuery>,
    pub crew: Crew,
}

struct Worker {
    epoll: Rc<OwnedFd>,
    router: Router,
    hosts: HostTable,
    ports: Ports,
    frames: Frames,
    out: Box<[u8]>,
    splices: Splices,
    forwards: Vec<Option<Forward>>,
    next_forward: u32,
    /// Listeners that had to stop accepting, and until when.
    paused: Option<Instant>,
    /// Who wants to know that everything is delivered.
    deliveries: Vec<oneshot::Sender<()>>,
    channels: Channels,
    busy_poll: BusyPoll,
}

/// What a turn of a port ended with.
enum Turn {
    Drained,
    More,
    Gone(io::Error),
}

pub(crate) fn now() -> Instant {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Instant::from_nanos(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// Runs until told to stop. `outlet` is for what the router hands over, if it does.
pub(crate) fn run(
    config: &NetworkConfig,
    router: Router,
    outlet: Option<Outlet>,
    channels: Channels,
) -> anyhow::Result<()> {
    let mut worker = Worker::new(config, router, outlet, channels)?;
    worker.run()
}

impl Worker {
    fn new(
        config: &NetworkConfig,
        router: Router,
        outlet: Option<Outlet>,
        channels: Channels,
    ) -> anyhow::Result<Worker> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll instance")?;
        let epoll = Rc::new(epoll);
        let token = Token::new(TokenKind::Shell, WAKE, 0);
        let data = epoll::EventData::new_u64(token.to_bits());
        epoll::add(&*epoll, channels.wake.as_fd(), data, epoll::EventFlags::IN)
            .context("cannot watch the command channel")?;
        let hosts = HostTable::new(
            Rc::clone(&epoll),
            Features::detect(),
            config.outbound_v4,
            config.outbound_v6,
        );
        let ports = Ports::new(Rc::clone(&epoll), usize::from(config.mtu), outlet);
        Ok(Worker {
            splices: Splices::new(Rc::clone(&epoll)),
            epoll,
            router,
            hosts,
            ports,
            frames: Frames::new(),
            out: vec![0; FRAME_BUFFER_LEN].into_boxed_slice(),
            forwards: Vec::new(),
            next_forward: 1,
            paused: None,
            deliveries: Vec::new(),
            channels,
            busy_poll: BusyPoll::new(config.busy_poll),
        })
    }

    /// Lends the router the worker's effects.
    fn with_router<T>(
        &mut self,
        f: impl FnOnce(&mut Router, &mut Io<'_, (Ports, HostTable)>) -> T,
    ) -> T {
        let mut io = Io::new(&mut self.ports, &mut self.hosts, &mut self.out);
        f(&mut self.router, &mut io)
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let at_once =
                self.busy_poll.is_on() || self.ports.has_turns() || self.splices.has_turns();
            let timeout = if at_once {
                Some(NO_WAIT)
            } else {
                self.timeout()
            };
            events.clear();
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&*self.epoll, space, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("epoll_wait failed"),
            }
            let now = now();
            self.busy_poll.waited(now, !events.is_empty());
            for events in events.chunks(LOOK_AHEAD) {
                self.router.look_ahead(events.iter().filter_map(token));
                for event in events {
                    let Some(token) = token(event) else {
                        continue;
                    };
                    let ready = readiness(event.flags);
                    match token.kind() {
                        TokenKind::Shell if token.index() == WAKE => {
                            if self.run_commands(now)? {
                                return Ok(());
                            }
                            self.take_handed(now);
                        }
                        TokenKind::Shell => self.ports.handle_event(token, event.flags),
                        TokenKind::Forward => self.serve_forward(now, token, ready),
                        TokenKind::Splice => self.splices.handle(token, event.flags),
                        _ => self.with_router(|r, io| r.handle_socket(now, token, ready, io)),
                    }
                }
            }
            self.serve_splices(now);
            self.serve_ports(now);
            self.act_on_time();
            self.pass_queries();
            self.tell_delivered();
        }
    }

    /// How long to wait for events: until the router's next deadline.
    fn timeout(&self) -> Option<Timespec> {
        let due = [
            self.router.poll_timeout(),
            self.paused,
            self.splices.poll_timeout(),
        ];
        let due = due.into_iter().flatten().min()?;
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

    /// Gives the ports that may be read from their turns, until the round is over.
    fn serve_ports(&mut self, now: Instant) {
        for _ in 0..TURNS_A_ROUND {
            let Some((token, port)) = self.ports.next_turn() else {
                return;
            };
            match self.read_batch(now, port) {
                Turn::Drained => {}
                Turn::More => self.ports.enqueue(token),
                Turn::Gone(e) => self.lose_port(now, port, &e),
            }
        }
    }

    /// Reads a batch of frames of `port`.
    fn read_batch(&mut self, now: Instant, port: PortId) -> Turn {
        let mut turn = Turn::More;
        let gather = self.router.looks_ahead();
        let (mut frames, mut large) = (0, 0);
        let before = self.ports.emitted();
        let writes = |ports: &Ports| ports.emitted().wrapping_sub(before);
        while frames < BATCH && large < LARGE_BATCH && writes(&self.ports) < BATCH_WRITES {
            let read = self
                .frames
                .read(port, gather, |buf| self.ports.read(port, buf));
            match read {
                Ok(Next::Read) => {}
                Ok(Next::HandOn { last }) => {
                    large += usize::from(last > SMALL);
                    self.hand_on(now);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    turn = Turn::Drained;
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    turn = Turn::Gone(e);
                    break;
                }
            }
            frames += 1;
        }
        self.hand_on(now);
        // Where the frames only went from port to port, there is nothing to do here.
        self.with_router(|r, io| r.end_batch(now, io));
        self.ports.announce_handed();
        turn
    }

    /// Has the router handle the frames that were read.
    fn hand_on(&mut self, now: Instant) {
        let mut io = Io::new(&mut self.ports, &mut self.hosts, &mut self.out);
        self.frames.hand_on(now, &mut self.router, &mut io);
    }

    fn pass_queries(&mut self) {
        while let Some(query) = self.router.take_query() {
            // A service that cannot keep up loses queries, and the client asks again.
            let _ = self.channels.queries.try_send(query);
        }
    }

    /// Tells who waits for it that all that containers have sent was passed on.
    fn tell_delivered(&mut self) {
        if self.deliveries.is_empty() || !self.splices.is_delivered() || !self.router.is_delivered()
        {
            return;
        }
        for waiting in self.deliveries.drain(..) {
            // Who does not wait any more need not know.
            let _ = waiting.send(());
        }
    }

    /// Carries out waiting commands; `true` when told to stop.
    fn run_commands(&mut self, now: Instant) -> anyhow::Result<bool> {
        let mut count = [0; 8];
        // Whether it was signalled once or often, the channel tells what there is.
        let _ = rustix::io::read(&*self.channels.wake, &mut count);
        while let Ok(command) = self.channels.inbox.try_recv() {
            match command {
                Command::AddPort(plan, device, reply) => {
                    let added = self.add_port(plan, device);
                    // Who does not wait for the port any more cannot remove it either.
                    if let Err(Ok((port, _))) = reply.send(added) {
                        let _ = self.remove_port(now, port);
                    }
                }
                Command::RemovePort(port, reply) => {
                    let _ = reply.send(self.remove_port(now, port));
                }
                Command::Statistics(reply) => {
                    let _ = reply.send(self.statistics());
                }
                Command::Supply(port, supplier) => self.supply(port, supplier),
                Command::Delivered(reply) => self.deliveries.push(reply),
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
                    return Ok(true);
                }
                Command::Crew(news) => self.hear(now, news)?,
            }
        }
        Ok(false)
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

#[cfg(test)]
mod tests {
    use cnet_nat::flow::Limits;
    use cnet_tap::Tap;
    use cnet_tap::device::{Offloads, TapInfo};
    use cnet_wire::vnet::VNET_HDR_LEN;
    use rustix::event::EventfdFlags;
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

    use super::super::handoff::{self, Inlet};
    use super::super::{PortDevice, PortPlan};
    use super::*;
    use cnet_wire::prefixes::Subnet;

    fn worker() -> Worker {
        worker_with(Vec::new())
    }

    /// The first worker of a network, whose others hand over by `inlets`.
    fn worker_with(inlets: Vec<Inlet>) -> Worker {
        let (_, inbox) = mpsc::channel();
        let wake = rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let channels = Channels {
            inbox,
            wake: Arc::new(wake),
            queries: async_mpsc::channel(1).0,
            crew: Crew {
                others: Vec::new(),
                inlets,
                first: None,
            },
        };
        let config = NetworkConfig::new(1500, Some(Subnet::DEFAULT.plan()), None);
        let plan = super::super::core_config::router_config(&config, Limits::NONE);
        let router = Router::new(plan, [7; 32], now());
        Worker::new(&config, router, None, channels).unwrap()
    }

    fn mac(n: u8) -> [u8; 6] {
        [2, 0, 0, 0, 0, n]
    }

    /// Plugs in a port whose device is one end of a socket pair, where a frame is a packet.
    fn plug(worker: &mut Worker, n: u8) -> (PortId, OwnedFd) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (ours, far) = pair.unwrap();
        let info = TapInfo {
            name: format!("tap{n}"),
            offloads: Offloads::default(),
            mac: mac(n),
            ifindex: 1,
        };
        let device = PortDevice::Tap(Tap::from_fds(vec![ours], info));
        let (id, _) = worker.add_port(PortPlan::default(), device).unwrap();
        (id, far)
    }

    /// A UDP packet from container `n`.
    fn frame(n: u8, to: [u8; 6]) -> Vec<u8> {
        let mut frame = vec![0; VNET_HDR_LEN];
        frame.extend(to);
        frame.extend(mac(n));
        frame.extend([8, 0]);
        let mut ip = [0; 28];
        (ip[0], ip[3], ip[8], ip[9]) = (0x45, 28, 64, 17);
        ip[12..16].copy_from_slice(&[10, 0, 2, n]);
        ip[16..20].copy_from_slice(&[10, 0, 2, 255]);
        let sum = cnet_wire::checksum::add(0, &ip[..20]);
        let sum = !cnet_wire::checksum::fold(sum);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        (ip[21], ip[23], ip[25]) = (9, 9, 8);
        frame.extend(ip);
        frame
    }

    fn arrived(far: &OwnedFd) -> usize {
        let mut buf = [0; 2000];
        let next = || rustix::net::recv(far, &mut buf[..], RecvFlags::DONTWAIT);
        std::iter::repeat_with(next)
            .take_while(Result::is_ok)
            .count()
    }

    #[test]
    fn who_sends_to_all_has_no_longer_turn() {
        let mut worker = worker();
        let fars: Vec<_> = (1..=101).map(|n| plug(&mut worker, n)).collect();
        let (sender, receiver) = (&fars[0], &fars[1]);
        let send = |to| {
            for _ in 0..BATCH {
                rustix::net::send(&sender.1, &frame(1, to), SendFlags::empty()).unwrap();
            }
        };
        send([0xff; 6]);
        assert!(matches!(worker.read_batch(now(), sender.0), Turn::More));
        assert_eq!(arrived(&receiver.1), 3, "three times a hundred are enough");
        while matches!(worker.read_batch(now(), sender.0), Turn::More) {}
        assert_eq!(arrived(&receiver.1), BATCH - 3);
        // To one port a whole batch goes in a turn.
        send(mac(2));
        assert!(matches!(worker.read_batch(now(), sender.0), Turn::More));
        assert_eq!(arrived(&receiver.1), BATCH);
    }

    #[test]
    fn what_others_hand_over_comes_in_batches_as_what_is_read() {
        let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let (mut outlet, inlet) = handoff::channel(Arc::clone(&wake));
        let mut worker = worker_with(vec![inlet]);
        let (port, _far) = plug(&mut worker, 1);
        let token = Token::new(TokenKind::Shell, port.0, 1);
        assert_eq!(worker.ports.current(token), Some(port));
        for (len, batch) in [(SMALL + 1, LARGE_BATCH), (SMALL, BATCH)] {
            for _ in 0..batch + 1 {
                outlet.hand_over(token, &vec![0; len]).unwrap();
            }
            for taken in [batch, 1] {
                let before = worker.statistics().ports[0].frames_in;
                worker.take_handed(now());
                let after = worker.statistics().ports[0].frames_in;
                assert_eq!((after - before) as usize, taken, "of {len} bytes each");
                let again = rustix::io::read(&*worker.channels.wake, &mut [0; 8]).is_ok();
                assert_eq!(again, taken == batch);
            }
        }
    }
}
