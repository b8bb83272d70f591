//! The verdict on a world that has run: did every flow end as its plan and the other side say?
//!
//! Where a flow may end otherwise, for a cause that lies outside the core, the verdict excuses it.
//! Each [`Excuse`] asks for evidence of its cause, and is counted: [`crate::seeds`] bounds how often
//! each may be made, so that none can hide a fault that happens all the time.

use std::net::SocketAddr;

use cnet_nat::host::HostError;

use super::World;
use crate::hostile::Finale;
use crate::plan::{FlowPlan, Opening};
use cnet_testkit::app::{App, End};
use cnet_testkit::container::Endpoint;
use cnet_testkit::host::simulated::Fate;

/// Why a flow that did not end as planned is no fault of the core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Excuse {
    /// The host had no descriptor for its socket.
    NoDescriptor,
    /// The container's stack hangs by its own fault ([`cnet_testkit::container::Endpoint::stuck`]).
    StuckStack,
    /// The far end reset the connection before the container's handshake was done.
    EarlyReset,
    /// It was half-open and made room for another.
    Evicted,
    /// The client was gone before the container's handshake was done.
    ClientGone,
    /// The wire lost so much that the container was never found.
    LostHandshake,
    /// A SYN that the wire doubled opened a second connection, which came to nothing.
    Ghost,
    /// The container was gone before the far end began.
    ContainerGone,
    /// The core panicked while it had the flow in hand.
    Defect,
}

impl Excuse {
    /// All of them, in the order of the counters.
    pub const ALL: [Excuse; 9] = [
        Excuse::NoDescriptor,
        Excuse::StuckStack,
        Excuse::EarlyReset,
        Excuse::Evicted,
        Excuse::ClientGone,
        Excuse::LostHandshake,
        Excuse::Ghost,
        Excuse::ContainerGone,
        Excuse::Defect,
    ];
}

/// How often each excuse was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Excuses([u64; Excuse::ALL.len()]);

impl Excuses {
    /// Counts an excuse.
    pub fn count(&mut self, excuse: Excuse) {
        self.0[excuse as usize] += 1;
    }

    /// How often `excuse` was made.
    pub fn get(&self, excuse: Excuse) -> u64 {
        self.0[excuse as usize]
    }

    /// Adds those of another world.
    pub fn add(&mut self, others: &Excuses) {
        for (sum, n) in self.0.iter_mut().zip(others.0) {
            *sum += n;
        }
    }
}

impl World {
    /// There are flows or sockets.
    pub(super) fn is_in_use(&self) -> bool {
        self.network.flows() > 0 || self.host.open_sockets() > 0
    }

    /// What the core still holds.
    pub(super) fn leftovers(&self) -> Option<String> {
        let (flows, sockets) = (self.network.flows(), self.host.open_sockets());
        let unsent = self.network.unsent();
        let timer = self.network.poll_timeout();
        let nothing = flows == 0 && sockets == 0 && unsent == 0 && timer.is_none();
        (!nothing).then(|| {
            format!("{flows} flows, {sockets} sockets, {unsent} bytes unsent, timer {timer:?}")
        })
    }

    /// Compares how each flow ended on both sides with its plan.
    pub(super) fn judge(&self) -> Result<Excuses, String> {
        let mut excuses = Excuses::default();
        let evidence = Evidence {
            refused_opens: &self.host.refused_opens,
            evicted: self.network.report().tcp.evicted > 0,
            lost: self.up.lost + self.down.lost,
        };
        for (n, flow) in self.plan.flows.iter().enumerate() {
            let endpoint = &self.container.endpoints[n];
            let far: Vec<&App> = self
                .host
                .finished
                .iter()
                .filter(|(at, _)| *at == flow.remote)
                .map(|(_, app)| app)
                .collect();
            let mut verdict = evidence.judge(flow, endpoint, &far, &mut excuses);
            // Cut short it may be, but not taken for whole.
            let false_end = |what: &String| what.starts_with("an end of file");
            if excuses.get(Excuse::Defect) < self.defects
                && !verdict.as_ref().is_err_and(false_end)
                && verdict.is_err()
            {
                excuses.count(Excuse::Defect);
                verdict = Ok(());
            }
            verdict.map_err(|what| {
                let ends: Vec<_> = far.iter().map(|a| a.brief()).collect();
                format!(
                    "flow {n} {:?} {:?}: {what}\n  container: {}\n  far: {ends:#?}",
                    flow.opening,
                    flow.fate,
                    endpoint.app.brief()
                )
            })?;
        }
        Ok(excuses)
    }

    /// A forged connection that ended in good order did so at the far end, too.
    pub(super) fn judge_hostiles(&self) -> Result<(), String> {
        for h in &self.hostiles {
            let far: Vec<_> = self
                .host
                .finished
                .iter()
                .filter(|(at, _)| *at == h.remote())
                .map(|(_, app)| app.end)
                .collect();
            let orderly = h.finale == Finale::Fin;
            if orderly && (!h.has_all() || far != [Some(End::Done)]) {
                return Err(format!("{}; the far end: {far:?}", h.brief()));
            }
            if h.finale == Finale::Rst && far.iter().any(|&end| end != Some(End::Reset)) {
                return Err(format!("{}; the far end: {far:?}", h.brief()));
            }
        }
        Ok(())
    }
}

/// What is known of a flow's surroundings, by which the judge excuses what it did.
pub struct Evidence<'a> {
    /// Where the host refused to connect to for want of descriptors.
    pub refused_opens: &'a [SocketAddr],
    /// Half-open connections made room for others.
    pub evicted: bool,
    /// Frames that the wires lost.
    pub lost: u64,
}

impl Evidence<'_> {
    /// Compares how a flow ended on both sides, `far` being what ran at the far end, with its plan.
    ///
    /// # Errors
    /// What is neither as planned nor excused.
    pub fn judge(
        &self,
        flow: &FlowPlan,
        endpoint: &Endpoint,
        far: &[&App],
        excuses: &mut Excuses,
    ) -> Result<(), String> {
        // Longer than 60 lines: the order of the excuses is a part of the verdict.
        let mut excused = |excuse| {
            excuses.count(excuse);
            Ok(())
        };
        let here = endpoint.app.end;
        let opened = match (flow.opening, flow.fate) {
            (Opening::In { listening }, _) => listening,
            (Opening::Out, Fate::Accept) => true,
            (Opening::Out, Fate::Fail(e) | Fate::FailAtOnce(e)) => {
                return match self.judge_failed_open(flow, e, here, far)? {
                    Some(excuse) => excused(excuse),
                    None => Ok(()),
                };
            }
        };
        if !opened {
            let reset = far
                .iter()
                .all(|a| a.end != Some(End::Done) && a.received == 0);
            return if reset && !endpoint.was_connected() {
                Ok(())
            } else {
                Err("nobody listens, but the client was not reset".into())
            };
        }
        if here == Some(End::Refused) && self.refused_opens.contains(&flow.remote) {
            return excused(Excuse::NoDescriptor);
        }
        if endpoint.stuck {
            return excused(Excuse::StuckStack);
        }
        let never_began = far
            .iter()
            .all(|a| a.received == 0 && a.end != Some(End::Done));
        if here == Some(End::Refused) && never_began && !flow.far.ending.is_orderly() {
            return excused(Excuse::EarlyReset);
        }
        // Half-open connections make room when the host runs out of descriptors.
        let untouched = endpoint.app.received == 0 && never_began;
        let given_up = matches!(here, None | Some(End::Refused | End::Reset));
        if self.evicted && untouched && given_up {
            return excused(Excuse::Evicted);
        }
        let (ghosts, real): (Vec<&App>, Vec<&App>) = far
            .iter()
            .partition(|a| a.received == 0 && a.end == Some(End::Reset));
        let Some(here) = here else {
            let gone = |a: &&App| matches!(a.end, Some(End::Aborted | End::Vanished));
            let unlucky = never_began && self.lost > 4;
            return match (far.iter().all(gone), unlucky) {
                (true, _) => excused(Excuse::ClientGone),
                (false, true) => excused(Excuse::LostHandshake),
                _ => Err("the container's side was never connected".into()),
            };
        };
        let [real] = real[..] else {
            let reset_early = real.is_empty() && !ghosts.is_empty();
            return match here {
                End::Aborted | End::Vanished if reset_early => excused(Excuse::ContainerGone),
                _ => Err(format!("{} connections at the far end", real.len())),
            };
        };
        // The duplicate of the SYN may have come when the first connection was over already.
        for _ in &ghosts {
            excused(Excuse::Ghost)?;
        }
        self.judge_ends(flow, endpoint, here, real)
    }

    fn judge_ends(
        &self,
        flow: &FlowPlan,
        endpoint: &Endpoint,
        here: End,
        far: &App,
    ) -> Result<(), String> {
        let near = &endpoint.app;
        let there = far.end.ok_or("the far end has not ended")?;
        if near.eof && !far.shut || far.eof && !near.shut {
            return Err("an end of file that the peer did not send".into());
        }
        let rude = |end| matches!(end, End::Aborted | End::Vanished);
        let orderly = flow.container.ending.is_orderly() && flow.far.ending.is_orderly();
        let fitting = match (here, there) {
            (End::Done, End::Done) => orderly,
            (a, b) if rude(a) => rude(b) || b == End::Reset,
            (End::Reset, b) => rude(b),
            _ => false,
        };
        if fitting {
            Ok(())
        } else {
            Err(format!("ended {here:?} here and {there:?} there"))
        }
    }

    fn judge_failed_open(
        &self,
        flow: &FlowPlan,
        error: HostError,
        here: Option<End>,
        far: &[&App],
    ) -> Result<Option<Excuse>, String> {
        if !far.is_empty() {
            return Err("a connection that should have failed".into());
        }
        let expected = match error {
            HostError::Refused => End::Refused,
            HostError::TimedOut => End::TimedOut,
            _ => End::Unreachable,
        };
        let exhausted = here == Some(End::Refused) && self.refused_opens.contains(&flow.remote);
        if here == Some(expected) {
            Ok(None)
        } else if exhausted {
            Ok(Some(Excuse::NoDescriptor))
        } else {
            Err(format!("{error:?} became {here:?}"))
        }
    }
}
