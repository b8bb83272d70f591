//! Which conversations between containers were opened, where an answer would not be allowed by itself.
//!
//! # Theory of operation
//!
//! Only conversations of containers that a policy selects are kept: which end has opened a TCP connection,
//! who has spoken first over UDP, who has asked for an echo, and that the first fragment of a datagram was
//! allowed. What is here grants nothing for good: whether the conversation may be is asked of the rules for
//! each packet, so a change of them applies to those that are open.
//!
//! # Limits
//!
//! At most [`MAX_TRACKED`] conversations, and a quarter of them for one port; beyond that a new one over UDP
//! is refused, and of a TCP connection it is not known who has opened it. One that was silent for its timeout
//! is forgotten.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use cnet_wire::PortId;
use cnet_wire::frame::protocol;
use cnet_wire::time::{Duration, Instant};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use foldhash::fast::FixedState;

use crate::port::MAX_PORTS;

/// Conversations that are kept.
const MAX_TRACKED: u32 = 262_144;

/// Those of one port.
const MAX_OF_PORT: u32 = MAX_TRACKED / 4;

/// How long a UDP conversation may be silent (RFC 4787 section 4.3 asks for two minutes at least).
const UDP_TIMEOUT: Duration = Duration::from_secs(180);

/// How long a TCP connection may be silent, and how long what comes after its end is waited for.
const TCP_TIMEOUT: Duration = Duration::from_secs(3600);
const CLOSING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an echo may take, and a datagram's fragments.
const SHORT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long after a sweep for forgotten conversations there may be the next one.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The protocol number of IPv6's fragment header, by which fragments are kept (RFC 8200 section 4.5).
pub(crate) const FRAGMENT: u8 = 44;

/// A conversation, by who has opened it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    /// Ports; of an echo its identifier, of a fragment the identification.
    pub(crate) ports: [u16; 2],
}

impl Key {
    /// The conversation that the other end would have opened.
    pub(crate) fn reversed(&self) -> Key {
        let [source, destination] = self.ports;
        let ports = match self.protocol {
            protocol::UDP | protocol::TCP => [destination, source],
            _ => self.ports,
        };
        Key {
            src: self.dst,
            dst: self.src,
            ports,
            ..*self
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Tracked {
    seen: Instant,
    /// Where it was opened.
    port: PortId,
    /// One end of a TCP connection has sent its last segment.
    closing: bool,
}

impl Tracked {
    fn is_open(&self, now: Instant, key: &Key) -> bool {
        let timeout = match key.protocol {
            protocol::TCP if self.closing => CLOSING_TIMEOUT,
            protocol::TCP => TCP_TIMEOUT,
            protocol::UDP => UDP_TIMEOUT,
            _ => SHORT_TIMEOUT,
        };
        now.saturating_since(self.seen) <= timeout
    }
}

/// The conversations, which workers share.
#[derive(Debug)]
pub(crate) struct Conntrack {
    open: DashMap<Key, Tracked, FixedState>,
    of_port: Vec<AtomicU32>,
    count: AtomicU32,
    /// When it was swept last, in milliseconds; 0 for never.
    swept: AtomicU64,
}

impl Conntrack {
    /// No conversation yet; `seed` keeps containers from choosing ones that collide.
    pub(crate) fn new(seed: u64) -> Conntrack {
        Conntrack {
            open: DashMap::with_hasher(FixedState::with_seed(seed)),
            of_port: (0..MAX_PORTS).map(|_| AtomicU32::new(0)).collect(),
            count: AtomicU32::new(0),
            swept: AtomicU64::new(0),
        }
    }

    /// Whether the conversation is open; it is kept for longer then.
    pub(crate) fn is_open(&self, now: Instant, key: &Key) -> bool {
        match self.open.get_mut(key) {
            Some(mut tracked) if tracked.is_open(now, key) => {
                tracked.seen = now;
                true
            }
            _ => false,
        }
    }

    /// Keeps a conversation that was opened at `port`; `false` if there is no room.
    pub(crate) fn open(&self, now: Instant, port: PortId, key: Key) -> bool {
        if let Some(mut tracked) = self.open.get_mut(&key) {
            (tracked.seen, tracked.closing) = (now, false);
            return true;
        }
        if !self.has_room(port) {
            self.sweep(now);
            if !self.has_room(port) {
                return false;
            }
        }
        if let Entry::Vacant(vacant) = self.open.entry(key) {
            vacant.insert(Tracked {
                seen: now,
                port,
                closing: false,
            });
            self.count.fetch_add(1, Ordering::Relaxed);
            self.counted(port).fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// A TCP connection is opened by the sender of its first segment, whichever end has opened the one before
    /// between the same ports.
    pub(crate) fn connect(&self, now: Instant, port: PortId, key: Key) {
        if let Some((_, before)) = self.open.remove(&key.reversed()) {
            self.uncount(&before);
        }
        // Without room it is told by the ports who has opened it.
        let _ = self.open(now, port, key);
    }

    /// Whether the sender of a TCP segment has opened its connection. If that is not known, since the
    /// connection is older than the policies, the end with the higher port has: servers have lower ones than
    /// those that kernels give to clients (RFC 6335 section 6). `is_last` says that the segment ends it.
    pub(crate) fn has_opened(&self, now: Instant, key: &Key, is_last: bool) -> bool {
        for (key, by_sender) in [(*key, true), (key.reversed(), false)] {
            if let Some(mut tracked) = self.open.get_mut(&key)
                && tracked.is_open(now, &key)
            {
                tracked.closing |= is_last;
                if !tracked.closing {
                    tracked.seen = now;
                }
                return by_sender;
            }
        }
        let [source, destination] = key.ports;
        source >= destination
    }

    /// Forgets what was opened at `port`.
    pub(crate) fn remove_port(&self, port: PortId) {
        if self.counted(port).load(Ordering::Relaxed) > 0 {
            self.retain(|_, tracked| tracked.port != port);
        }
    }

    fn counted(&self, port: PortId) -> &AtomicU32 {
        // Ports of the switch are numbered below that.
        &self.of_port[port.0 as usize % self.of_port.len()]
    }

    fn has_room(&self, port: PortId) -> bool {
        self.count.load(Ordering::Relaxed) < MAX_TRACKED
            && self.counted(port).load(Ordering::Relaxed) < MAX_OF_PORT
    }

    fn sweep(&self, now: Instant) {
        let (millis, last) = (now.as_millis(), self.swept.load(Ordering::Relaxed));
        let interval = SWEEP_INTERVAL.as_millis() as u64;
        if last != 0 && millis.saturating_sub(last) < interval {
            return;
        }
        self.swept.store(millis.max(1), Ordering::Relaxed);
        self.retain(|key, tracked| tracked.is_open(now, key));
    }

    fn retain(&self, keep: impl Fn(&Key, &Tracked) -> bool) {
        self.open.retain(|key, tracked| {
            let kept = keep(key, tracked);
            if !kept {
                self.uncount(tracked);
            }
            kept
        });
    }

    fn uncount(&self, tracked: &Tracked) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.counted(tracked.port).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        Key {
            src: (n | 0x0a00_0000).to_be_bytes().into(),
            dst: [10, 0, 0, 2].into(),
            protocol: protocol::UDP,
            ports: [1000, 53],
        }
    }

    #[test]
    fn a_port_has_its_share_and_what_is_silent_makes_room() {
        let conntrack = Conntrack::new(7);
        let (port, other) = (PortId(1), PortId(2));
        let mut now = Instant::ZERO + Duration::from_secs(10);
        for n in 0..MAX_OF_PORT {
            assert!(conntrack.open(now, port, key(n)));
        }
        assert!(!conntrack.open(now, port, key(600_000)));
        assert!(conntrack.open(now, other, key(600_001)));
        now += UDP_TIMEOUT;
        assert!(conntrack.is_open(now, &key(7)));
        now += Duration::from_secs(2);
        assert!(!conntrack.is_open(now, &key(8)));
        assert!(conntrack.open(now, port, key(600_000)));
        assert!(conntrack.is_open(now, &key(7)), "it has spoken since");
        assert_eq!(conntrack.open.len(), 2);
        conntrack.remove_port(port);
        assert_eq!(conntrack.count.load(Ordering::Relaxed), 0);
        assert!(!conntrack.is_open(now, &key(7)));
    }

    #[test]
    fn who_has_opened_a_connection_is_known_from_its_first_segment_or_its_ports() {
        let conntrack = Conntrack::new(7);
        let now = Instant::from_millis(1000);
        // By its ports it would be the server's.
        let opened = Key {
            protocol: protocol::TCP,
            ports: [79, 8080],
            ..key(1)
        };
        assert!(!conntrack.has_opened(now, &opened, false));
        conntrack.connect(now, PortId(1), opened);
        assert!(conntrack.has_opened(now, &opened, false));
        assert!(!conntrack.has_opened(now, &opened.reversed(), true));
        let later = now + CLOSING_TIMEOUT + Duration::from_millis(1);
        assert!(!conntrack.has_opened(later, &opened, false), "forgotten");
        conntrack.connect(later, PortId(2), opened.reversed());
        assert!(!conntrack.has_opened(later, &opened, false));
        assert_eq!(conntrack.count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_answer_is_the_reverse() {
        let asked = key(1);
        assert_eq!(asked.reversed().ports, [53, 1000]);
        assert_eq!(asked.reversed().reversed(), asked);
        let echo = Key {
            protocol: protocol::ICMP,
            ports: [7, 0],
            ..asked
        };
        assert_eq!(echo.reversed().ports, [7, 0]);
    }
}
