//! On which ports the container behind a published port listens.
//!
//! # Theory of operation
//!
//! A published TCP port answers as the container would: it listens while a program in the container
//! listens, and is only held otherwise, so that the host's kernel refuses clients. The kernel of the
//! container's network namespace tells who listens ([`Diagnostics`]). It tells the ends of listeners
//! by itself, but not their beginnings. So while the container does not listen on a published port,
//! it is asked: every [`EAGER_INTERVAL`] for [`EAGER_TIME`] after the port was published or a
//! listener has ended, then every [`LAZY_INTERVAL`]. Once all are served nothing wakes the worker.
//!
//! The same answers tell which of the container's families serves a port ([`Presence::serves`]).
//!
//! # Limits
//!
//! Virtual machines, and containers whose kernel cannot be asked, are unknown here: their ports
//! listen always. A listener that ends and begins again between two questions is not missed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use cnet_tap::socket::{BoundSocket, Diagnostics};
use cnet_wire::PortId;
use cnet_wire::time::{Duration, Instant};

use super::{ContainerEnd, Rule};

/// How often a container is asked that is expected to listen soon: short of what a person notices.
const EAGER_INTERVAL: Duration = Duration::from_millis(100);
/// For how long it is expected to.
const EAGER_TIME: Duration = Duration::from_secs(10);
/// How often it is asked after that.
const LAZY_INTERVAL: Duration = Duration::from_secs(1);
/// How soon after a change it is asked first, so that many changes at once need few questions.
const FIRST_INTERVAL: Duration = Duration::from_millis(10);
/// How long a container's helper may take to send what answers. Its ports listen then.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How old an answer may be by which a client is brought to the family that is not its own.
const CHOICE_AGE: Duration = Duration::from_millis(5);

/// Who can be asked.
#[derive(Debug)]
enum Source {
    /// No one yet: the helper will send it, until then.
    Awaited(Instant),
    /// The kernel.
    Kernel(Rc<Diagnostics>),
}

/// A container that can be asked.
#[derive(Debug)]
pub(super) struct Presence {
    pub(super) port: PortId,
    pub(super) addresses: Vec<IpAddr>,
    /// Tells the events of its diagnostics from those of an earlier one in its place.
    pub(super) generation: u32,
    source: Source,
    /// Its listeners, by port, as of `asked`.
    listeners: HashMap<u16, Vec<BoundSocket>>,
    asked: Option<Instant>,
    /// When it is to be asked next; `None` while it listens on all published ports.
    next: Option<Instant>,
    eager_until: Instant,
}

impl Presence {
    /// Of the container of `port` with `addresses`, whose diagnostics are still to come.
    pub(super) fn awaited(
        now: Instant,
        port: PortId,
        addresses: Vec<IpAddr>,
        generation: u32,
    ) -> Presence {
        Presence {
            port,
            addresses,
            generation,
            source: Source::Awaited(now + ANSWER_TIMEOUT),
            listeners: HashMap::new(),
            asked: None,
            next: Some(now + ANSWER_TIMEOUT),
            eager_until: now,
        }
    }

    /// It can be asked from now on.
    pub(super) fn use_kernel(&mut self, now: Instant, diagnostics: Rc<Diagnostics>) {
        self.source = Source::Kernel(diagnostics);
        self.expect(now);
    }

    /// What answers, once it is there.
    pub(super) fn diagnostics(&self) -> Option<&Rc<Diagnostics>> {
        match &self.source {
            Source::Kernel(diagnostics) => Some(diagnostics),
            Source::Awaited(_) => None,
        }
    }

    /// Whether what answers has not come in time.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        matches!(self.source, Source::Awaited(until) if until <= now)
    }

    /// Something has changed: a port was published, or a listener has ended.
    pub(super) fn expect(&mut self, now: Instant) {
        self.eager_until = now + EAGER_TIME;
        let soon = now + FIRST_INTERVAL;
        if self.diagnostics().is_some() {
            self.next = Some(self.next.map_or(soon, |next| next.min(soon)));
        }
    }

    /// Whether `rule` leads to this container.
    pub(super) fn is_behind(&self, rule: &Rule) -> bool {
        self.addresses.iter().any(|a| rule.container.has(*a))
    }

    /// When it is to be asked.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Asks. `false` if it cannot be asked any more.
    pub(super) fn ask(&mut self, now: Instant) -> bool {
        let Source::Kernel(diagnostics) = &self.source else {
            return true;
        };
        diagnostics.take_ends();
        let listeners = match diagnostics.listeners() {
            Ok(listeners) => listeners,
            Err(error) => {
                tracing::debug!(%error, "a container cannot be asked where it listens");
                return false;
            }
        };
        self.listeners.clear();
        for listener in listeners {
            let of_port = self.listeners.entry(listener.at.port());
            of_port.or_default().push(listener);
        }
        self.asked = Some(now);
        true
    }

    /// Sets when it is asked again: soon if it does not listen on all published ports.
    pub(super) fn set_next(&mut self, now: Instant, is_missed: bool) {
        let interval = match now < self.eager_until {
            true => EAGER_INTERVAL,
            false => LAZY_INTERVAL,
        };
        self.next = is_missed.then(|| now + interval);
    }

    /// Whether a program listens at `end`, as of the last answer.
    pub(super) fn serves(&self, end: SocketAddr) -> bool {
        let of_port = self.listeners.get(&end.port());
        of_port.is_some_and(|all| all.iter().any(|listener| listener.takes(end.ip())))
    }

    /// The one of two ends, the client's own family's first, that a client is to be brought to. Asks
    /// again if a listener has ended, or if the last answer is too old to bring a client to the other
    /// family by.
    pub(super) fn choose(
        &mut self,
        now: Instant,
        end: ContainerEnd,
        client: IpAddr,
    ) -> Option<SocketAddr> {
        let near = end.in_order(client).next()?;
        let fresh = |asked: Instant| now.saturating_since(asked) < CHOICE_AGE;
        let ended = self.diagnostics().is_some_and(|d| d.take_ends());
        if ended {
            self.expect(now);
        }
        if end.has_both()
            && (ended || !self.serves(near) && !self.asked.is_some_and(fresh))
            && !self.ask(now)
        {
            return Some(near);
        }
        end.choose(client, |end| Some(self.serves(end)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    use super::*;

    #[test]
    fn a_client_is_brought_to_the_family_that_listens_now() {
        let at = |millis: u64| Instant::from_millis(1000 + millis);
        let (v4, v6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        let addresses = vec![v4.into(), v6.into()];
        let mut presence = Presence::awaited(at(0), PortId(1), addresses, 1);
        presence.use_kernel(at(0), Rc::new(Diagnostics::open().unwrap()));
        let listener = TcpListener::bind((v4, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let end = ContainerEnd {
            ipv4: Some(v4),
            ipv6: Some(v6),
            port,
        };
        let mut is_v4 = |now, client: IpAddr| presence.choose(now, end, client).unwrap().is_ipv4();
        let clients: [IpAddr; 2] = [[192, 0, 2, 1].into(), v6.into()];
        assert_eq!(clients.map(|client| is_v4(at(10), client)), [true, true]);
        drop(listener);
        let _listener = TcpListener::bind((v6, port)).unwrap();
        // The kernel tells of the end a moment later, from a work queue.
        let begun = std::time::Instant::now();
        while clients.map(|client| is_v4(at(20), client)) != [false, false] {
            assert!(begun.elapsed().as_secs() < 2, "the end was not told");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn a_container_is_asked_often_at_first_and_not_once_it_listens() {
        let at = |millis: u64| Instant::from_millis(1000 + millis);
        let address = IpAddr::from([127, 0, 0, 1]);
        let mut presence = Presence::awaited(at(0), PortId(1), vec![address], 1);
        presence.expect(at(0));
        assert!(!presence.is_late(at(1999)) && presence.is_late(at(2000)));
        presence.use_kernel(at(5), Rc::new(Diagnostics::open().unwrap()));
        assert_eq!(presence.poll_timeout(), Some(at(15)));
        let listener = TcpListener::bind((address, 0)).unwrap();
        let end = listener.local_addr().unwrap();
        assert!(!presence.serves(end));
        assert!(presence.ask(at(15)) && presence.serves(end));
        presence.set_next(at(15), true);
        assert_eq!(presence.poll_timeout(), Some(at(115)));
        presence.set_next(at(11_000), true);
        assert_eq!(presence.poll_timeout(), Some(at(12_000)));
        presence.set_next(at(12_000), false);
        assert_eq!(presence.poll_timeout(), None);
        drop(listener);
        presence.ask(at(50));
        assert!(!presence.serves(end));
        presence.expect(at(20_000));
        assert_eq!(presence.poll_timeout(), Some(at(20_010)));
    }
}
