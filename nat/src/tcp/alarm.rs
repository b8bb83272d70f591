//! A flow's one deadline: what it is for, when it is, and what is done when it has passed.
//!
//! At most one [`Alarm`] is set at a time. Without one the deadline is the end of the silence that is
//! allowed to the container (RFC 5382, REQ-5): then a probe asks whether it is still there.

use cnet_wire::time::{Duration, Instant};

use super::TcpConfig;
use super::flow::{Alarm, Cx, State, TcpFlow};
use crate::io::Env;

/// Tries of a SYN or SYN/ACK before the connection is given up.
pub(super) const HANDSHAKE_TRIES: u8 = 6;
/// Wait between keepalive probes, and how many may stay unanswered (Linux's defaults, tcp(7)).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
const KEEPALIVE_PROBES: u8 = 9;
/// Zero-window probes that may stay unanswered: over three minutes, like retransmissions.
const UNANSWERED_PROBES: u8 = 11;
/// Wait before trying a port again whose queue was full; doubles up to [`MAX_STALL_DOUBLINGS`].
const RESUME_DELAY: Duration = Duration::from_millis(1);
/// Doublings of [`RESUME_DELAY`]: a little over a second.
const MAX_STALL_DOUBLINGS: u8 = 10;
/// Times in a row that a port may be found full before it is taken for dead: over three minutes.
const MAX_STALLS: u8 = 200;

impl TcpFlow {
    /// How long the container may be silent before it is probed (RFC 5382, REQ-5; RFC 7857).
    fn idle_limit(&self, config: &TcpConfig) -> Duration {
        if self.container_done() {
            // Only the far end's reader is waited for.
            config.established_timeout
        } else if self.is_embryonic() || self.fin_received || self.fin.is_some() {
            config.transitory_timeout
        } else {
            config.established_timeout
        }
    }

    /// When the flow wants [`TcpFlow::on_timeout`].
    pub(super) fn deadline(&self, config: &TcpConfig) -> Instant {
        let at = match self.alarm {
            Some((_, at)) => at,
            None => self.last_heard + self.idle_limit(config),
        };
        at.min(self.held.deadline())
    }

    /// Will wait for acknowledgements no longer than the shortest timeout.
    pub(super) fn has_shortest_rto(&self) -> bool {
        self.tries == 0 && self.rtt.is_shortest()
    }

    /// Waits for an acknowledgement, and not a moment longer than the shortest timeout.
    pub(super) fn awaits_shortest_rto(&self) -> bool {
        self.has_shortest_rto()
            && matches!(self.alarm, Some((Alarm::Retransmit, _)))
            && !self.is_pressed()
    }

    /// Waits for the port, or for the far end's acknowledgement: the deadlines that may come before the
    /// shortest timeout.
    pub(super) fn is_pressed(&self) -> bool {
        self.held.is_set() || matches!(self.alarm, Some((Alarm::Resume, _)))
    }

    /// Acts on a deadline that has passed. Returns whether the flow wants service.
    pub(super) fn on_timeout<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> bool {
        let acknowledge = self.look_at_held(cx);
        self.on_alarm(cx) || acknowledge
    }

    fn on_alarm<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) -> bool {
        let Some((alarm, at)) = self.alarm else {
            if cx.now >= self.last_heard + self.idle_limit(cx.config) {
                self.on_idle(cx);
            }
            return false;
        };
        if cx.now < at {
            return false;
        }
        match alarm {
            Alarm::Handshake => {
                self.tries += 1;
                if self.tries >= HANDSHAKE_TRIES {
                    self.abort(cx)
                } else {
                    self.open_handshake(cx)
                }
                false
            }
            Alarm::Retransmit => {
                self.on_retransmit_timeout(cx);
                self.state == State::Established
            }
            Alarm::Probe => {
                self.on_probe_timeout(cx);
                false
            }
            Alarm::Resume if self.stalls >= MAX_STALLS => {
                self.abort(cx);
                false
            }
            Alarm::Resume => {
                self.stalls += 1;
                self.alarm = None;
                if self.snd_una.before(self.snd_max) {
                    self.arm_retransmit(cx);
                }
                true
            }
            Alarm::Keepalive => {
                self.on_idle(cx);
                false
            }
            Alarm::Orphan => {
                self.reset_host(cx);
                false
            }
        }
    }

    /// The window is still closed. A container that answers probes may keep it closed for as long
    /// as it likes (RFC 9293, section 3.8.6.1).
    fn on_probe_timeout<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        if self.tries >= UNANSWERED_PROBES {
            self.abort(cx);
            return;
        }
        self.send_probe(cx);
        self.tries += 1;
        self.probes = self.probes.saturating_add(1);
        self.arm_probe(cx.now);
    }

    /// Sets the alarm for the next zero-window probe.
    pub(super) fn arm_probe(&mut self, now: Instant) {
        self.alarm = Some((Alarm::Probe, now + self.rtt.backed_off(self.probes)));
    }

    /// The port took no frame: try again soon, though less and less so.
    pub(super) fn stall(&mut self, now: Instant) {
        if !matches!(self.alarm, Some((Alarm::Resume, _))) {
            let wait = RESUME_DELAY * (1 << self.stalls.min(MAX_STALL_DOUBLINGS));
            self.alarm = Some((Alarm::Resume, now + wait));
        }
    }

    /// The container was silent for long: probe it, and give up when it does not answer. An
    /// established flow ends in no other way for want of traffic.
    fn on_idle<E: Env>(&mut self, cx: &mut Cx<'_, '_, E>) {
        let silent = self.tries >= KEEPALIVE_PROBES || self.container_done();
        if self.state != State::Established || silent {
            self.abort(cx);
            return;
        }
        self.tries += 1;
        self.send_probe(cx);
        self.alarm = Some((Alarm::Keepalive, cx.now + KEEPALIVE_INTERVAL));
    }

    /// The container spoke: whatever waited for a sign of life is satisfied.
    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        match self.alarm {
            Some((Alarm::Keepalive, _)) => {
                self.alarm = None;
                self.tries = 0;
            }
            Some((Alarm::Probe, _)) => self.tries = 0,
            _ => {}
        }
    }
}
