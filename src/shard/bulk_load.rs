//! Makes a slab and its index in private, no larger than needed. A move ([`compact`]) replaces the old slab and index.
//! A bulk load has none to replace.
//!
//! Records go to the segments of the future slab at once, so a load holds each record once. The index comes last, when
//! the number of records is known, and is allocated at its final size.
//!
//! No other thread can reach private memory, so it is written without a CAS and in any order. Its records are LIVE and
//! SPILL from the beginning, because the CAS of the root publishes them all at once. For a bulk load, the CAS is from
//! null, and a shard's root is never null again after its first key. So the CAS wins only if no key was ever inserted,
//! and no key can be inserted twice.
//!
//! [`compact`]: crate::shard::compact

use std::marker::PhantomData;
use std::sync::Arc;

use ahash::RandomState;

use crate::growth::{buckets_for, most_used};
use crate::layout::{MAX_RECORDS, SLOTS_PER_BUCKET};
use crate::liveness::Liveness;
use crate::mem::segments::Location;
use crate::shard::index::Shape;
use crate::shard::key::{Key, NameKey};
use crate::shard::list::{List, NewList};
use crate::shard::new_index::NewIndex;
use crate::shard::rebuild::crowded_shape;
use crate::shard::routes::Words;
use crate::shard::slab::{NewSegment, Record, Slab};
use crate::shard::{Scope, Shard};
use crate::sync::{AtomicU64, Guard, Ordering};
use crate::types::node_id::NodeId;
use crate::word::{State, Word};

/// Why private records have no index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoIndex {
    /// There is no memory.
    Memory,
    /// These two records have the same key.
    Twice(u32, u32),
}

/// The segments of a private slab, filled from the first record on. Dropping them frees them, but not the names and
/// lists of the records.
#[derive(Default)]
pub(crate) struct NewSegments {
    segments: Vec<NewSegment>,
    count: u32,
}

impl NewSegments {
    /// Adds a record. `false` if there is no memory, or if no further record can have a number.
    #[must_use]
    pub(crate) fn push(&mut self, key: [u64; 2], word: Word) -> bool {
        if self.count == MAX_RECORDS {
            return false;
        }
        let segment = Location::of(self.count).segment;
        if segment as usize == self.segments.len() {
            let room = self.segments.try_reserve(1);
            let Some(segment) = room.ok().and_then(|()| NewSegment::new(segment)) else {
                return false;
            };
            self.segments.push(segment);
        }
        self.count += 1;
        self.record(self.count - 1).fill(key, word);
        true
    }

    /// A record by number. The number must be below `count`.
    fn record(&self, number: u32) -> &Record {
        debug_assert!(number < self.count);
        let at = Location::of(number);
        &self.segments[at.segment as usize].records()[at.offset as usize]
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        (0..self.count).map(|number| self.record(number))
    }

    /// Makes an index of the records for `slab`, with room to grow. With `unique`, checks that no two records have the
    /// same key; otherwise the caller knows.
    pub(crate) fn index<K: Key>(
        &self,
        slab: Slab,
        seed: u64,
        serial: u32,
        hasher: &RandomState,
        unique: bool,
    ) -> Result<NewIndex, NoIndex> {
        let slab = Arc::new(slab);
        let buckets = buckets_for(self.count, slab.shard);
        let mut shape = Shape {
            buckets,
            segments: Location::segments(most_used(buckets).max(self.count) + SLOTS_PER_BUCKET),
            seed,
            reseeds: 0,
            serial,
        };
        loop {
            let mut index = NewIndex::new(Arc::clone(&slab), shape).ok_or(NoIndex::Memory)?;
            index.set_segments(&self.segments);
            if self.place_all::<K>(&mut index, hasher, unique)? {
                return Ok(index);
            }
            shape = crowded_shape(shape);
        }
    }

    /// Puts all records into an index. Returns `false` if a probe sequence is full.
    fn place_all<K: Key>(&self, index: &mut NewIndex, hasher: &RandomState, unique: bool) -> Result<bool, NoIndex> {
        for (record, number) in self.records().zip(0..) {
            let key = record.key();
            let hash = K::hash_stored(key, hasher);
            if unique {
                // SAFETY: the records are private, so no thread frees their keys.
                let node = |key| unsafe { K::node(key) };
                let twin = index
                    .get()
                    .find(hash, |other| (node(other.key()) == node(key)).then_some(other.key()));
                if let Some(twin) = twin {
                    let first = self.records().position(|other| other.key() == twin);
                    return Err(NoIndex::Twice(first.unwrap_or_default() as u32, number));
                }
            }
            if !index.place(number, hash) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Leaves the segments to the slab.
    pub(crate) fn publish(&mut self) {
        self.segments.drain(..).for_each(NewSegment::publish);
        self.count = 0;
    }
}

/// The records of a shard that is loaded in bulk. They own their names and lists; dropping this frees those.
pub(crate) struct NewRecords<K: Key> {
    segments: NewSegments,
    /// Made last.
    index: Option<NewIndex>,
    key: PhantomData<fn() -> K>,
}

impl<K: Key> Default for NewRecords<K> {
    fn default() -> Self {
        Self {
            segments: NewSegments::default(),
            index: None,
            key: PhantomData,
        }
    }
}

impl NewRecords<NameKey<'static>> {
    /// [`push`](NewRecords::push) for a name with its hash.
    #[must_use]
    pub(crate) fn push_name(&mut self, name: &str, hash: u64, routes: &[Word]) -> bool {
        self.push_stored(NameKey::new(name, hash).store(), routes)
    }
}

impl<K: Key> NewRecords<K> {
    /// Adds a record with `routes`, newest first and at least one. `false` if there is no memory, or if no further
    /// record can have a number. Call it before [`make_index`](NewRecords::make_index).
    #[must_use]
    pub(crate) fn push(&mut self, key: &K, routes: &[Word]) -> bool {
        self.push_stored(key.store(), routes)
    }

    /// `key` is the stored form of a key of this kind.
    fn push_stored(&mut self, key: Option<[u64; 2]>, routes: &[Word]) -> bool {
        debug_assert!(self.index.is_none());
        let Some(key) = key else { return false };
        let new = match routes {
            [only] => Some((*only, None)),
            several => NewList::new(several).map(|list| (list.word(), Some(list))),
        };
        let is_pushed = new.is_some_and(|(word, list)| {
            let is_pushed = self.segments.push(key, word);
            if is_pushed && let Some(list) = list {
                list.publish();
            }
            is_pushed
        });
        if !is_pushed {
            // SAFETY: the caller stored the key, and no record has it.
            unsafe { K::free(key) };
        }
        is_pushed
    }

    /// The number of records.
    pub(crate) fn len(&self) -> usize {
        self.segments.count as usize
    }

    /// Makes the index, at its final size, for the shard of this number. Fails if two records have the same key.
    pub(crate) fn make_index(&mut self, shard: u16, hasher: &RandomState) -> Result<(), NoIndex> {
        let slab = Slab::of_live(self.segments.count, 0, shard);
        self.index = Some(self.segments.index::<K>(slab, 0, 0, hasher, true)?);
        Ok(())
    }

    /// The node of a record by number.
    pub(crate) fn node(&self, number: u32) -> NodeId {
        // SAFETY: the record is private, so no thread frees its key.
        unsafe { K::node(self.segments.record(number).key()) }
    }

    /// The routes of a record by number, newest first.
    pub(crate) fn routes(&self, number: u32) -> Words {
        let word = self.segments.record(number).load();
        match list_of(word) {
            // Relaxed: the list is private.
            Some(list) => list.iter().map(|word| Word(word.load(Ordering::Relaxed))).collect(),
            None => Words::from_slice(&[word]),
        }
    }

    /// Replaces each route by the result of a function.
    pub(crate) fn update(&mut self, mut update: impl FnMut(Word) -> Word) {
        for record in self.segments.records() {
            let only = std::slice::from_ref(&record.word);
            for word in list_of(record.load()).unwrap_or(only) {
                // Relaxed, both: private; the root's CAS publishes it.
                word.store(update(Word(word.load(Ordering::Relaxed))).0, Ordering::Relaxed);
            }
        }
    }
}

/// The list of a private record's word, if the record has several routes.
fn list_of<'a>(word: Word) -> Option<&'a [AtomicU64]> {
    // SAFETY: `push_stored` made the list, no other thread can reach it, and the callers own its record.
    (word.state() == State::Spill).then(|| unsafe { List::words_of_private(word) })
}

impl<K: Key> Drop for NewRecords<K> {
    fn drop(&mut self) {
        for record in self.segments.records() {
            let word = record.load();
            if word.state() == State::Spill {
                // SAFETY: `push_stored` made the list, and no other thread can reach it.
                unsafe { List::free_at(word) };
            }
            // SAFETY: `push_stored` got the key from `store`, and no other thread can reach it.
            unsafe { K::free(record.key()) };
        }
    }
}

impl<K: Key> Shard<K> {
    /// Whether no key was ever inserted, so that [`fill`](Shard::fill) may work.
    pub(crate) fn is_untouched(&self, guard: &Guard) -> bool {
        self.root(guard).is_none()
    }

    /// Publishes `records` as the shard's records, if no key was ever inserted. Returns whether it did; then `records`
    /// is empty. The records have an index for this shard. Under the scope's guard, the caller has reserved places for
    /// the routes and checked that their proxies take routes. Afterwards, the caller marks the nodes for the feed.
    #[must_use]
    pub(crate) fn fill<P: Liveness>(&self, records: &mut NewRecords<K>, scope: &Scope<'_, P>) -> bool {
        if !self.is_untouched(scope.guard) {
            return false;
        }
        let Some(index) = records.index.take_if(|index| self.set_root(index)) else {
            return false;
        };
        index.publish();
        // The shard owns the records, their names and lists now.
        records.segments.publish();
        true
    }
}
