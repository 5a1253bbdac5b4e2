//! Making a slab and the index over it in private, at the size that they need: what a move ([`relocate`]) puts in the
//! place of the old ones.
//!
//! Nobody can reach what is private, so it is written without a CAS, in whatever order, and its records are LIVE and SPILL
//! from the beginning: the CAS of the root publishes them all at once.
//!
//! [`relocate`]: crate::shard::relocate

use std::ptr::NonNull;
use std::sync::Arc;

use crate::key::Key;
use crate::place::Place;
use crate::proxies::Liveness;
use crate::shard::Scope;
use crate::shard::capacity::{buckets_for, max_used};
use crate::shard::index::{BUCKET, MAX_RECORDS, NewIndex, Shape};
use crate::shard::rebuild::crowded_shape;
use crate::shard::slab::{Record, Slab, allocate_segment, free_segment};
use crate::shard::word::Word;

/// The segments of a slab that nobody else knows yet; freed when they are dropped.
struct NewSegments(Vec<NonNull<Record>>);

impl NewSegments {
    fn allocate(count: u32) -> Option<NewSegments> {
        let mut segments = NewSegments(Vec::with_capacity(count as usize));
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
            // SAFETY: allocated as this segment, and never published.
            unsafe { free_segment(*records, segment as u32) };
        }
    }
}

/// An index and its slab, full of records, that nobody else knows yet. Dropping it frees both, but not what the records
/// refer to.
pub(crate) struct NewShard {
    index: NewIndex,
    segments: NewSegments,
}

impl NewShard {
    /// Copies `records` with their words to `slab`, which counts as many, under an index with room to grow; `None` where
    /// there is no memory for it. No two records have the same key.
    pub(crate) fn build<K: Key, P: Liveness>(
        slab: Slab,
        records: &[([u64; 2], Word)],
        seed: u64,
        scope: &Scope<'_, P>,
    ) -> Option<NewShard> {
        let count = u32::try_from(records.len())
            .ok()
            .filter(|&count| count <= MAX_RECORDS)?;
        let slab = Arc::new(slab);
        let segments = NewSegments::allocate(Place::segments(count))?;
        let buckets = buckets_for(count, scope.shard);
        let mut shape = Shape {
            buckets,
            segments: Place::segments(max_used(buckets).max(count) + BUCKET),
            seed,
            reseeds: 0,
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

    /// Leaves everything to the root that points to the index now.
    pub(crate) fn publish(self) {
        self.index.publish();
        self.segments.publish();
    }
}
