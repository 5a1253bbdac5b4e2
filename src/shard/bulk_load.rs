//! Makes a slab and its index in private, no larger than needed. A move ([`compact`]) replaces the old slab and index
//! with the new ones; a bulk load has none to replace.
//!
//! No other thread can reach private memory, so it is written without a CAS and in any order, and its records are LIVE
//! and SPILL from the beginning: the CAS of the root publishes them all at once. For a bulk load, the CAS is from null,
//! and a shard's root is never null again after its first key. So the CAS wins only if no key was ever inserted, and no
//! key can be inserted twice.
//!
//! [`compact`]: crate::shard::compact

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::growth::{buckets_for, most_used};
use crate::layout::{MAX_RECORDS, SLOTS_PER_BUCKET};
use crate::liveness::Liveness;
use crate::mem::segments::Location;
use crate::shard::index::Shape;
use crate::shard::key::Key;
use crate::shard::list::{List, NewList};
use crate::shard::new_index::NewIndex;
use crate::shard::rebuild::crowded_shape;
use crate::shard::slab::{Record, Slab, allocate_segment, free_segment};
use crate::shard::{Scope, Shard};
use crate::sync::Guard;
use crate::word::{State, Word};

/// The segments of a private slab. Dropping them frees them.
struct NewSegments(Vec<NonNull<Record>>);

impl NewSegments {
    fn allocate(count: u32) -> Option<NewSegments> {
        let mut segments = NewSegments(Vec::new());
        segments.0.try_reserve_exact(count as usize).ok()?;
        for segment in 0..count {
            segments.0.push(allocate_segment(segment)?);
        }
        Some(segments)
    }

    /// Leaves the segments to the slab.
    fn publish(mut self) {
        self.0.clear();
    }
}

impl Drop for NewSegments {
    fn drop(&mut self) {
        for (segment, records) in self.0.iter().enumerate() {
            // SAFETY: this segment was allocated with this number, and never published.
            unsafe { free_segment(*records, segment as u32) };
        }
    }
}

/// A private index and its slab, full of records. Dropping it frees both, but not the names and lists of the records.
pub(crate) struct NewShard {
    index: NewIndex,
    segments: NewSegments,
}

impl NewShard {
    /// Copies `records` with their words to `slab`, which counts as many, under an index with room to grow. `None` if
    /// there is no memory. No two records have the same key.
    pub(crate) fn build<K: Key, P: Liveness>(
        slab: Slab,
        records: &[([u64; 2], Word)],
        seed: u64,
        serial: u32,
        scope: &Scope<'_, P>,
    ) -> Option<NewShard> {
        let count = u32::try_from(records.len())
            .ok()
            .filter(|&count| count <= MAX_RECORDS)?;
        let slab = Arc::new(slab);
        let segments = NewSegments::allocate(Location::segments(count))?;
        let buckets = buckets_for(count, slab.shard);
        let mut shape = Shape {
            buckets,
            segments: Location::segments(most_used(buckets).max(count) + SLOTS_PER_BUCKET),
            seed,
            reseeds: 0,
            serial,
        };
        let index = loop {
            let mut index = NewIndex::new(Arc::clone(&slab), shape)?;
            index.set_segments(&segments.0);
            let mut numbered = records.iter().zip(0..);
            let complete = numbered.all(|(&(key, word), number)| {
                index
                    .get()
                    .record(number)
                    .expect("its segment was set above")
                    .fill(key, word);
                index.place(number, K::hash_stored(key, scope.hasher))
            });
            if complete {
                break index;
            }
            shape = crowded_shape(shape);
        };
        Some(NewShard { index, segments })
    }

    pub(crate) fn index(&self) -> &NewIndex {
        &self.index
    }

    /// Leaves everything to the root that now points to the index.
    pub(crate) fn publish(self) {
        self.index.publish();
        self.segments.publish();
    }
}

/// Keys and words of future records. They own their names and lists; dropping this frees those.
pub(crate) struct NewRecords<K: Key> {
    records: Vec<([u64; 2], Word)>,
    key: PhantomData<fn() -> K>,
}

impl<K: Key> NewRecords<K> {
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self {
            records: Vec::with_capacity(count),
            key: PhantomData,
        }
    }

    /// Adds a record with `routes`, newest first and at least one. `false` if there is no memory.
    #[must_use]
    pub(crate) fn push(&mut self, key: &K, routes: &[Word]) -> bool {
        let (word, list) = match routes {
            [only] => (*only, None),
            several => match NewList::new(several) {
                Some(list) => (list.word(), Some(list)),
                None => return false,
            },
        };
        let Some(stored) = key.store() else { return false };
        self.records.push((stored, word));
        if let Some(list) = list {
            list.publish();
        }
        true
    }
}

impl<K: Key> Drop for NewRecords<K> {
    fn drop(&mut self) {
        for &(key, word) in &self.records {
            if word.state() == State::Spill {
                // SAFETY: `push` made the list, and no other thread can reach it.
                unsafe { List::free_at(word) };
            }
            // SAFETY: `push` stored the key, and no other thread can reach it.
            unsafe { K::free(key) };
        }
    }
}

impl<K: Key> Shard<K> {
    /// Whether no key was ever inserted, so that [`fill`](Shard::fill) may work.
    pub(crate) fn is_untouched(&self, guard: &Guard) -> bool {
        self.root(guard).is_none()
    }

    /// Publishes `records` as the shard's records, if no key was ever inserted. Returns whether it did. The keys must
    /// differ and belong to this shard. Under the scope's guard, the caller has reserved places for the routes and
    /// checked that their proxies take routes. Afterwards, the caller marks the nodes for the feed.
    #[must_use]
    pub(crate) fn fill<P: Liveness>(&self, mut records: NewRecords<K>, scope: &Scope<'_, P>) -> bool {
        if !self.is_untouched(scope.guard) {
            return false;
        }
        let slab = Slab::of_live(records.records.len() as u32, 0, self.number);
        let Some(new) = NewShard::build::<K, P>(slab, &records.records, 0, 0, scope) else {
            return false;
        };
        let is_set = self.set_root(new.index());
        if is_set {
            new.publish();
            // The shard owns their names and lists now.
            records.records.clear();
        }
        is_set
    }
}
