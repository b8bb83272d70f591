//! The worker among others: ports that all of them have, and frames that one hands to another.

use anyhow::bail;
use cnet_nat::gateway::Lease;
use cnet_nat::io::Io;
use cnet_tap::device::TapQueue;
use cnet_vswitch::port::PortConfig;
use cnet_wire::PortId;
use cnet_wire::time::Instant;

use super::super::Command;
use super::super::port::PortError;
use super::frames::SMALL;
use super::workers::{Joining, News};
use super::{BATCH, BATCH_WRITES, LARGE_BATCH, Worker};

impl Worker {
    /// Gives every other worker its queue of a port that was plugged in here.
    pub(crate) fn share_port(
        &self,
        id: PortId,
        queues: Vec<TapQueue>,
        config: &PortConfig,
        lease: &Lease,
    ) {
        for (other, queue) in self.channels.crew.others.iter().zip(queues) {
            if let Some(seat) = self.ports.another_seat(id, queue) {
                let joining = Joining {
                    seat,
                    config: config.clone(),
                    lease: lease.clone(),
                };
                other.send(Command::Crew(News::Join(Box::new(joining))));
            }
        }
    }

    /// Acts on what another worker tells.
    ///
    /// # Errors
    ///
    /// When that worker has failed: without it there is no network.
    pub(crate) fn hear(&mut self, now: Instant, news: News) -> anyhow::Result<()> {
        match news {
            News::Join(joining) => self.join(now, *joining),
            News::Leave(token) => {
                if let Some(id) = self.ports.current(token)
                    && let Some(gone) = self.take_port(now, id)
                {
                    // The first worker has said why.
                    drop(gone);
                }
            }
            News::Lost(token, reason) => {
                if let Some(id) = self.ports.current(token)
                    && let Some(gone) = self.take_port(now, id)
                {
                    gone.tell(reason);
                }
            }
            News::Failed(reason) => {
                self.with_router(|r, io| r.shut_down(now, io));
                bail!(reason);
            }
        }
        Ok(())
    }

    /// The first worker has plugged in a port.
    fn join(&mut self, now: Instant, joining: Joining) {
        let Joining {
            seat,
            config,
            lease,
        } = joining;
        let token = seat.token;
        let id = PortId(token.index());
        if let Err(error) = self.router.add_port(id, config) {
            // Removed meanwhile, and its address given to another port: the first worker knows.
            self.tell_first(News::Lost(token, error.to_string()));
            return;
        }
        self.router.add_lease(lease);
        if let Err(error) = self.ports.seat(seat, Vec::new()) {
            self.with_router(|r, io| r.remove_port(now, id, io));
            self.tell_first(News::Lost(
                token,
                PortError::Watch(error.to_string()).to_string(),
            ));
        }
    }

    pub(crate) fn tell_first(&self, news: News) {
        if let Some(first) = &self.channels.crew.first {
            first.send(Command::Crew(news));
        }
    }

    pub(crate) fn tell_others(&self, news: impl Fn() -> News) {
        for other in &self.channels.crew.others {
            other.send(Command::Crew(news()));
        }
    }

    /// Handles frames that others have handed over, of each at most the batch that a port has in a
    /// turn: so those who sent them are acknowledged as soon, and other events wait for one batch of
    /// each of the other workers.
    pub(crate) fn take_handed(&mut self, now: Instant) {
        let Worker {
            router,
            ports,
            hosts,
            out,
            channels,
            ..
        } = self;
        let mut io = Io::new(ports, hosts, out);
        let mut more = false;
        for inlet in &channels.crew.inlets {
            let (mut frames, mut large, mut waits) = (0, 0, true);
            let before = io.sink.emitted();
            while waits
                && frames < BATCH
                && large < LARGE_BATCH
                && io.sink.emitted().wrapping_sub(before) < BATCH_WRITES
            {
                waits = inlet.take(|token, frame| {
                    frames += 1;
                    large += usize::from(frame.len() > SMALL);
                    // The frames of a port that is gone went with it.
                    if let Some(port) = io.sink.current(token) {
                        router.handle_frame(now, port, frame, &mut io);
                    }
                });
            }
            if frames > 0 {
                router.end_batch(now, &mut io);
            }
            more |= waits;
        }
        if more {
            // Other events have their turn first.
            let _ = rustix::io::write(&*channels.wake, &1u64.to_ne_bytes());
        }
    }
}
