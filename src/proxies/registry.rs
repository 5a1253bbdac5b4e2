//! What only registering and removing proxies change, behind a lock; and the map from ID to number.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use ahash::RandomState;
use scc::{Equivalent, HashIndex};

use crate::proxies::details::{Interner, SharedDetails};
use crate::proxies::entry::Entry;
use crate::proxies::id::ProxyId;
use crate::proxies::numbered::Numbered;
use crate::sync::{Guard, after_grace, pin};

/// Numbers and shared details.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    free: Vec<u32>,
    next: u32,
    /// Numbers that are not FREE.
    in_use: usize,
    /// Numbers that are ALIVE or CLOSING.
    registered: usize,
    interner: Interner,
}

impl Registry {
    /// A number that nobody has, unless `limit` are in use.
    pub(crate) fn take_number(&mut self, limit: usize) -> Option<u32> {
        if self.in_use >= limit {
            return None;
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None if (self.next as usize) < limit => {
                self.next += 1;
                self.next - 1
            }
            // Numbers whose generations are used up: 2^29 proxies each.
            None => return None,
        };
        self.in_use += 1;
        self.registered += 1;
        Some(number)
    }

    pub(crate) fn give_number_back(&mut self, number: u32, reusable: bool) {
        self.in_use -= 1;
        if reusable {
            self.free.push(number);
        }
    }

    /// How many numbers there are left.
    pub(crate) fn room(&self, limit: usize) -> usize {
        limit.saturating_sub(self.in_use)
    }

    /// Counts a number that has become DEAD.
    pub(crate) fn proxy_gone(&mut self) {
        self.registered -= 1;
    }

    /// How many proxies are registered.
    pub(crate) fn len(&self) -> usize {
        self.registered
    }

    /// Details for one more entry, which [`set_details`](Registry::set_details) gives them to.
    pub(crate) fn intern(&mut self, cluster_name: &str, addr: &str) -> Arc<SharedDetails> {
        self.interner.intern(cluster_name, addr)
    }

    /// Gives an entry other details, or none; the former ones go after a grace period.
    pub(crate) fn set_details(&mut self, entry: &Entry, details: Option<Arc<SharedDetails>>, guard: &Guard) {
        if let Some(old) = entry.replace_details(details) {
            self.interner.release(&old);
            after_grace(guard, move || drop(old));
        }
    }
}

/// From ID to number. A key is a number, 4 bytes; its ID, and the ID's hash, are in the number's entry.
#[derive(Debug)]
pub(crate) struct Ids {
    numbers: HashIndex<Number, (), ById>,
    entries: Arc<Numbered<Entry>>,
    hasher: RandomState,
}

/// A proxy number that stands for its ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number(u32);

impl Hash for Number {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.0);
    }
}

/// An ID that is looked for, with its hash.
struct Wanted<'a> {
    id: ProxyId<'a>,
    hash: u64,
    entries: &'a Numbered<Entry>,
    guard: &'a Guard,
}

impl Hash for Wanted<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<Number> for Wanted<'_> {
    fn equivalent(&self, key: &Number) -> bool {
        // A key that a look-up still sees was in the map while its guard was pinned, so its number's ID is not freed.
        self.entries
            .get(key.0)
            .is_some_and(|entry| entry.has_id(self.id, self.guard))
    }
}

/// Hashes a number as its ID, so that the map can move its keys about when it grows.
///
/// A hasher has to be made for each key, cannot borrow, and sharing the entries by an `Arc` would make all threads count
/// at one place; so it points to them.
#[derive(Debug, Clone)]
struct ById {
    entries: *const Numbered<Entry>,
    hasher: RandomState,
}

// SAFETY: the pointer is only read through, and what it points to can be shared (`Numbered<Entry>: Sync`).
unsafe impl Send for ById {}
// SAFETY: as above.
unsafe impl Sync for ById {}

struct IdHasher {
    by_id: ById,
    hash: u64,
}

impl BuildHasher for ById {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher {
            by_id: self.clone(),
            hash: 0,
        }
    }
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("a number writes a u32, and an ID that is looked for a u64");
    }

    fn write_u32(&mut self, number: u32) {
        // SAFETY: `Ids` owns the entries beside the map, which hashes only while it is used.
        let entries = unsafe { &*self.by_id.entries };
        let guard = pin();
        // A number that is in the map has an entry, and that an ID.
        self.hash = entries
            .get(number)
            .map_or(0, |entry| self.by_id.hasher.hash_one(entry.id(&guard)));
    }

    fn write_u64(&mut self, hash: u64) {
        self.hash = hash;
    }
}

impl Ids {
    pub(crate) fn new(entries: Arc<Numbered<Entry>>) -> Self {
        let hasher = RandomState::new();
        let by_id = ById {
            entries: Arc::as_ptr(&entries),
            hasher: hasher.clone(),
        };
        Self {
            numbers: HashIndex::with_hasher(by_id),
            entries,
            hasher,
        }
    }

    fn wanted<'a>(&'a self, id: ProxyId<'a>, guard: &'a Guard) -> Wanted<'a> {
        Wanted {
            id,
            hash: self.hasher.hash_one(id),
            entries: &self.entries,
            guard,
        }
    }

    /// The number of an ID; without a lock.
    pub(crate) fn find(&self, id: ProxyId<'_>, guard: &Guard) -> Option<u32> {
        self.numbers.peek_with(&self.wanted(id, guard), |key, ()| key.0)
    }

    /// The number of an ID; for the registry's owner, who must not miss one that a resize is moving.
    pub(crate) fn find_exactly(&self, id: ProxyId<'_>, guard: &Guard) -> Option<u32> {
        self.numbers
            .get_sync(&self.wanted(id, guard))
            .map(|found| found.key().0)
    }

    /// Adds a number whose entry has its ID, which is not there yet.
    pub(crate) fn insert(&self, number: u32) {
        let inserted = self.numbers.insert_sync(Number(number), ());
        debug_assert!(inserted.is_ok(), "a number has one ID");
    }

    /// Removes a number, whose entry still has its ID.
    pub(crate) fn remove(&self, number: u32) {
        self.numbers.remove_sync(&Number(number));
    }
}
