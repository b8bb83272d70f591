//! The worker: one thread, one epoll, everything that is done per packet.
//!
//! # Theory of operation
//!
//! A worker owns a pure core, its host sockets and its queue of every port's device alone
//! ([`crate::driver`]). It repeats a round: wait for events; act on each, of sockets, listeners and
//! commands; give spliced connections and ports their turns; act on deadlines.
//! How much is done in a round is bounded by [`crate::budget`].
//!
//! The epoll token of an event is the handle of what it is about ([`Token`]): a flow of the core, a
//! port, a listener or a spliced connection, with a generation that makes an event for something that
//! is gone harmless. Devices are level triggered, sockets edge triggered.
//!
//! Commands come through a mailbox ([`command`]) and an eventfd. A network may have several workers
//! ([`workers`]); the primary one takes all commands and tells the others what concerns them.
//!
//! # Failures
//!
//! A device that fails ends its port and no other. A panic ends what it came from
//! ([`crate::containment`]). A worker that fails ends the network.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;

use cnet_core::Network;
use cnet_nat::flow::PREFETCH_DEPTH;
use cnet_nat::host::{Readiness, Token, TokenKind};
use cnet_nat::policy::PeerFilter;
use cnet_tap::device::TapQueue;
use cnet_vswitch::port::PortConfig;
use cnet_wire::PortId;
use cnet_wire::access::Access;
use cnet_wire::time::Instant;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::budget::{EVENTS, PORT_TURNS_A_ROUND};
use crate::busy_poll::BusyPoll;
use crate::clock::now;
use crate::containment::{During, Panic, contained};
use crate::core_config::port_config;
use crate::dns_queue::DnsOutlet;
use crate::driver::{Driver, Turn};
use crate::error::WorkerError;
use crate::forward::Forwards;
use crate::handoff::Outlet;
use crate::port::{Device, OpenedDevice, PortDevice, PortEnd, PortError, RemovedPort};
use crate::statistics::Statistics;
use crate::{NetworkConfig, PortPlan};

pub(crate) mod command;
pub(crate) mod workers;

use command::{AccessList, AddedPort, Command, Peers, WorkerEvent};

/// Do not wait.
const NO_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// The token of the command channel; ports have their numbers, from 1 on.
const WAKE: u32 = 0;

/// How the worker talks to the rest of the process.
pub(crate) struct Channels {
    pub(crate) inbox: mpsc::Receiver<Command>,
    pub(crate) wake: Arc<OwnedFd>,
    /// For the gateway's queries: the primary worker's alone.
    pub(crate) queries: Option<DnsOutlet>,
    pub(crate) peers: Peers,
}

struct Worker {
    epoll: Rc<OwnedFd>,
    driver: Driver,
    forwards: Forwards,
    /// Callers of [`Control::delivered`](crate::Control::delivered).
    deliveries: Vec<oneshot::Sender<()>>,
    channels: Channels,
    busy_poll: BusyPoll,
}

/// Runs until told to stop. `outlet` is for what the network hands over, if it does.
fn run(
    config: &NetworkConfig,
    network: Network,
    outlet: Option<Outlet>,
    channels: Channels,
) -> Result<(), WorkerError> {
    Worker::new(config, network, outlet, channels)?.run()
}

impl Worker {
    fn new(
        config: &NetworkConfig,
        network: Network,
        outlet: Option<Outlet>,
        mut channels: Channels,
    ) -> Result<Worker, WorkerError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| WorkerError::Epoll(errno.into()))?;
        let epoll = Rc::new(epoll);
        let token = Token::new(TokenKind::Shell, WAKE, 0);
        let data = epoll::EventData::new_u64(token.to_bits());
        epoll::add(&*epoll, channels.wake.as_fd(), data, epoll::EventFlags::IN)
            .map_err(|errno| WorkerError::WatchCommands(errno.into()))?;
        Ok(Worker {
            driver: Driver::new(config, network, &epoll, outlet, channels.queries.take()),
            forwards: Forwards::new(Rc::clone(&epoll)),
            epoll,
            deliveries: Vec::new(),
            channels,
            busy_poll: BusyPoll::new(config.busy_poll),
        })
    }

    // ---- the round ----

    fn run(&mut self) -> Result<(), WorkerError> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let work_waits = self.driver.ports.has_turns() || self.forwards.has_turns();
            let timeout = if work_waits || self.busy_poll.is_on() {
                Some(NO_WAIT)
            } else {
                self.timeout()
            };
            events.clear();
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&*self.epoll, space, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(WorkerError::Wait(errno.into())),
            }
            let now = now();
            self.busy_poll.waited(now, !events.is_empty());
            for events in events.chunks(PREFETCH_DEPTH) {
                self.driver
                    .core
                    .prefetch_sockets(events.iter().filter_map(token));
                for event in events {
                    let handled = contained(|| self.handle_event(now, event));
                    if self
                        .unless_panicked(now, During::Event, handled)?
                        .unwrap_or(Ok(false))?
                    {
                        return Ok(());
                    }
                }
            }
            let done = contained(|| self.forwards.serve_splices(now, &mut self.driver));
            self.unless_panicked(now, During::Deadlines, done)?;
            self.serve_ports(now)?;
            let done = contained(|| {
                self.handle_timeouts();
                self.tell_delivered();
            });
            if self
                .unless_panicked(now, During::Deadlines, done)?
                .is_some()
            {
                self.driver.panics.passed();
            }
        }
    }

    /// What a contained call gave; `None` if it panicked, and what it concerned was ended.
    #[inline]
    fn unless_panicked<T>(
        &mut self,
        now: Instant,
        during: During,
        result: Result<T, Panic>,
    ) -> Result<Option<T>, WorkerError> {
        match result {
            Ok(given) => Ok(Some(given)),
            Err(panic) => self.recover(now, during, &panic).map(|()| None),
        }
    }

    #[cold]
    fn recover(&mut self, now: Instant, during: During, panic: &Panic) -> Result<(), WorkerError> {
        match contained(|| self.driver.recover(now, during, panic)) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(WorkerError::Defect),
        }
    }

    /// Acts on one event; `true` when told to stop.
    #[inline]
    fn handle_event(&mut self, now: Instant, event: &epoll::Event) -> Result<bool, WorkerError> {
        let Some(token) = token(event) else {
            return Ok(false);
        };
        let Worker {
            driver, forwards, ..
        } = self;
        match token.kind() {
            TokenKind::Shell if token.index() == WAKE => {
                if self.run_commands(now)? {
                    return Ok(true);
                }
                self.take_handed_over(now);
            }
            TokenKind::Shell => driver.ports.handle_event(token, event.flags),
            TokenKind::Forward => forwards.handle_event(now, token, readiness(event.flags), driver),
            TokenKind::Splice => forwards.handle_splice_event(token, event.flags),
            _ => {
                let ready = readiness(event.flags);
                driver.with_core(|core, io| core.handle_socket(now, token, ready, io));
            }
        }
        Ok(false)
    }

    /// How long to wait for events: until the next deadline.
    fn timeout(&self) -> Option<Timespec> {
        let due = [
            self.driver.core.poll_timeout(),
            self.forwards.poll_timeout(),
        ];
        let due = due.into_iter().flatten().min()?;
        let wait = due.saturating_since(now());
        Some(Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        })
    }

    fn handle_timeouts(&mut self) {
        let now = now();
        let Worker {
            driver, forwards, ..
        } = self;
        if driver.core.poll_timeout().is_some_and(|due| due <= now) {
            driver.with_core(|core, io| core.handle_timeout(now, io));
        }
        forwards.handle_timeout(now, driver);
    }

    /// Gives the ports that may be read from their turns, until the round is over.
    fn serve_ports(&mut self, now: Instant) -> Result<(), WorkerError> {
        for _ in 0..PORT_TURNS_A_ROUND {
            let Some((token, port)) = self.driver.ports.next_turn() else {
                break;
            };
            let turn = contained(|| self.driver.read_batch(now, port));
            match self.unless_panicked(now, During::Frames(port), turn)? {
                Some(Turn::Drained) => {}
                Some(Turn::More) | None => self.driver.ports.enqueue(token),
                Some(Turn::Gone(error)) => self.lose_port(now, port, &error),
            }
        }
        Ok(())
    }

    /// Handles what other workers have handed over, a batch of each.
    fn take_handed_over(&mut self, now: Instant) {
        let mut more = false;
        for inlet in &self.channels.peers.inlets {
            more |= self.driver.take_handed_over(now, inlet);
        }
        if more {
            // Other events have their turn first.
            let _ = rustix::io::write(&*self.channels.wake, &1u64.to_ne_bytes());
        }
    }

    /// Answers [`Command::Delivered`] once all that containers have sent was passed on.
    fn tell_delivered(&mut self) {
        let delivered = || self.forwards.is_delivered() && self.driver.core.is_delivered();
        if self.deliveries.is_empty() || !delivered() {
            return;
        }
        for waiting in self.deliveries.drain(..) {
            // A caller that does not wait any more need not know.
            let _ = waiting.send(());
        }
    }

    // ---- commands ----

    /// Carries out waiting commands; `true` when told to stop.
    fn run_commands(&mut self, now: Instant) -> Result<bool, WorkerError> {
        let mut count = [0; 8];
        // Whether it was signalled once or often, the channel tells what there is.
        let _ = rustix::io::read(&*self.channels.wake, &mut count);
        while let Ok(command) = self.channels.inbox.try_recv() {
            if let Command::Stop = command {
                self.driver.with_core(|core, io| core.shut_down(now, io));
                return Ok(true);
            }
            self.run_command(now, command)?;
        }
        Ok(false)
    }

    fn run_command(&mut self, now: Instant, command: Command) -> Result<(), WorkerError> {
        match command {
            Command::AddPort(plan, device, reply) => {
                let added = self.add_port(plan, device);
                // A caller that does not wait for the port any more cannot remove it either.
                if let Err(Ok((port, _))) = reply.send(added) {
                    let _ = self.remove_port(now, port);
                }
            }
            Command::RemovePort(port, reply) => {
                let _ = reply.send(self.remove_port(now, port));
            }
            Command::Statistics(reply) => {
                let _ = reply.send(Statistics::of_worker(&self.driver, &self.forwards));
            }
            Command::Uplinks(reply) => {
                let _ = reply.send(self.driver.uplinks(now));
            }
            Command::UseSocketHelper(port, helper) => {
                // A port that is gone again needs none.
                if let Some(addresses) = self.driver.ports.addresses(port) {
                    self.forwards
                        .use_socket_helper(now, port, addresses, helper);
                }
            }
            Command::UseDiagnostics(port, diagnostics) => {
                if let Some(addresses) = self.driver.ports.addresses(port) {
                    let Worker {
                        driver, forwards, ..
                    } = self;
                    forwards.use_diagnostics(now, port, addresses, diagnostics, driver);
                }
            }
            Command::Delivered(reply) => self.deliveries.push(reply),
            Command::SetForwards {
                replaced,
                rules,
                reply,
            } => {
                let _ = reply.send(self.forwards.set(now, &replaced, &rules, &mut self.driver));
            }
            Command::ListForwards(reply) => {
                let _ = reply.send(self.forwards.list().collect());
            }
            Command::ListBound(port, reply) => {
                let _ = reply.send(self.forwards.bound_in(port));
            }
            Command::AnswerDns(answers) => {
                for (id, message) in answers {
                    self.driver
                        .with_core(|core, io| core.answer_dns(now, id, &message, io));
                }
            }
            Command::SetAccess(list) => self.set_access_of_each(now, list),
            Command::SetHostAddresses(addresses) => self.driver.core.set_host_addresses(addresses),
            Command::Stop => {}
            Command::Worker(event) => self.handle_worker_event(now, event)?,
        }
        Ok(())
    }

    // ---- ports ----

    fn add_port(
        &mut self,
        plan: PortPlan,
        device: PortDevice,
    ) -> Result<(PortId, PortEnd), PortError> {
        let id = self.driver.ports.free_id().ok_or(PortError::Full)?;
        let workers = 1 + self.channels.peers.others.len();
        let OpenedDevice {
            device,
            further,
            mac,
        } = Device::open(device, workers)?;
        let addresses = plan.addresses().collect();
        let (filter, access) = (plan.filter.clone(), plan.access.clone());
        let config = port_config(plan, mac);
        self.driver.core.add_port(id, config.clone())?;
        self.driver.core.set_port_filter(id, filter.clone());
        self.set_access(now(), id, access.clone());
        match self.driver.ports.add(id, device, addresses) {
            Ok(end) => {
                self.share_port(id, further, &config, (&filter, &access));
                Ok((id, end))
            }
            Err(e) => {
                self.driver
                    .with_core(|core, io| core.remove_port(now(), id, io));
                Err(PortError::Watch(e.to_string()))
            }
        }
    }

    /// Gives every other worker its queue of a port that was added here.
    fn share_port(
        &self,
        id: PortId,
        queues: Vec<TapQueue>,
        config: &PortConfig,
        (filter, access): (&PeerFilter, &Option<Arc<Access>>),
    ) {
        for (other, queue) in self.channels.peers.others.iter().zip(queues) {
            if let Some(queue) = self.driver.ports.queue_of(id, queue) {
                let added = AddedPort {
                    queue,
                    config: config.clone(),
                    filter: filter.clone(),
                    access: access.clone(),
                };
                other.send(Command::Worker(WorkerEvent::PortAdded(Box::new(added))));
            }
        }
    }

    fn set_access_of_each(&mut self, now: Instant, list: AccessList) {
        for (id, access) in list {
            self.set_access(now, id, access);
        }
    }

    fn set_access(&mut self, now: Instant, id: PortId, access: Option<Arc<Access>>) {
        self.driver
            .with_core(|core, io| core.set_access(now, id, access, io));
    }

    fn remove_port(&mut self, now: Instant, id: PortId) -> Result<(), PortError> {
        let removed = self.take_port(now, id).ok_or(PortError::Unknown(id))?;
        removed.tell("removed".to_owned());
        Ok(())
    }

    /// The device of `id` has failed.
    fn lose_port(&mut self, now: Instant, id: PortId, error: &io::Error) {
        if let Some(lost) = self.take_port(now, id) {
            let (token, reason) = (lost.token, lost.failure_reason(error));
            lost.tell(reason.clone());
            let event = WorkerEvent::PortFailed(token, reason);
            self.channels.peers.tell_primary(event);
        }
    }

    /// Ends all that a port has, published ports that lead to it included.
    fn take_port(&mut self, now: Instant, id: PortId) -> Option<RemovedPort> {
        let removed = self.driver.ports.remove(id)?;
        self.forwards
            .remove_port(id, &removed.addresses, &mut self.driver);
        self.driver
            .with_core(|core, io| core.remove_port(now, id, io));
        let peers = &self.channels.peers;
        peers.tell_others(|| WorkerEvent::PortRemoved(removed.token));
        Some(removed)
    }

    // ---- other workers ----

    /// Acts on what another worker tells.
    ///
    /// # Errors
    ///
    /// When that worker has failed: without it there is no network.
    fn handle_worker_event(&mut self, now: Instant, event: WorkerEvent) -> Result<(), WorkerError> {
        match event {
            WorkerEvent::PortAdded(added) => self.add_shared_port(now, *added),
            WorkerEvent::PortRemoved(token) => {
                if let Some(id) = self.driver.ports.current(token) {
                    // The primary worker has said why.
                    drop(self.take_port(now, id));
                }
            }
            WorkerEvent::PortFailed(token, reason) => {
                if let Some(id) = self.driver.ports.current(token)
                    && let Some(removed) = self.take_port(now, id)
                {
                    removed.tell(reason);
                }
            }
            WorkerEvent::WorkerFailed(reason) => {
                self.driver.with_core(|core, io| core.shut_down(now, io));
                return Err(WorkerError::OtherWorker(reason));
            }
        }
        Ok(())
    }

    /// The primary worker has added a port, of which this worker has a queue.
    fn add_shared_port(&mut self, now: Instant, added: AddedPort) {
        let AddedPort {
            queue,
            config,
            filter,
            access,
        } = added;
        let token = queue.token;
        let id = PortId(token.index());
        if let Err(error) = self.driver.core.add_port(id, config) {
            // Removed meanwhile, and its address given to another port: the primary worker knows.
            let failed = WorkerEvent::PortFailed(token, error.to_string());
            self.channels.peers.tell_primary(failed);
            return;
        }
        self.driver.core.set_port_filter(id, filter);
        self.set_access(now, id, access);
        if let Err(error) = self.driver.ports.add_queue(queue, Vec::new()) {
            self.driver
                .with_core(|core, io| core.remove_port(now, id, io));
            let reason = PortError::Watch(error.to_string()).to_string();
            let failed = WorkerEvent::PortFailed(token, reason);
            self.channels.peers.tell_primary(failed);
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

#[cfg(test)]
mod tests {
    use cnet_nat::flow::FlowBudget;
    use cnet_tap::Tap;
    use cnet_tap::device::{Offloads, TapInfo};
    use cnet_wire::vnet::VNET_HDR_LEN;
    use rustix::event::EventfdFlags;
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

    use super::*;
    use crate::budget::{BATCH_FRAMES, BATCH_LARGE, SMALL_FRAME};
    use crate::handoff::{self, Inlet};
    use cnet_wire::prefixes::Subnet;

    fn worker() -> Worker {
        worker_with(Vec::new())
    }

    /// The primary worker of a network, whose others hand over by `inlets`.
    fn worker_with(inlets: Vec<Inlet>) -> Worker {
        let (_, inbox) = mpsc::channel();
        let wake = rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let channels = Channels {
            inbox,
            wake: Arc::new(wake),
            queries: None,
            peers: Peers {
                others: Vec::new(),
                inlets,
                primary: None,
            },
        };
        let config = NetworkConfig::new(1500, Some(Subnet::DEFAULT.plan()), None);
        let plan = crate::core_config::router_config(&config, &FlowBudget::default());
        let network = Network::new(plan, [7; 32], now());
        Worker::new(&config, network, None, channels).unwrap()
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
            lacks_ipv6: false,
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
            for _ in 0..BATCH_FRAMES {
                rustix::net::send(&sender.1, &frame(1, to), SendFlags::empty()).unwrap();
            }
        };
        send([0xff; 6]);
        assert!(matches!(
            worker.driver.read_batch(now(), sender.0),
            Turn::More
        ));
        assert_eq!(arrived(&receiver.1), 1, "one to a hundred is enough");
        while matches!(worker.driver.read_batch(now(), sender.0), Turn::More) {}
        assert_eq!(arrived(&receiver.1), BATCH_FRAMES - 1);
        // To one port a whole batch goes in a turn.
        send(mac(2));
        assert!(matches!(
            worker.driver.read_batch(now(), sender.0),
            Turn::More
        ));
        assert_eq!(arrived(&receiver.1), BATCH_FRAMES);
    }

    #[test]
    fn what_others_hand_over_comes_in_batches_as_what_is_read() {
        let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let (mut outlet, inlet) = handoff::channel(Arc::clone(&wake));
        let mut worker = worker_with(vec![inlet]);
        let (port, _far) = plug(&mut worker, 1);
        let token = Token::new(TokenKind::Shell, port.0, 1);
        assert_eq!(worker.driver.ports.current(token), Some(port));
        for (len, batch) in [(SMALL_FRAME + 1, BATCH_LARGE), (SMALL_FRAME, BATCH_FRAMES)] {
            for _ in 0..batch + 1 {
                outlet.hand_over(token, &vec![0; len]).unwrap();
            }
            for taken in [batch, 1] {
                let before =
                    Statistics::of_worker(&worker.driver, &worker.forwards).ports[0].frames_in;
                worker.take_handed_over(now());
                let after =
                    Statistics::of_worker(&worker.driver, &worker.forwards).ports[0].frames_in;
                assert_eq!((after - before) as usize, taken, "of {len} bytes each");
                let again = rustix::io::read(&*worker.channels.wake, &mut [0; 8]).is_ok();
                assert_eq!(again, taken == batch);
            }
        }
    }
}
