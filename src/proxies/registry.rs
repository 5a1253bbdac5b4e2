//! What only registering and removing proxies change, behind a lock; and the map from ID to number.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use ahash::RandomState;
use scc::{Equivalent, HashIndex};

use crate::proxies::details::{Details, Interner};
use crate::proxies::entry::Entry;
use crate::proxies::id::ProxyId;
use crate::proxies::numbered::Numbered;
use crate::sync::{Guard, after_grace};

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

    /// Counts a number that has become DEAD.
    pub(crate) fn proxy_gone(&mut self) {
        self.registered -= 1;
    }

    /// How many proxies are registered.
    pub(crate) fn len(&self) -> usize {
        self.registered
    }

    /// Details for one more entry, which [`set_details`](Registry::set_details) gives them to.
    pub(crate) fn intern(&mut self, cluster_name: &str, addr: &str) -> Arc<Details> {
        self.interner.intern(cluster_name, addr)
    }

    /// Gives an entry other details, or none; the former ones go after a grace period.
    pub(crate) fn set_details(&mut self, entry: &Entry, details: Option<Arc<Details>>, guard: &Guard) {
        if let Some(old) = entry.replace_details(details) {
            self.interner.release(&old);
            after_grace(guard, move || drop(old));
        }
    }
}

/// From ID to number. A key is the number and the ID's hash, 8 bytes; the ID itself is compared where it is, in the
/// number's entry.
#[derive(Debug)]
pub(crate) struct Ids {
    numbers: HashIndex<Key, (), Spread>,
    hasher: RandomState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    number: u32,
    hash: u32,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.hash);
    }
}

/// An ID that is looked for.
struct Wanted<'a> {
    id: ProxyId<'a>,
    hash: u32,
    entries: &'a Numbered<Entry>,
    guard: &'a Guard,
}

impl Hash for Wanted<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.hash);
    }
}

impl Equivalent<Key> for Wanted<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        // A key that a look-up still sees was in the map while its guard was pinned, so its number's ID is not freed.
        self.hash == key.hash
            && self
                .entries
                .get(key.number)
                .is_some_and(|entry| entry.has_id(self.id, self.guard))
    }
}

/// Makes 64 bits of 32 that are a keyed hash already.
#[derive(Debug, Clone, Copy, Default)]
struct Spread(u64);

impl BuildHasher for Spread {
    type Hasher = Spread;

    fn build_hasher(&self) -> Spread {
        Spread(0)
    }
}

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("keys write one u32")
    }

    fn write_u32(&mut self, hash: u32) {
        self.0 = u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Default for Ids {
    fn default() -> Self {
        Self {
            numbers: HashIndex::with_hasher(Spread(0)),
            hasher: RandomState::new(),
        }
    }
}

impl Ids {
    fn hash(&self, id: ProxyId<'_>) -> u32 {
        self.hasher.hash_one(id) as u32
    }

    /// The number of an ID; without a lock.
    pub(crate) fn find(&self, id: ProxyId<'_>, entries: &Numbered<Entry>, guard: &Guard) -> Option<u32> {
        let wanted = Wanted {
            id,
            hash: self.hash(id),
            entries,
            guard,
        };
        self.numbers.peek_with(&wanted, |key, ()| key.number)
    }

    /// The number of an ID; for the registry's owner, who must not miss one that a resize is moving.
    pub(crate) fn find_exactly(&self, id: ProxyId<'_>, entries: &Numbered<Entry>, guard: &Guard) -> Option<u32> {
        let wanted = Wanted {
            id,
            hash: self.hash(id),
            entries,
            guard,
        };
        self.numbers.get_sync(&wanted).map(|found| found.key().number)
    }

    /// Adds an ID that is not there.
    pub(crate) fn insert(&self, id: ProxyId<'_>, number: u32) {
        let inserted = self.numbers.insert_sync(
            Key {
                number,
                hash: self.hash(id),
            },
            (),
        );
        debug_assert!(inserted.is_ok(), "a number has one ID");
    }

    /// Removes an ID, if it still has this number.
    pub(crate) fn remove(&self, id: ProxyId<'_>, number: u32) {
        self.numbers.remove_sync(&Key {
            number,
            hash: self.hash(id),
        });
    }
}
