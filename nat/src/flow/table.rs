//! The flow table: a slab of flows, found by key or by handle.
//!
//! # Theory of operation
//! Flows stand in *pages* of [`PAGE_SLOTS`] slots, so a growing table never copies the flows it has,
//! and a page whose last flow is gone gives its memory back. A hash index over slot numbers finds a
//! flow by key. Each slot remembers the hash of its key, so the index grows and shrinks without
//! hashing, or even reading, a key again. A look-up by key costs one cache miss in the index and one
//! in the slot, whatever the size.
//!
//! A [`Handle`] names the slot and the generation, a number that every insertion takes from one
//! counter of the table. It wraps: a stale handle could only be mistaken for a live one if exactly a
//! multiple of 2^32 insertions came between the two and both fell into one slot. Because the counter
//! is the table's and not the slot's, a page can be freed without a memory of its generations.
//!
//! # Invariants
//! - A page with room is listed once: in `vacant` if it gave its memory back, else in `open`. A full
//!   page is in neither.
//! - `index` holds the number of each occupied slot once, under the hash kept in that slot.
//!
//! # Limits
//! At most `limit` flows and never more than a [`Token`] can name. The hash is keyed with a secret
//! seed: containers choose their keys and must not be able to aim them at one bucket.

use std::fmt;
use std::hash::{Hash, Hasher};

use foldhash::SharedSeed;
use foldhash::quality::FoldHasher;
use hashbrown::HashTable;

use crate::host::Token;

/// Slots of one page. A power of two, so that a slot number splits without a division.
const PAGE_SLOTS: usize = 512;
/// Below this many entries the index is not worth shrinking.
const INDEX_FLOOR: usize = 512;
/// Look-ups whose waits for memory are to overlap: about as many as a processor keeps under way.
pub const PREFETCH_DEPTH: usize = 8;
/// A table of fewer flows is in the processor's caches.
pub const CACHED_FLOWS: usize = 4096;
/// No slot, at the end of a page's free list.
const NONE: u32 = u32::MAX;

/// Names a flow; stale handles find nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle {
    /// Slot in the slab.
    pub index: u32,
    /// Tells the slot's uses apart.
    pub generation: u32,
}

/// The table holds as many flows as it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableFull;

enum Slot<K, F> {
    /// Free; the next free slot of the page, or [`NONE`].
    Free(u32),
    Used {
        generation: u32,
        hash: u32,
        key: K,
        flow: F,
    },
}

struct Page<K, F> {
    slots: Vec<Slot<K, F>>,
    /// First of the free slots below `slots.len()`.
    free: u32,
    used: u32,
    /// Where `open` lists this page, if it does.
    open_at: u32,
}

impl<K, F> Page<K, F> {
    const EMPTY: Self = Page {
        slots: Vec::new(),
        free: NONE,
        used: 0,
        open_at: NONE,
    };
}

/// Flows of one protocol.
pub struct FlowTable<K, F> {
    pages: Vec<Page<K, F>>,
    /// Pages with memory and room.
    open: Vec<u32>,
    /// Pages without memory.
    vacant: Vec<u32>,
    index: HashTable<u32>,
    len: usize,
    limit: usize,
    next_generation: u32,
    seed: u64,
    shared_seed: SharedSeed,
}

impl<K, F> fmt::Debug for FlowTable<K, F> {
    /// Without the flows, which may be many, and without the seed, which is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowTable")
            .field("len", &self.len)
            .field("limit", &self.limit)
            .field("pages", &self.pages.len())
            .finish_non_exhaustive()
    }
}

/// Page and slot in the page of slot number `index`.
fn split(index: u32) -> (usize, usize) {
    (index as usize / PAGE_SLOTS, index as usize % PAGE_SLOTS)
}

/// The kept 32 bits as the index wants them: it takes the bucket from the low end and the tag from
/// the high end, and with 2^24 slots the two do not overlap in 32 bits.
fn widen(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

fn slot_of<K, F>(pages: &[Page<K, F>], index: u32) -> Option<&Slot<K, F>> {
    let (page, slot) = split(index);
    pages.get(page)?.slots.get(slot)
}

fn kept_hash<K, F>(pages: &[Page<K, F>], index: u32) -> u64 {
    match slot_of(pages, index) {
        Some(Slot::Used { hash, .. }) => widen(*hash),
        _ => 0,
    }
}

impl<K: Eq + Hash + Clone, F> FlowTable<K, F> {
    /// A table of at most `limit` flows, hashing with `seed`, which must be secret and random.
    pub fn new(limit: usize, seed: u64) -> Self {
        FlowTable {
            pages: Vec::new(),
            open: Vec::new(),
            vacant: Vec::new(),
            index: HashTable::new(),
            len: 0,
            limit: limit.min(Token::MAX_INDEX as usize + 1),
            next_generation: 0,
            seed,
            shared_seed: SharedSeed::from_u64(seed.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15),
        }
    }

    fn hash(&self, key: &K) -> u32 {
        let mut hasher = FoldHasher::with_seed(self.seed, &self.shared_seed);
        key.hash(&mut hasher);
        (hasher.finish() >> 32) as u32
    }

    /// Enters a flow under `key`, which must not be in the table.
    pub fn insert(&mut self, key: K, flow: F) -> Result<Handle, TableFull> {
        if self.len >= self.limit {
            return Err(TableFull);
        }
        debug_assert!(self.find(&key).is_none(), "the key is in the table");
        let hash = self.hash(&key);
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let index = self.occupy(Slot::Used {
            generation,
            hash,
            key,
            flow,
        });
        self.len += 1;
        let pages = &self.pages;
        self.index
            .insert_unique(widen(hash), index, |&i| kept_hash(pages, i));
        Ok(Handle { index, generation })
    }

    /// Puts `content` into a free slot and returns the slot's number.
    fn occupy(&mut self, content: Slot<K, F>) -> u32 {
        let number = match self.open.last() {
            Some(&number) => number,
            None => self.open_page(),
        };
        let page = &mut self.pages[number as usize];
        let slot = match page.slots.get_mut(page.free as usize) {
            Some(place) => {
                let slot = page.free;
                if let Slot::Free(next) = *place {
                    page.free = next;
                }
                *place = content;
                slot
            }
            None => {
                page.slots.push(content);
                page.slots.len() as u32 - 1
            }
        };
        page.used += 1;
        if page.used as usize == PAGE_SLOTS {
            self.close_page(number);
        }
        number * PAGE_SLOTS as u32 + slot
    }

    /// Lists a page without memory, or a new one, as open.
    fn open_page(&mut self) -> u32 {
        let number = self.vacant.pop().unwrap_or_else(|| {
            self.pages.push(Page::EMPTY);
            self.pages.len() as u32 - 1
        });
        self.list_page(number);
        number
    }

    fn list_page(&mut self, number: u32) {
        self.pages[number as usize].open_at = self.open.len() as u32;
        self.open.push(number);
    }

    /// Takes a page off the open list.
    fn close_page(&mut self, number: u32) {
        let at = std::mem::replace(&mut self.pages[number as usize].open_at, NONE) as usize;
        self.open.swap_remove(at);
        if let Some(&moved) = self.open.get(at) {
            self.pages[moved as usize].open_at = at as u32;
        }
    }

    /// The flow of `key`.
    pub fn find(&self, key: &K) -> Option<Handle> {
        let hash = self.hash(key);
        let &index = self
            .index
            .find(widen(hash), |&i| match slot_of(&self.pages, i) {
                Some(Slot::Used {
                    hash: h, key: k, ..
                }) => *h == hash && k == key,
                _ => false,
            })?;
        self.at(index)
    }

    /// Reads the flows of `keys`, of which the first [`PREFETCH_DEPTH`] count, ahead of their use. In a
    /// large table a look-up waits for memory two or three times; here the waits of several pass
    /// side by side. `touch` reads what of a flow will be needed. A small table is left alone.
    pub fn prefetch(&self, keys: impl IntoIterator<Item = K>, touch: impl Fn(&K, &F) -> u64) {
        if self.len < CACHED_FLOWS {
            return;
        }
        let mut hashes = [0; PREFETCH_DEPTH];
        let mut count = 0;
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = self.hash(&key);
            count += 1;
        }
        let mut slots = [NONE; PREFETCH_DEPTH];
        for (slot, &hash) in slots.iter_mut().zip(&hashes[..count]) {
            // The first entry of that tag. To look at its key would be the wait that is to be saved,
            // and a wrong guess, which is rare, is only of no use.
            if let Some(&index) = self.index.find(widen(hash), |_| true) {
                *slot = index;
            }
        }
        self.prefetch_at(&slots[..count], touch);
    }

    /// As [`FlowTable::prefetch`], for flows whose slots are known. Returns whether the table is
    /// large.
    pub fn prefetch_at(&self, slots: &[u32], touch: impl Fn(&K, &F) -> u64) -> bool {
        if self.len < CACHED_FLOWS {
            return false;
        }
        let mut read = 0;
        for &index in slots {
            if let Some(Slot::Used { key, flow, .. }) = slot_of(&self.pages, index) {
                read ^= touch(key, flow);
            }
        }
        std::hint::black_box(read);
        true
    }

    /// The flow of `handle`, if it is still there.
    pub fn get(&self, h: Handle) -> Option<&F> {
        match slot_of(&self.pages, h.index)? {
            Slot::Used {
                generation, flow, ..
            } if *generation == h.generation => Some(flow),
            _ => None,
        }
    }

    /// The flow of `handle`, to change it.
    pub fn get_mut(&mut self, h: Handle) -> Option<&mut F> {
        let (page, slot) = split(h.index);
        match self.pages.get_mut(page)?.slots.get_mut(slot)? {
            Slot::Used {
                generation, flow, ..
            } if *generation == h.generation => Some(flow),
            _ => None,
        }
    }

    /// The flow of `handle`, to change it, and its key.
    pub fn entry_mut(&mut self, h: Handle) -> Option<(&K, &mut F)> {
        let (page, slot) = split(h.index);
        match self.pages.get_mut(page)?.slots.get_mut(slot)? {
            Slot::Used {
                generation,
                key,
                flow,
                ..
            } if *generation == h.generation => Some((key, flow)),
            _ => None,
        }
    }

    /// The key of `handle`.
    pub fn key(&self, h: Handle) -> Option<&K> {
        match slot_of(&self.pages, h.index)? {
            Slot::Used {
                generation, key, ..
            } if *generation == h.generation => Some(key),
            _ => None,
        }
    }

    /// The live handle of slot `index` (timers know slots only).
    pub fn at(&self, index: u32) -> Option<Handle> {
        match slot_of(&self.pages, index)? {
            Slot::Used { generation, .. } => Some(Handle {
                index,
                generation: *generation,
            }),
            Slot::Free(_) => None,
        }
    }

    /// Takes a flow out.
    pub fn remove(&mut self, h: Handle) -> Option<(K, F)> {
        let (number, slot) = split(h.index);
        let page = self.pages.get_mut(number)?;
        let place = page.slots.get_mut(slot)?;
        if !matches!(place, Slot::Used { generation, .. } if *generation == h.generation) {
            return None;
        }
        let Slot::Used {
            hash, key, flow, ..
        } = std::mem::replace(place, Slot::Free(page.free))
        else {
            return None;
        };
        page.free = slot as u32;
        page.used -= 1;
        let used = page.used as usize;
        self.len -= 1;
        if let Ok(entry) = self.index.find_entry(widen(hash), |&i| i == h.index) {
            entry.remove();
        }
        if used == PAGE_SLOTS - 1 {
            self.list_page(number as u32);
        }
        // One empty page stays while it is the only open one, so that a single flow that comes and
        // goes does not allocate each time.
        if used == 0 && self.open.len() > 1 {
            self.close_page(number as u32);
            self.pages[number] = Page::EMPTY;
            self.vacant.push(number as u32);
        }
        self.shrink_index();
        Some((key, flow))
    }

    /// Halves the index once it is under an eighth full, which pays for itself: as many removals
    /// came before.
    fn shrink_index(&mut self) {
        let capacity = self.index.capacity();
        if capacity > INDEX_FLOOR && self.len < capacity / 8 {
            let pages = &self.pages;
            self.index.shrink_to(capacity / 4, |&i| kept_hash(pages, i));
        }
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No flows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All flows.
    pub fn iter(&self) -> impl Iterator<Item = (Handle, &K, &F)> {
        self.pages.iter().enumerate().flat_map(|(number, page)| {
            page.slots
                .iter()
                .enumerate()
                .filter_map(move |(slot, content)| match content {
                    Slot::Used {
                        generation,
                        key,
                        flow,
                        ..
                    } => Some((
                        Handle {
                            index: (number * PAGE_SLOTS + slot) as u32,
                            generation: *generation,
                        },
                        key,
                        flow,
                    )),
                    Slot::Free(_) => None,
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    impl<K, F> FlowTable<K, F> {
        /// Slots that memory is held for.
        fn slots_held(&self) -> usize {
            self.pages.iter().map(|p| p.slots.capacity()).sum()
        }

        fn check(&self) {
            for (n, p) in self.pages.iter().enumerate() {
                let listed = self.open.iter().filter(|&&o| o as usize == n).count();
                let vacant = self.vacant.iter().filter(|&&o| o as usize == n).count();
                let room = (p.used as usize) < PAGE_SLOTS;
                assert_eq!(listed + vacant, usize::from(room), "page {n}");
                if listed == 1 {
                    assert_eq!(self.open[p.open_at as usize] as usize, n);
                }
                if vacant == 1 {
                    assert_eq!(p.slots.capacity(), 0);
                }
            }
            assert_eq!(self.index.len(), self.len);
        }
    }

    #[test]
    fn prefetches_the_right_flows_once_there_are_many() {
        let mut table = FlowTable::new(usize::MAX, 5);
        let keys = |from: u32| (0..PREFETCH_DEPTH as u32).map(move |n| from + 7 * n);
        let seen = std::cell::RefCell::new(Vec::new());
        let touch = |key: &u32, flow: &u64| {
            assert_eq!(u64::from(*key) + 1, *flow);
            seen.borrow_mut().push(*key);
            *flow
        };
        for key in 0..20_000 {
            if table.len() == CACHED_FLOWS - 1 {
                table.prefetch(keys(100), touch);
                assert!(!table.prefetch_at(&[0, 1], touch) && seen.borrow().is_empty());
            }
            table.insert(key, u64::from(key) + 1).unwrap();
        }
        let mut right = 0;
        for from in (0..10_000).step_by(100) {
            table.prefetch(keys(from), touch);
            right += keys(from).filter(|k| seen.borrow().contains(k)).count();
            seen.borrow_mut().clear();
        }
        // Of a hundred times eight; two flows of one tag near one another are rare.
        assert!(right > 750, "{right}");
        table.prefetch(keys(1_000_000), touch);
        let slots = keys(0).map(|k| table.find(&k).unwrap().index);
        seen.borrow_mut().clear();
        assert!(table.prefetch_at(&slots.collect::<Vec<_>>(), touch));
        assert_eq!(*seen.borrow(), keys(0).collect::<Vec<_>>());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u16),
        Remove(usize),
        Find(u16),
        Stale(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u16..3000).prop_map(Op::Insert),
            3 => any::<usize>().prop_map(Op::Remove),
            2 => (0u16..3000).prop_map(Op::Find),
            1 => any::<usize>().prop_map(Op::Stale),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_as_a_map(ops in proptest::collection::vec(op(), 0..3000), seed: u64, first: u32) {
            let limit = 1200;
            let mut table = FlowTable::new(limit, seed);
            table.next_generation = first;
            let mut model: HashMap<u16, (Handle, u64)> = HashMap::new();
            let mut live: Vec<u16> = Vec::new();
            let mut stale: Vec<Handle> = Vec::new();
            for (n, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Insert(k) if model.contains_key(&k) => {}
                    Op::Insert(k) if model.len() == limit => {
                        prop_assert_eq!(table.insert(k, 0), Err(TableFull));
                    }
                    Op::Insert(k) => {
                        let h = table.insert(k, n as u64).unwrap();
                        model.insert(k, (h, n as u64));
                        live.push(k);
                    }
                    Op::Remove(i) if !live.is_empty() => {
                        let k = live.swap_remove(i % live.len());
                        let (h, v) = model.remove(&k).unwrap();
                        prop_assert_eq!(table.remove(h), Some((k, v)));
                        prop_assert_eq!(table.remove(h), None);
                        stale.push(h);
                    }
                    Op::Find(k) => {
                        prop_assert_eq!(table.find(&k), model.get(&k).map(|m| m.0));
                    }
                    Op::Stale(i) if !stale.is_empty() => {
                        let h = stale[i % stale.len()];
                        prop_assert_eq!(table.get(h), None);
                        prop_assert_eq!(table.get_mut(h), None);
                        prop_assert_eq!(table.key(h), None);
                        prop_assert_eq!(table.remove(h), None);
                        prop_assert!(table.at(h.index) != Some(h));
                    }
                    Op::Remove(_) | Op::Stale(_) => {}
                }
                prop_assert_eq!(table.len(), model.len());
            }
            table.check();
            let mut seen = 0;
            for (h, &k, &v) in table.iter() {
                prop_assert_eq!(model.get(&k), Some(&(h, v)));
                prop_assert_eq!(table.at(h.index), Some(h));
                prop_assert_eq!((table.get(h), table.key(h)), (Some(&v), Some(&k)));
                seen += 1;
            }
            prop_assert_eq!(seen, model.len());
        }
    }

    #[test]
    fn memory_goes_back_after_a_storm() {
        let mut table = FlowTable::new(usize::MAX, 7);
        let mut handles = Vec::new();
        for round in 0..3u64 {
            for k in 0..10_000u64 {
                handles.push(table.insert((round, k), [0u8; 256]).unwrap());
            }
            let peak = table.index.capacity();
            // One flow in the midst stays.
            let kept = handles.swap_remove(5_000);
            for h in handles.drain(..) {
                assert!(table.remove(h).is_some());
            }
            table.check();
            assert!(
                table.slots_held() <= 2 * PAGE_SLOTS,
                "{}",
                table.slots_held()
            );
            assert!(table.index.capacity() <= INDEX_FLOOR.max(peak / 8));
            assert!(table.remove(kept).is_some());
            assert!(table.is_empty());
        }
        assert!(table.pages.len() <= 10_000 / PAGE_SLOTS + 2);
    }

    #[test]
    fn generation_wraps_without_reviving_a_handle() {
        let mut table = FlowTable::new(8, 1);
        table.next_generation = u32::MAX;
        let a = table.insert(1, ()).unwrap();
        table.remove(a);
        let b = table.insert(1, ()).unwrap();
        assert_eq!((a.index, a.generation), (b.index, u32::MAX));
        assert_eq!(b.generation, 0);
        assert_eq!((table.get(a), table.get(b)), (None, Some(&())));
    }

    #[test]
    fn the_limit_is_what_a_token_can_name() {
        let table: FlowTable<u32, ()> = FlowTable::new(usize::MAX, 1);
        assert_eq!(table.limit - 1, Token::MAX_INDEX as usize);
        let mut none = FlowTable::new(0, 1);
        assert_eq!(none.insert(1, ()), Err(TableFull));
    }

    #[test]
    fn seeds_scatter_keys_differently() {
        let (a, b) = (
            FlowTable::<u64, ()>::new(1, 1),
            FlowTable::<u64, ()>::new(1, 2),
        );
        let same = (0..10_000u64).filter(|k| a.hash(k) == b.hash(k)).count();
        assert!(same < 3, "{same}");
        // Sequential keys, as ports are, spread over the buckets and over the tags.
        let mut buckets = [0u32; 64];
        let mut tags = [0u32; 128];
        for k in 0..12_800u64 {
            let h = widen(a.hash(&k));
            buckets[h as usize % 64] += 1;
            tags[(h >> 57) as usize] += 1;
        }
        assert!(
            buckets.iter().all(|&n| (120..290).contains(&n)),
            "{buckets:?}"
        );
        assert!(tags.iter().all(|&n| (50..160).contains(&n)), "{tags:?}");
    }
}
