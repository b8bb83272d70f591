//! Which port an address lives behind: one structure, over MAC addresses and over IP addresses.
//!
//! # Theory of operation
//!
//! An entry is *leased* with its port, *granted* by DHCP, or *learned* from a frame's source
//! ([`Claim`]): a stronger claim takes the address from a weaker one. The first two are *pinned*: they
//! neither age nor move. A learned entry ages [`AGEING`] after the port last used it, and moves to
//! another port only once the present one was silent for the table's hold time, so two ports that
//! claim one address cannot make it flap. A port learns so many addresses and no more.
//!
//! Beside the port an entry keeps a detail that its port's frames tell: of an IP address, the MAC
//! address it was last used with.
//!
//! The table is the one structure that workers share and write. Looking up and refreshing take a
//! shard's read lock and an atomic; adding, moving and removing, which are rare, are serialised by
//! one mutex, which also guards the counts a port.
//!
//! # Invariants
//!
//! - The count kept for a port is the number of its learned entries, and never over the limit given
//!   with the observation that added the last of them.
//! - The mutex is taken before any shard's lock, and no shard's lock is held while waiting for it.
//!
//! # Limits
//!
//! A lookup passes over aged entries. They leave memory at the next sweep, which a port that has used
//! up its limit triggers at most every [`SWEEP_INTERVAL`].

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use foldhash::fast::FixedState;

use cnet_wire::addr::{MacAddr, PortId};
use cnet_wire::time::{Duration, Instant};

/// How long a learned entry lives unused: the Linux bridge's default (`ageing_time`, ip-link(8)).
pub const AGEING: Duration = Duration::from_secs(300);
/// How long a MAC address stays with a silent port before another may take it.
pub const MAC_HOLD: Duration = Duration::from_secs(10);
/// An entry's time is written again only when it is this much behind, so that a busy port's
/// frames do not pass a cache line between the workers.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest time between two sweeps for aged entries.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Shards of the map; a power of two. Fixed, so that nothing depends on the machine.
const SHARDS: usize = 16;

/// The forwarding table: MAC address to port.
pub type Fdb = BindingTable<MacAddr>;
/// IP address to port and MAC address: leased addresses, and those that ports took first-come
/// (RFC 6620).
pub type AddressTable = BindingTable<IpAddr, LinkAddress>;

/// Why an address is a port's. The later ones are stronger.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Claim {
    /// The port used it first.
    Learned,
    /// DHCP gave it to the port.
    Granted,
    /// It was leased to the port when the port was added.
    Leased,
}

/// The MAC address that an IP address was last used with, if that is known.
#[derive(Debug, Default)]
pub struct LinkAddress(AtomicU64);

impl LinkAddress {
    /// Set above the 48 bits of an address.
    const KNOWN: u64 = 1 << 48;

    fn get(&self) -> Option<MacAddr> {
        let bits = self.0.load(Ordering::Relaxed);
        let [_, _, mac @ ..] = bits.to_be_bytes();
        (bits & Self::KNOWN != 0).then_some(MacAddr(mac))
    }

    fn set(&self, mac: MacAddr) {
        let [a, b, c, d, e, f] = mac.0;
        let bits = u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | Self::KNOWN;
        // Written only when it changes: workers read it.
        if self.0.load(Ordering::Relaxed) != bits {
            self.0.store(bits, Ordering::Relaxed);
        }
    }
}

/// Why an address was not bound to the port that used it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is another port's.
    Owned,
    /// The port has used up its limit.
    Full,
}

#[derive(Debug)]
struct Binding<D> {
    port: PortId,
    claim: Claim,
    /// Nanoseconds since the origin of [`Instant`].
    last_seen: AtomicU64,
    detail: D,
}

impl<D: Default> Binding<D> {
    fn pinned_to(port: PortId, claim: Claim) -> Self {
        Binding {
            port,
            claim,
            last_seen: AtomicU64::new(0),
            detail: D::default(),
        }
    }

    fn pinned(&self) -> bool {
        self.claim > Claim::Learned
    }

    fn idle(&self, now: Instant) -> Duration {
        now.saturating_since(Instant::from_nanos(self.last_seen.load(Ordering::Relaxed)))
    }

    fn live(&self, now: Instant) -> bool {
        self.pinned() || self.idle(now) < AGEING
    }

    fn refresh(&self, now: Instant) {
        if self.idle(now) >= REFRESH_INTERVAL {
            self.last_seen.store(now.as_nanos(), Ordering::Relaxed);
        }
    }
}

#[derive(Debug, Default)]
struct Learned {
    /// Learned entries of each port that has any.
    counts: BTreeMap<PortId, usize>,
    last_sweep: Instant,
}

impl Learned {
    fn count(&self, port: PortId) -> usize {
        self.counts.get(&port).copied().unwrap_or(0)
    }

    fn forget_one(&mut self, port: PortId) {
        if let Some(n) = self.counts.get_mut(&port) {
            *n -= 1;
            if *n == 0 {
                self.counts.remove(&port);
            }
        }
    }
}

/// A table from addresses to ports, with a detail of each, shared by the workers.
#[derive(Debug)]
pub struct BindingTable<K: Eq + Hash, D = ()> {
    entries: DashMap<K, Binding<D>, FixedState>,
    learned: Mutex<Learned>,
    hold: Duration,
}

impl<K: Eq + Hash + Copy, D: Default> BindingTable<K, D> {
    /// An empty table whose learned entries stay with a silent port for `hold`. `seed` keeps the
    /// hash values from being foreseen.
    pub fn new(hold: Duration, seed: u64) -> Self {
        BindingTable {
            entries: DashMap::with_capacity_and_hasher_and_shard_amount(
                0,
                FixedState::with_seed(seed),
                SHARDS,
            ),
            learned: Mutex::default(),
            hold,
        }
    }

    /// The port behind which `key` lives, unless its entry has aged.
    pub fn lookup(&self, now: Instant, key: K) -> Option<PortId> {
        let b = self.entries.get(&key)?;
        b.live(now).then_some(b.port)
    }

    /// The port that `key` is pinned to.
    pub fn pinned(&self, key: K) -> Option<PortId> {
        let b = self.entries.get(&key)?;
        b.pinned().then_some(b.port)
    }

    /// `port` used `key` as its own: learns, refreshes or moves the entry, or refuses. `limit` is
    /// how many addresses the port may have learned, pinned ones aside.
    pub fn observe(&self, now: Instant, key: K, port: PortId, limit: usize) -> Result<(), Refusal> {
        self.observe_with(now, key, port, limit, |_| ())
    }

    /// As [`BindingTable::observe`]; `note` writes what the use tells of the address.
    fn observe_with(
        &self,
        now: Instant,
        key: K,
        port: PortId,
        limit: usize,
        note: impl Fn(&D),
    ) -> Result<(), Refusal> {
        match self.settle(now, key, port, &note) {
            Some(settled) => settled,
            None => self.learn(now, key, port, limit, &note),
        }
    }

    /// Decides what needs no change of the table's shape.
    fn settle(
        &self,
        now: Instant,
        key: K,
        port: PortId,
        note: impl Fn(&D),
    ) -> Option<Result<(), Refusal>> {
        let b = self.entries.get(&key)?;
        if b.port == port {
            b.refresh(now);
            note(&b.detail);
            Some(Ok(()))
        } else if b.pinned() || b.idle(now) < self.hold {
            Some(Err(Refusal::Owned))
        } else {
            None
        }
    }

    fn learn(
        &self,
        now: Instant,
        key: K,
        port: PortId,
        limit: usize,
        note: impl Fn(&D),
    ) -> Result<(), Refusal> {
        let mut learned = self.lock();
        // Another worker may have come first.
        if let Some(settled) = self.settle(now, key, port, &note) {
            return settled;
        }
        if learned.count(port) >= limit {
            self.sweep(now, &mut learned);
            if learned.count(port) >= limit {
                return Err(Refusal::Full);
            }
        }
        let binding = Binding {
            port,
            claim: Claim::Learned,
            last_seen: AtomicU64::new(now.as_nanos()),
            detail: D::default(),
        };
        note(&binding.detail);
        if let Some(former) = self.entries.insert(key, binding) {
            learned.forget_one(former.port);
        }
        *learned.counts.entry(port).or_default() += 1;
        Ok(())
    }

    fn sweep(&self, now: Instant, learned: &mut Learned) {
        if now.saturating_since(learned.last_sweep) < SWEEP_INTERVAL {
            return;
        }
        learned.last_sweep = now;
        self.entries.retain(|_, b| {
            let live = b.live(now);
            if !live {
                learned.forget_one(b.port);
            }
            live
        });
    }

    /// Pins `key` to `port` by a lease or a grant, taking it from a port with a weaker claim.
    ///
    /// # Errors
    ///
    /// [`Refusal::Owned`]: another port has as strong a claim.
    pub fn pin(&self, key: K, port: PortId, claim: Claim) -> Result<(), Refusal> {
        let mut learned = self.lock();
        let mut former = None;
        if let Some(mut b) = self.entries.get_mut(&key) {
            if b.port != port && b.claim >= claim {
                return Err(Refusal::Owned);
            }
            former = (!b.pinned()).then_some(b.port);
            if b.port == port {
                b.claim = b.claim.max(claim);
            } else {
                *b = Binding::pinned_to(port, claim);
            }
        } else {
            self.entries.insert(key, Binding::pinned_to(port, claim));
        }
        if let Some(port) = former {
            learned.forget_one(port);
        }
        Ok(())
    }

    /// Forgets that `key` was granted to `port`; a lease stays.
    pub fn take_back(&self, key: K, port: PortId) {
        let _learned = self.lock();
        self.entries
            .remove_if(&key, |_, b| b.port == port && b.claim == Claim::Granted);
    }

    /// Forgets all of `port`'s entries.
    pub fn remove_port(&self, port: PortId) {
        let mut learned = self.lock();
        self.entries.retain(|_, b| b.port != port);
        learned.counts.remove(&port);
    }

    /// Entries, aged ones not yet swept included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Addresses `port` has learned, aged ones not yet swept included.
    pub fn learned(&self, port: PortId) -> usize {
        self.lock().count(port)
    }

    fn lock(&self) -> MutexGuard<'_, Learned> {
        // Nothing here panics half-way, so a poisoned count is still right.
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AddressTable {
    /// `port` used `address` with `mac`; else as [`BindingTable::observe`].
    pub fn learn_at(
        &self,
        now: Instant,
        address: IpAddr,
        (port, mac): (PortId, MacAddr),
        limit: usize,
    ) -> Result<(), Refusal> {
        self.observe_with(now, address, port, limit, |known| known.set(mac))
    }

    /// Tells the MAC address of `address`, if that is `port`'s.
    pub fn tell_mac(&self, address: IpAddr, port: PortId, mac: MacAddr) {
        if let Some(b) = self.entries.get(&address)
            && b.port == port
        {
            b.detail.set(mac);
        }
    }

    /// The port behind which `address` lives, unless its entry has aged, and its MAC address, if that
    /// is known.
    pub fn locate(&self, now: Instant, address: IpAddr) -> Option<(PortId, Option<MacAddr>)> {
        let b = self.entries.get(&address)?;
        b.live(now).then(|| (b.port, b.detail.get()))
    }

    /// As [`AddressTable::locate`], but only if `address` was used a moment ago ([`MAC_HOLD`]).
    pub fn heard(&self, now: Instant, address: IpAddr) -> Option<(PortId, Option<MacAddr>)> {
        let b = self.entries.get(&address)?;
        (b.idle(now) < MAC_HOLD).then(|| (b.port, b.detail.get()))
    }

    /// The addresses that live behind `port`, with their MAC addresses where they are known.
    pub fn behind(&self, now: Instant, port: PortId) -> Vec<(IpAddr, Option<MacAddr>)> {
        let live = |b: &Binding<LinkAddress>| b.port == port && b.live(now);
        let entries = self.entries.iter().filter(|entry| live(entry.value()));
        entries
            .map(|entry| (*entry.key(), entry.value().detail.get()))
            .collect()
    }
}

impl Fdb {
    /// The MAC addresses that live behind ports, with these.
    pub fn all(&self, now: Instant) -> Vec<(MacAddr, PortId)> {
        let entries = self.entries.iter().filter(|entry| entry.live(now));
        entries.map(|entry| (*entry.key(), entry.port)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: PortId = PortId(1);
    const B: PortId = PortId(2);

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    fn at(secs: u64) -> Instant {
        Instant::from_millis(secs * 1000)
    }

    fn table() -> Fdb {
        Fdb::new(MAC_HOLD, 7)
    }

    #[test]
    fn learns_refreshes_and_ages() {
        let t = table();
        assert_eq!(t.observe(at(0), mac(1), A, 4), Ok(()));
        assert_eq!(t.lookup(at(299), mac(1)), Some(A));
        assert_eq!(t.lookup(at(300), mac(1)), None);
        assert_eq!(t.observe(at(200), mac(1), A, 4), Ok(()));
        assert_eq!(t.lookup(at(499), mac(1)), Some(A));
        assert_eq!(t.lookup(at(500), mac(1)), None);
        assert_eq!((t.len(), t.learned(A)), (1, 1));
    }

    #[test]
    fn flapping_does_not_move_a_binding() {
        let t = table();
        for s in 0..30 {
            assert_eq!(t.observe(at(s), mac(1), A, 4), Ok(()));
            assert_eq!(t.observe(at(s), mac(1), B, 4), Err(Refusal::Owned));
        }
        assert_eq!(t.observe(at(38), mac(1), B, 4), Err(Refusal::Owned));
        assert_eq!(t.observe(at(39), mac(1), B, 4), Ok(()));
        assert_eq!(t.lookup(at(39), mac(1)), Some(B));
        assert_eq!((t.learned(A), t.learned(B), t.len()), (0, 1, 1));
    }

    #[test]
    fn pinned_entries_stay() {
        let t = table();
        assert_eq!(t.observe(at(0), mac(1), B, 4), Ok(()));
        assert_eq!(t.pin(mac(1), A, Claim::Leased), Ok(()));
        assert_eq!((t.learned(A), t.learned(B), t.len()), (0, 0, 1));
        assert_eq!(t.pin(mac(1), A, Claim::Leased), Ok(()));
        assert_eq!(t.pin(mac(1), B, Claim::Leased), Err(Refusal::Owned));
        assert_eq!(t.observe(at(9999), mac(1), B, 4), Err(Refusal::Owned));
        assert_eq!(t.observe(at(9999), mac(1), A, 0), Ok(()));
        assert_eq!(t.lookup(at(99999), mac(1)), Some(A));
        assert_eq!((t.pinned(mac(1)), t.pinned(mac(2))), (Some(A), None));
        t.remove_port(A);
        assert!(t.is_empty());
    }

    #[test]
    fn a_full_port_gets_room_when_its_entries_age() {
        let t = table();
        for n in 0..4 {
            assert_eq!(t.observe(at(0), mac(n), A, 4), Ok(()));
        }
        assert_eq!(t.observe(at(1), mac(9), A, 4), Err(Refusal::Full));
        assert_eq!(t.observe(at(1), mac(9), B, 4), Ok(()));
        assert_eq!(t.observe(at(299), mac(0), A, 4), Ok(()));
        assert_eq!(t.observe(at(300), mac(8), A, 4), Ok(()));
        assert_eq!((t.learned(A), t.len()), (2, 3));
    }

    #[test]
    fn sweeps_are_rare() {
        let t = table();
        assert_eq!(t.observe(at(0), mac(0), A, 1), Ok(()));
        assert_eq!(t.observe(at(295), mac(1), A, 1), Err(Refusal::Full));
        assert_eq!(t.observe(at(304), mac(1), A, 1), Err(Refusal::Full));
        assert_eq!(t.observe(at(305), mac(1), A, 1), Ok(()));
    }

    #[test]
    fn workers_share_it() {
        let t = table();
        std::thread::scope(|s| {
            for port in [A, B] {
                let t = &t;
                s.spawn(move || {
                    for n in 0..20_000u64 {
                        let now = Instant::from_millis(n * 10);
                        let _ = t.observe(now, mac((n % 40) as u8), port, 25);
                        t.lookup(now, mac((n % 7) as u8));
                    }
                });
            }
        });
        let of = |p| t.entries.iter().filter(|e| e.port == p).count();
        assert_eq!((of(A), of(B)), (t.learned(A), t.learned(B)));
        assert!(of(A) <= 25 && of(B) <= 25 && of(A) + of(B) == t.len() && !t.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Observe(u8, u32),
        Pin(u8, u32),
        Remove(u32),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u8..12, 0u32..4).prop_map(|(m, p)| Step::Observe(m, p)),
            1 => (0u8..12, 0u32..4).prop_map(|(m, p)| Step::Pin(m, p)),
            1 => (0u32..4).prop_map(Step::Remove),
            2 => (1u64..400).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn counts_are_right_and_capped(steps in proptest::collection::vec(steps(), 0..200)) {
            let t = table();
            let mut now = at(0);
            for step in steps {
                match step {
                    Step::Observe(m, p) => {
                        let owner = t.pinned(mac(m));
                        let seen = t.observe(now, mac(m), PortId(p), 3);
                        if let Some(owner) = owner {
                            prop_assert_eq!(seen.is_ok(), owner == PortId(p));
                        }
                        if seen.is_ok() {
                            prop_assert_eq!(t.lookup(now, mac(m)), Some(PortId(p)));
                        }
                    }
                    Step::Pin(m, p) => {
                        let _ = t.pin(mac(m), PortId(p), Claim::Leased);
                    }
                    Step::Remove(p) => t.remove_port(PortId(p)),
                    Step::Wait(s) => now += Duration::from_secs(s),
                }
                let mut learned = 0;
                for p in (0..4).map(PortId) {
                    let of_port = t.entries.iter().filter(|e| e.port == p && !e.pinned()).count();
                    prop_assert_eq!(of_port, t.learned(p));
                    prop_assert!(of_port <= 3);
                    learned += of_port;
                }
                let pinned = t.entries.iter().filter(|e| e.pinned()).count();
                prop_assert_eq!(learned + pinned, t.len());
            }
        }
    }
}
