//! The driver: one worker's pure core, with the ports and sockets that carry its effects out.
//!
//! # Theory of operation
//!
//! The pure core ([`Network`]) takes a frame or an event in and asks for effects through two traits:
//! frames to ports ([`Ports`]) and operations on host sockets ([`HostTable`]). The driver owns all
//! three, so that each part of a worker (its loop, published ports, spliced connections) can
//! call into the core with one borrow: [`Driver::with_core`].
//!
//! Frames reach the core in batches ([`Batch`]): those that a port's device holds
//! ([`Driver::read_batch`]), and those that another worker has handed over
//! ([`Driver::take_handed_over`]). The core's end of batch follows each: it acknowledges TCP and sends
//! the datagrams it has gathered.
//!
//! Frames are read into one buffer ([`Frames`]), from which they go on to another port or into a
//! socket; frames that the core makes are built in another. Both buffers stay in the cache.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use cnet_core::Network;
use cnet_nat::io::Io;
use cnet_wire::PortId;
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::time::Instant;

use crate::NetworkConfig;
use crate::budget::Batch;
use crate::containment::{During, Panic, Panics};
use crate::dns_queue::DnsOutlet;
use crate::handoff::{Inlet, Outlet};
use crate::port::{Device, Ports, UplinkReport};
use crate::socket::HostTable;

mod frames;

use frames::Frames;

/// A core and what carries its effects out.
pub(crate) struct Driver {
    pub(crate) core: Network,
    pub(crate) ports: Ports,
    pub(crate) hosts: HostTable,
    frames: Frames,
    /// Where the core builds frames.
    out: Box<[u8]>,
    pub(crate) panics: Panics,
}

/// What a port's turn ended with.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Its device is empty.
    Drained,
    /// There may be more to read.
    More,
    /// Its device has failed.
    Gone(io::Error),
}

impl Driver {
    /// A driver without ports, whose devices and sockets report to `epoll`. `outlet` takes what the
    /// core hands over to the primary worker, if it does; `queries` takes what the gateway has resolved.
    pub(crate) fn new(
        config: &NetworkConfig,
        core: Network,
        epoll: &Rc<OwnedFd>,
        outlet: Option<Outlet>,
        queries: Option<DnsOutlet>,
    ) -> Driver {
        Driver {
            core,
            ports: Ports::new(Rc::clone(epoll), usize::from(config.mtu), outlet),
            hosts: HostTable::new(
                Rc::clone(epoll),
                (config.outbound_v4, config.outbound_v6),
                config.local_ports.clone(),
                queries,
            ),
            frames: Frames::new(),
            out: vec![0; FRAME_BUFFER_LEN].into_boxed_slice(),
            panics: Panics::default(),
        }
    }

    /// Lends the core its effects.
    #[inline]
    pub(crate) fn with_core<T>(
        &mut self,
        call: impl FnOnce(&mut Network, &mut Io<'_, (Ports, HostTable)>) -> T,
    ) -> T {
        let mut io = Io::new(&mut self.ports, &mut self.hosts, &mut self.out);
        call(&mut self.core, &mut io)
    }

    /// What is behind each uplink.
    pub(crate) fn uplinks(&self, now: Instant) -> Vec<UplinkReport> {
        let report = |(port, device): (PortId, &Device)| {
            let addresses = self.core.addresses_behind(now, port);
            let mut report = match device {
                Device::Vxlan(vxlan) => vxlan.report(now, &addresses),
                _ => UplinkReport::of_lan(&addresses, &self.ports.dropped(Some(port))),
            };
            if let Some(counters) = self.core.port_counters(port) {
                report.drops.add(&counters.drops);
            }
            report
        };
        self.ports.uplinks().map(report).collect()
    }

    /// Reads a batch of frames of `port` and has the core handle them.
    pub(crate) fn read_batch(&mut self, now: Instant, port: PortId) -> Turn {
        let mut turn = Turn::More;
        let gather = self.core.prefetches();
        let mut batch = Batch::start(self.ports.emitted());
        while batch.has_room(self.ports.emitted()) {
            let read = self
                .frames
                .read(port, gather, |buf| self.ports.read(port, buf));
            match read {
                Ok(read) => {
                    batch.count(read.len);
                    if read.hand_on {
                        self.hand_on(now);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    turn = Turn::Drained;
                    break;
                }
                // It counts, so that signals cannot make a turn longer.
                Err(e) if e.kind() == io::ErrorKind::Interrupted => batch.count(0),
                Err(e) => {
                    turn = Turn::Gone(e);
                    break;
                }
            }
        }
        self.hand_on(now);
        // Where the frames only went from port to port, the core has nothing to do here.
        self.with_core(|core, io| core.end_batch(now, io));
        self.ports.announce_handed();
        turn
    }

    /// Has the core handle the frames that were read.
    fn hand_on(&mut self, now: Instant) {
        let mut io = Io::new(&mut self.ports, &mut self.hosts, &mut self.out);
        self.frames.hand_on(now, &mut self.core, &mut io);
    }

    /// A call into the core has panicked, meanwhile it did what `during` says: notes it, and has the core
    /// end what it was about. `false` if the worker gets no further.
    pub(crate) fn recover(&mut self, now: Instant, during: During, panic: &Panic) -> bool {
        let place = self.core.frame_in_hand();
        let in_hand = match during {
            During::Frames(_) => self.frames.give_up(place),
            During::Event | During::Deadlines => None,
        };
        let port = in_hand.map(|(port, _)| port);
        let goes_on = self
            .panics
            .note(during, panic, in_hand.map(|(_, frame)| frame));
        self.with_core(|core, io| core.recover(now, port, io));
        goes_on
    }

    /// Handles a batch of the frames that another worker has handed over; whether more may wait.
    ///
    /// The batch is as long as a port's, so the containers that sent the frames are acknowledged as
    /// soon, and other events wait for one batch of each of the other workers.
    pub(crate) fn take_handed_over(&mut self, now: Instant, inlet: &Inlet) -> bool {
        let mut batch = Batch::start(self.ports.emitted());
        let mut waits = true;
        self.with_core(|core, io| {
            while waits && batch.has_room(io.sink.emitted()) {
                waits = inlet.take(|token, frame| {
                    batch.count(frame.len());
                    // The frames of a port that is gone went with it.
                    if let Some(port) = io.sink.current(token) {
                        core.handle_frame(now, port, frame, io);
                    }
                });
            }
            if !batch.is_empty() {
                core.end_batch(now, io);
            }
        });
        waits
    }
}
