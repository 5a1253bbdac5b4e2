//! Moving a sparse shard to a new slab: how memory follows the number of routes down.
//!
//! A rebuild leaves the records where they are, so a slab never gets smaller. When most of a shard's records are free,
//! the few that are not move: freeze the index, then set FROZEN on the word of each record that it has, copy the records
//! with their words to a new slab under a new index, CAS the root. A frozen word is final, and still says what it said,
//! so look-ups go on; whoever wants to *change* one finishes the move first, on a private copy of its own. Lists and
//! names are not copied: the new record points to the same ones, and the losers of the CAS free only what they allocated.
//!
//! A rebuild that meets a frozen word becomes a move. One that does not, because it had passed that word already, may
//! still win; then the new root has frozen words, and whoever meets one moves that root's shard.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::key::Key;
use crate::place::Place;
use crate::proxies::Liveness;
use crate::shard::capacity::{buckets_for, max_used};
use crate::shard::index::{BUCKET, Index, NewIndex, Shape};
use crate::shard::rebuild::{crowded_shape, is_tombstone};
use crate::shard::slab::{Record, Slab, allocate_segment, free_segment};
use crate::shard::word::Word;
use crate::shard::{Refused, Scope, Shard};

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
    fn publish(self) {
        std::mem::forget(self);
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

impl<K: Key> Shard<K> {
    /// Whether moving is worth it: more than a fifth of the records are of no use.
    pub(crate) fn is_sparse(index: Index<'_>) -> bool {
        let (numbers, live) = (index.slab().numbers(), index.slab().live());
        numbers.saturating_sub(live) > numbers / 5 + BUCKET
    }

    /// Moves the records of `old` to a new slab, unless somebody else does so first. Whether or not `old` was the root's,
    /// it is not when this returns `Ok`.
    pub(crate) fn relocate<P: Liveness>(&self, old: Index<'_>, scope: &Scope<'_, P>) -> Result<(), Refused> {
        old.freeze();
        let staying: Vec<([u64; 2], Word)> = old
            .occupied()
            .map(|(_, record)| (record.key(), record.freeze().thawed()))
            .filter(|&(_, word)| !is_tombstone(word))
            .collect();
        let count = staying.len() as u32;
        let slab = Arc::new(Slab::after(old.slab(), count));
        let segments = NewSegments::allocate(Place::segments(count)).ok_or(Refused::Memory)?;

        let buckets = buckets_for(count, scope.shard);
        let table = Place::segments(max_used(buckets).max(count) + BUCKET);
        let mut shape = Shape {
            buckets,
            segments: table,
            reseeds: 0,
            ..old.shape()
        };
        let new = loop {
            let mut new = NewIndex::new(Arc::clone(&slab), shape).ok_or(Refused::Memory)?;
            new.set_segments(&segments.0);
            let mut records = staying.iter().zip(0..);
            let complete = records.all(|(&(key, word), number)| {
                new.get()
                    .record(number)
                    .expect("its segment was set above")
                    .fill(key, word);
                new.place(number, K::hash_stored(key, scope.hasher))
            });
            if complete {
                break new;
            }
            shape = crowded_shape(shape);
        };
        if self.replace_root(old, &new) {
            new.publish();
            segments.publish();
            // SAFETY: the CAS in `replace_root` unlinked it, and the new root has another slab. The records that moved
            // took their lists and names along.
            unsafe { old.retire_with_slab(K::free, scope.guard) };
            scope.guard.flush();
        }
        Ok(())
    }
}
